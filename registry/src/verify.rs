//! A whole repository walked offline, without keys: the chain of roots, every signature, expiry and hash, and
//! whether the rollouts name what the teams signed.
//!
//! It reads what lies in the folder, so it can be run on a copy of what a web server serves, by anybody who has the
//! pinned root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::documents::{Custom, Rollout};
use crate::error::{RegistryError, io_at};
use crate::metadata::{
    self, Authority, DelegatedRole, Head, MetaFile, MetadataError, Root, Snapshot, TargetFile, Targets,
    TimestampRole, hashes,
};
use crate::registry::timestamp;

/// What a walk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files read.
    pub files: usize,
    /// Bytes of targets hashed.
    pub target_bytes: u64,
    /// What is wrong; empty for a sound repository.
    pub findings: Vec<Finding>,
}

/// Something wrong with one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What.
    pub what: String,
}

/// Walks the repository in `dir` from `root_json`, or from its own first root, and checks everything a device would
/// and more: every team, every target.
///
/// # Errors
/// [`RegistryError::None`], or what the file system says about the folder; everything else is a [`Finding`].
pub fn verify(dir: &Path, root_json: Option<&[u8]>, now: SystemTime) -> Result<Verified, RegistryError> {
    let first = dir.join("metadata/1.root.json");
    let anchor = match root_json {
        Some(bytes) => bytes.to_vec(),
        None if !first.exists() => return Err(RegistryError::None(dir.to_path_buf())),
        None => fs::read(&first).map_err(io_at(&first))?,
    };
    let mut walk = Walk { dir, now: timestamp(now), verified: Verified::default() };
    if let Some(root) = walk.roots(&anchor) {
        walk.roles(&root);
    }
    Ok(walk.verified)
}

struct Walk<'a> {
    dir: &'a Path,
    now: Timestamp,
    verified: Verified,
}

/// Every role with the head all roles begin with.
trait Role: DeserializeOwned {
    const KIND: &'static str;
    fn head(&self) -> &Head;
}

macro_rules! role {
    ($type:ty, $kind:literal) => {
        impl Role for $type {
            const KIND: &'static str = $kind;
            fn head(&self) -> &Head {
                &self.head
            }
        }
    };
}

role!(Root, "root");
role!(Targets, "targets");
role!(Snapshot, "snapshot");
role!(TimestampRole, "timestamp");

/// What a targets file vouches for.
type Signed = BTreeMap<String, TargetFile>;

impl Walk<'_> {
    /// From the anchor to the newest root that every one before vouches for.
    fn roots(&mut self, anchor: &[u8]) -> Option<Root> {
        let path = self.dir.join("metadata/1.root.json");
        let mut root = match read_root(anchor, None) {
            Ok(root) => root,
            Err(error) => return self.note(&path, error.to_string()),
        };
        self.verified.files += 1;
        loop {
            let path = self.dir.join(format!("metadata/{}.root.json", root.head.version + 1));
            if !path.exists() {
                break;
            }
            let Some(bytes) = self.read(&path) else { return Some(root) };
            match read_root(&bytes, Some(&root)) {
                Ok(next) => root = next,
                Err(error) => return self.note(&path, error.to_string()),
            }
        }
        let path = self.dir.join(format!("metadata/{}.root.json", root.head.version));
        self.expiry(&path, &root.head);
        Some(root)
    }

    fn roles(&mut self, root: &Root) -> Option<()> {
        let authority = |role: &str| root.roles.get(role).map(|keys| Authority::new(keys, &root.keys));
        let timestamp: TimestampRole =
            self.role("timestamp", "timestamp.json", authority("timestamp"), None)?;
        let pin = timestamp.meta.get("snapshot.json").cloned()?;
        let name = format!("{}.snapshot.json", pin.version);
        let snapshot: Snapshot = self.role("snapshot", &name, authority("snapshot"), Some(&pin))?;
        let targets: Targets = self.pinned(&snapshot, "targets", authority("targets"))?;
        self.targets(&targets.targets, None);

        let delegations = targets.delegations.unwrap_or_default();
        let mut signed = Signed::new();
        let mut rollouts = Signed::new();
        for role in &delegations.roles {
            // A team whose first file is not out yet is no damage: devices skip it too.
            if !snapshot.meta.contains_key(&format!("{}.json", role.name)) {
                continue;
            }
            let authority = Some(Authority::new(&role.role_keys(), &delegations.keys));
            let Some(body) = self.pinned::<Targets>(&snapshot, &role.name, authority) else { continue };
            self.targets(&body.targets, Some(role));
            if role.name == "rollout" { rollouts.extend(body.targets) } else { signed.extend(body.targets) }
        }
        for (path, file) in &rollouts {
            self.rollout(path, file, &signed);
        }
        Some(())
    }

    fn pinned<T: Role>(
        &mut self,
        snapshot: &Snapshot,
        role: &str,
        authority: Option<Authority>,
    ) -> Option<T> {
        let pin = snapshot.meta.get(&format!("{role}.json"))?;
        self.role(role, &format!("{}.{role}.json", pin.version), authority, Some(pin))
    }

    /// One file of metadata. An expired one is noted and read on.
    fn role<T: Role>(
        &mut self,
        role: &str,
        name: &str,
        authority: Option<Authority>,
        pin: Option<&MetaFile>,
    ) -> Option<T> {
        let path = self.dir.join("metadata").join(name);
        let Some(authority) = authority else { return self.note(&path, "nobody delegates to it".into()) };
        let bytes = self.read(&path)?;
        match read_role::<T>(&bytes, role, &authority, pin) {
            Ok(body) => {
                self.expiry(&path, body.head());
                Some(body)
            }
            Err(error) => self.note(&path, error.to_string()),
        }
    }

    /// The files a role lists: there, of the signed length and hash, and below the role's paths.
    fn targets(&mut self, files: &Signed, role: Option<&DelegatedRole>) {
        for (name, file) in files {
            let path = self.place(name, file);
            if role.is_some_and(|role| !role.paths.iter().any(|pattern| matches(pattern, name))) {
                self.note::<()>(&path, "lies outside the paths of the role that signs it".into());
            }
            match hash(&path) {
                Ok((length, sha256)) => {
                    self.verified.files += 1;
                    self.verified.target_bytes += length;
                    if length != file.length || file.hashes.get("sha256") != Some(&sha256) {
                        self.note::<()>(&path, "is not the signed file: length or hash differs".into());
                    }
                }
                Err(e) => {
                    self.note::<()>(&path, e.to_string());
                }
            }
        }
    }

    /// Whether a rollout names artifacts as their teams signed them.
    fn rollout(&mut self, name: &str, file: &TargetFile, signed: &Signed) {
        let path = self.place(name, file);
        let Ok(bytes) = fs::read(&path) else { return };
        let rollout: Rollout = match serde_json::from_slice(&bytes) {
            Ok(rollout) => rollout,
            Err(e) => {
                self.note::<()>(&path, e.to_string());
                return;
            }
        };
        for entry in rollout.entries {
            let custom = signed.get(&entry.target).and_then(|file| file.custom.clone());
            let custom = custom.and_then(|custom| serde_json::from_value::<Custom>(custom).ok());
            let agrees = custom.is_some_and(|custom| {
                (custom.model, custom.version, custom.digest) == (entry.model, entry.version, entry.digest)
            });
            if !agrees {
                self.note::<()>(&path, format!("rollout {} is of what no team signed", entry.id));
            }
        }
    }

    fn place(&self, name: &str, file: &TargetFile) -> PathBuf {
        let sha256 = file.hashes.get("sha256").map_or("", String::as_str);
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        self.dir.join("targets").join(folder).join(format!("{sha256}.{file}"))
    }

    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        self.verified.files += 1;
        fs::read(path).map_err(|e| self.note::<()>(path, e.to_string())).ok()
    }

    fn expiry(&mut self, path: &Path, head: &Head) {
        if head.expires <= self.now {
            self.note::<()>(path, MetadataError::Expired(head.expires).to_string());
        }
    }

    fn note<T>(&mut self, path: &Path, what: String) -> Option<T> {
        self.verified.findings.push(Finding { path: path.to_path_buf(), what });
        None
    }
}

/// Signed by its own keys, and by those of the one before.
fn read_root(bytes: &[u8], before: Option<&Root>) -> Result<Root, MetadataError> {
    let file = metadata::parse(bytes)?;
    let root: Root = serde_json::from_value(file.signed.clone())?;
    for judge in [Some(&root), before].into_iter().flatten() {
        let keys = judge.roles.get("root");
        let keys = keys.ok_or(MetadataError::Signatures { role: "root".into(), found: 0, threshold: 1 })?;
        Authority::new(keys, &judge.keys).check("root", &file)?;
    }
    let expected = before.map_or(root.head.version, |before| before.head.version + 1);
    check_head::<Root>(&root.head, expected, "the chain")?;
    Ok(root)
}

fn read_role<T: Role>(
    bytes: &[u8],
    role: &str,
    authority: &Authority,
    pin: Option<&MetaFile>,
) -> Result<T, MetadataError> {
    let by = || if role == "snapshot" { "the timestamp".to_owned() } else { "the snapshot".to_owned() };
    if pin.is_some_and(|pin| pin.length != bytes.len() as u64 || pin.hashes != hashes(bytes)) {
        return Err(MetadataError::Pin { by: by(), what: "length or hash" });
    }
    let file = metadata::parse(bytes)?;
    authority.check(role, &file)?;
    let body: T = serde_json::from_value(file.signed)?;
    check_head::<T>(body.head(), pin.map_or(body.head().version, |pin| pin.version), &by())?;
    Ok(body)
}

fn check_head<T: Role>(head: &Head, version: u64, by: &str) -> Result<(), MetadataError> {
    let by = by.to_owned();
    if head.kind != T::KIND {
        return Err(MetadataError::Pin { by, what: "kind" });
    }
    if head.version == version { Ok(()) } else { Err(MetadataError::Pin { by, what: "version" }) }
}

/// `models/vision/*/*` and the like: `*` stands for one whole segment, as this registry writes them.
fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
    pattern.len() == path.len()
        && pattern.iter().zip(path).all(|(pattern, part)| *pattern == "*" || *pattern == part)
}

fn hash(path: &Path) -> io::Result<(u64, String)> {
    struct Sink(Sha256);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut sink = Sink(Sha256::new());
    let length = io::copy(&mut File::open(path)?, &mut sink)?;
    Ok((length, hex::encode(sink.0.finalize())))
}
