//! Clients that are not ours: Python's standard library, mosquitto's own tools, JSON and raw bytes over MQTT.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tractd_tests::broker::Mosquitto;
use tractd_tests::daemon::Home;
use tractd_tests::digits;
use tractd_tests::mqtt::Client;
use tractd_tests::process::{run, tractctl};
use tractd_tests::root;

use crate::roads::{connected_node, over_mqtt};

const PATIENCE: Duration = Duration::from_secs(30);

fn mosquitto() -> Mosquitto {
    Mosquitto::start().expect("mosquitto is installed (Debian package mosquitto)")
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(bytes)))
}

#[test]
fn the_python_client_passes_its_tests_against_a_real_daemon() {
    let home = Home::new();
    home.put_model(&digits::dir(1), "digits", 1);
    home.put_model(&digits::camera_dir(), "camera", 1);
    let _daemon = home.start();
    let said = run(Command::new("python3")
        .args(["-m", "unittest", "discover", "-v", "clients/python"])
        .current_dir(root())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TRACTD_SOCKET", home.socket()));
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    assert!(!said.err.contains("TRACTD_SOCKET names no daemon"), "{}", said.err);
}

#[test]
fn the_c_client_compiles_without_a_warning_and_is_answered_or_told_why_not() {
    let home = Home::new();
    home.put_model(&digits::dir(1), "digits", 1);
    let _daemon = home.start();
    let built = tempfile::tempdir().unwrap();
    let ask = built.path().join("ask");
    let said = run(Command::new("cc")
        .args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "clients/c/ask.c", "-o"])
        .arg(&ask)
        .current_dir(root()));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let ask = |model: &str| {
        run(Command::new(&ask)
            .args([model, "models/digits/samples/7-0017.png"])
            .current_dir(root())
            .env("TRACTD_SOCKET", home.socket()))
    };
    let said = ask("digits");
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    assert!(said.out.starts_with("7 (class 7), 99.9 %, by digits 1 (a30cec...) in "), "{}", said.out);
    let said = ask("birds");
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.starts_with("refused: no model birds here") && said.err.ends_with(" (404)\n"),
        "{}",
        said.err
    );
}

#[test]
fn a_picture_sent_by_mosquitto_pub_is_answered() {
    let mosquitto = mosquitto();
    let home = Home::new().with_broker(mosquitto.port, 5);
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let node = connected_node(mosquitto.port, &daemon);
    let mut replies = Client::connect(mosquitto.port, 4, "tractd/v1/_res/shell/#");
    for sample in digits::samples().iter().take(3) {
        run(Command::new("mosquitto_pub")
            .args(["-h", "127.0.0.1", "-p", &mosquitto.port.to_string(), "-q", "1"])
            .args(["-t", &format!("tractd/v1/{node}/req/digits/raw/shell")])
            .arg("-f")
            .arg(&sample.path))
        .ok();
        let message = replies.next(PATIENCE).expect("a reply");
        assert_eq!(message.topic, "tractd/v1/_res/shell");
        let reply = json_of(&message.payload);
        assert_eq!(reply["status"], 200, "{reply}");
        assert_eq!(reply["classes"][0]["label"], sample.class.to_string());
        assert_eq!((&reply["model"], &reply["version"]), (&"digits".into(), &1.into()));
    }
}

#[test]
fn json_requests_are_answered_in_json_by_both_versions() {
    let mosquitto = mosquitto();
    let home = Home::new().with_broker(mosquitto.port, 5);
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let node = connected_node(mosquitto.port, &daemon);
    let sample = digits::samples().remove(3);
    let golden = std::fs::read(digits::dir(1).join(format!("golden/{}.image.bin", sample.name))).unwrap();
    let pixels = digits::floats(&golden);
    let rows: Vec<&[f32]> = pixels.chunks(8).collect();
    let good = json!({ "id": "first", "inputs": { "image": [[rows]] } });
    for version in [5, 4] {
        let ask = |body: &Value| {
            let payload = body.to_string().into_bytes();
            json_of(&over_mqtt(mosquitto.port, version, &node, "digits", "json", payload))
        };
        let reply = ask(&good);
        assert_eq!((&reply["status"], &reply["id"]), (&200.into(), &"first".into()), "{reply}");
        assert_eq!(reply["classes"][0]["label"], "3", "{reply}");
        assert_eq!(reply["outputs"]["logits"]["shape"], json!([1, 10]));
        for (bad, status) in [
            (json!({ "inputs": { "image": [1, 2, 3] } }), 422),
            (json!({ "inputs": { "picture": [[rows]] } }), 422),
            (json!({ "inputs": [1] }), 400),
            (json!({}), 400),
        ] {
            let reply = ask(&bad);
            assert_eq!(reply["status"], status, "{bad} → {reply}");
            assert!(reply["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{reply}");
        }
        let torn = over_mqtt(mosquitto.port, version, &node, "digits", "json", b"{".to_vec());
        assert_eq!(json_of(&torn)["status"], 400);
        let absent =
            over_mqtt(mosquitto.port, version, &node, "birds", "json", good.to_string().into_bytes());
        assert_eq!(json_of(&absent)["status"], 404);
    }
}

#[test]
fn retained_requests_are_not_answered() {
    let mosquitto = mosquitto();
    let sample = digits::samples().remove(0);
    // A daemon's name on this machine, before any daemon of that name has met the broker.
    let first = Home::new();
    let node = first.start().status()["node"].as_str().unwrap().to_owned();
    let mut client = Client::connect(mosquitto.port, 4, "tractd/v1/_res/{me}/#");
    let topic = format!("tractd/v1/{node}/req/digits/raw/{}", client.name);
    client.publish_retained(&topic, sample.png.clone(), None);
    assert_eq!(client.next(Duration::from_millis(200)), None);

    let home = Home::new().with_broker(mosquitto.port, 5);
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    assert_eq!(connected_node(mosquitto.port, &daemon), node);
    assert_eq!(client.next(Duration::from_millis(500)), None);
    client.publish(&topic, sample.png, None);
    assert_eq!(json_of(&client.next(PATIENCE).expect("a reply").payload)["status"], 200);
}

#[test]
fn tractctl_asks_through_a_broker() {
    let mosquitto = mosquitto();
    let home = Home::new().with_broker(mosquitto.port, 5);
    home.put_model(&digits::dir(1), "digits", 1);
    home.put_model(&digits::camera_dir(), "camera", 1);
    let daemon = home.start();
    let node = connected_node(mosquitto.port, &daemon);
    let at = format!("mqtt://127.0.0.1:{}/{node}", mosquitto.port);
    let sample = digits::samples().remove(8);
    let png = sample.path.display().to_string();
    let text = tractctl(&["infer", "digits", "--image", &png, "--at", &at]).ok();
    assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("8 ")), "{text}");
    let jpeg = root().join("models/camera/samples/scene-1-3000x2000.jpg").display().to_string();
    let answer = tractctl(&["infer", "camera", "--image", &jpeg, "--at", &at, "--json"]).ok();
    assert_eq!(json_of(answer.as_bytes())["status"], 200);

    let golden = std::fs::read(digits::dir(1).join(format!("golden/{}.image.bin", sample.name))).unwrap();
    let pixels = digits::floats(&golden);
    let rows: Vec<&[f32]> = pixels.chunks(8).collect();
    let file = home.state().with_file_name("request.json");
    std::fs::write(&file, json!({ "inputs": { "image": [[rows]] } }).to_string()).unwrap();
    let file = file.to_str().unwrap();
    let answer = tractctl(&["infer", "digits", "--json", file, "--at", &at, "--json"]).ok();
    assert_eq!(json_of(answer.as_bytes())["classes"][0]["label"], "8");

    let elsewhere = format!("mqtt://127.0.0.1:{}/nobody", mosquitto.port);
    let said = tractctl(&["infer", "digits", "--image", &png, "--at", &elsewhere, "--deadline-ms", "200"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("no node listens to tractd/v1/nobody/req/digits/"), "{}", said.err);
    let refused = tractctl(&["infer", "birds", "--image", &png, "--at", &at]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.starts_with("error: model-not-found: "), "{}", refused.err);
}

#[test]
fn the_retained_description_and_model_state_tell_of_the_models() {
    let mosquitto = mosquitto();
    let home = Home::new().with_broker(mosquitto.port, 5);
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let node = connected_node(mosquitto.port, &daemon);
    let mut client = Client::connect(mosquitto.port, 4, &format!("tractd/v1/{node}/#"));
    let mut seen = std::collections::BTreeMap::new();
    while let Some(message) = client.next(Duration::from_secs(2)) {
        if message.retained {
            seen.insert(message.topic.clone(), json_of(&message.payload));
        }
        if seen.len() == 3 {
            break;
        }
    }
    let at =
        |topic: &str| seen.get(&format!("tractd/v1/{node}/{topic}")).unwrap_or_else(|| panic!("{seen:?}"));
    assert_eq!(at("model/digits/state")["version"], 1);
    assert_eq!(at("description")["models"][0]["name"], "digits");
    assert!(at("status")["state"].is_string());
}
