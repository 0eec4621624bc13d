//! Death at a named step, for tests of what a crash leaves behind: not in a release build.

use tractd_update::trial::Stage;

/// `TRACTD_DIE_AT=self-testing@2`, or `trial-canary@2`: the step, and the version that takes it.
#[cfg(debug_assertions)]
pub(super) fn reach(state: &str, stage: Option<Stage>, version: u64) {
    let stage = stage.map_or_else(String::new, |stage| format!("-{}", stage.name()));
    if std::env::var_os("TRACTD_DIE_AT").is_some_and(|at| at == *format!("{state}{stage}@{version}")) {
        // What SIGKILL does: no handler runs, nothing is flushed.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn reach(_: &str, _: Option<Stage>, _: u64) {}
