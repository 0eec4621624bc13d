//! The command-line tool for tractd.

fn main() -> std::process::ExitCode {
    tractd_ctl::main()
}
