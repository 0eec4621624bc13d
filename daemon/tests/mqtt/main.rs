//! MQTT end to end: the real daemon, real mosquitto, and a client that shares no code with either.

#![allow(clippy::unwrap_used)]

mod broker;
mod client;
mod contract;
mod encrypted;
mod faults;
mod fleet;
mod hazards;
mod rights;
mod site;

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tractd_wire as wire;

use broker::wait_until;
use client::{Client, Extras, Received};
use site::{Site, digits};

/// Longest a reply may take; the machine may be busy with other tests.
const REPLY: Duration = Duration::from_secs(15);
/// Long enough for a reply that must not come.
const SILENCE: Duration = Duration::from_millis(700);

#[test]
fn every_format_gives_the_same_answer_over_mqtt_5() {
    formats(5);
}

#[test]
fn every_format_gives_the_same_answer_over_mqtt_3_1_1() {
    formats(4);
}

fn formats(version: u8) {
    let (site, node) = Site::ready(version);
    let mut client = site.client("cam");
    client.subscribe("tractd/v1/_res/cam/#");
    let image = golden_input();
    let pixels: Vec<f32> = image.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();

    let nested = json!([[pixels.chunks(8).collect::<Vec<_>>()]]);
    let body = json!({ "inputs": { "image": nested }, "id": "one" }).to_string();
    let json = ask(&mut client, &node, "json", "1", body.as_bytes());
    assert_eq!((&json["id"], &json["status"]), (&json!("one"), &json!(200)), "{json}");
    let probabilities = json["outputs"]["logits"]["data"].as_array().expect("the model's output").clone();
    assert_eq!(json["outputs"]["logits"]["shape"], json!([1, 10]));

    let flat = json!({ "inputs": { "image": { "shape": [1, 1, 8, 8], "data": pixels } } }).to_string();
    assert_eq!(ask(&mut client, &node, "json", "2", flat.as_bytes())["outputs"], json["outputs"]);

    let reply = exchange(&mut client, &node, "postcard", "3", &frame(99, "digits", &image));
    let (header, rest) = reply.payload.split_first_chunk::<{ wire::HEADER_LEN }>().unwrap();
    let header = wire::Header::parse(header).unwrap();
    let (head, tensors) = rest.split_at(header.head_len.into());
    let answer = wire::decode_reply(head, header.body_len).unwrap();
    assert_eq!((header.id, answer.status, answer.version), (99, wire::Status::Ok, 1));
    let values: Vec<Value> =
        tensors.as_chunks().0.iter().map(|bytes| json!(f32::from_le_bytes(*bytes))).collect();
    let close = |(a, b): (&Value, &Value)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-6;
    assert!(
        values.iter().zip(&probabilities).all(close) && values.len() == 10,
        "{values:?} {probabilities:?}"
    );

    for (name, png) in samples() {
        let reply = exchange(&mut client, &node, "raw", "4", &png);
        let label = reply.json()["classes"][0]["label"].clone();
        assert_eq!(label, json!(name[..1]), "{name}");
        if version == 5 {
            assert_eq!(reply.correlation.as_deref(), Some(b"c-4".as_slice()));
            let user = |key| reply.user(key).map(str::to_owned);
            assert_eq!(user("status").as_deref(), Some("200"));
            assert_eq!(user("model").as_deref(), Some("digits"));
            assert_eq!(user("digest").as_deref(), reply.json()["digest"].as_str());
            assert!(user("infer_us").unwrap().parse::<u32>().is_ok());
        }
    }

    let missing = ask(&mut client, &node, "json", "5", br#"{"inputs":{"image":[1]}}"#);
    assert_eq!((&missing["code"], &missing["name"]), (&json!(422), &json!("invalid-input")), "{missing}");
}

#[test]
fn a_broker_that_comes_late_is_found() {
    let mut site = Site::new(5);
    site.start_daemon("");
    std::thread::sleep(Duration::from_secs(3));
    site.start_broker("");
    let node = site.wait_ready();
    let mut client = site.client("cam");
    client.subscribe("tractd/v1/_res/cam/#");
    assert_eq!(exchange(&mut client, &node, "raw", "1", &samples()[0].1).json()["status"], 200);
    let told = site.log().lines().filter(|line| line.contains("no broker at")).count();
    assert_eq!(told, 1, "one line per state, not per attempt:\n{}", site.log());
}

#[test]
fn a_broker_that_restarts_is_found_again() {
    for version in [5, 4] {
        let (mut site, node) = Site::ready(version);
        site.stop_broker();
        site.start_broker("");
        assert_eq!(site.wait_ready(), node);
        let mut client = site.client("cam");
        client.subscribe("tractd/v1/_res/cam/#");
        assert_eq!(exchange(&mut client, &node, "raw", "1", &samples()[0].1).json()["status"], 200);
    }
}

#[test]
fn a_frozen_broker_is_given_up_and_found_again() {
    let (site, node) = Site::ready(5);
    site.signal_broker("STOP");
    // Twice the keep-alive of 5 s; the rest is for a busy machine.
    wait_until("it notices", Duration::from_secs(40), || site.log().contains("no broker at"));
    site.signal_broker("CONT");
    let mut client = site.client("cam");
    client.subscribe("tractd/v1/_res/cam/#");
    assert_eq!(exchange(&mut client, &node, "raw", "1", &samples()[0].1).json()["status"], 200);
}

#[test]
fn a_retained_request_is_dropped_and_counted() {
    let (mut site, node) = Site::ready(5);
    site.end_daemon("TERM");
    let mut client = site.client("cam");
    client.subscribe("tractd/v1/_res/cam/#");
    // The broker forgets the daemon's session, so that its next subscription is a new one and gets what is retained.
    drop(Client::connect(site.port, 4, &format!("tractd-{node}")));
    let retained = Extras { retain: true, ..Extras::default() };
    client.publish(&format!("tractd/v1/{node}/req/digits/raw/cam"), &samples()[0].1, &retained);
    client.subscribe("tractd/v1/+/metrics");
    site.start_daemon("metrics_interval_s = 5");
    while let Some(said) = client.receive(REPLY) {
        assert!(!said.topic.contains("_res"), "a leftover was answered");
        if said.topic.ends_with("/metrics") {
            assert_eq!(said.json()["mqtt"]["dropped_retained"], 1);
            return;
        }
    }
    panic!("no metrics:\n{}", site.log());
}

#[test]
fn a_reply_is_never_sent_into_another_mailbox() {
    let (site, node) = Site::ready(5);
    let (mut mallory, mut alice) = (site.client("mallory"), site.client("alice"));
    mallory.subscribe("tractd/v1/_res/mallory/#");
    alice.subscribe("tractd/v1/_res/alice/#");
    let extras = Extras { response_topic: Some("tractd/v1/_res/alice/1".to_owned()), ..Extras::default() };
    mallory.publish(&format!("tractd/v1/{node}/req/digits/raw/mallory"), &samples()[0].1, &extras);
    let refusal = mallory.receive(REPLY).expect("the refusal goes to who asked").json();
    assert_eq!((&refusal["code"], &refusal["name"]), (&json!(403), &json!("forbidden")));
    assert_eq!(alice.receive(SILENCE), None);
}

#[test]
fn what_is_too_large_is_refused_or_survived() {
    for version in [5, 4] {
        let mut site = Site::new(version);
        site.start_broker("");
        site.start_daemon("max_request_bytes = 100000\nmax_packet_bytes = 200000\noutbox_bytes = 1000000");
        let node = site.wait_ready();
        let mut client = site.client("cam");
        client.subscribe("tractd/v1/_res/cam/#");
        let refused = exchange(&mut client, &node, "raw", "1", &vec![0; 100_001]).json();
        assert_eq!(refused["code"], 413);
        assert_eq!(refused["detail"], "100001 bytes; at most 100000 are answered");
        // Beyond the packet limit: a version 5 broker never delivers it, an older one costs us the connection.
        client.publish(
            &format!("tractd/v1/{node}/req/digits/raw/cam/2"),
            &vec![0; 200_001],
            &Extras::default(),
        );
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(exchange(&mut client, &node, "raw", "3", &samples()[0].1).json()["status"], 200);
    }
}

#[test]
fn the_end_is_said_by_us_or_by_our_will() {
    for (signal, state) in [("TERM", "offline"), ("KILL", "lost")] {
        let (mut site, node) = Site::ready(5);
        let mut client = site.client("watch-2");
        client.subscribe(&format!("tractd/v1/{node}/status"));
        let birth = client.receive(REPLY).unwrap().json();
        assert_eq!(birth["state"], "ready");
        site.end_daemon(signal);
        let end = client.receive(REPLY).unwrap().json();
        assert_eq!(
            (&end["state"], &end["boot"], &end["seq"]),
            (&json!(state), &birth["boot"], &birth["seq"])
        );
    }
}

#[test]
fn a_request_the_daemon_died_on_is_answered_by_its_successor() {
    let (mut site, node) = Site::ready(5);
    let mut client = site.client("cam");
    client.subscribe("tractd/v1/_res/cam/#");
    site.end_daemon("KILL");
    let extras = Extras { correlation: Some(b"survives".to_vec()), ..Extras::default() };
    client.publish(&format!("tractd/v1/{node}/req/digits/raw/cam"), &samples()[0].1, &extras);
    site.start_daemon("");
    let reply = client.receive(Duration::from_secs(60)).expect("the broker kept the request");
    assert_eq!(reply.correlation.as_deref(), Some(b"survives".as_slice()));
}

/// Asks model digits as client `cam`, and returns the one reply.
fn exchange(client: &mut Client, node: &str, format: &str, id: &str, payload: &[u8]) -> Received {
    let extras = Extras {
        response_topic: Some(format!("tractd/v1/_res/cam/{id}")),
        correlation: Some(format!("c-{id}").into_bytes()),
        ..Extras::default()
    };
    client.publish(&format!("tractd/v1/{node}/req/digits/{format}/cam/{id}"), payload, &extras);
    let reply = client.receive(REPLY).expect("a reply");
    assert_eq!(reply.topic, format!("tractd/v1/_res/cam/{id}"));
    reply
}

fn ask(client: &mut Client, node: &str, format: &str, id: &str, payload: &[u8]) -> Value {
    exchange(client, node, format, id, payload).json()
}

fn frame(id: u64, model: &str, image: &[u8]) -> Vec<u8> {
    let mut request = wire::Request::tensors(model);
    let shape = wire::Shape::from_slice(&[1, 1, 8, 8]).unwrap();
    request.tensors.push(wire::TensorDesc { name: "image", dtype: wire::DType::F32, shape }).unwrap();
    let mut head = [0; wire::FRAME_HEAD_MAX];
    let length = wire::encode_request(id, &request, 256, &mut head).unwrap();
    [&head[..length], image].concat()
}

/// A real digit as the model takes it: 8 × 8 floats.
fn golden_input() -> Vec<u8> {
    let mut files: Vec<_> =
        fs::read_dir(digits().join("golden")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let input = files.iter().find(|path| path.to_string_lossy().contains(".image.")).unwrap();
    let bytes = fs::read(input).unwrap();
    bytes[..256].to_vec()
}

/// Real digits as PNG files; the name starts with the digit.
fn samples() -> Vec<(String, Vec<u8>)> {
    let mut samples: Vec<_> = fs::read_dir(digits().join("../samples"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "png"))
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    samples.sort();
    samples.truncate(10);
    assert_eq!(samples.len(), 10);
    samples
}
