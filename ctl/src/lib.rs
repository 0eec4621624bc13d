//! `tractctl`: the tool for everybody who is not the daemon. Engineers pack and publish models, operators provision
//! devices, developers ask for answers.
//!
//! The parts that talk to a daemon ([`socket`], [`mqtt`], [`exchange`], [`tensor`]) are a library, so that tests and
//! the demo ask exactly as the tool does. It deliberately does not link the daemon; only
//! `inspect` and the benchmarks load a model in this process.

mod args;
pub mod at;
pub mod exchange;
pub mod mqtt;
pub mod socket;
pub mod tensor;

mod npz;
mod passphrase;
mod print;
mod progress;
mod verb;

use std::process::ExitCode;

use clap::Parser;

/// Wrong usage: what clap itself ends with.
const USAGE: u8 = 2;

/// The whole program: 0 done, 1 refused or failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; printing to a closed pipe is none of ours.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match verb::run(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(verb::Failure::Refused) => ExitCode::FAILURE,
        Err(verb::Failure::Usage(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(USAGE)
        }
        Err(verb::Failure::Error(error)) => {
            // `tractctl … | head` closes our output early, which is no failure worth a word.
            let broken = error.downcast_ref::<std::io::Error>();
            if broken.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
