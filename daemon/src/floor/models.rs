//! Models come and go, and versions on trial beside them.

use super::{Absent, Floor, Loaded, Model, Pending, State};
use crate::trial::Watch;
use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};
use tokio::sync::watch;
use tractd_bundle::Digest;
use tractd_scheduler::{Job, Mode, ModelId, OutOfMemory, Reason, Refused, Route, SlotId};
use tractd_update::trial::Version;

/// Longest a swap waits for busy workers to prepare their sessions; the others prepare theirs at their next job.
const PREPARE_WAIT: Duration = Duration::from_secs(1);

impl Floor {
    /// Makes a loaded model the one that answers to its name. Requests that run end on the version they started
    /// with; queued ones go to the new one. The former version is freed after its last run. `watch` is set when it
    /// is on trial, with no version before it.
    pub(crate) fn install(&self, loaded: Loaded, watch: Option<Arc<Watch>>) -> Result<(), OutOfMemory> {
        let name = loaded.name.clone();
        let (mut state, slot) = self.add(loaded)?;
        let former = state.models.remove(&name);
        let id = former.as_ref().map_or_else(
            || {
                state.models_made += 1;
                ModelId(state.models_made)
            },
            |model| model.id,
        );
        state.scheduler.set_route(id, Route::to(slot)).expect("the slot was just added");
        state.absent.remove(&*name);
        state.trials.extend(watch.map(|watch| (slot, (watch, Version::Candidate))));
        state.models.insert(name, Model { id, slot, candidate: None });
        let former = former.into_iter().flat_map(|model| model.slots());
        let orphans = former.flat_map(|slot| state.remove_slot(slot)).collect();
        drop(state);
        self.release(orphans);
        self.announce();
        Ok(())
    }

    /// Takes a slot, and waits until the workers have sessions for it.
    fn add(&self, loaded: Loaded) -> Result<(MutexGuard<'_, State>, SlotId), OutOfMemory> {
        let mut state = self.state();
        let slot = state.scheduler.add_slot(loaded.peak_bytes, loaded.service_us)?;
        state.slots.insert(slot, Arc::new(loaded));
        state.generation += 1;
        let generation = state.generation;
        self.work.notify_all();
        // Requests keep going to the former version until the workers have sessions for the new one.
        let (state, _) = self
            .settled
            .wait_timeout_while(state, PREPARE_WAIT, |state| {
                !state.stopping && state.prepared.iter().any(|prepared| *prepared < generation)
            })
            .expect("nothing panics under the lock of the floor");
        Ok((state, slot))
    }

    /// Puts a loaded version on trial beside the one that answers to its name.
    pub(crate) fn install_candidate(&self, loaded: Loaded, watch: Arc<Watch>) -> Result<(), OutOfMemory> {
        let name = loaded.name.clone();
        self.withdraw(&name);
        let (mut state, slot) = self.add(loaded)?;
        let model = state.models.get_mut(&name).expect("the fleet loads the version before first");
        model.candidate = Some(slot);
        let stable = model.slot;
        state.trials.insert(stable, (watch.clone(), Version::Incumbent));
        state.trials.insert(slot, (watch, Version::Candidate));
        state.follow_stage(&name);
        drop(state);
        self.announce();
        Ok(())
    }

    /// The trial of `name` is at another stage: routes as that stage wants it.
    pub(crate) fn follow_stage(&self, name: &str) {
        self.state().follow_stage(name);
        self.announce();
    }

    /// The version on trial is the one that answers from now on.
    pub(crate) fn promote(&self, name: &str) {
        self.end_trial(name, Version::Candidate);
    }

    /// The version on trial is gone, and the one before answers alone.
    pub(crate) fn withdraw(&self, name: &str) {
        self.end_trial(name, Version::Incumbent);
    }

    fn end_trial(&self, name: &str, winner: Version) {
        let mut state = self.state();
        let Some(model) = state.models.get_mut(name) else { return };
        let Some(candidate) = model.candidate.take() else { return };
        let (stays, goes) = match winner {
            Version::Candidate => (candidate, model.slot),
            Version::Incumbent => (model.slot, candidate),
        };
        model.slot = stays;
        let id = model.id;
        state.scheduler.set_route(id, Route::to(stays)).expect("both versions had a share of the route");
        state.trials.remove(&stays);
        let orphans = state.remove_slot(goes);
        drop(state);
        self.release(orphans);
        self.announce();
    }

    /// The trial of a version that had none before it is over.
    pub(crate) fn end_lone_trial(&self, name: &str) {
        let mut state = self.state();
        let lone = state.models.get(name).filter(|model| model.candidate.is_none()).map(|model| model.slot);
        if let Some(slot) = lone {
            state.trials.remove(&slot);
        }
    }

    /// The version on trial beside the one that answers.
    pub(crate) fn candidate(&self, name: &str) -> Option<Digest> {
        let state = self.state();
        let slot = state.models.get(name)?.candidate?;
        Some(state.slots[&slot].plan.digest())
    }

    /// Takes a model away; its queued requests are answered that it is gone.
    pub(crate) fn remove(&self, name: &str) {
        let mut state = self.state();
        let Some(model) = state.models.remove(name) else { return };
        let mut orphans = state.scheduler.remove_model(model.id);
        for slot in model.slots() {
            orphans.extend(state.remove_slot(slot));
        }
        drop(state);
        self.refuse_all(orphans, Reason::UnknownModel, 0);
        self.announce();
    }

    /// Jobs whose slot went away: who asked for that version is told, the others go where the route leads now.
    fn release(&self, orphans: Vec<Job<Pending>>) {
        for job in orphans {
            let pinned = job.payload.pinned;
            let refused = if pinned {
                Refused { job, reason: Reason::UnknownModel, retry_after_ms: 0 }
            } else {
                let submitted = self.state().scheduler.submit(self.now(), Job { pin: None, ..job });
                let Err(refused) = submitted else { continue };
                refused
            };
            self.refuse(refused);
        }
        self.work.notify_all();
    }

    /// Takes a crashed version out; everybody waiting for it is told.
    pub(crate) fn quarantine(&self, slot: SlotId) {
        let orphans = self.state().scheduler.quarantine(slot);
        self.refuse_all(orphans, Reason::Quarantined, 0);
        self.announce();
    }

    /// Remembers why a model is not served.
    pub(crate) fn set_absent(&self, name: &str, absent: Option<Absent>) {
        let mut state = self.state();
        match absent {
            Some(absent) => state.absent.insert(name.to_owned(), absent),
            None => state.absent.remove(name),
        };
        drop(state);
        self.announce();
    }

    /// The version that answers to a name, and whether it is quarantined.
    pub(crate) fn loaded(&self, name: &str) -> Option<(Arc<Loaded>, bool)> {
        let state = self.state();
        let slot = state.models.get(name)?.slot;
        Some((state.slots[&slot].clone(), state.scheduler.is_quarantined(slot)))
    }

    /// Every version that answers, whether it is quarantined, and how many requests wait for it.
    pub(crate) fn all_loaded(&self) -> Vec<(Arc<Loaded>, bool, usize)> {
        let state = self.state();
        let of = |model: &Model| {
            let loaded = state.slots[&model.slot].clone();
            (loaded, state.scheduler.is_quarantined(model.slot), state.scheduler.queued(model.id))
        };
        state.models.values().map(of).collect()
    }

    /// Counts up whenever the list of models changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells everyone that the list of models changed.
    pub(crate) fn announce(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }
}

impl State {
    fn follow_stage(&mut self, name: &str) {
        let Some(&Model { id, slot, candidate: Some(candidate) }) = self.models.get(name) else { return };
        let share = self.trials.get(&candidate).map_or(0, |(watch, _)| watch.stage().share());
        let mode = if share == 0 { Mode::Shadow } else { Mode::Canary };
        let route = Route { stable: slot, candidate: Some(candidate), mode, share };
        self.scheduler.set_route(id, route).expect("both slots are there");
    }

    fn remove_slot(&mut self, slot: SlotId) -> Vec<Job<Pending>> {
        self.slots.remove(&slot);
        self.trials.remove(&slot);
        self.generation += 1;
        self.scheduler.remove_slot(slot).expect("no route leads to a former slot")
    }
}
