//! Signing apart from staging: who changes the registry need not hold the keys, and who holds them need not trust
//! the machine that changes it.
//!
//! Every metadata file is written as `staged/<version>.<role>.json` until it carries the signatures its role needs.
//! The file may travel: [`sign`] adds the signatures of a key folder to it on any machine, and the next refresh of
//! the registry takes it in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::documents::Custom;
use crate::error::{RegistryError, io_at};
use crate::files::{self, PUBLIC};
use crate::keys::KeyFolder;
use crate::metadata::{self, Authority, Root, Signed, Targets};
use crate::registry::{Registry, TOP_LEVEL};
use crate::request::{SignedFile, Waiting};

/// Where a file went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Among the metadata.
    InForce,
    /// It waits for signatures.
    Staged,
}

impl Registry {
    /// Files that wait for signatures, and how many more each needs.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn staged(&self) -> Result<Vec<Waiting>, RegistryError> {
        let mut waiting = Vec::new();
        for (path, role, version) in self.staged_paths()? {
            let file = read(&path)?;
            let missing = self.missing(&role, version, &file)?;
            waiting.push(Waiting { role, version, path, missing });
        }
        Ok(waiting)
    }

    /// Signs with the keys that are here; enough of them, and the file is in force.
    pub(crate) fn write_role<T: Serialize>(
        &mut self,
        role: &str,
        version: u64,
        body: &T,
    ) -> Result<Written, RegistryError> {
        let staged = self.staged_path(role, version);
        if self.keys.signs() && staged.exists() {
            return Err(RegistryError::Pending { path: staged });
        }
        let mut file = metadata::unsigned(body);
        let authorities = self.authorities(role, version, &file)?;
        let mut ids: BTreeSet<String> = authorities.iter().flat_map(|a| a.keys.keys().cloned()).collect();
        if authorities.is_empty() {
            // A team whose delegation itself waits for a signature: its keys sign, and wait with it.
            ids.extend(self.keys.public(role).into_keys());
        }
        metadata::add_signatures(&mut file, &self.keys.signers(&ids)?);
        let signed = authorities.iter().all(|authority| authority.check(role, &file).is_ok());
        let complete = signed && !authorities.is_empty();
        if !complete && matches!(role, "snapshot" | "timestamp") {
            return Err(RegistryError::KeyAway(role.to_owned()));
        }
        let path = if complete { self.metadata_path(role, version) } else { staged };
        files::write_atomic(&path, &metadata::bytes(&file), PUBLIC).map_err(io_at(&path))?;
        Ok(if complete { Written::InForce } else { Written::Staged })
    }

    /// Takes in every staged file whose signatures are complete: the root first, then `targets`, for what they say
    /// about the others' keys.
    pub(crate) fn accept(&mut self) -> Result<Vec<String>, RegistryError> {
        let mut accepted = Vec::new();
        for (path, role, version) in self.staged_paths()? {
            let current = self.newest_version(&role)?;
            if version != current + 1 {
                return Err(RegistryError::Stale { path, on: version.saturating_sub(1), current });
            }
            let file = read(&path)?;
            if self.missing(&role, version, &file)? > 0 {
                continue;
            }
            let to = self.metadata_path(&role, version);
            files::write_atomic(&to, &metadata::bytes(&file), PUBLIC).map_err(io_at(&to))?;
            fs::remove_file(&path).map_err(io_at(&path))?;
            accepted.push(role);
        }
        Ok(accepted)
    }

    /// Whether the newest file of a role is signed by enough of the keys the role has now.
    pub(crate) fn in_force(&self, role: &str) -> Result<bool, RegistryError> {
        let version = self.newest_version(role)?;
        let file = read(&self.metadata_path(role, version))?;
        let authority = self.authority(role)?;
        Ok(authority.is_some_and(|authority| authority.check(role, &file).is_ok()))
    }

    pub(crate) fn staged_path(&self, role: &str, version: u64) -> PathBuf {
        self.dir.join("staged").join(format!("{version}.{role}.json"))
    }

    pub(crate) fn staged_file(
        &self,
        role: &str,
        version: u64,
    ) -> Result<Option<Signed<Value>>, RegistryError> {
        let path = self.staged_path(role, version);
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    }

    /// Signatures still needed; at least one while the role's delegation itself is not in force.
    fn missing(&self, role: &str, version: u64, file: &Signed<Value>) -> Result<usize, RegistryError> {
        let authorities = self.authorities(role, version, file)?;
        let missing = |a: &Authority| a.threshold.saturating_sub(metadata::signers(file, &a.keys).len());
        Ok(authorities.iter().map(missing).max().unwrap_or(1))
    }

    /// Everybody who must sign this file: for a new root the old root's keys and its own.
    fn authorities(
        &self,
        role: &str,
        version: u64,
        file: &Signed<Value>,
    ) -> Result<Vec<Authority>, RegistryError> {
        if role != "root" {
            return Ok(self.authority(role)?.into_iter().collect());
        }
        let source = |e: serde_json::Error| RegistryError::Metadata {
            path: self.staged_path(role, version),
            source: e.into(),
        };
        let own: Root = serde_json::from_value(file.signed.clone()).map_err(source)?;
        let mut authorities: Vec<_> = root_authority(&own, "root").into_iter().collect();
        if version > 1 {
            authorities.extend(self.authority("root")?);
        }
        Ok(authorities)
    }

    /// The keys a role has now; `None` while nobody delegates to it.
    fn authority(&self, role: &str) -> Result<Option<Authority>, RegistryError> {
        if TOP_LEVEL.contains(&role) {
            return Ok(root_authority(&self.newest::<Root>("root")?.1, role));
        }
        let delegations = self.newest::<Targets>("targets")?.1.delegations.unwrap_or_default();
        let delegated = delegations.roles.iter().find(|delegated| delegated.name == role);
        Ok(delegated.map(|delegated| Authority::new(&delegated.role_keys(), &delegations.keys)))
    }

    /// Path, role and version of what is staged, in the order it can come into force.
    fn staged_paths(&self) -> Result<Vec<(PathBuf, String, u64)>, RegistryError> {
        let dir = self.dir.join("staged");
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_at(&dir))?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(io_at(&dir))?.path();
            let (role, version) = role_of(&path)?;
            paths.push((path, role, version));
        }
        paths.sort_by_key(|(_, role, version)| {
            let rank = TOP_LEVEL.iter().position(|top| top == role).unwrap_or(TOP_LEVEL.len());
            (rank, role.clone(), *version)
        });
        Ok(paths)
    }
}

/// Adds to a staged file the signatures of every key in `keys` that was made for its role, and says what was
/// signed. Needs no registry.
///
/// # Errors
/// See [`RegistryError`]; a folder without such a key changes nothing, which shows in [`SignedFile::signers`].
pub fn sign(path: &Path, keys: &mut KeyFolder) -> Result<SignedFile, RegistryError> {
    let (role, version) = role_of(path)?;
    let mut file = read(path)?;
    let lines = describe(&role, version, &file).ok_or_else(|| RegistryError::NotStaged(path.into()))?;
    let ids = keys.public(&role).into_keys().collect();
    let signers = keys.signers(&ids)?;
    metadata::add_signatures(&mut file, &signers);
    files::write_atomic(path, &metadata::bytes(&file), PUBLIC).map_err(io_at(path))?;
    let named = |id: &str| keys.list().iter().find(|key| key.id == id).map(|key| key.name.clone());
    let signers = signers.iter().filter_map(|signer| named(signer.id())).collect();
    Ok(SignedFile { role, version, lines, signers })
}

/// What a staged file says, for the eyes of who is to sign it.
///
/// # Errors
/// [`RegistryError::NotStaged`], or what the file system says.
pub fn show(path: &Path) -> Result<SignedFile, RegistryError> {
    let (role, version) = role_of(path)?;
    let lines = describe(&role, version, &read(path)?);
    let lines = lines.ok_or_else(|| RegistryError::NotStaged(path.into()))?;
    Ok(SignedFile { role, version, lines, signers: Vec::new() })
}

fn root_authority(root: &Root, role: &str) -> Option<Authority> {
    root.roles.get(role).map(|role| Authority::new(role, &root.keys))
}

fn read(path: &Path) -> Result<Signed<Value>, RegistryError> {
    let bytes = fs::read(path).map_err(io_at(path))?;
    metadata::parse(&bytes).map_err(|source| RegistryError::Metadata { path: path.to_path_buf(), source })
}

fn role_of(path: &Path) -> Result<(String, u64), RegistryError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let parts = name.and_then(|name| name.strip_suffix(".json")?.split_once('.'));
    let role = parts.and_then(|(version, role)| Some((role.to_owned(), version.parse().ok()?)));
    role.ok_or_else(|| RegistryError::NotStaged(path.to_path_buf()))
}

/// One line a key, delegation and target; `None` when the content is not what the file's name says.
fn describe(role: &str, version: u64, file: &Signed<Value>) -> Option<Vec<String>> {
    let (head, mut lines) = if role == "root" {
        let root: Root = serde_json::from_value(file.signed.clone()).ok()?;
        (root.head, root.roles.iter().map(|(name, keys)| keys_line(name, keys)).collect())
    } else {
        let targets: Targets = serde_json::from_value(file.signed.clone()).ok()?;
        let roles = targets.delegations.unwrap_or_default().roles;
        let delegated = roles
            .iter()
            .map(|role| format!("{} for {}", keys_line(&role.name, &role.role_keys()), role.paths.join(" ")));
        let files = targets.targets.iter().map(|(path, file)| target_line(path, file));
        (targets.head, delegated.chain(files).collect::<Vec<_>>())
    };
    let kind = if role == "root" { "root" } else { "targets" };
    if (head.version, head.kind.as_str()) != (version, kind) {
        return None;
    }
    lines.insert(0, format!("{role} version {version}, good until {}", head.expires));
    Some(lines)
}

fn keys_line(role: &str, keys: &metadata::RoleKeys) -> String {
    let ids: Vec<&str> = keys.keyids.iter().map(|id| id.get(..8).unwrap_or(id)).collect();
    format!("{role}: {} of {}", keys.threshold, ids.join(" "))
}

fn target_line(path: &str, file: &metadata::TargetFile) -> String {
    let none = String::new();
    let sha256 = file.hashes.get("sha256").unwrap_or(&none);
    let custom = file.custom.clone().and_then(|custom| serde_json::from_value::<Custom>(custom).ok());
    let says = custom.map_or(String::new(), |custom| {
        format!(", {} {} not below {}", custom.model, custom.version, custom.min_version)
    });
    format!("{path}: {} bytes, sha256 {sha256}{says}", file.length)
}

impl metadata::DelegatedRole {
    pub(crate) fn role_keys(&self) -> metadata::RoleKeys {
        metadata::RoleKeys { keyids: self.keyids.clone(), threshold: self.threshold }
    }
}

/// The keys of `listed` that `roles` name: none is kept that nobody needs.
pub(crate) fn named_keys<'a>(
    listed: &BTreeMap<String, metadata::Key>,
    roles: impl Iterator<Item = &'a [String]>,
) -> BTreeMap<String, metadata::Key> {
    let ids: BTreeSet<&String> = roles.flatten().collect();
    listed.iter().filter(|(id, _)| ids.contains(id)).map(|(id, key)| (id.clone(), key.clone())).collect()
}
