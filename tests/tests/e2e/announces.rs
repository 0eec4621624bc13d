//! Announces over MQTT: a hint brings a device's next look at the registry forward, and a flood of them no more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tractd_ctl::exchange::{Input, Reply};
use tractd_tests::broker::Mosquitto;
use tractd_tests::daemon::{Home, request};
use tractd_tests::digits;
use tractd_tests::mqtt::Client;
use tractd_tests::registry::Registry;
use tractd_wire::Status;

use crate::roads::{connected_node, over_mqtt};

/// The check comes within 30 s of the first announce, and takes seconds where tests run beside it.
const PATIENCE: Duration = Duration::from_secs(90);
const FLOOD: usize = 5_000;
/// Below the 64 messages that a test's client lets wait.
const BATCH: usize = 50;

#[test]
fn a_flood_of_announces_brings_one_check_forward_and_requests_are_answered() {
    let mosquitto = Mosquitto::start().expect("mosquitto is installed (Debian package mosquitto)");
    let home = Home::new().with_config(&format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n[update]\ninterval_s = 86400\n",
        mosquitto.port
    ));
    let registry = Registry::new();
    registry.provision(&home, "bench-1");
    registry.add(&digits::dir(1));
    registry.publish("digits@1");
    let daemon = home.start();
    daemon.wait_for_model("digits", 1);
    let node = connected_node(mosquitto.port, &daemon);
    registry.add(&digits::dir(2));
    registry.publish("digits@2");

    let mut operator = Client::connect(mosquitto.port, 5, "tractd/v1/_res/{me}/#");
    operator.publish_retained("tractd/v1/_announce", b"bench".to_vec(), None);
    let picture = digits::samples().remove(7).png;
    let frame = request("digits", Input::Media(picture)).frame(7).unwrap();
    let last_check = || daemon.status()["update"]["last_check_unix_ms"].as_u64();
    let mut checks = BTreeSet::from([last_check()]);
    let (mut sent, started) = (0, Instant::now());
    while sent < FLOOD || daemon.version_of("digits") != Some(2) {
        assert!(started.elapsed() < PATIENCE, "the announce was not heard\n{}", daemon.process.log());
        for _ in 0..BATCH {
            operator.publish("tractd/v1/_announce", b"bench".to_vec(), None);
        }
        sent += BATCH;
        assert_eq!(operator.next(Duration::from_millis(50)), None);
        if sent % (10 * BATCH) == 0 {
            let reply = over_mqtt(mosquitto.port, 5, &node, "digits", "postcard", frame.clone());
            assert_eq!(Reply::from_frame(&reply).unwrap().status, Status::Ok);
        }
        checks.insert(last_check());
    }
    checks.insert(last_check());
    assert!(checks.len() <= 2, "more than one check beside the first: {checks:?}");
}
