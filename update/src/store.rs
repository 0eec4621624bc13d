//! Models on disk: bundles by digest, and the one place that says which are active.
//!
//! ```text
//! store/lock                       held by the daemon
//! store/state.{a,b}.json           see `state`
//! store/bundles/sha256-<hex>/      an unpacked bundle, complete whenever the folder has this name
//! store/blobs/<hex>                an archive or its beginning, named by its SHA-256 and hashed at each use
//! store/staging/<hex>.dir          an unpacking under way
//! ```

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tractd_bundle::{Bundle, Digest, Limits, OpenError};

use crate::download::Spent;
use crate::fs::{self, Disk, FileSystem, Files};
use crate::state::{Blocked, Floors, Installed, Loaded, Model, OnTrial, Release, State};
use crate::trial::Stage;

/// Where the verified metadata of a device lies, beside its store.
pub(crate) const CACHE: &str = "tuf";

/// The crash-safe store of a device. One process at a time: opening takes a lock.
#[derive(Debug)]
pub struct Store {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    state: State,
    /// Digests whose folder did not hash to its name: to be fetched again.
    damaged: BTreeSet<Digest>,
    /// A save failed half-way: the disk may hold either state, so nothing may be collected.
    in_doubt: bool,
    _lock: Box<dyn Debug + Send>,
}

/// Why the store could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// Both state files are unusable; what is active is unknown and no floor is left.
    #[error("the store's state is damaged ({0}); provision the device again with an empty store")]
    Damaged(String),
    /// Nothing of that name is installed.
    #[error("model {0:?} is not installed")]
    NotInstalled(String),
    /// The bundle on disk is not the one that was activated.
    #[error("the files of {name} {version} changed on disk: expected {expected}, found {found}")]
    Changed {
        /// The model.
        name: String,
        /// Its version.
        version: u64,
        /// The digest that was activated.
        expected: Digest,
        /// The digest of what lies there.
        found: Digest,
    },
    /// The bundle on disk cannot be opened.
    #[error("the files of {name} {version} cannot be opened: {source}")]
    Unreadable {
        /// The model.
        name: String,
        /// Its version.
        version: u64,
        /// Why.
        source: OpenError,
    },
}

impl Store {
    /// Opens, or creates, the store below `state_dir`.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Damaged`], or what the file system says.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(Disk), state_dir)
    }

    /// The same on another file system.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(fs: Arc<dyn FileSystem>, state_dir: &Path) -> Result<Self, StoreError> {
        Self::open_beside(fs, state_dir, &[CACHE])
    }

    /// The same with these other folders in `state_dir`, whose names become durable together with its own.
    pub(crate) fn open_beside(
        fs: Arc<dyn FileSystem>,
        state_dir: &Path,
        others: &[&str],
    ) -> Result<Self, StoreError> {
        let dir = state_dir.join("store");
        fs::create_dir_durable(&*fs, state_dir).map_err(io_at(state_dir))?;
        let inside = ["bundles", "blobs", "staging"].map(|name| dir.join(name));
        let folders = [dir.clone()].into_iter().chain(others.iter().map(|name| state_dir.join(name)));
        let mut is_new = false;
        for folder in folders {
            is_new |= fs::create_dir(&*fs, &folder).map_err(io_at(&folder))?;
        }
        for folder in inside {
            // Durable with the first state saved beside them: nothing is in them before.
            fs::create_dir(&*fs, &folder).map_err(io_at(&folder))?;
        }
        let lock_path = dir.join("lock");
        let lock = fs.lock(&lock_path).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => StoreError::Locked(dir.clone()),
            _ => io_at(&lock_path)(e),
        })?;
        let state = match State::load(&*fs, &dir).map_err(io_at(&dir))? {
            Loaded::Fresh => {
                // Whoever made the folders may have died before the sync.
                is_new = true;
                State::new()
            }
            Loaded::Damaged(message) => return Err(StoreError::Damaged(message)),
            Loaded::State { state, damaged } => {
                if let Some(message) = damaged {
                    log::warn!("one state file of the store is damaged, the other one counts: {message}");
                }
                *state
            }
        };
        if is_new {
            fs.sync_dir(state_dir).map_err(io_at(state_dir))?;
        }
        let store = Self { fs, dir, state, damaged: BTreeSet::new(), in_doubt: false, _lock: lock };
        store.sweep_unpacking()?;
        Ok(store)
    }

    /// Every active model, by name.
    #[must_use]
    pub fn active(&self) -> Vec<Installed> {
        self.state.models.keys().filter_map(|name| self.installed(name)).collect()
    }

    /// The active version of one model.
    #[must_use]
    pub fn installed(&self, name: &str) -> Option<Installed> {
        let model = self.state.models.get(name)?;
        let active = model.active.as_ref()?;
        Some(Installed {
            name: name.to_owned(),
            version: active.version,
            digest: active.digest,
            dir: self.bundle_dir(&active.digest),
            team: model.team.clone(),
            rollout: active.rollout.clone(),
            previous: model.previous.clone(),
            trial: model.trial,
        })
    }

    /// The latest time this device saw signed, in Unix seconds.
    #[must_use]
    pub fn time_floor_s(&self) -> u64 {
        self.state.floors.time_s
    }

    /// Versions that were refused or taken back, oldest first.
    #[must_use]
    pub fn blocked(&self) -> &[Blocked] {
        &self.state.blocked
    }

    /// Opens the active bundle of `name` and hashes it: what comes back is what was activated.
    ///
    /// A bundle that fails here is fetched again by the next check.
    ///
    /// # Errors
    /// [`StoreError::NotInstalled`], [`StoreError::Changed`], [`StoreError::Unreadable`].
    pub fn bundle(&mut self, name: &str, limits: &Limits) -> Result<Bundle, StoreError> {
        let installed = self.installed(name).ok_or_else(|| StoreError::NotInstalled(name.to_owned()))?;
        let opened = self.open_release(name, installed.version, installed.digest, limits);
        if opened.is_err() {
            self.damaged.insert(installed.digest);
        }
        opened
    }

    /// The same for what a revert would put back.
    ///
    /// # Errors
    /// As [`Store::bundle`].
    pub fn previous_bundle(&self, name: &str, limits: &Limits) -> Result<Bundle, StoreError> {
        let previous = self.installed(name).and_then(|installed| installed.previous);
        let previous = previous.ok_or_else(|| StoreError::NotInstalled(name.to_owned()))?;
        self.open_release(name, previous.version, previous.digest, limits)
    }

    fn open_release(
        &self,
        name: &str,
        version: u64,
        digest: Digest,
        limits: &Limits,
    ) -> Result<Bundle, StoreError> {
        let name = name.to_owned();
        match Bundle::open_in(&Files(&*self.fs), &self.bundle_dir(&digest), limits) {
            Ok(bundle) if bundle.digest == digest => Ok(bundle),
            Ok(bundle) => Err(StoreError::Changed { name, version, expected: digest, found: bundle.digest }),
            Err(source) => Err(StoreError::Unreadable { name, version, source }),
        }
    }

    /// Makes `release` the active version of `name`; what was active becomes the previous one. The commit point:
    /// after a power cut during this call the device has exactly the old or exactly the new version.
    ///
    /// The bundle's folder must lie in the store already. `min_version` is the lowest version its team allows from
    /// now on. It is on trial for `healthy_s` seconds; with 0 there is none.
    ///
    /// # Errors
    /// What the file system says; in memory the old version is then still active.
    pub fn activate(
        &mut self,
        name: &str,
        team: &str,
        release: Release,
        min_version: u64,
        healthy_s: u64,
    ) -> Result<Installed, StoreError> {
        self.commit(|state| {
            let model = model(state, name, team);
            model.min_version = model.min_version.max(min_version);
            team.clone_into(&mut model.team);
            let old = model.active.replace(release.clone());
            // Fetched again because its files were damaged: what lay before it is still the way back.
            if old.as_ref().is_some_and(|old| old.digest == release.digest) {
                return;
            }
            // A version that never came through its trial is no way back.
            if model.trial.take().is_none() {
                model.previous = old;
            }
            if healthy_s == 0 {
                model.version_floor = model.version_floor.max(release.version);
            } else {
                let stage = if model.previous.is_some() { Stage::Shadow } else { Stage::All };
                model.trial = Some(OnTrial { stage, healthy_s, starts: 1 });
            }
        })?;
        self.damaged.remove(&release.digest);
        Ok(self.installed(name).expect("it was activated above"))
    }

    /// Remembers how far the trial of `name` is.
    ///
    /// # Errors
    /// What the file system says.
    pub fn enter_stage(&mut self, name: &str, stage: Stage) -> Result<(), StoreError> {
        self.change_trial(name, |trial| trial.stage = stage)
    }

    /// Counts a process that begins with `name` on trial, before it loads it: one that crashes cannot count
    /// itself afterwards.
    ///
    /// # Errors
    /// What the file system says.
    pub fn count_start(&mut self, name: &str) -> Result<(), StoreError> {
        self.change_trial(name, |trial| trial.starts = trial.starts.saturating_add(1))
    }

    /// Takes back the start of a process that ends in order.
    ///
    /// # Errors
    /// What the file system says.
    pub fn forget_start(&mut self, name: &str) -> Result<(), StoreError> {
        self.change_trial(name, |trial| trial.starts = trial.starts.saturating_sub(1))
    }

    fn change_trial(&mut self, name: &str, change: impl FnOnce(&mut OnTrial)) -> Result<(), StoreError> {
        if self.installed(name).is_none_or(|installed| installed.trial.is_none()) {
            return Ok(());
        }
        self.commit(|state| {
            if let Some(trial) = state.models.get_mut(name).and_then(|model| model.trial.as_mut()) {
                change(trial);
            }
        })
    }

    /// Ends the trial of `name`: its version is good, and nothing below it is taken any more.
    ///
    /// # Errors
    /// What the file system says.
    pub fn settle(&mut self, name: &str) -> Result<(), StoreError> {
        self.commit(|state| {
            let Some(model) = state.models.get_mut(name) else { return };
            model.trial = None;
            let version = model.active.as_ref().map_or(0, |active| active.version);
            model.version_floor = model.version_floor.max(version);
        })
    }

    /// Puts the previous version back, for good: the digest that was active is blocked for its rollout.
    /// Without a previous version the model is gone, and `None` comes back.
    ///
    /// # Errors
    /// [`StoreError::NotInstalled`], or what the file system says.
    pub fn revert(&mut self, name: &str, reason: &str) -> Result<Option<Installed>, StoreError> {
        let bad = self.installed(name).ok_or_else(|| StoreError::NotInstalled(name.to_owned()))?;
        let blocked = Blocked {
            rollout: bad.rollout,
            digest: bad.digest.to_hex(),
            reason: reason.to_owned(),
            model: bad.name,
            version: bad.version,
            taken_back: true,
        };
        self.commit(|state| {
            state.block(blocked);
            if let Some(model) = state.models.get_mut(name) {
                model.active = model.previous.take();
                model.trial = None;
            }
        })?;
        Ok(self.installed(name))
    }

    /// Bytes of bundles, blobs and downloads.
    ///
    /// # Errors
    /// What the file system says.
    pub fn used_bytes(&self) -> Result<u64, StoreError> {
        ["bundles", "blobs", "staging"].iter().try_fold(0u64, |sum, folder| {
            let path = self.dir.join(folder);
            Ok(sum.saturating_add(tree_bytes(&*self.fs, &path).map_err(io_at(&path))?))
        })
    }

    /// Bytes a writer may still use on the store's file system.
    ///
    /// # Errors
    /// What the file system says.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.fs.free_bytes(&self.dir).map_err(io_at(&self.dir))
    }

    /// Removes what is neither active nor previous, and every download but those of the archives in `wanted`
    /// (64 hex digits each).
    ///
    /// # Errors
    /// What the file system says; whatever was not removed is found next time.
    pub fn collect(&mut self, wanted: &BTreeSet<String>) -> Result<(), StoreError> {
        if self.in_doubt {
            return Ok(());
        }
        let models = self.state.models.values();
        let kept = models.flat_map(|model| model.active.iter().chain(&model.previous));
        let kept: BTreeSet<PathBuf> = kept.map(|release| self.bundle_dir(&release.digest)).collect();
        for folder in ["bundles", "blobs", "staging"] {
            let folder = self.dir.join(folder);
            for path in self.fs.list(&folder).map_err(io_at(&folder))? {
                let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                if kept.contains(&path) || wanted.contains(stem) {
                    continue;
                }
                // Not synced: what a power cut brings back is removed next time.
                fs::remove(&*self.fs, &path).map_err(io_at(&path))?;
            }
        }
        Ok(())
    }

    pub(crate) fn fs(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The active version and digest of a model whose files are, as far as known, sound.
    pub(crate) fn sound(&self, name: &str) -> Result<Option<(u64, Digest)>, StoreError> {
        let Some(installed) = self.installed(name) else { return Ok(None) };
        let there = self.fs.meta(&installed.dir).map_err(io_at(&installed.dir))?.is_some();
        let sound = there && !self.damaged.contains(&installed.digest);
        Ok(sound.then_some((installed.version, installed.digest)))
    }

    pub(crate) fn bundle_dir(&self, digest: &Digest) -> PathBuf {
        self.dir.join("bundles").join(format!("sha256-{}", digest.to_hex()))
    }

    pub(crate) fn blob(&self, archive: &str) -> PathBuf {
        self.dir.join("blobs").join(archive)
    }

    pub(crate) fn unpacking(&self, archive: &str) -> PathBuf {
        self.dir.join("staging").join(format!("{archive}.dir"))
    }

    /// Makes an unpacked folder durable and gives it its name in the store.
    pub(crate) fn adopt(&self, unpacked: &Path, digest: &Digest) -> Result<PathBuf, StoreError> {
        let dir = self.bundle_dir(digest);
        fs::sync_tree(&*self.fs, unpacked).map_err(io_at(unpacked))?;
        fs::remove(&*self.fs, &dir).map_err(io_at(&dir))?;
        self.fs.rename(unpacked, &dir).map_err(io_at(&dir))?;
        // The name it had before may come back after a power cut, and is swept then.
        let bundles = self.dir.join("bundles");
        self.fs.sync_dir(&bundles).map_err(io_at(&bundles))?;
        Ok(dir)
    }

    /// Counts a try, durably, before it: a try that takes the daemon down is counted too.
    pub(crate) fn count_attempt(&mut self, rollout: &str, digest: &str) -> Result<u32, StoreError> {
        let mut count = 0;
        self.commit(|state| count = state.count_attempt(rollout, digest))?;
        Ok(count)
    }

    pub(crate) fn forget_attempt(&mut self, rollout: &str, digest: &str) -> Result<(), StoreError> {
        self.commit(|state| state.forget_attempt(rollout, digest))
    }

    pub(crate) fn block(&mut self, blocked: Blocked) -> Result<(), StoreError> {
        self.commit(|state| state.block(blocked))
    }

    /// Remembers, durably, what a download cost.
    pub(crate) fn spend(&mut self, rollout: &str, digest: &str, spent: Spent) -> Result<(), StoreError> {
        self.commit(|state| state.spend(rollout, digest, spent))
    }

    pub(crate) fn save_floors(&mut self, floors: Floors) -> Result<(), StoreError> {
        if self.state.floors == floors {
            return Ok(());
        }
        self.commit(|state| state.floors = floors)
    }

    fn commit(&mut self, change: impl FnOnce(&mut State)) -> Result<(), StoreError> {
        let mut next = self.state.clone();
        change(&mut next);
        next.sequence = self.state.sequence + 1;
        self.in_doubt = true;
        next.save(&*self.fs, &self.dir).map_err(io_at(&self.dir))?;
        self.in_doubt = false;
        self.state = next;
        Ok(())
    }

    fn sweep_unpacking(&self) -> Result<(), StoreError> {
        let staging = self.dir.join("staging");
        for path in self.fs.list(&staging).map_err(io_at(&staging))? {
            if path.extension().is_some_and(|extension| extension == "dir") {
                fs::remove(&*self.fs, &path).map_err(io_at(&path))?;
            }
        }
        Ok(())
    }
}

/// The latest time the device below `state_dir` saw signed, in Unix seconds; 0 where nothing tells. Takes no lock and
/// writes nothing: for who needs the time before the store is opened.
#[must_use]
pub fn time_floor_s(state_dir: &Path) -> u64 {
    match State::load(&Disk, &state_dir.join("store")) {
        Ok(Loaded::State { state, .. }) => state.floors.time_s,
        Ok(Loaded::Fresh | Loaded::Damaged(_)) | Err(_) => 0,
    }
}

fn model<'a>(state: &'a mut State, name: &str, team: &str) -> &'a mut Model {
    state.models.entry(name.to_owned()).or_insert_with(|| Model {
        team: team.to_owned(),
        active: None,
        previous: None,
        version_floor: 0,
        min_version: 0,
        trial: None,
    })
}

fn tree_bytes(fs: &dyn FileSystem, dir: &Path) -> io::Result<u64> {
    fs.list(dir)?.iter().try_fold(0u64, |sum, path| {
        let bytes = match fs.meta(path)? {
            Some(meta) if meta.is_dir => tree_bytes(fs, path)?,
            Some(meta) => meta.len,
            None => 0,
        };
        Ok(sum.saturating_add(bytes))
    })
}

pub(crate) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_path_buf();
    move |source| StoreError::Io { path, source }
}
