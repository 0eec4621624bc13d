//! Drives a check: verify, decide, download, unpack, prove, commit.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::SystemTime;

use tractd_bundle::{Bundle, Digest, Limits, UnpackError, unpack_in};

use crate::certificates::Validity;
use crate::clock::{self, Now};
use crate::device::Device;
use crate::download::{Archive, DownloadError, download};
use crate::fs::{self, Files};
use crate::policy::{self, Decision, Facts, Known, Reason};
use crate::rollout::{Custom, DocumentError, Entry, Rollout, Target};
use crate::source::{Access, FetchError, Source};
use crate::state::{Blocked, Installed, Release};
use crate::store::{CACHE, Store, StoreError, io_at};
use crate::verify::{Anchor, Session, SessionError, VerifyError, Vouched};

/// What a device may spend on updates.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bounds of a bundle.
    pub limits: Limits,
    /// Largest archive fetched, in bytes, whatever is signed.
    pub archive_bytes_max: u64,
    /// Most the store may take, in bytes.
    pub quota_bytes: u64,
    /// What must stay free on the store's file system, in bytes.
    pub reserve_bytes: u64,
    /// Memory a model may take, in bytes; `None` leaves it to the self-test.
    pub memory_bytes: Option<u64>,
    /// As `std::env::consts::ARCH` has it.
    pub arch: String,
    /// The daemon's version, `major.minor.patch`.
    pub runtime: String,
    /// How the registry is reached.
    pub access: Access,
    /// Largest archive fetched, in bytes, where the link costs by the byte; larger ones wait for another link.
    pub metered_bytes_max: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            archive_bytes_max: 512 << 20,
            quota_bytes: 4 << 30,
            reserve_bytes: 64 << 20,
            memory_bytes: None,
            arch: std::env::consts::ARCH.to_owned(),
            runtime: env!("CARGO_PKG_VERSION").to_owned(),
            access: Access::default(),
            metered_bytes_max: None,
        }
    }
}

/// A step of a check, as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Asking the registry.
    Checking,
    /// A version this device will install.
    Found {
        /// The model.
        model: String,
        /// Its version.
        version: u64,
    },
    /// Bytes are coming; told at the start, at the end, and every so many bytes.
    Downloading {
        /// The model.
        model: String,
        /// Its version.
        version: u64,
        /// Bytes here, those of an earlier try included.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The caller's proof runs.
    SelfTesting {
        /// The model.
        model: String,
        /// Its version.
        version: u64,
    },
    /// The commit point is passed.
    Activated {
        /// The model.
        model: String,
        /// Its version.
        version: u64,
        /// The bundle's digest.
        digest: Digest,
        /// The unpacked bundle.
        dir: PathBuf,
        /// What was active before.
        previous: Option<u64>,
    },
    /// This version will not be installed by this rollout as it stands; what was active stays.
    Refused {
        /// The model.
        model: String,
        /// The version offered.
        version: u64,
        /// Why.
        reason: String,
        /// Whether an earlier check said so already.
        known: bool,
    },
    /// Not its turn, for now.
    Waiting {
        /// The model.
        model: String,
        /// The version offered.
        version: u64,
        /// Why.
        reason: String,
    },
    /// It did not work this time; the next check tries again.
    Failed {
        /// The model.
        model: String,
        /// The version offered.
        version: u64,
        /// Why.
        reason: String,
    },
    /// An active version was taken back.
    RolledBack {
        /// The model.
        model: String,
        /// The version taken back.
        version: u64,
        /// What is active now; `None` when there was nothing to put back.
        to: Option<u64>,
        /// Why.
        reason: String,
    },
}

/// Why the caller's proof did not let a bundle in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unproven {
    /// It is bad, and stays so: blocked for its rollout.
    Bad(String),
    /// Nothing can be said now; the next check asks again.
    Later(String),
}

impl<T: Into<String>> From<T> for Unproven {
    fn from(reason: T) -> Self {
        Self::Bad(reason.into())
    }
}

/// A version that was not installed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The model.
    pub model: String,
    /// The version offered.
    pub version: u64,
    /// Why.
    pub reason: String,
}

/// A version whose installation did not work this time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The model.
    pub model: String,
    /// The version offered.
    pub version: u64,
    /// Why.
    pub reason: String,
}

/// What a check came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Activated by this check.
    pub activated: Vec<Installed>,
    /// Refused; the reason stands until rollout or device change.
    pub refused: Vec<Refused>,
    /// Not yet: paused, or another bucket's turn.
    pub waiting: Vec<Refused>,
    /// To be tried again at the next check.
    pub failed: Vec<Failure>,
    /// The registry has no rollout file for this group.
    pub no_rollout: bool,
    /// The system clock is behind what is known: expiry was checked against the latest known time.
    pub clock_untrusted: bool,
    /// When the metadata seen expires, in Unix seconds: the earliest of root, timestamp, snapshot, targets.
    pub metadata_expires_s: u64,
    /// How long the certificate is good that the registry, or its mirror, showed. `None` without `https`.
    pub certificate: Option<Validity>,
}

/// Why a check ended without an outcome. Nothing was changed; active models stay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The registry did not answer, or not in time.
    #[error("the registry cannot be read: {0}")]
    Fetch(#[from] FetchError),
    /// What it answered is not to be believed, or expired.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The verified rollout file cannot be acted on.
    #[error("the rollout file {0}")]
    Rollout(DocumentError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes new models from one registry into one store.
#[derive(Debug)]
pub struct Updater {
    device: Device,
    store: Store,
    config: Config,
}

impl Updater {
    /// An updater for a provisioned device.
    #[must_use]
    pub fn new(device: Device, store: Store, config: Config) -> Self {
        Self { device, store, config }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The store, to open bundles or to revert; see also [`Updater::revert`].
    pub fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// What may be spent, to be changed between two checks.
    pub fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// What one entry came to.
enum Step {
    Current,
    Activated(Installed),
    Waiting(String),
    Refused(String),
    /// As [`Step::Refused`], by an earlier check.
    Blocked(String),
    /// With the archive whose download may go on next time.
    Failed(String, Option<String>),
}

/// What a check is made of, lent to every entry.
struct Check<'a> {
    session: Session,
    source: &'a Source,
    prove: &'a mut dyn FnMut(&Bundle) -> Result<(), Unproven>,
    tell: &'a mut dyn FnMut(Event),
}

impl Updater {
    /// Asks the registry once and installs what is for this device.
    ///
    /// `prove` self-tests an unpacked bundle, in a child process; its error says whether it is asked again.
    /// `tell` hears every step.
    ///
    /// # Errors
    /// See [`CheckError`]; trouble with one model does not stop the others and is in the [`Outcome`].
    pub fn check(
        &mut self,
        now: SystemTime,
        prove: &mut dyn FnMut(&Bundle) -> Result<(), Unproven>,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Outcome, CheckError> {
        tell(Event::Checking);
        let floors = self.store.state().floors.clone();
        let (now, without_floor) = (clock::now(now, floors.time_s), clock::now(now, 0));
        let access = &self.config.access;
        let source = Source::new(&self.device.registry, access, now.for_certificates(access.clock_unset))?;
        let anchor = Anchor {
            root_json: &self.device.root_json,
            cache: self.device.state_dir.join(CACHE),
            fs: self.store.fs().clone(),
            floors: &floors,
            now,
            without_floor,
        };
        let mut session = Session::refresh(&anchor, source.clone())?;
        self.store.save_floors(session.floors().clone())?;

        let mut outcome = Outcome {
            clock_untrusted: session.now().untrusted,
            metadata_expires_s: session.expires_s(),
            ..Outcome::default()
        };
        let path = format!("rollout/{}.json", self.device.group);
        let bytes = session.small_target(&path)?;
        outcome.certificate = source.certificate();
        let Some(bytes) = bytes else {
            outcome.no_rollout = true;
            return Ok(outcome);
        };
        let rollout = Rollout::parse(&bytes, &self.device.group).map_err(CheckError::Rollout)?;
        let mut check = Check { session, source: &source, prove, tell };
        let mut wanted = BTreeSet::new();
        for entry in &rollout.entries {
            let step = self.entry(entry, &mut check)?;
            report(entry, step, check.tell, &mut outcome, &mut wanted);
        }
        self.store.collect(&wanted)?;
        outcome.certificate = source.certificate();
        Ok(outcome)
    }

    /// Takes an active version back: what was there before is active again, and the digest is blocked for its
    /// rollout. For a version that shows itself bad after its self-test.
    ///
    /// # Errors
    /// As [`Store::revert`].
    pub fn revert(
        &mut self,
        model: &str,
        reason: &str,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<Installed>, StoreError> {
        let bad = self.store.installed(model).ok_or_else(|| StoreError::NotInstalled(model.to_owned()))?;
        let back = self.store.revert(model, reason)?;
        tell(Event::RolledBack {
            model: bad.name,
            version: bad.version,
            to: back.as_ref().map(|installed| installed.version),
            reason: reason.to_owned(),
        });
        Ok(back)
    }

    /// Only the store's own trouble is an error here: everything else is about this one entry.
    fn entry(&mut self, entry: &Entry, check: &mut Check<'_>) -> Result<Step, StoreError> {
        let active = self.store.sound(&entry.model)?;
        if active.is_some_and(|(version, digest)| {
            (version, digest.to_hex()) == (entry.version, entry.digest.clone())
        }) {
            return Ok(Step::Current);
        }
        if let Err(reason) = policy::turn(entry, &self.device.node, check.session.now().unix_s) {
            return Ok(Step::Waiting(reason.to_string()));
        }
        let vouched = match check.session.vouched(&entry.target) {
            Ok(Some(vouched)) => vouched,
            Ok(None) => return Ok(Step::Refused(format!("no team signed {}", entry.target))),
            Err(SessionError::Verify(e)) => return Ok(Step::Failed(e.to_string(), None)),
            Err(SessionError::Fetch(e)) => return Ok(Step::Failed(e.to_string(), None)),
        };
        let custom = match vouched.custom.as_ref().map(Custom::parse) {
            Some(Ok(custom)) => custom,
            Some(Err(e)) => return Ok(Step::Refused(format!("what its team signed {e}"))),
            None => return Ok(Step::Refused("its team signed no description of it".into())),
        };
        match self.decide(entry, &custom, &vouched, check.session.now())? {
            Decision::Current => Ok(Step::Current),
            Decision::Wait(reason) => Ok(Step::Waiting(reason.to_string())),
            Decision::Refuse(Reason::Blocked(reason)) => Ok(Step::Blocked(reason)),
            Decision::Refuse(reason) => Ok(Step::Refused(reason.to_string())),
            Decision::Install => self.install(entry, &vouched, check),
        }
    }

    fn decide(
        &self,
        entry: &Entry,
        custom: &Custom,
        vouched: &Vouched,
        now: Now,
    ) -> Result<Decision, StoreError> {
        let archive_bytes = vouched.archive.bytes;
        let (state, config) = (self.store.state(), &self.config);
        let active = self.store.sound(&entry.model)?.map(|(version, digest)| (version, digest.to_hex()));
        let model = state.models.get(&entry.model);
        let known = Known {
            active: active.as_ref().map(|(version, digest)| (*version, digest.as_str())),
            version_floor: model.map_or(0, |model| model.version_floor),
            min_version: model.map_or(0, |model| model.min_version).max(vouched.min_version),
            team: model.map(|model| model.team.as_str()),
            blocked: state.blocked(&entry.id, &entry.digest),
            attempts: state.attempts(&entry.id, &entry.digest),
        };
        let facts = Facts {
            node: &self.device.node,
            arch: &config.arch,
            runtime: &config.runtime,
            memory_bytes: config.memory_bytes,
            free_bytes: self.store.free_bytes()?.saturating_sub(config.reserve_bytes),
            quota_bytes: config.quota_bytes.saturating_sub(self.store.used_bytes()?),
            archive_bytes_max: config.archive_bytes_max,
            metered_bytes_max: config.metered_bytes_max,
            unix_s: now.unix_s,
            minute: (!now.untrusted).then_some((now.unix_s / 60 % (24 * 60)) as u16),
        };
        Ok(policy::decide(entry, custom, archive_bytes, &known, &facts))
    }

    fn install(
        &mut self,
        entry: &Entry,
        vouched: &Vouched,
        check: &mut Check<'_>,
    ) -> Result<Step, StoreError> {
        let (model, version) = (&entry.model, entry.version);
        (check.tell)(Event::Found { model: model.clone(), version });
        let bundle = match self.bundle(entry, vouched, check)? {
            Ok(bundle) => bundle,
            Err(step) => return Ok(step),
        };
        self.store.count_attempt(&entry.id, &entry.digest)?;
        (check.tell)(Event::SelfTesting { model: model.clone(), version });
        match (check.prove)(&bundle) {
            Ok(()) => {}
            Err(Unproven::Bad(reason)) => return self.block(entry, format!("self-test: {reason}")),
            Err(Unproven::Later(reason)) => {
                self.store.forget_attempt(&entry.id, &entry.digest)?;
                return Ok(Step::Failed(format!("self-test postponed: {reason}"), None));
            }
        }
        let release = Release { version, digest: bundle.digest, rollout: entry.id.clone() };
        let team = Target::parse(&entry.target).map(|target| target.team).unwrap_or_default();
        let before = self.store.installed(model).map(|installed| installed.version);
        let installed = self.store.activate(model, team, release, vouched.min_version, entry.healthy_secs)?;
        (check.tell)(Event::Activated {
            model: model.clone(),
            version,
            digest: installed.digest,
            dir: installed.dir.clone(),
            previous: before,
        });
        Ok(Step::Activated(installed))
    }

    /// The entry's bundle, unpacked and hashed, under its name in the store.
    fn bundle(
        &mut self,
        entry: &Entry,
        vouched: &Vouched,
        check: &mut Check<'_>,
    ) -> Result<Result<Bundle, Step>, StoreError> {
        let expected: Digest = match entry.digest.parse() {
            Ok(digest) => digest,
            Err(e) => return Ok(Err(Step::Refused(format!("{e}")))),
        };
        // There already: a step back, or a power cut between unpacking and proving.
        let files = self.store.fs().clone();
        let files = Files(&*files);
        if let Ok(bundle) = Bundle::open_in(&files, &self.store.bundle_dir(&expected), &self.config.limits)
            && bundle.digest == expected
        {
            return Ok(Ok(bundle));
        }
        let archive = &vouched.archive;
        let blob = match self.fetch(entry, archive, check)? {
            Ok(blob) => blob,
            Err(step) => return Ok(Err(step)),
        };
        let unpacked = self.store.unpacking(&archive.sha256);
        fs::remove(&**self.store.fs(), &unpacked).map_err(io_at(&unpacked))?;
        let file = self.store.fs().open(&blob).map_err(io_at(&blob))?;
        let mut bundle = match unpack_in(&files, file, &unpacked, &self.config.limits) {
            Ok(bundle) => bundle,
            Err(UnpackError::Io { path, source }) => return Err(StoreError::Io { path, source }),
            // The bytes are the signed ones, so the next download would bring the same.
            Err(e) => return self.block(entry, format!("its archive cannot be unpacked: {e}")).map(Err),
        };
        if bundle.digest != expected || bundle.name() != entry.model || bundle.version() != entry.version {
            let found = (bundle.name(), bundle.version(), bundle.digest);
            let reason = format!("its archive holds {} {} {}", found.0, found.1, found.2);
            return self.block(entry, reason).map(Err);
        }
        bundle.dir = self.store.adopt(&unpacked, &expected)?;
        Ok(Ok(bundle))
    }

    /// The archive, within what the rollout may cost.
    fn fetch(
        &mut self,
        entry: &Entry,
        archive: &Archive,
        check: &mut Check<'_>,
    ) -> Result<Result<PathBuf, Step>, StoreError> {
        let mut spent = self.store.state().spent(&entry.id, &entry.digest);
        if let Some(reason) = spent.over(archive.bytes) {
            return Ok(Err(Step::Refused(reason)));
        }
        // Before the try: one that takes the daemon down is counted too.
        spent.tries += 1;
        self.store.spend(&entry.id, &entry.digest, spent)?;
        let mut progress = |bytes, total| {
            let (model, version) = (entry.model.clone(), entry.version);
            (check.tell)(Event::Downloading { model, version, bytes, total });
        };
        match download(&self.store, check.source, archive, &mut progress, &mut spent.bytes) {
            Ok(blob) => Ok(Ok(blob)),
            Err(DownloadError::Store(e)) => Err(e),
            Err(DownloadError::Fetch(e)) => {
                self.store.spend(&entry.id, &entry.digest, spent)?;
                Ok(Err(Step::Failed(e.to_string(), Some(archive.sha256.clone()))))
            }
        }
    }

    fn block(&mut self, entry: &Entry, reason: String) -> Result<Step, StoreError> {
        self.store.block(Blocked {
            rollout: entry.id.clone(),
            digest: entry.digest.clone(),
            reason: reason.clone(),
            model: entry.model.clone(),
            version: entry.version,
            taken_back: false,
        })?;
        Ok(Step::Refused(reason))
    }
}

/// Files a step under its heading and tells it.
fn report(
    entry: &Entry,
    step: Step,
    tell: &mut dyn FnMut(Event),
    outcome: &mut Outcome,
    wanted: &mut BTreeSet<String>,
) {
    let (model, version) = (entry.model.clone(), entry.version);
    match step {
        Step::Current => {}
        Step::Activated(installed) => outcome.activated.push(installed),
        Step::Waiting(reason) => {
            tell(Event::Waiting { model: model.clone(), version, reason: reason.clone() });
            outcome.waiting.push(Refused { model, version, reason });
        }
        Step::Refused(reason) => {
            tell(Event::Refused { model: model.clone(), version, reason: reason.clone(), known: false });
            outcome.refused.push(Refused { model, version, reason });
        }
        Step::Blocked(why) => {
            tell(Event::Refused { model: model.clone(), version, reason: why.clone(), known: true });
            let reason = Reason::Blocked(why).to_string();
            outcome.refused.push(Refused { model, version, reason });
        }
        Step::Failed(reason, archive) => {
            tell(Event::Failed { model: model.clone(), version, reason: reason.clone() });
            wanted.extend(archive);
            outcome.failed.push(Failure { model, version, reason });
        }
    }
}

impl From<SessionError> for CheckError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Fetch(e) => Self::Fetch(e),
            SessionError::Verify(e) => Self::Verify(e),
        }
    }
}
