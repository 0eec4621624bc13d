//! One archive from a registry into the store: resumed where it stopped, never longer than signed, and only
//! given its name once its hash is right.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::fs::{self, FileSystem, WriteFile};
use crate::source::{FetchError, Source, read_error};
use crate::store::{Store, StoreError, io_at};

/// Bytes moved at a time.
const CHUNK: usize = 64 << 10;
/// Bytes between two reports of progress.
const PROGRESS: u64 = 1 << 20;

/// An archive as signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    /// Where its file lies below `targets/`.
    pub(crate) location: String,
    /// SHA-256, 64 hex digits.
    pub(crate) sha256: String,
    /// Its length.
    pub(crate) bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Brings `archive` into the store's blobs; `progress` hears bytes here of bytes in all.
pub(crate) fn download(
    store: &Store,
    source: &Source,
    archive: &Archive,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PathBuf, DownloadError> {
    let blob = store.blob(&archive.sha256);
    let fs = &**store.fs();
    if fs.meta(&blob).map_err(io_at(&blob))?.is_some() {
        if hash_file(fs, &blob, archive.bytes)?.is_some_and(|(hash, _)| hex(hash) == archive.sha256) {
            return Ok(blob);
        }
        fs::remove(fs, &blob).map_err(io_at(&blob))?;
    }
    match attempt(store, source, archive, progress) {
        // What an earlier try left may have been another file's bytes: once more, from nothing.
        Err((DownloadError::Fetch(FetchError::Hash(_)), true)) => {
            attempt(store, source, archive, progress).map_err(|(error, _)| error)
        }
        other => other.map_err(|(error, _)| error),
    }
    .map(|()| blob)
}

/// One pass; an error tells whether bytes of an earlier try were built on.
fn attempt(
    store: &Store,
    source: &Source,
    archive: &Archive,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), (DownloadError, bool)> {
    let fs = &**store.fs();
    let part = store.part(&archive.sha256);
    let (hash, here) = resume(fs, &part, archive.bytes).map_err(|e| (e, false))?;
    let mut resumed = here > 0;
    progress(here, archive.bytes);
    let hash = if here == archive.bytes {
        hash
    } else {
        let stream = source.target(&archive.location, here, archive.bytes);
        let stream = stream.map_err(|e| (e.into(), resumed))?;
        let (mut file, hash, here) = if stream.offset == here && here > 0 {
            (fs.append(&part), hash, here)
        } else {
            resumed = false;
            (fs.create(&part), Sha256::new(), 0)
        };
        let file = file.as_mut().map_err(|e| io::Error::new(e.kind(), e.to_string()));
        let file = file.map_err(|e| (io_at(&part)(e).into(), resumed))?;
        let mut copy = Copy { archive, part: &part, hash, here, progress };
        let copied = copy.run(stream.bytes, &mut **file);
        let hash = copy.hash;
        if let Err(error) = copied {
            if !matches!(error, DownloadError::Fetch(ref e) if may_go_on(e)) {
                fs::remove(fs, &part).map_err(|e| (io_at(&part)(e).into(), resumed))?;
            }
            return Err((error, resumed));
        }
        hash
    };
    if hex(hash) != archive.sha256 {
        fs::remove(fs, &part).map_err(|e| (io_at(&part)(e).into(), resumed))?;
        return Err((FetchError::Hash(archive.location.clone()).into(), resumed));
    }
    keep(store, &part, &archive.sha256).map_err(|e| (e.into(), resumed))
}

/// Whether the bytes so far may be a beginning of the file.
fn may_go_on(error: &FetchError) -> bool {
    matches!(
        error,
        FetchError::TooShort { .. } | FetchError::TooSlow { .. } | FetchError::Transport { .. }
    )
}

struct Copy<'a> {
    archive: &'a Archive,
    part: &'a Path,
    hash: Sha256,
    here: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Copy<'_> {
    fn run(&mut self, mut stream: Box<dyn Read>, file: &mut dyn WriteFile) -> Result<(), DownloadError> {
        let total = self.archive.bytes;
        let what = &self.archive.location;
        let mut buffer = vec![0; CHUNK];
        let mut told = self.here;
        loop {
            let read = match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    file.sync().map_err(io_at(self.part))?;
                    return Err(read_error(what, &e).into());
                }
            };
            self.here += read as u64;
            if self.here > total {
                return Err(FetchError::TooLong { what: what.clone(), limit_bytes: total }.into());
            }
            self.hash.update(&buffer[..read]);
            file.write_all(&buffer[..read]).map_err(io_at(self.part))?;
            if self.here - told >= PROGRESS {
                told = self.here;
                (self.progress)(told, total);
            }
        }
        file.sync().map_err(io_at(self.part))?;
        if self.here < total {
            return Err(FetchError::TooShort { what: what.clone(), bytes: self.here, total }.into());
        }
        if told < total {
            (self.progress)(total, total);
        }
        Ok(())
    }
}

/// The hash and length of what an earlier try left; nothing when it cannot be a beginning.
fn resume(fs: &dyn FileSystem, part: &Path, total: u64) -> Result<(Sha256, u64), DownloadError> {
    if fs.meta(part).map_err(io_at(part))?.is_none() {
        return Ok((Sha256::new(), 0));
    }
    match hash_file(fs, part, total)? {
        Some(found) => Ok(found),
        None => {
            fs::remove(fs, part).map_err(io_at(part))?;
            Ok((Sha256::new(), 0))
        }
    }
}

/// Hash and length of a file; `None` when it is longer than `limit` bytes.
fn hash_file(fs: &dyn FileSystem, path: &Path, limit: u64) -> Result<Option<(Sha256, u64)>, DownloadError> {
    let mut file = fs.open(path).map_err(io_at(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some((hash, bytes))),
            Ok(read) => {
                bytes += read as u64;
                if bytes > limit {
                    return Ok(None);
                }
                hash.update(&buffer[..read]);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io_at(path)(e).into()),
        }
    }
}

fn keep(store: &Store, part: &Path, sha256: &str) -> Result<(), StoreError> {
    let fs = &**store.fs();
    let blob = store.blob(sha256);
    // A part found complete was perhaps never synced by the process that wrote it.
    fs.sync_file(part).map_err(io_at(part))?;
    fs.rename(part, &blob).map_err(io_at(&blob))?;
    for path in [&*blob, part] {
        let dir = path.parent().expect("both lie in folders of the store");
        fs.sync_dir(dir).map_err(io_at(dir))?;
    }
    Ok(())
}

fn hex(hash: Sha256) -> String {
    hex::encode(hash.finalize())
}
