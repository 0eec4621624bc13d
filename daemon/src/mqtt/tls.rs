//! TLS to the broker: whom to trust and who we are. Read anew for every connection, so that a certificate can be
//! replaced while the daemon runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

#[cfg(feature = "tls")]
mod read;
#[cfg(feature = "tls")]
pub(super) use read::Connector;

/// The files that make up our side of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files {
    /// Who may have signed the broker's certificate; the system's authorities when absent.
    pub(super) ca: Option<PathBuf>,
    /// Our own certificate with its chain, and its key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

/// Tells one content of the files from another without reading them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Option<(SystemTime, u64)>>);

impl Files {
    /// When the files were written, and their sizes.
    pub(super) fn stamp(&self) -> Stamp {
        let stamp = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        let client = self.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        Stamp(self.ca.iter().chain(client).map(|path| stamp(path)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_changes_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { ca: Some(dir.path().join("ca.pem")), client: None };
        let absent = files.stamp();
        fs::write(dir.path().join("ca.pem"), "one").unwrap();
        let one = files.stamp();
        fs::write(dir.path().join("ca.pem"), "three").unwrap();
        assert_ne!(absent, one);
        assert_ne!(one, files.stamp());
    }
}
