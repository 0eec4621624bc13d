//! A stick instead of a network: the registry is a folder, signed at times the test chooses.
//!
//! Nothing here moves the daemon's clock: only root may, for the whole machine, and a variable that pretends one has
//! no place in a product. What a device in 1970 meets is a stick signed 56 years after its own time, and that is what
//! the daemon gets here. That the build's own date counts as well is in `registry/tests/device/clock.rs`, through
//! the same `Updater::check`.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tractd_bundle::Limits;
use tractd_registry::{Options, Publish, Registry};
use tractd_tests::daemon::{Daemon, Home};
use tractd_tests::digits;
use tractd_tests::process::{Said, run, tractctl};
use tractd_tests::registry::{GROUP, PASSPHRASE, TEAM};

use crate::trust::answers_as;

const DAY: Duration = Duration::from_hours(24);
/// From 1970 to 2026.
const BEHIND: Duration = Duration::from_hours(56 * 365 * 24);

struct Stick {
    dir: TempDir,
    registry: Registry,
}

impl Stick {
    fn new(now: SystemTime) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { work_factor: Some(2), ..Options::default() };
        let (folder, keys) = (dir.path().join("registry"), dir.path().join("keys"));
        let mut registry =
            Registry::init(&folder, &keys, PASSPHRASE.to_owned().into(), &options, now).unwrap();
        registry.add_team(TEAM, now).unwrap();
        Self { dir, registry }
    }

    /// Signs `digits` in this version at this time, for the whole group.
    fn carry(&mut self, version: u64, now: SystemTime) {
        let packed = self.dir.path().join(format!("digits-{version}.tractd.tar.zst"));
        tractd_bundle::pack(&digits::dir(version), &packed, &Limits::default(), &mut |_, _| {}).unwrap();
        self.registry.add(&packed, TEAM, None, now).unwrap();
        let what = Publish { healthy_secs: 0, ..Publish::new("digits", version, GROUP) };
        self.registry.publish(&what, now).unwrap();
    }

    fn provision(&self, home: &Home) {
        let folder = self.dir.path().join("registry");
        run(Command::new(tractd_tests::binary("tractctl"))
            .args(["device", "provision", "--node", "bench-1", "--group", GROUP, "--registry"])
            .arg(&folder)
            .arg("--root")
            .arg(folder.join("metadata/1.root.json"))
            .arg("--state")
            .arg(home.state()))
        .ok();
    }
}

/// A device without any network but its own socket.
fn offline() -> Home {
    let alone = ["--user", "--map-current-user", "--net"];
    if !Command::new("unshare").args(alone).arg("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("left out: unshare may not take the network away here, so it is only left unused");
        return Home::new();
    }
    let words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"unshare", &alone[0], &alone[1], &alone[2]];
    Home::new().under(&words)
}

fn check(daemon: &Daemon<'_>) -> Said {
    tractctl(&["update", "check", "--at", &daemon.home.at()])
}

#[test]
fn a_device_decades_behind_the_stick_installs_without_a_network_and_says_its_clock_is_behind() {
    const BEHIND_SAID: &str =
        "the clock is behind what is known; set it, or a stale registry goes unnoticed\n";
    let signed = SystemTime::now() + BEHIND;
    let mut stick = Stick::new(signed);
    stick.carry(1, signed);
    let home = offline();
    stick.provision(&home);
    let mut daemon = home.start();
    assert_eq!(check(&daemon).ok(), format!("activated digits@1\n{BEHIND_SAID}"));
    daemon.wait_for_model("digits", 1);
    answers_as(&daemon, 1);
    let update = daemon.status()["update"].clone();
    assert_eq!(update["last"]["clock_untrusted"], true, "{update}");
    let warning = "the clock is behind what is known: a stale registry goes unnoticed";
    assert_eq!(update["warnings"], serde_json::json!([warning]), "{update}");
    daemon.process.terminate();
    drop(daemon);

    // The next process knows the time from the store: what expired before it is stale, by a clock still behind.
    stick.carry(2, signed - 2 * DAY);
    let daemon = home.start();
    let stale = check(&daemon);
    assert_eq!(stale.code, Some(1), "{}{}", stale.out, stale.err);
    assert!(stale.err.contains("timestamp metadata expired at "), "{}", stale.err);
    answers_as(&daemon, 1);
    stick.registry.refresh(signed).unwrap();
    assert_eq!(check(&daemon).ok(), format!("activated digits@2\n{BEHIND_SAID}"));
    daemon.wait_for_model("digits", 2);
    answers_as(&daemon, 2);
}

#[test]
fn an_expired_stick_is_refused_while_models_keep_serving() {
    let now = SystemTime::now();
    let mut stick = Stick::new(now);
    stick.carry(1, now);
    let home = offline();
    stick.provision(&home);
    let daemon = home.start();
    daemon.update_to("digits", 1);
    // Newer than what the device saw, and out of date by its own word since yesterday.
    stick.carry(2, now - 2 * DAY);

    let done = AtomicBool::new(false);
    let answered = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut answered = 0;
            while !done.load(Ordering::Relaxed) {
                answers_as(&daemon, 1);
                answered += 1;
            }
            answered
        });
        for _ in 0..3 {
            let refused = check(&daemon);
            assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""), "{}", refused.err);
            let expected = "timestamp metadata expired at ";
            assert!(refused.err.contains(expected), "{}", refused.err);
            let last = daemon.status()["update"]["last"].clone();
            assert!(last["error"].as_str().is_some_and(|error| error.starts_with(expected)), "{last}");
        }
        done.store(true, Ordering::Relaxed);
        client.join().unwrap()
    });
    assert!(answered > 0);
    assert_eq!(daemon.version_of("digits"), Some(1));

    stick.registry.refresh(now).unwrap();
    daemon.update_to("digits", 2);
    answers_as(&daemon, 2);
}
