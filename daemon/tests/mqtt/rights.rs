//! The access list of the documentation, as mosquitto understands it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::broker::wait_until;
use crate::client::{Client, Extras};
use crate::site::Site;
use crate::{REPLY, SILENCE, exchange, samples};

const LIST: &str = include_str!("../../../docs/mosquitto.acl");

#[test]
fn the_access_list_lets_everybody_do_their_own_and_nothing_else() {
    let mut site = Site::new(5);
    let list = site.dir.path().join("list.acl");
    fs::write(&list, LIST).unwrap();
    site.start_broker(&format!("acl_file {}", list.display()));
    site.start_daemon("username = \"edge-7\"\nnode = \"press-3\"\nshare_group = \"line\"");
    assert_eq!(site.wait_ready(), "press-3");
    assert!(!site.log().contains("access list"), "{}", site.log());

    let mut cam = site.client("cam");
    cam.subscribe("tractd/v1/_res/cam/#");
    assert_eq!(exchange(&mut cam, "press-3", "raw", "1", &samples()[0].1).json()["status"], 200);
    assert_eq!(exchange(&mut cam, "_any", "raw", "2", &samples()[0].1).json()["status"], 200);

    let mut mallory = site.client("mallory");
    mallory.publish("tractd/v1/press-3/req/digits/raw/cam/9", &samples()[0].1, &Extras::default());
    assert_eq!(cam.receive(SILENCE), None, "nobody asks in another's name");
    mallory.publish("tractd/v1/press-3/status", b"{}", &Extras { retain: true, ..Extras::default() });
    mallory.publish("tractd/v1/_res/cam/9", b"{}", &Extras::default());
    assert_eq!(cam.receive(SILENCE), None, "nobody answers for the node");
    let mut status = site.client("reader");
    status.subscribe("tractd/v1/+/status");
    assert_eq!(status.receive(REPLY).unwrap().json()["state"], "ready");
}

#[test]
fn the_sample_configuration_starts() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/mosquitto.conf");
    let sample = fs::read_to_string(sample).unwrap();
    let mut site = Site::new(5);
    let dir = site.dir.path().display().to_string();
    let adapted: String = sample
        .lines()
        .filter(|line| !line.starts_with("listener") && !line.starts_with("allow_anonymous"))
        .filter(|line| !line.starts_with("set_tcp_nodelay"))
        .map(|line| line.replace("/var/lib/mosquitto/", &format!("{dir}/")) + "\n")
        .collect();
    site.start_broker(&adapted);
    site.start_daemon("");
    site.wait_ready();
}

#[test]
fn states_of_models_removed_while_the_daemon_was_down_are_cleared() {
    let (mut site, node) = Site::ready(5);
    site.end_daemon("TERM");
    fs::remove_dir_all(site.dir.path().join("models/digits")).unwrap();
    site.start_daemon("");
    let topic = format!("tractd/v1/{node}/model/digits/state");
    wait_until("the state is emptied", Duration::from_secs(30), || {
        let mut client = Client::connect(site.port, 4, "look");
        client.subscribe(&topic);
        client.receive(SILENCE).is_none()
    });
}
