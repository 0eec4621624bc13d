//! The thread that owns the store and asks the registry: at its interval, earlier on a hint, on SIGHUP, and when
//! somebody asks for it.
//!
//! A daemon that is not provisioned has such a thread too; it only says so.

mod failpoint;
mod self_test;

use crate::{
    certificates::Certificates,
    config,
    fleet::{Candidate, Command as FleetCommand, LoadFailed, Signed, SignedModel},
    floor::Floor,
    machine, metered,
    proofs::Proofs,
    trial::{Failed, Watch},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    hash::BuildHasher,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tractd_bundle::{Bundle, Digest, Limits};
use tractd_update::{
    Config, Device, Event, Installed, Outcome, Roots, Store, StoreError, Updater,
    source::Access,
    trial::{Fault, Rules, STARTS_MAX, Stage, Step},
};

/// The first check comes this soon after the start, before jitter.
const FIRST_CHECK: Duration = Duration::from_secs(2);
/// How often a trial's time is looked at; its faults come by themselves.
const TRIAL_LOOK: Duration = Duration::from_millis(200);
/// Metadata that expires within this time is warned of, in seconds: a registry renews its timestamp daily, so what
/// has less than half of that left was missed.
const EXPIRES_SOON_S: u64 = 12 * 3_600;
const MOVED: &str = "this state was provisioned on another machine; if its card was cloned, two devices have one name: provision anew";

/// What the thread is told.
pub(crate) enum Command {
    /// Ask the registry now; the report goes to whoever waits for it.
    Check(Option<Asker>),
    /// The registry may have something new: what the schedule does next, it does now. Hints that come during a check
    /// lead to one more, however many they are.
    Hint,
    /// The configuration changed.
    Configure(config::Update),
    /// A model of the store did not load.
    LoadFailed(LoadFailed),
    /// A version on trial showed itself bad.
    TrialFailed(Failed),
    /// End, after a check that is under way.
    Stop,
}

/// Who waits for a check's report. Dropped without one when the daemon ends.
pub(crate) type Asker = Box<dyn FnOnce(Report) + Send>;

/// What a check came to, as JSON tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// Whether the registry was asked and believed.
    pub(crate) ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Models activated, `name@version`.
    pub(crate) activated: Vec<String>,
    /// Versions refused for good, failed this time, or waiting for their turn.
    pub(crate) refused: Vec<Trouble>,
    pub(crate) failed: Vec<Trouble>,
    pub(crate) waiting: Vec<Trouble>,
    /// Whether the registry has no rollout for this device's group.
    pub(crate) no_rollout: bool,
    /// Whether the clock is behind what is known.
    pub(crate) clock_untrusted: bool,
}

/// A version and what is the matter with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Trouble {
    pub(crate) model: String,
    pub(crate) version: u64,
    pub(crate) reason: String,
}

/// What the status tells of updates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct UpdateStatus {
    pub(crate) provisioned: bool,
    pub(crate) enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) registry: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// What goes on now: `idle`, `checking`, `downloading`, `self-testing`.
    pub(crate) phase: &'static str,
    /// Of the present download.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) progress: Option<Progress>,
    /// End of the last check, in milliseconds of Unix time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_check_unix_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<Report>,
    /// What will hurt later: an expiry that is near, a clock behind what is known, a state moved here from another
    /// machine.
    pub(crate) warnings: Vec<String>,
    /// How far each model's latest version is, by model.
    pub(crate) models: BTreeMap<String, ModelUpdate>,
    /// Why the store or the device's identity cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// How far a version is on this device; also published over MQTT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ModelUpdate {
    pub(crate) version: u64,
    /// `waiting`, `found`, `downloading`, `self-testing`, `trial`, `committed`, `refused`, `failed` (to be tried
    /// again) or `rolled-back`.
    pub(crate) state: &'static str,
    /// Of a trial: `shadow`, `canary` or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stage: Option<&'static str>,
    /// Why it goes no further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// A download under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Progress {
    pub(crate) model: String,
    pub(crate) version: u64,
    pub(crate) bytes: u64,
    pub(crate) total_bytes: u64,
}

/// What the thread lets others see.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Written by the update thread, read for a status.
    status: Mutex<UpdateStatus>,
}

impl Board {
    pub(crate) fn status(&self) -> MutexGuard<'_, UpdateStatus> {
        self.status.lock().expect("nothing panics while writing the board")
    }
}

/// The thread's state.
pub(crate) struct Updates {
    pub(crate) config: config::Update,
    pub(crate) state_dir: PathBuf,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) board: Arc<Board>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) floor: Arc<Floor>,
    pub(crate) fleet: mpsc::Sender<FleetCommand>,
    /// Leads back here, for the alarms of trials.
    pub(crate) commands: mpsc::Sender<Command>,
    /// Digests activated by this daemon: only these are taken back when they do not load. One that worked before
    /// and fails after a restart fails for a reason that going back may not cure, and going back is for good.
    pub(crate) fresh: BTreeSet<Digest>,
    /// What the store holds active, opened and hashed.
    pub(crate) signed: BTreeMap<String, SignedModel>,
    /// Trials under way, by model.
    pub(crate) watches: BTreeMap<String, Arc<Watch>>,
}

/// The device's identity, read once at the start.
pub(crate) fn device(state_dir: &Path) -> Result<Option<Device>, String> {
    Device::open(state_dir).map_err(|error| error.to_string())
}

impl Updates {
    /// Runs until told to stop. Tells the fleet what the store holds before anything else.
    pub(crate) fn run(mut self, device: Result<Option<Device>, String>, commands: &mpsc::Receiver<Command>) {
        let mut updater = self.open(device);
        if let Some(updater) = &mut updater {
            let store = updater.store_mut();
            self.begin(store);
            self.open_active(store);
        }
        self.tell_fleet();
        let mut next = Instant::now() + jittered(FIRST_CHECK);
        loop {
            let due = self.config.enabled && updater.is_some();
            let wait = if due { next.saturating_duration_since(Instant::now()) } else { Duration::MAX };
            let look = if self.watches.is_empty() { Duration::from_secs(86_400) } else { TRIAL_LOOK };
            let command = match commands.recv_timeout(wait.min(look)) {
                Ok(command) => command,
                Err(mpsc::RecvTimeoutError::Timeout) if due && Instant::now() >= next => Command::Check(None),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.look_at_trials(updater.as_mut());
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            match command {
                Command::Check(reply) => {
                    let report = self.check(updater.as_mut());
                    if let Some(reply) = reply {
                        reply(report);
                    }
                    next = Instant::now() + jittered(Duration::from_secs(self.config.interval_s));
                }
                Command::Hint => next = next.min(Instant::now()),
                Command::Configure(config) => {
                    self.board.status().enabled = config.enabled;
                    self.config = config;
                }
                Command::LoadFailed(failed) => self.not_loaded(updater.as_mut(), failed),
                Command::TrialFailed(failed) => self.trial_failed(updater.as_mut(), &failed),
                Command::Stop => return self.end(updater.as_mut()),
            }
        }
    }

    fn open(&self, device: Result<Option<Device>, String>) -> Option<Updater> {
        let opened = device.and_then(|device| {
            let Some(device) = device else { return Ok(None) };
            let mut status = self.board.status();
            status.registry = Some(device.registry.to_string());
            status.group = Some(device.group.clone());
            status.provisioned = true;
            if device.is_moved {
                log::warn!("{MOVED}");
                status.warnings.push(MOVED.into());
            }
            drop(status);
            let store = Store::open(&self.state_dir).map_err(|error| error.to_string())?;
            let memory_bytes = Some(self.floor.limits.memory_bytes);
            let config = Config { memory_bytes, access: self.access(), ..Config::default() };
            Ok(Some(Updater::new(device, store, config)))
        });
        let mut status = self.board.status();
        status.enabled = self.config.enabled;
        status.phase = "idle";
        opened.unwrap_or_else(|error| {
            log::error!("signed models are not available: {error}");
            // What cannot be read may well be a root: unsigned models must not slip in because it is damaged.
            status.provisioned = true;
            status.error = Some(error);
            None
        })
    }

    /// How the registry is reached. Without a file that should be there nobody is believed, and models keep serving.
    fn access(&self) -> Access {
        let roots = self.config.ca_file.as_ref().map(|path| {
            let pem = std::fs::read(path).unwrap_or_else(|error| {
                log::error!("update.ca_file {}: {error}", path.display());
                Vec::new()
            });
            Roots::Pem(pem)
        });
        let (roots, mirrors) = (roots.unwrap_or_default(), self.config.mirrors.clone());
        Access { roots, mirrors, ..Access::default() }
    }

    /// Takes up what an earlier process left: what it refused, and trials, whose start is counted before anything
    /// of them is loaded.
    fn begin(&mut self, store: &mut Store) {
        for blocked in store.blocked().iter().filter(|blocked| !blocked.model.is_empty()) {
            let state = if blocked.taken_back { "rolled-back" } else { "refused" };
            self.show(&blocked.model, blocked.version, state, None, Some(blocked.reason.clone()));
        }
        for model in store.active() {
            let Some(trial) = model.trial else { continue };
            let begun = if trial.starts >= STARTS_MAX {
                self.take_back(store, &model, &Fault::CrashLoop(trial.starts))
            } else {
                store.count_start(&model.name)
            };
            if let Err(error) = begun {
                log::error!(model = &*model.name; "its trial cannot go on: {error}");
            }
        }
    }

    /// This process ends in order: no crash of what was on trial.
    fn end(&self, updater: Option<&mut Updater>) {
        let Some(updater) = updater else { return };
        for name in self.watches.keys() {
            if let Err(error) = updater.store_mut().forget_start(name) {
                log::warn!(model = &**name; "this end will count as a crash of its trial: {error}");
            }
        }
    }

    fn tell_fleet(&self) {
        let provisioned = self.board.status().provisioned;
        // The fleet ends after this thread; when it is gone, so is the daemon.
        drop(self.fleet.send(FleetCommand::Signed(Signed { provisioned, models: self.signed.clone() })));
    }

    fn check(&mut self, updater: Option<&mut Updater>) -> Report {
        let Some(updater) = updater else {
            let status = self.board.status();
            let error = status.error.clone().unwrap_or_else(|| "this device is not provisioned".into());
            return Report { error: Some(error), ..Report::default() };
        };
        updater.config_mut().metered_bytes_max = self.config.metered_bytes_max.filter(|_| self.is_metered());
        updater.config_mut().access.clock_unset = machine::clock_is_unset();
        let mut changed = false;
        let mut fresh = BTreeSet::new();
        let outcome = updater.check(SystemTime::now(), &mut |bundle| self.prove(bundle), &mut |event| {
            if let Event::Activated { digest, .. } = event {
                fresh.insert(digest);
                changed = true;
            }
            self.tell(&event);
        });
        self.fresh.extend(fresh);
        let report = match outcome {
            Ok(outcome) => {
                self.warn(&outcome);
                let (floor_s, registry) =
                    (updater.store().time_floor_s(), updater.device().registry.as_str());
                self.certificates.checked(floor_s, registry, outcome.certificate);
                Report::from(outcome)
            }
            Err(error) => {
                log::warn!("checking for updates: {error}");
                Report { error: Some(error.to_string()), ..Report::default() }
            }
        };
        if changed {
            self.open_active(updater.store_mut());
            self.tell_fleet();
        }
        let mut status = self.board.status();
        status.phase = "idle";
        status.progress = None;
        status.last_check_unix_ms = Some(unix_ms());
        status.last = Some(report.clone());
        report
    }

    /// Whether this link costs by the byte. What is not known may: a bill is not taken back.
    fn is_metered(&self) -> bool {
        match self.config.metered {
            config::Metered::Known(metered) => metered,
            config::Metered::Asked(config::Auto::Auto) => metered::ask().unwrap_or(true),
        }
    }

    /// Says what will hurt later.
    fn warn(&self, outcome: &Outcome) {
        let mut status = self.board.status();
        status.warnings.retain(|warning| warning == MOVED);
        let left_s = outcome.metadata_expires_s.saturating_sub(unix_ms() / 1000);
        if left_s < EXPIRES_SOON_S && !outcome.clock_untrusted {
            status.warnings.push(format!(
                "the registry's metadata expires in {} minutes and was not renewed; then nothing new is installed",
                left_s / 60
            ));
        }
        if outcome.clock_untrusted {
            status.warnings.push("the clock is behind what is known: a stale registry goes unnoticed".into());
        }
    }

    /// One line per decision in the log, and the phase on the board.
    fn tell(&self, event: &Event) {
        let mut status = self.board.status();
        status.progress = None;
        match event {
            Event::Checking => status.phase = "checking",
            Event::Downloading { model, version, bytes, total } => {
                status.phase = "downloading";
                let (bytes, total_bytes) = (*bytes, *total);
                status.progress =
                    Some(Progress { model: model.clone(), version: *version, bytes, total_bytes });
            }
            Event::SelfTesting { .. } => status.phase = "self-testing",
            Event::Found { model, version } => log::info!(model, version; "update found"),
            Event::Activated { model, version, previous, .. } => {
                log::info!(model, version, previous:?; "update activated");
            }
            Event::Refused { known: true, .. } => {}
            Event::Refused { model, version, reason, .. } => {
                log::error!(model, version; "update refused: {reason}");
            }
            Event::Failed { model, version, reason } => log::warn!(model, version; "update failed: {reason}"),
            _ => {}
        }
        drop(status);
        self.show_event(event);
    }

    fn show_event(&self, event: &Event) {
        let (model, version, state, reason) = match event {
            Event::Found { model, version } => (model, version, "found", None),
            Event::Downloading { model, version, .. } => (model, version, "downloading", None),
            Event::SelfTesting { model, version } => (model, version, "self-testing", None),
            Event::Waiting { model, version, reason } => (model, version, "waiting", Some(reason)),
            Event::Failed { model, version, reason } => (model, version, "failed", Some(reason)),
            // What is known says how it came to that.
            Event::Refused { known: true, .. } => return,
            Event::Refused { model, version, reason, .. } => (model, version, "refused", Some(reason)),
            _ => return,
        };
        self.show(model, *version, state, None, reason.cloned());
    }

    fn show(
        &self,
        model: &str,
        version: u64,
        state: &'static str,
        stage: Option<Stage>,
        reason: Option<String>,
    ) {
        failpoint::reach(state, stage, version);
        let update = ModelUpdate { version, state, stage: stage.map(Stage::name), reason };
        let former = self.board.status().models.insert(model.to_owned(), update.clone());
        if former.as_ref() != Some(&update) {
            self.floor.announce();
        }
    }

    /// Opens and hashes what is active and not yet known; drops what no longer is.
    fn open_active(&mut self, store: &mut Store) {
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
        let known = self.signed.get(&installed.name).and_then(|known| known.opened(installed.digest));
        let bundle = known.unwrap_or_else(|| {
            store.bundle(&installed.name, &Limits::default()).map_err(|error| error.to_string())
        });
        let (version, digest) = (installed.version, installed.digest);
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
        let known = self.signed.get(name);
        let opened = known.and_then(|known| known.opened(installed.digest));
        let bundle = opened
            .unwrap_or_else(|| store.bundle(name, &Limits::default()).map_err(|error| error.to_string()));
        let Some(before) = &installed.previous else {
            let (version, digest, watch) = (installed.version, installed.digest, Some(watch));
            return SignedModel { version, digest, previous: None, bundle, watch, candidate: None };
        };
        let opened = known.and_then(|known| known.opened(before.digest));
        let incumbent = opened.unwrap_or_else(|| {
            store.previous_bundle(name, &Limits::default()).map_err(|error| error.to_string())
        });
        SignedModel {
            version: before.version,
            digest: before.digest,
            previous: None,
            bundle: incumbent,
            watch: None,
            candidate: Some(Candidate { bundle, watch }),
        }
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
    fn look_at_trials(&mut self, updater: Option<&mut Updater>) {
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

    fn trial_failed(&mut self, updater: Option<&mut Updater>, failed: &Failed) {
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
    fn take_back(&self, store: &mut Store, model: &Installed, fault: &Fault) -> Result<(), StoreError> {
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
    fn not_loaded(&mut self, updater: Option<&mut Updater>, failed: LoadFailed) {
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

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Report {
        let refusals = |refused: Vec<tractd_update::Refused>| {
            let trouble =
                |r: tractd_update::Refused| Trouble { model: r.model, version: r.version, reason: r.reason };
            refused.into_iter().map(trouble).collect()
        };
        let activated =
            outcome.activated.iter().map(|model| format!("{}@{}", model.name, model.version)).collect();
        let failed =
            |f: tractd_update::Failure| Trouble { model: f.model, version: f.version, reason: f.reason };
        Report {
            ok: true,
            error: None,
            activated,
            refused: refusals(outcome.refused),
            failed: outcome.failed.into_iter().map(failed).collect(),
            waiting: refusals(outcome.waiting),
            no_rollout: outcome.no_rollout,
            clock_untrusted: outcome.clock_untrusted,
        }
    }
}

/// `period` ± 10 %, so that a fleet switched on together does not ask together. Randomness of the standard
/// library's hasher is plenty for that.
fn jittered(period: Duration) -> Duration {
    let random = RandomState::new().hash_one(Instant::now()) % 2_001;
    period.mul_f64(0.9 + random as f64 / 10_000.0)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1000 {
            let jittered = jittered(Duration::from_secs(100));
            assert!((90.0..=110.1).contains(&jittered.as_secs_f64()), "{jittered:?}");
        }
    }
}
