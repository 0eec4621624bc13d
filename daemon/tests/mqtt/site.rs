//! A broker, a daemon and a folder for both; everything ends with the test.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tractd_tests::broker::free_port;
use tractd_wire as wire;

use crate::client::Client;

/// Longest a daemon may take from its start to being ready on the broker: it tries its model first.
const START: Duration = Duration::from_secs(60);

pub(crate) struct Site {
    pub dir: TempDir,
    pub port: u16,
    pub version: u8,
    broker: Option<Child>,
    daemon: Option<Child>,
}

impl Site {
    /// Nothing runs yet. `version` is the protocol the daemon speaks.
    pub(crate) fn new(version: u8) -> Site {
        Site::at(free_port(), version)
    }

    /// As [`new`](Site::new), with the broker at `port`.
    pub(crate) fn at(port: u16, version: u8) -> Site {
        let dir = tempfile::tempdir().unwrap();
        copy(&digits(), &dir.path().join("models/digits"));
        Site { dir, port, version, broker: None, daemon: None }
    }

    /// Broker and daemon run, and requests are answered.
    pub(crate) fn ready(version: u8) -> (Site, String) {
        let mut site = Site::new(version);
        site.start_broker("");
        site.start_daemon("");
        let node = site.wait_ready();
        (site, node)
    }

    pub(crate) fn start_broker(&mut self, options: &str) {
        let config = self.dir.path().join("mosquitto.conf");
        let port = self.port;
        // Started by root it would become a user who can't read the test's folder.
        let text = format!(
            "user root\nlistener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n{options}\n"
        );
        fs::write(&config, text).unwrap();
        self.restart_broker();
    }

    /// Starts the broker with the configuration it had.
    pub(crate) fn restart_broker(&mut self) {
        let (config, port) = (self.dir.path().join("mosquitto.conf"), self.port);
        let program =
            ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"].into_iter().find(|p| Path::new(p).exists());
        let mut command = Command::new(program.unwrap_or("mosquitto"));
        command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        self.broker = Some(command.spawn().expect("mosquitto is installed; scripts/test installs it"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "mosquitto listens");
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = self.broker.as_mut().unwrap().try_wait().unwrap();
        assert!(ended.is_none(), "somebody else has port {port}, or that of another listener: {ended:?}");
    }

    pub(crate) fn stop_broker(&mut self) {
        end(self.broker.take());
    }

    /// Lets the broker save what it has.
    pub(crate) fn stop_broker_in_order(&mut self) {
        let mut broker = self.broker.take().unwrap();
        send(&broker, "TERM");
        broker.wait().unwrap();
    }

    pub(crate) fn start_daemon(&mut self, options: &str) {
        self.start_daemon_at(&format!("mqtt://127.0.0.1:{}", self.port), options);
    }

    pub(crate) fn start_daemon_at(&mut self, url: &str, options: &str) {
        let dir = self.dir.path();
        let config = dir.join("tractd.toml");
        let version = self.version;
        let text = format!("[mqtt]\nurl = \"{url}\"\nversion = {version}\nkeep_alive_s = 5\n{options}\n");
        fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tractd"));
        command.arg("--config").arg(&config);
        command.arg("--state").arg(dir.join("state")).arg("--socket").arg(dir.join("tractd.sock"));
        command.arg("--models").arg(dir.join("models"));
        command.stdout(Stdio::null()).stderr(fs::File::create(dir.join("tractd.log")).unwrap());
        self.daemon = Some(command.spawn().unwrap());
    }

    /// Sends the daemon a signal, and waits for its end if that is what the signal is for.
    pub(crate) fn end_daemon(&mut self, signal: &str) {
        let mut child = self.daemon.take().unwrap();
        send(&child, signal);
        child.wait().unwrap();
    }

    pub(crate) fn signal_daemon(&self, signal: &str) {
        send(self.daemon.as_ref().unwrap(), signal);
    }

    pub(crate) fn signal_broker(&self, signal: &str) {
        send(self.broker.as_ref().unwrap(), signal);
    }

    pub(crate) fn client(&self, id: &str) -> Client {
        Client::connect(self.port, self.version, id)
    }

    /// Waits until the daemon says on the broker that it and its model are ready; returns its node.
    pub(crate) fn wait_ready(&self) -> String {
        let mut client = Client::connect(self.port, 4, "watch");
        client.subscribe("tractd/v1/+/model/digits/state");
        let deadline = Instant::now() + START;
        while let Some(said) = client.receive(deadline.saturating_duration_since(Instant::now())) {
            if !said.payload.is_empty() && said.json()["state"] == "ready" {
                return said.topic.split('/').nth(2).unwrap().to_owned();
            }
        }
        panic!("not ready:\n{}", self.log());
    }

    /// Whether that node's model is ready.
    pub(crate) fn says_ready(&self, node: &str) -> bool {
        let mut client = Client::connect(self.port, 4, "watch");
        client.subscribe(&format!("tractd/v1/{node}/model/digits/state"));
        client.receive(Duration::from_millis(200)).is_some_and(|said| said.json()["state"] == "ready")
    }

    /// Requests this site's daemon has taken in, by its own count.
    pub(crate) fn requests(&self) -> u64 {
        self.status()["requests"].as_u64().unwrap()
    }

    /// What this site's daemon says of itself on its socket.
    pub(crate) fn status(&self) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.dir.path().join("tractd.sock")).unwrap();
        let mut out = [0; wire::FRAME_HEAD_MAX];
        let length = wire::encode_query(1, &wire::Query { what: wire::What::Status }, &mut out).unwrap();
        stream.write_all(&out[..length]).unwrap();
        let mut header = [0; wire::HEADER_LEN];
        stream.read_exact(&mut header).unwrap();
        let header = wire::Header::parse(&header).unwrap();
        let mut rest = vec![0; usize::from(header.head_len) + header.body_len as usize];
        stream.read_exact(&mut rest).unwrap();
        serde_json::from_slice(&rest[header.head_len.into()..]).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("tractd.log")).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        end(self.daemon.take());
        end(self.broker.take());
    }
}

/// The example model, version 1.
pub(crate) fn digits() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits/1")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn send(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        drop(child.kill());
        drop(child.wait());
    }
}
