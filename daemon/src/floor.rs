//! The floor between transports and workers: the scheduler, the loaded models, and the one lock around both.

use crate::{
    config,
    intake::{Payload, Reply, ReplyTo, Request, Spare},
    place::{Heart, Place, Run},
    stats::{ModelStats, Outcomes},
    trial::{Answer, Watch},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant as Clock},
};
use tokio::sync::watch;
use tractd_bundle::Digest;
use tractd_engine::Plan;
use tractd_scheduler::{
    Instant, Job, Limits, Mode, ModelId, OutOfMemory, Priority, Reason, Refused, Route, Scheduler, SlotId,
    Stats, Ticket, Work,
};
use tractd_update::trial::Version;
use tractd_wire::{Pin, Selector, Status};

/// Longest an idle thread sleeps, so that its heart is seen to beat.
pub(crate) const BEAT: Duration = Duration::from_secs(1);

/// What a client asking for a model that is being loaded is told to wait, in milliseconds.
const LOADING_RETRY_MS: u32 = 500;

/// Longest a swap waits for busy workers to prepare their sessions; the others prepare theirs at their next job.
const PREPARE_WAIT: Duration = Duration::from_secs(1);

/// How long a copy of a request is worth running, in microseconds: it tells of the load it was made under.
const COPY_DEADLINE_US: u64 = 1_000_000;

/// Longest run, in microseconds, that a thread with nothing else to do takes on itself: waking a worker and being woken
/// by it takes about a third of this, and nobody should notice that the thread was away.
const SHORT_US: u64 = 200;

/// And a thread for which more has come in: no longer than the handing over would keep it.
const BRIEF_US: u64 = 25;

/// The label under which a version on trial can be asked for.
const CANARY: &str = "canary";

/// One version of a model, ready to run.
pub(crate) struct Loaded {
    pub(crate) plan: Arc<Plan>,
    pub(crate) name: Arc<str>,
    pub(crate) signed: bool,
    /// Memory it was measured to take at its peak.
    pub(crate) peak_bytes: u64,
    /// Time one run was measured to take, in microseconds.
    pub(crate) service_us: u64,
    pub(crate) stats: Arc<ModelStats>,
}

/// A request on its way, with whoever waits for it.
pub(crate) struct Pending {
    pub(crate) request: Request,
    pub(crate) reply: ReplyTo,
    stats: Option<Arc<ModelStats>>,
    deadline: Instant,
    /// Asked for by version or label: no other one may answer.
    pinned: bool,
}

/// Which trial a slot is part of, and as what.
pub(crate) type Role = (Arc<Watch>, Version);

/// What a worker does next.
#[allow(
    clippy::large_enum_variant,
    reason = "moved once from the floor to its worker; a box would be an allocation per request"
)]
pub(crate) enum Task {
    /// Carry it out.
    Run(Run),
    /// Models came or went: these are all there are now. Then hand the place back with [`Floor::prepared`].
    Prepare { place: Place, generation: u64, plans: Vec<(SlotId, Arc<Plan>)> },
    /// Nothing to do; the heart may beat.
    Idle,
    /// The daemon ends.
    Stop,
}

/// Where requests wait and workers find them.
pub(crate) struct Floor {
    start: Clock,
    deadline: Duration,
    deadline_max: Duration,
    pub(crate) limits: Limits,
    pub(crate) outcomes: Outcomes,
    pub(crate) requests: AtomicU64,
    /// One short lock around the scheduler: a submit or a take holds it for a few map operations (about a
    /// microsecond) while a run takes hundreds, and a condition variable needs a lock in any case. Nothing under
    /// it does I/O, runs a model, or sends a reply.
    state: Mutex<State>,
    /// Wakes a worker.
    work: Condvar,
    /// Wakes the clock thread, which answers what expires while every worker is busy.
    alarm: Condvar,
    /// Wakes whoever waits for workers to prepare or for the floor to be empty.
    settled: Condvar,
    changed: watch::Sender<u64>,
    hearts: Vec<Arc<Heart>>,
}

struct State {
    scheduler: Scheduler<Pending>,
    models: HashMap<Arc<str>, Model>,
    slots: HashMap<SlotId, Arc<Loaded>>,
    /// Both slots of every trial; mostly empty.
    trials: HashMap<SlotId, Role>,
    /// Why a known model is not served; what is not here either is unknown.
    absent: HashMap<String, Absent>,
    models_made: u32,
    /// Places nobody runs in; the one used last is the first to be used again.
    places: Vec<Place>,
    /// Counts changes of `slots`, and up to which of them each place is prepared.
    generation: u64,
    prepared: Vec<u64>,
    idle_workers: usize,
    /// When the clock thread will look by itself.
    alarm_at: Instant,
    /// Before the first look for models has ended.
    starting: bool,
    draining: bool,
    stopping: bool,
}

struct Model {
    id: ModelId,
    slot: SlotId,
    /// The version on trial beside it.
    candidate: Option<SlotId>,
}

/// Why a known model is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Absent {
    /// It is on its way.
    Loading,
    /// It was refused.
    Failed(String),
}

impl Floor {
    pub(crate) fn new(limits: Limits, config: &config::Limits) -> Arc<Floor> {
        let places: Vec<Place> = (0..limits.workers).map(Place::new).collect();
        Arc::new(Floor {
            start: Clock::now(),
            deadline: Duration::from_millis(config.deadline_ms.into()),
            deadline_max: Duration::from_millis(config.deadline_ms_max.into()),
            limits,
            outcomes: Outcomes::default(),
            requests: AtomicU64::new(0),
            hearts: places.iter().map(Place::heart).collect(),
            state: Mutex::new(State {
                scheduler: Scheduler::new(limits),
                models: HashMap::new(),
                slots: HashMap::new(),
                trials: HashMap::new(),
                absent: HashMap::new(),
                models_made: 0,
                places,
                generation: 0,
                prepared: vec![0; limits.workers],
                idle_workers: 0,
                alarm_at: Instant(u64::MAX),
                starting: true,
                draining: false,
                stopping: false,
            }),
            work: Condvar::new(),
            alarm: Condvar::new(),
            settled: Condvar::new(),
            changed: watch::Sender::new(0),
        })
    }

    /// Time since the floor was made.
    pub(crate) fn uptime(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn now(&self) -> Instant {
        Instant(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under the lock of the floor")
    }

    /// The hearts of all places.
    pub(crate) fn hearts(&self) -> Vec<Arc<Heart>> {
        self.hearts.clone()
    }

    /// Takes a request in; its reply is sent now or later, but once. What comes back is the caller's to carry out: it is
    /// short enough for the time the caller has, and nothing waits before it.
    #[must_use = "the request would never be answered"]
    pub(crate) fn submit(&self, mut request: Request, reply: ReplyTo, spare: Spare) -> Option<Run> {
        self.requests.fetch_add(1, Relaxed);
        let now = self.now();
        let selector = match Selector::parse(&request.model) {
            Ok(selector) => selector,
            Err(error) => {
                let refusal = Reply::refusal(Status::Malformed, "", format!("model: {error}"));
                self.answer(None, reply, refusal);
                return None;
            }
        };
        let mut state = self.state();
        let mut found = state.find(selector);
        let here = found.as_ref().is_ok_and(|found| self.runs_here(&state, found, &request, spare));
        if !here && found.is_ok() && request.payload.is_shared() {
            drop(state);
            request.payload.detach();
            state = self.state();
            found = state.find(selector);
        }
        let found = match found {
            Ok(found) => found,
            Err(refusal) => {
                drop(state);
                self.answer(None, reply, refusal);
                return None;
            }
        };
        let patience = request.deadline.unwrap_or(self.deadline).min(self.deadline_max);
        let deadline = Instant(now.0.saturating_add(u64::try_from(patience.as_micros()).unwrap_or(u64::MAX)));
        let job = Job {
            model: found.model,
            pin: found.pin,
            deadline,
            priority: priority(request.priority),
            bytes: request.payload.bytes(),
            payload: Pending {
                request,
                reply,
                stats: Some(found.stats),
                deadline,
                pinned: found.pin.is_some(),
            },
        };
        let refused = state.scheduler.submit(now, job).err();
        let next = if here && refused.is_none() { state.scheduler.next(now) } else { None };
        match next {
            Some(Work::Run { ticket, job, queued_us }) => {
                return Some(state.run(ticket, job.payload, queued_us));
            }
            Some(Work::Expired(job)) => {
                drop(state);
                self.expire(job.payload);
                return None;
            }
            None => {}
        }
        let wake_worker = refused.is_none() && state.idle_workers > 0 && !state.places.is_empty();
        let wake_clock = state.clock_is_late();
        drop(state);
        if wake_worker {
            self.work.notify_one();
        }
        if wake_clock {
            self.alarm.notify_one();
        }
        if let Some(refused) = refused {
            self.refuse(refused);
        }
        None
    }

    /// Whether the thread that brings a request runs it, too. Only tensors: what an image costs is known once it is
    /// decoded. Nothing on trial: it has yet to show how long it takes.
    fn runs_here(&self, state: &State, found: &Found, request: &Request, spare: Spare) -> bool {
        let longest_us = match spare {
            Spare::None => return false,
            Spare::Some if self.limits.workers > 1 => BRIEF_US,
            Spare::Some | Spare::Plenty => SHORT_US,
        };
        let usual_us = || state.scheduler.service_us(found.slot);
        matches!(request.payload, Payload::Tensors { .. })
            && state.scheduler.queued_in_all() == 0
            && !state.trials.contains_key(&found.slot)
            && state.places.last().is_some_and(|place| place.generation == state.generation)
            && usual_us().is_some_and(|usual_us| usual_us <= longest_us)
    }

    /// What a worker does next; waits for it up to a [`BEAT`].
    pub(crate) fn take(&self) -> Task {
        let mut state = self.state();
        let mut waited = false;
        loop {
            if let Some(place) = state.unprepared() {
                let plans = state.slots.iter().map(|(slot, loaded)| (*slot, loaded.plan.clone())).collect();
                return Task::Prepare { place, generation: state.generation, plans };
            }
            let work = if state.places.is_empty() { None } else { state.scheduler.next(self.now()) };
            match work {
                Some(Work::Run { ticket, job, queued_us }) => {
                    let run = state.run(ticket, job.payload, queued_us);
                    if state.clock_is_late() {
                        self.alarm.notify_one();
                    }
                    return Task::Run(run);
                }
                Some(Work::Expired(job)) => {
                    drop(state);
                    self.expire(job.payload);
                    state = self.state();
                    continue;
                }
                None if state.stopping => return Task::Stop,
                None if waited => return Task::Idle,
                None => {}
            }
            state.idle_workers += 1;
            state =
                self.work.wait_timeout(state, BEAT).expect("nothing panics under the lock of the floor").0;
            state.idle_workers -= 1;
            waited = true;
        }
    }

    /// Takes a place back that has its sessions for every model of its generation.
    pub(crate) fn prepared(&self, place: Place) {
        let mut state = self.state();
        state.prepared[place.number] = place.generation;
        state.places.push(place);
        drop(state);
        self.settled.notify_all();
    }

    /// Takes place and ticket back after a run; `took_us` is `None` when nobody waited for it.
    pub(crate) fn finished(&self, place: Place, ticket: Ticket, took_us: Option<u64>) {
        let mut state = self.state();
        state.scheduler.finished(ticket, took_us);
        // Whoever found no place free has gone to sleep over it.
        let wanted = place.generation != state.generation || state.scheduler.queued_in_all() > 0;
        let wake_worker = wanted && state.idle_workers > 0;
        state.places.push(place);
        if state.draining && state.scheduler.is_idle() {
            self.settled.notify_all();
        }
        drop(state);
        if wake_worker {
            self.work.notify_one();
        }
    }

    /// Sends a reply and counts it.
    pub(crate) fn answer(&self, stats: Option<&ModelStats>, to: ReplyTo, reply: Reply) {
        if matches!(to, ReplyTo::Shadow(..)) {
            return to.send(reply);
        }
        self.outcomes.count(reply.status);
        if let Some(stats) = stats {
            stats.outcomes.count(reply.status);
        }
        to.send(reply);
    }

    /// Answers what expires while no worker is free; runs on a thread of its own until the floor stops.
    pub(crate) fn watch_deadlines(&self, beat: impl Fn()) {
        let mut state = self.state();
        while !state.stopping {
            let now = self.now();
            if let Some(job) = state.scheduler.expire(now) {
                drop(state);
                self.expire(job.payload);
                state = self.state();
                continue;
            }
            beat();
            let next = state.scheduler.next_deadline().map_or(u64::MAX, |next| next.since(now));
            let wait = Duration::from_micros(next).min(BEAT);
            state.alarm_at = Instant(now.0 + u64::try_from(wait.as_micros()).expect("a beat fits"));
            state =
                self.alarm.wait_timeout(state, wait).expect("nothing panics under the lock of the floor").0;
        }
    }

    fn expire(&self, pending: Pending) {
        let detail = "its deadline passed before a worker was free";
        let reply = Reply::refusal(Status::DeadlineExceeded, &pending.request.model, detail);
        self.answer(pending.stats.as_deref(), pending.reply, reply);
    }

    fn refuse(&self, refused: Refused<Pending>) {
        let Refused { job: Job { payload: pending, .. }, reason, retry_after_ms } = refused;
        let (status, detail) = match reason {
            Reason::Busy => (Status::Busy, "the queue is full"),
            Reason::Expired => (Status::DeadlineExceeded, "its deadline had passed when it came"),
            Reason::Draining => (Status::Draining, "the daemon is stopping"),
            Reason::UnknownModel => (Status::ModelNotFound, "that version is gone"),
            Reason::Quarantined => (Status::Quarantined, "the model crashed; it is out until it is reloaded"),
        };
        let reply = Reply::refusal(status, &pending.request.model, detail).retry_after(retry_after_ms);
        self.answer(pending.stats.as_deref(), pending.reply, reply);
    }

    fn refuse_all(&self, jobs: Vec<Job<Pending>>, reason: Reason, retry_after_ms: u32) {
        for job in jobs {
            self.refuse(Refused { job, reason, retry_after_ms });
        }
    }
}

/// Models come and go.
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
        let mut state = self.state();
        let Some(model) = state.models.get_mut(name) else { return };
        let (id, stable) = (model.id, model.slot);
        let Some(candidate) = model.candidate.take() else { return };
        model.slot = candidate;
        state.scheduler.set_route(id, Route::to(candidate)).expect("it was routed to before");
        state.trials.remove(&candidate);
        let orphans = state.remove_slot(stable);
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

    /// The version on trial is gone, and the one before answers alone.
    pub(crate) fn withdraw(&self, name: &str) {
        let mut state = self.state();
        let Some(model) = state.models.get_mut(name) else { return };
        let (id, stable) = (model.id, model.slot);
        let Some(candidate) = model.candidate.take() else { return };
        state.scheduler.set_route(id, Route::to(stable)).expect("it answered before");
        state.trials.remove(&stable);
        let orphans = state.remove_slot(candidate);
        drop(state);
        self.release(orphans);
        self.announce();
    }

    /// The version on trial beside the one that answers.
    pub(crate) fn candidate(&self, name: &str) -> Option<Digest> {
        let state = self.state();
        let slot = state.models.get(name)?.candidate?;
        Some(state.slots[&slot].plan.digest())
    }

    /// Has the version on trial answer a request the one before has answered already. Only while nobody waits for
    /// that model: a copy must not take a client's place in the queue.
    pub(crate) fn submit_copy(&self, name: &str, request: Request, watch: Arc<Watch>, answer: Answer) {
        let mut state = self.state();
        let Some(&Model { id, candidate: Some(candidate), .. }) = state.models.get(name) else { return };
        if state.scheduler.queued(id) > 0 {
            return;
        }
        let now = self.now();
        let deadline = Instant(now.0.saturating_add(COPY_DEADLINE_US));
        let bytes = request.payload.bytes();
        let reply = ReplyTo::Shadow(watch, answer);
        let payload = Pending { request, reply, stats: None, deadline, pinned: true };
        let job = Job { model: id, pin: Some(candidate), deadline, priority: Priority::Low, bytes, payload };
        // One that is not admitted is one copy less.
        drop(state.scheduler.submit(now, job));
        drop(state);
        self.work.notify_one();
    }

    /// Gives a request that the version in slot `failed` failed to the one before; back to the caller when there is none,
    /// or the request wants no other.
    pub(crate) fn fall_back(&self, name: &str, failed: SlotId, pending: Pending) -> Result<(), Pending> {
        let mut state = self.state();
        let (id, stable) = match state.models.get(name) {
            Some(model) if model.slot != failed && !pending.pinned => (model.id, model.slot),
            _ => return Err(pending),
        };
        let job = Job {
            model: id,
            pin: Some(stable),
            deadline: pending.deadline,
            priority: Priority::High,
            bytes: pending.request.payload.bytes(),
            payload: pending,
        };
        let refused = state.scheduler.submit(self.now(), job).err();
        drop(state);
        match refused {
            Some(refused) => Err(refused.job.payload),
            None => {
                self.work.notify_one();
                Ok(())
            }
        }
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

    pub(crate) fn stats(&self) -> Stats {
        self.state().scheduler.stats()
    }

    /// When about half of what is queued now will be done, in milliseconds, for refusals made before the queue.
    pub(crate) fn retry_after_ms(&self) -> u32 {
        let state = self.state();
        let service_us = |model: &Model| {
            (state.scheduler.queued(model.id) as u64).saturating_mul(state.slots[&model.slot].service_us)
        };
        let backlog_us: u64 = state.models.values().map(service_us).fold(0, u64::saturating_add);
        let half_ms = backlog_us / (2_000 * self.limits.workers.max(1) as u64);
        u32::try_from(half_ms.clamp(1, 60_000)).expect("clamped to a minute")
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

/// The daemon's life.
impl Floor {
    /// The first look for models has ended: what is not there now is not found.
    pub(crate) fn started(&self) {
        self.state().starting = false;
        self.announce();
    }

    pub(crate) fn is_starting(&self) -> bool {
        self.state().starting
    }

    /// Refuses everything from now on.
    pub(crate) fn drain(&self) {
        let mut state = self.state();
        state.draining = true;
        state.scheduler.drain();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.state().draining
    }

    /// Waits until nothing is queued and nothing runs; false when that takes longer than `grace`.
    pub(crate) fn wait_idle(&self, grace: Duration) -> bool {
        let state = self.state();
        let (_state, timeout) = self
            .settled
            .wait_timeout_while(state, grace, |state| !state.scheduler.is_idle())
            .expect("nothing panics under the lock of the floor");
        !timeout.timed_out()
    }

    /// Answers what is still queued and ends workers and clock.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.stopping = true;
        let left = state.scheduler.take_queued();
        self.work.notify_all();
        self.alarm.notify_all();
        self.settled.notify_all();
        drop(state);
        self.refuse_all(left, Reason::Draining, 0);
    }
}

/// What a selector leads to.
struct Found {
    model: ModelId,
    pin: Option<SlotId>,
    /// Where it runs, unless a candidate gets its share.
    slot: SlotId,
    stats: Arc<ModelStats>,
}

impl Model {
    fn slots(&self) -> impl IntoIterator<Item = SlotId> + use<> {
        std::iter::once(self.slot).chain(self.candidate)
    }
}

impl State {
    fn find(&self, selector: Selector<'_>) -> Result<Found, Reply> {
        let name = selector.name.as_str();
        let Some(model) = self.models.get(name) else { return Err(self.not_found(name)) };
        let loaded = &self.slots[&model.slot];
        let of_version =
            |version: u64| model.slots().into_iter().find(|slot| self.slots[slot].plan.version() == version);
        let pin = match selector.pin {
            Pin::Any => None,
            Pin::Version(version) if of_version(version).is_some() => of_version(version),
            Pin::Label(label) if label.as_str() == CANARY && model.candidate.is_some() => model.candidate,
            Pin::Version(version) => {
                let here = loaded.plan.version();
                let detail = format!("{name} has no version {version} here; it is at version {here}");
                return Err(Reply::refusal(Status::ModelNotFound, name, detail));
            }
            Pin::Label(label) => {
                let detail = format!("{name} has no version labelled {:?} here", label.as_str());
                return Err(Reply::refusal(Status::ModelNotFound, name, detail));
            }
        };
        Ok(Found { model: model.id, pin, slot: pin.unwrap_or(model.slot), stats: loaded.stats.clone() })
    }

    fn not_found(&self, name: &str) -> Reply {
        match self.absent.get(name) {
            Some(Absent::Failed(reason)) => {
                let detail = format!("model {name} is here but did not load: {reason}");
                Reply::refusal(Status::ModelNotFound, name, detail)
            }
            Some(Absent::Loading) => {
                Reply::refusal(Status::Busy, name, "the model is being loaded").retry_after(LOADING_RETRY_MS)
            }
            None if self.starting => {
                Reply::refusal(Status::Busy, name, "models are being loaded").retry_after(LOADING_RETRY_MS)
            }
            None => {
                let detail = format!("no model {name} here; `tractctl models` lists what there is");
                Reply::refusal(Status::ModelNotFound, name, detail)
            }
        }
    }

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

    /// Begins a run in the place used last.
    fn run(&mut self, ticket: Ticket, pending: Pending, queued_us: u64) -> Run {
        let slot = ticket.slot();
        let place = self.places.pop().expect("a run is only begun while a place is free");
        let (loaded, role) = (self.slots[&slot].clone(), self.trials.get(&slot).cloned());
        Run { place, slot, ticket, loaded, pending, queued_us, role }
    }

    /// A free place that lacks sessions, or has some of models that are gone.
    fn unprepared(&mut self) -> Option<Place> {
        let index = self.places.iter().position(|place| place.generation != self.generation)?;
        Some(self.places.swap_remove(index))
    }

    /// Whether something expires before the clock thread looks by itself, and no idle worker would see to it.
    fn clock_is_late(&self) -> bool {
        (self.idle_workers == 0 || self.places.is_empty())
            && self.scheduler.next_deadline().is_some_and(|next| next < self.alarm_at)
    }
}

fn priority(priority: tractd_wire::Priority) -> Priority {
    match priority {
        tractd_wire::Priority::Low => Priority::Low,
        tractd_wire::Priority::Normal => Priority::Normal,
        tractd_wire::Priority::High => Priority::High,
    }
}

#[cfg(test)]
mod tests;
