//! The process dies at every operation on the disk in turn; half of a write that was under way gets through.
//! What a disk loses of un-synced writes is in `cuts`.

use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tractd_update::fs::{Disk, FileSystem, Meta, WriteFile};
use tractd_update::verify::VerifyError;
use tractd_update::{CheckError, StoreError};

use crate::support::{World, check, copy_dir};

/// Lets `left` operations that change the disk through, then nothing any more, like a process that died.
#[derive(Debug, Clone)]
struct Dying {
    left: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
    /// No file can be created below it: a full or broken disk rather than a death.
    full: Option<PathBuf>,
}

impl Dying {
    fn after(operations: u64) -> Self {
        Self { left: Arc::new(AtomicU64::new(operations)), done: Arc::default(), full: None }
    }

    fn step(&self) -> io::Result<()> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        self.done.fetch_add(1, Ordering::SeqCst);
        left.map(drop).map_err(|_| io::Error::other("dead"))
    }

    fn alive(&self) -> io::Result<()> {
        if self.left.load(Ordering::SeqCst) > 0 { Ok(()) } else { Err(io::Error::other("dead")) }
    }
}

struct DyingFile(Box<dyn WriteFile>, Dying);

impl Write for DyingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.1.step() {
            Ok(()) => self.0.write(bytes),
            Err(dead) => self.0.write(&bytes[..bytes.len() / 2]).and(Err(dead)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl WriteFile for DyingFile {
    fn sync(&mut self) -> io::Result<()> {
        self.1.step()?;
        self.0.sync()
    }
}

impl FileSystem for Dying {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        self.alive()?;
        Disk.open(path)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.step()?;
        if self.full.as_ref().is_some_and(|full| path.starts_with(full)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(Box::new(DyingFile(Disk.create(path)?, self.clone())))
    }
    fn append(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.step()?;
        Ok(Box::new(DyingFile(Disk.append(path)?, self.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        Disk.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        Disk.sync_dir(dir)
    }
    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Disk.sync_file(path)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        Disk.create_dir_all(dir)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Disk.remove_file(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        Disk.remove_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.alive()?;
        Disk.list(dir)
    }
    fn meta(&self, path: &Path) -> io::Result<Option<Meta>> {
        self.alive()?;
        Disk.meta(path)
    }
    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        Disk.free_bytes(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send>> {
        Disk.lock(path)
    }
}

#[test]
fn death_at_any_operation_leaves_exactly_the_old_or_the_new_version() {
    let mut world = World::with_digits();
    world.publish(2);
    let before = world.tmp.path().join("before");
    copy_dir(&world.state(), &before);
    let (mut old, mut new) = (0, 0);
    for operations in 1.. {
        std::fs::remove_dir_all(world.state()).unwrap();
        copy_dir(&before, &world.state());
        let fs = Dying::after(operations);
        let finished = check(&mut world.updater_on(Arc::new(fs.clone())), world.now).0.is_ok();
        match world.active() {
            Some(1) => old += 1,
            Some(2) => new += 1,
            other => panic!("after {operations} operations: {other:?}"),
        }
        // Whatever was left behind, the next check comes through and tidies up.
        let outcome = world.check().unwrap();
        assert_eq!((&outcome.failed, &outcome.refused), (&vec![], &vec![]), "after {operations} operations");
        assert_eq!(world.active(), Some(2), "after {operations} operations");
        if finished && fs.alive().is_ok() {
            break;
        }
    }
    println!("{old} deaths left version 1, {new} version 2");
    assert!(old > 20 && new > 3, "{old} {new}");
}

#[test]
fn floors_that_cannot_be_saved_block_the_install() {
    let mut world = World::with_digits();
    world.publish(2);
    for folder in ["tuf", "store/state.a.json.tmp", "store/state.b.json.tmp"] {
        let mut fs = Dying::after(u64::MAX);
        fs.full = Some(world.state().join(folder));
        let mut updater = world.updater_on(Arc::new(fs));
        let failed = check(&mut updater, world.now).0;
        drop(updater);
        let named = match &failed {
            Err(CheckError::Verify(VerifyError::NotDurable(_))) => folder == "tuf",
            Err(CheckError::Store(StoreError::Io { .. })) => folder != "tuf",
            _ => false,
        };
        assert!(named, "{folder}: {failed:?}");
        assert_eq!(world.active(), Some(1));
    }
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn a_check_without_news_changes_nothing_on_disk() {
    let world = World::with_digits();
    world.check().unwrap();
    let fs = Dying::after(0);
    // Dead from the start for writers; readers must not notice.
    fs.left.store(1, Ordering::SeqCst);
    let mut updater = world.updater_on(Arc::new(fs.clone()));
    check(&mut updater, world.now).0.unwrap();
    assert_eq!(fs.done.load(Ordering::SeqCst), 0);
}
