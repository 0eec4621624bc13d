//! What a publisher asks for, and what came of it.

use std::path::PathBuf;
use std::time::Duration;

use crate::documents::Wave;
use crate::keys::KeyInfo;

/// Seconds a trial must stay healthy, unless the publisher says otherwise: with its first quarter in the shadow
/// and its second answering a tenth, a fault has minutes to show.
pub const HEALTHY_SECS: u64 = 300;

/// How to set a registry up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Keys of the root role.
    pub root_keys: usize,
    /// How many of them must sign a root.
    pub root_threshold: usize,
    /// scrypt work factor (log2) of key files; `None` lets each take about a second to open.
    pub work_factor: Option<u8>,
}

impl Default for Options {
    fn default() -> Self {
        Self { root_keys: 3, root_threshold: 2, work_factor: None }
    }
}

/// A team that may sign models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    /// The team.
    pub team: String,
    /// Public halves of its keys; none has one made here.
    pub keys: Vec<KeyInfo>,
    /// How many of them must sign.
    pub threshold: usize,
}

impl Delegate {
    /// With one key, made here.
    #[must_use]
    pub fn new(team: &str) -> Self {
        Self { team: team.to_owned(), keys: Vec::new(), threshold: 1 }
    }
}

/// Other keys for a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotate {
    /// The role: `root`, `targets`, `snapshot`, `timestamp`, `rollout`, `team-vision`.
    pub role: String,
    /// Names of the keys that go; `None` for all.
    pub remove: Option<Vec<String>>,
    /// Public halves of the keys that come; none has as many made here as go.
    pub add: Vec<KeyInfo>,
    /// How many must sign from now on; `None` for as many as before.
    pub threshold: Option<usize>,
}

impl Rotate {
    /// Every key of the role for a new one, made here.
    #[must_use]
    pub fn new(role: &str) -> Self {
        Self { role: role.to_owned(), remove: None, add: Vec::new(), threshold: None }
    }
}

/// A file that waits for signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The role.
    pub role: String,
    /// The version it will be.
    pub version: u64,
    /// Where it lies; copy it to where the keys are.
    pub path: PathBuf,
    /// Signatures still needed; 0 when the next refresh takes it in.
    pub missing: usize,
}

/// A staged file somebody looked at or signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedFile {
    /// The role.
    pub role: String,
    /// The version it will be.
    pub version: u64,
    /// What it says, for people: expiry first, then keys and targets.
    pub lines: Vec<String>,
    /// Names of the keys that signed.
    pub signers: Vec<String>,
}

/// An artifact signed by a team.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The model.
    pub model: String,
    /// Its version.
    pub version: u64,
    /// Digest of the bundle, 64 hex digits.
    pub digest: String,
    /// Target path.
    pub target: String,
    /// Length of the archive.
    pub bytes: u64,
    /// False when exactly this was signed before.
    pub new: bool,
}

/// How many of a group's devices a rollout is for. A device stays where it is in line: who is among 5 % is among 25 %.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// This many percent, at once.
    Percent(u8),
    /// Growing shares in percent.
    Waves {
        /// As in 5, 25, 100.
        pcts: Vec<u8>,
        /// Time from one wave to the next; `None` for as long as it takes until somebody opens it.
        every: Option<Duration>,
    },
}

/// What to roll out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The model.
    pub model: String,
    /// Its version, added before.
    pub version: u64,
    /// Which devices.
    pub group: String,
    /// How many of them, and when.
    pub share: Share,
    /// When in the day devices may take it, in UTC, as in `22:00-04:00`; over midnight when it ends earlier than it
    /// begins. `None` for always.
    pub window: Option<String>,
    /// Allow devices to go back to it from a higher version.
    pub rollback: bool,
    /// Seconds a device's trial must stay healthy; 0 for none.
    pub healthy_secs: u64,
    /// A new rollout even if this version is out already: devices that refused it try again.
    pub restart: bool,
}

impl Publish {
    /// The version to the whole group, going forward.
    #[must_use]
    pub fn new(model: &str, version: u64, group: &str) -> Self {
        let (model, group) = (model.to_owned(), group.to_owned());
        Self {
            model,
            version,
            group,
            share: Share::Percent(100),
            window: None,
            rollback: false,
            healthy_secs: HEALTHY_SECS,
            restart: false,
        }
    }
}

/// A rollout that is out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The rollout's id.
    pub id: String,
    /// Target path of its artifact.
    pub target: String,
    /// Digest of the bundle, 64 hex digits.
    pub digest: String,
    /// Version of the rollout role.
    pub rollout_version: u64,
    /// As [`crate::Entry`] has them.
    pub pct: u8,
    /// The same.
    pub waves: Vec<Wave>,
}

/// Where a role stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleStatus {
    /// The role.
    pub role: String,
    /// Version of its newest metadata.
    pub version: u64,
    /// Unix seconds.
    pub expires_s: u64,
}

/// What [`crate::Registry::refresh`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Roles whose staged file came into force.
    pub accepted: Vec<String>,
    /// Roles signed anew.
    pub renewed: Vec<String>,
    /// Roles that are due, and wait for signatures of keys that are not here.
    pub due: Vec<String>,
}
