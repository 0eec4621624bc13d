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
/// When it was not built: a test that silently ran an old one would be worse.
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
    path
}
