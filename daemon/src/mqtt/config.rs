//! The `[mqtt]` section: as written ([`Config`]) and as checked ([`Settings`]).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tractd_wire::Name;
use tractd_wire::topic::Prefix;
use url::Url;

use super::tls;

/// Nothing is gained by more frequent pings.
const KEEP_ALIVE_S_MIN: u16 = 5;
/// Above this a dead broker stays unnoticed for hours (the watchdog waits two keep-alives).
const KEEP_ALIVE_S_MAX: u16 = 3600;
/// Requests in hand at once: each may hold `max_request_bytes`.
const QUEUE_MAX: u16 = 1024;
/// Replies under way at once; a broker's own window is 20 by default.
const INFLIGHT_MAX: u16 = 1024;
/// Room in a packet for topic and properties beside the payload.
const PACKET_OVERHEAD_BYTES: u32 = 64 << 10;
/// The protocol's own end: 256 MB less the fixed header.
const PACKET_BYTES_MAX: u32 = 268_435_455;
/// Below this, metrics cost more than they tell.
const METRICS_INTERVAL_S_MIN: u32 = 5;
/// Room for some messages a day even of a node with many models.
const METRICS_BYTES_PER_DAY_MIN: u64 = 64 << 10;
/// Long enough for every broker's client id rules we know of.
const CLIENT_ID_LEN_MAX: usize = 128;

/// The `[mqtt]` section as it is written in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Whether to connect to a broker at all. Default true: an absent broker costs one log line.
    pub enabled: bool,
    /// `mqtt://host[:1883]`, `mqtts://host[:8883]` with TLS, or `mqtt+unix:///path/of/socket`. Default `mqtt://127.0.0.1:1883`.
    pub url: String,
    /// Protocol version: 5, or 4 for MQTT 3.1.1. Default 5.
    pub version: u8,
    /// What the node calls itself on MQTT. Default: as provisioned, else derived from the machine's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Client id at the broker. Default `tractd-<node>`; two daemons with one id throw each other out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// User name at the broker. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File holding the password, read anew at every connect. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// PEM file of who may have signed the broker's certificate. Default: the system's authorities. This file and the next
    /// two are read anew at every connect, and when they are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of our own certificate and its chain. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of that certificate's key. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// What all topics start with. Default `tractd/v1`.
    pub prefix: String,
    /// Group whose requests for any node (`_any`) this one takes its share of. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_group: Option<String>,
    /// Seconds between pings, 5 to 3600. A broker silent for twice as long is given up. Default 30.
    pub keep_alive_s: u16,
    /// Seconds the broker keeps our unanswered requests after a loss (MQTT 5). Default 3600.
    pub session_expiry_s: u32,
    /// Requests in hand at once (MQTT 5 receive maximum); the broker holds back the rest. Default 16.
    pub queue: u16,
    /// Replies sent and not yet acknowledged by the broker. Default 32.
    pub inflight: u16,
    /// Largest request payload answered, in bytes; above it the answer is 413. Default 8 MiB.
    pub max_request_bytes: u32,
    /// Largest packet in bytes, either way; MQTT 5 brokers drop larger requests unseen. Default 16 MiB.
    pub max_packet_bytes: u32,
    /// Replies and notices held for the broker, in bytes. Default 64 MiB.
    pub outbox_bytes: usize,
    /// Replies and notices held for the broker, in messages. Default 16,384.
    pub outbox_messages: usize,
    /// Seconds between metrics messages, 0 for none, otherwise at least 5. Default 60.
    pub metrics_interval_s: u32,
    /// Bytes of metrics per day; they come less often where they would exceed it. Default 8 MiB.
    pub metrics_bytes_per_day: u64,
    /// Where Home Assistant listens for descriptions, `homeassistant` with it. Default none: it gets no descriptions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery_prefix: Option<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            enabled: true,
            url: "mqtt://127.0.0.1:1883".to_owned(),
            version: 5,
            node: None,
            client_id: None,
            username: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            prefix: "tractd/v1".to_owned(),
            share_group: None,
            keep_alive_s: 30,
            session_expiry_s: 3600,
            queue: 16,
            inflight: 32,
            max_request_bytes: 8 << 20,
            max_packet_bytes: 16 << 20,
            outbox_bytes: 64 << 20,
            outbox_messages: 16_384,
            metrics_interval_s: 60,
            metrics_bytes_per_day: 8 << 20,
            discovery_prefix: None,
        }
    }
}

/// Which protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V4,
    /// MQTT 5.
    V5,
}

/// Where the broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Tcp { host: String, port: u16, tls: Option<tls::Files> },
    Unix { path: String },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Address::Unix { path } => f.write_str(path),
        }
    }
}

impl Address {
    /// The files of TLS, where it is spoken.
    pub(super) fn tls(&self) -> Option<&tls::Files> {
        match self {
            Address::Tcp { tls, .. } => tls.as_ref(),
            Address::Unix { .. } => None,
        }
    }
}

/// A section whose every value has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub(super) address: Address,
    pub(super) version: Version,
    pub(super) client_id: String,
    pub(super) username: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) prefix: String,
    pub(super) share_group: Option<String>,
    pub(super) keep_alive: Duration,
    pub(super) session_expiry_s: u32,
    pub(super) queue: u16,
    pub(super) inflight: u16,
    pub(super) request_bytes_max: usize,
    pub(super) packet_bytes_max: u32,
    pub(super) outbox_bytes: usize,
    pub(super) outbox_messages: usize,
    pub(super) metrics_interval: Option<Duration>,
    pub(super) metrics_bytes_per_day: u64,
    pub(super) discovery_prefix: Option<String>,
}

impl Config {
    /// Values that parse but cannot work, the first of them.
    ///
    /// # Errors
    /// A sentence that names the option.
    pub fn check(&self) -> Result<(), String> {
        self.settings("node").map(drop)
    }

    fn address(&self) -> Result<Address, String> {
        let text = &self.url;
        let url = Url::parse(text).map_err(|error| format!("mqtt.url {text:?}: {error}"))?;
        // A password in a URL ends up in logs and in the printed configuration.
        if !url.username().is_empty() || url.password().is_some() {
            return Err("mqtt.url: credentials belong in username and password_file".to_owned());
        }
        let encrypted = url.scheme() == "mqtts";
        let files = self.tls()?;
        if !encrypted && files != tls::Files::default() {
            return Err("mqtt.ca_file, cert_file and key_file need a url with mqtts://".to_owned());
        }
        match url.scheme() {
            "mqtt" | "tcp" | "mqtts" => match url.host_str() {
                Some(host) if !host.is_empty() => {
                    let port = url.port().unwrap_or(if encrypted { 8883 } else { 1883 });
                    Ok(Address::Tcp { host: host.to_owned(), port, tls: encrypted.then_some(files) })
                }
                _ => Err(format!("mqtt.url {text:?} names no host")),
            },
            "mqtt+unix" if url.path().len() > 1 => Ok(Address::Unix { path: url.path().to_owned() }),
            _ => Err(format!(
                "mqtt.url {text:?} is none of mqtt://host[:port], mqtts:// and mqtt+unix:///path"
            )),
        }
    }

    fn tls(&self) -> Result<tls::Files, String> {
        let client = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => return Err("mqtt.cert_file and mqtt.key_file need each other".to_owned()),
        };
        Ok(tls::Files { ca: self.ca_file.clone(), client })
    }

    /// The checked section; `node` names this device in the default client id.
    ///
    /// # Errors
    /// As [`check`](Config::check).
    pub fn settings(&self, node: &str) -> Result<Settings, String> {
        if self.password_file.is_some() && self.username.is_none() {
            return Err("mqtt.password_file needs mqtt.username beside it".to_owned());
        }
        within("keep_alive_s", self.keep_alive_s, KEEP_ALIVE_S_MIN, KEEP_ALIVE_S_MAX)?;
        within("queue", self.queue, 1, QUEUE_MAX)?;
        within("inflight", self.inflight, 1, INFLIGHT_MAX)?;
        within("max_packet_bytes", self.max_packet_bytes, 2 * PACKET_OVERHEAD_BYTES, PACKET_BYTES_MAX)?;
        within(
            "max_request_bytes",
            self.max_request_bytes,
            1,
            self.max_packet_bytes - PACKET_OVERHEAD_BYTES,
        )?;
        within("outbox_bytes", self.outbox_bytes, self.max_packet_bytes as usize, 1 << 40)?;
        within("outbox_messages", self.outbox_messages, 64, 1 << 20)?;
        if self.metrics_interval_s != 0 {
            within("metrics_interval_s", self.metrics_interval_s, METRICS_INTERVAL_S_MIN, 86_400)?;
        }
        within("metrics_bytes_per_day", self.metrics_bytes_per_day, METRICS_BYTES_PER_DAY_MIN, 1 << 40)?;
        if let Some(node) = &self.node {
            Name::parse(node).map_err(|error| format!("mqtt.node {node:?}: {error}"))?;
        }
        Ok(Settings {
            address: self.address()?,
            version: version(self.version)?,
            client_id: client_id(self.client_id.as_deref(), node)?,
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            prefix: prefix("prefix", &self.prefix)?,
            share_group: self.share_group.as_deref().map(group).transpose()?,
            keep_alive: Duration::from_secs(self.keep_alive_s.into()),
            session_expiry_s: self.session_expiry_s,
            queue: self.queue,
            inflight: self.inflight,
            request_bytes_max: self.max_request_bytes as usize,
            packet_bytes_max: self.max_packet_bytes,
            outbox_bytes: self.outbox_bytes,
            outbox_messages: self.outbox_messages,
            metrics_interval: (self.metrics_interval_s != 0)
                .then(|| Duration::from_secs(self.metrics_interval_s.into())),
            metrics_bytes_per_day: self.metrics_bytes_per_day,
            discovery_prefix: self
                .discovery_prefix
                .as_deref()
                .map(|text| prefix("discovery_prefix", text))
                .transpose()?,
        })
    }
}

fn client_id(written: Option<&str>, node: &str) -> Result<String, String> {
    let id = written.map_or_else(|| format!("tractd-{node}"), str::to_owned);
    if id.len() > CLIENT_ID_LEN_MAX || !is_segment(&id) {
        return Err(format!(
            "mqtt.client_id {id:?} must be 1 to {CLIENT_ID_LEN_MAX} bytes without /, +, # or control characters"
        ));
    }
    Ok(id)
}

fn version(number: u8) -> Result<Version, String> {
    match number {
        4 => Ok(Version::V4),
        5 => Ok(Version::V5),
        other => Err(format!("mqtt.version {other} is not spoken; use 5, or 4 for MQTT 3.1.1")),
    }
}

fn prefix(option: &str, text: &str) -> Result<String, String> {
    match Prefix::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("mqtt.{option} {text:?}: {error}")),
    }
}

fn group(text: &str) -> Result<String, String> {
    match Name::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("mqtt.share_group {text:?}: {error}")),
    }
}

/// True when `text` may stand between two slashes of a topic that is published to.
fn is_segment(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| matches!(c, '/' | '+' | '#') || c.is_control())
}

fn within<T: PartialOrd + std::fmt::Display>(option: &str, value: T, min: T, max: T) -> Result<(), String> {
    if value < min || value > max {
        return Err(format!("mqtt.{option} {value} is outside {min} to {max}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(toml: &str) -> Result<Settings, String> {
        toml::from_str::<Config>(toml).unwrap().settings("pi-7")
    }

    #[test]
    fn nothing_written_is_a_local_broker_on_version_5() {
        let settings = settings("").unwrap();
        assert_eq!(settings.address, Address::Tcp { host: "127.0.0.1".to_owned(), port: 1883, tls: None });
        assert_eq!(settings.version, Version::V5);
        assert_eq!(settings.client_id, "tractd-pi-7");
        assert_eq!(settings.keep_alive, Duration::from_secs(30));
        assert_eq!(settings.metrics_interval, Some(Duration::from_secs(60)));
    }

    #[test]
    fn every_option_changes_what_it_names() {
        let settings = settings(
            r#"
            url = "mqtt://[::1]:1884"
            version = 4
            client_id = "line-3"
            username = "edge"
            password_file = "/run/credentials/mqtt"
            prefix = "plant"
            share_group = "line"
            keep_alive_s = 5
            session_expiry_s = 60
            queue = 4
            inflight = 8
            max_request_bytes = 1000000
            max_packet_bytes = 2000000
            outbox_bytes = 3000000
            outbox_messages = 100
            metrics_interval_s = 0
            metrics_bytes_per_day = 100000
            discovery_prefix = "homeassistant"
            "#,
        )
        .unwrap();
        let expected = Settings {
            address: Address::Tcp { host: "[::1]".to_owned(), port: 1884, tls: None },
            version: Version::V4,
            client_id: "line-3".to_owned(),
            username: Some("edge".to_owned()),
            password_file: Some("/run/credentials/mqtt".into()),
            prefix: "plant".to_owned(),
            share_group: Some("line".to_owned()),
            keep_alive: Duration::from_secs(5),
            session_expiry_s: 60,
            queue: 4,
            inflight: 8,
            request_bytes_max: 1_000_000,
            packet_bytes_max: 2_000_000,
            outbox_bytes: 3_000_000,
            outbox_messages: 100,
            metrics_interval: None,
            metrics_bytes_per_day: 100_000,
            discovery_prefix: Some("homeassistant".to_owned()),
        };
        assert_eq!(settings, expected);
        assert!(!toml::from_str::<Config>("enabled = false").unwrap().enabled);
    }

    #[test]
    fn unusable_values_name_their_option() {
        let refused = |toml: &str, expected: &str| assert_eq!(settings(toml).unwrap_err(), expected);
        refused("keep_alive_s = 4", "mqtt.keep_alive_s 4 is outside 5 to 3600");
        refused("version = 3", "mqtt.version 3 is not spoken; use 5, or 4 for MQTT 3.1.1");
        refused("queue = 0", "mqtt.queue 0 is outside 1 to 1024");
        refused("max_request_bytes = 16777216", "mqtt.max_request_bytes 16777216 is outside 1 to 16711680");
        refused("metrics_interval_s = 1", "mqtt.metrics_interval_s 1 is outside 5 to 86400");
        refused(
            "share_group = 'Line'",
            "mqtt.share_group \"Line\": a name may hold a-z, 0-9, '_' and '-' only, and '_' and '-' not first",
        );
        refused(
            "metrics_bytes_per_day = 1",
            "mqtt.metrics_bytes_per_day 1 is outside 65536 to 1099511627776",
        );
        refused("password_file = '/p'", "mqtt.password_file needs mqtt.username beside it");
        refused("url = 'mqtts://b'\ncert_file = 'c'", "mqtt.cert_file and mqtt.key_file need each other");
        refused("ca_file = 'c'", "mqtt.ca_file, cert_file and key_file need a url with mqtts://");
        refused(
            "url = 'mqtt://user:secret@broker'",
            "mqtt.url: credentials belong in username and password_file",
        );
        refused(
            "url = 'http://broker'",
            "mqtt.url \"http://broker\" is none of mqtt://host[:port], mqtts:// and mqtt+unix:///path",
        );
        for prefix in ["", "a//b", "/a", "a/", "a/+", "#", "$share/x"] {
            let error = settings(&format!("prefix = '{prefix}'")).unwrap_err();
            assert!(error.starts_with("mqtt.prefix "), "{prefix}: {error}");
        }
    }

    #[test]
    fn tls_has_its_port_and_files() {
        let written = "url = 'mqtts://b'\nca_file = 'ca'\ncert_file = 'cert'\nkey_file = 'key'";
        let tls = tls::Files { ca: Some("ca".into()), client: Some(("cert".into(), "key".into())) };
        let expected = Address::Tcp { host: "b".to_owned(), port: 8883, tls: Some(tls) };
        assert_eq!(settings(written).unwrap().address, expected);
    }

    #[test]
    fn a_unix_socket_is_an_address() {
        let settings = settings("url = 'mqtt+unix:///run/mosquitto.sock'").unwrap();
        assert_eq!(settings.address, Address::Unix { path: "/run/mosquitto.sock".to_owned() });
    }
}
