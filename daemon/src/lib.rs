//! `tractd`: sockets, MQTT, workers and observation around the engine.
//!
//! What it deliberately does not do: verify signatures (`update`), know ONNX (`engine`), or decide who is next
//! (`scheduler`). It moves bytes, owns threads and tells what happens.
//!
//! ```text
//! socket, connection, mqtt → intake → floor (scheduler + loaded models) → workers → reply
//! updates (store, registry) → fleet (open, prove, load) → floor
//! ```

// A refusal is the reply itself: it is moved once on its way out, and boxing it would only add an allocation.
#![allow(clippy::result_large_err)]

mod arguments;
mod certificates;
pub mod config;
mod connection;
mod daemon;
mod fleet;
mod floor;
pub mod frame;
pub mod gateway;
pub mod intake;
mod local;
mod logging;
mod machine;
mod metered;
pub mod mqtt;
pub mod observe;
mod place;
mod proofs;
mod socket;
mod stats;
mod trial;
mod updates;
mod workers;

use arguments::Arguments;
use clap::Parser;
use std::{path::Path, process::ExitCode, time::Duration};
use tractd_engine::proof;

/// Wrong usage or configuration.
const EXIT_USAGE: u8 = 2;

/// The program: 0 ended as asked, 1 failed while running, 2 wrong usage or configuration.
pub fn main_exec() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(dir) = &arguments.prove {
        return prove(&arguments, dir);
    }
    let config::Read { mut config, unknown } = match config::read(arguments.config.as_deref()) {
        Ok(read) => read,
        Err(error) => {
            eprintln!("tractd: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if arguments.check_config {
        arguments.apply(&mut config);
        print!("{}", config.to_toml());
        for key in &unknown {
            eprintln!("tractd: unknown configuration key {key}");
        }
        return if unknown.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
    }
    logging::start(config.log);
    daemon::warn_of_unknown(&unknown);
    match daemon::run(&arguments, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The child in which a model is tried: no runtime, no sockets, no configuration.
fn prove(arguments: &Arguments, dir: &Path) -> ExitCode {
    let default = proof::Limits::default();
    let wall = arguments.prove_wall_ms.map_or(default.wall, Duration::from_millis);
    let limits = proof::Limits {
        address_space_bytes: arguments.prove_address_space.unwrap_or(default.address_space_bytes),
        cpu_seconds: wall.as_secs() + 1,
        wall,
        ..default
    };
    proof::child_main(dir, &limits)
}
