//! The daemon's program; everything is in the library beside it.

fn main() -> std::process::ExitCode {
    tractd_daemon::main_exec()
}
