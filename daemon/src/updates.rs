//! The thread that owns the store and asks the registry: at its interval, on SIGHUP, and when somebody asks for it.
//!
//! A daemon that is not provisioned has such a thread too; it only says so.

use crate::{
    config,
    fleet::{Command as FleetCommand, LoadFailed, Signed, SignedModel},
    proofs::Proofs,
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
use tractd_update::{Config, Device, Event, Outcome, Store, Updater};

/// The first check comes this soon after the start, before jitter.
const FIRST_CHECK: Duration = Duration::from_secs(2);

/// What the thread is told.
pub(crate) enum Command {
    /// Ask the registry now; the report goes to whoever waits for it.
    Check(Option<Asker>),
    /// The configuration changed.
    Configure(config::Update),
    /// A model of the store did not load.
    LoadFailed(LoadFailed),
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
    /// Why the store or the device's identity cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
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
    pub(crate) fleet: mpsc::Sender<FleetCommand>,
    /// Digests activated by this daemon: only these are taken back when they do not load. One that worked before
    /// and fails after a restart fails for a reason that going back may not cure, and going back is for good.
    pub(crate) fresh: BTreeSet<Digest>,
}

/// The device's identity, read once at the start.
pub(crate) fn device(state_dir: &Path) -> Result<Option<Device>, String> {
    Device::open(state_dir).map_err(|error| error.to_string())
}

impl Updates {
    /// Runs until told to stop. Tells the fleet what the store holds before anything else.
    pub(crate) fn run(mut self, device: Result<Option<Device>, String>, commands: &mpsc::Receiver<Command>) {
        let mut updater = self.open(device);
        let mut signed = BTreeMap::new();
        if let Some(updater) = &mut updater {
            open_active(updater.store_mut(), &mut signed);
        }
        self.tell_fleet(&signed);
        let mut next = Instant::now() + jittered(FIRST_CHECK);
        loop {
            let due = self.config.enabled && updater.is_some();
            let wait = if due { next.saturating_duration_since(Instant::now()) } else { Duration::MAX };
            let command = match commands.recv_timeout(wait.min(Duration::from_secs(86_400))) {
                Ok(command) => command,
                Err(mpsc::RecvTimeoutError::Timeout) if wait == Duration::MAX => continue,
                Err(mpsc::RecvTimeoutError::Timeout) => Command::Check(None),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            match command {
                Command::Check(reply) => {
                    let report = self.check(updater.as_mut(), &mut signed);
                    if let Some(reply) = reply {
                        reply(report);
                    }
                    next = Instant::now() + jittered(Duration::from_secs(self.config.interval_s));
                }
                Command::Configure(config) => {
                    self.board.status().enabled = config.enabled;
                    self.config = config;
                }
                Command::LoadFailed(failed) => self.take_back(updater.as_mut(), &mut signed, &failed),
                Command::Stop => return,
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
            drop(status);
            let store = Store::open(&self.state_dir).map_err(|error| error.to_string())?;
            Ok(Some(Updater::new(device, store, Config::default())))
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

    fn tell_fleet(&self, signed: &BTreeMap<String, SignedModel>) {
        let provisioned = self.board.status().provisioned;
        // The fleet ends after this thread; when it is gone, so is the daemon.
        drop(self.fleet.send(FleetCommand::Signed(Signed { provisioned, models: signed.clone() })));
    }

    fn check(&mut self, updater: Option<&mut Updater>, signed: &mut BTreeMap<String, SignedModel>) -> Report {
        let Some(updater) = updater else {
            let status = self.board.status();
            let error = status.error.clone().unwrap_or_else(|| "this device is not provisioned".into());
            return Report { error: Some(error), ..Report::default() };
        };
        let mut prove = |bundle: &Bundle| {
            self.proofs.prove(bundle).map(drop).map_err(|refusal| refusal.to_string().into())
        };
        let mut changed = false;
        let mut fresh = BTreeSet::new();
        let outcome = updater.check(SystemTime::now(), &mut prove, &mut |event| {
            if let Event::Activated { digest, .. } = event {
                fresh.insert(digest);
            }
            changed |= matches!(event, Event::Activated { .. } | Event::RolledBack { .. });
            self.tell(&event);
        });
        self.fresh.extend(fresh);
        let report = match outcome {
            Ok(outcome) => Report::from(outcome),
            Err(error) => {
                log::warn!("checking for updates: {error}");
                Report { error: Some(error.to_string()), ..Report::default() }
            }
        };
        if changed {
            open_active(updater.store_mut(), signed);
            self.tell_fleet(signed);
        }
        let mut status = self.board.status();
        status.phase = "idle";
        status.progress = None;
        status.last_check_unix_ms = Some(unix_ms());
        status.last = Some(report.clone());
        report
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
            Event::Refused { model, version, reason, .. } => {
                log::error!(model, version; "update refused: {reason}");
            }
            Event::Failed { model, version, reason } => log::warn!(model, version; "update failed: {reason}"),
            Event::RolledBack { model, version, to, reason } => {
                log::error!(model, version, to:?; "update taken back: {reason}");
            }
            _ => {}
        }
    }

    /// An active version that cannot be loaded here is taken back when there is one to go back to.
    fn take_back(
        &self,
        updater: Option<&mut Updater>,
        signed: &mut BTreeMap<String, SignedModel>,
        failed: &LoadFailed,
    ) {
        let Some(updater) = updater.filter(|_| self.fresh.contains(&failed.digest)) else { return };
        let store = updater.store_mut();
        let current = store.installed(&failed.name);
        if current.is_none_or(|model| model.digest != failed.digest || model.previous.is_none()) {
            return;
        }
        match store.revert(&failed.name, &failed.reason) {
            Ok(back) => {
                log::error!(model = &*failed.name, to:? = back.map(|model| model.version); "update taken back: {}", failed.reason);
                open_active(store, signed);
                self.tell_fleet(signed);
            }
            Err(error) => log::error!(model = &*failed.name; "update not taken back: {error}"),
        }
    }
}

/// Opens and hashes what is active and not yet in `signed`; drops what no longer is.
fn open_active(store: &mut Store, signed: &mut BTreeMap<String, SignedModel>) {
    let active = store.active();
    signed.retain(|name, _| active.iter().any(|installed| installed.name == *name));
    for installed in active {
        let previous = installed.previous.as_ref().map(|release| release.version);
        if let Some(known) = signed.get_mut(&installed.name)
            && known.digest == installed.digest
            && known.bundle.is_ok()
        {
            known.previous = previous;
            continue;
        }
        let bundle = store.bundle(&installed.name, &Limits::default()).map_err(|error| error.to_string());
        let model = SignedModel { version: installed.version, digest: installed.digest, previous, bundle };
        signed.insert(installed.name, model);
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
