//! What the store holds active, and the trials of versions among it.

use super::{Command, Updates};
use crate::{
    fleet::{Candidate, LoadFailed, SignedModel},
    trial::{Failed, Watch},
};
use std::{sync::Arc, time::Duration};
use tractd_bundle::{Bundle, Digest, Limits};
use tractd_update::{
    Installed, Store, StoreError, Updater,
    trial::{Fault, Rules, Stage, Step},
};

impl Updates {
    /// Opens and hashes what is active and not yet known; drops what no longer is.
    pub(super) fn open_active(&mut self, store: &mut Store) {
        let active = store.active();
        self.signed.retain(|name, _| active.iter().any(|installed| installed.name == *name));
        self.watches.retain(|name, watch| {
            active.iter().any(|m| m.name == *name && m.digest == watch.digest() && m.trial.is_some())
        });
        for installed in active {
            let model = match installed.trial {
                Some(trial) => self.open_trial(store, &installed, trial.stage, trial.healthy_s),
                None => self.open_settled(store, &installed),
            };
            self.signed.insert(installed.name, model);
        }
    }

    fn open_settled(&self, store: &mut Store, installed: &Installed) -> SignedModel {
        // After a trial that rolled back there may be news of a version that is not this one.
        let told = self.board.status().models.get(&installed.name).cloned();
        if told.is_none_or(|told| told.version <= installed.version) {
            self.show(&installed.name, installed.version, "committed", None, None);
        }
        let previous = installed.previous.as_ref().map(|release| release.version);
        let (name, version, digest) = (&installed.name, installed.version, installed.digest);
        let bundle = self.opened(name, digest, || store.bundle(name, &Limits::default()));
        SignedModel { version, digest, previous, bundle, watch: None, candidate: None }
    }

    /// A version on trial, and the one before it, which answers meanwhile; without one it answers itself.
    fn open_trial(
        &mut self,
        store: &mut Store,
        installed: &Installed,
        stage: Stage,
        healthy_s: u64,
    ) -> SignedModel {
        let name = &installed.name;
        self.show(name, installed.version, "trial", Some(stage), None);
        let watch = match self.watches.get(name) {
            Some(watch) => watch.clone(),
            None => self.watch(installed, stage, healthy_s),
        };
        self.watches.insert(name.clone(), watch.clone());
        let bundle = self.opened(name, installed.digest, || store.bundle(name, &Limits::default()));
        let Some(before) = &installed.previous else {
            let (version, digest, watch) = (installed.version, installed.digest, Some(watch));
            return SignedModel { version, digest, previous: None, bundle, watch, candidate: None };
        };
        let incumbent = self.opened(name, before.digest, || store.previous_bundle(name, &Limits::default()));
        SignedModel {
            version: before.version,
            digest: before.digest,
            previous: None,
            bundle: incumbent,
            watch: None,
            candidate: Some(Candidate { bundle, watch }),
        }
    }

    /// The bundle of that digest, as it was opened before, or opened and hashed now.
    fn opened(
        &self,
        name: &str,
        digest: Digest,
        open: impl FnOnce() -> Result<Bundle, StoreError>,
    ) -> Result<Bundle, String> {
        let known = self.signed.get(name).and_then(|known| known.opened(digest));
        known.unwrap_or_else(|| open().map_err(|error| error.to_string()))
    }

    fn watch(&self, installed: &Installed, stage: Stage, healthy_s: u64) -> Arc<Watch> {
        let rules = Rules {
            healthy: Duration::from_secs(healthy_s),
            slower_max: self.config.slower_max,
            differ_percent_max: self.config.differ_percent_max,
        };
        let (floor, commands) = (self.floor.clone(), self.commands.clone());
        // Off the requests' path at once, whatever this thread is at; for good once it hears of it.
        let alarm = move |failed: Failed| {
            floor.withdraw(&failed.name);
            drop(commands.send(Command::TrialFailed(failed)));
        };
        Arc::new(Watch::new(&installed.name, installed.digest, rules, stage, Box::new(alarm)))
    }

    /// Does what the time leads to.
    pub(super) fn look_at_trials(&mut self, updater: Option<&mut Updater>) {
        let Some(updater) = updater else { return };
        let due = self.watches.iter().filter_map(|(name, watch)| Some((name.clone(), watch.due()?)));
        let due: Vec<(String, Step)> = due.collect();
        for (name, step) in due {
            let store = updater.store_mut();
            let done = match step {
                Step::Next(stage) => store.enter_stage(&name, stage),
                Step::Commit => store.settle(&name),
            };
            if let Err(error) = done {
                log::error!(model = &*name; "its trial cannot go on: {error}");
                continue;
            }
            if let Some(watch) = self.watches.get(&name) {
                watch.advance(step);
            }
            match step {
                Step::Next(stage) => log::info!(model = &*name, stage = stage.name(); "trial goes on"),
                Step::Commit => log::info!(model = &*name; "trial over: the version is committed"),
            }
            self.open_active(store);
            self.tell_fleet();
        }
    }

    pub(super) fn trial_failed(&mut self, updater: Option<&mut Updater>, failed: &Failed) {
        let Some(updater) = updater else { return };
        let store = updater.store_mut();
        let model = store.installed(&failed.name);
        let Some(model) = model.filter(|m| m.digest == failed.digest && m.trial.is_some()) else { return };
        let stage = model.trial.map_or("trial", |trial| trial.stage.name());
        log::error!(model = &*model.name, version = model.version, stage; "trial failed: {}", failed.fault);
        if let Err(error) = self.take_back(store, &model, &failed.fault) {
            log::error!(model = &*failed.name; "update not taken back: {error}");
            return;
        }
        self.open_active(store);
        self.tell_fleet();
    }

    /// Puts the version before back, for good.
    pub(super) fn take_back(
        &self,
        store: &mut Store,
        model: &Installed,
        fault: &Fault,
    ) -> Result<(), StoreError> {
        let stage = model.trial.map(|trial| trial.stage);
        let reason = match stage {
            Some(stage) => format!("trial ({}): {fault}", stage.name()),
            None => fault.to_string(),
        };
        let back = store.revert(&model.name, &reason)?;
        let to = back.map(|model| model.version);
        log::error!(model = &*model.name, version = model.version, to:?; "update taken back: {reason}");
        self.show(&model.name, model.version, "rolled-back", stage, Some(reason));
        Ok(())
    }

    /// An active version that cannot be loaded here is taken back: when it is on trial, or when it is new and there
    /// is one to go back to.
    pub(super) fn not_loaded(&mut self, updater: Option<&mut Updater>, failed: LoadFailed) {
        let Some(updater) = updater else { return };
        let store = updater.store_mut();
        let model = store.installed(&failed.name).filter(|model| model.digest == failed.digest);
        let Some(model) = model else { return };
        let new = self.fresh.contains(&failed.digest) && model.previous.is_some();
        if model.trial.is_none() && !new {
            return;
        }
        match self.take_back(store, &model, &Fault::NotLoaded(failed.reason)) {
            Ok(()) => {
                self.open_active(store);
                self.tell_fleet();
            }
            Err(error) => log::error!(model = &*failed.name; "update not taken back: {error}"),
        }
    }
}

impl SignedModel {
    /// The bundle of that digest, if it is among what was opened.
    fn opened(&self, digest: Digest) -> Option<Result<Bundle, String>> {
        let candidate = self.candidate.as_ref().map(|candidate| &candidate.bundle);
        let mut opened = std::iter::once(&self.bundle).chain(candidate);
        opened.find(|bundle| bundle.as_ref().is_ok_and(|bundle| bundle.digest == digest)).cloned()
    }
}
