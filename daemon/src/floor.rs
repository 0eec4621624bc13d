//! The floor between transports and workers: the scheduler, the loaded models, and the one lock around both.
//!
//! Here is the floor itself and what workers find on it; [`requests`] is how requests come onto it, [`models`] how models
//! come and go.

mod models;
mod requests;

use crate::{
    config,
    intake::{ReplyTo, Request},
    place::{Heart, Place, Run},
    stats::{ModelStats, Outcomes},
    trial::Watch,
};
use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic::AtomicU64},
    time::{Duration, Instant as Clock},
};
use tokio::sync::watch;
use tractd_engine::Plan;
use tractd_scheduler::{Instant, Limits, ModelId, Reason, Scheduler, SlotId, Stats, Ticket, Work};
use tractd_update::trial::Version;

/// Longest an idle thread sleeps, so that its heart is seen to beat.
pub(crate) const BEAT: Duration = Duration::from_secs(1);

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

    pub(crate) fn stats(&self) -> Stats {
        self.state().scheduler.stats()
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

impl Model {
    fn slots(&self) -> impl IntoIterator<Item = SlotId> + use<> {
        std::iter::once(self.slot).chain(self.candidate)
    }
}

impl State {
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

#[cfg(test)]
mod tests;
