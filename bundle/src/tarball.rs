//! The canonical tar: ustar, sorted paths, mode 0644, owner 0, time 0, no folders, two zero blocks at the end.
//! Names and contents determine every byte, which is what makes the digest one.

use std::io::{self, Read, Write};
use std::ops::Range;

use crate::Digest;
use crate::digest::Sha256;

pub(crate) const BLOCK: usize = 512;
pub(crate) const TRAILER: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Where a ustar header has its fields (POSIX.1-1988).
const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const MAGIC: Range<usize> = 257..265;
const DEVICE_MAJOR: Range<usize> = 329..337;
const DEVICE_MINOR: Range<usize> = 337..345;

/// The header of a regular file, byte for byte as GNU tar writes it (`--format=ustar --mode=0644 --owner=0
/// --group=0 --numeric-owner --mtime=@0`). `path` and `size` have been checked, so they fit.
pub(crate) fn header(path: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..path.len()].copy_from_slice(path.as_bytes());
    let mut octal = |field: Range<usize>, value: u64| {
        let width = field.len() - 1;
        block[field.start..field.end - 1].copy_from_slice(format!("{value:0width$o}").as_bytes());
    };
    octal(MODE, 0o644);
    octal(UID, 0);
    octal(GID, 0);
    octal(SIZE, size);
    octal(MTIME, 0);
    octal(DEVICE_MAJOR, 0);
    octal(DEVICE_MINOR, 0);
    block[TYPE] = b'0';
    block[MAGIC].copy_from_slice(b"ustar\x0000");
    let sum = format!("{:06o}\0 ", checksum(&block));
    block[CHECKSUM].copy_from_slice(sum.as_bytes());
    block
}

/// What a header says, before anything is believed.
pub(crate) struct Header<'a> {
    /// The name field up to its first NUL.
    pub(crate) path: &'a [u8],
    /// Whether anything but NULs follows that.
    pub(crate) hidden_name: bool,
    /// What it is, if not a file.
    pub(crate) not_a_file: Option<&'static str>,
    /// `None` where the field is no number.
    pub(crate) size: Option<u64>,
}

impl Header<'_> {
    /// `None` where the checksum does not fit the rest.
    pub(crate) fn parse(block: &[u8; BLOCK]) -> Option<Header<'_>> {
        if octal(&block[CHECKSUM]) != Some(checksum(block)) {
            return None;
        }
        let name = &block[NAME];
        let (path, rest) = name.split_at(name.iter().position(|&c| c == 0).unwrap_or(name.len()));
        Some(Header {
            path,
            hidden_name: rest.iter().any(|&c| c != 0),
            not_a_file: not_a_file(block[TYPE]),
            size: octal(&block[SIZE]),
        })
    }
}

fn not_a_file(type_flag: u8) -> Option<&'static str> {
    Some(match type_flag {
        b'0' => return None,
        b'1' => "hard link",
        b'2' => "symbolic link",
        b'3' | b'4' => "device",
        b'5' => "folder",
        b'6' => "FIFO",
        _ => "tar extension",
    })
}

/// The sum of all bytes, those of the checksum itself taken as spaces.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    sum(block) - sum(&block[CHECKSUM]) + CHECKSUM.len() as u64 * u64::from(b' ')
}

/// Octal digits up to a NUL or space; every field is short enough not to overflow.
fn octal(field: &[u8]) -> Option<u64> {
    let end = field.iter().position(|&c| c == 0 || c == b' ')?;
    u64::from_str_radix(std::str::from_utf8(&field[..end]).ok()?, 8).ok()
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

    /// Appends one file; the caller keeps paths sorted. `read` must give exactly `size` bytes, which `look` is shown in
    /// pieces.
    pub(crate) fn file(
        &mut self,
        path: &str,
        size: u64,
        read: &mut dyn Read,
        look: &mut dyn FnMut(&[u8]),
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
            look(&buffer[..got]);
        }
        self.put(padding(size))
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<(W, Digest)> {
        self.put(&TRAILER)?;
        Ok((self.out, Digest(self.hash.finish())))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}
