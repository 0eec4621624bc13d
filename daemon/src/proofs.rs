//! Every load is first tried in a child process; what passed is remembered, so that a restart is quick.
//!
//! A proof holds for one digest under one daemon version on one kind of machine: anything else is proven again.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};
use tractd_bundle::{Bundle, Digest};
use tractd_engine::proof::{self, Limits, Proof, Refusal};

use crate::{config, machine};

/// Proofs remembered; the rest is forgotten from the end of the digests' order.
const REMEMBERED_MAX: usize = 256;

/// Largest file of proofs read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What runs the child: this very program, also after its file was replaced by an upgrade.
const SELF_EXE: &str = "/proc/self/exe";

/// Tries models and remembers those that passed.
#[derive(Debug)]
pub(crate) struct Proofs {
    file: PathBuf,
    limits: Limits,
    /// Shared by the thread that loads and the one that updates; held for a look-up, never during a trial.
    known: Mutex<Known>,
}

/// The file: proofs by digest, under the circumstances they hold for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    circumstances: String,
    proofs: BTreeMap<Digest, Measured>,
}

/// What a trial measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Memory the model took at its peak.
    pub(crate) peak_bytes: u64,
    /// One run, the median of several.
    pub(crate) infer_us: u64,
    /// Golden vectors that held.
    pub(crate) golden: usize,
}

impl From<Proof> for Measured {
    fn from(proof: Proof) -> Measured {
        Measured {
            peak_bytes: proof.model_peak_bytes(),
            infer_us: proof.infer_us_median,
            golden: proof.golden,
        }
    }
}

impl Proofs {
    /// Reads what an earlier daemon remembered; a file that is not ours or of another version counts as empty.
    pub(crate) fn open(state_dir: &Path, config: &config::Proof) -> Proofs {
        let file = state_dir.join("proofs.json");
        let (version, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
        let circumstances =
            format!("1 {version} {arch} {} {}", tractd_engine::Tier::detect().name(), machine::board());
        let proofs =
            read(&file).filter(|known| known.circumstances == circumstances).map(|known| known.proofs);
        let known = Mutex::new(Known { circumstances, proofs: proofs.unwrap_or_default() });
        Proofs { file, limits: limits(config), known }
    }

    /// What the bundle's trial measured, now or earlier.
    pub(crate) fn prove(&self, bundle: &Bundle) -> Result<Measured, Refusal> {
        if let Some(measured) = self.known(bundle) {
            return Ok(measured);
        }
        self.measure_again(bundle)
    }

    /// Tries the bundle now, and remembers that instead of what was measured earlier.
    pub(crate) fn measure_again(&self, bundle: &Bundle) -> Result<Measured, Refusal> {
        let measured = self.measure(bundle)?;
        self.remember(bundle.digest, measured);
        Ok(measured)
    }

    /// Tries the bundle now, whatever is remembered of it, and remembers nothing.
    pub(crate) fn measure(&self, bundle: &Bundle) -> Result<Measured, Refusal> {
        let arguments = child_arguments(&self.limits);
        let arguments: Vec<_> = arguments.iter().map(OsString::as_os_str).collect();
        Ok(proof::prove(Path::new(SELF_EXE), &arguments, &bundle.dir, &self.limits)?.into())
    }

    /// What an earlier trial measured.
    pub(crate) fn known(&self, bundle: &Bundle) -> Option<Measured> {
        self.all().proofs.get(&bundle.digest).copied()
    }

    /// Has the bundle proven again when it is asked for next.
    pub(crate) fn forget(&self, bundle: &Bundle) {
        self.all().proofs.remove(&bundle.digest);
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().expect("nothing panics while looking up a proof")
    }

    fn remember(&self, digest: Digest, measured: Measured) {
        let mut known = self.all();
        known.proofs.insert(digest, measured);
        while known.proofs.len() > REMEMBERED_MAX {
            known.proofs.pop_last();
        }
        let json = serde_json::to_vec_pretty(&*known).expect("proofs have a JSON form");
        if let Err(error) = write_atomic(&self.file, &json) {
            log::warn!("{}: {error}; models will be proven again at the next start", self.file.display());
        }
    }
}

/// The bounds of a trial.
pub(crate) fn limits(config: &config::Proof) -> Limits {
    let wall = Duration::from_millis(config.wall_ms);
    Limits {
        address_space_bytes: config.address_space_bytes,
        cpu_seconds: wall.as_secs() + 1,
        wall,
        ..Limits::default()
    }
}

fn child_arguments(limits: &Limits) -> [OsString; 5] {
    [
        "--prove-address-space".into(),
        limits.address_space_bytes.to_string().into(),
        "--prove-wall-ms".into(),
        limits.wall.as_millis().to_string().into(),
        "--prove".into(),
    ]
}

fn read(file: &Path) -> Option<Known> {
    if fs::metadata(file).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// A reader sees the old file or the new one. Not synced: a lost proof is only made again.
fn write_atomic(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_remembered_for_the_same_circumstances_only() {
        let dir = tempfile::tempdir().unwrap();
        let measured = Measured { peak_bytes: 5, infer_us: 6, golden: 7 };
        let digest = Digest([3; 32]);
        Proofs::open(dir.path(), &config::Proof::default()).remember(digest, measured);
        let again = Proofs::open(dir.path(), &config::Proof::default());
        assert_eq!(again.all().proofs.get(&digest), Some(&measured));

        let file = dir.path().join("proofs.json");
        let other = fs::read_to_string(&file).unwrap().replace(env!("CARGO_PKG_VERSION"), "0.0.0");
        fs::write(&file, other).unwrap();
        assert_eq!(Proofs::open(dir.path(), &config::Proof::default()).all().proofs.len(), 0);
        fs::write(&file, "rubbish").unwrap();
        assert_eq!(Proofs::open(dir.path(), &config::Proof::default()).all().proofs.len(), 0);
    }

    #[test]
    fn limits_come_from_the_configuration() {
        let limits = limits(&config::Proof { wall_ms: 2_500, address_space_bytes: 99 });
        assert_eq!((limits.wall, limits.cpu_seconds), (Duration::from_millis(2_500), 3));
        assert_eq!(limits.address_space_bytes, 99);
    }
}
