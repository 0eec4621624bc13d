//! Requests come in and are answered or refused. What waits is taken out by [`Floor::take`].

use super::{Absent, Floor, Model, Pending, State};
use crate::{
    intake::{Payload, Reply, ReplyTo, Request, Spare},
    place::Run,
    stats::ModelStats,
    trial::{Answer, Watch},
};
use std::sync::{Arc, atomic::Ordering::Relaxed};
use tractd_scheduler::{Instant, Job, ModelId, Priority, Reason, Refused, SlotId, Work};
use tractd_wire::{Pin, Selector, Status};

/// What a client asking for a model that is being loaded is told to wait, in milliseconds.
const LOADING_RETRY_MS: u32 = 500;

/// How long a copy of a request is worth running, in microseconds: it tells of the load it was made under.
const COPY_DEADLINE_US: u64 = 1_000_000;

/// Longest run, in microseconds, that a thread with nothing else to do takes on itself: waking a worker and being woken
/// by it takes about a third of this, and nobody should notice that the thread was away.
pub(super) const SHORT_US: u64 = 200;

/// And a thread for which more has come in: no longer than the handing over would keep it.
pub(super) const BRIEF_US: u64 = 25;

/// The label under which a version on trial can be asked for.
const CANARY: &str = "canary";

impl Floor {
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

    pub(super) fn expire(&self, pending: Pending) {
        let detail = "its deadline passed before a worker was free";
        let reply = Reply::refusal(Status::DeadlineExceeded, &pending.request.model, detail);
        self.answer(pending.stats.as_deref(), pending.reply, reply);
    }

    pub(super) fn refuse(&self, refused: Refused<Pending>) {
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

    pub(super) fn refuse_all(&self, jobs: Vec<Job<Pending>>, reason: Reason, retry_after_ms: u32) {
        for job in jobs {
            self.refuse(Refused { job, reason, retry_after_ms });
        }
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
}

/// What a selector leads to.
struct Found {
    model: ModelId,
    pin: Option<SlotId>,
    /// Where it runs, unless a candidate gets its share.
    slot: SlotId,
    stats: Arc<ModelStats>,
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
}

fn priority(priority: tractd_wire::Priority) -> Priority {
    match priority {
        tractd_wire::Priority::Low => Priority::Low,
        tractd_wire::Priority::Normal => Priority::Normal,
        tractd_wire::Priority::High => Priority::High,
    }
}
