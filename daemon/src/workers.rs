//! The threads that run models.
//!
//! Each has sessions of its own and takes one request at a time from the floor. A panic inside a model quarantines
//! that model and nothing else.

use crate::{
    floor::{BEAT, Floor, Loaded, Pending, Role, Task},
    frame::dtype_from_wire,
    intake::{Payload, Reply, ReplyTo, Request, TensorDesc},
    trial::{self, Answer},
};
use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tractd_engine::{Input, Output, RunError, Session, TensorView, Want};
use tractd_scheduler::SlotId;
use tractd_update::trial::{Observation, Version};
use tractd_wire::Status;

/// A run longer than this counts as hung, and the daemon as ill: longer than any model that is of use to anyone.
const RUN_MAX: Duration = Duration::from_secs(120);

/// Running threads; see [`Workers::join`].
pub(crate) struct Workers {
    floor: Arc<Floor>,
    threads: Vec<JoinHandle<()>>,
    hearts: Vec<Arc<Heart>>,
}

/// When a thread last said that it lives, and what it did then.
struct Heart {
    /// Microseconds on the floor's clock.
    beat_us: AtomicU64,
    /// Start of the present run on the floor's clock; `IDLE` outside of one.
    run_since_us: AtomicU64,
}

const IDLE: u64 = u64::MAX;

impl Workers {
    /// Starts the workers and the thread that answers what expires.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn start(floor: &Arc<Floor>) -> io::Result<Workers> {
        let mut workers = Workers { floor: floor.clone(), threads: Vec::new(), hearts: Vec::new() };
        for number in 0..floor.limits.workers {
            workers.spawn(format!("worker-{number}"), move |floor, heart| work(floor, number, heart))?;
        }
        workers.spawn("deadlines".into(), |floor, heart| {
            floor.watch_deadlines(|| heart.beat(floor));
        })?;
        Ok(workers)
    }

    fn spawn(&mut self, name: String, body: impl FnOnce(&Floor, &Heart) + Send + 'static) -> io::Result<()> {
        let floor = self.floor.clone();
        let heart =
            Arc::new(Heart { beat_us: AtomicU64::new(floor.now().0), run_since_us: AtomicU64::new(IDLE) });
        self.hearts.push(heart.clone());
        self.threads.push(thread::Builder::new().name(name).spawn(move || body(&floor, &heart))?);
        Ok(())
    }

    /// A handle on the hearts, for the watchdog.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse { floor: self.floor.clone(), hearts: self.hearts.clone() }
    }

    /// Waits for every thread until `deadline`; false when one is still inside a model then.
    pub(crate) fn join(self, deadline: Instant) -> bool {
        for thread in self.threads {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    return false;
                }
                thread::sleep(Duration::from_millis(1));
            }
            if thread.join().is_err() {
                log::error!("a worker thread ended by a panic outside of a model");
            }
        }
        true
    }
}

/// Tells whether the threads live.
pub(crate) struct Pulse {
    floor: Arc<Floor>,
    hearts: Vec<Arc<Heart>>,
}

impl Pulse {
    /// Whether every thread either beat lately or is inside a run of bearable length. An idle worker is alive.
    pub(crate) fn is_alive(&self) -> bool {
        let now = self.floor.now().0;
        self.hearts.iter().all(|heart| heart.is_alive(now))
    }
}

impl Heart {
    fn beat(&self, floor: &Floor) {
        self.beat_us.store(floor.now().0, Relaxed);
    }

    fn is_alive(&self, now_us: u64) -> bool {
        let (since_us, longest) = match self.run_since_us.load(Relaxed) {
            IDLE => (self.beat_us.load(Relaxed), 10 * BEAT),
            since_us => (since_us, RUN_MAX),
        };
        Duration::from_micros(now_us.saturating_sub(since_us)) < longest
    }
}

fn work(floor: &Floor, number: usize, heart: &Heart) {
    let mut sessions = HashMap::new();
    loop {
        heart.beat(floor);
        match floor.take(number) {
            Task::Run { slot, ticket, loaded, pending, queued_us, role } => {
                if pending.reply.is_abandoned() {
                    loaded.stats.abandoned.fetch_add(1, Relaxed);
                    floor.finished(ticket, None);
                    continue;
                }
                let start = floor.now();
                heart.run_since_us.store(start.0, Relaxed);
                let outcome = run_caught(&mut sessions, slot, &loaded, &pending.request);
                heart.run_since_us.store(IDLE, Relaxed);
                let took_us = floor.now().since(start);
                if let Err(Failure::Panicked) = outcome {
                    log::error!(model = &*loaded.name, version = loaded.plan.version(); "model panicked, quarantined");
                    sessions.remove(&slot);
                    floor.quarantine(slot);
                }
                let reply = reply(&loaded, u32::try_from(queued_us).unwrap_or(u32::MAX), outcome);
                hand_over(floor, slot, &loaded, pending, reply, role);
                floor.finished(ticket, Some(took_us));
            }
            Task::Prepare { generation, plans } => {
                sessions.retain(|slot, _| plans.iter().any(|(live, _)| live == slot));
                for (slot, plan) in plans {
                    // What fails here fails again, with an answer, at the first request.
                    if !sessions.contains_key(&slot)
                        && let Ok(Ok(session)) = catch_unwind(AssertUnwindSafe(|| Session::new(plan)))
                    {
                        sessions.insert(slot, session);
                    }
                }
                floor.prepared(number, generation);
            }
            Task::Idle => {}
            Task::Stop => return,
        }
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
