//! Who gets what: the rollout files, signed by the `rollout` role.

use std::fs;
use std::time::SystemTime;

use jiff::Timestamp;

use crate::documents::{Entry, Rollout};
use crate::error::{ENTRIES_MAX, RegistryError, io_at};
use crate::metadata::{MetadataError, TargetFile, Targets, hashes};
use crate::registry::{Registry, check_name, timestamp};
use crate::request::{Publish, Published};
use crate::waves;

/// States of an entry.
const ACTIVE: &str = "active";
const PAUSED: &str = "paused";
const ABORTED: &str = "aborted";

/// What to do with a rollout that is out. Its id stays, and with it every device its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Devices that have not installed it wait.
    Pause,
    /// They go on. Waves by the clock that had not begun when it was paused come as far apart as before, from now.
    Resume,
    /// The next wave begins now.
    Next,
    /// Nobody installs it any more, for good. Devices that run it keep it: going back is a rollout of its own.
    Abort,
}

impl Registry {
    /// Tells a group's devices to run a version, and makes it and everything added so far visible.
    ///
    /// The share of a rollout that is out can be changed by publishing the same version again: it keeps its id,
    /// and with it every device its bucket.
    ///
    /// # Errors
    /// See [`RegistryError`]: among them waves that do not grow and windows that cannot be.
    pub fn publish(&mut self, what: &Publish, now: SystemTime) -> Result<Published, RegistryError> {
        check_name("group", &what.group)?;
        let now = timestamp(now);
        let (pct, waves) = waves::plan(&what.share, now)?;
        if let Some(window) = what.window.as_ref().filter(|window| !waves::is_window(window)) {
            return Err(RegistryError::Window(window.clone()));
        }
        let (model, version) = (what.model.clone(), what.version);
        let signed = self.signed(&model)?;
        let min_version = signed.iter().map(|(_, _, custom)| custom.min_version).max().unwrap_or(0);
        let Some((_, target, custom)) = signed.into_iter().find(|(_, _, custom)| custom.version == version)
        else {
            return Err(RegistryError::NotAdded { model, version });
        };
        if version < min_version {
            return Err(RegistryError::BelowMinimum { model, version, min_version });
        }

        let path = format!("rollout/{}.json", what.group);
        let (role_version, targets) = self.newest::<Targets>("rollout")?;
        let mut rollout = self.rollout(&path, &targets, &what.group)?;
        let before = rollout.entries.iter().find(|entry| entry.model == model);
        if let Some(before) = before.filter(|before| before.version > version && !what.rollback) {
            return Err(RegistryError::Backward { model, version, current: before.version });
        }
        let same = before.filter(|entry| entry.digest == custom.digest && !what.restart);
        if let Some(aborted) = same.filter(|entry| entry.state == ABORTED) {
            return Err(RegistryError::Aborted(aborted.id.clone()));
        }
        let id = same.map_or_else(
            || format!("{}-{model}-{version}-r{}", what.group, role_version + 1),
            |entry| entry.id.clone(),
        );
        let entry = Entry {
            id: id.clone(),
            model: model.clone(),
            target: target.clone(),
            digest: custom.digest.clone(),
            version,
            state: ACTIVE.into(),
            pct,
            waves: waves.clone(),
            window: what.window.clone(),
            healthy_secs: what.healthy_secs,
            abort: serde_json::json!({}),
            rollback_to: what.rollback.then_some(version),
        };
        rollout.entries.retain(|entry| entry.model != model);
        rollout.entries.push(entry);
        rollout.entries.sort_by(|a, b| a.model.cmp(&b.model));
        if rollout.entries.len() > ENTRIES_MAX {
            return Err(RegistryError::TooMany(what.group.clone()));
        }

        let rollout_version = self.write_rollout(&path, &rollout, role_version, targets, now)?;
        Ok(Published { id, target, digest: custom.digest, rollout_version, pct, waves })
    }

    /// Pauses, resumes or aborts a group's rollout of a model, or opens its next wave. The entry as it is out from now on comes back.
    ///
    /// # Errors
    /// [`RegistryError::NoRollout`], [`RegistryError::Aborted`], [`RegistryError::Paused`],
    /// [`RegistryError::LastWave`], and as [`Registry::publish`].
    pub fn steer(
        &mut self,
        group: &str,
        model: &str,
        action: Action,
        now: SystemTime,
    ) -> Result<Entry, RegistryError> {
        check_name("group", group)?;
        let path = format!("rollout/{group}.json");
        let (role_version, targets) = self.newest::<Targets>("rollout")?;
        let mut rollout = self.rollout(&path, &targets, group)?;
        let entry = rollout.entries.iter_mut().find(|entry| entry.model == model);
        let (group, model) = (group.to_owned(), model.to_owned());
        let entry = entry.ok_or(RegistryError::NoRollout { group, model })?;
        let now = timestamp(now);
        if entry.state == ABORTED && action != Action::Abort {
            return Err(RegistryError::Aborted(entry.id.clone()));
        }
        let paused = entry.state == PAUSED;
        let state = match action {
            Action::Pause => {
                waves::hold(entry, now);
                PAUSED
            }
            Action::Resume => {
                if paused {
                    waves::go_on(entry, now);
                }
                ACTIVE
            }
            Action::Next if paused => return Err(RegistryError::Paused(entry.id.clone())),
            Action::Next => {
                if !waves::open_next(entry, now) {
                    return Err(RegistryError::LastWave(entry.id.clone()));
                }
                ACTIVE
            }
            Action::Abort => ABORTED,
        };
        state.clone_into(&mut entry.state);
        let entry = entry.clone();
        self.write_rollout(&path, &rollout, role_version, targets, now)?;
        Ok(entry)
    }

    /// Every group's rollouts.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn rollouts(&self) -> Result<Vec<Rollout>, RegistryError> {
        let (_, targets) = self.newest::<Targets>("rollout")?;
        let groups = targets.targets.keys().filter_map(|path| {
            let group = path.strip_prefix("rollout/")?.strip_suffix(".json")?;
            Some((path, group))
        });
        groups.map(|(path, group)| self.rollout(path, &targets, group)).collect()
    }

    fn rollout(&self, path: &str, targets: &Targets, group: &str) -> Result<Rollout, RegistryError> {
        let Some(file) = targets.targets.get(path) else {
            return Ok(Rollout { schema: 1, group: group.to_owned(), entries: Vec::new() });
        };
        let place = self.target_path(path, &file.hashes);
        let bytes = fs::read(&place).map_err(io_at(&place))?;
        if hashes(&bytes) != file.hashes {
            let source = MetadataError::NotOurs("rollout".into());
            return Err(RegistryError::Metadata { path: place, source });
        }
        serde_json::from_slice(&bytes).map_err(|e| RegistryError::Metadata { path: place, source: e.into() })
    }

    fn write_rollout(
        &mut self,
        path: &str,
        rollout: &Rollout,
        role_version: u64,
        mut targets: Targets,
        now: Timestamp,
    ) -> Result<u64, RegistryError> {
        let mut bytes = serde_json::to_vec_pretty(rollout).expect("strings and numbers are JSON");
        bytes.push(b'\n');
        let file = TargetFile { length: bytes.len() as u64, hashes: hashes(&bytes), custom: None };
        self.write_target_file(path, &bytes)?;
        targets.targets.insert(path.to_owned(), file);
        self.write_targets("rollout", role_version + 1, targets.targets, None, now)?;
        self.release(now)?;
        Ok(role_version + 1)
    }
}
