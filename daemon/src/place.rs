//! Where models run. A [`Place`] holds sessions of its own, and whoever holds it may run one request: a worker, or the
//! thread a short request came by. There are as many places as may run at once.
//!
//! A panic inside a model quarantines that model and nothing else.

use crate::{
    floor::{Floor, Loaded, Pending, Role},
    frame::dtype_from_wire,
    intake::{Payload, Reply, ReplyTo, Request, TensorDesc},
    trial::{self, Answer},
};
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tractd_engine::{Input, Output, Plan, RunError, Session, TensorView, Want};
use tractd_scheduler::{Instant, SlotId, Ticket};
use tractd_update::trial::{Observation, Version};
use tractd_wire::Status;

/// A run longer than this counts as hung, and the daemon as ill: longer than any model that is of use to anyone.
pub(crate) const RUN_MAX: Duration = Duration::from_secs(120);

/// What one run at a time needs.
pub(crate) struct Place {
    pub(crate) number: usize,
    /// The change of models its sessions are prepared for.
    pub(crate) generation: u64,
    sessions: HashMap<SlotId, Session>,
    /// Beats when a run begins, and rests outside of one.
    heart: Arc<Heart>,
}

/// A request on its way to its reply.
pub(crate) struct Run {
    pub(crate) place: Place,
    pub(crate) slot: SlotId,
    pub(crate) ticket: Ticket,
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) pending: Pending,
    pub(crate) queued_us: u64,
    pub(crate) role: Option<Role>,
}

/// Since when something has gone on that must not go on for long.
pub(crate) struct Heart {
    /// Microseconds on the floor's clock, or [`RESTING`].
    since_us: AtomicU64,
    longest: Duration,
}

/// Nothing goes on.
const RESTING: u64 = u64::MAX;

impl Heart {
    /// One that rests.
    pub(crate) fn new(longest: Duration) -> Arc<Heart> {
        Arc::new(Heart { since_us: AtomicU64::new(RESTING), longest })
    }

    pub(crate) fn beat(&self, now: Instant) {
        self.since_us.store(now.0, Relaxed);
    }

    pub(crate) fn rest(&self) {
        self.since_us.store(RESTING, Relaxed);
    }

    /// Whether it rests, or beat lately.
    pub(crate) fn is_alive(&self, now: Instant) -> bool {
        Duration::from_micros(now.0.saturating_sub(self.since_us.load(Relaxed))) < self.longest
    }
}

impl Place {
    pub(crate) fn new(number: usize) -> Place {
        Place { number, generation: 0, sessions: HashMap::new(), heart: Heart::new(RUN_MAX) }
    }

    pub(crate) fn heart(&self) -> Arc<Heart> {
        self.heart.clone()
    }

    /// Makes the sessions it lacks, and drops those of models that are gone.
    pub(crate) fn prepare(&mut self, generation: u64, plans: Vec<(SlotId, Arc<Plan>)>) {
        self.sessions.retain(|slot, _| plans.iter().any(|(live, _)| live == slot));
        for (slot, plan) in plans {
            // What fails here fails again, with an answer, at the first request.
            if !self.sessions.contains_key(&slot)
                && let Ok(Ok(session)) = catch_unwind(AssertUnwindSafe(|| Session::new(plan)))
            {
                self.sessions.insert(slot, session);
            }
        }
        self.generation = generation;
    }
}

impl Run {
    /// Runs it, sends the reply, and gives the place back.
    pub(crate) fn carry_out(self, floor: &Floor) {
        let Run { mut place, slot, ticket, loaded, pending, queued_us, role } = self;
        if pending.reply.is_abandoned() {
            loaded.stats.abandoned.fetch_add(1, Relaxed);
            return floor.finished(place, ticket, None);
        }
        let start = floor.now();
        place.heart.beat(start);
        let outcome = run_caught(&mut place.sessions, slot, &loaded, &pending.request);
        place.heart.rest();
        let took_us = floor.now().since(start);
        if let Err(Failure::Panicked) = outcome {
            log::error!(model = &*loaded.name, version = loaded.plan.version(); "model panicked, quarantined");
            place.sessions.remove(&slot);
            floor.quarantine(slot);
        }
        let reply = reply(&loaded, u32::try_from(queued_us).unwrap_or(u32::MAX), outcome);
        hand_over(floor, slot, &loaded, pending, reply, role);
        floor.finished(place, ticket, Some(took_us));
    }
}

/// Sends the reply where it belongs. A version on trial is judged by it first, and what it failed is answered by
/// the version before.
fn hand_over(
    floor: &Floor,
    slot: SlotId,
    loaded: &Loaded,
    pending: Pending,
    reply: Reply,
    role: Option<Role>,
) {
    if matches!(pending.reply, ReplyTo::Shadow(..)) {
        return floor.answer(None, pending.reply, reply);
    }
    let mut pending = pending;
    let mut copy = None;
    if let Some((watch, version)) = role {
        let seen = trial::seen(version, &reply);
        let sound = matches!(seen, Some(Observation::Ran { .. }) | None);
        if let Some(seen) = seen {
            watch.observe(seen);
        }
        if !sound {
            match floor.fall_back(&loaded.name, slot, pending) {
                Ok(()) => return,
                Err(back) => pending = back,
            }
        }
        let answered = version == Version::Incumbent && reply.status == Status::Ok;
        if answered && watch.wants_copy(reply.timings.infer_us.into()) {
            copy = Some((watch, Answer::of(&reply)));
        }
    }
    if reply.status == Status::Ok {
        loaded.stats.record(reply.queue_us, reply.timings);
    }
    floor.answer(Some(&loaded.stats), pending.reply, reply);
    if let Some((watch, answer)) = copy {
        floor.submit_copy(&loaded.name, pending.request, watch, answer);
    }
}

/// Why a request has no result.
enum Failure {
    Refused(Status, String),
    Panicked,
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Failure {
        let status = match &error {
            RunError::UnsupportedMedia(_) => Status::UnsupportedType,
            RunError::TooLarge { .. } => Status::TooLarge,
            RunError::Internal(_) => Status::Internal,
            RunError::UnknownInput { .. }
            | RunError::DuplicateInput { .. }
            | RunError::MissingInput { .. }
            | RunError::WrongDtype { .. }
            | RunError::WrongShape { .. }
            | RunError::WrongLength { .. }
            | RunError::NotFinite { .. }
            | RunError::NotBool { .. }
            | RunError::UnfitShape(_)
            | RunError::MediaDecode(_) => Status::InvalidInput,
        };
        Failure::Refused(status, error.to_string())
    }
}

/// Runs a request behind a wall: the session of a run that panicked is never used again, so nothing sees its state.
fn run_caught(
    sessions: &mut HashMap<SlotId, Session>,
    slot: SlotId,
    loaded: &Loaded,
    request: &Request,
) -> Result<Output, Failure> {
    catch_unwind(AssertUnwindSafe(|| {
        let session = match sessions.entry(slot) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Session::new(loaded.plan.clone())?)
            }
        };
        run(session, request)
    }))
    .unwrap_or(Err(Failure::Panicked))
}

fn run(session: &mut Session, request: &Request) -> Result<Output, Failure> {
    let want = Want { tensors: request.want.tensors, classes: request.want.classes };
    match &request.payload {
        Payload::Media(bytes) => Ok(session.run(Input::Media(bytes), want)?),
        Payload::Tensors { descs, body } => Ok(session.run(Input::Tensors(&views(descs, body)?), want)?),
    }
}

/// Each tensor with its part of the body.
fn views<'a>(descs: &'a [TensorDesc], mut body: &'a [u8]) -> Result<Vec<TensorView<'a>>, Failure> {
    let mismatch =
        || Failure::Refused(Status::Malformed, "types and shapes do not add up to the body".into());
    let mut views = Vec::with_capacity(descs.len());
    for desc in descs {
        let elements = desc.shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim as usize));
        let bytes =
            elements.and_then(|elements| elements.checked_mul(desc.dtype.size())).ok_or_else(mismatch)?;
        let (data, rest) = body.split_at_checked(bytes).ok_or_else(mismatch)?;
        body = rest;
        views.push(TensorView {
            name: &desc.name,
            dtype: dtype_from_wire(desc.dtype),
            shape: &desc.shape,
            data,
        });
    }
    if body.is_empty() { Ok(views) } else { Err(mismatch()) }
}

fn reply(loaded: &Loaded, queue_us: u32, outcome: Result<Output, Failure>) -> Reply {
    let (status, detail, output) = match outcome {
        Ok(output) => (Status::Ok, String::new(), output),
        Err(Failure::Refused(status, detail)) => (status, detail, Output::default()),
        Err(Failure::Panicked) => {
            let detail = "the model crashed on this request; it is out until it is reloaded";
            (Status::Quarantined, detail.to_owned(), Output::default())
        }
    };
    Reply {
        status,
        model: loaded.name.clone(),
        version: loaded.plan.version(),
        digest: loaded.plan.digest(),
        signed: loaded.signed,
        queue_us,
        timings: output.timings,
        retry_after_ms: 0,
        detail,
        tensors: output.tensors,
        classes: output.classes,
    }
}
