//! The thread that owns the store and asks the registry: at its interval, earlier on a hint, on SIGHUP, and when
//! somebody asks for it.
//!
//! A daemon that is not provisioned has such a thread too; it only says so.

mod board;
mod failpoint;
mod self_test;
mod versions;

pub(crate) use board::{Board, Report, UpdateStatus};

use crate::{
    certificates::Certificates,
    config,
    fleet::{Command as FleetCommand, LoadFailed, Signed, SignedModel},
    floor::Floor,
    machine, metered,
    proofs::Proofs,
    trial::{Failed, Watch},
};
use board::{ModelUpdate, Progress};
use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    hash::BuildHasher,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tractd_bundle::Digest;
use tractd_update::{
    Config, Device, Event, Outcome, Roots, Store, Updater,
    source::Access,
    trial::{Fault, STARTS_MAX, Stage},
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
