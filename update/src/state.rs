//! What the store remembers, and the two slots it is kept in.
//!
//! `state.a.json` and `state.b.json` alternate. Each carries a sequence number and a CRC over its exact bytes;
//! the newest sound one counts. A slot is written whole beside the old one and renamed, so a power cut costs at
//! most the write that was under way: that rename is the commit point of an update.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tractd_bundle::Digest;

use crate::download::Spent;
use crate::fs::{self, FileSystem};
use crate::trial::Stage;

/// Bytes of a slot: thousands of models.
const SLOT_LEN_MAX: u64 = 16 << 20;
/// Refusals and attempts remembered; the oldest go first.
const HISTORY_MAX: usize = 256;

/// One version of a model on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The bundle's version.
    pub version: u64,
    /// The bundle's digest; names its folder.
    pub digest: Digest,
    /// The rollout it came by.
    pub rollout: String,
}

/// A model the store holds active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The model.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// The bundle's digest.
    pub digest: Digest,
    /// The unpacked bundle.
    pub dir: PathBuf,
    /// The team that signed it.
    pub team: String,
    /// The rollout it came by.
    pub rollout: String,
    /// What a revert would put back; while on trial, the incumbent.
    pub previous: Option<Release>,
    /// Set while it is on trial.
    pub trial: Option<OnTrial>,
}

/// How far a version's trial is, as the next process will find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnTrial {
    /// The stage.
    pub stage: Stage,
    /// Seconds the whole trial must stay healthy.
    pub healthy_s: u64,
    /// Processes that began with it and have not ended in order: the present one, and those that crashed.
    pub starts: u32,
}

/// A version that was refused, and stays so for its rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    pub(crate) rollout: String,
    pub(crate) digest: String,
    /// Why.
    pub reason: String,
    /// The model; empty in states of daemons before trials.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Its version; 0 where the model is empty.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: u64,
    /// Whether it was active, and taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub taken_back: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) schema: u32,
    pub(crate) sequence: u64,
    pub(crate) models: BTreeMap<String, Model>,
    pub(crate) blocked: Vec<Blocked>,
    pub(crate) attempts: Vec<Attempts>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) downloads: Vec<Downloads>,
    pub(crate) floors: Floors,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Model {
    pub(crate) team: String,
    pub(crate) active: Option<Release>,
    pub(crate) previous: Option<Release>,
    /// Highest version that ever was active and came through its trial.
    pub(crate) version_floor: u64,
    /// Highest `min_version` its team ever signed.
    pub(crate) min_version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trial: Option<OnTrial>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempts {
    pub(crate) rollout: String,
    pub(crate) digest: String,
    pub(crate) count: u32,
}

/// What fetching an archive for a rollout cost so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Downloads {
    pub(crate) rollout: String,
    pub(crate) digest: String,
    pub(crate) tries: u32,
    pub(crate) bytes: u64,
}

/// Lowest versions and time the verifier may believe, beside the metadata cache: a lost or swapped cache must
/// not lower them. Those of a role fall with its keys, which only the root can change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Floors {
    /// SHA-256 of the pinned root the versions belong to, in hex.
    pub(crate) anchor: String,
    pub(crate) root: u64,
    pub(crate) timestamp: RoleFloor,
    pub(crate) snapshot: RoleFloor,
    /// Unix seconds.
    pub(crate) time_s: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoleFloor {
    pub(crate) version: u64,
    /// The keys the version was signed with, as the root names them, sorted and joined.
    pub(crate) keys: String,
}

#[derive(Serialize, Deserialize)]
struct Slot<'a> {
    /// CRC-32 (IEEE) of the bytes of `state`, 8 hex digits.
    crc32: &'a str,
    #[serde(borrow)]
    state: &'a RawValue,
}

/// What reading both slots found.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// Neither slot was ever written.
    Fresh,
    /// The newest sound one; `damaged` when a slot was there that could not be used.
    State { state: Box<State>, damaged: Option<String> },
    /// Slots are there and none is sound.
    Damaged(String),
}

impl State {
    pub(crate) fn new() -> Self {
        Self { schema: 1, ..Self::default() }
    }

    pub(crate) fn block(&mut self, blocked: Blocked) {
        self.blocked.retain(|b| !(b.rollout == blocked.rollout && b.digest == blocked.digest));
        self.blocked.push(blocked);
        trim(&mut self.blocked);
    }

    pub(crate) fn blocked(&self, rollout: &str, digest: &str) -> Option<&str> {
        let found = self.blocked.iter().find(|b| b.rollout == rollout && b.digest == digest);
        found.map(|b| b.reason.as_str())
    }

    pub(crate) fn count_attempt(&mut self, rollout: &str, digest: &str) -> u32 {
        let count = self.attempts(rollout, digest) + 1;
        self.attempts.retain(|a| !(a.rollout == rollout && a.digest == digest));
        self.attempts.push(Attempts { rollout: rollout.into(), digest: digest.into(), count });
        trim(&mut self.attempts);
        count
    }

    /// A try that came to nothing through no fault of what was tried.
    pub(crate) fn forget_attempt(&mut self, rollout: &str, digest: &str) {
        for attempts in &mut self.attempts {
            if attempts.rollout == rollout && attempts.digest == digest {
                attempts.count = attempts.count.saturating_sub(1);
            }
        }
    }

    pub(crate) fn attempts(&self, rollout: &str, digest: &str) -> u32 {
        self.attempts.iter().find(|a| a.rollout == rollout && a.digest == digest).map_or(0, |a| a.count)
    }

    pub(crate) fn spent(&self, rollout: &str, digest: &str) -> Spent {
        let found = self.downloads.iter().find(|d| d.rollout == rollout && d.digest == digest);
        found.map_or(Spent::default(), |d| Spent { tries: d.tries, bytes: d.bytes })
    }

    pub(crate) fn spend(&mut self, rollout: &str, digest: &str, spent: Spent) {
        self.downloads.retain(|d| !(d.rollout == rollout && d.digest == digest));
        let (rollout, digest) = (rollout.into(), digest.into());
        self.downloads.push(Downloads { rollout, digest, tries: spent.tries, bytes: spent.bytes });
        trim(&mut self.downloads);
    }

    /// Writes the state into the slot its sequence number names.
    pub(crate) fn save(&self, fs: &dyn FileSystem, dir: &Path) -> io::Result<()> {
        fs::write_atomic(fs, &slot_path(dir, self.sequence), self.encode().as_bytes())
    }

    pub(crate) fn load(fs: &dyn FileSystem, dir: &Path) -> io::Result<Loaded> {
        let mut newest: Option<State> = None;
        let mut damaged = None;
        for path in [slot_path(dir, 0), slot_path(dir, 1)] {
            let Some(bytes) = fs::read(fs, &path, SLOT_LEN_MAX)? else { continue };
            match Self::decode(&bytes) {
                Ok(state) if newest.as_ref().is_none_or(|n| n.sequence < state.sequence) => {
                    newest = Some(state);
                }
                Ok(_) => {}
                Err(message) => damaged = Some(format!("{}: {message}", path.display())),
            }
        }
        Ok(match (newest, damaged) {
            (Some(state), damaged) => Loaded::State { state: Box::new(state), damaged },
            (None, Some(message)) => Loaded::Damaged(message),
            (None, None) => Loaded::Fresh,
        })
    }

    fn encode(&self) -> String {
        let state = serde_json::value::to_raw_value(self).expect("a state of strings and numbers is JSON");
        let crc32 = crc(state.get().as_bytes());
        serde_json::to_string(&Slot { crc32: &crc32, state: &state }).expect("as above")
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let slot: Slot<'_> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let state = slot.state.get();
        if crc(state.as_bytes()) != slot.crc32 {
            return Err("its CRC does not match".into());
        }
        let state: Self = serde_json::from_str(state).map_err(|e| e.to_string())?;
        if state.schema != 1 {
            return Err(format!("schema {} is newer than this daemon", state.schema));
        }
        Ok(state)
    }
}

fn is_zero(version: &u64) -> bool {
    *version == 0
}

fn slot_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(if sequence.is_multiple_of(2) { "state.a.json" } else { "state.b.json" })
}

fn crc(bytes: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(bytes))
}

fn trim<T>(list: &mut Vec<T>) {
    if list.len() > HISTORY_MAX {
        list.drain(..list.len() - HISTORY_MAX);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::fs::Disk;

    const GOLDEN: &str = include_str!("../tests/golden/state-1.json");

    fn release(version: u64) -> Release {
        Release { version, digest: Digest([version as u8; 32]), rollout: format!("lab-digits-{version}") }
    }

    fn state(sequence: u64) -> State {
        let model = Model {
            team: "vision".into(),
            active: Some(release(3)),
            previous: Some(release(2)),
            version_floor: 3,
            min_version: 2,
            trial: None,
        };
        let mut state = State { sequence, ..State::new() };
        state.models.insert("digits".into(), model);
        state.block(blocked("lab-digits-4", &"04".repeat(32), "golden vector 0 is off by 0.5"));
        state.count_attempt("lab-digits-4", &"04".repeat(32));
        state.floors = Floors {
            anchor: "ab".repeat(32),
            root: 1,
            timestamp: RoleFloor { version: 9, keys: "k1".into() },
            snapshot: RoleFloor { version: 8, keys: "k2".into() },
            time_s: 1_793_491_200,
        };
        state
    }

    /// As daemons before trials wrote it.
    fn blocked(rollout: &str, digest: &str, reason: &str) -> Blocked {
        let (rollout, digest, reason) = (rollout.into(), digest.into(), reason.into());
        Blocked { rollout, digest, reason, model: String::new(), version: 0, taken_back: false }
    }

    /// The same with a version on trial, and one taken back that says which it was.
    fn state_on_trial() -> State {
        let mut state = state(8);
        let model = state.models.get_mut("digits").expect("it is there");
        model.active = Some(release(5));
        model.trial = Some(OnTrial { stage: Stage::Canary, healthy_s: 300, starts: 2 });
        let named =
            Blocked { model: "digits".into(), version: 4, taken_back: true, ..state.blocked[0].clone() };
        state.block(named);
        state
    }

    fn load(dir: &Path) -> (u64, bool) {
        match State::load(&Disk, dir).unwrap() {
            Loaded::State { state, damaged } => (state.sequence, damaged.is_some()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_golden_state_reads_and_writes_the_same() {
        assert_eq!(State::decode(GOLDEN.trim_end().as_bytes()).unwrap(), state(7));
        assert_eq!(state(7).encode(), GOLDEN.trim_end());
    }

    #[test]
    fn the_golden_state_on_trial_reads_and_writes_the_same() {
        let golden = include_str!("../tests/golden/state-1-trial.json").trim_end();
        assert_eq!(State::decode(golden.as_bytes()).unwrap(), state_on_trial());
        assert_eq!(state_on_trial().encode(), golden);
    }

    #[test]
    fn every_flipped_byte_is_noticed_or_harmless() {
        for at in 0..GOLDEN.trim_end().len() {
            let mut bytes = GOLDEN.trim_end().as_bytes().to_vec();
            bytes[at] ^= 1;
            if let Ok(read) = State::decode(&bytes) {
                assert_eq!(read, state(7), "byte {at}");
            }
        }
    }

    #[test]
    fn slots_alternate_and_the_newest_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(State::load(&Disk, dir.path()).unwrap(), Loaded::Fresh));
        for sequence in 1..=3 {
            state(sequence).save(&Disk, dir.path()).unwrap();
        }
        assert_eq!(load(dir.path()), (3, false));
        assert!(dir.path().join("state.a.json").exists());
    }

    #[test]
    fn a_damaged_slot_leaves_the_other_one() {
        let dir = tempfile::tempdir().unwrap();
        state(2).save(&Disk, dir.path()).unwrap();
        state(3).save(&Disk, dir.path()).unwrap();
        let newer = dir.path().join("state.b.json");
        let whole = std::fs::read(&newer).unwrap();
        for bytes in [&whole[..whole.len() / 2], b"", b"{}", b"\0\0\0\0"] {
            std::fs::write(&newer, bytes).unwrap();
            assert_eq!(load(dir.path()), (2, true));
        }
    }

    #[test]
    fn two_damaged_slots_are_no_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("state.a.json"), b"").unwrap();
        assert!(matches!(State::load(&Disk, dir.path()).unwrap(), Loaded::Damaged(_)));
    }

    #[test]
    fn history_is_bounded_and_keeps_the_newest() {
        let mut state = State::new();
        for rollout in 0..HISTORY_MAX + 10 {
            state.block(blocked(&rollout.to_string(), "d", "r"));
        }
        assert_eq!(state.blocked.len(), HISTORY_MAX);
        assert_eq!(state.blocked("9", "d"), None);
        assert_eq!(state.blocked("265", "d"), Some("r"));
    }
}
