//! Who is next: admission, deadlines, priority, fairness and routing as pure state.
//!
//! Time is an argument, threads and channels are the caller's. Every [`Job`] handed in ends exactly once: it comes
//! back in [`Refused`], as [`Work::Run`], as [`Work::Expired`], or from the call that took its model away.
//!
//! Within a model the order is priority, then earliest deadline, then arrival. Between models the one that used the
//! least worker time is next, so a busy model cannot starve others; priority buys a bounded head start there.
//!
//! What it deliberately does not do: know what a job is about, hold models, read a clock, or retry.

mod queue;
mod scheduler;

pub use scheduler::{Scheduler, Stats};

/// A point in time, in microseconds since a start the caller chose; never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// Microseconds since `earlier`; 0 when it lies ahead.
    pub fn since(self, earlier: Instant) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A model as clients name it; the caller chooses the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(pub u32);

/// One loaded version of a model. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u32);

/// A job's place in its model's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// After everything else.
    Low,
    /// The usual.
    Normal,
    /// Before everything else.
    High,
}

/// One request waiting for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job<T> {
    /// The model asked.
    pub model: ModelId,
    /// The only slot it may run on; `None` follows the model's [`Route`].
    pub pin: Option<SlotId>,
    /// When its answer is worth nothing any more.
    pub deadline: Instant,
    /// Its place among the model's jobs.
    pub priority: Priority,
    /// Bytes held while it is queued.
    pub bytes: u64,
    /// The caller's own.
    pub payload: T,
}

/// What is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Jobs queued for one model.
    pub jobs_per_model: usize,
    /// Jobs queued over all models.
    pub jobs: usize,
    /// Bytes queued over all models. Beside other models, one may hold half of them (or a single larger job).
    pub bytes: u64,
    /// Jobs that run at once, for [`Refused::retry_after_ms`].
    pub workers: usize,
    /// Memory the slots may take together by their measured peaks.
    pub memory_bytes: u64,
}

/// Which slot answers for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The version that answers.
    pub stable: SlotId,
    /// The version on trial.
    pub candidate: Option<SlotId>,
    /// What the candidate is given.
    pub mode: Mode,
    /// The candidate's part of the jobs in [`Mode::Canary`], per 10,000.
    pub share: u16,
}

impl Route {
    /// `slot` answers everything.
    pub fn to(slot: SlotId) -> Route {
        Route { stable: slot, candidate: None, mode: Mode::Stable, share: 0 }
    }
}

/// What a candidate is given to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing but jobs pinned to it.
    Stable,
    /// Nothing here: the stable version answers, and the caller may submit copies pinned to the candidate.
    Shadow,
    /// Its share of the jobs, spread evenly and without chance.
    Canary,
}

/// A job that was not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused<T> {
    /// The job, unchanged.
    pub job: Job<T>,
    /// Why.
    pub reason: Reason,
    /// When to ask again, from measured service times; 0 when asking again is no use.
    pub retry_after_ms: u32,
}

/// Why a job was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A queue is full.
    Busy,
    /// Its deadline has passed.
    Expired,
    /// Nothing is admitted any more.
    Draining,
    /// No such model, or the slot it is pinned to is gone.
    UnknownModel,
    /// The slot that would answer it crashed.
    Quarantined,
}

/// What a worker does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Work<T> {
    /// Run the job on the ticket's slot and hand the ticket back to [`Scheduler::finished`].
    Run {
        /// Names the slot; proof that the job runs.
        ticket: Ticket,
        /// The job.
        job: Job<T>,
        /// Time it waited, in microseconds.
        queued_us: u64,
    },
    /// Answer that its deadline passed.
    Expired(Job<T>),
}

/// A running job's place. Not `Clone`: each run is finished once.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    slot: SlotId,
    model: ModelId,
    charged_us: u64,
}

impl Ticket {
    /// The slot the job runs on.
    pub fn slot(&self) -> SlotId {
        self.slot
    }
}

/// A slot that does not fit into the memory left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("needs {needed} bytes of memory, {free} are free")]
pub struct OutOfMemory {
    /// Bytes the slot's peak takes.
    pub needed: u64,
    /// Bytes not taken by others.
    pub free: u64,
}

/// A slot that does not exist, or is being removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such slot")]
pub struct UnknownSlot;

/// A slot a route still names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a route still leads to the slot")]
pub struct SlotInUse;
