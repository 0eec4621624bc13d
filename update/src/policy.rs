//! Pure: is this rollout entry for this device, now? Every "no" has a reason that is reported.

use sha2::{Digest as _, Sha256};

use crate::rollout::{Custom, Entry, EntryState, Target};
use crate::schedule;

/// Buckets a rollout deals its devices into: hundredths of a percent.
pub const BUCKETS: u16 = 10_000;
/// Times a bundle may be tried before its rollout is given up: a crash of the daemon itself leaves nothing but
/// this count behind.
pub const ATTEMPTS_MAX: u32 = 3;
/// Unpacked size assumed of a bundle whose team signed none, as a multiple of the archive.
const UNPACKED_FACTOR: u64 = 8;

/// What the device knows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The provisioned node id.
    pub node: &'a str,
    /// As `std::env::consts::ARCH` has it.
    pub arch: &'a str,
    /// The daemon's version, `major.minor.patch`.
    pub runtime: &'a str,
    /// Memory a model may take, in bytes; `None` when nobody set a limit.
    pub memory_bytes: Option<u64>,
    /// Free on the store's file system, in bytes, less what must stay free.
    pub free_bytes: u64,
    /// What the store may still grow by its quota, in bytes.
    pub quota_bytes: u64,
    /// Largest archive this device fetches, in bytes.
    pub archive_bytes_max: u64,
    /// Largest archive fetched now, in bytes, because the link costs by the byte; `None` on other links.
    pub metered_bytes_max: Option<u64>,
    /// The time as the device knows it, in Unix seconds; never later than it is, unless its clock is wrong.
    pub unix_s: u64,
    /// Minute of the day in UTC; `None` while the clock is not trusted.
    pub minute: Option<u16>,
}

/// What the device knows of the model already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known<'a> {
    /// The active version and its digest, when there is one and its files are sound.
    pub active: Option<(u64, &'a str)>,
    /// Highest version that ever was active.
    pub version_floor: u64,
    /// Highest `min_version` the team ever signed.
    pub min_version: u64,
    /// The team whose model of this name is installed.
    pub team: Option<&'a str>,
    /// Why this digest is blocked for this rollout.
    pub blocked: Option<&'a str>,
    /// Times this digest was tried for this rollout.
    pub attempts: u32,
}

/// What to do about an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Active already.
    Current,
    /// Not now, and nothing wrong: paused, or another bucket's turn.
    Wait(Reason),
    /// Fetch, prove, activate.
    Install,
    /// No.
    Refuse(Reason),
}

/// Why an entry is not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The publisher paused it.
    #[error("the rollout is paused")]
    Paused,
    /// The publisher gave it up.
    #[error("the rollout is aborted")]
    Aborted,
    /// The entry uses something this daemon does not know.
    #[error("the rollout uses {0}, which this daemon does not know")]
    NotUnderstood(&'static str),
    /// The share has not reached this device.
    #[error("bucket {bucket} of {BUCKETS} is not within {pct} %")]
    Bucket {
        /// This device's.
        bucket: u16,
        /// The rollout's share, in percent.
        pct: u8,
    },
    /// Its wave has a time, which has not come.
    #[error("bucket {bucket} of {BUCKETS} is in the wave of {pct} %, which begins at {from}")]
    Wave {
        /// This device's.
        bucket: u16,
        /// The wave's share, in percent.
        pct: u8,
        /// When it begins, RFC 3339.
        from: String,
    },
    /// Outside the maintenance window.
    #[error("it is not {0} UTC, its maintenance window")]
    Window(String),
    /// The window cannot be told.
    #[error("its maintenance window is {0} UTC, and the clock is not trusted")]
    WindowUnknown(String),
    /// Too large for a link that costs by the byte.
    #[error("its archive has {archive_bytes} bytes, {limit_bytes} are fetched over this metered link")]
    Metered {
        /// As signed.
        archive_bytes: u64,
        /// The device's.
        limit_bytes: u64,
    },
    /// Rollout and team disagree about the artifact.
    #[error("the rollout says {field} {rollout:?}, the team signed {team:?}")]
    Disagree {
        /// What they disagree about.
        field: &'static str,
        /// The rollout's word.
        rollout: String,
        /// The team's.
        team: String,
    },
    /// Another team's model has the name.
    #[error("the name belongs to team {0:?} on this device")]
    OtherTeam(String),
    /// Lower than what was active, and no rollback was ordered.
    #[error("version {version} is below {floor}, which was active already")]
    BelowActive {
        /// Offered.
        version: u64,
        /// The floor.
        floor: u64,
    },
    /// Lower than the team allows for any rollout.
    #[error("version {version} is below {min}, the lowest its team allows")]
    BelowMinimum {
        /// Offered.
        version: u64,
        /// Signed by the team.
        min: u64,
    },
    /// Built for other processors.
    #[error("made for {wanted:?}, this device is {have}")]
    Arch {
        /// The bundle's.
        wanted: Vec<String>,
        /// The device's.
        have: String,
    },
    /// Needs a newer daemon.
    #[error("needs tractd {wanted}, this is {have}")]
    Runtime {
        /// The bundle's.
        wanted: String,
        /// The daemon's.
        have: String,
    },
    /// Too large for the memory set aside.
    #[error("needs {needed_bytes} bytes of memory, {limit_bytes} are allowed")]
    Memory {
        /// The publisher's measure.
        needed_bytes: u64,
        /// The device's.
        limit_bytes: u64,
    },
    /// Too large for the disk or the quota.
    #[error("needs {needed_bytes} bytes of disk, {available_bytes} are left ({which})")]
    Disk {
        /// Archive and unpacked bundle.
        needed_bytes: u64,
        /// What may be used.
        available_bytes: u64,
        /// `free space` or `quota`.
        which: &'static str,
    },
    /// Larger than this device fetches.
    #[error("its archive has {archive_bytes} bytes, {limit_bytes} are allowed")]
    Archive {
        /// As signed.
        archive_bytes: u64,
        /// The device's.
        limit_bytes: u64,
    },
    /// Refused before.
    #[error("blocked for this rollout: {0}")]
    Blocked(String),
    /// Tried too often without an end.
    #[error("tried {0} times without coming to an end")]
    Attempts(u32),
}

/// Decides about `entry`, of which its team signed `custom`, an archive of `archive_bytes`.
#[must_use]
pub fn decide(
    entry: &Entry,
    custom: &Custom,
    archive_bytes: u64,
    known: &Known<'_>,
    facts: &Facts<'_>,
) -> Decision {
    if known.active == Some((entry.version, entry.digest.as_str())) {
        return Decision::Current;
    }
    match turn(entry, facts.node, facts.unix_s) {
        Ok(()) => {}
        Err(reason) => return Decision::Wait(reason),
    }
    if let Err(reason) = schedule::window(entry, facts.minute).and_then(|()| metered(archive_bytes, facts)) {
        return Decision::Wait(reason);
    }
    let checks = [
        agree(entry, custom),
        versions(entry, known),
        history(known),
        fits(custom, facts),
        disk(custom, archive_bytes, facts),
    ];
    match checks.into_iter().find_map(Result::err) {
        Some(reason) => Decision::Refuse(reason),
        None => Decision::Install,
    }
}

/// Where a device stands in a rollout: `SHA-256(node || rollout id) mod 10000`. Stable within a rollout,
/// dealt anew for the next.
#[must_use]
pub fn bucket(node: &str, rollout: &str) -> u16 {
    let hash = Sha256::new().chain_update(node).chain_update(rollout).finalize();
    let modulus = u32::from(BUCKETS);
    let rest = hash.iter().fold(0u32, |rest, &byte| (rest * 256 + u32::from(byte)) % modulus);
    u16::try_from(rest).expect("a rest below 10000 fits")
}

/// Whether it is this device's turn; all that can be said before the team's word is fetched.
pub(crate) fn turn(entry: &Entry, node: &str, unix_s: u64) -> Result<(), Reason> {
    match entry.state {
        EntryState::Active => schedule::wave(entry, node, unix_s),
        EntryState::Paused => Err(Reason::Paused),
        EntryState::Aborted => Err(Reason::Aborted),
        EntryState::Unknown => Err(Reason::NotUnderstood("state")),
    }
}

fn metered(archive_bytes: u64, facts: &Facts<'_>) -> Result<(), Reason> {
    match facts.metered_bytes_max {
        Some(limit_bytes) if archive_bytes > limit_bytes => {
            Err(Reason::Metered { archive_bytes, limit_bytes })
        }
        _ => Ok(()),
    }
}

fn agree(entry: &Entry, custom: &Custom) -> Result<(), Reason> {
    let disagree = |field, rollout: &str, team: &str| {
        if rollout == team {
            return Ok(());
        }
        Err(Reason::Disagree { field, rollout: rollout.to_owned(), team: team.to_owned() })
    };
    disagree("model", &entry.model, &custom.model)?;
    disagree("version", &entry.version.to_string(), &custom.version.to_string())?;
    disagree("digest", &entry.digest, &custom.digest)
}

fn versions(entry: &Entry, known: &Known<'_>) -> Result<(), Reason> {
    let team = Target::parse(&entry.target).map(|target| target.team).unwrap_or_default();
    if let Some(owner) = known.team.filter(|owner| *owner != team) {
        return Err(Reason::OtherTeam(owner.to_owned()));
    }
    let version = entry.version;
    if version < known.min_version {
        return Err(Reason::BelowMinimum { version, min: known.min_version });
    }
    if version < known.version_floor && entry.rollback_to != Some(version) {
        return Err(Reason::BelowActive { version, floor: known.version_floor });
    }
    Ok(())
}

fn history(known: &Known<'_>) -> Result<(), Reason> {
    if let Some(reason) = known.blocked {
        return Err(Reason::Blocked(reason.to_owned()));
    }
    if known.attempts >= ATTEMPTS_MAX { Err(Reason::Attempts(known.attempts)) } else { Ok(()) }
}

fn fits(custom: &Custom, facts: &Facts<'_>) -> Result<(), Reason> {
    if !custom.arch.is_empty() && custom.arch.iter().all(|arch| arch != facts.arch) {
        return Err(Reason::Arch { wanted: custom.arch.clone(), have: facts.arch.to_owned() });
    }
    if let Some(wanted) = &custom.min_runtime
        && triple(wanted).is_none_or(|wanted| triple(facts.runtime) < Some(wanted))
    {
        return Err(Reason::Runtime { wanted: wanted.clone(), have: facts.runtime.to_owned() });
    }
    match (custom.peak_ram_bytes, facts.memory_bytes) {
        (Some(needed_bytes), Some(limit_bytes)) if needed_bytes > limit_bytes => {
            Err(Reason::Memory { needed_bytes, limit_bytes })
        }
        _ => Ok(()),
    }
}

fn disk(custom: &Custom, archive_bytes: u64, facts: &Facts<'_>) -> Result<(), Reason> {
    let unpacked = custom.unpacked_bytes.unwrap_or(archive_bytes.saturating_mul(UNPACKED_FACTOR));
    let needed_bytes = archive_bytes.saturating_add(unpacked);
    let limit_bytes = facts.archive_bytes_max;
    if archive_bytes > limit_bytes {
        return Err(Reason::Archive { archive_bytes, limit_bytes });
    }
    for (available_bytes, which) in [(facts.free_bytes, "free space"), (facts.quota_bytes, "quota")] {
        if needed_bytes > available_bytes {
            return Err(Reason::Disk { needed_bytes, available_bytes, which });
        }
    }
    Ok(())
}

/// `1.2.3`, with or without a pre-release behind it; `None` for anything else.
fn triple(version: &str) -> Option<(u64, u64, u64)> {
    let core = version.split(['-', '+']).next()?;
    let mut parts = core.split('.').map(|part| part.parse().ok());
    let triple = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(triple)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn entry() -> Entry {
        let text = include_str!("../tests/golden/rollout-1.json");
        crate::rollout::Rollout::parse(text.as_bytes(), "lab").unwrap().entries.remove(0)
    }

    fn custom() -> Custom {
        serde_json::from_str(include_str!("../tests/golden/custom-1.json")).unwrap()
    }

    fn facts() -> Facts<'static> {
        Facts {
            node: "node-1",
            arch: "x86_64",
            runtime: "0.1.0",
            memory_bytes: Some(64 << 20),
            free_bytes: 1 << 20,
            quota_bytes: 1 << 20,
            archive_bytes_max: 1 << 20,
            metered_bytes_max: None,
            unix_s: 1_796_083_200,
            minute: Some(3 * 60),
        }
    }

    /// The decision about the golden entry after `change`.
    fn check(
        change: impl FnOnce(&mut Entry, &mut Custom, &mut Known<'_>, &mut Facts<'_>),
        expected: Decision,
    ) {
        let (mut entry, mut custom, mut known, mut facts) = (entry(), custom(), Known::default(), facts());
        change(&mut entry, &mut custom, &mut known, &mut facts);
        assert_eq!(decide(&entry, &custom, 40_000, &known, &facts), expected);
    }

    fn refuse(change: impl FnOnce(&mut Entry, &mut Custom, &mut Known<'_>, &mut Facts<'_>), reason: Reason) {
        check(change, Decision::Refuse(reason));
    }

    #[test]
    fn what_both_signed_and_fits_is_installed() {
        check(|_, _, _, _| {}, Decision::Install);
    }

    #[test]
    fn what_is_active_is_left_alone_even_when_blocked_or_paused() {
        let digest = entry().digest;
        let known = Known { active: Some((3, &digest)), blocked: Some("x"), ..Known::default() };
        let paused = Entry { state: EntryState::Paused, ..entry() };
        assert_eq!(decide(&paused, &custom(), 1, &known, &facts()), Decision::Current);
    }

    #[test]
    fn paused_aborted_and_unknown_wait() {
        check(|e, _, _, _| e.state = EntryState::Paused, Decision::Wait(Reason::Paused));
        check(|e, _, _, _| e.state = EntryState::Aborted, Decision::Wait(Reason::Aborted));
        check(|e, _, _, _| e.state = EntryState::Unknown, Decision::Wait(Reason::NotUnderstood("state")));
        for window in [serde_json::json!("2-4"), serde_json::json!({}), serde_json::json!("02:00-24:00")] {
            let reason = Reason::NotUnderstood("this window");
            check(|e, _, _, _| e.window = Some(window), Decision::Wait(reason));
        }
        let waves = vec![serde_json::json!({"pct": 1, "region": "north"})];
        check(|e, _, _, _| e.waves = waves, Decision::Wait(Reason::NotUnderstood("these waves")));
    }

    #[test]
    fn outside_its_wave_or_its_window_a_version_waits() {
        let waves = vec![serde_json::json!({"pct": 100, "from": "2026-12-01T00:00:01Z"})];
        let from = "2026-12-01T00:00:01Z".to_owned();
        let reason = Reason::Wave { bucket: BUCKET_NODE_1, pct: 100, from };
        check(|e, _, _, _| e.waves.clone_from(&waves), Decision::Wait(reason));
        check(
            |e, _, _, f| {
                e.waves.clone_from(&waves);
                f.unix_s += 1;
            },
            Decision::Install,
        );
        check(|e, _, _, _| e.window = Some("02:00-04:00".into()), Decision::Install);
        let closed = Reason::Window("04:00-06:00".into());
        check(|e, _, _, _| e.window = Some("04:00-06:00".into()), Decision::Wait(closed));
    }

    #[test]
    fn a_metered_link_carries_small_archives() {
        let reason = Reason::Metered { archive_bytes: 40_000, limit_bytes: 39_999 };
        check(|_, _, _, f| f.metered_bytes_max = Some(39_999), Decision::Wait(reason));
        check(|_, _, _, f| f.metered_bytes_max = Some(40_000), Decision::Install);
    }

    #[test]
    fn the_bucket_is_the_hash_modulo_ten_thousand() {
        // python3: int(hashlib.sha256(b"node-1lab-digits-3").hexdigest(), 16) % 10000
        assert_eq!(bucket("node-1", "lab-digits-3"), BUCKET_NODE_1);
        let pct = u8::try_from(BUCKET_NODE_1 / 100).unwrap();
        let waiting = Reason::Bucket { bucket: BUCKET_NODE_1, pct };
        check(|e, _, _, _| e.pct = pct, Decision::Wait(waiting));
        check(|e, _, _, _| e.pct = pct + 1, Decision::Install);
        check(|e, _, _, _| e.pct = 0, Decision::Wait(Reason::Bucket { bucket: BUCKET_NODE_1, pct: 0 }));
    }
    const BUCKET_NODE_1: u16 = 8767;

    #[test]
    fn rollout_and_team_must_name_the_same() {
        let digest = |rollout: &str, team: &str| Reason::Disagree {
            field: "digest",
            rollout: rollout.into(),
            team: team.into(),
        };
        refuse(|_, c, _, _| c.digest = A.into(), digest(&entry().digest, A));
        refuse(
            |_, c, _, _| c.version = 4,
            Reason::Disagree { field: "version", rollout: "3".into(), team: "4".into() },
        );
        refuse(
            |_, c, _, _| c.model = "letters".into(),
            Reason::Disagree { field: "model", rollout: "digits".into(), team: "letters".into() },
        );
        refuse(|_, _, k, _| k.team = Some("audio"), Reason::OtherTeam("audio".into()));
    }

    #[test]
    fn a_lower_version_needs_a_rollback_and_never_passes_the_teams_floor() {
        refuse(|_, _, k, _| k.version_floor = 4, Reason::BelowActive { version: 3, floor: 4 });
        check(
            |e, _, k, _| {
                k.version_floor = 4;
                e.rollback_to = Some(3);
            },
            Decision::Install,
        );
        refuse(
            |e, _, k, _| {
                k.version_floor = 4;
                e.rollback_to = Some(2);
            },
            Reason::BelowActive { version: 3, floor: 4 },
        );
        refuse(
            |e, _, k, _| {
                k.min_version = 4;
                e.rollback_to = Some(3);
            },
            Reason::BelowMinimum { version: 3, min: 4 },
        );
    }

    #[test]
    fn a_blocked_or_often_tried_digest_is_refused() {
        refuse(|_, _, k, _| k.blocked = Some("self-test"), Reason::Blocked("self-test".into()));
        refuse(|_, _, k, _| k.attempts = 3, Reason::Attempts(3));
        check(|_, _, k, _| k.attempts = 2, Decision::Install);
    }

    #[test]
    fn processor_runtime_memory_and_disk_must_fit() {
        let arm = vec!["arm".to_owned()];
        let wanted = arm.clone();
        refuse(|_, c, _, _| c.arch = arm, Reason::Arch { wanted, have: "x86_64".into() });
        check(|_, c, _, _| c.arch = vec![], Decision::Install);
        for wanted in ["0.1.1", "0.10.0", "1.0.0", "soon", "1.0"] {
            let reason = Reason::Runtime { wanted: wanted.into(), have: "0.1.0".into() };
            refuse(|_, c, _, _| c.min_runtime = Some(wanted.into()), reason);
        }
        refuse(
            |_, c, _, _| c.peak_ram_bytes = Some((64 << 20) + 1),
            Reason::Memory { needed_bytes: (64 << 20) + 1, limit_bytes: 64 << 20 },
        );
        refuse(
            |_, _, _, f| f.archive_bytes_max = 39_999,
            Reason::Archive { archive_bytes: 40_000, limit_bytes: 39_999 },
        );
        let needed_bytes = 40_000 + 81_920;
        refuse(
            |_, _, _, f| f.free_bytes = needed_bytes - 1,
            Reason::Disk { needed_bytes, available_bytes: needed_bytes - 1, which: "free space" },
        );
        refuse(
            |_, _, _, f| f.quota_bytes = 0,
            Reason::Disk { needed_bytes, available_bytes: 0, which: "quota" },
        );
    }
}
