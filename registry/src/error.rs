//! Why the registry was not changed.

use std::io;
use std::path::{Path, PathBuf};

use tractd_bundle::UnpackError;

use crate::keys::KeyError;
use crate::metadata::MetadataError;

/// What a device reads of a rollout file, in entries.
pub(crate) const ENTRIES_MAX: usize = 1024;

/// Why the registry was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A metadata file of this registry.
    #[error("{path} {source}")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MetadataError,
    },
    /// There is one already.
    #[error("{0} holds a registry already")]
    Exists(PathBuf),
    /// There is none.
    #[error("{0} holds no registry; `init` makes one")]
    None(PathBuf),
    /// Another process writes it.
    #[error("{0} is being written by another process")]
    Locked(PathBuf),
    /// A name that cannot be a team, model or group.
    #[error("{what} {name:?} must match [a-z0-9][a-z0-9_-]{{0,62}}")]
    Name {
        /// `team`, `group`.
        what: &'static str,
        /// What was given.
        name: String,
    },
    /// No such team here.
    #[error("there is no team {0:?}; add it first")]
    NoTeam(String),
    /// The archive is no bundle.
    #[error("{path} is no bundle: {source}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        source: UnpackError,
    },
    /// Names are unique across teams.
    #[error("model {model:?} belongs to team {owner:?}")]
    OtherTeam {
        /// The model.
        model: String,
        /// Who has it.
        owner: String,
    },
    /// Versions never change.
    #[error("{model} {version} was signed before with another content; give it a new version")]
    Changed {
        /// The model.
        model: String,
        /// The version.
        version: u64,
    },
    /// No team signed it.
    #[error("no team signed {model} {version}; `add` it first")]
    NotAdded {
        /// The model.
        model: String,
        /// The version.
        version: u64,
    },
    /// The share is no percentage.
    #[error("{0} % is more than all devices")]
    Percent(u8),
    /// Waves must grow.
    #[error("waves {0:?} must be rising shares from 1 to 100 percent, less than a century apart")]
    Waves(Vec<u8>),
    /// A window nobody could read, or that never opens.
    #[error("window {0:?} is no two different times of the day in UTC, as in 22:00-04:00")]
    Window(String),
    /// There is nothing to open.
    #[error("rollout {0} has no further wave")]
    LastWave(String),
    /// Only what is active goes on.
    #[error("rollout {0} is paused; `resume` it first")]
    Paused(String),
    /// Devices would refuse it.
    #[error("{model} {version} is below {min_version}, the lowest version its team allows")]
    BelowMinimum {
        /// The model.
        model: String,
        /// Asked for.
        version: u64,
        /// Signed.
        min_version: u64,
    },
    /// A lower version is out, and no rollback was asked for.
    #[error("the group has {model} {current}; going back to {version} needs a rollback")]
    Backward {
        /// The model.
        model: String,
        /// Asked for.
        version: u64,
        /// Out now.
        current: u64,
    },
    /// A threshold no keys could meet, or none.
    #[error("{threshold} of {keys} {role} keys is no threshold")]
    Threshold {
        /// The role.
        role: String,
        /// Keys.
        keys: usize,
        /// Needed.
        threshold: usize,
    },
    /// The team is there already.
    #[error("team {0:?} is there already; `rotate` changes its keys")]
    TeamExists(String),
    /// No role of that name.
    #[error("there is no role {0:?}")]
    NoRole(String),
    /// The key is not one the role has now.
    #[error("{key:?} is none of the keys of {role}")]
    NotAKey {
        /// The key's name.
        key: String,
        /// The role.
        role: String,
    },
    /// Only a key here signs these, every day.
    #[error("the {0} key is not in the key folder")]
    KeyAway(String),
    /// Another change of the role waits for signatures: signing on top of it would sign it unseen.
    #[error("{path} waits for signatures: `sign` and `refresh` it first, or delete it")]
    Pending {
        /// The staged file.
        path: PathBuf,
    },
    /// The role moved on since it was staged.
    #[error("{path} was staged on version {on}, the registry has {current}; delete it and stage again")]
    Stale {
        /// The staged file.
        path: PathBuf,
        /// What it was built on.
        on: u64,
        /// What is there.
        current: u64,
    },
    /// Not `<version>.<role>.json`.
    #[error("{0} is no staged file: its name must be VERSION.ROLE.json and its content agree")]
    NotStaged(PathBuf),
    /// No rollout of this model for this group.
    #[error("group {group:?} has no rollout of {model:?}")]
    NoRollout {
        /// The group.
        group: String,
        /// The model.
        model: String,
    },
    /// Given up for good.
    #[error("rollout {0} was aborted; a new one needs `publish --again`")]
    Aborted(String),
    /// More models in a group than a device reads.
    #[error("group {0:?} has {ENTRIES_MAX} models already")]
    TooMany(String),
}

pub(crate) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> RegistryError + use<> {
    let path = path.to_path_buf();
    move |source| RegistryError::Io { path, source }
}
