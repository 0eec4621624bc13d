//! Trying a model where it can hurt nobody: in a child process with limits.
//!
//! The child limits itself before it reads a byte of the model ([`child_main`]); the parent only watches the
//! clock, bounds what it listens to, and always reaps ([`prove`]). A model that crashes, loops, eats memory or
//! computes something else than its golden vectors is a [`Refusal`], never the daemon's problem.

mod child;
mod parent;
mod sandbox;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use child::child_main;
pub use parent::prove;

/// What a model may use up while it is tried. The child and the parent are given the same limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Virtual memory of the child. Above what a model's weights and arenas take; it is what turns a model
    /// that eats memory into a failed allocation instead of the kernel killing a neighbour.
    pub address_space_bytes: u64,
    /// Processor time. Ends a busy loop even if the parent is gone.
    pub cpu_seconds: u64,
    /// Time on the clock, but for what the child waited for a processor that others used, after which the parent kills.
    /// Ends what sleeps, too.
    pub wall: Duration,
    /// What the parent reads from the child's standard output and error, each. The rest is thrown away.
    pub output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            address_space_bytes: 4 << 30,
            cpu_seconds: 60,
            wall: Duration::from_secs(120),
            output_bytes: 64 << 10,
        }
    }
}

/// What a model showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Resident memory of the child at its peak, model loaded and run.
    pub peak_rss_bytes: u64,
    /// Resident memory of the child before it touched the model.
    pub baseline_rss_bytes: u64,
    /// From reading the file to the first session.
    pub load_ms: u64,
    /// One run, the median of several.
    pub infer_us_median: u64,
    /// How many golden vectors held; none means the model ran once on zeros.
    pub golden: usize,
}

impl Proof {
    /// What this model costs in memory: the figure for admission.
    pub fn model_peak_bytes(&self) -> u64 {
        self.peak_rss_bytes.saturating_sub(self.baseline_rss_bytes)
    }
}

/// Why a model is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The child was killed by a signal.
    #[error("the model crashed its trial (signal {signal}){}", tail(.stderr))]
    Crashed {
        /// As in `signal(7)`.
        signal: i32,
        /// The end of what the child said.
        stderr: String,
    },
    /// Not done in time.
    #[error("the model's trial did not end within {after:?}")]
    TimedOut {
        /// On the clock, or of processor time.
        after: Duration,
    },
    /// It could hardly run, for a multiple of its time: others used the processors. Says nothing about the model.
    #[error("the device is too busy for the model's trial: in {after:.0?} it could run for {ran:.0?}")]
    Starved {
        /// On the clock.
        after: Duration,
        /// On a processor.
        ran: Duration,
    },
    /// An allocation failed under the limit.
    #[error("the model needs more than {} MiB of memory to load or run", limit_bytes >> 20)]
    OutOfMemory {
        /// The limit it met.
        limit_bytes: u64,
    },
    /// The engine refuses the model.
    #[error("the model does not load: {0}")]
    LoadFailed(String),
    /// The model computes something else than its author says.
    #[error("the model's self-test failed: {0}")]
    SelfTestFailed(String),
    /// The child ended without a verdict, or with one nobody understands.
    #[error("the model's trial ended without a verdict: {detail}{}", tail(.stderr))]
    NoVerdict {
        /// What came instead.
        detail: String,
        /// The end of what the child said.
        stderr: String,
    },
    /// No trial took place; says nothing about the model.
    #[error("the model's trial could not be started: {0}")]
    NotStarted(String),
}

impl Refusal {
    /// Whether the trial says something about the model: otherwise the next one may go another way.
    pub fn is_the_models(&self) -> bool {
        !matches!(self, Refusal::NotStarted(_) | Refusal::Starved { .. })
    }
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; it said: {stderr}") }
}

/// The one line a child prints.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Verdict {
    Proven(Proof),
    OutOfMemory,
    LoadFailed(String),
    SelfTestFailed(String),
}
