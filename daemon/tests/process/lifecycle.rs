//! Start, drain, end, and what systemd is told.

use crate::{
    harness::{Ask, PATIENCE, Site, wait_until},
    load::{slow, slow_ask},
};
use std::{
    fs,
    io::Write,
    os::unix::{net::UnixDatagram, process::ExitStatusExt},
    time::{Duration, Instant},
};
use tractd_wire::{DType, Status};

#[test]
fn sigterm_finishes_what_runs_refuses_the_rest_and_ends_with_0() {
    let site = Site::new();
    slow(&site);
    site.configure("workers = 1");
    let mut daemon = site.start();
    let mut client = daemon.connect();
    for _ in 0..4 {
        client.send(&slow_ask());
    }
    wait_until(|| daemon.status()["queue"]["running"] == 1, || daemon.status().to_string());
    daemon.signal("-TERM");
    daemon.wait_log("draining");
    wait_until(|| !site.socket().exists(), || "the socket to go".into());
    let late = client.send(&slow_ask());
    let mut replies: Vec<_> = (0..5).map(|_| client.receive()).collect();
    replies.sort_by_key(|reply| reply.id);
    let statuses: Vec<Status> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [Status::Ok, Status::Ok, Status::Ok, Status::Ok, Status::Draining]);
    assert_eq!((replies[4].id, replies[4].retry_after_ms), (late, 1_000));
    assert!(client.is_closed());
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!site.socket().exists());
}

#[test]
fn the_grace_time_ends_with_answers_for_what_was_queued() {
    let site = Site::new();
    slow(&site);
    site.configure("workers = 1\ngrace_ms = 50");
    let mut daemon = site.start();
    let mut client = daemon.connect();
    for _ in 0..20 {
        client.send(&slow_ask());
    }
    wait_until(|| daemon.status()["queue"]["jobs"].as_u64() >= Some(10), || daemon.status().to_string());
    daemon.signal("-INT");
    let replies: Vec<_> = (0..20).map(|_| client.receive().status).collect();
    assert!(replies.iter().all(|status| matches!(status, Status::Ok | Status::Draining)), "{replies:?}");
    assert!(replies.contains(&Status::Draining));
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn under_load_every_request_is_answered_to_the_end() {
    let site = Site::new();
    site.add_example("digits", 1);
    let mut daemon = site.start();
    let mut client = daemon.connect();
    let mut writer = client.stream.try_clone().unwrap();
    let ask = Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]);
    let sender = std::thread::spawn(move || {
        let mut sent = 0_u64;
        // Ends when the daemon has closed.
        while sent < 10_000_000 && writer.write_all(&ask.frame(sent)).is_ok() {
            sent += 1;
        }
        sent
    });
    let mut answered = 0_u64;
    let mut draining = 0_u64;
    while let Ok(reply) = client.try_receive() {
        answered += 1;
        draining += u64::from(reply.status == Status::Draining);
        if answered == 500 {
            daemon.signal("-TERM");
        }
    }
    drop(client);
    let sent = sender.join().unwrap();
    assert_eq!(daemon.wait().code(), Some(0));
    // What was still in the socket's buffer when it closed was never taken in; everything taken in was answered.
    assert!(answered >= 500 && sent >= answered, "{answered} of {sent}, {draining} refused");
}

#[test]
fn systemd_is_told_the_truth() {
    let site = Site::new();
    site.add_example("digits", 1);
    let path = site.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let past_watchdog =
        || std::iter::repeat_with(told).find(|message| !message.starts_with("WATCHDOG=1")).unwrap();
    let mut command = site.command();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let mut daemon = site.spawn(command);
    assert_eq!(past_watchdog().trim_end(), "READY=1");
    // READY says that a request will be answered: the model is loaded and the socket is bound.
    let ask = Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]);
    assert_eq!(daemon.connect().ask(&ask).status, Status::Ok);
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(told().trim_end(), "WATCHDOG=1");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "an idle daemon is alive");

    daemon.signal("-HUP");
    let reloading = past_watchdog();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading:?}");
    assert_eq!(past_watchdog().trim_end(), "READY=1");
    daemon.signal("-TERM");
    assert_eq!(past_watchdog().trim_end(), "STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_bad_configuration_at_sighup_changes_nothing() {
    let site = Site::new();
    site.configure("[socket]\nidle_timeout_ms = 500000");
    let daemon = site.start();
    site.configure("[socket]\nidle_timeout_ms = 'never'");
    daemon.signal("-HUP");
    daemon.wait_log("the configuration stays as it was");
    site.configure("workers = 1\n[socket]\nidle_timeout_ms = 100");
    daemon.signal("-HUP");
    daemon.wait_log("configuration read again");
    daemon.wait_log("workers changed: it takes effect at the next start");
    assert!(daemon.connect().is_closed(), "the new idle time applies to new connections");
}

#[test]
fn a_second_daemon_does_not_take_the_socket() {
    let site = Site::new();
    let daemon = site.start();
    let mut second = site.spawn(site.command());
    assert_eq!(second.wait().code(), Some(1));
    second.wait_log("another daemon is listening there");
    assert_eq!(daemon.status()["state"], "ready");
}

#[test]
fn a_killed_daemon_leaves_nothing_that_stops_the_next() {
    let site = Site::new();
    let mut daemon = site.start();
    daemon.signal("-KILL");
    assert_eq!(daemon.wait().signal(), Some(9));
    assert!(site.socket().exists());
    assert_eq!(site.start().status()["state"], "ready");
}

#[test]
fn without_a_state_folder_it_runs() {
    let site = Site::new();
    site.add_example("digits", 1);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tractd"));
    command.arg("--config").arg(site.config()).arg("--socket").arg(site.socket());
    // Nobody can make a folder there, not even root.
    command.arg("--models").arg(site.models()).args(["--state", "/proc/nowhere"]);
    let daemon = site.spawn(command);
    daemon.wait_log("ready");
    daemon.wait_log("nothing will be remembered");
    let ask = Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]);
    assert_eq!(daemon.connect().ask(&ask).status, Status::Ok);
}

#[test]
fn requests_sent_while_models_load_are_not_told_that_there_is_none() {
    let site = Site::new();
    site.add_example("digits", 1);
    let daemon = site.spawn(site.command());
    daemon.wait_listening();
    let ask = Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]);
    loop {
        let reply = daemon.connect().ask(&ask);
        if reply.status == Status::Ok {
            break;
        }
        assert_eq!((reply.status, reply.retry_after_ms), (Status::Busy, 500), "{reply:?}");
    }
}

#[test]
fn a_socket_systemd_passed_is_used_and_left_alone() {
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        eprintln!("needs python3 to pass a descriptor");
        return;
    }
    let site = Site::new();
    fs::create_dir(site.socket().parent().unwrap()).unwrap();
    let inner = site.command();
    let arguments: Vec<_> = std::iter::once(inner.get_program()).chain(inner.get_args()).collect();
    let script = "import os,socket,sys\n\
        s=socket.socket(socket.AF_UNIX);s.bind(sys.argv[1]);s.listen();os.dup2(s.fileno(),3);os.set_inheritable(3,True)\n\
        os.environ.update(LISTEN_PID=str(os.getpid()),LISTEN_FDS='1',LISTEN_FDNAMES='tractd.socket')\n\
        os.execv(sys.argv[2],sys.argv[2:])";
    let mut command = std::process::Command::new("python3");
    command.args(["-c", script]).arg(site.socket()).args(arguments);
    let mut daemon = site.spawn(command);
    daemon.wait_log("ready");
    assert_eq!(daemon.status()["state"], "ready");
    daemon.signal("-TERM");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(site.socket().exists(), "it is systemd's to remove");
}
