//! Compiled graphs kept on disk, so that a restart neither parses a model nor looks for its regions again.
//!
//! A file per model and tier, private to the user. It is a cache and nothing else: whatever is wrong with it, the model is
//! compiled anew and the file written anew; where it cannot be written, the model runs all the same. Graphs that need
//! tract are not kept, nor are those with free dimensions, which need the whole file for their next shapes.
//!
//! The checksum finds damage. Against whoever may write the file on purpose it guards nothing but the process: the program
//! in it is checked as a compiler's is, and the interface is held against the manifest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tractd_bundle::Digest;
use tractd_compiler::Tier;

/// Goes up when what is kept changes, or what a compiler of the same version would make.
const FORMAT: u8 = 1;

const MAGIC: [u8; 8] = [b't', b'r', b'a', b'c', b't', b'd', b'P', FORMAT];

/// Magic and CRC-32 of what follows.
const HEADER_BYTES: usize = MAGIC.len() + 4;

/// Largest file read or written, in bytes: far above what a program's arena allows for weights on an edge device.
const FILE_BYTES_MAX: u64 = 1 << 29;

/// What all files may take together, in bytes; the oldest go first.
const TOTAL_BYTES_MAX: u64 = 1 << 30;

/// Most files: what earlier versions of models left behind must not pile up.
const FILES_MAX: usize = 64;

const SUFFIX: &str = ".plan";

/// Begins names of files that are being written.
const UNFINISHED: &str = ".unfinished-";

/// What is kept of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry<'a> {
    /// The graph's inputs and outputs, as an ONNX file without nodes.
    #[serde(borrow)]
    pub(crate) interface: &'a [u8],
    /// Bytes of the graph's constants, as the file has them.
    pub(crate) weight_bytes: u64,
    /// As the compiler stores it.
    #[serde(borrow)]
    pub(crate) compiled: &'a [u8],
}

/// What an entry holds for.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Key<'a> {
    version: &'a str,
    tier: &'a str,
    digest: [u8; 32],
}

/// One model's place in the cache.
pub(crate) struct Cache<'a> {
    dir: &'a Path,
    digest: Digest,
    tier: Tier,
}

impl<'a> Cache<'a> {
    pub(crate) fn new(dir: &'a Path, digest: Digest, tier: Tier) -> Cache<'a> {
        Cache { dir, digest, tier }
    }

    /// What entries are packed for.
    pub(crate) fn tier(&self) -> Tier {
        self.tier
    }

    /// The file, if there is one of a size that could be ours.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        let path = self.path();
        // Anything else could block.
        if !fs::symlink_metadata(&path).ok()?.is_file() {
            return None;
        }
        let file = File::open(path).ok()?;
        let bytes = file.metadata().ok()?.len();
        if bytes > FILE_BYTES_MAX {
            return None;
        }
        let mut content = Vec::with_capacity(bytes as usize);
        file.take(FILE_BYTES_MAX).read_to_end(&mut content).ok()?;
        Some(content)
    }

    /// The entry in a file's content, if it is undamaged and of this model, tier and version.
    pub(crate) fn entry<'f>(&self, content: &'f [u8]) -> Option<Entry<'f>> {
        let (header, body) = content.split_at_checked(HEADER_BYTES)?;
        let (magic, sum) = header.split_at(MAGIC.len());
        if magic != MAGIC || sum != crc32fast::hash(body).to_le_bytes() {
            return None;
        }
        let (key, rest) = postcard::take_from_bytes::<Key<'_>>(body).ok()?;
        if key != self.key() {
            return None;
        }
        let (entry, rest) = postcard::take_from_bytes(rest).ok()?;
        rest.is_empty().then_some(entry)
    }

    /// Keeps an entry, and forgets others where there are too many.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub(crate) fn write(&self, entry: &Entry<'_>) -> io::Result<()> {
        let mut body = postcard::to_allocvec(&self.key()).map_err(io::Error::other)?;
        body.append(&mut postcard::to_allocvec(entry).map_err(io::Error::other)?);
        if (body.len() + HEADER_BYTES) as u64 > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        make_private(self.dir)?;
        // Its mode is 0600. Nothing is synced: a file that a power failure tore is refused by its checksum.
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(self.dir)?;
        file.write_all(&MAGIC)?;
        file.write_all(&crc32fast::hash(&body).to_le_bytes())?;
        file.write_all(&body)?;
        file.persist(self.path()).map_err(|error| error.error)?;
        trim(self.dir, TOTAL_BYTES_MAX, FILES_MAX)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(format!("{}-{}{SUFFIX}", self.digest.to_hex(), self.tier))
    }

    fn key(&self) -> Key<'static> {
        Key { version: env!("CARGO_PKG_VERSION"), tier: self.tier.name(), digest: self.digest.0 }
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Removes the oldest of our files until the others keep within the limits.
fn trim(dir: &Path, bytes_max: u64, files_max: usize) -> io::Result<()> {
    let mut files = Vec::new();
    for file in fs::read_dir(dir)? {
        let file = file?;
        let name = file.file_name();
        let ours = name.to_str().is_some_and(|name| name.ends_with(SUFFIX) || name.starts_with(UNFINISHED));
        if let Some(metadata) = file.metadata().ok().filter(|metadata| ours && metadata.is_file()) {
            let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            files.push((written, metadata.len(), file.path()));
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    let mut count = files.len();
    for (_, bytes, path) in files {
        if total <= bytes_max && count <= files_max {
            break;
        }
        fs::remove_file(path)?;
        total -= bytes;
        count -= 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Entry<'_> = Entry { interface: b"inputs", weight_bytes: 7, compiled: b"program" };

    fn cache(dir: &Path) -> Cache<'_> {
        Cache::new(dir, Digest([5; 32]), Tier::Portable)
    }

    fn written() -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        cache(dir.path()).write(&ENTRY).unwrap();
        let content = cache(dir.path()).read().unwrap();
        (dir, content)
    }

    #[test]
    fn what_was_written_is_read_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, content) = written();
        assert_eq!(cache(dir.path()).entry(&content), Some(ENTRY));
        let path = cache(dir.path()).path();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let (dir, content) = written();
        for at in 0..content.len() {
            for flip in [1, 0x80, 0xff] {
                let mut broken = content.clone();
                broken[at] ^= flip;
                assert_eq!(cache(dir.path()).entry(&broken), None, "byte {at} ^ {flip}");
            }
            assert_eq!(cache(dir.path()).entry(&content[..at]), None, "cut at {at}");
        }
        assert_eq!(cache(dir.path()).entry(&[content.as_slice(), &[0]].concat()), None, "one more byte");
    }

    #[test]
    fn an_entry_of_another_model_tier_or_version_is_not_taken() {
        let (dir, content) = written();
        let other = |digest, tier| Cache::new(dir.path(), Digest(digest), tier).entry(&content);
        assert_eq!(other([6; 32], Tier::Portable), None);
        assert_eq!(other([5; 32], Tier::Neon), None);
        let key = Key { version: "0.0.0", ..cache(dir.path()).key() };
        let mut body = postcard::to_allocvec(&key).unwrap();
        body.append(&mut postcard::to_allocvec(&ENTRY).unwrap());
        let content = [&MAGIC[..], &crc32fast::hash(&body).to_le_bytes(), &body].concat();
        assert_eq!(cache(dir.path()).entry(&content), None);
    }

    #[test]
    fn the_oldest_files_go_and_strangers_stay() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a.plan", ".unfinished-b", "c.plan", "d.plan", "stranger"];
        for (age, name) in names.iter().rev().enumerate() {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_len(10).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100 - age as u64))
                .unwrap();
        }
        let left = || {
            let names = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name());
            let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        trim(dir.path(), 40, 4).unwrap();
        assert_eq!(left(), [".unfinished-b", "a.plan", "c.plan", "d.plan", "stranger"]);
        trim(dir.path(), 40, 3).unwrap();
        assert_eq!(left(), [".unfinished-b", "c.plan", "d.plan", "stranger"]);
        trim(dir.path(), 19, 4).unwrap();
        assert_eq!(left(), ["d.plan", "stranger"]);
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(cache(dir.path()).read(), None);
        fs::create_dir(cache(dir.path()).path()).unwrap();
        assert_eq!(cache(dir.path()).read(), None);
    }
}
