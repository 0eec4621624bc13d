//! Where the files of a bundle lie.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::files::open_regular;

/// What a bundle is read from and unpacked to: [`Disk`], or a caller's own, such as a store whose power cuts are
/// simulated.
pub trait Place {
    /// A plain file and its length in bytes; anything else, such as a FIFO that would hang its reader, is an error.
    fn open(&self, path: &Path) -> io::Result<(Box<dyn Read>, u64)>;
    /// Creates a file that must not exist yet, and the folders above it. Making it durable is the caller's.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn Write>>;
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Place for Disk {
    fn open(&self, path: &Path) -> io::Result<(Box<dyn Read>, u64)> {
        let file = open_regular(path)?;
        let len = file.metadata()?.len();
        Ok((Box::new(file), len))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn Write>> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        Ok(Box::new(File::create_new(path)?))
    }
}
