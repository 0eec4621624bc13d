//! Where a daemon is: `unix:PATH` or `mqtt[s]://[user@]host[:port][/node]`, and where to look when nothing is said.

use std::path::PathBuf;
use std::str::FromStr;

use tractd_wire::Name;

/// The word that any member of a shared subscription answers to.
pub const ANY_NODE: &str = "_any";
/// MQTT without TLS.
const MQTT_PORT: u16 = 1883;
/// MQTT over TLS.
const MQTTS_PORT: u16 = 8883;
/// Where the system's daemon listens.
const SYSTEM_SOCKET: &str = "/run/tractd/tractd.sock";

/// The address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// A Unix socket.
    Unix(PathBuf),
    /// A node behind an MQTT broker.
    Mqtt {
        /// Whether TLS is spoken.
        tls: bool,
        /// Host name or address of the broker.
        host: String,
        /// Its port.
        port: u16,
        /// The user to log in as; the password comes from the environment, never from arguments.
        user: Option<String>,
        /// The node asked, [`ANY_NODE`] for whichever is free.
        node: String,
    },
}

/// Why an address was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtError {
    /// Neither of the two forms.
    #[error("expected unix:PATH, mqtt://host[:port][/node] or mqtts://host[:port][/node]")]
    Form,
    /// The host is missing.
    #[error("no host after mqtt://")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("{0:?} is no port")]
    Port(String),
    /// The node's name breaks the naming rule.
    #[error("{0:?} is no node name: a-z, 0-9, _ and -, at most 63, beginning with a letter or digit")]
    Node(String),
}

impl FromStr for At {
    type Err = AtError;

    fn from_str(text: &str) -> Result<Self, AtError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(AtError::Form) } else { Ok(Self::Unix(path.into())) };
        }
        let (tls, rest) = match (text.strip_prefix("mqtt://"), text.strip_prefix("mqtts://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(AtError::Form),
        };
        let (authority, node) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, authority),
        };
        let (host, port) = split_port(host, if tls { MQTTS_PORT } else { MQTT_PORT })?;
        if host.is_empty() {
            return Err(AtError::Host);
        }
        let node = match node.trim_end_matches('/') {
            "" | ANY_NODE => ANY_NODE,
            name if Name::parse(name).is_ok() => name,
            other => return Err(AtError::Node(other.to_owned())),
        };
        Ok(Self::Mqtt { tls, host: host.to_owned(), port, user, node: node.to_owned() })
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Mqtt { tls, host, port, node, .. } => {
                let scheme = if *tls { "mqtts" } else { "mqtt" };
                let host = if host.contains(':') { &format!("[{host}]") } else { host };
                write!(f, "{scheme}://{host}:{port}/{node}")
            }
        }
    }
}

/// The daemon meant when nobody says: `TRACTD_SOCKET`, the system's (as root, or where it stands), the user's.
pub fn default_at() -> At {
    if let Some(path) = std::env::var_os("TRACTD_SOCKET").filter(|path| !path.is_empty()) {
        return At::Unix(path.into());
    }
    let uid = rustix::process::getuid().as_raw();
    if uid == 0 || std::path::Path::new(SYSTEM_SOCKET).exists() {
        return At::Unix(SYSTEM_SOCKET.into());
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => At::Unix(PathBuf::from(dir).join("tractd/tractd.sock")),
        None => At::Unix(format!("/tmp/tractd-{uid}/tractd.sock").into()),
    }
}

/// The daemon's state folder when nobody says.
pub fn default_state_dir() -> PathBuf {
    if rustix::process::getuid().is_root() {
        return "/var/lib/tractd".into();
    }
    let base = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    base.or_else(|| std::env::home_dir().map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("tractd")
}

fn split_port(host: &str, usual: u16) -> Result<(&str, u16), AtError> {
    // An IPv6 address stands in brackets, its colons are its own.
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    match port {
        None => Ok((name, usual)),
        Some(text) => match text.parse() {
            Ok(port) if port > 0 => Ok((name, port)),
            _ => Err(AtError::Port(text.to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mqtt(host: &str, port: u16, user: Option<&str>, node: &str) -> Result<At, AtError> {
        let user = user.map(str::to_owned);
        Ok(At::Mqtt { tls: false, host: host.into(), port, user, node: node.into() })
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!("unix:/run/t.sock".parse(), Ok(At::Unix("/run/t.sock".into())));
        assert_eq!("unix:///run/t.sock".parse(), Ok(At::Unix("/run/t.sock".into())));
        assert_eq!("mqtt://broker".parse(), mqtt("broker", 1883, None, "_any"));
        assert_eq!("mqtt://broker:1884/kitchen".parse(), mqtt("broker", 1884, None, "kitchen"));
        assert_eq!("mqtt://me@broker/kitchen".parse(), mqtt("broker", 1883, Some("me"), "kitchen"));
        assert_eq!("mqtt://[::1]:9/_any".parse(), mqtt("::1", 9, None, "_any"));
        let encrypted = At::Mqtt {
            tls: true,
            host: "broker".to_owned(),
            port: 8883,
            user: None,
            node: "kitchen".to_owned(),
        };
        assert_eq!("mqtts://broker/kitchen".parse(), Ok(encrypted));
    }

    #[test]
    fn every_mistake_has_its_own_message() {
        let check = |text: &str, error: AtError| assert_eq!(text.parse::<At>(), Err(error), "{text}");
        check("/run/t.sock", AtError::Form);
        check("unix:", AtError::Form);
        check("mqtt://", AtError::Host);
        check("mqtt://:1883/x", AtError::Host);
        check("mqtt://h:99999", AtError::Port("99999".into()));
        check("mqtt://h:0", AtError::Port("0".into()));
        check("mqtt://h/Kitchen!", AtError::Node("Kitchen!".into()));
    }

    #[test]
    fn printing_gives_back_what_was_read() {
        for text in
            ["unix:/run/t.sock", "mqtt://b:1884/kitchen", "mqtts://b:8883/_any", "mqtt://[::1]:9/_any"]
        {
            assert_eq!(text.parse::<At>().map(|at| at.to_string()).as_deref(), Ok(text));
        }
    }
}
