//! MQTT brokers on loopback: real mosquitto where it is installed, else one in this process that speaks MQTT 5 only.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Process, wait_for};

/// How long a broker may take until it listens.
const START: Duration = Duration::from_secs(10);
/// Ports tried before giving up: another program may take one between our look and the broker's.
const TRIES: usize = 5;
/// Largest payload of the in-process broker, in bytes: the daemon's own limit, and some head.
const PAYLOAD_LEN_MAX: usize = (64 << 20) + 64 * 1024;

/// A broker.
#[derive(Debug)]
pub enum Broker {
    /// mosquitto: MQTT 3.1, 3.1.1 and 5.
    Mosquitto(Mosquitto),
    /// A thread of this process: MQTT 5. It lives as long as the process does.
    InProcess {
        /// Where it listens on loopback.
        port: u16,
    },
}

impl Broker {
    /// mosquitto where it is installed, else the one in this process.
    pub fn start() -> Self {
        match Mosquitto::start() {
            Some(mosquitto) => Self::Mosquitto(mosquitto),
            None => Self::InProcess { port: start_in_process() },
        }
    }

    /// Where it listens on loopback.
    pub fn port(&self) -> u16 {
        match self {
            Self::Mosquitto(mosquitto) => mosquitto.port,
            Self::InProcess { port } => *port,
        }
    }

    /// Whether it speaks MQTT 3.1.1 as well.
    pub fn speaks_v4(&self) -> bool {
        matches!(self, Self::Mosquitto(_))
    }
}

/// A mosquitto with its own configuration and log.
#[derive(Debug)]
pub struct Mosquitto {
    /// Where it listens on loopback.
    pub port: u16,
    process: Process,
    dir: TempDir,
}

impl Mosquitto {
    /// Starts one; `None` where mosquitto isn't installed.
    ///
    /// # Panics
    /// When it is installed and does not start.
    pub fn start() -> Option<Self> {
        let program = installed()?;
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        for _ in 0..TRIES {
            let port = free_port();
            if let Some(process) = run(&program, dir.path(), port) {
                return Some(Self { port, process, dir });
            }
        }
        let log = std::fs::read_to_string(dir.path().join("mosquitto.log")).unwrap_or_default();
        panic!("mosquitto does not start:\n{log}");
    }

    /// Ends it, as a power cut of the broker's machine would.
    pub fn stop(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port, with nothing remembered.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        let program = installed().expect("it was installed a moment ago");
        self.process = run(&program, self.dir.path(), self.port).expect("its own port is still free");
    }
}

/// The in-process broker, MQTT 5 only: its 3.1.1 listener panics on a MQTT 5 publish with properties.
///
/// # Panics
/// When it does not listen in time.
pub fn start_in_process() -> u16 {
    let port = free_port();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connections = rumqttd::ConnectionSettings {
        connection_timeout_ms: 5_000,
        max_payload_size: PAYLOAD_LEN_MAX,
        max_inflight_count: 200,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = rumqttd::ServerSettings {
        name: "loopback".into(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    let config = rumqttd::Config {
        router: rumqttd::RouterConfig {
            max_connections: 64,
            max_outgoing_packet_count: 200,
            max_segment_size: 100 << 20,
            max_segment_count: 2,
            ..Default::default()
        },
        v5: Some(HashMap::from([("loopback".to_owned(), server)])),
        ..Default::default()
    };
    std::thread::Builder::new()
        .name("broker".into())
        .spawn(move || {
            if let Err(error) = rumqttd::Broker::new(config).start() {
                eprintln!("the in-process broker ended: {error}");
            }
        })
        .expect("a thread can be started");
    wait_for("the in-process broker", START, || TcpStream::connect(listen).ok());
    port
}

/// Where mosquitto is, if it is installed. Debian puts it where only root's PATH looks.
fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|dir| dir.join("mosquitto"))
        .find(|program| program.is_file())
}

/// Starts one on a port; `None` when it ends before it listens.
fn run(program: &Path, dir: &Path, port: u16) -> Option<Process> {
    let config = dir.join("mosquitto.conf");
    // Without set_tcp_nodelay every QoS 1 exchange waits 40 ms for a delayed acknowledgement.
    let text = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\npersistence false\n\
         max_queued_messages 20000\nmax_inflight_messages 100\n"
    );
    std::fs::write(&config, text).expect("a temporary folder can be written");
    let mut process =
        Process::start(Command::new(program).arg("-c").arg(&config), &dir.join("mosquitto.log"));
    wait_for("mosquitto", START, || {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() && process.is_running() {
            return Some(true);
        }
        (!process.is_running()).then_some(false)
    })
    .then_some(process)
}

/// A port of loopback that nobody listens on now, and that no client's own end is given: a broker takes it only later.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    // Below those the system hands out, and each test's process begins elsewhere.
    const PORTS: std::ops::Range<u32> = 16_384..32_768;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let port = |_| {
        let next = TAKEN.fetch_add(1, Ordering::Relaxed) + std::process::id() * 16;
        (PORTS.start + next % (PORTS.end - PORTS.start)) as u16
    };
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    PORTS.map(port).find(free).expect("loopback has free ports")
}
