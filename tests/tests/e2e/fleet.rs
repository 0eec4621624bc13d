//! The tool's view of nodes behind a broker: infer over TLS, watch, doctor.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tractd_tests::broker::{Mosquitto, free_port};
use tractd_tests::daemon::Home;
use tractd_tests::process::{Process, run, tractctl, wait_for};
use tractd_tests::{binary, digits};

use crate::roads::connected_node;

const PATIENCE: Duration = Duration::from_secs(30);
const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

#[test]
fn watch_and_doctor_see_a_node_and_its_broker() {
    let mosquitto = Mosquitto::start().expect("mosquitto is installed (Debian package mosquitto)");
    let home = Home::new().with_broker(mosquitto.port, 5);
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let node = connected_node(mosquitto.port, &daemon);
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port);

    let seen = wait_for("the model's state on the broker", PATIENCE, || {
        let seen = tractctl(&["watch", "--once", "--at", &broker]).ok();
        seen.contains("digits").then_some(seen)
    });
    let row = seen.lines().find(|line| line.starts_with(&node)).expect("a row for the node");
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words[1..6], ["ready", env!("CARGO_PKG_VERSION"), "digits", "1", "ready"], "{seen}");
    let said = tractctl(&["watch", "--once", "--json", "--at", &format!("{broker}/{node}")]).ok();
    let kinds: Vec<Value> =
        said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].clone()).collect();
    assert_eq!(kinds, ["status", "model"], "{said}");

    let state = home.state().display().to_string();
    let asked = ["doctor", "--json", "--broker", &broker, "--at", &home.at(), "--state", &state];
    let findings: Vec<Value> = serde_json::from_str(&tractctl(&asked).ok()).unwrap();
    let about = |subject: &str| -> Vec<&str> {
        let texts = findings.iter().filter(|finding| finding["subject"] == subject);
        texts.map(|finding| finding["text"].as_str().unwrap()).collect()
    };
    assert_eq!(about("daemon"), ["ready, 1 models"]);
    for found in ["keeps messages (retain)", "has shared subscriptions", "sets no limit to a packet"] {
        assert!(about("broker").contains(&found), "{found}: {:?}", about("broker"));
    }
    assert!(about("registry")[0].starts_with("none: models are not signed"));
    // What it kept on the broker for a moment it took back.
    let after = tractctl(&["watch", "--once", "--json", "--at", &broker]).ok();
    assert!(!after.contains("_doctor"), "{after}");

    let nobody = format!("mqtt://127.0.0.1:{}", free_port());
    let said = tractctl(&["doctor", "--broker", &nobody, "--at", &home.at(), "--state", &state]);
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.out.contains("wrong    broker"), "{}", said.out);
}

#[test]
fn the_tool_asks_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    authority(at, "ca");
    certificate(at, "server", "ca");
    let (plain, encrypted) = (free_port(), free_port());
    let config = format!(
        "user root\nallow_anonymous true\nlistener {plain} 127.0.0.1\nlistener {encrypted} 127.0.0.1\n\
         cafile {0}/ca.pem\ncertfile {0}/server.pem\nkeyfile {0}/server.key\n",
        at.display()
    );
    std::fs::write(at.join("mosquitto.conf"), config).unwrap();
    let program =
        ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"].into_iter().find(|p| Path::new(p).exists());
    let mut command = Command::new(program.unwrap_or("mosquitto"));
    let _broker = Process::start(command.arg("-c").arg(at.join("mosquitto.conf")), &at.join("mosquitto.log"));
    wait_for("mosquitto listens", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", plain)).ok());

    let home = Home::new().with_broker(plain, 5);
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let node = connected_node(plain, &daemon);
    let picture = at.join("7.png");
    std::fs::write(&picture, digits::samples().remove(7).png).unwrap();
    let ask = |authority: &str| {
        let mut command = Command::new(binary("tractctl"));
        command.env("TRACTD_MQTT_CA", at.join(authority)).args(["infer", "digits", "--json", "--image"]);
        run(command.arg(&picture).args(["--at", &format!("mqtts://localhost:{encrypted}/{node}")]))
    };
    let answer: Value = serde_json::from_str(&ask("ca.pem").ok()).unwrap();
    assert_eq!(answer["status"], 200, "{answer}");
    authority(at, "stranger");
    let refused = ask("stranger.pem");
    assert_eq!(refused.code, Some(1), "{}{}", refused.out, refused.err);
    assert!(refused.err.contains("UnknownIssuer"), "{}", refused.err);
}

/// A key and a certificate that signs others: `NAME.key` and `NAME.pem`.
fn authority(dir: &Path, name: &str) {
    openssl(dir, &format!("req -x509 {KEY} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"));
}

/// The same for `localhost`, signed by `authority`.
fn certificate(dir: &Path, name: &str, authority: &str) {
    std::fs::write(dir.join("names"), "subjectAltName = DNS:localhost\n").unwrap();
    openssl(dir, &format!("req -new {KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
    let signed = "-CAcreateserial -days 2 -extfile names";
    openssl(
        dir,
        &format!(
            "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key {signed} -out {name}.pem"
        ),
    );
}

fn openssl(dir: &Path, arguments: &str) {
    let made = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
