//! Certificates: the time servers' are judged by, and when each of those that matter here ends, told before it hurts.

use crate::{config::Config, machine};
use serde::Serialize;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};
use tractd_update::{
    Clock, Validity,
    tls::{self, Seen},
};

/// Longest file of certificates read, in bytes: a system's whole list of authorities has about 250 kB.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// What the daemon knows of certificates; shared by those who connect and those who tell.
#[derive(Debug)]
pub(crate) struct Certificates {
    /// The latest time seen signed, in Unix seconds; raised by the update thread.
    time_floor_s: AtomicU64,
    /// The registry's as last seen, with its address.
    registry: Mutex<Option<(String, Validity)>>,
    /// The broker's address, and its certificate as last seen.
    broker: (String, Arc<Seen>),
    /// Files named in the configuration.
    files: Vec<(Kind, PathBuf)>,
}

/// Whose certificate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The registry's server.
    Registry,
    /// Who may have signed that.
    RegistryAuthority,
    /// The broker.
    Broker,
    /// Who may have signed that.
    BrokerAuthority,
    /// Ours, for the broker.
    Client,
}

/// One certificate as the status tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Certificate {
    kind: Kind,
    /// Address or file.
    at: String,
    ends_unix_s: u64,
    /// What will hurt, and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

impl Certificates {
    pub(crate) fn new(config: &Config, time_floor_s: u64) -> Certificates {
        let mqtt = &config.mqtt;
        let files = [
            (Kind::RegistryAuthority, &config.update.ca_file),
            (Kind::BrokerAuthority, &mqtt.ca_file),
            (Kind::Client, &mqtt.cert_file),
        ];
        Certificates {
            time_floor_s: AtomicU64::new(time_floor_s),
            registry: Mutex::default(),
            broker: (mqtt.url.clone(), Arc::default()),
            files: files.into_iter().filter_map(|(kind, file)| Some((kind, file.clone()?))).collect(),
        }
    }

    /// The time to judge servers by, now.
    pub(crate) fn clock(&self) -> Clock {
        Clock::new(SystemTime::now(), self.time_floor_s.load(Relaxed), machine::clock_is_unset())
    }

    /// Takes in what a check of the registry learnt.
    pub(crate) fn checked(&self, time_floor_s: u64, registry: &str, seen: Option<Validity>) {
        self.time_floor_s.store(time_floor_s, Relaxed);
        if let Some(seen) = seen {
            *self.registry.lock().unwrap_or_else(PoisonError::into_inner) = Some((registry.to_owned(), seen));
        }
    }

    /// Takes in what the broker shows.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "no TLS to a broker, no certificate of one"))]
    pub(crate) fn broker(&self) -> Arc<Seen> {
        self.broker.1.clone()
    }

    /// Every certificate that is known, with its end. Reads the configured files.
    pub(crate) fn report(&self) -> Vec<Certificate> {
        let now_s = self.clock().unix_s();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let registry = registry.map(|(at, validity)| certificate(Kind::Registry, at, validity, now_s));
        let (at, seen) = &self.broker;
        let broker = seen.last().map(|validity| certificate(Kind::Broker, at.clone(), validity, now_s));
        let files = self.files.iter().filter_map(|(kind, path)| {
            let validity = in_file(*kind, path)?;
            Some(certificate(*kind, path.display().to_string(), validity, now_s))
        });
        registry.into_iter().chain(broker).chain(files).collect()
    }
}

/// Of authorities the one that lasts longest, of a client's chain its own. A file that cannot be used says so where
/// it is used.
fn in_file(kind: Kind, path: &Path) -> Option<Validity> {
    let mut pem = Vec::new();
    File::open(path).ok()?.take(PEM_BYTES_MAX).read_to_end(&mut pem).ok()?;
    let validities = tls::validities(&pem);
    match kind {
        Kind::Client => validities.first().copied(),
        _ => validities.into_iter().max_by_key(|validity| validity.until_s),
    }
}

fn certificate(kind: Kind, at: String, validity: Validity, now_s: u64) -> Certificate {
    let warning = validity.ends_soon(now_s).then(|| {
        let (what, then) = match kind {
            Kind::Registry => ("the registry's certificate", "then nothing new is installed"),
            Kind::RegistryAuthority => ("the registry's authority", "put its successor beside it in time"),
            Kind::Broker => ("the broker's certificate", "then there is no MQTT"),
            Kind::BrokerAuthority => ("the broker's authority", "put its successor beside it in time"),
            Kind::Client => ("our certificate for the broker", "a new one in its place is taken by itself"),
        };
        let (ends, at_time) = (if validity.until_s < now_s { "ended" } else { "ends" }, validity.until());
        format!("{what} ({at}) {ends} at {at_time}; {then}")
    });
    Certificate { kind, at, ends_unix_s: validity.until_s, warning }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: u64 = 24 * 3_600;

    #[test]
    fn an_end_is_warned_of_in_its_last_two_weeks_and_after() {
        let validity = Validity { from_s: 0, until_s: 1_796_083_200 };
        let warning = |left_s: i64| {
            let now_s = validity.until_s.saturating_add_signed(-left_s);
            certificate(Kind::Client, "/c.pem".into(), validity, now_s).warning
        };
        assert_eq!(warning(14 * DAY_S.cast_signed()), None);
        let text = |ends: &str| {
            format!(
                "our certificate for the broker (/c.pem) {ends} at 2026-12-01T00:00:00Z; a new one in its place is taken by itself"
            )
        };
        assert_eq!(warning(14 * DAY_S.cast_signed() - 1), Some(text("ends")));
        assert_eq!(warning(-1), Some(text("ended")));
    }

    #[test]
    fn of_a_file_the_right_certificate_counts() {
        // Good until 3 March 2026, and until 2 January 2036.
        let (short, long) =
            (include_str!("../tests/fixtures/short.pem"), include_str!("../tests/fixtures/long.pem"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("both.pem");
        std::fs::write(&path, format!("{short}{long}")).unwrap();
        let until = |kind| in_file(kind, &path).map(Validity::until);
        assert_eq!(until(Kind::Client).as_deref(), Some("2026-03-03T00:00:00Z"));
        assert_eq!(until(Kind::BrokerAuthority).as_deref(), Some("2036-01-02T00:00:00Z"));
        assert_eq!(in_file(Kind::Client, &dir.path().join("none")), None);
        std::fs::write(&path, "no certificate").unwrap();
        assert_eq!(in_file(Kind::BrokerAuthority, &path), None);
    }

    #[test]
    fn what_a_check_learnt_is_told() {
        let certificates = Certificates::new(&Config::default(), 7);
        assert_eq!(certificates.report(), Vec::new());
        let validity = Validity { from_s: 0, until_s: u64::MAX };
        certificates.checked(1_896_083_200, "https://r.example/", Some(validity));
        // A check that got nowhere takes nothing away.
        certificates.checked(1_896_083_200, "https://r.example/", None);
        let told = certificates.report();
        assert_eq!(
            (told[0].kind, told[0].at.as_str(), told.len()),
            (Kind::Registry, "https://r.example/", 1)
        );
        assert_eq!(certificates.clock().unix_s(), 1_896_083_200);
    }
}
