//! The state machine.

use crate::queue::{Key, Queue, Queued};
use crate::{
    Instant, Job, Limits, Mode, ModelId, OutOfMemory, Priority, Reason, Refused, Route, SlotId, SlotInUse,
    Ticket, UnknownSlot, Work,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// Worker time a model's priority may put it ahead of others, in microseconds per step. Bounded, because a model
/// that only ever sends urgent jobs must not starve the rest.
const HEAD_START_US: u64 = 20_000;

/// Bounds of a told waiting time, in milliseconds.
const RETRY_AFTER_MS: std::ops::RangeInclusive<u64> = 1..=60_000;

/// What a client of a draining daemon is told to wait, in milliseconds: about a restart.
const RESTART_MS: u32 = 1_000;

/// Parts of ten thousand make the whole share.
const WHOLE: u32 = 10_000;

/// Queues, slots and routes; see the crate for the rules.
#[derive(Debug)]
pub struct Scheduler<T> {
    limits: Limits,
    models: BTreeMap<ModelId, Model<T>>,
    slots: BTreeMap<SlotId, Slot>,
    /// Every queued job by deadline, with what finds it in its queue.
    deadlines: BTreeSet<(Instant, u64, ModelId, Priority)>,
    queued_bytes: u64,
    running: usize,
    /// Worker time used by the model served last when it was chosen: where a model that was idle joins.
    clock_us: u64,
    arrivals: u64,
    slots_made: u32,
    draining: bool,
}

#[derive(Debug)]
struct Model<T> {
    route: Route,
    queue: Queue<T>,
    /// Worker time used, on the scale of `Scheduler::clock_us`.
    used_us: u64,
    /// Ten-thousandths of a job owed to the candidate.
    credit: u32,
    /// Jobs refused while the queue was full and not yet made up for by finished ones.
    overflow: u64,
}

#[derive(Debug)]
struct Slot {
    peak_bytes: u64,
    /// Moving average of the time one run takes; 0 before anything is known.
    service_us: u64,
    running: usize,
    state: SlotState,
}

#[derive(Debug, PartialEq, Eq)]
enum SlotState {
    Live,
    Quarantined,
    /// Removed, but its last jobs still run.
    Retiring,
}

/// A count of everything held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Jobs queued.
    pub queued: usize,
    /// Bytes of queued jobs.
    pub queued_bytes: u64,
    /// Jobs running.
    pub running: usize,
    /// Memory taken by slots, retiring ones included, in bytes.
    pub memory_bytes: u64,
}

impl<T> Scheduler<T> {
    /// An empty scheduler.
    pub fn new(limits: Limits) -> Scheduler<T> {
        Scheduler {
            limits,
            models: BTreeMap::new(),
            slots: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            queued_bytes: 0,
            running: 0,
            clock_us: 0,
            arrivals: 0,
            slots_made: 0,
            draining: false,
        }
    }

    /// Takes memory for one loaded version. `service_us` is what one run is expected to take until it is measured;
    /// 0 where nobody knows.
    ///
    /// # Errors
    /// When its peak does not fit beside the others', those being removed included.
    pub fn add_slot(&mut self, peak_bytes: u64, service_us: u64) -> Result<SlotId, OutOfMemory> {
        let free = self.limits.memory_bytes.saturating_sub(self.stats().memory_bytes);
        if peak_bytes > free {
            return Err(OutOfMemory { needed: peak_bytes, free });
        }
        self.slots_made += 1;
        let id = SlotId(self.slots_made);
        self.slots.insert(id, Slot { peak_bytes, service_us, running: 0, state: SlotState::Live });
        Ok(id)
    }

    /// Gives a slot up. Jobs pinned to it come back; its memory is free once its last running job is finished.
    ///
    /// # Errors
    /// While a route names it.
    pub fn remove_slot(&mut self, slot: SlotId) -> Result<Vec<Job<T>>, SlotInUse> {
        if self.models.values().any(|model| model.route.stable == slot || model.route.candidate == Some(slot))
        {
            return Err(SlotInUse);
        }
        if let Some(gone) = self.slots.get_mut(&slot) {
            gone.state = SlotState::Retiring;
            self.free_if_done(slot);
        }
        Ok(self.take_everywhere(|_, pin| pin == Some(slot)))
    }

    /// Sends a model's jobs, queued ones included, along `route`; makes the model when it is new.
    ///
    /// # Errors
    /// When a slot of the route does not exist; nothing changes then.
    pub fn set_route(&mut self, model: ModelId, route: Route) -> Result<(), UnknownSlot> {
        for slot in std::iter::once(route.stable).chain(route.candidate) {
            if self.slots.get(&slot).is_none_or(|slot| slot.state == SlotState::Retiring) {
                return Err(UnknownSlot);
            }
        }
        let used_us = self.clock_us;
        self.models
            .entry(model)
            .or_insert_with(|| Model { route, queue: Queue::new(), used_us, credit: 0, overflow: 0 })
            .route = route;
        Ok(())
    }

    /// Forgets a model; its queued jobs come back, running ones end as they are. Its slots stay.
    pub fn remove_model(&mut self, model: ModelId) -> Vec<Job<T>> {
        let jobs = self.take(model, |_| true);
        self.models.remove(&model);
        jobs
    }

    /// Admits a job or gives it back at once.
    ///
    /// # Errors
    /// The job, why, and when to try again.
    pub fn submit(&mut self, now: Instant, job: Job<T>) -> Result<(), Refused<T>> {
        let refused = |job, reason, retry_after_ms| Err(Refused { job, reason, retry_after_ms });
        if self.draining {
            return refused(job, Reason::Draining, RESTART_MS);
        }
        let models = self.models.len();
        let queued = self.deadlines.len();
        let active = self.models.values().filter(|model| !model.queue.is_empty()).count();
        let Some(model) = self.models.get_mut(&job.model) else {
            return refused(job, Reason::UnknownModel, 0);
        };
        let Some(slot) = self.slots.get(&job.pin.unwrap_or(model.route.stable)) else {
            return refused(job, Reason::UnknownModel, 0);
        };
        match slot.state {
            SlotState::Live => {}
            SlotState::Quarantined => return refused(job, Reason::Quarantined, 0),
            SlotState::Retiring => return refused(job, Reason::UnknownModel, 0),
        }
        if job.deadline <= now {
            return refused(job, Reason::Expired, 0);
        }
        let limits = &self.limits;
        let share = if models > 1 { limits.bytes / 2 } else { limits.bytes };
        let full = model.queue.len() >= limits.jobs_per_model
            || queued >= limits.jobs
            || self.queued_bytes.saturating_add(job.bytes) > limits.bytes
            || (!model.queue.is_empty() && model.queue.bytes().saturating_add(job.bytes) > share);
        if full {
            model.overflow += 1;
            // The n-th refused is told when n places will have come free, so that they do not all return at once.
            let wait_us =
                (model.overflow.saturating_mul(slot.service_us).saturating_mul(active.max(1) as u64))
                    / limits.workers.max(1) as u64;
            let wait_ms = wait_us.div_ceil(1000).clamp(*RETRY_AFTER_MS.start(), *RETRY_AFTER_MS.end());
            return refused(job, Reason::Busy, u32::try_from(wait_ms).expect("clamped to a minute"));
        }
        if model.queue.is_empty() {
            model.used_us = model.used_us.max(self.clock_us);
        }
        self.arrivals += 1;
        self.queued_bytes += job.bytes;
        self.deadlines.insert((job.deadline, self.arrivals, job.model, job.priority));
        let key = (Reverse(job.priority), job.deadline, self.arrivals);
        model.queue.push(key, Queued { job, arrived: now });
        Ok(())
    }

    /// What an idle worker does now; `None` until something is submitted or [`Self::next_deadline`] comes.
    pub fn next(&mut self, now: Instant) -> Option<Work<T>> {
        if let Some(job) = self.expire(now) {
            return Some(Work::Expired(job));
        }
        let (_, key, id) = self
            .models
            .iter()
            .filter_map(|(id, model)| {
                let key = *model.queue.first()?;
                Some((model.used_us.saturating_add(delay_us(key.0.0)), key, *id))
            })
            .min()?;
        let queued = self.unqueue(id, &key);
        let model = self.models.get_mut(&id).expect("a queued job's model exists");
        let slot_id = queued.job.pin.unwrap_or_else(|| model.choose(&self.slots));
        let slot = self.slots.get_mut(&slot_id).expect("routes and pins of queued jobs name existing slots");
        slot.running += 1;
        self.running += 1;
        self.clock_us = self.clock_us.max(model.used_us);
        let charged_us = slot.service_us.max(1);
        model.used_us = model.used_us.saturating_add(charged_us);
        let ticket = Ticket { slot: slot_id, model: id, charged_us };
        Some(Work::Run { ticket, queued_us: now.since(queued.arrived), job: queued.job })
    }

    /// Takes out one queued job whose deadline has passed: for a clock that must answer it while all workers are busy.
    pub fn expire(&mut self, now: Instant) -> Option<Job<T>> {
        let &(deadline, arrival, model, priority) = self.deadlines.first()?;
        (deadline <= now).then(|| self.unqueue(model, &(Reverse(priority), deadline, arrival)).job)
    }

    /// Ends a run. `took_us` is what it took, `None` when it was not run after all (nobody waited for it).
    pub fn finished(&mut self, ticket: Ticket, took_us: Option<u64>) {
        self.running -= 1;
        if let Some(model) = self.models.get_mut(&ticket.model) {
            model.used_us =
                model.used_us.saturating_sub(ticket.charged_us).saturating_add(took_us.unwrap_or(0));
            model.overflow = if model.queue.is_empty() { 0 } else { model.overflow.saturating_sub(1) };
        }
        let slot = self.slots.get_mut(&ticket.slot).expect("a slot outlives its running jobs");
        slot.running -= 1;
        if let Some(took_us) = took_us {
            let known_us = if slot.service_us == 0 { took_us } else { slot.service_us };
            slot.service_us = (known_us.saturating_mul(7).saturating_add(took_us) / 8).max(1);
        }
        self.free_if_done(ticket.slot);
    }

    /// Marks a crashed slot: it gets no more jobs. The queued jobs only it could answer come back.
    pub fn quarantine(&mut self, slot: SlotId) -> Vec<Job<T>> {
        let Some(crashed) = self.slots.get_mut(&slot) else { return Vec::new() };
        if crashed.state == SlotState::Live {
            crashed.state = SlotState::Quarantined;
        }
        self.take_everywhere(|route, pin| pin.unwrap_or(route.stable) == slot)
    }

    /// What a run on a slot is expected to take, in microseconds, from those before; `None` before anything is known.
    pub fn service_us(&self, slot: SlotId) -> Option<u64> {
        self.slots.get(&slot).map(|slot| slot.service_us).filter(|known_us| *known_us > 0)
    }

    /// Whether a slot is quarantined.
    pub fn is_quarantined(&self, slot: SlotId) -> bool {
        self.slots.get(&slot).is_some_and(|slot| slot.state == SlotState::Quarantined)
    }

    /// Admits nothing from now on; what is queued still runs.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Takes back everything still queued, for a caller whose patience ended.
    pub fn take_queued(&mut self) -> Vec<Job<T>> {
        self.take_everywhere(|_, _| true)
    }

    /// Whether nothing is queued and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.running == 0 && self.deadlines.is_empty()
    }

    /// When the next queued job expires.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, ..)| *deadline)
    }

    /// Counts of everything held.
    pub fn stats(&self) -> Stats {
        Stats {
            queued: self.deadlines.len(),
            queued_bytes: self.queued_bytes,
            running: self.running,
            memory_bytes: self.slots.values().map(|slot| slot.peak_bytes).sum(),
        }
    }

    /// Jobs queued over all models.
    pub fn queued_in_all(&self) -> usize {
        self.deadlines.len()
    }

    /// Jobs queued for one model.
    pub fn queued(&self, model: ModelId) -> usize {
        self.models.get(&model).map_or(0, |model| model.queue.len())
    }

    fn take_everywhere(&mut self, wanted: impl Fn(&Route, Option<SlotId>) -> bool) -> Vec<Job<T>> {
        let models: Vec<ModelId> = self.models.keys().copied().collect();
        let mut jobs = Vec::new();
        for id in models {
            let route = self.models[&id].route;
            jobs.extend(self.take(id, |pin| wanted(&route, pin)));
        }
        jobs
    }

    fn take(&mut self, id: ModelId, wanted: impl Fn(Option<SlotId>) -> bool) -> Vec<Job<T>> {
        let Some(model) = self.models.get(&id) else { return Vec::new() };
        let keys = model.queue.keys_by_pin(wanted);
        keys.iter().map(|key| self.unqueue(id, key).job).collect()
    }

    /// The one place a job leaves its queue.
    fn unqueue(&mut self, id: ModelId, key: &Key) -> Queued<T> {
        let model = self.models.get_mut(&id).expect("a queued job's model exists");
        let queued = model.queue.remove(key).expect("the key was just read off the queue or the deadlines");
        self.deadlines.remove(&(key.1, key.2, id, key.0.0));
        self.queued_bytes -= queued.job.bytes;
        queued
    }

    fn free_if_done(&mut self, id: SlotId) {
        if self.slots.get(&id).is_some_and(|slot| slot.state == SlotState::Retiring && slot.running == 0) {
            self.slots.remove(&id);
        }
    }
}

impl<T> Model<T> {
    /// The slot the next unpinned job goes to.
    fn choose(&mut self, slots: &BTreeMap<SlotId, Slot>) -> SlotId {
        let Route { stable, candidate: Some(candidate), mode: Mode::Canary, share } = self.route else {
            return self.route.stable;
        };
        if slots.get(&candidate).is_none_or(|slot| slot.state != SlotState::Live) {
            return stable;
        }
        self.credit += u32::from(share).min(WHOLE);
        if self.credit < WHOLE {
            return stable;
        }
        self.credit -= WHOLE;
        candidate
    }
}

/// How far behind its used time a model with such a job at its head is placed.
fn delay_us(priority: Priority) -> u64 {
    match priority {
        Priority::High => 0,
        Priority::Normal => HEAD_START_US,
        Priority::Low => 2 * HEAD_START_US,
    }
}
