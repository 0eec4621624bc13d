//! TLS with certificates on both sides, replaced while the daemon runs; and no network at all.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tractd_tests::broker::free_port;

use crate::broker::wait_until;
use crate::site::Site;
use crate::{REPLY, exchange, samples};

/// Looking at the files every 10 s, and a reconnect.
const RENEWAL: Duration = Duration::from_secs(30);

fn openssl(dir: &Path, arguments: &str) {
    let run = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(run.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&run.stderr));
}

fn authority(dir: &Path, name: &str) {
    openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
        ),
    );
}

fn certificate(dir: &Path, authority: &str, name: &str, file: &str) {
    openssl(
        dir,
        &format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {file}.key.new -out {file}.csr"
        ),
    );
    fs::write(dir.join("names"), "subjectAltName = IP:127.0.0.1,DNS:localhost\n").unwrap();
    openssl(
        dir,
        &format!(
            "x509 -req -in {file}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 -extfile names -out {file}.pem.new"
        ),
    );
    fs::rename(dir.join(format!("{file}.key.new")), dir.join(format!("{file}.key"))).unwrap();
    fs::rename(dir.join(format!("{file}.pem.new")), dir.join(format!("{file}.pem"))).unwrap();
}

/// A broker with a plain listener for the test and an encrypted one, which takes the user from the certificate.
fn encrypted(version: u8) -> (Site, u16, String) {
    let mut site = Site::new(version);
    let dir = site.dir.path().to_owned();
    authority(&dir, "authority");
    certificate(&dir, "authority", "broker", "broker");
    certificate(&dir, "authority", "edge-1", "client");
    let port = free_port();
    let at = dir.display();
    site.start_broker(&format!(
        "log_dest file {at}/broker.log\nlistener {port} 127.0.0.1\ncafile {at}/authority.pem\n\
         certfile {at}/broker.pem\nkeyfile {at}/broker.key\nrequire_certificate true\nuse_identity_as_username true"
    ));
    let files = format!(
        "ca_file = '{at}/authority.pem'\ncert_file = '{at}/client.pem'\nkey_file = '{at}/client.key'"
    );
    (site, port, files)
}

#[test]
fn a_client_certificate_is_replaced_while_the_daemon_runs() {
    for version in [5, 4] {
        let (mut site, port, files) = encrypted(version);
        let dir = site.dir.path().to_owned();
        site.start_daemon_at(&format!("mqtts://localhost:{port}"), &files);
        let node = site.wait_ready();
        let mut client = site.client("cam");
        client.subscribe("tractd/v1/_res/cam/#");
        assert_eq!(exchange(&mut client, &node, "raw", "1", &samples()[0].1).json()["status"], 200);
        let broker_log = || fs::read_to_string(dir.join("broker.log")).unwrap();
        assert!(broker_log().contains("u'edge-1'"), "{}", broker_log());

        // Half of the pair only, and of another authority: the connection stays as it is.
        fs::write(dir.join("client.key"), "not a key\n").unwrap();
        wait_until("it warns", RENEWAL, || site.log().contains("the connection stays as it is"));
        assert_eq!(exchange(&mut client, &node, "raw", "2", &samples()[0].1).json()["status"], 200);

        certificate(&dir, "authority", "edge-2", "client");
        if version == 4 {
            site.signal_daemon("HUP");
        }
        wait_until("the new identity", RENEWAL, || broker_log().contains("u'edge-2'"));
        assert_eq!(exchange(&mut client, &node, "raw", "3", &samples()[0].1).json()["status"], 200);
        assert!(!site.log().contains("no broker at"), "{}", site.log());
    }
}

#[test]
fn a_broker_of_another_authority_is_not_trusted() {
    let (mut site, port, files) = encrypted(5);
    authority(site.dir.path(), "stranger");
    site.start_daemon_at(
        &format!("mqtts://127.0.0.1:{port}"),
        &files.replace("authority.pem", "stranger.pem"),
    );
    wait_until("it says why", REPLY, || site.log().contains("UnknownIssuer"));
    assert!(!site.log().contains("connected to the broker"));
}

/// A broker whose certificate is good from so many days from now until so many days from now, and a device that saw a
/// time signed that is `floor` days from now.
fn dated(from: i64, until: i64, floor: i64) -> (Site, String) {
    let mut site = Site::new(5);
    let dir = site.dir.path().to_owned();
    let day = |days: i64| {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        now_s.checked_add_signed(days * 24 * 3_600).unwrap()
    };
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(day(from));
    params.not_after = epoch + Duration::from_secs(day(until));
    let key = KeyPair::generate().unwrap();
    fs::write(dir.join("broker.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(dir.join("broker.key"), key.serialize_pem()).unwrap();
    let port = free_port();
    let at = dir.display();
    site.start_broker(&format!(
        "listener {port} 127.0.0.1\ncertfile {at}/broker.pem\nkeyfile {at}/broker.key\n"
    ));
    let time_s = day(floor);
    let none = r#"{"version":0,"keys":""}"#;
    let floors =
        format!(r#"{{"anchor":"","root":0,"timestamp":{none},"snapshot":{none},"time_s":{time_s}}}"#);
    let state =
        format!(r#"{{"schema":1,"sequence":2,"models":{{}},"blocked":[],"attempts":[],"floors":{floors}}}"#);
    fs::create_dir_all(dir.join("state/store")).unwrap();
    let crc32 = format!("{:08x}", crc32fast::hash(state.as_bytes()));
    let slot = format!(r#"{{"crc32":"{crc32}","state":{state}}}"#);
    fs::write(dir.join("state/store/state.a.json"), slot).unwrap();
    site.start_daemon_at(&format!("mqtts://localhost:{port}"), &format!("ca_file = '{at}/broker.pem'"));
    (site, format!("mqtts://localhost:{port}"))
}

#[test]
fn a_brokers_certificate_is_judged_by_the_latest_time_the_device_saw_signed() {
    // Good by the system's clock; a month ago by what is known.
    let (site, _) = dated(-10, 10, 40);
    wait_until("it says why", REPLY, || site.log().to_lowercase().contains("expired"));
    assert_eq!(site.status()["certificates"].as_array().unwrap().len(), 1, "the file's alone");
    // Not begun by either; but the clock is known to be behind.
    let (site, _) = dated(50, 400, 40);
    site.wait_ready();
}

#[test]
fn certificates_that_end_soon_are_told_in_the_status() {
    let (site, url) = dated(-50, 9, -1);
    site.wait_ready();
    let status = site.status();
    let told: Vec<_> = status["certificates"].as_array().unwrap().iter().collect();
    assert_eq!((&told[0]["kind"], &told[0]["at"]), (&"broker".into(), &url.into()), "{status}");
    assert_eq!(told[1]["kind"], "broker-authority");
    for certificate in told {
        let warning = certificate["warning"].as_str().unwrap();
        assert!(warning.contains(" ends at 20"), "{warning}");
    }
    let (site, _) = dated(-50, 300, -1);
    site.wait_ready();
    assert_eq!(site.status()["certificates"][0]["warning"], serde_json::Value::Null);
}

#[test]
fn a_unix_socket_carries_mqtt() {
    for version in [5, 4] {
        let mut site = Site::new(version);
        let socket = site.dir.path().join("mosquitto.sock");
        site.start_broker(&format!("listener 0 {}", socket.display()));
        site.start_daemon_at(&format!("mqtt+unix://{}", socket.display()), "");
        let node = site.wait_ready();
        let mut client = site.client("cam");
        client.subscribe("tractd/v1/_res/cam/#");
        assert_eq!(exchange(&mut client, &node, "raw", "1", &samples()[0].1).json()["status"], 200);
    }
}
