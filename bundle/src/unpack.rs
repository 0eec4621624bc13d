//! From an archive nobody trusts yet to a folder. Only what [`pack`](crate::pack()) writes is accepted, so
//! there is no second spelling of anything to get wrong; the hostile cases still have an error each, because
//! an operator must be able to tell an attack from a broken download.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::digest::Sha256;
use crate::files::{PathProblem, check_path, parent, sync_dir};
use crate::{Bundle, Digest, Disk, Limits, MANIFEST_FILE, MODEL_FILE, OpenError, Place, tarball};

/// log2 of the zstd window in bytes: 8 MiB, twice what our level writes. Without a cap the archive chooses how
/// much memory the decoder takes.
const WINDOW_LOG_MAX: u32 = 23;

/// Why an archive was refused. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The place is taken.
    #[error("{}: exists already", dest.display())]
    DestinationExists {
        /// Where the bundle was to go.
        dest: PathBuf,
    },
    /// The compressed bytes go on and on.
    #[error("the archive is larger than {limit} bytes")]
    ArchiveTooLarge {
        /// In bytes.
        limit: u64,
    },
    /// Not zstd, damaged, or wanting more memory than the window's cap.
    #[error("the archive does not decompress: {0}")]
    Compression(String),
    /// It ends too early.
    #[error("the archive is cut off")]
    Truncated,
    /// It goes on after its end.
    #[error("the archive has data after its end")]
    TrailingData,
    /// A tar header is not one.
    #[error("the archive has a damaged header")]
    Header,
    /// A path that leads elsewhere, or has two spellings.
    #[error("the archive has a file `{path}`, which {problem}")]
    Path {
        /// As written, escaped.
        path: String,
        /// What is wrong with it.
        problem: PathProblem,
    },
    /// A link, folder, device, FIFO, or an extension header.
    #[error("the archive has `{path}`, which is a {kind}, not a plain file")]
    EntryType {
        /// As written, escaped.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// The same path again.
    #[error("the archive has `{path}` twice")]
    Duplicate {
        /// Which.
        path: String,
    },
    /// Two paths that are one file where case does not count.
    #[error("the archive has `{path}` twice, differing in case only")]
    CaseCollision {
        /// The second of them.
        path: String,
    },
    /// Both a file and a folder.
    #[error("the archive has `{path}` both as a file and as a folder")]
    FileAndFolder {
        /// Which.
        path: String,
    },
    /// Too many entries.
    #[error("the archive has more than {limit} files")]
    TooManyFiles {
        /// How many may be.
        limit: usize,
    },
    /// One file too large.
    #[error("`{path}` is larger than {limit} bytes")]
    FileTooLarge {
        /// Which.
        path: String,
        /// In bytes.
        limit: u64,
    },
    /// All files together too large: a decompression bomb, if not just a big model.
    #[error("the files are larger than {limit} bytes together")]
    TotalTooLarge {
        /// In bytes.
        limit: u64,
    },
    /// Owner, mode, time, order or padding differ from what packing writes.
    #[error("the archive was not written by `tractctl pack`: {0}")]
    NotCanonical(&'static str),
    /// No manifest.
    #[error("the archive has no {MANIFEST_FILE}")]
    NoManifest,
    /// No model.
    #[error("the archive has no {MODEL_FILE}")]
    NoModel,
    /// The manifest names it, the archive lacks it.
    #[error("the archive lacks `{path}`, which its manifest names")]
    Missing {
        /// Which.
        path: String,
    },
    /// The archive has it, the manifest does not name it.
    #[error("the archive has `{path}`, which its manifest does not name")]
    Unlisted {
        /// Which.
        path: String,
    },
    /// The files make no sound bundle.
    #[error(transparent)]
    Bundle(#[from] OpenError),
    /// Nothing wrong with the archive: the disk, or its source.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Unpacks `archive` into `dest`, which must not exist and whose parent must. `dest` appears whole, checked and
/// on disk (synced), or not at all.
///
/// # Errors
/// [`UnpackError`]; nothing is left behind.
pub fn unpack(archive: impl Read, dest: &Path, limits: &Limits) -> Result<Bundle, UnpackError> {
    let io_error = |source| UnpackError::Io { path: dest.to_owned(), source };
    match fs::symlink_metadata(dest) {
        Ok(_) => return Err(UnpackError::DestinationExists { dest: dest.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(error)),
    }
    let staging = Staging::beside(dest).map_err(io_error)?;
    let (mut bundle, files) = extract_and_check(&Disk, archive, &staging.0, limits)?;
    for file in &files {
        let synced = File::open(staging.0.join(file)).and_then(|file| file.sync_all());
        synced.map_err(io_error)?;
    }
    for dir in folders(&files) {
        sync_dir(&staging.0.join(dir)).map_err(io_error)?;
    }
    sync_dir(&staging.0).map_err(io_error)?;
    fs::rename(&staging.0, dest).map_err(io_error)?;
    sync_dir(parent(dest)).map_err(io_error)?;
    bundle.dir = dest.to_owned();
    Ok(bundle)
}

/// Unpacks `archive` into the folder `dir` of `place`, where nothing may be yet. Nothing is made durable, and what
/// an error leaves behind stays: both are the caller's.
///
/// # Errors
/// [`UnpackError`]
pub fn unpack_in(
    place: &dyn Place,
    archive: impl Read,
    dir: &Path,
    limits: &Limits,
) -> Result<Bundle, UnpackError> {
    extract_and_check(place, archive, dir, limits).map(|(bundle, _)| bundle)
}

fn extract_and_check(
    place: &dyn Place,
    archive: impl Read,
    dir: &Path,
    limits: &Limits,
) -> Result<(Bundle, HashSet<String>), UnpackError> {
    let (files, digest) = extract(place, archive, dir, limits)?;
    if !files.contains(MANIFEST_FILE) {
        return Err(UnpackError::NoManifest);
    }
    if !files.contains(MODEL_FILE) {
        return Err(UnpackError::NoModel);
    }
    let bundle = open_extracted(place, dir, &files, limits)?;
    if bundle.digest != digest {
        return Err(UnpackError::NotCanonical("its files have another digest"));
    }
    Ok((bundle, files))
}

fn open_extracted(
    place: &dyn Place,
    dir: &Path,
    files: &HashSet<String>,
    limits: &Limits,
) -> Result<Bundle, UnpackError> {
    let bundle = match Bundle::open_in(place, dir, limits) {
        Ok(bundle) => bundle,
        // The staging folder's name says nothing to anybody; the file's does.
        Err(OpenError::Io { path, source }) => {
            let inside = path.strip_prefix(dir).unwrap_or(&path).to_owned();
            return Err(match source.kind() {
                io::ErrorKind::NotFound => UnpackError::Missing { path: inside.display().to_string() },
                _ => UnpackError::Io { path: inside, source },
            });
        }
        Err(error) => return Err(error.into()),
    };
    let listed = bundle.manifest.as_ref().map(|manifest| manifest.files()).unwrap_or_default();
    match files.iter().find(|file| !listed.contains(file.as_str())) {
        Some(path) => Err(UnpackError::Unlisted { path: path.clone() }),
        None => Ok(bundle),
    }
}

/// Writes every file of the archive below `dir`; returns their paths and the digest of the tar.
fn extract(
    place: &dyn Place,
    archive: impl Read,
    dir: &Path,
    limits: &Limits,
) -> Result<(HashSet<String>, Digest), UnpackError> {
    let counted = Counted { inner: archive, left: limits.archive_bytes };
    let mut decoder =
        zstd::Decoder::with_buffer(BufReader::new(counted)).map_err(from_decoder(limits))?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(from_decoder(limits))?;
    let mut tar = Tar { decoder, hash: Sha256::new(), limits };

    let (mut files, mut folded, mut dirs) = (HashSet::new(), HashSet::new(), HashSet::new());
    let (mut last, mut total) = (String::new(), 0u64);
    while let Some((path, size)) = tar.next_header()? {
        if files.contains(&path) {
            return Err(UnpackError::Duplicate { path });
        }
        if !folded.insert(path.to_ascii_lowercase()) {
            return Err(UnpackError::CaseCollision { path });
        }
        let above: Vec<String> = folders_above(&path).map(str::to_owned).collect();
        if dirs.contains(&path) || above.iter().any(|dir| files.contains(dir)) {
            return Err(UnpackError::FileAndFolder { path });
        }
        dirs.extend(above);
        if path < last {
            return Err(UnpackError::NotCanonical("its files are not sorted"));
        }
        if files.len() == limits.files {
            return Err(UnpackError::TooManyFiles { limit: limits.files });
        }
        let limit = if path == MANIFEST_FILE { limits.manifest_bytes } else { limits.file_bytes() };
        if size > limit {
            return Err(UnpackError::FileTooLarge { path, limit });
        }
        total = total.saturating_add(size);
        if total > limits.total_bytes {
            return Err(UnpackError::TotalTooLarge { limit: limits.total_bytes });
        }
        tar.extract_file(place, &dir.join(&path), size)?;
        last.clone_from(&path);
        files.insert(path);
    }
    Ok((files, tar.finish()?))
}

/// Reads the one form of tar there is here.
struct Tar<'a, R: BufRead> {
    decoder: zstd::Decoder<'a, R>,
    hash: Sha256,
    limits: &'a Limits,
}

impl<R: BufRead> Tar<'_, R> {
    fn next_header(&mut self) -> Result<Option<(String, u64)>, UnpackError> {
        let mut block = [0; tarball::BLOCK];
        self.fill(&mut block)?;
        if block == [0; tarball::BLOCK] {
            return Ok(None);
        }
        let header = tarball::Header::parse(&block).ok_or(UnpackError::Header)?;
        let path = String::from_utf8_lossy(header.path).escape_debug().to_string();
        if let Some(kind) = header.not_a_file {
            return Err(UnpackError::EntryType { path, kind });
        }
        // What follows a NUL in the name field is invisible to most readers of tar.
        let checked = match std::str::from_utf8(header.path) {
            _ if header.hidden_name => Err(PathProblem::Nul),
            Ok(text) => check_path(text, self.limits.path_len()).map(|()| text.to_owned()),
            Err(_) => Err(PathProblem::Character),
        };
        let checked = checked.map_err(|problem| UnpackError::Path { path, problem })?;
        let size = header.size.ok_or(UnpackError::Header)?;
        if block != tarball::header(&checked, size) {
            return Err(UnpackError::NotCanonical("a header has an owner, mode, time or extension"));
        }
        Ok(Some((checked, size)))
    }

    fn extract_file(&mut self, place: &dyn Place, path: &Path, size: u64) -> Result<(), UnpackError> {
        let io_error = |source| UnpackError::Io { path: path.to_owned(), source };
        let mut file = place.create_new(path).map_err(io_error)?;
        let mut buffer = vec![0; 64 << 10];
        let mut left = size;
        while left > 0 {
            let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.fill(&mut buffer[..room])?;
            file.write_all(&buffer[..room]).map_err(io_error)?;
            left -= room as u64;
        }
        file.flush().map_err(io_error)?;
        let expected = tarball::padding(size);
        let mut padding = [0; tarball::BLOCK];
        self.fill(&mut padding[..expected.len()])?;
        if padding[..expected.len()] != *expected {
            return Err(UnpackError::NotCanonical("the padding after a file is not zero"));
        }
        Ok(())
    }

    /// After the first zero block: the second one, then the end of the frame, then the end of the file.
    fn finish(mut self) -> Result<Digest, UnpackError> {
        let mut block = [0; tarball::BLOCK];
        self.fill(&mut block)?;
        if block != [0; tarball::BLOCK] {
            return Err(UnpackError::TrailingData);
        }
        if self.decoder.read(&mut [0]).map_err(from_decoder(self.limits))? != 0 {
            return Err(UnpackError::TrailingData);
        }
        let mut rest = self.decoder.finish();
        if !rest.fill_buf().map_err(from_decoder(self.limits))?.is_empty() {
            return Err(UnpackError::TrailingData);
        }
        Ok(Digest(self.hash.finish()))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), UnpackError> {
        self.decoder.read_exact(buffer).map_err(from_decoder(self.limits))?;
        self.hash.update(buffer);
        Ok(())
    }
}

fn from_decoder(limits: &Limits) -> impl Fn(io::Error) -> UnpackError + use<> {
    let limit = limits.archive_bytes;
    move |error| match error.kind() {
        io::ErrorKind::UnexpectedEof => UnpackError::Truncated,
        io::ErrorKind::FileTooLarge => UnpackError::ArchiveTooLarge { limit },
        _ => UnpackError::Compression(error.to_string()),
    }
}

/// Ends in an error, not in silence, once `left` bytes are through.
struct Counted<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte more than allowed is asked for: only that tells the limit from the end.
        let room = buffer.len().min(usize::try_from(self.left.saturating_add(1)).unwrap_or(usize::MAX));
        let got = self.inner.read(&mut buffer[..room])?;
        self.left = self.left.checked_sub(got as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(got)
    }
}

/// The folder being filled, gone on drop unless it was renamed.
struct Staging(PathBuf);

impl Staging {
    fn beside(dest: &Path) -> io::Result<Staging> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut name = std::ffi::OsString::from(".");
        name.push(dest.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(format!(".{}-{}.part", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let dir = dest.with_file_name(name);
        fs::create_dir(&dir)?;
        Ok(Staging(dir))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

fn folders(files: &HashSet<String>) -> HashSet<&str> {
    files.iter().flat_map(|file| folders_above(file)).collect()
}

/// `a/b/c` lies in `a` and in `a/b`.
fn folders_above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}
