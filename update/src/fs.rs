//! Everything the room does to a disk, and the only module that names `std::fs`.
//!
//! A trait, because power cuts are tested by an implementation that stops at the N-th operation.

use std::fmt::Debug;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tractd_bundle::Place;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Length of a file, in bytes.
    pub len: u64,
    /// A folder.
    pub is_dir: bool,
    /// A plain file: no folder, link, device or FIFO.
    pub is_file: bool,
}

/// An open file that can be made durable.
pub trait WriteFile: Write + Send {
    /// Returns once the bytes survive a power cut; the name in the folder needs [`FileSystem::sync_dir`] too.
    fn sync(&mut self) -> io::Result<()>;
}

/// The operations a store needs. Each is one step a power cut may fall behind.
pub trait FileSystem: Debug + Send + Sync {
    /// Opens for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>>;
    /// Creates or truncates.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// Opens an existing file for writing behind its end.
    fn append(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// Atomically gives a file or folder another name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names inside `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes an existing file's bytes durable, whoever wrote them.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// Creates `dir` and its parents.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and what it holds.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The paths inside `dir`, sorted; none when it is not there.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// `None` when nothing is there. Links are not followed.
    fn meta(&self, path: &Path) -> io::Result<Option<Meta>>;
    /// Bytes an unprivileged writer may still use on the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Holds `path` against other processes until the guard is dropped; [`io::ErrorKind::WouldBlock`] when taken.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send>>;
}

/// The disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

/// Where the store's bundles lie, for the crate that reads and unpacks them.
#[derive(Debug)]
pub(crate) struct Files<'a>(pub(crate) &'a dyn FileSystem);

impl Place for Files<'_> {
    fn open(&self, path: &Path) -> io::Result<(Box<dyn Read>, u64)> {
        match self.0.meta(path)? {
            Some(meta) if meta.is_file => Ok((self.0.open(path)?, meta.len)),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file")),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn Write>> {
        if self.0.meta(path)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if let Some(dir) = path.parent() {
            self.0.create_dir_all(dir)?;
        }
        Ok(self.0.create(path)?)
    }
}

/// Reads a file of at most `limit` bytes; `None` when it is not there.
///
/// # Errors
/// What the file system says, and [`io::ErrorKind::FileTooLarge`] over the limit.
pub fn read(fs: &dyn FileSystem, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match fs.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// Puts `bytes` under `path`, durably: once this returned the file is the new one, and after a power cut at any
/// moment the old or the new one, whole. Missing folders are created.
///
/// # Errors
/// What the file system says; the old file is then still there.
pub fn write_atomic(fs: &dyn FileSystem, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = folder_of(path)?;
    create_dir_durable(fs, dir)?;
    put_whole(fs, path, bytes)?;
    fs.sync_dir(dir)
}

/// The same without the last word: which of the two it is after a power cut is open until the folder, and what was
/// created for it, is synced. For many files that become durable together.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_whole(fs: &dyn FileSystem, path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_dir(fs, folder_of(path)?)?;
    put_whole(fs, path, bytes)
}

/// Creates `dir` and its parents, and says whether it was missing. Not durable by itself.
///
/// # Errors
/// What the file system says.
pub fn create_dir(fs: &dyn FileSystem, dir: &Path) -> io::Result<bool> {
    let is_missing = fs.meta(dir)?.is_none();
    if is_missing {
        fs.create_dir_all(dir)?;
    }
    Ok(is_missing)
}

fn folder_of(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))
}

fn put_whole(fs: &dyn FileSystem, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = folder_of(path)?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temp = dir.join(name);
    let mut file = fs.create(&temp)?;
    file.write_all(bytes)?;
    file.sync()?;
    drop(file);
    fs.rename(&temp, path)
}

/// Creates `dir` and makes its name, and those of parents it had to create, durable.
///
/// # Errors
/// What the file system says.
pub fn create_dir_durable(fs: &dyn FileSystem, dir: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut at = dir;
    while fs.meta(at)?.is_none() {
        missing.push(at);
        match at.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => at = parent,
            _ => break,
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    fs.create_dir_all(dir)?;
    for created in missing {
        match created.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => fs.sync_dir(parent)?,
            _ => fs.sync_dir(Path::new("."))?,
        }
    }
    Ok(())
}

/// Makes every file and folder below `dir`, and `dir` itself, durable.
///
/// # Errors
/// What the file system says.
pub fn sync_tree(fs: &dyn FileSystem, dir: &Path) -> io::Result<()> {
    for path in fs.list(dir)? {
        match fs.meta(&path)? {
            Some(meta) if meta.is_dir => sync_tree(fs, &path)?,
            Some(_) => fs.sync_file(&path)?,
            None => {}
        }
    }
    fs.sync_dir(dir)
}

/// Removes a file or a folder; nothing there is fine.
///
/// # Errors
/// What the file system says.
pub fn remove(fs: &dyn FileSystem, path: &Path) -> io::Result<()> {
    match fs.meta(path)? {
        None => Ok(()),
        Some(meta) if meta.is_dir => fs.remove_dir_all(path),
        Some(_) => fs.remove_file(path),
    }
}

#[allow(clippy::disallowed_methods, clippy::disallowed_types)] // the one place
mod disk {
    use std::fs::{self, File, OpenOptions, TryLockError};

    use super::*;

    impl WriteFile for File {
        fn sync(&mut self) -> io::Result<()> {
            self.sync_all()
        }
    }

    impl FileSystem for Disk {
        fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
            Ok(Box::new(File::open(path)?))
        }

        fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
            Ok(Box::new(File::create(path)?))
        }

        fn append(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
            let mut file = OpenOptions::new().write(true).open(path)?;
            file.seek(SeekFrom::End(0))?;
            Ok(Box::new(file))
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            fs::rename(from, to)
        }

        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            File::open(dir)?.sync_all()
        }

        fn sync_file(&self, path: &Path) -> io::Result<()> {
            File::open(path)?.sync_all()
        }

        fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
            fs::create_dir_all(dir)
        }

        fn remove_file(&self, path: &Path) -> io::Result<()> {
            fs::remove_file(path)
        }

        fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
            fs::remove_dir_all(dir)
        }

        fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
            let entries = match fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(e) => return Err(e),
            };
            let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
            paths.sort();
            Ok(paths)
        }

        fn meta(&self, path: &Path) -> io::Result<Option<Meta>> {
            match fs::symlink_metadata(path) {
                Ok(meta) => {
                    Ok(Some(Meta { len: meta.len(), is_dir: meta.is_dir(), is_file: meta.is_file() }))
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e),
            }
        }

        fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
            let stat = rustix::fs::statvfs(dir)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        }

        fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send>> {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
            match file.try_lock() {
                Ok(()) => Ok(Box::new(file)),
                Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
                Err(TryLockError::Error(e)) => Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_write_replaces_the_file_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/state");
        write_atomic(&Disk, &path, b"one").unwrap();
        write_atomic(&Disk, &path, b"two").unwrap();
        assert_eq!(read(&Disk, &path, 3).unwrap().unwrap(), b"two");
        assert_eq!(Disk.list(path.parent().unwrap()).unwrap(), [path]);
    }

    #[test]
    fn a_file_over_its_limit_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&Disk, &path, b"1234").unwrap();
        assert_eq!(read(&Disk, &path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(&Disk, &dir.path().join("none"), 3).unwrap(), None);
    }

    #[test]
    fn a_lock_is_held_until_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Disk.lock(&path).unwrap();
        assert_eq!(Disk.lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        Disk.lock(&path).unwrap();
    }
}
