//! The machine: clock, certificates, disk, processor, heat and memory. Reads /proc and /sys only.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tractd_engine::Tier;
use x509_cert::Certificate;
use x509_cert::der::DecodePem;

use super::Finding;
use crate::mqtt::{CA, CERT};
use crate::print::bytes;

/// A clock before this program was written is wrong: 2026-01-01, in seconds since 1970.
const WRITTEN_S: u64 = 1_767_225_600;
/// Certificates that end sooner should be renewed.
const RENEW: Duration = Duration::from_secs(14 * 24 * 3600);
/// Room for one more model and its predecessor.
const DISK_BYTES_MIN: u64 = 256 << 20;
/// Processors slow themselves down from about 80 to 95 °C, in thousandths of a degree.
const HOT_MC: i64 = 80_000;

pub(super) fn clock() -> Finding {
    const SUBJECT: &str = "clock";
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if now_s < WRITTEN_S {
        return Finding::wrong(
            SUBJECT,
            "is before 2026: signatures look valid that have expired, and certificates look not valid yet; set it",
        );
    }
    if Path::new("/run/systemd/timesync/synchronized").exists() || Path::new("/run/chrony").exists() {
        return Finding::well(SUBJECT, "is kept by the network");
    }
    Finding::advice(
        SUBJECT,
        "neither systemd-timesyncd nor chrony keeps it: a clock that drifts lets an old registry look fresh",
    )
}

/// Our own and the broker's authority's certificates, where TLS is spoken.
pub(super) fn certificates(tls: bool) -> Vec<Finding> {
    if !tls {
        return Vec::new();
    }
    let set = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    [CA, CERT]
        .into_iter()
        .filter_map(|variable| Some(certificate(&set(variable)?, SystemTime::now())))
        .collect()
}

fn certificate(path: &Path, now: SystemTime) -> Finding {
    const SUBJECT: &str = "certificate";
    let at = path.display();
    let pem = match fs::read(path) {
        Ok(pem) => pem,
        Err(error) => return Finding::wrong(SUBJECT, format!("{at}: {error}")),
    };
    let validity = match Certificate::from_pem(first(&pem)) {
        Ok(certificate) => certificate.tbs_certificate.validity,
        Err(error) => return Finding::wrong(SUBJECT, format!("{at}: {error}")),
    };
    let end = validity.not_after.to_system_time();
    if now < validity.not_before.to_system_time() {
        return Finding::wrong(
            SUBJECT,
            format!("{at} is not valid before {}; is the clock right?", validity.not_before),
        );
    }
    match end.duration_since(now) {
        Err(_) => Finding::wrong(SUBJECT, format!("{at} ended on {}", validity.not_after)),
        Ok(left) if left < RENEW => Finding::advice(
            SUBJECT,
            format!("{at} ends on {}; renew it, the daemon takes the new one by itself", validity.not_after),
        ),
        Ok(_) => Finding::well(SUBJECT, format!("{at} is valid until {}", validity.not_after)),
    }
}

/// The first block of a PEM file: the certificate itself, without its chain.
fn first(pem: &[u8]) -> &[u8] {
    const END: &[u8] = b"-----END CERTIFICATE-----";
    let end = pem.windows(END.len()).position(|window| window == END);
    &pem[..end.map_or(pem.len(), |at| at + END.len())]
}

pub(super) fn disk(state_dir: &Path) -> Finding {
    const SUBJECT: &str = "disk";
    let at = state_dir.display();
    let stat = match rustix::fs::statvfs(state_dir) {
        Ok(stat) => stat,
        Err(error) => return Finding::unknown(SUBJECT, format!("{at}: {error}; name it with --state")),
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < DISK_BYTES_MIN {
        let text = format!("{at} has {} left: updates will not fit; make room", bytes(free));
        return Finding::wrong(SUBJECT, text);
    }
    Finding::well(SUBJECT, format!("{at} has {} left", bytes(free)))
}

pub(super) fn processor() -> Finding {
    const SUBJECT: &str = "processor";
    match Tier::detect() {
        tier if tier.name() == "portable" => Finding::advice(
            SUBJECT,
            "none of the int8 kernels' vector instructions: quantised models run slower than they could elsewhere",
        ),
        tier => Finding::well(SUBJECT, format!("int8 kernels: {}", tier.name())),
    }
}

pub(super) fn heat() -> Finding {
    const SUBJECT: &str = "heat";
    let zones = fs::read_dir("/sys/class/thermal").into_iter().flatten().flatten();
    let temperatures = zones
        .filter_map(|zone| fs::read_to_string(zone.path().join("temp")).ok()?.trim().parse::<i64>().ok());
    match temperatures.max() {
        None => Finding::unknown(SUBJECT, "this machine tells no temperature"),
        Some(mc) if mc >= HOT_MC => Finding::advice(
            SUBJECT,
            format!("{} °C: the processor slows itself down; cool it or ask less of it", mc / 1000),
        ),
        Some(mc) => Finding::well(SUBJECT, format!("{} °C at the warmest", mc / 1000)),
    }
}

pub(super) fn memory(status: Option<&Value>) -> Finding {
    const SUBJECT: &str = "memory";
    let Some(status) = status else { return Finding::unknown(SUBJECT, "only a running daemon tells") };
    let number = |key: &str| status["memory"][key].as_u64().unwrap_or_default();
    let (held, most) = (number("models_bytes"), number("models_bytes_max"));
    if held > most / 10 * 9 {
        return Finding::advice(
            SUBJECT,
            format!(
                "models hold {} of {}: an update that needs both versions at once won't fit",
                bytes(held),
                bytes(most)
            ),
        );
    }
    if !controlled(status["pid"].as_u64()) {
        return Finding::advice(
            SUBJECT,
            format!(
                "models hold {} of {}; the kernel can't limit it (no memory.max; Raspberry Pi: \
                 cgroup_enable=memory in cmdline.txt), so the machine as a whole is the limit",
                bytes(held),
                bytes(most)
            ),
        );
    }
    Finding::well(SUBJECT, format!("models hold {} of {}", bytes(held), bytes(most)))
}

/// Whether the daemon's control group counts memory.
fn controlled(pid: Option<u64>) -> bool {
    let group = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    let group = group.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::/")));
    group.is_some_and(|group| {
        Path::new(group)
            .ancestors()
            .any(|at| Path::new("/sys/fs/cgroup").join(at).join("memory.max").exists())
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use serde_json::json;

    /// Self-signed, valid for 60 days from 2 January 2026.
    const CERTIFICATE: &str = include_str!("../../../tests/fixtures/january.pem");

    #[test]
    fn a_certificate_is_told_by_its_dates() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.pem");
        fs::write(&path, format!("{CERTIFICATE}{CERTIFICATE}")).unwrap();
        let at = |day: u64| UNIX_EPOCH + Duration::from_secs(WRITTEN_S + day * 86_400);
        let verdict = |day| certificate(&path, at(day)).verdict;
        assert_eq!(
            [verdict(0), verdict(2), verdict(50), verdict(70)],
            [Verdict::Wrong, Verdict::Well, Verdict::Advice, Verdict::Wrong]
        );
        fs::write(&path, "none").unwrap();
        assert_eq!(verdict(2), Verdict::Wrong);
    }

    #[test]
    fn models_that_fill_their_memory_are_advised_of() {
        let status = |held: u64| json!({ "memory": { "models_bytes": held, "models_bytes_max": 1000 } });
        assert_eq!(memory(Some(&status(950))).verdict, Verdict::Advice);
        assert!(memory(Some(&status(950))).text.starts_with("models hold 950 B of 1000 B: an update"));
        assert_eq!(memory(None).verdict, Verdict::Unknown);
    }
}
