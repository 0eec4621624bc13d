use std::any::Any;
use std::fs;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use tractd_bundle::Bundle;

use super::{Limits, Proof, Verdict, sandbox};
use crate::{Plan, PlanOptions, self_test};

/// Files open at once: the model, a golden vector, three pipes, and what the C library keeps.
const FILES_MAX: u64 = 32;

/// What tract panics with where the Rust runtime would abort (tract-data, `blob.rs`).
const TRACT_ALLOCATION_FAILED: &str = "failed to allocate Layout";
/// Characters of a message in a verdict.
const MESSAGE_LEN_MAX: usize = 1000;

/// The whole of the child process: limits itself, tries the bundle in `dir`, prints one line.
///
/// `tractd --prove DIR` calls this and nothing else. Must run on a process's only thread: the limits cover
/// the process, the denied system calls only the calling thread.
pub fn child_main(dir: &Path, limits: &Limits) -> ExitCode {
    if let Err(error) = confine(limits) {
        eprintln!("cannot limit itself: {error}");
        return ExitCode::FAILURE;
    }
    let verdict = attempt(dir);
    let line = serde_json::to_string(&verdict).expect("a verdict is strings and numbers");
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody is listening any more.
        Err(_) => ExitCode::FAILURE,
    }
}

fn attempt(dir: &Path) -> Verdict {
    let baseline_rss_bytes = status_bytes("VmRSS:").unwrap_or(0);
    let begin = Instant::now();
    let loaded = guarded(|| {
        let bundle =
            Bundle::open(dir, &tractd_bundle::Limits::default()).map_err(|error| error.to_string())?;
        Plan::load(&bundle, &PlanOptions::default()).map(Arc::new).map_err(|error| error.to_string())
    });
    let plan = match loaded {
        Ok(plan) => plan,
        Err(problem) => return failed(problem, Verdict::LoadFailed),
    };
    let load_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    match guarded(|| self_test(&plan).map_err(|error| error.to_string())) {
        Ok(tested) => Verdict::Proven(Proof {
            peak_rss_bytes: status_bytes("VmHWM:").unwrap_or(0),
            baseline_rss_bytes,
            load_ms,
            infer_us_median: tested.infer_us_median,
            golden: tested.golden,
        }),
        Err(problem) => failed(problem, Verdict::SelfTestFailed),
    }
}

fn failed(problem: String, otherwise: fn(String) -> Verdict) -> Verdict {
    if problem.contains(TRACT_ALLOCATION_FAILED) { Verdict::OutOfMemory } else { otherwise(problem) }
}

/// A panic is a verdict like any other error, and says more than an exit code. Messages are cut: a verdict the
/// parent's buffer does not hold is none.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let panicked = |payload: Box<dyn Any + Send>| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Err(format!("the engine panicked: {}", text.unwrap_or_default()))
    };
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked);
    result.map_err(|problem| problem.chars().take(MESSAGE_LEN_MAX).collect())
}

fn confine(limits: &Limits) -> io::Result<()> {
    // Not on every system; without it the child outlives a killed parent by its processor time at most.
    _ = set_parent_process_death_signal(Some(Signal::KILL));
    // First to go when memory runs out, before anything that does the device's work.
    _ = fs::write("/proc/self/oom_score_adj", "1000");
    let limit = |resource, value: u64| {
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) }).map_err(io::Error::from)
    };
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, FILES_MAX)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::As, limits.address_space_bytes)?;
    // The soft limit says what happened (SIGXCPU); the hard one, a second later, is final.
    let (current, maximum) = (Some(limits.cpu_seconds), Some(limits.cpu_seconds.saturating_add(1)));
    setrlimit(Resource::Cpu, Rlimit { current, maximum })?;
    if let Err(problem) = sandbox::deny_dangerous_calls() {
        // Emulators and some containers have no seccomp. The limits above hold without it.
        eprintln!("network calls stay allowed: {problem}");
    }
    Ok(())
}

/// A line of /proc/self/status, in bytes.
fn status_bytes(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes << 10)
}
