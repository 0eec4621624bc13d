//! Ends and beginnings: crashes, restarts, drains, and a world that is not there.

use std::time::Duration;

use rustix::process::Signal;
use tractd_ctl::exchange::{Input, Reply};
use tractd_tests::broker::{Mosquitto, free_port};
use tractd_tests::daemon::{Daemon, Home, request};
use tractd_tests::digits::{self, Expected};
use tractd_tests::process::{run, tractctl, wait_for};
use tractd_tests::registry::Registry;
use tractd_wire::Status;

use crate::roads::{connected_node, over_mqtt};

const PATIENCE: Duration = Duration::from_secs(30);

fn answers_as(daemon: &Daemon<'_>, version: u64) {
    let sample = digits::samples().remove(6);
    let reply = daemon.ask("digits", Input::Media(sample.png.clone()));
    assert_eq!(Expected::of(&digits::dir(version)).check(&sample.name, &reply), Ok(()));
}

#[test]
fn a_killed_daemon_comes_back_with_what_it_had_and_without_its_registry() {
    let mut registry = Registry::new();
    registry.add(&digits::dir(1));
    registry.publish("digits@1");
    let home = Home::new();
    registry.provision(&home, "bench-1");
    let mut daemon = home.start();
    daemon.update_to("digits", 1);
    answers_as(&daemon, 1);

    registry.go_offline();
    daemon.process.kill();
    drop(daemon);
    let daemon = home.start();
    answers_as(&daemon, 1);
    let said = tractctl(&["update", "check", "--at", &home.at()]);
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.err.starts_with("error: "), "{}", said.err);
    answers_as(&daemon, 1);
}

#[test]
fn without_broker_registry_or_models_it_starts_and_says_so() {
    let home = Home::new().with_broker(free_port(), 5);
    let mut daemon = home.start();
    assert_eq!(daemon.status()["state"], "ready");
    assert_eq!(daemon.models()["models"], serde_json::json!([]));
    let listed = tractctl(&["models", "--at", &home.at()]).ok();
    assert!(listed.starts_with("no models; put one into"), "{listed}");
    assert!(daemon.process.terminate().success());
}

#[test]
fn a_broker_that_goes_and_comes_back_finds_the_daemon_again() {
    let mut mosquitto = Mosquitto::start().expect("mosquitto is installed (Debian package mosquitto)");
    let home = Home::new().with_broker(mosquitto.port, 5);
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let node = connected_node(mosquitto.port, &daemon);
    mosquitto.stop();
    answers_as(&daemon, 1);
    mosquitto.restart();
    assert_eq!(connected_node(mosquitto.port, &daemon), node);
    let frame = request("digits", Input::Media(digits::samples().remove(0).png)).frame(3).unwrap();
    let reply = over_mqtt(mosquitto.port, 5, &node, "digits", "postcard", frame);
    assert_eq!(Reply::from_frame(&reply).unwrap().status, Status::Ok);
}

#[test]
fn sigterm_answers_what_was_taken_in_and_ends_well() {
    let home = Home::new();
    home.put_model(&digits::dir(1), "digits", 1);
    let mut daemon = home.start();
    let mut socket = daemon.connect();
    let sample = digits::samples().remove(0);
    let request = request("digits", Input::Media(sample.png));
    let frames: Vec<u8> = (1..=60).flat_map(|id| request.frame(id).unwrap()).collect();
    socket.send(&frames, PATIENCE).unwrap();
    // The first answer shows that the frames are being read.
    socket.receive(PATIENCE).unwrap();
    daemon.process.signal(Signal::TERM);
    let mut ended = [0; 2];
    for _ in 1..60 {
        let reply = Reply::from_parts(&socket.receive(PATIENCE).unwrap().frame()).unwrap();
        match reply.status {
            Status::Ok => ended[0] += 1,
            Status::Draining => ended[1] += 1,
            other => panic!("{other}: {}", reply.detail),
        }
    }
    assert_eq!(ended.iter().sum::<i32>(), 59);
    assert!(daemon.process.terminate().success());
    assert!(!home.socket().exists(), "the socket is left behind");
}

#[test]
fn sighup_finds_models_that_were_put_there_meanwhile() {
    let home = Home::new();
    let daemon = home.start();
    let reply = daemon.ask("digits", Input::Media(digits::samples().remove(0).png));
    assert_eq!(reply.status, Status::ModelNotFound);
    home.put_model(&digits::dir(1), "digits", 1);
    daemon.reload();
    daemon.wait_for_model("digits", 1);
    answers_as(&daemon, 1);
    home.put_model(&digits::dir(2), "digits", 2);
    daemon.reload();
    daemon.wait_for_model("digits", 2);
    answers_as(&daemon, 2);
    std::fs::remove_dir_all(home.models().join("digits")).unwrap();
    daemon.reload();
    wait_for("the model's end", PATIENCE, || daemon.version_of("digits").is_none().then_some(()));
}

#[test]
fn a_second_daemon_does_not_take_the_first_ones_socket() {
    let home = Home::new();
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let mut second = home.spawn();
    let status = second.process.wait(PATIENCE).expect("the second one ends");
    assert!(!status.success());
    answers_as(&daemon, 1);
}

#[test]
fn an_unknown_key_is_refused_by_the_check_and_survived_at_boot() {
    let home = Home::new().with_config("[mqtt]\nenabled = false\n[limits]\njobs_per_modle = 5\n");
    let daemon = home.start();
    assert_eq!(daemon.status()["state"], "ready");
    assert!(daemon.process.log().contains("limits.jobs_per_modle"), "{}", daemon.process.log());
    let mut check = std::process::Command::new(tractd_tests::binary("tractd"));
    let said = run(check.arg("--check-config").arg("--config").arg(home.config()));
    assert_eq!(said.code, Some(2), "{}{}", said.out, said.err);
    assert!(said.err.contains("limits.jobs_per_modle"), "{}", said.err);
}

#[test]
fn compiled_models_are_kept_and_may_be_deleted() {
    let home = Home::new();
    let cache = home.config().with_file_name("elsewhere");
    let mqtt = "[mqtt]\nenabled = false\n[update]\nenabled = false\n";
    let home = home.with_config(&format!("cache_dir = \"{}\"\n{mqtt}", cache.display()));
    home.put_model(&digits::dir(1), "digits", 1);
    let kept = || std::fs::read_dir(&cache).map_or(0, Iterator::count);
    // Made, found, and made again.
    for delete in [false, true, false] {
        let mut daemon = home.start();
        answers_as(&daemon, 1);
        assert!(daemon.process.terminate().success());
        assert_eq!(kept(), 1);
        if delete {
            std::fs::remove_dir_all(&cache).unwrap();
        }
    }
    assert!(!home.state().join("cache").exists());
}
