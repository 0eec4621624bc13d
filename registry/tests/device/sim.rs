//! A file system in memory that remembers every operation, and what each state a power cut could leave looks like.
//!
//! The rules are POSIX's, which are weaker than any one file system's: bytes are safe after the file's sync, names
//! after their folder's. Until then each operation may be lost by itself, whatever came after it; a lost write may
//! leave nothing, zeros, or its first half. A rename is atomic, but the name it took away from a file may come back;
//! a folder has one name at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use tractd_update::fs::{FileSystem, Meta, WriteFile};

/// Up to so many operations that are not safe yet, every subset of them is lost once.
const ALL_SUBSETS: usize = 8;
/// With more of them, so many subsets by chance, beside those tried always.
const CHANCES: u64 = 150;
/// The root folder.
const ROOT: usize = 0;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Node {
    File(Vec<u8>),
    Dir(BTreeMap<OsString, usize>),
}

#[derive(Debug, Clone)]
enum Op {
    Make {
        node: usize,
        is_dir: bool,
    },
    Link {
        dir: usize,
        name: OsString,
        node: usize,
    },
    /// `part_of` is the link of a rename: lost with it, and for a folder only with it.
    Unlink {
        dir: usize,
        name: OsString,
        part_of: Option<usize>,
        is_dir: bool,
    },
    Truncate {
        node: usize,
    },
    Write {
        node: usize,
        at: usize,
        bytes: Vec<u8>,
    },
    SyncFile {
        node: usize,
    },
    SyncDir {
        dir: usize,
    },
}

/// What became of the data of a lost write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remains {
    Nothing,
    Zeros,
    Half,
}

/// A safeguard taken out of the product, as far as a file system can take it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// No file whose path contains this is ever synced.
    NoFileSync(&'static str),
    /// No folder whose path ends in this is ever synced.
    NoDirSync(&'static str),
    /// A rename to a path that contains this copies, and then removes.
    CopyForRename(&'static str),
    /// A file whose path contains this passes for one whose checksum is right.
    NoCrc(&'static str),
    /// This one sync or rename, counted from 0, whatever it is of.
    Without(usize),
}

/// What goes wrong with the disk while the power is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The operation fails with this kind.
    Error(io::ErrorKind),
    /// A write takes one byte and then fails.
    Short,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    base: Vec<Node>,
    now: Vec<Node>,
    log: Vec<Op>,
    mutation: Option<Mutation>,
    /// Every sync and rename asked for, in order, each with the number of operations logged before it.
    safeguards: Vec<(String, usize)>,
    /// At which operation from now on, and for how many.
    trouble: Option<(usize, usize, Trouble)>,
    steps: usize,
}

/// The file system; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sim(Arc<Mutex<Disk>>);

/// A state the disk may be in after a power cut.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Image(Vec<Node>);

impl Sim {
    /// A disk with what lies below `dir`, all of it durable.
    pub(crate) fn copy_of(dir: &Path) -> Self {
        let sim = Self::default();
        sim.disk().now.push(Node::Dir(BTreeMap::new()));
        sim.load(dir);
        let mut disk = sim.disk();
        disk.log.clear();
        disk.base = disk.now.clone();
        drop(disk);
        sim
    }

    fn load(&self, path: &Path) {
        if path.is_dir() {
            self.create_dir_all(path).unwrap();
            for entry in std::fs::read_dir(path).unwrap() {
                self.load(&entry.unwrap().path());
            }
        } else {
            self.create(path).unwrap().write_all(&std::fs::read(path).unwrap()).unwrap();
        }
    }

    pub(crate) fn from_image(image: &Image) -> Self {
        let disk = Disk { base: image.0.clone(), now: image.0.clone(), ..Disk::default() };
        Self(Arc::new(Mutex::new(disk)))
    }

    pub(crate) fn with(self, mutation: Option<Mutation>) -> Self {
        self.disk().mutation = mutation;
        self
    }

    /// `trouble` at change number `at`, counted from 0, and at the `count - 1` after it.
    pub(crate) fn in_trouble(self, at: usize, count: usize, trouble: Trouble) -> Self {
        self.disk().trouble = Some((at, count, trouble));
        self
    }

    /// The safeguard that is out.
    pub(crate) fn mutation(&self) -> Option<Mutation> {
        self.disk().mutation
    }

    /// Every sync and rename asked for, in order, each with the number of operations logged before it.
    pub(crate) fn safeguards(&self) -> Vec<(String, usize)> {
        self.disk().safeguards.clone()
    }

    /// Another disk with the same content.
    pub(crate) fn fork(&self) -> Self {
        let disk = self.disk();
        let mutation = disk.mutation;
        Self::from_image(&Image(disk.now.clone())).with(mutation)
    }

    /// The content, without a power cut.
    pub(crate) fn image(&self) -> Image {
        Image(self.disk().now.clone())
    }

    /// Operations logged so far.
    pub(crate) fn len(&self) -> usize {
        self.disk().log.len()
    }

    /// Changes of the disk tried so far, failed ones included.
    pub(crate) fn steps(&self) -> usize {
        self.disk().steps
    }

    /// Every state, without repetitions, that a power cut after `ops` operations may leave.
    pub(crate) fn images_after(&self, ops: usize) -> Vec<Image> {
        let disk = self.disk();
        let log = &disk.log[..ops];
        let open: Vec<usize> = (0..ops).filter(|&at| !is_durable(log, at)).collect();
        let mut seen = BTreeSet::new();
        let mut images = Vec::new();
        let mut add = |lost: &BTreeSet<usize>, remains| {
            let image = replay(&disk.base, log, lost, remains);
            let mut hash = DefaultHasher::new();
            image.hash(&mut hash);
            if seen.insert(hash.finish()) {
                images.push(Image(image));
            }
        };
        for remains in [Remains::Nothing, Remains::Zeros, Remains::Half] {
            add(&BTreeSet::new(), remains);
            add(&open.iter().copied().collect(), remains);
            let is_data = |at: &&usize| matches!(log[**at], Op::Write { .. } | Op::Truncate { .. });
            add(&open.iter().filter(is_data).copied().collect(), remains);
            add(&open.iter().filter(|at| !is_data(at)).copied().collect(), remains);
            for &one in &open {
                add(&BTreeSet::from([one]), remains);
                add(&open.iter().copied().filter(|&at| at != one).collect(), remains);
                add(&open.iter().copied().filter(|&at| at > one).collect(), remains);
            }
        }
        if open.len() <= ALL_SUBSETS {
            for subset in 0..1_usize << open.len() {
                let lost = open.iter().enumerate().filter(|(bit, _)| subset >> bit & 1 == 1);
                add(&lost.map(|(_, &at)| at).collect(), Remains::Nothing);
            }
            return images;
        }
        // Xorshift, seeded by where the cut is: a failure comes again.
        let mut random = (ops as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for _ in 0..CHANCES {
            let mut flip = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random & 1 == 0
            };
            let lost = open.iter().copied().filter(|_| flip()).collect();
            add(&lost, if flip() { Remains::Zeros } else { Remains::Nothing });
        }
        images
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

/// Whether the operation survives a power cut after the last one of `log`.
fn is_durable(log: &[Op], at: usize) -> bool {
    let later = &log[at + 1..];
    let dir_synced = |of: usize| later.iter().any(|op| matches!(op, Op::SyncDir { dir } if *dir == of));
    match &log[at] {
        Op::Make { .. } | Op::SyncFile { .. } | Op::SyncDir { .. } => true,
        Op::Unlink { part_of: Some(_), is_dir: true, .. } => true,
        Op::Link { dir, .. } | Op::Unlink { dir, .. } => dir_synced(*dir),
        Op::Truncate { node: of } | Op::Write { node: of, .. } => {
            later.iter().any(|op| matches!(op, Op::SyncFile { node } if node == of))
        }
    }
}

fn replay(base: &[Node], log: &[Op], lost: &BTreeSet<usize>, remains: Remains) -> Vec<Node> {
    let mut nodes = base.to_vec();
    for (at, op) in log.iter().enumerate() {
        let is_lost = lost.contains(&at);
        match op {
            Op::Unlink { part_of: Some(link), .. } if lost.contains(link) => {}
            Op::Link { .. } | Op::Unlink { .. } | Op::Truncate { .. } if is_lost => {}
            Op::Write { node, at, bytes } if is_lost => match remains {
                Remains::Nothing => {}
                Remains::Zeros => put(&mut nodes[*node], *at, &vec![0; bytes.len()]),
                Remains::Half => put(&mut nodes[*node], *at, &bytes[..bytes.len() / 2]),
            },
            op => apply(&mut nodes, op),
        }
    }
    nodes
}

fn apply(nodes: &mut Vec<Node>, op: &Op) {
    match op {
        Op::Make { node, is_dir } => {
            assert_eq!(*node, nodes.len());
            nodes.push(if *is_dir { Node::Dir(BTreeMap::new()) } else { Node::File(Vec::new()) });
        }
        Op::Link { dir, name, node } => {
            let Node::Dir(entries) = &mut nodes[*dir] else { panic!("links go into folders") };
            entries.insert(name.clone(), *node);
        }
        Op::Unlink { dir, name, .. } => {
            let Node::Dir(entries) = &mut nodes[*dir] else { panic!("links are in folders") };
            entries.remove(name);
        }
        Op::Truncate { node } => nodes[*node] = Node::File(Vec::new()),
        Op::Write { node, at, bytes } => put(&mut nodes[*node], *at, bytes),
        Op::SyncFile { .. } | Op::SyncDir { .. } => {}
    }
}

fn put(node: &mut Node, at: usize, bytes: &[u8]) {
    let Node::File(content) = node else { panic!("bytes go into files") };
    content.resize(content.len().max(at + bytes.len()), 0);
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Disk {
    fn find(&self, path: &Path) -> Option<usize> {
        path.components().skip(1).try_fold(ROOT, |at, part| match &self.now[at] {
            Node::Dir(entries) => entries.get(part.as_os_str()).copied(),
            Node::File(_) => None,
        })
    }

    fn place(&self, path: &Path) -> io::Result<(usize, OsString)> {
        let dir = path.parent().and_then(|dir| self.find(dir)).ok_or(io::ErrorKind::NotFound)?;
        Ok((dir, path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned()))
    }

    fn file(&self, path: &Path) -> io::Result<(usize, &Vec<u8>)> {
        match self.find(path).map(|node| (node, &self.now[node])) {
            Some((node, Node::File(content))) => Ok((node, content)),
            Some(_) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn log(&mut self, op: Op) {
        apply(&mut self.now, &op);
        self.log.push(op);
    }

    fn make(&mut self, dir: usize, name: OsString, is_dir: bool) -> usize {
        let node = self.now.len();
        self.log(Op::Make { node, is_dir });
        self.log(Op::Link { dir, name, node });
        node
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        self.find(path).ok_or(io::ErrorKind::NotFound)?;
        self.log(Op::Unlink { dir, name, part_of: None, is_dir: false });
        Ok(())
    }

    /// What takes the place of a rename that is out: new content under the name, or in what has it.
    fn copy(&mut self, node: usize, dir: usize, name: OsString, old: Option<usize>) {
        match self.now[node].clone() {
            Node::File(bytes) => {
                let copy = old.inspect(|&node| self.log(Op::Truncate { node }));
                let copy = copy.unwrap_or_else(|| self.make(dir, name, false));
                self.log(Op::Write { node: copy, at: 0, bytes });
            }
            Node::Dir(entries) => {
                let copy = self.make(dir, name, true);
                for (name, child) in entries {
                    self.copy(child, copy, name, None);
                }
            }
        }
    }

    /// Counts a change, and fails it when it is its turn.
    fn step(&mut self) -> Result<(), Trouble> {
        let step = self.steps;
        self.steps += 1;
        match self.trouble {
            Some((at, count, trouble)) if (at..at + count).contains(&step) => Err(trouble),
            _ => Ok(()),
        }
    }

    fn try_step(&mut self) -> io::Result<()> {
        self.step().map_err(|trouble| match trouble {
            Trouble::Error(kind) => kind.into(),
            Trouble::Short => io::ErrorKind::StorageFull.into(),
        })
    }

    fn is(&self, mutation: impl Fn(Mutation) -> bool) -> bool {
        self.mutation.is_some_and(mutation)
    }

    /// Counts a sync or rename, and says whether it is out.
    fn is_out(&mut self, what: &str, path: &Path, mutation: impl Fn(Mutation) -> bool) -> bool {
        let number = self.safeguards.len();
        self.safeguards.push((format!("{what} {}", path.display()), self.log.len()));
        self.is(|m| m == Mutation::Without(number) || mutation(m))
    }
}

struct Open {
    sim: Sim,
    path: PathBuf,
    node: usize,
    at: usize,
}

impl Write for Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.sim.disk();
        let bytes = match disk.step() {
            Ok(()) => bytes,
            Err(Trouble::Error(kind)) => return Err(kind.into()),
            Err(Trouble::Short) => &bytes[..bytes.len().min(1)],
        };
        disk.log(Op::Write { node: self.node, at: self.at, bytes: bytes.to_vec() });
        self.at += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for Open {
    fn sync(&mut self) -> io::Result<()> {
        self.sim.sync_file(&self.path)
    }
}

impl FileSystem for Sim {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        let disk = self.disk();
        let (_, content) = disk.file(path)?;
        let trusted =
            disk.is(|m| matches!(m, Mutation::NoCrc(part) if path.to_string_lossy().contains(part)));
        Ok(Box::new(io::Cursor::new(if trusted { with_right_crc(content) } else { content.clone() })))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let mut disk = self.disk();
        disk.try_step()?;
        let (dir, name) = disk.place(path)?;
        let node = match disk.find(path) {
            Some(node) => {
                disk.log(Op::Truncate { node });
                node
            }
            None => disk.make(dir, name, false),
        };
        drop(disk);
        Ok(Box::new(Open { sim: self.clone(), path: path.to_owned(), node, at: 0 }))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let disk = self.disk();
        let (node, content) = disk.file(path)?;
        Ok(Box::new(Open { sim: self.clone(), path: path.to_owned(), node, at: content.len() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.try_step()?;
        let node = disk.find(from).ok_or(io::ErrorKind::NotFound)?;
        let ((from_dir, from_name), (dir, name)) = (disk.place(from)?, disk.place(to)?);
        let copies = |m| matches!(m, Mutation::CopyForRename(part) if to.to_string_lossy().contains(part));
        if disk.is_out("rename to", to, copies) {
            let old = disk.find(to);
            disk.copy(node, dir, name, old);
            return disk.remove(from);
        }
        disk.log(Op::Link { dir, name, node });
        let part_of = Some(disk.log.len() - 1);
        let is_dir = matches!(disk.now[node], Node::Dir(_));
        disk.log(Op::Unlink { dir: from_dir, name: from_name, part_of, is_dir });
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.try_step()?;
        let dir = disk.find(path).ok_or(io::ErrorKind::NotFound)?;
        let off = |m| matches!(m, Mutation::NoDirSync(end) if path.to_string_lossy().ends_with(end));
        if !disk.is_out("sync of folder", path, off) {
            disk.log(Op::SyncDir { dir });
        }
        Ok(())
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.try_step()?;
        let node = disk.find(path).ok_or(io::ErrorKind::NotFound)?;
        let off = |m| matches!(m, Mutation::NoFileSync(part) if path.to_string_lossy().contains(part));
        if !disk.is_out("sync of file", path, off) {
            disk.log(Op::SyncFile { node });
        }
        Ok(())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        for path in dir.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
            if disk.find(path).is_none() {
                disk.try_step()?;
                let (dir, name) = disk.place(path)?;
                disk.make(dir, name, true);
            }
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.try_step()?;
        disk.remove(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        for path in self.list(dir)? {
            let is_dir = self.meta(&path)?.is_some_and(|meta| meta.is_dir);
            if is_dir { self.remove_dir_all(&path)? } else { self.remove_file(&path)? }
        }
        self.remove_file(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let disk = self.disk();
        match disk.find(dir).map(|node| &disk.now[node]) {
            Some(Node::Dir(entries)) => Ok(entries.keys().map(|name| dir.join(name)).collect()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Ok(Vec::new()),
        }
    }

    fn meta(&self, path: &Path) -> io::Result<Option<Meta>> {
        let disk = self.disk();
        Ok(disk.find(path).map(|node| match &disk.now[node] {
            Node::File(content) => Meta { len: content.len() as u64, is_dir: false, is_file: true },
            Node::Dir(_) => Meta { len: 0, is_dir: true, is_file: false },
        }))
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(1 << 40)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send>> {
        let mut disk = self.disk();
        if disk.find(path).is_none() {
            let (dir, name) = disk.place(path)?;
            disk.make(dir, name, false);
        }
        Ok(Box::new(()))
    }
}

/// A state slot with the checksum its content would have.
fn with_right_crc(content: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(content);
    match (text.strip_prefix("{\"crc32\":\""), text.split_once("\"state\":")) {
        (Some(_), Some((_, state))) => {
            let state = state.strip_suffix('}').unwrap_or(state);
            format!("{{\"crc32\":\"{:08x}\",\"state\":{state}}}", crc32fast::hash(state.as_bytes()))
                .into_bytes()
        }
        _ => content.to_vec(),
    }
}
