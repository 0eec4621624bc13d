use std::path::Path;
use std::process::ExitCode;

use super::Limits;

/// The whole of the child process: limits itself, tries the bundle in `dir`, prints one line.
///
/// `tractd --prove DIR` calls this and nothing else. Must run on a process's only thread.
pub fn child_main(dir: &Path, limits: &Limits) -> ExitCode {
    _ = (dir, limits);
    ExitCode::FAILURE
}
