//! The client under test of the public TUF conformance suite; see docs/tuf-conformance.md. Everything it does is
//! the device's: verifier, rollback floors, crash-safe cache.
//!
//! ```text
//! tuf_conformance_client --metadata-dir DIR init ROOT
//! tuf_conformance_client --metadata-dir DIR --metadata-url URL refresh
//! tuf_conformance_client --metadata-dir DIR --metadata-url URL --target-name NAME... --target-base-url URL
//!     --target-dir DIR download
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use tractd_update::fs::{self, Disk};
use tractd_update::source::{Access, Source};
use tractd_update::{Client, Clock};

/// A root the suite hands over: more than the largest the verifier takes.
const ROOT_LEN_MAX: u64 = 1 << 20;

#[derive(Default)]
struct Arguments {
    metadata_dir: Option<PathBuf>,
    metadata_url: Option<String>,
    target_names: Vec<String>,
    target_base_url: Option<String>,
    target_dir: Option<PathBuf>,
    command: Vec<String>,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut from: impl Iterator<Item = String>) -> Result<Arguments, Box<dyn Error>> {
    let mut arguments = Arguments::default();
    while let Some(argument) = from.next() {
        let mut value = || from.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--metadata-dir" => arguments.metadata_dir = Some(value()?.into()),
            "--metadata-url" => arguments.metadata_url = Some(value()?),
            "--target-name" => arguments.target_names.push(value()?),
            "--target-base-url" => arguments.target_base_url = Some(value()?),
            "--target-dir" => arguments.target_dir = Some(value()?.into()),
            _ => arguments.command.push(argument),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let dir = arguments.metadata_dir.as_deref().ok_or("--metadata-dir is missing")?;
    let command: Vec<_> = arguments.command.iter().map(String::as_str).collect();
    match command[..] {
        ["init", root] => {
            let root = fs::read(&Disk, Path::new(root), ROOT_LEN_MAX)?.ok_or("there is no such root")?;
            Ok(Client::pin(dir, &root)?)
        }
        ["refresh"] => Ok(client(arguments, dir)?.refresh(SystemTime::now()).map(drop)?),
        ["download"] => download(arguments, dir),
        _ => Err("init ROOT, refresh or download".into()),
    }
}

fn client(arguments: &Arguments, dir: &Path) -> Result<Client, Box<dyn Error>> {
    let metadata = arguments.metadata_url.as_deref().ok_or("--metadata-url is missing")?;
    let targets = arguments.target_base_url.as_deref().unwrap_or(metadata);
    let (access, clock) = (Access::default(), Clock::new(SystemTime::now(), 0, false));
    let source = Source::split(&metadata.parse()?, &targets.parse()?, &access, clock)?;
    Ok(Client::open(dir, source)?)
}

fn download(arguments: &Arguments, dir: &Path) -> Result<(), Box<dyn Error>> {
    let target_dir = arguments.target_dir.as_deref().ok_or("--target-dir is missing")?;
    let mut fresh = client(arguments, dir)?.refresh(SystemTime::now())?;
    for name in &arguments.target_names {
        let bytes = fresh.target(name)?;
        // One flat name a target, whatever its path: nothing can leave the folder.
        let path = target_dir.join(name.replace('/', "%2F"));
        if fs::read(&Disk, &path, bytes.len() as u64).ok().flatten().as_deref() != Some(&*bytes) {
            fs::write_atomic(&Disk, &path, &bytes)?;
        }
    }
    Ok(())
}
