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

use crate::documents::{Custom, Entry, Rollout};
use crate::error::{ENTRIES_MAX, RegistryError, io_at};
use crate::files::{self, PUBLIC};
use crate::keys::{KeyError, KeyFolder, KeyInfo};
use crate::metadata::{
    self, DelegatedRole, Delegations, Head, MetaFile, MetadataError, RoleKeys, Root, Snapshot, TargetFile,
    Targets, TimestampRole, hashes,
};
use crate::request::{Added, Options, Publish, Published, Refreshed, RoleStatus};

/// Days `root`, `targets` and the teams are good for: offline keys, signed by people.
const OFFLINE_DAYS: u32 = 365;
/// Days the rollout role is good for.
const ROLLOUT_DAYS: u32 = 90;
/// Days a snapshot is good for. With the timestamp's day it bounds how long a frozen registry goes unnoticed.
const SNAPSHOT_DAYS: u32 = 7;
/// Days a timestamp is good for.
const TIMESTAMP_DAYS: u32 = 1;

/// A registry on this machine, with the keys to change it.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    keys: KeyFolder,
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
        if threshold == 0 || threshold > keys {
            return Err(RegistryError::Threshold { keys, threshold });
        }
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
        registry.write_root(1, threshold, now)?;
        let rollout = registry.delegation("rollout", "rollout/*".into());
        registry.write_targets("targets", 1, BTreeMap::new(), Some(rollout), now)?;
        registry.write_targets("rollout", 1, BTreeMap::new(), None, now)?;
        registry.release(now)?;
        Ok(registry)
    }

    /// Opens a registry to change it. Keys are decrypted when they are needed.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn open(dir: &Path, keys_dir: &Path, passphrase: Zeroizing<String>) -> Result<Self, RegistryError> {
        if !dir.join("metadata/1.root.json").exists() {
            return Err(RegistryError::None(dir.to_path_buf()));
        }
        let keys = KeyFolder::open(keys_dir, passphrase)?;
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
        for role in self.delegated()? {
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

    /// Lets a team sign models below `models/<team>/`, with a key of its own. A team that is there is left alone.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn add_team(&mut self, team: &str, now: SystemTime) -> Result<(), RegistryError> {
        check_name("team", team)?;
        let role = format!("team-{team}");
        if self.delegated()?.contains(&role) {
            return Ok(());
        }
        let now = timestamp(now);
        // There already when an earlier call was cut short.
        if self.keys.public(&role).is_empty() {
            self.keys.generate(&role, &role)?;
        }
        self.write_targets(&role, self.next_version(&role)?, BTreeMap::new(), None, now)?;
        let (version, targets) = self.newest::<Targets>("targets")?;
        let added = self.delegation(&role, format!("models/{team}/*/*"));
        let mut delegations = targets.delegations.unwrap_or_default();
        delegations.keys.extend(added.keys);
        delegations.roles.extend(added.roles);
        self.write_targets("targets", version + 1, targets.targets, Some(delegations), now)?;
        self.release(now)
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

    /// Tells a group's devices to run a version, and makes it and everything added so far visible.
    ///
    /// The share of a rollout that is out can be changed by publishing the same version again: it keeps its id,
    /// and with it every device its bucket.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn publish(&mut self, what: &Publish, now: SystemTime) -> Result<Published, RegistryError> {
        check_name("group", &what.group)?;
        if what.pct > 100 {
            return Err(RegistryError::Percent(what.pct));
        }
        let (model, version) = (what.model.clone(), what.version);
        let signed = self.signed(&model)?;
        let min_version = signed.iter().map(|(_, _, custom)| custom.min_version).max().unwrap_or(0);
        let Some((_, target, custom)) = signed.into_iter().find(|(_, _, custom)| custom.version == version)
        else {
            return Err(RegistryError::NotAdded { model, version });
        };
        if version < min_version {
            return Err(RegistryError::BelowMinimum { model, version, min_version });
        }

        let path = format!("rollout/{}.json", what.group);
        let (role_version, mut targets) = self.newest::<Targets>("rollout")?;
        let mut rollout = self.rollout(&path, &targets, &what.group)?;
        let before = rollout.entries.iter().find(|entry| entry.model == model);
        if let Some(before) = before.filter(|before| before.version > version && !what.rollback) {
            return Err(RegistryError::Backward { model, version, current: before.version });
        }
        let same = before.filter(|entry| entry.digest == custom.digest && !what.restart);
        let rollout_version = role_version + 1;
        let id = same.map_or_else(
            || format!("{}-{model}-{version}-r{rollout_version}", what.group),
            |entry| entry.id.clone(),
        );
        let entry = Entry {
            id: id.clone(),
            model: model.clone(),
            target: target.clone(),
            digest: custom.digest.clone(),
            version,
            state: "active".into(),
            pct: what.pct,
            waves: Vec::new(),
            window: None,
            healthy_secs: what.healthy_secs,
            abort: serde_json::json!({}),
            rollback_to: what.rollback.then_some(version),
        };
        rollout.entries.retain(|entry| entry.model != model);
        rollout.entries.push(entry);
        rollout.entries.sort_by(|a, b| a.model.cmp(&b.model));
        if rollout.entries.len() > ENTRIES_MAX {
            return Err(RegistryError::TooMany(what.group.clone()));
        }

        let mut bytes = serde_json::to_vec_pretty(&rollout).expect("strings and numbers are JSON");
        bytes.push(b'\n');
        let file = TargetFile { length: bytes.len() as u64, hashes: hashes(&bytes), custom: None };
        let now = timestamp(now);
        self.write_target_file(&path, &bytes)?;
        targets.targets.insert(path, file);
        self.write_targets("rollout", rollout_version, targets.targets, None, now)?;
        self.release(now)?;
        Ok(Published { id, target, digest: custom.digest, rollout_version })
    }

    /// Signs anew what is near its expiry, and the timestamp in any case. To be run daily.
    ///
    /// # Errors
    /// See [`RegistryError`]; a key that is offline is no error but listed as due.
    pub fn refresh(&mut self, now: SystemTime) -> Result<Refreshed, RegistryError> {
        let now = timestamp(now);
        let mut refreshed = Refreshed::default();
        let (version, root) = self.newest::<Root>("root")?;
        if is_due(&root.head, OFFLINE_DAYS, now) {
            let threshold = root.roles.get("root").map_or(1, |role| role.threshold);
            refreshed.note("root", self.write_root(version + 1, threshold, now))?;
        }
        let mut roles = vec!["targets".to_owned()];
        roles.extend(self.delegated()?);
        for role in roles {
            let (version, targets) = self.newest::<Targets>(&role)?;
            let days = if role == "rollout" { ROLLOUT_DAYS } else { OFFLINE_DAYS };
            if is_due(&targets.head, days, now) {
                let renewed =
                    self.write_targets(&role, version + 1, targets.targets, targets.delegations, now);
                refreshed.note(&role, renewed)?;
            }
        }
        self.release(now)?;
        refreshed.renewed.extend(["snapshot".to_owned(), "timestamp".to_owned()]);
        Ok(refreshed)
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
    fn signed(&self, model: &str) -> Result<Vec<(String, String, Custom)>, RegistryError> {
        let mut found = Vec::new();
        for team in self.teams()? {
            let role = format!("team-{team}");
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

    fn rollout(&self, path: &str, targets: &Targets, group: &str) -> Result<Rollout, RegistryError> {
        let Some(file) = targets.targets.get(path) else {
            return Ok(Rollout { schema: 1, group: group.to_owned(), entries: Vec::new() });
        };
        let place = self.target_path(path, &file.hashes);
        let bytes = fs::read(&place).map_err(io_at(&place))?;
        if hashes(&bytes) != file.hashes {
            let source = MetadataError::NotOurs("rollout".into());
            return Err(RegistryError::Metadata { path: place, source });
        }
        serde_json::from_slice(&bytes).map_err(|e| RegistryError::Metadata { path: place, source: e.into() })
    }

    fn delegated(&self) -> Result<Vec<String>, RegistryError> {
        let (_, targets) = self.newest::<Targets>("targets")?;
        let roles = targets.delegations.unwrap_or_default().roles;
        Ok(roles.into_iter().map(|role| role.name).collect())
    }

    fn delegation(&self, role: &str, path: String) -> Delegations {
        let keys = self.keys.public(role);
        let keyids = keys.keys().cloned().collect();
        let role = DelegatedRole {
            name: role.to_owned(),
            keyids,
            threshold: 1,
            terminating: true,
            paths: vec![path],
        };
        Delegations { keys, roles: vec![role] }
    }

    fn write_root(&mut self, version: u64, threshold: usize, now: Timestamp) -> Result<(), RegistryError> {
        let mut keys = BTreeMap::new();
        let mut roles = BTreeMap::new();
        for role in ["root", "targets", "snapshot", "timestamp"] {
            let public = self.keys.public(role);
            let keyids = public.keys().cloned().collect();
            let threshold = if role == "root" { threshold } else { 1 };
            roles.insert(role.to_owned(), RoleKeys { keyids, threshold });
            keys.extend(public);
        }
        let head = Head::new("root", version, after(now, OFFLINE_DAYS));
        let root = Root { head, consistent_snapshot: true, keys, roles };
        self.write_role("root", version, &root)
    }

    fn write_targets(
        &mut self,
        role: &str,
        version: u64,
        targets: BTreeMap<String, TargetFile>,
        delegations: Option<Delegations>,
        now: Timestamp,
    ) -> Result<(), RegistryError> {
        let days = if role == "rollout" { ROLLOUT_DAYS } else { OFFLINE_DAYS };
        let head = Head::new("targets", version, after(now, days));
        self.write_role(role, version, &Targets { head, targets, delegations })
    }

    fn write_role<T: Serialize>(&mut self, role: &str, version: u64, what: &T) -> Result<(), RegistryError> {
        let bytes = metadata::sign(what, &self.keys.signers(role)?);
        let path = self.metadata_path(role, version);
        files::write_atomic(&path, &bytes, PUBLIC).map_err(io_at(&path))
    }

    fn write_target_file(&self, target: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        let path = self.target_path(target, &hashes(bytes));
        files::write_atomic(&path, bytes, PUBLIC).map_err(io_at(&path))
    }

    /// Points clients at the newest of every role. The timestamp comes last.
    fn release(&mut self, now: Timestamp) -> Result<(), RegistryError> {
        let mut meta = BTreeMap::new();
        let mut roles = vec!["targets".to_owned()];
        roles.extend(self.delegated()?);
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
        self.write_role("timestamp", version, &TimestampRole { head, meta, issued: now })
    }

    /// The newest file of a role, checked to be ours.
    fn newest<T: DeserializeOwned>(&self, role: &str) -> Result<(u64, T), RegistryError> {
        let version = self.newest_version(role)?;
        let path = self.metadata_path(role, version);
        let bytes = fs::read(&path).map_err(io_at(&path))?;
        let role: T = metadata::open(&bytes, role, &self.keys.public(role))
            .map_err(|source| RegistryError::Metadata { path: path.clone(), source })?;
        // The timestamp's version stands inside it only.
        let version = if version > 0 { version } else { version_of(&bytes) };
        Ok((version, role))
    }

    fn next_version(&self, role: &str) -> Result<u64, RegistryError> {
        Ok(self.newest_version(role)? + 1)
    }

    /// 0 when there is none, as always for the timestamp.
    fn newest_version(&self, role: &str) -> Result<u64, RegistryError> {
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

    fn metadata_path(&self, role: &str, version: u64) -> PathBuf {
        let name =
            if role == "timestamp" { "timestamp.json".to_owned() } else { format!("{version}.{role}.json") };
        self.dir.join("metadata").join(name)
    }

    /// `models/a/b/file` lies at `models/a/b/<SHA-256>.file`: the hash prefixes the file name, not the path.
    fn target_path(&self, target: &str, hashes: &BTreeMap<String, String>) -> PathBuf {
        let sha256 = hashes.get("sha256").map_or("", String::as_str);
        let (dir, name) = target.rsplit_once('/').unwrap_or(("", target));
        self.dir.join("targets").join(dir).join(format!("{sha256}.{name}"))
    }
}

impl Refreshed {
    fn note(&mut self, role: &str, renewed: Result<(), RegistryError>) -> Result<(), RegistryError> {
        match renewed {
            Ok(()) => self.renewed.push(role.to_owned()),
            Err(RegistryError::Key(KeyError::Io { source, .. }))
                if source.kind() == io::ErrorKind::NotFound =>
            {
                self.due.push(role.to_owned());
            }
            Err(other) => return Err(other),
        }
        Ok(())
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

/// Less than a quarter of its days are left.
fn is_due(head: &Head, days: u32, now: Timestamp) -> bool {
    head.expires < now.saturating_add(SignedDuration::from_hours(i64::from(days) * 6)).unwrap_or(now)
}

fn after(now: Timestamp, days: u32) -> Timestamp {
    now.saturating_add(SignedDuration::from_hours(i64::from(days) * 24)).unwrap_or(Timestamp::MAX)
}

/// Whole seconds: TUF times have no fraction.
fn timestamp(now: SystemTime) -> Timestamp {
    let now = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
    Timestamp::from_second(now.as_second()).expect("a timestamp without its fraction is one too")
}

fn version_of(bytes: &[u8]) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    value["signed"]["version"].as_u64().unwrap_or(0)
}

fn check_name(what: &'static str, name: &str) -> Result<(), RegistryError> {
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
