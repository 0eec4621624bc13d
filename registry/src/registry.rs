//! The repository: what is written when, and in which order.
//!
//! Targets first, then the role that signs them, then snapshot, then timestamp: a client that reads at any
//! moment finds whole files, and a publisher's power cut leaves at most files nobody is pointed to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tractd_bundle::{Bundle, Limits, is_model_name, unpack};
use zeroize::Zeroizing;

use crate::documents::Custom;
use crate::error::{RegistryError, io_at};
use crate::files::{self, PUBLIC};
use crate::keys::{KeyFolder, KeyInfo};
use crate::metadata::{
    self, DelegatedRole, Delegations, Head, MetaFile, RoleKeys, Root, Snapshot, TargetFile, Targets,
    TimestampRole, hashes,
};
use crate::request::{Added, Options, Refreshed, RoleStatus};
use crate::staging::Written;

/// Days `root`, `targets` and the teams are good for: offline keys, signed by people.
pub(crate) const OFFLINE_DAYS: u32 = 365;
/// Days the rollout role is good for.
const ROLLOUT_DAYS: u32 = 90;
/// Days a snapshot is good for. With the timestamp's day it bounds how long a frozen registry goes unnoticed.
const SNAPSHOT_DAYS: u32 = 7;
/// Days a timestamp is good for.
const TIMESTAMP_DAYS: u32 = 1;
/// Roles the root names; all others are delegated by `targets`.
pub(crate) const TOP_LEVEL: [&str; 4] = ["root", "targets", "snapshot", "timestamp"];

/// A registry on this machine, with the keys to change it, or without: then changes wait in `staged/` for people
/// to sign them.
#[derive(Debug)]
pub struct Registry {
    pub(crate) dir: PathBuf,
    pub(crate) keys: KeyFolder,
    _lock: File,
}

impl Registry {
    /// Makes keys and an empty registry.
    ///
    /// # Errors
    /// See [`RegistryError`]; an existing registry or key folder is never touched.
    pub fn init(
        dir: &Path,
        keys_dir: &Path,
        passphrase: Zeroizing<String>,
        options: &Options,
        now: SystemTime,
    ) -> Result<Self, RegistryError> {
        let (keys, threshold) = (options.root_keys, options.root_threshold);
        check_threshold("root", keys, threshold)?;
        if dir.join("metadata").exists() {
            return Err(RegistryError::Exists(dir.to_path_buf()));
        }
        let mut keys = KeyFolder::create(keys_dir, passphrase, options.work_factor)?;
        for n in 1..=options.root_keys {
            keys.generate(&format!("root-{n}"), "root")?;
        }
        for role in ["targets", "rollout", "snapshot", "timestamp"] {
            keys.generate(role, role)?;
        }
        let mut registry = Self { dir: dir.to_path_buf(), keys, _lock: lock(keys_dir)? };
        let now = timestamp(now);
        registry.write_first_root(threshold, now)?;
        let rollout = registry.delegation("rollout", "rollout/*".into(), 1);
        registry.write_targets("targets", 1, BTreeMap::new(), Some(rollout), now)?;
        registry.write_targets("rollout", 1, BTreeMap::new(), None, now)?;
        registry.release(now)?;
        Ok(registry)
    }

    /// Opens a registry to change it. Keys are decrypted when they are needed; what a missing key should sign is
    /// staged.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn open(dir: &Path, keys_dir: &Path, passphrase: Zeroizing<String>) -> Result<Self, RegistryError> {
        Self::with_keys(dir, keys_dir, KeyFolder::open(keys_dir, passphrase)?)
    }

    /// Opens a registry to stage changes: `keys_dir` needs no more than its `index.json`, and nothing is signed.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn stage(dir: &Path, keys_dir: &Path) -> Result<Self, RegistryError> {
        Self::with_keys(dir, keys_dir, KeyFolder::public_only(keys_dir)?)
    }

    fn with_keys(dir: &Path, keys_dir: &Path, keys: KeyFolder) -> Result<Self, RegistryError> {
        if !dir.join("metadata/1.root.json").exists() {
            return Err(RegistryError::None(dir.to_path_buf()));
        }
        Ok(Self { dir: dir.to_path_buf(), keys, _lock: lock(keys_dir)? })
    }

    /// scrypt work factor (log2) of keys made from now on; `None` is about a second each.
    pub fn set_work_factor(&mut self, work_factor: Option<u8>) {
        self.keys.set_work_factor(work_factor);
    }

    /// The newest root: what a device pins.
    ///
    /// # Errors
    /// What the file system says.
    pub fn root_json(&self) -> Result<Vec<u8>, RegistryError> {
        let (version, _): (_, Root) = self.newest("root")?;
        let path = self.metadata_path("root", version);
        fs::read(&path).map_err(io_at(&path))
    }

    /// The public halves of all keys.
    #[must_use]
    pub fn keys(&self) -> &[KeyInfo] {
        self.keys.list()
    }

    /// Every role's newest version and expiry.
    ///
    /// # Errors
    /// A file that cannot be read, or is not ours.
    pub fn status(&self) -> Result<Vec<RoleStatus>, RegistryError> {
        let mut heads = vec![
            ("root".to_owned(), self.newest::<Root>("root")?.1.head),
            ("targets".to_owned(), self.newest::<Targets>("targets")?.1.head),
        ];
        for role in self.written()? {
            let head = self.newest::<Targets>(&role)?.1.head;
            heads.push((role, head));
        }
        heads.push(("snapshot".to_owned(), self.newest::<Snapshot>("snapshot")?.1.head));
        heads.push(("timestamp".to_owned(), self.newest::<TimestampRole>("timestamp")?.1.head));
        let status = |(role, head): (String, Head)| {
            let expires_s = u64::try_from(head.expires.as_second()).unwrap_or(0);
            RoleStatus { role, version: head.version, expires_s }
        };
        Ok(heads.into_iter().map(status).collect())
    }

    /// The teams, in the order they were added.
    ///
    /// # Errors
    /// A file that cannot be read, or is not ours.
    pub fn teams(&self) -> Result<Vec<String>, RegistryError> {
        let roles = self.delegated()?;
        Ok(roles.iter().filter_map(|role| role.strip_prefix("team-")).map(str::to_owned).collect())
    }

    /// Signs a packed bundle as `team`'s genuine model and puts it among the targets. Devices see it with the
    /// next release (`publish`, `refresh`, `add_team`).
    ///
    /// `min_version` raises the lowest version devices may ever run again.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn add(
        &mut self,
        archive: &Path,
        team: &str,
        min_version: Option<u64>,
        now: SystemTime,
    ) -> Result<Added, RegistryError> {
        check_name("team", team)?;
        let role = format!("team-{team}");
        if !self.delegated()?.contains(&role) {
            return Err(RegistryError::NoTeam(team.to_owned()));
        }
        let bytes = fs::read(archive).map_err(io_at(archive))?;
        let (mut custom, name) = self.describe(archive, &bytes)?;
        let (model, version) = (custom.model.clone(), custom.version);
        if let Some((owner, ..)) = self.signed(&model)?.into_iter().find(|(owner, ..)| owner != team) {
            return Err(RegistryError::OtherTeam { model, owner });
        }

        let (role_version, mut targets) = self.newest::<Targets>(&role)?;
        let floor = self.signed(&model)?.iter().map(|(_, _, custom)| custom.min_version).max().unwrap_or(0);
        custom.min_version = floor.max(min_version.unwrap_or(0));
        if version < custom.min_version {
            let min_version = custom.min_version;
            return Err(RegistryError::BelowMinimum { model, version, min_version });
        }
        let target = format!("models/{team}/{model}/{name}");
        let file = TargetFile {
            length: bytes.len() as u64,
            hashes: hashes(&bytes),
            custom: Some(serde_json::to_value(&custom).expect("strings and numbers are JSON")),
        };
        let added = Added {
            model,
            version,
            digest: custom.digest,
            target: target.clone(),
            bytes: file.length,
            new: targets.targets.get(&target) != Some(&file),
        };
        if let Some(before) = targets.targets.get(&target)
            && before.hashes != file.hashes
        {
            return Err(RegistryError::Changed { model: added.model, version });
        }
        self.write_target_file(&target, &bytes)?;
        if added.new {
            targets.targets.insert(target, file);
            self.write_targets(&role, role_version + 1, targets.targets, None, timestamp(now))?;
        }
        Ok(added)
    }

    /// Takes in staged files whose signatures are complete, signs anew what is near its expiry or carries
    /// signatures of keys its role no longer has, and the timestamp in any case. To be run daily.
    ///
    /// # Errors
    /// See [`RegistryError`]; a key that is elsewhere is no error: what it should sign is staged and listed as due.
    pub fn refresh(&mut self, now: SystemTime) -> Result<Refreshed, RegistryError> {
        let now = timestamp(now);
        let mut refreshed = Refreshed { accepted: self.accept()?, ..Refreshed::default() };
        let (version, mut root) = self.newest::<Root>("root")?;
        if is_due(&root.head, OFFLINE_DAYS, now) {
            root.head = Head::new("root", version + 1, after(now, OFFLINE_DAYS));
            let written = self.renew("root", version + 1, &root)?;
            refreshed.note("root", written);
        }
        let mut roles = vec!["targets".to_owned()];
        roles.extend(self.written()?);
        for role in roles {
            let (version, targets) = self.newest::<Targets>(&role)?;
            if is_due(&targets.head, days(&role), now) || !self.in_force(&role)? {
                let body = targets.renewed(version + 1, after(now, days(&role)));
                let written = self.renew(&role, version + 1, &body)?;
                refreshed.note(&role, written);
            }
        }
        self.release(now)?;
        refreshed.renewed.extend(["snapshot".to_owned(), "timestamp".to_owned()]);
        Ok(refreshed)
    }

    /// As [`Registry::write_role`]; a role with a change waiting for signatures is left to them.
    fn renew<T: Serialize>(&mut self, role: &str, version: u64, body: &T) -> Result<Written, RegistryError> {
        match self.write_role(role, version, body) {
            Err(RegistryError::Pending { .. }) => Ok(Written::Staged),
            other => other,
        }
    }

    /// Opens the archive as a device would and says what a team signs about it, and its file name.
    fn describe(&self, archive: &Path, bytes: &[u8]) -> Result<(Custom, String), RegistryError> {
        let scratch = self.dir.join(format!(".adding-{}", std::process::id()));
        remove_dir(&scratch)?;
        fs::create_dir_all(&self.dir).map_err(io_at(&self.dir))?;
        let opened = unpack(bytes, &scratch, &Limits::default());
        let described = opened.map(|bundle| describe(&bundle));
        remove_dir(&scratch)?;
        described.map_err(|source| RegistryError::Bundle { path: archive.to_path_buf(), source })?
    }

    /// Every signed version of a model: team, target path, and what the team says.
    pub(crate) fn signed(&self, model: &str) -> Result<Vec<(String, String, Custom)>, RegistryError> {
        let mut found = Vec::new();
        for role in self.written()? {
            let Some(team) = role.strip_prefix("team-").map(str::to_owned) else { continue };
            let (version, targets) = self.newest::<Targets>(&role)?;
            for (path, file) in targets.targets {
                let custom = serde_json::from_value(file.custom.unwrap_or_default());
                let custom: Custom = custom.map_err(|e| RegistryError::Metadata {
                    path: self.metadata_path(&role, version),
                    source: e.into(),
                })?;
                if custom.model == model {
                    found.push((team.clone(), path, custom));
                }
            }
        }
        Ok(found)
    }

    /// The delegated roles, in their order.
    pub(crate) fn delegated(&self) -> Result<Vec<String>, RegistryError> {
        let (_, targets) = self.newest::<Targets>("targets")?;
        let roles = targets.delegations.unwrap_or_default().roles;
        Ok(roles.into_iter().map(|role| role.name).collect())
    }

    /// Those of them that have a file: a team's first may still wait for its signature.
    fn written(&self) -> Result<Vec<String>, RegistryError> {
        let mut roles = Vec::new();
        for role in self.delegated()? {
            if self.has(&role)? {
                roles.push(role);
            }
        }
        Ok(roles)
    }

    /// Delegates `path` to every key of `role`.
    pub(crate) fn delegation(&self, role: &str, path: String, threshold: usize) -> Delegations {
        let keys = self.keys.public(role);
        let keyids = keys.keys().cloned().collect();
        let name = role.to_owned();
        let role = DelegatedRole { name, keyids, threshold, terminating: true, paths: vec![path] };
        Delegations { keys, roles: vec![role] }
    }

    fn write_first_root(&mut self, threshold: usize, now: Timestamp) -> Result<(), RegistryError> {
        let mut keys = BTreeMap::new();
        let mut roles = BTreeMap::new();
        for role in TOP_LEVEL {
            let public = self.keys.public(role);
            let keyids = public.keys().cloned().collect();
            let threshold = if role == "root" { threshold } else { 1 };
            roles.insert(role.to_owned(), RoleKeys { keyids, threshold });
            keys.extend(public);
        }
        let head = Head::new("root", 1, after(now, OFFLINE_DAYS));
        self.write_role("root", 1, &Root { head, consistent_snapshot: true, keys, roles })?;
        Ok(())
    }

    pub(crate) fn write_targets(
        &mut self,
        role: &str,
        version: u64,
        targets: BTreeMap<String, TargetFile>,
        delegations: Option<Delegations>,
        now: Timestamp,
    ) -> Result<Written, RegistryError> {
        let head = Head::new("targets", version, after(now, days(role)));
        self.write_role(role, version, &Targets { head, targets, delegations })
    }

    pub(crate) fn write_target_file(&self, target: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        let path = self.target_path(target, &hashes(bytes));
        files::write_atomic(&path, bytes, PUBLIC).map_err(io_at(&path))
    }

    /// Points clients at the newest of every role. The timestamp comes last. Without keys there is nothing to
    /// release: what was written waits.
    pub(crate) fn release(&mut self, now: Timestamp) -> Result<(), RegistryError> {
        if !self.keys.signs() {
            return Ok(());
        }
        let mut meta = BTreeMap::new();
        let mut roles = vec!["targets".to_owned()];
        roles.extend(self.written()?);
        for role in roles {
            let (version, _) = self.newest::<Targets>(&role)?;
            let path = self.metadata_path(&role, version);
            let bytes = fs::read(&path).map_err(io_at(&path))?;
            meta.insert(format!("{role}.json"), MetaFile::of(version, &bytes));
        }
        let version = self.next_version("snapshot")?;
        let head = Head::new("snapshot", version, after(now, SNAPSHOT_DAYS));
        self.write_role("snapshot", version, &Snapshot { head, meta })?;

        let path = self.metadata_path("snapshot", version);
        let bytes = fs::read(&path).map_err(io_at(&path))?;
        let meta = BTreeMap::from([("snapshot.json".to_owned(), MetaFile::of(version, &bytes))]);
        let version = match files::read(&self.metadata_path("timestamp", 0)).map_err(io_at(&self.dir))? {
            None => 1,
            Some(_) => self.newest::<TimestampRole>("timestamp")?.0 + 1,
        };
        let head = Head::new("timestamp", version, after(now, TIMESTAMP_DAYS));
        self.write_role("timestamp", version, &TimestampRole { head, meta, issued: now })?;
        Ok(())
    }

    /// The newest file of a role, checked to be ours. Who stages builds on what is staged.
    pub(crate) fn newest<T: DeserializeOwned>(&self, role: &str) -> Result<(u64, T), RegistryError> {
        let version = self.newest_version(role)?;
        if !self.keys.signs()
            && let Some(file) = self.staged_file(role, version + 1)?
        {
            let path = self.staged_path(role, version + 1);
            let body = serde_json::from_value(file.signed);
            return Ok((version, body.map_err(|e| RegistryError::Metadata { path, source: e.into() })?));
        }
        let path = self.metadata_path(role, version);
        let bytes = fs::read(&path).map_err(io_at(&path))?;
        let role: T = metadata::open(&bytes, role, &self.keys.public(role))
            .map_err(|source| RegistryError::Metadata { path: path.clone(), source })?;
        // The timestamp's version stands inside it only.
        let version = if version > 0 { version } else { version_of(&bytes) };
        Ok((version, role))
    }

    pub(crate) fn next_version(&self, role: &str) -> Result<u64, RegistryError> {
        Ok(self.newest_version(role)? + 1)
    }

    fn has(&self, role: &str) -> Result<bool, RegistryError> {
        let version = self.newest_version(role)?;
        Ok(version > 0 || !self.keys.signs() && self.staged_path(role, 1).exists())
    }

    /// 0 when there is none, as always for the timestamp.
    pub(crate) fn newest_version(&self, role: &str) -> Result<u64, RegistryError> {
        let dir = self.dir.join("metadata");
        let suffix = format!(".{role}.json");
        let mut newest = 0;
        for file in fs::read_dir(&dir).map_err(io_at(&dir))? {
            let name = file.map_err(io_at(&dir))?.file_name();
            let version = name.to_str().and_then(|name| name.strip_suffix(&suffix)?.parse().ok());
            newest = newest.max(version.unwrap_or(0));
        }
        Ok(newest)
    }

    pub(crate) fn metadata_path(&self, role: &str, version: u64) -> PathBuf {
        let name =
            if role == "timestamp" { "timestamp.json".to_owned() } else { format!("{version}.{role}.json") };
        self.dir.join("metadata").join(name)
    }

    /// `models/a/b/file` lies at `models/a/b/<SHA-256>.file`: the hash prefixes the file name, not the path.
    pub(crate) fn target_path(&self, target: &str, hashes: &BTreeMap<String, String>) -> PathBuf {
        let sha256 = hashes.get("sha256").map_or("", String::as_str);
        let (dir, name) = target.rsplit_once('/').unwrap_or(("", target));
        self.dir.join("targets").join(dir).join(format!("{sha256}.{name}"))
    }
}

impl Refreshed {
    fn note(&mut self, role: &str, written: Written) {
        match written {
            Written::InForce => self.renewed.push(role.to_owned()),
            Written::Staged => self.due.push(role.to_owned()),
        }
    }
}

fn describe(bundle: &Bundle) -> Result<(Custom, String), RegistryError> {
    let (model, version) = (bundle.name().to_owned(), bundle.version());
    let manifest = bundle.manifest.as_ref();
    let name = format!("{model}-{version}{}", tractd_bundle::ARCHIVE_SUFFIX);
    let custom = Custom {
        schema: 1,
        model,
        version,
        min_version: 0,
        min_runtime: manifest.and_then(|manifest| manifest.min_runtime.clone()),
        arch: manifest.map(|manifest| manifest.arch.clone()).unwrap_or_default(),
        digest: bundle.digest.to_hex(),
        peak_ram_bytes: manifest.and_then(|manifest| manifest.peak_ram_bytes),
        unpacked_bytes: Some(tree_bytes(&bundle.dir).map_err(io_at(&bundle.dir))?),
        deltas: Vec::new(),
    };
    Ok((custom, name))
}

fn tree_bytes(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { tree_bytes(&entry.path())? } else { meta.len() };
    }
    Ok(sum)
}

fn remove_dir(dir: &Path) -> Result<(), RegistryError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_at(dir)(e)),
        _ => Ok(()),
    }
}

/// Days a targets role is good for.
pub(crate) fn days(role: &str) -> u32 {
    if role == "rollout" { ROLLOUT_DAYS } else { OFFLINE_DAYS }
}

/// Less than a quarter of its days are left.
fn is_due(head: &Head, days: u32, now: Timestamp) -> bool {
    head.expires < now.saturating_add(SignedDuration::from_hours(i64::from(days) * 6)).unwrap_or(now)
}

pub(crate) fn after(now: Timestamp, days: u32) -> Timestamp {
    now.saturating_add(SignedDuration::from_hours(i64::from(days) * 24)).unwrap_or(Timestamp::MAX)
}

/// Whole seconds: TUF times have no fraction.
pub(crate) fn timestamp(now: SystemTime) -> Timestamp {
    let now = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
    Timestamp::from_second(now.as_second()).expect("a timestamp without its fraction is one too")
}

fn version_of(bytes: &[u8]) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    value["signed"]["version"].as_u64().unwrap_or(0)
}

pub(crate) fn check_threshold(role: &str, keys: usize, threshold: usize) -> Result<(), RegistryError> {
    if (1..=keys).contains(&threshold) {
        return Ok(());
    }
    Err(RegistryError::Threshold { role: role.to_owned(), keys, threshold })
}

pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), RegistryError> {
    if is_model_name(name) { Ok(()) } else { Err(RegistryError::Name { what, name: name.to_owned() }) }
}

fn lock(keys_dir: &Path) -> Result<File, RegistryError> {
    let path = keys_dir.join("lock");
    let file = File::create(&path).map_err(io_at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(RegistryError::Locked(keys_dir.to_path_buf())),
        Err(fs::TryLockError::Error(e)) => Err(io_at(&path)(e)),
    }
}
