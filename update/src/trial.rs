//! The trial of a version that passed its self-test, as pure state: observations and the time go in, what follows
//! comes out.
//!
//! ```text
//! shadow   the incumbent answers; the candidate runs copies, and the answers are compared
//! canary   a share of the requests is answered by the candidate
//! all      every request is answered by the candidate; the incumbent stays loaded
//! ```
//!
//! A fault at any stage ends the trial, and the incumbent answers again. A model that has no incumbent begins at
//! [`Stage::All`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Share of the requests in [`Stage::Canary`], per 10,000: enough to see a fault, few enough to bear it.
const CANARY_SHARE: u16 = 1_000;
/// The whole, per 10,000.
const WHOLE: u16 = 10_000;
/// Runs a verdict about latency or agreement needs at least: the median of fewer is noise.
const RUNS_MIN: usize = 20;
/// Runs whose latency is kept, per version.
const SAMPLES_MAX: usize = 64;
/// A stage that saw too few runs waits this many times its length for them. A device nobody asks cannot learn
/// more by waiting longer.
const PATIENCE: u32 = 4;
/// Runs the candidate may fail that the incumbent would not have: one may be the request's fault.
const ERRORS_MAX: u32 = 2;
/// A candidate may be slower by this much whatever its factor: below it, a timer's grain decides.
const SLOWER_US: u64 = 100;
/// Times the daemon may start with a version on trial; a start after that many ends takes the version back.
pub const STARTS_MAX: u32 = 3;

/// How far a trial is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Nobody is answered by the candidate.
    Shadow,
    /// Some are.
    Canary,
    /// All are.
    All,
}

/// What a candidate is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// How long the whole trial must stay without a fault. A quarter of it is shadow, a quarter canary.
    pub healthy: Duration,
    /// How many times the incumbent's latency (median of the runs of the trial) the candidate may take.
    pub slower_max: f64,
    /// Part of the compared answers that may differ, in percent.
    pub differ_percent_max: u32,
}

/// Which version a run was of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The one that is good already.
    Incumbent,
    /// The one on trial.
    Candidate,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// A version ran, and its answer is sound.
    Ran {
        /// Which.
        version: Version,
        /// Time in the model, in microseconds.
        infer_us: u64,
    },
    /// The candidate's answer and the incumbent's to the same request.
    Compared {
        /// Whether they come to the same.
        same: bool,
    },
    /// The candidate gave no answer to a request that is sound.
    Failed(String),
    /// The candidate's answer holds a NaN where the request held none.
    NotANumber,
    /// The candidate crashed, and what held it noticed.
    Crashed,
}

/// Why a version is taken back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Errors.
    #[error("{failed} of {runs} requests failed, the last because {last}")]
    Errors {
        /// Runs that failed.
        failed: u32,
        /// Runs in all.
        runs: u32,
        /// The last one's reason.
        last: String,
    },
    /// NaN.
    #[error("its answer held a NaN")]
    NotANumber,
    /// A crash the daemon survived.
    #[error("it crashed on a request")]
    Crashed,
    /// Crashes the daemon did not survive.
    #[error("the daemon ended {0} times while it was on trial")]
    CrashLoop(u32),
    /// Too slow.
    #[error("it takes {candidate_us} µs where the version before takes {incumbent_us} µs")]
    Slow {
        /// Its median.
        candidate_us: u64,
        /// The other's.
        incumbent_us: u64,
    },
    /// Other answers.
    #[error("{different} of {compared} answers differ from those of the version before")]
    Disagrees {
        /// Compared answers that differ.
        different: u32,
        /// All of them.
        compared: u32,
    },
    /// It could not even be loaded.
    #[error("{0}")]
    NotLoaded(String),
}

/// What a stage without a fault leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next stage.
    Next(Stage),
    /// The trial is over: the candidate is good.
    Commit,
}

/// One trial, from its beginning or from where an earlier process left it.
#[derive(Debug)]
pub struct Trial {
    rules: Rules,
    stage: Stage,
    since: Duration,
    incumbent: Latency,
    candidate: Latency,
    /// Of this stage.
    runs: u32,
    failed: u32,
    compared: u32,
    different: u32,
    over: bool,
}

impl Stage {
    /// As the status tells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Canary => "canary",
            Self::All => "all",
        }
    }

    /// Part of the requests the candidate answers, per 10,000.
    #[must_use]
    pub fn share(self) -> u16 {
        match self {
            Self::Shadow => 0,
            Self::Canary => CANARY_SHARE,
            Self::All => WHOLE,
        }
    }
}

impl Trial {
    /// A trial at `stage`; `now` is on any clock that does not go back.
    #[must_use]
    pub fn new(rules: Rules, stage: Stage, now: Duration) -> Self {
        Self {
            rules,
            stage,
            since: now,
            incumbent: Latency::default(),
            candidate: Latency::default(),
            runs: 0,
            failed: 0,
            compared: 0,
            different: 0,
            over: false,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Takes in what was seen. The first fault ends the trial, and is told once.
    pub fn observe(&mut self, observation: Observation) -> Option<Fault> {
        if self.over {
            return None;
        }
        let fault = self.judge(observation);
        self.over = fault.is_some();
        fault
    }

    /// What the time leads to. Told until [`Trial::advance`] says that it was done: it may have to be made durable
    /// first, and that may fail.
    #[must_use]
    pub fn due(&self, now: Duration) -> Option<Step> {
        let length = self.length();
        let spent = now.saturating_sub(self.since);
        let ripe = if self.has_seen_enough() { length } else { length * PATIENCE };
        if self.over || spent < ripe {
            return None;
        }
        Some(match self.stage {
            Stage::Shadow => Step::Next(Stage::Canary),
            Stage::Canary => Step::Next(Stage::All),
            Stage::All => Step::Commit,
        })
    }

    /// The step was done.
    pub fn advance(&mut self, step: Step, now: Duration) {
        match step {
            Step::Commit => self.over = true,
            Step::Next(stage) => {
                self.stage = stage;
                self.since = now;
                (self.runs, self.failed, self.compared, self.different) = (0, 0, 0, 0);
            }
        }
    }

    fn length(&self) -> Duration {
        match self.stage {
            Stage::Shadow | Stage::Canary => self.rules.healthy / 4,
            Stage::All => self.rules.healthy / 2,
        }
    }

    fn has_seen_enough(&self) -> bool {
        let seen = if self.stage == Stage::Shadow { self.compared } else { self.runs };
        seen as usize >= RUNS_MIN
    }

    fn judge(&mut self, observation: Observation) -> Option<Fault> {
        match observation {
            Observation::Ran { version: Version::Incumbent, infer_us } => {
                self.incumbent.add(infer_us);
                None
            }
            Observation::Ran { version: Version::Candidate, infer_us } => {
                self.runs = self.runs.saturating_add(1);
                self.candidate.add(infer_us);
                self.too_slow()
            }
            Observation::Compared { same } => {
                self.compared = self.compared.saturating_add(1);
                self.different = self.different.saturating_add(u32::from(!same));
                self.disagrees()
            }
            Observation::Failed(last) => {
                self.runs = self.runs.saturating_add(1);
                self.failed = self.failed.saturating_add(1);
                let (failed, runs) = (self.failed, self.runs);
                (failed > ERRORS_MAX).then_some(Fault::Errors { failed, runs, last })
            }
            Observation::NotANumber => Some(Fault::NotANumber),
            Observation::Crashed => Some(Fault::Crashed),
        }
    }

    fn too_slow(&self) -> Option<Fault> {
        let (candidate_us, incumbent_us) = (self.candidate.median()?, self.incumbent.median()?);
        slower(candidate_us, incumbent_us, self.rules.slower_max)
            .then_some(Fault::Slow { candidate_us, incumbent_us })
    }

    fn disagrees(&self) -> Option<Fault> {
        let (different, compared) = (self.different, self.compared);
        let too_many =
            u64::from(different) * 100 > u64::from(compared) * u64::from(self.rules.differ_percent_max);
        (compared as usize >= RUNS_MIN && too_many).then_some(Fault::Disagrees { different, compared })
    }
}

/// Whether `candidate_us` is more than `factor` times `incumbent_us`, and by more than a timer's grain.
#[must_use]
pub fn slower(candidate_us: u64, incumbent_us: u64, factor: f64) -> bool {
    let bound = (incumbent_us as f64 * factor).max((incumbent_us + SLOWER_US) as f64);
    candidate_us as f64 > bound
}

/// The latest latencies of one version.
#[derive(Debug, Default)]
struct Latency {
    samples: Vec<u64>,
    next: usize,
}

impl Latency {
    fn add(&mut self, infer_us: u64) {
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(infer_us);
        } else {
            self.samples[self.next] = infer_us;
            self.next = (self.next + 1) % SAMPLES_MAX;
        }
    }

    fn median(&self) -> Option<u64> {
        if self.samples.len() < RUNS_MIN {
            return None;
        }
        let mut sorted = self.samples.clone();
        let middle = sorted.len() / 2;
        Some(*sorted.select_nth_unstable(middle).1)
    }
}
