//! Paths inside a bundle, and reading them within limits.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::Place;

/// Why a path cannot be a bundle's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Beyond the limit.
    #[error("is longer than a plain tar header holds")]
    TooLong,
    /// Begins at the root.
    #[error("is absolute")]
    Absolute,
    /// `..` leads out of the folder.
    #[error("leads upwards")]
    Upwards,
    /// An ASCII NUL ends the path early in some tools and not in others.
    #[error("has a NUL")]
    Nul,
    /// `.`, `//`, or a slash at the end: two spellings of one file.
    #[error("is not in its shortest form")]
    NotNormal,
    /// What some file system, shell or terminal takes for something else.
    #[error("has a character other than A-Z, a-z, 0-9, `.`, `_`, `-`, `+`")]
    Character,
}

/// Whether `path` names a file inside a bundle: relative, `/`-separated, in its only spelling.
pub(crate) fn check_path(path: &str, len_max: usize) -> Result<(), PathProblem> {
    if path.is_empty() {
        return Err(PathProblem::Empty);
    }
    if path.len() > len_max {
        return Err(PathProblem::TooLong);
    }
    if path.contains('\0') {
        return Err(PathProblem::Nul);
    }
    if path.starts_with('/') {
        return Err(PathProblem::Absolute);
    }
    if path.split('/').any(|part| part == "..") {
        return Err(PathProblem::Upwards);
    }
    if path.split('/').any(|part| part.is_empty() || part == ".") {
        return Err(PathProblem::NotNormal);
    }
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-' | b'+' | b'/');
    if !path.bytes().all(plain) {
        return Err(PathProblem::Character);
    }
    Ok(())
}

/// Reads a regular file whole, or `None` where it is larger than `bytes_max`.
pub(crate) fn read_limited(place: &dyn Place, path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let (file, len) = place.open(path)?;
    let mut bytes = Vec::with_capacity(usize::try_from(len.min(bytes_max)).unwrap_or(0));
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
}

/// Opens a file that is neither a folder nor a device; a FIFO would hang its reader.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// Makes a folder's entries survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The folder a path lies in, `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let check = |path: &str, expected: Result<(), PathProblem>| {
            assert_eq!(check_path(path, 20), expected, "{path:?}");
        };
        check("golden/0.x.bin", Ok(()));
        check("..x/y", Ok(()));
        check("", Err(PathProblem::Empty));
        check("123456789012345678901", Err(PathProblem::TooLong));
        check("/etc/passwd", Err(PathProblem::Absolute));
        check("../x", Err(PathProblem::Upwards));
        check("a/../x", Err(PathProblem::Upwards));
        check("a/..", Err(PathProblem::Upwards));
        check("a\0b", Err(PathProblem::Nul));
        check("./a", Err(PathProblem::NotNormal));
        check("a//b", Err(PathProblem::NotNormal));
        check("a/", Err(PathProblem::NotNormal));
        check("a\\b", Err(PathProblem::Character));
        check("c:a", Err(PathProblem::Character));
        check("ä", Err(PathProblem::Character));
        check("a\u{1b}[2J", Err(PathProblem::Character));
    }
}
