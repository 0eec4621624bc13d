use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::bundle::append;
use crate::digest::Sha256;
use crate::files::{parent, sync_dir};
use crate::{Bundle, Digest, Disk, Limits, OpenError, tarball};

/// Weights hardly compress, so a higher level buys time on the publisher's side and nothing else. Fixed, with
/// one thread, because it decides the archive's bytes.
const ZSTD_LEVEL: i32 = 12;

/// What [`pack`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The bundle's identity.
    pub digest: Digest,
    /// Of the compressed file, as it is downloaded.
    pub file_sha256: [u8; 32],
    /// Of the compressed file.
    pub bytes: u64,
}

/// Why nothing was packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The folder is not a sound bundle.
    #[error(transparent)]
    Bundle(#[from] OpenError),
    /// A bare model has nothing to say of itself.
    #[error("{}: packing needs a manifest.toml", dir.display())]
    NoManifest {
        /// The folder.
        dir: PathBuf,
    },
    /// The compressed file would not be accepted anywhere.
    #[error("the archive is larger than {limit} bytes")]
    TooLarge {
        /// In bytes.
        limit: u64,
    },
    /// The archive could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file changed between being checked and being packed.
    #[error("{}: a file changed while it was packed", dir.display())]
    Changed {
        /// The folder.
        dir: PathBuf,
    },
}

/// Packs the files the manifest in `dir` names, and no others, into `out_file` (see [`Bundle::archive_name`]).
/// The same files give the same bytes. `out_file` appears whole or not at all; one that was there is replaced.
/// `progress` hears bytes read so far and bytes in all.
///
/// # Errors
/// [`PackError`]; nothing is left behind.
pub fn pack(
    dir: &Path,
    out_file: &Path,
    limits: &Limits,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Packed, PackError> {
    let bundle = Bundle::open(dir, limits)?;
    let Some(manifest) = &bundle.manifest else {
        return Err(PackError::NoManifest { dir: dir.to_owned() });
    };
    let total = manifest.files().iter().map(|file| fs::metadata(dir.join(file)).map_or(0, |m| m.len())).sum();

    let mut name = out_file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = Part(out_file.with_file_name(name));
    let io_error = |source| PackError::Io { path: out_file.to_owned(), source };

    let out = Hashing { inner: File::create(&part.0).map_err(io_error)?, hash: Sha256::new(), bytes: 0 };
    let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL).map_err(io_error)?;
    encoder.include_checksum(true).map_err(io_error)?;
    let mut tar = tarball::Writer::new(encoder);
    let mut done = 0;
    for file in manifest.files() {
        append(&Disk, &mut tar, &dir.join(file), file, limits, &mut |_, bytes| {
            done += bytes.len() as u64;
            progress(done, total);
        })?;
    }
    let (encoder, digest) = tar.finish().map_err(io_error)?;
    let out = encoder.finish().map_err(io_error)?;
    if digest != bundle.digest {
        return Err(PackError::Changed { dir: dir.to_owned() });
    }
    if out.bytes > limits.archive_bytes {
        return Err(PackError::TooLarge { limit: limits.archive_bytes });
    }
    out.inner.sync_all().map_err(io_error)?;
    fs::rename(&part.0, out_file).map_err(io_error)?;
    sync_dir(parent(out_file)).map_err(io_error)?;
    Ok(Packed { digest, file_sha256: out.hash.finish(), bytes: out.bytes })
}

/// The archive under its temporary name, removed unless it was renamed.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.0);
    }
}

struct Hashing {
    inner: File,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
