//! The whole path once more, with the daemon under its systemd unit's system-call filter.

use std::path::Path;
use std::process::Command;

use tractd_ctl::exchange::{Input, Reply};
use tractd_tests::broker::Mosquitto;
use tractd_tests::daemon::{Home, request};
use tractd_tests::digits::{self, Expected};
use tractd_tests::registry::Registry;
use tractd_tests::{binary, root};

use crate::roads::{connected_node, over_mqtt};

#[test]
fn the_units_system_call_filter_forbids_nothing_that_the_daemon_needs() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("left out: systemd-analyze is not installed, so the unit's groups of calls are unknown");
        return;
    }
    let mosquitto = Mosquitto::start().expect("mosquitto is installed (Debian package mosquitto)");
    let registry = Registry::new();
    registry.add(&digits::dir(1));
    registry.publish("digits@1");
    let unit = root().join("systemd/tractd.service");
    let home = Home::new().with_broker(mosquitto.port, 5).under(&[
        &binary("under-unit") as &dyn AsRef<std::ffi::OsStr>,
        &unit.as_path() as &dyn AsRef<std::ffi::OsStr>,
    ]);
    registry.provision(&home, "bench-1");
    let mut daemon = home.start();
    assert_filtered(daemon.process.id());
    daemon.update_to("digits", 1);
    let expected = Expected::of(&digits::dir(1));
    let node = connected_node(mosquitto.port, &daemon);
    for sample in digits::samples() {
        let reply = daemon.ask("digits", Input::Media(sample.png.clone()));
        assert_eq!(expected.check(&sample.name, &reply), Ok(()));
        let frame = request("digits", Input::Media(sample.png)).frame(1).unwrap();
        let reply = over_mqtt(mosquitto.port, 5, &node, "digits", "postcard", frame);
        assert_eq!(expected.check(&sample.name, &Reply::from_frame(&reply).unwrap()), Ok(()));
    }
    daemon.reload();
    assert!(daemon.process.terminate().success());
    assert!(!daemon.process.log().contains("not permitted"), "{}", daemon.process.log());
}

/// The kernel says whether a filter is on.
fn assert_filtered(process: u32) {
    let status =
        std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status")).unwrap();
    assert!(status.lines().any(|line| line == "Seccomp:\t2"), "no filter on the daemon:\n{status}");
}
