//! TUF on the device, and the only file that names the library.
//!
//! Every session starts at the pinned root and walks the cached chain again, so a writable cache can only ever
//! lose time. What the cache must not lose are the rollback floors: those are kept in the store's state as well,
//! and nothing is installed when writing either of them failed.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sigstore_tuf::transport::FetchFuture;
use sigstore_tuf::{Error, MetadataStore, Repository, Root, Targets, TrustedMetadataSet, UpdaterConfig};

use crate::clock::{self, Now};
use crate::crypto;
use crate::download::Archive;
use crate::fs::{self, FileSystem};
use crate::rollout::{Custom, ROLLOUT_LEN_MAX, Target};
use crate::source::{FetchError, Source};
use crate::state::{Floors, RoleFloor};

/// Bytes of one metadata file. Stops endless data from filling memory.
const METADATA_LEN_MAX: u64 = 5_000_000;
/// Our extension of the timestamp: when it was signed, so that a device without a clock learns the time.
const ISSUED: &str = "x-tractd-issued";

/// Why what the registry gave is not believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The pinned root itself cannot be used.
    #[error("the pinned root cannot be used: {0}")]
    PinnedRoot(String),
    /// Too old by its own word. Active models are not touched by it.
    #[error("{role} metadata expired at {expires}; nothing new is installed until it is renewed")]
    Expired {
        /// The role.
        role: String,
        /// When.
        expires: String,
    },
    /// Not signed by enough of the right keys.
    #[error("{role} metadata: {found} of {threshold} signatures are valid")]
    Signatures {
        /// The role.
        role: String,
        /// Valid ones.
        found: usize,
        /// Needed ones.
        threshold: usize,
    },
    /// Older than what this device has seen.
    #[error("{role} metadata went back from version {known} to {offered}")]
    Rollback {
        /// The role.
        role: String,
        /// Seen before.
        known: u64,
        /// Offered now.
        offered: u64,
    },
    /// A file is not the one its parent vouches for.
    #[error("metadata does not fit together: {0}")]
    Mismatch(String),
    /// Not the metadata it should be.
    #[error("metadata cannot be used: {0}")]
    Malformed(String),
    /// The rollback floors could not be written or read back: installing now would forget them.
    #[error("verified metadata could not be saved, so nothing is installed: {0}")]
    NotDurable(String),
}

/// Either kind of trouble a session meets.
#[derive(Debug)]
pub(crate) enum SessionError {
    Fetch(FetchError),
    Verify(VerifyError),
}

/// Checks that `root_json` is signed by its own keys to its own threshold.
///
/// # Errors
/// Says why not.
pub(crate) fn check_root(root_json: &[u8]) -> Result<(), String> {
    crypto::install();
    TrustedMetadataSet::from_root(root_json).map(drop).map_err(|e| chain(&e))
}

/// What a session needs of the device.
pub(crate) struct Anchor<'a> {
    pub(crate) root_json: &'a [u8],
    /// Folder of the metadata cache.
    pub(crate) cache: PathBuf,
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) floors: &'a Floors,
    /// The time, the saved floor counted in.
    pub(crate) now: Now,
    /// The time without it: what counts once the key that vouched for the floor is gone.
    pub(crate) without_floor: Now,
}

/// Fresh, verified metadata of one registry.
#[derive(Debug)]
pub(crate) struct Session {
    updater: sigstore_tuf::Updater,
    cache: Arc<Cache>,
    trouble: Arc<Mutex<Option<FetchError>>>,
    time: Timestamp,
    now: Now,
    floors: Floors,
}

/// A target its roles vouch for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vouched {
    pub(crate) archive: Archive,
    pub(crate) custom: Option<Value>,
    /// Highest `min_version` the same roles sign for any version of the model.
    pub(crate) min_version: u64,
}

impl Session {
    /// Walks root, timestamp, snapshot and targets up to the registry's newest, against `anchor`'s floors.
    pub(crate) fn refresh(anchor: &Anchor<'_>, source: Source) -> Result<Self, SessionError> {
        crypto::install();
        let trouble = Arc::new(Mutex::new(None));
        let cache =
            Arc::new(Cache { fs: anchor.fs.clone(), dir: anchor.cache.clone(), failed: Mutex::new(None) });
        let mut limits = UpdaterConfig::default();
        limits.target_max_length = ROLLOUT_LEN_MAX;
        let repository = Fetcher { source, trouble: trouble.clone() };
        let updater = sigstore_tuf::Updater::new(repository, anchor.root_json)
            .map_err(|e| SessionError::Verify(VerifyError::PinnedRoot(chain(&e))))?
            .with_config(limits)
            .with_store(cache.clone());
        let mut session = Self {
            updater,
            cache,
            trouble,
            time: timestamp(anchor.now.unix_s),
            now: anchor.now,
            floors: Floors::default(),
        };
        let mut refreshed = ready(session.updater.refresh(session.time));
        if matches!(refreshed, Err(Error::Expired { .. })) && session.floor_is_void(anchor) {
            // A stolen timestamp key may have signed a time far ahead. Its successor's word counts from here.
            session.now = anchor.without_floor;
            session.time = timestamp(session.now.unix_s);
            refreshed = ready(session.updater.refresh(session.time));
        }
        session.map(refreshed)?;
        session.learn_time()?;
        session.floors = session.check_floors(anchor).map_err(SessionError::Verify)?;
        let (new, known) = (&session.floors, anchor.floors);
        if new != known {
            session.cache.sync((&new.anchor, new.root) != (&known.anchor, known.root));
        }
        session.durable()?;
        Ok(session)
    }

    /// What the store must remember before anything is installed.
    pub(crate) fn floors(&self) -> &Floors {
        &self.floors
    }

    /// The time expiry was checked against.
    pub(crate) fn now(&self) -> Now {
        self.now
    }

    /// When the earliest of root, timestamp, snapshot and targets expires, in Unix seconds.
    pub(crate) fn expires_s(&self) -> u64 {
        let trusted = self.updater.trusted();
        let mut earliest = trusted.root().expires;
        let others = [
            trusted.timestamp().map(|role| role.expires),
            trusted.snapshot().map(|role| role.expires),
            trusted.targets_role("targets").map(|role| role.expires),
        ];
        for expires in others.into_iter().flatten() {
            earliest = earliest.min(expires);
        }
        unix_s(earliest)
    }

    /// The bytes of a small target, verified; `None` when no role names it.
    pub(crate) fn small_target(&mut self, path: &str) -> Result<Option<Vec<u8>>, SessionError> {
        let bytes = ready(self.updater.get_target(path, self.time));
        let bytes = match bytes {
            Err(Error::TargetNotFound(_)) => None,
            other => Some(self.map(other)?),
        };
        self.durable()?;
        Ok(bytes)
    }

    /// What the roles say about a model's archive; `None` when none names it.
    pub(crate) fn vouched(&mut self, path: &str) -> Result<Option<Vouched>, SessionError> {
        let info = ready(self.updater.get_target_info(path, self.time));
        let info = self.map(info)?;
        self.durable()?;
        let Some(info) = info else { return Ok(None) };
        let Some(sha256) = info.hashes.get("sha256") else {
            let message = format!("{path} is signed without a SHA-256");
            return Err(SessionError::Verify(VerifyError::Malformed(message)));
        };
        let location = if self.updater.trusted().root().consistent_snapshot {
            match path.rsplit_once('/') {
                Some((dir, name)) => format!("{dir}/{sha256}.{name}"),
                None => format!("{sha256}.{path}"),
            }
        } else {
            path.to_owned()
        };
        let archive = Archive { location, sha256: sha256.clone(), bytes: info.length };
        Ok(Some(Vouched { archive, custom: info.custom, min_version: self.min_version(path) }))
    }

    /// Over every version of the model that a loaded role may and does vouch for.
    fn min_version(&self, path: &str) -> u64 {
        let Ok(target) = Target::parse(path) else { return 0 };
        let trusted = self.updater.trusted();
        let Some(top) = trusted.targets_role("targets") else { return 0 };
        let of_model = |other: &str| {
            Target::parse(other).is_ok_and(|o| (o.team, o.model) == (target.team, target.model))
        };
        let highest = |role: &Targets, may: &dyn Fn(&str) -> bool| {
            let targets = role.targets.iter().filter(|(path, _)| of_model(path) && may(path));
            let customs = targets.filter_map(|(_, file)| Custom::parse(file.custom.as_ref()?).ok());
            customs.map(|custom| custom.min_version).max().unwrap_or(0)
        };
        let delegated = top.delegations.iter().flat_map(|delegations| &delegations.roles);
        let delegated = delegated.filter_map(|role| {
            let may = |path: &str| role.matches_path(path).unwrap_or(false);
            Some(highest(trusted.targets_role(&role.name)?, &may))
        });
        delegated.max().unwrap_or(0).max(highest(top, &|_| true))
    }

    /// A timestamp signed later than our clock says moves the clock: expiry counts from there.
    fn learn_time(&mut self) -> Result<(), SessionError> {
        let trusted = self.updater.trusted();
        let issued = trusted.timestamp().and_then(|role| role.extra.get(ISSUED)?.as_str()?.parse().ok());
        let Some(issued) = issued.filter(|issued: &Timestamp| *issued > self.time) else { return Ok(()) };
        let still_fresh = trusted
            .check_root_expired(issued)
            .and_then(|()| trusted.check_timestamp_expired(issued))
            .and_then(|()| trusted.check_snapshot_expired(issued));
        self.time = issued;
        self.now = Now { unix_s: unix_s(issued), untrusted: true };
        self.map(still_fresh)
    }

    /// Whether the timestamp has other keys than those that vouched for the saved time.
    fn floor_is_void(&self, anchor: &Anchor<'_>) -> bool {
        let known = &anchor.floors.timestamp.keys;
        !known.is_empty() && *known != role_keys(self.updater.trusted().root(), "timestamp")
    }

    fn check_floors(&self, anchor: &Anchor<'_>) -> Result<Floors, VerifyError> {
        let trusted = self.updater.trusted();
        let root = trusted.root();
        let name = hex::encode(Sha256::digest(anchor.root_json));
        // Provisioned anew with another root: another history, with versions of its own.
        let known = if anchor.floors.anchor == name { anchor.floors.clone() } else { Floors::default() };
        let role = |role: &'static str, known: &RoleFloor, version: u64| {
            let keys = role_keys(root, role);
            if known.keys == keys && version < known.version {
                return Err(rollback(role, known.version, version));
            }
            Ok(RoleFloor { version, keys })
        };
        if root.version < known.root {
            return Err(rollback("root", known.root, root.version));
        }
        let not_refreshed = || VerifyError::Malformed("the registry has no timestamp or snapshot".into());
        let timestamp = trusted.timestamp().ok_or_else(not_refreshed)?;
        let snapshot = trusted.snapshot().ok_or_else(not_refreshed)?;
        let saved_s = if self.floor_is_void(anchor) { 0 } else { anchor.floors.time_s };
        let time_s = clock::floor(saved_s, self.now, self.expires_s());
        let time_s = if clock::worth_saving(saved_s, time_s) { time_s } else { saved_s };
        Ok(Floors {
            anchor: name,
            root: root.version,
            timestamp: role("timestamp", &known.timestamp, timestamp.version)?,
            snapshot: role("snapshot", &known.snapshot, snapshot.version)?,
            time_s,
        })
    }

    fn durable(&self) -> Result<(), SessionError> {
        match &*self.cache.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(message) => Err(SessionError::Verify(VerifyError::NotDurable(message.clone()))),
            None => Ok(()),
        }
    }

    /// The library tells transport trouble as text; what really happened was put aside by the fetcher.
    fn map<T>(&self, result: Result<T, Error>) -> Result<T, SessionError> {
        result.map_err(|error| {
            let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (error, trouble) {
                (Error::Transport { .. }, Some(trouble)) => SessionError::Fetch(trouble),
                (Error::Transport { message, .. }, None) => SessionError::Fetch(FetchError::Missing(message)),
                (error, _) => SessionError::Verify(verify_error(error)),
            }
        })
    }
}

fn verify_error(error: Error) -> VerifyError {
    match error {
        Error::Expired { role, expires } => VerifyError::Expired { role, expires: expires.to_string() },
        Error::ThresholdNotMet { role, found, threshold } => {
            VerifyError::Signatures { role, found, threshold }
        }
        Error::Rollback { role, trusted, new } => {
            VerifyError::Rollback { role, known: trusted, offered: new }
        }
        Error::IntegrityMismatch(message) => VerifyError::Mismatch(message),
        other => VerifyError::Malformed(chain(&other)),
    }
}

fn rollback(role: &str, known: u64, offered: u64) -> VerifyError {
    VerifyError::Rollback { role: role.to_owned(), known, offered }
}

fn role_keys(root: &Root, role: &str) -> String {
    let mut keys = root.role(role).map(|role| role.keyids.clone()).unwrap_or_default();
    keys.sort();
    keys.join(",")
}

fn timestamp(unix_s: u64) -> Timestamp {
    i64::try_from(unix_s).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(Timestamp::MAX)
}

fn unix_s(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or(0)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Runs a future that never waits: the library is async, our fetcher blocks inside its polls.
fn ready<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(Error::transport("the verifier waited for something that is not ours")),
    }
}

struct Fetcher {
    source: Source,
    trouble: Arc<Mutex<Option<FetchError>>>,
}

impl Fetcher {
    fn put_aside<T>(&self, result: Result<T, FetchError>) -> Result<T, Error> {
        result.map_err(|trouble| {
            let error = Error::transport(trouble.to_string());
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
            error
        })
    }
}

impl Repository for Fetcher {
    fn fetch_metadata<'a>(&'a self, name: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(async move { self.put_aside(self.source.metadata(name, max_length)) })
    }

    fn fetch_target<'a>(&'a self, path: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(async move { self.put_aside(self.source.small(path, max_length).map(Some)) })
    }
}

/// The metadata cache. The library only logs its failures; here they are kept, and end the session.
#[derive(Debug)]
struct Cache {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    failed: Mutex<Option<String>>,
}

impl Cache {
    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        let harmless = |segment: &str| !segment.is_empty() && segment != "." && segment != "..";
        if name.split('/').all(harmless) && !name.contains('\0') {
            Ok(self.dir.join(name))
        } else {
            Err(Error::Malformed(format!("unsafe name {name:?}")))
        }
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(&*self.fs, path, METADATA_LEN_MAX) {
            Ok(bytes) => Ok(bytes),
            // Not a floor any more; the state's own floors still hold.
            Err(e) if e.kind() == std::io::ErrorKind::FileTooLarge => Ok(None),
            Err(e) => Err(self.latch(path, e)),
        }
    }

    fn latch(&self, path: &Path, source: std::io::Error) -> Error {
        let context = path.display().to_string();
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(format!("{context}: {source}"));
        Error::Io { context, source }
    }
}

impl Cache {
    /// Makes the names of all that was written so far durable, whichever process wrote it. Due before the floors move:
    /// the snapshot here is the floor of every role it lists, and the chain of roots has to reach as far as theirs.
    /// What is fetched later is pinned by that snapshot; lost, it is fetched again.
    fn sync(&self, with_roots: bool) {
        let roots = with_roots.then(|| self.dir.join("root_history"));
        for dir in roots.into_iter().chain([self.dir.clone()]) {
            // What went wrong is kept for `Session::durable`.
            let _ = self.fs.sync_dir(&dir).map_err(|e| self.latch(&dir, e));
        }
    }
}

impl MetadataStore for Cache {
    fn load(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.read(&self.path(name)?)
    }

    fn store(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        // The library keeps each snapshot under its version too and never reads that; it would only pile up.
        if name != "snapshot.json" && name.ends_with(".snapshot.json") {
            return Ok(());
        }
        let path = self.path(name)?;
        // A device whose registry has nothing new writes nothing.
        if self.read(&path)?.is_some_and(|old| old == bytes) {
            return Ok(());
        }
        fs::write_whole(&*self.fs, &path, bytes).map_err(|e| self.latch(&path, e))
    }
}
