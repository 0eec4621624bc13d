//! Which models are served: what is installed and signed, what lies in the local folder, and what became of each.
//!
//! One thread owns the answer. It is told what the store holds and when to look again; it opens, proves and loads
//! off the hot path, and only then routes requests to the result. Trouble with a model is that model's: it is
//! listed as failed with the reason, and what was served before goes on.

use crate::{
    floor::{Absent, Floor, Loaded},
    local,
    proofs::{Measured, Proofs},
    trial::Watch,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    time::Duration,
};
use tokio::sync::oneshot;
use tractd_bundle::{Bundle, Digest, Limits};
use tractd_engine::{Plan, PlanOptions};

/// Folders of one local model that are tried, from the highest version down, until one loads.
const VERSIONS_TRIED_MAX: usize = 3;

/// After a trial that could not take place on a busy device, the next one: soon for who waits for the model, and a load
/// of its own for the device.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Where models come from and what may be loaded.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// The folder of unsigned models.
    pub(crate) models_dir: PathBuf,
    /// Whether they are loaded on a provisioned device.
    pub(crate) allow_unsigned: bool,
}

/// What the store holds active.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signed {
    /// Whether a root is pinned, or at least may be: then unsigned models need permission.
    pub(crate) provisioned: bool,
    /// Each active model, opened and hashed, or why it could not be.
    pub(crate) models: BTreeMap<String, SignedModel>,
}

/// One active model of the store.
#[derive(Debug, Clone)]
pub(crate) struct SignedModel {
    pub(crate) version: u64,
    pub(crate) digest: Digest,
    pub(crate) previous: Option<u64>,
    pub(crate) bundle: Result<Bundle, String>,
    /// Set when this version is on trial with none before it.
    pub(crate) watch: Option<Arc<Watch>>,
    /// The version on trial beside it.
    pub(crate) candidate: Option<Candidate>,
}

/// A version on trial.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) bundle: Result<Bundle, String>,
    pub(crate) watch: Arc<Watch>,
}

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// The store's content changed.
    Signed(Signed),
    /// Look again; quarantined and failed models get another chance.
    Reload(Sources),
    /// End.
    Stop,
}

/// A signed model that did not load, for the updater to take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadFailed {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) reason: String,
}

/// One line of the list of models besides those that are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) version: Option<u64>,
    /// Of a bundle that could be opened, so that it is not tried again before somebody asks for it.
    pub(crate) digest: Option<Digest>,
    pub(crate) signed: bool,
    pub(crate) reason: String,
    /// It says nothing about the model, which is tried again by itself.
    pub(crate) later: bool,
}

/// Why a version is not served.
#[derive(Debug)]
struct NotLoaded {
    reason: String,
    /// As [`Failure`]'s.
    later: bool,
}

impl From<String> for NotLoaded {
    fn from(reason: String) -> NotLoaded {
        NotLoaded { reason, later: false }
    }
}

/// What the thread lets others see.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Written by the fleet's thread, read for a status: never on a request's path.
    content: Mutex<BoardContent>,
}

/// See [`Board`].
#[derive(Debug, Clone, Default)]
pub(crate) struct BoardContent {
    /// What failed, by name. A name may be served (an older version) and failed (a newer one) at once.
    pub(crate) failures: BTreeMap<String, Failure>,
    /// What is being loaded.
    pub(crate) loading: BTreeSet<String>,
    /// What a revert would put back, by name.
    pub(crate) previous: BTreeMap<String, u64>,
    /// Golden vectors that held, by digest.
    pub(crate) golden: BTreeMap<Digest, usize>,
}

/// What a loaded version is for.
enum Place {
    /// It answers to its name; on trial with none before it, it is watched.
    Stable(Option<Arc<Watch>>),
    /// It is on trial beside the one that does.
    Candidate(Arc<Watch>),
}

impl Board {
    pub(crate) fn content(&self) -> MutexGuard<'_, BoardContent> {
        self.content.lock().expect("nothing panics while writing the board")
    }
}

/// The thread's state.
pub(crate) struct Fleet {
    pub(crate) floor: Arc<Floor>,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) board: Arc<Board>,
    pub(crate) sources: Sources,
    /// Of compiled models.
    pub(crate) cache_dir: PathBuf,
    pub(crate) failed: Box<dyn Fn(LoadFailed) + Send>,
}

impl Fleet {
    /// Runs until told to stop. The first command must be [`Command::Signed`], so that the trust rule is known
    /// before anything is loaded; `ready` hears once everything found at the start was tried.
    pub(crate) fn run(mut self, commands: &mpsc::Receiver<Command>, ready: oneshot::Sender<()>) {
        let mut signed = Signed::default();
        let mut ready = Some(ready);
        loop {
            let wait = if self.is_something_left() { TRY_AGAIN } else { Duration::MAX };
            let command = match commands.recv_timeout(wait) {
                Ok(command) => command,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.sync(&signed, false);
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            let again = matches!(command, Command::Reload(_));
            match command {
                Command::Signed(now) => signed = now,
                Command::Reload(sources) => self.sources = sources,
                Command::Stop => return,
            }
            self.sync(&signed, again);
            if let Some(ready) = ready.take() {
                self.floor.started();
                let _ = ready.send(());
            }
        }
    }

    fn is_something_left(&self) -> bool {
        self.board.content().failures.values().any(|failure| failure.later)
    }

    /// Makes what is served what should be. `again` gives crashed and failed models another try.
    fn sync(&self, signed: &Signed, again: bool) {
        self.board.content().previous =
            signed.models.iter().filter_map(|(name, model)| Some((name.clone(), model.previous?))).collect();
        let mut wanted = BTreeSet::new();
        for (name, model) in &signed.models {
            wanted.insert(name.clone());
            self.sync_signed(name, model, again);
        }
        for found in local::scan(&self.sources.models_dir) {
            if signed.models.contains_key(&found.name) {
                log::warn!(model = &*found.name; "a local model of a signed name is passed over");
                continue;
            }
            wanted.insert(found.name.clone());
            if signed.provisioned && !self.sources.allow_unsigned {
                let reason = "unsigned, and this device takes signed models only (allow_unsigned = false)";
                self.floor.remove(&found.name);
                self.fail(
                    &found.name,
                    Failure {
                        version: None,
                        digest: None,
                        signed: false,
                        reason: reason.into(),
                        later: false,
                    },
                );
                continue;
            }
            self.sync_local(&found, again);
        }
        self.forget_all_but(&wanted);
    }

    fn sync_signed(&self, name: &str, model: &SignedModel, again: bool) {
        // Its trial ended well: it is loaded already.
        if model.watch.is_none() && self.floor.candidate(name) == Some(model.digest) {
            self.floor.promote(name);
        }
        if self.serves(name, model.digest, true, again) {
            self.board.content().failures.remove(name);
            if model.watch.is_none() && model.candidate.is_none() {
                self.floor.end_lone_trial(name);
            }
        } else {
            let outcome = match &model.bundle {
                Ok(bundle) => self.load(name, bundle, true, again, &Place::Stable(model.watch.clone())),
                Err(reason) => Err(reason.clone().into()),
            };
            match outcome {
                Ok(()) => drop(self.board.content().failures.remove(name)),
                Err(NotLoaded { reason, later }) => {
                    let digest = model.bundle.as_ref().ok().map(|bundle| bundle.digest);
                    let failure = Failure {
                        version: Some(model.version),
                        digest,
                        signed: true,
                        reason: reason.clone(),
                        later,
                    };
                    self.fail(name, failure);
                    if !later {
                        (self.failed)(LoadFailed { name: name.to_owned(), digest: model.digest, reason });
                    }
                    return;
                }
            }
        }
        self.sync_candidate(name, model.candidate.as_ref());
    }

    /// Makes the version on trial what it should be. That one does not load is no failure of the model that is
    /// served: it ends the trial.
    fn sync_candidate(&self, name: &str, candidate: Option<&Candidate>) {
        let loaded = self.floor.candidate(name);
        let Some(candidate) = candidate else {
            return if loaded.is_some() {
                self.floor.withdraw(name)
            };
        };
        let digest = candidate.watch.digest();
        if loaded == Some(digest) {
            return self.floor.follow_stage(name);
        }
        let outcome = match &candidate.bundle {
            Ok(bundle) => {
                self.prove_and_install(name, bundle, true, &Place::Candidate(candidate.watch.clone()))
            }
            Err(reason) => Err(reason.clone().into()),
        };
        match outcome {
            Ok(measured) => drop(self.board.content().golden.insert(digest, measured.golden)),
            Err(NotLoaded { reason, later: true }) => {
                let version = candidate.bundle.as_ref().ok().map(Bundle::version);
                self.fail(name, Failure { version, digest: Some(digest), signed: true, reason, later: true });
            }
            Err(NotLoaded { reason, .. }) => {
                (self.failed)(LoadFailed { name: name.to_owned(), digest, reason });
            }
        }
    }

    fn sync_local(&self, found: &local::Found, again: bool) {
        let mut failure = None;
        for dir in found.dirs.iter().take(VERSIONS_TRIED_MAX) {
            match self.try_local(&found.name, dir, again) {
                Ok(()) => break,
                Err(error) => {
                    // An older version fares no better on a busy device.
                    let later = error.later;
                    failure = failure.or(Some(error));
                    if later {
                        break;
                    }
                }
            }
        }
        match failure {
            Some(failure) => self.fail(&found.name, failure),
            None => drop(self.board.content().failures.remove(&found.name)),
        }
    }

    fn try_local(&self, name: &str, dir: &Path, again: bool) -> Result<(), Failure> {
        let version = dir.file_name().and_then(|name| name.to_str()?.parse().ok());
        let mut failure =
            Failure { version, digest: None, signed: false, reason: String::new(), later: false };
        let bundle = match Bundle::open(dir, &Limits::default()) {
            Ok(bundle) => bundle,
            Err(error) => return Err(Failure { reason: error.to_string(), ..failure }),
        };
        failure.version = Some(bundle.version());
        failure.digest = Some(bundle.digest);
        if bundle.name() != name {
            let reason = format!("its manifest calls it {:?}, its folder {name:?}", bundle.name());
            return Err(Failure { reason, ..failure });
        }
        if self.serves(name, bundle.digest, false, again) {
            return Ok(());
        }
        self.load(name, &bundle, false, again, &Place::Stable(None))
            .map_err(|NotLoaded { reason, later }| Failure { reason, later, ..failure })
    }

    /// Whether this very bundle answers already; a crashed one only counts until somebody asks for another try.
    fn serves(&self, name: &str, digest: Digest, signed: bool, again: bool) -> bool {
        self.floor.loaded(name).is_some_and(|(loaded, quarantined)| {
            loaded.plan.digest() == digest && loaded.signed == signed && !(quarantined && again)
        })
    }

    fn load(
        &self,
        name: &str,
        bundle: &Bundle,
        signed: bool,
        again: bool,
        place: &Place,
    ) -> Result<(), NotLoaded> {
        if let Some(failure) = self.board.content().failures.get(name)
            && failure.digest == Some(bundle.digest)
            && !failure.later
            && !again
        {
            return Err(failure.reason.clone().into());
        }
        self.board.content().loading.insert(name.to_owned());
        let served = self.floor.loaded(name);
        if served.is_none() {
            self.floor.set_absent(name, Some(Absent::Loading));
        }
        let outcome = self.prove_and_install(name, bundle, signed, place);
        self.board.content().loading.remove(name);
        match &outcome {
            Ok(measured) => {
                self.board.content().golden.insert(bundle.digest, measured.golden);
                log::info!(
                    model = name, version = bundle.version(), digest = bundle.digest.short(), signed;
                    "model loaded"
                );
            }
            Err(_) => self.floor.announce(),
        }
        outcome.map(drop)
    }

    fn prove_and_install(
        &self,
        name: &str,
        bundle: &Bundle,
        signed: bool,
        place: &Place,
    ) -> Result<Measured, NotLoaded> {
        let measured = self
            .proofs
            .prove(bundle)
            .map_err(|refusal| NotLoaded { reason: refusal.to_string(), later: !refusal.is_the_models() })?;
        let options = PlanOptions { cache: Some(self.cache_dir.clone()), ..PlanOptions::default() };
        let plan = Plan::load(bundle, &options).map_err(|error| error.to_string())?;
        let stats = self.floor.loaded(name).map(|(served, _)| served.stats.clone()).unwrap_or_default();
        let loaded = Loaded {
            plan: Arc::new(plan),
            name: name.into(),
            signed,
            peak_bytes: measured.peak_bytes,
            service_us: measured.infer_us,
            stats,
        };
        let installed = match place {
            Place::Stable(watch) => self.floor.install(loaded, watch.clone()),
            Place::Candidate(watch) => self.floor.install_candidate(loaded, watch.clone()),
        };
        installed.map_err(|error| error.to_string())?;
        Ok(measured)
    }

    fn fail(&self, name: &str, failure: Failure) {
        let former = self.board.content().failures.insert(name.to_owned(), failure.clone());
        if former.as_ref() != Some(&failure) {
            log::error!(model = name, version:? = failure.version; "model not loaded: {}", failure.reason);
        }
        let served = self.floor.loaded(name).is_some();
        let absent = if failure.later { Absent::Loading } else { Absent::Failed(failure.reason) };
        self.floor.set_absent(name, (!served).then_some(absent));
    }

    fn forget_all_but(&self, wanted: &BTreeSet<String>) {
        for (loaded, ..) in self.floor.all_loaded() {
            if !wanted.contains(&*loaded.name) {
                log::info!(model = &*loaded.name; "model removed");
                self.floor.remove(&loaded.name);
            }
        }
        let mut content = self.board.content();
        let gone: Vec<String> =
            content.failures.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        for name in gone {
            content.failures.remove(&name);
            self.floor.set_absent(&name, None);
        }
    }
}
