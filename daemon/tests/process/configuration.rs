//! The command line, the configuration, and that each option does something.

use crate::{
    harness::{Ask, Site, wait_until},
    load::{slow, slow_ask},
};
use std::{
    fs,
    process::{Command, Output},
};
use tractd_wire::{DType, Status, What};

fn tractd(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tractd")).args(arguments).output().unwrap();
    parts(output)
}

fn parts(output: Output) -> (Option<i32>, String, String) {
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn check_config(toml: &str) -> (Option<i32>, String, String) {
    let site = Site::new();
    fs::write(site.config(), toml).unwrap();
    tractd(&["--check-config", "--config", site.config().to_str().unwrap()])
}

#[test]
fn version_and_help() {
    let (code, out, _) = tractd(&["--version"]);
    assert_eq!((code, out), (Some(0), format!("tractd {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, out, _) = tractd(&["--help"]);
    assert_eq!(code, Some(0));
    for text in ["--check-config", "--models <DIR>", "Examples:", "SIGHUP", "Exit status"] {
        assert!(out.contains(text), "{text} in\n{out}");
    }
    assert!(!out.contains("--prove"));
}

#[test]
fn wrong_usage_and_wrong_configuration_end_with_2() {
    assert_eq!(tractd(&["--nonsense"]).0, Some(2));
    let (code, _, error) = tractd(&["--config", "/nonexistent.toml"]);
    assert_eq!(
        (code, error.as_str()),
        (Some(2), "tractd: /nonexistent.toml: No such file or directory (os error 2)\n")
    );
    let (code, _, error) = check_config("grace_ms = 'x'");
    assert_eq!(code, Some(2));
    assert!(error.contains("line 1, column"), "{error}");
    assert_eq!(check_config("[limits]\ndeadline_ms = 0").0, Some(2));
}

#[test]
fn check_config_prints_what_applies_and_refuses_unknown_keys() {
    let (code, out, error) = check_config("grace_ms = 77\n[socket]\nallow_uids = [5]\n");
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let effective: toml::Table = out.parse().unwrap();
    assert_eq!(effective["grace_ms"].as_integer(), Some(77));
    assert_eq!(effective["limits"]["jobs"].as_integer(), Some(1024));
    assert_eq!(effective["mqtt"]["prefix"].as_str(), Some("tractd/v1"));

    let (code, _, error) = check_config("grace = 1\n[mqtt]\nurll = 'x'\n");
    assert_eq!(code, Some(2));
    assert!(error.contains("tractd.toml: grace\n") && error.contains("tractd.toml: mqtt.urll\n"), "{error}");
}

#[test]
fn an_unknown_key_is_warned_of_and_the_daemon_runs() {
    let site = Site::new();
    site.configure("grace = 5");
    let daemon = site.start();
    assert!(daemon.log().iter().any(|line| line.contains("WARN")
        && line.contains("unknown configuration key")
        && line.ends_with("tractd.toml: grace")));
}

#[test]
fn paths_come_from_the_file_too() {
    let site = Site::new();
    let at = |path: &str| site.dir.path().join(path);
    fs::rename(site.models(), at("elsewhere")).unwrap();
    let other = Site::new();
    other.add_example("digits", 1);
    let text = format!(
        "state_dir = {:?}\nmodels_dir = {:?}\nworkers = 3\n[socket]\npath = {:?}\n[mqtt]\nenabled = false\n",
        at("s"),
        other.models(),
        site.socket(),
    );
    fs::write(site.config(), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tractd"));
    command.arg("--config").arg(site.config());
    let daemon = site.spawn(command);
    daemon.wait_log("ready");
    let status = daemon.status();
    assert_eq!((&status["workers"], &status["models"][0]["name"]), (&3.into(), &"digits".into()));
    assert!(at("s/proofs.json").exists());
}

#[test]
fn the_environment_names_the_socket() {
    let site = Site::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tractd"));
    command.arg("--config").arg(site.config()).arg("--state").arg(site.dir.path().join("s"));
    command.env("TRACTD_SOCKET", site.socket());
    let daemon = site.spawn(command);
    daemon.wait_log("ready");
    assert_eq!(daemon.status()["state"], "ready");
}

#[test]
fn the_log_level_is_set_by_file_and_by_signal() {
    let site = Site::new();
    site.configure("log = 'error'");
    let daemon = site.spawn(site.command());
    daemon.wait_listening();
    wait_until(|| daemon.status()["state"] == "ready", || daemon.log().join("\n"));
    assert_eq!(daemon.log(), Vec::<String>::new());
    site.configure("log = 'info'");
    daemon.signal("-HUP");
    daemon.wait_log("configuration read again");
}

#[test]
fn queue_limits_and_the_default_deadline_apply() {
    let site = Site::new();
    slow(&site);
    site.configure("workers = 1\n[limits]\njobs_per_model = 1\ndeadline_ms = 100000\n");
    let daemon = site.start();
    assert_eq!(daemon.status()["queue"]["jobs_max"], 1024);
    let mut client = daemon.connect();
    for _ in 0..3 {
        client.send(&slow_ask());
    }
    let refused = client.receive();
    assert_eq!((refused.status, refused.detail.as_str()), (Status::Busy, "the queue is full"));
    drop(daemon);

    site.configure("workers = 1\n[limits]\njobs = 1\ndeadline_ms = 30\n");
    let daemon = site.start();
    let mut client = daemon.connect();
    client.send(&slow_ask().within(50_000));
    wait_until(|| daemon.status()["queue"]["running"] == 1, || daemon.status().to_string());
    client.send(&slow_ask());
    assert_eq!(client.receive().status, Status::DeadlineExceeded);
    drop(daemon);

    site.configure("workers = 1\n[limits]\ndeadline_ms = 30\ndeadline_ms_max = 40\n");
    let daemon = site.start();
    let mut client = daemon.connect();
    client.send(&slow_ask());
    wait_until(|| daemon.status()["queue"]["running"] == 1, || daemon.status().to_string());
    client.send(&slow_ask().within(50_000));
    let cut = client.receive();
    assert_eq!((cut.id, cut.status), (2, Status::DeadlineExceeded));
}

#[test]
fn who_is_not_on_the_allow_list_is_told_so() {
    let site = Site::new();
    site.add_example("digits", 1);
    site.configure("[socket]\nallow_uids = [4000000000]\nallow_gids = [4000000001]");
    let daemon = site.start();
    // The daemon's own user is always allowed; another one needs root to be.
    assert_eq!(daemon.status()["state"], "ready");
    if !can_be_others() {
        return;
    }
    open_to_all(&site);
    let ask = |uid: u32, gid: u32| run_as(uid, gid, &site);
    assert_eq!(ask(4_000_000_000, 5), "200");
    assert_eq!(ask(5, 4_000_000_001), "200");
    assert_eq!(ask(5, 5), "403");
    assert_eq!(daemon.status()["connections"]["turned_away"], 1);
}

#[test]
fn only_root_and_the_own_user_ask_for_updates() {
    let site = Site::new();
    let daemon = site.start();
    let (status, _, report) = daemon.connect().try_query(What::CheckUpdates);
    assert_eq!((status, &report["ok"]), (Status::Ok, &false.into()));
    assert_eq!(report["error"], "this device is not provisioned");
    if can_be_others() {
        open_to_all(&site);
        assert_eq!(run_as(5, 5, &site), "403 check");
    }
}

#[test]
fn one_connection_too_many_is_told_so() {
    let site = Site::new();
    site.add_example("digits", 1);
    site.configure("[socket]\nconnections_max = 2");
    let daemon = site.start();
    let ask = Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]);
    let mut first = daemon.connect();
    let mut second = daemon.connect();
    assert_eq!((first.ask(&ask).status, second.ask(&ask).status), (Status::Ok, Status::Ok));
    let mut third = daemon.connect();
    let refused = third.ask(&ask);
    assert_eq!((refused.status, refused.retry_after_ms), (Status::Busy, 1_000));
    drop(third);
    drop(first);
    wait_until(|| daemon.connect().ask(&ask).status == Status::Ok, || "a free place".into());
}

#[test]
fn the_journal_gets_priorities_and_no_times() {
    use std::os::unix::fs::MetadataExt;
    let site = Site::new();
    site.configure("grace = 5");
    let file = fs::File::create(site.dir.path().join("journal")).unwrap();
    let there = file.metadata().unwrap();
    let mut command = site.command();
    command.env("JOURNAL_STREAM", format!("{}:{}", there.dev(), there.ino())).stderr(file);
    let mut child = command.spawn().unwrap();
    let log = || fs::read_to_string(site.dir.path().join("journal")).unwrap();
    wait_until(|| log().contains("\n<6>ready\n"), log);
    child.kill().unwrap();
    child.wait().unwrap();
    let lines: Vec<String> = log().lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("<4>unknown configuration key"), "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with("<4>") || line.starts_with("<6>")), "{lines:?}");
}

/// Whether this test can act as other users.
fn can_be_others() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let able = root && Command::new("python3").arg("--version").output().is_ok();
    if !able {
        eprintln!("needs root and python3: only the daemon's own user was tried");
    }
    able
}

/// Lets every user reach the socket, so that the daemon's own check is what is tried.
fn open_to_all(site: &Site) {
    use std::os::unix::fs::PermissionsExt;
    for (path, mode) in
        [(site.dir.path(), 0o755), (site.socket().parent().unwrap(), 0o755), (&site.socket(), 0o666)]
    {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Asks as another user, in a process that can only be python: prints the status code of a digit, or of a check for
/// updates where inference is allowed.
fn run_as(uid: u32, gid: u32, site: &Site) -> String {
    let digit = Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]).frame(1);
    let mut check = vec![0; tractd_wire::FRAME_HEAD_MAX];
    let length =
        tractd_wire::encode_query(2, &tractd_wire::Query { what: What::CheckUpdates }, &mut check).unwrap();
    let script = format!(
        "import os,socket\nos.setgroups([]);os.setgid({gid});os.setuid({uid})\n\
         def ask(frame,skip):\n s=socket.socket(socket.AF_UNIX);s.connect({:?});s.sendall(bytes(frame));b=b''\n\
         \x20while len(b)<22: b+=s.recv(64)\n return b[20]&127|b[21]<<7\n\
         a=ask({digit:?},0)\nprint(a if a!=404 else str(ask({:?},0))+' check',end='')\n",
        site.socket().to_str().unwrap(),
        &check[..length],
    );
    let (code, out, error) = parts(Command::new("python3").args(["-c", &script]).output().unwrap());
    assert_eq!((code, error.as_str()), (Some(0), ""));
    out
}
