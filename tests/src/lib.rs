//! What the end-to-end tests and the demo share: the real binaries started on temporary folders, brokers on loopback,
//! a registry made by `tractctl`, and what the example models must answer.
//!
//! It deliberately holds no second implementation of the product: requests go through the product's own client, keys
//! and metadata through its own command line. Only this package contains an MQTT broker.

use std::path::{Path, PathBuf};

pub mod broker;
pub mod daemon;
pub mod digits;
pub mod mqtt;
pub mod onnx;
pub mod process;
pub mod registry;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package is a folder of the repository")
}

/// A binary of this workspace, built with the same profile as the one that asks.
///
/// # Panics
/// When it was not built, or a source of it was written since: a test that silently ran an old one would be worse. `cargo
/// test` and `cargo nextest run` build only the binaries of packages that have integration tests of their own.
pub fn binary(name: &str) -> PathBuf {
    let dir = match std::env::var_os("TRACTD_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let mut dir = std::env::current_exe().expect("a running program has a path");
            dir.pop();
            if dir.ends_with("deps") {
                dir.pop();
            }
            dir
        }
    };
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing; build it with `cargo build --workspace`", path.display());
    if let Some(source) = written_since(&path) {
        let (source, path) = (source.display(), path.display());
        panic!("{source} was written after {path} was built; build it with `cargo build --workspace`");
    }
    path
}

/// A source of a binary, by the list that cargo keeps beside it, that is newer than it. None where there is no list.
fn written_since(binary: &Path) -> Option<PathBuf> {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let list = std::fs::read_to_string(binary.with_extension("d")).ok()?;
    let built = modified(binary)?;
    // "binary: source source", blanks in names after a backslash.
    let sources = list.split_once(": ")?.1.replace("\\ ", "\0");
    let mut sources = sources.split_whitespace().map(|source| PathBuf::from(source.replace('\0', " ")));
    sources.find(|source| modified(source).is_some_and(|written| written > built))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_source_written_after_its_binary_was_built_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let written = |name: &str, at: u64| {
            fs::write(path(name), "").unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
            File::options().append(true).open(path(name)).unwrap().set_modified(at).unwrap();
        };
        written("tool", 2);
        assert_eq!(written_since(&path("tool")), None);

        let listed = |name: &str| path(name).display().to_string().replace(' ', "\\ ");
        let list =
            format!("{}: {} {} {}\n", listed("tool"), listed("old.rs"), listed("gone.rs"), listed("a b.rs"));
        fs::write(path("tool.d"), list).unwrap();
        written("old.rs", 1);
        written("a b.rs", 1);
        assert_eq!(written_since(&path("tool")), None);
        written("a b.rs", 3);
        assert_eq!(written_since(&path("tool")), Some(path("a b.rs")));
    }
}
