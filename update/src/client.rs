//! A plain TUF client on the device's verifier, floors and store: for the conformance suite, and for tools that
//! read a registry without being a device of a group.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::clock::Now;
use crate::device::ROOT_LEN_MAX;
use crate::fs::{self, Disk};
use crate::source::{FetchError, Source};
use crate::store::{Store, io_at};
use crate::updater::CheckError;
use crate::verify::{Anchor, Session, VerifyError, check_root};

/// Reads one registry from a pinned root.
///
/// ```text
/// <dir>/pinned/root.json   the trust anchor; only `pin` writes it
/// <dir>/<role>.json        newest verified metadata
/// <dir>/root_history/      the chain from the pinned root to the newest
/// <dir>/targets/           verified targets
/// <dir>/store/             rollback floors, in the device's two-slot state
/// ```
///
/// It differs from a device in one thing: the time is taken as given. A device takes the latest of its clock,
/// its build and what it learnt from signatures; this client is told.
#[derive(Debug)]
pub struct Client {
    dir: PathBuf,
    source: Source,
    store: Store,
    root_json: Vec<u8>,
}

/// Metadata of one moment, to take targets by.
#[derive(Debug)]
pub struct Fresh(Session);

impl Client {
    /// Makes `root_json` the anchor of `dir`. What was verified from an earlier one stays only as far as it can be
    /// verified from this one.
    ///
    /// # Errors
    /// [`VerifyError::PinnedRoot`] when the root is not signed by its own keys, or what the file system says.
    pub fn pin(dir: &Path, root_json: &[u8]) -> Result<(), CheckError> {
        check_root(root_json).map_err(VerifyError::PinnedRoot)?;
        for path in [pinned(dir), dir.join("root.json")] {
            fs::write_atomic(&Disk, &path, root_json).map_err(io_at(&path))?;
        }
        Ok(())
    }

    /// The client of a folder that was pinned.
    ///
    /// # Errors
    /// [`CheckError::Store`] without an anchor, or when another process has the folder.
    pub fn open(dir: &Path, source: Source) -> Result<Self, CheckError> {
        let path = pinned(dir);
        let root_json = fs::read(&Disk, &path, ROOT_LEN_MAX).map_err(io_at(&path))?;
        let root_json = root_json.ok_or_else(|| io_at(&path)(std::io::ErrorKind::NotFound.into()))?;
        let store = Store::open_beside(Arc::new(Disk), dir, &[])?;
        Ok(Self { dir: dir.to_path_buf(), source, store, root_json })
    }

    /// Brings root, timestamp, snapshot and targets up to date and saves their floors.
    ///
    /// # Errors
    /// As [`crate::Updater::check`].
    pub fn refresh(&mut self, now: SystemTime) -> Result<Fresh, CheckError> {
        let unix_s = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let floors = self.store.state().floors.clone();
        let now = Now { unix_s, untrusted: false };
        let anchor = Anchor {
            root_json: &self.root_json,
            cache: self.dir.clone(),
            fs: self.store.fs().clone(),
            floors: &floors,
            now,
            without_floor: now,
        };
        let session = Session::refresh(&anchor, self.source.clone())?;
        self.store.save_floors(session.floors().clone())?;
        Ok(Fresh(session))
    }
}

impl Fresh {
    /// A target of at most 1 MiB, verified; from the folder when it was fetched before. Delegated roles are fetched
    /// as its path needs them.
    ///
    /// # Errors
    /// [`FetchError::Missing`] when no role names it; else as [`crate::Updater::check`].
    pub fn target(&mut self, path: &str) -> Result<Vec<u8>, CheckError> {
        let bytes = self.0.small_target(path)?;
        bytes.ok_or_else(|| FetchError::Missing(path.to_owned()).into())
    }
}

fn pinned(dir: &Path) -> PathBuf {
    dir.join("pinned/root.json")
}
