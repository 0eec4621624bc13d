//! The canonical tar: ustar, sorted paths, mode 0644, owner 0, time 0, no folders, two zero blocks at the end.
//! Names and contents determine every byte, which is what makes the digest one.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

use crate::Digest;

pub(crate) const BLOCK: usize = 512;
pub(crate) const TRAILER: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The header of a regular file. `path` has been checked, so it fits.
pub(crate) fn header(path: &str, size: u64) -> [u8; BLOCK] {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    *header.as_bytes()
}

/// Zeros after a file of `size` bytes, up to the next block.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    let over = (size % BLOCK as u64) as usize;
    if over == 0 { &[] } else { &TRAILER[..BLOCK - over] }
}

/// Writes a canonical tar and takes its digest on the way.
pub(crate) struct Writer<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Writer<W> {
        Writer { out, hash: Sha256::new() }
    }

    /// Appends one file; the caller keeps paths sorted. `read` must give exactly `size` bytes.
    pub(crate) fn file(
        &mut self,
        path: &str,
        size: u64,
        read: &mut dyn Read,
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        self.put(&header(path, size))?;
        let mut left = size;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = read.read(&mut buffer[..room])?;
            if got == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file shrank while it was read",
                ));
            }
            self.put(&buffer[..got])?;
            left -= got as u64;
            progress(got as u64);
        }
        self.put(padding(size))
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<(W, Digest)> {
        self.put(&TRAILER)?;
        Ok((self.out, Digest(self.hash.finalize().into())))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}
