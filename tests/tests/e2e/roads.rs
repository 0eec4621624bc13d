//! The same input gives the same output bytes, whichever road it takes.

use std::time::Duration;

use tractd_ctl::exchange::{Input, Reply};
use tractd_ctl::socket::Socket;
use tractd_firmware_shim::{Call, FrameReader, encode_request};
use tractd_tests::broker::{Broker, Mosquitto};
use tractd_tests::daemon::{Daemon, Home, request};
use tractd_tests::digits;
use tractd_tests::mqtt::Client;
use tractd_tests::process::wait_for;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_digit_and_a_large_photo_answer_alike_on_every_road() {
    let mosquitto = Mosquitto::start().expect("mosquitto is installed (Debian package mosquitto)");
    let home = Home::new().with_broker(mosquitto.port, 5);
    home.put_model(&digits::dir(1), "digits", 1);
    home.put_model(&digits::camera_dir(), "camera", 1);
    let daemon = home.start();
    let node = connected_node(mosquitto.port, &daemon);

    for (model, media) in [("digits", digits::samples().remove(7).png), ("camera", digits::large_jpeg())] {
        let socket = daemon.ask(model, Input::Media(media.clone()));
        assert_eq!((socket.status.name(), socket.detail.as_str()), ("ok", ""), "{model}");
        assert!(!socket.tensors.is_empty());
        let frame = request(model, Input::Media(media.clone())).frame(42).unwrap();
        for version in [5, 4] {
            let reply = over_mqtt(mosquitto.port, version, &node, model, "postcard", frame.clone());
            let reply = Reply::from_frame(&reply).unwrap();
            assert_eq!(reply.id, 42);
            assert_same(&reply, &socket, &format!("{model} over MQTT {version}"));
        }
        let shim = over_shim(&daemon, model, &media);
        assert_same(&shim, &socket, &format!("{model} from the shim"));
    }
}

#[test]
fn a_daemon_that_speaks_3_1_1_answers_clients_of_both_versions() {
    let mosquitto = Mosquitto::start().expect("mosquitto is installed (Debian package mosquitto)");
    let home = Home::new().with_broker(mosquitto.port, 4);
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let node = connected_node(mosquitto.port, &daemon);
    let sample = digits::samples().remove(3);
    let socket = daemon.ask("digits", Input::Media(sample.png.clone()));
    for version in [5, 4] {
        let frame = request("digits", Input::Media(sample.png.clone())).frame(7).unwrap();
        let reply = over_mqtt(mosquitto.port, version, &node, "digits", "postcard", frame);
        assert_same(&Reply::from_frame(&reply).unwrap(), &socket, &format!("MQTT {version}"));
    }
}

#[test]
fn the_in_process_broker_carries_mqtt_5() {
    let broker = Broker::InProcess { port: tractd_tests::broker::start_in_process() };
    let home = Home::new().with_broker(broker.port(), 5);
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let node = connected_node(broker.port(), &daemon);
    let sample = digits::samples().remove(5);
    let socket = daemon.ask("digits", Input::Media(sample.png.clone()));
    let frame = request("digits", Input::Media(sample.png)).frame(1).unwrap();
    let reply = over_mqtt(broker.port(), 5, &node, "digits", "postcard", frame);
    assert_same(&Reply::from_frame(&reply).unwrap(), &socket, "in-process broker");
}

fn assert_same(reply: &Reply, socket: &Reply, road: &str) {
    assert_eq!((reply.status.name(), reply.detail.as_str()), ("ok", ""), "{road}");
    assert_eq!(reply.tensors, socket.tensors, "{road}");
    assert_eq!(reply.classes, socket.classes, "{road}");
    assert_eq!(reply.digest, socket.digest, "{road}");
}

/// Sends the bytes that firmware would send.
fn over_shim(daemon: &Daemon<'_>, model: &str, media: &[u8]) -> Reply {
    let call = Call::media(model, media);
    let mut frame = vec![0; media.len() + 512];
    let len = encode_request(9, &call, &mut frame).unwrap();
    let mut socket = Socket::connect(&daemon.home.socket()).unwrap();
    socket.send(&frame[..len], PATIENCE).unwrap();
    let received = socket.receive(PATIENCE).unwrap();
    // What came goes through the shim's own reader, a few bytes at a time, as from a serial line.
    let mut bytes = received.header.to_bytes().to_vec();
    bytes.extend_from_slice(&received.head);
    bytes.extend_from_slice(&received.body);
    let mut buffer = [0; 8192];
    let mut reader = FrameReader::new(&mut buffer);
    for chunk in bytes.chunks(11) {
        let mut rest = chunk;
        if let Some(frame) = reader.read(&mut rest).unwrap() {
            assert_eq!(frame.reply().unwrap().status.name(), "ok");
            return Reply::from_parts(&frame).unwrap();
        }
    }
    panic!("the shim's reader found no frame in {} bytes", bytes.len());
}

/// Waits until the daemon's status is on the broker; gives its node id.
pub(crate) fn connected_node(port: u16, daemon: &Daemon<'_>) -> String {
    let node = daemon.status()["node"].as_str().unwrap().to_owned();
    let mut client = Client::connect(port, 5, &format!("tractd/v1/{node}/status"));
    wait_for("the node's status on the broker", PATIENCE, || {
        let message = client.next(Duration::from_millis(100))?;
        let status: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        (status["state"] == "ready" || status["state"] == "online").then_some(())
    });
    node
}

/// One request and its reply's payload.
pub(crate) fn over_mqtt(
    port: u16,
    version: u8,
    node: &str,
    model: &str,
    format: &str,
    payload: Vec<u8>,
) -> Vec<u8> {
    let mut client = Client::connect(port, version, "tractd/v1/_res/{me}/#");
    let (topic, reply_topic) = (
        format!("tractd/v1/{node}/req/{model}/{format}/{}/1", client.name),
        format!("tractd/v1/_res/{}/1", client.name),
    );
    let reply_to = (version == 5).then_some((reply_topic.as_str(), &b"correlation-16-b"[..]));
    client.publish(&topic, payload, reply_to);
    let message = client.next(PATIENCE).expect("a reply");
    assert_eq!(message.topic, reply_topic);
    // A daemon that speaks 3.1.1 itself has no place for it; the reply's topic tells which request it answers.
    if version == 5 && !message.correlation.is_empty() {
        assert_eq!(message.correlation, b"correlation-16-b");
    }
    message.payload
}
