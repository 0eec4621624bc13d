//! Who this device is: `device.toml` and the pinned `root.json`, written once by provisioning.

use std::io;
use std::path::{Path, PathBuf};

use ring::hmac;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::fs::{self, Disk, FileSystem};

/// Longest node id, in bytes: it becomes one level of MQTT topics.
pub const NODE_LEN_MAX: usize = 64;
/// Longest group name, in bytes; the group is a file name in the registry.
const GROUP_LEN_MAX: usize = 63;
/// Bytes of a pinned root; matches the verifier's limit for a fetched one.
pub(crate) const ROOT_LEN_MAX: u64 = 512_000;
/// Bytes of `device.toml`.
const DEVICE_LEN_MAX: u64 = 64 * 1024;
/// Names this use of the machine id, as `systemd-id128 --app-specific` wants it. Never change it: every node id
/// in the field follows from it.
const APP_ID: [u8; 16] = *b"\x7b\x2f\x5d\x1c\x90\x4a\x4e\x0b\x8f\x63\x2d\xd6\x71\xae\x58\xc4";

/// What provisioning puts on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// The trust anchor: a TUF `root.json`, byte for byte.
    pub root_json: Vec<u8>,
    /// Where the registry lies: `https`, `http` or `file`.
    pub registry: Url,
    /// The device's name in topics and rollouts; see [`node_id`].
    pub node: String,
    /// Which rollout file is this device's. Decided here, never by the server.
    pub group: String,
}

/// A provisioned device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where the registry lies.
    pub registry: Url,
    /// The device's name in topics and rollouts.
    pub node: String,
    /// Which rollout file is this device's.
    pub group: String,
    /// The pinned root, byte for byte.
    pub root_json: Vec<u8>,
    /// The state folder it was opened from.
    pub state_dir: PathBuf,
    /// It was provisioned on another machine: a cloned card, or one that was moved. Two devices of one name confuse
    /// brokers and rollouts.
    pub is_moved: bool,
}

/// Why a device could not be provisioned or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// `device.toml` does not parse.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A name holds something it must not.
    #[error("{field} {value:?} must be 1 to {max} of a-z, A-Z, 0-9, '-', '_' and not start with '-'")]
    Name {
        /// `node` or `group`.
        field: &'static str,
        /// What was given.
        value: String,
        /// Longest allowed, in bytes.
        max: usize,
    },
    /// The registry's address cannot be used.
    #[error("registry {0}: only https, http and file addresses work")]
    Registry(Url),
    /// The root is not signed by its own keys to its own threshold.
    #[error("the root is not one a device can pin: {0}")]
    Root(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceToml {
    schema: u32,
    node: String,
    group: String,
    registry: Url,
    /// [`node_id`] of the machine it was provisioned on, where that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine: Option<String>,
}

/// Makes the device trust `what.root_json` and take its models from `what.registry`.
///
/// # Errors
/// A name, address or root that cannot work, or the file system; an earlier provisioning then still stands.
pub fn provision(state_dir: &Path, what: &Provisioned) -> Result<(), DeviceError> {
    provision_on(&Disk, state_dir, what)
}

/// The same on another file system.
///
/// # Errors
/// As [`provision`].
pub fn provision_on(fs: &dyn FileSystem, state_dir: &Path, what: &Provisioned) -> Result<(), DeviceError> {
    check_name("node", &what.node, NODE_LEN_MAX)?;
    check_name("group", &what.group, GROUP_LEN_MAX)?;
    check_registry(&what.registry)?;
    crate::verify::check_root(&what.root_json).map_err(DeviceError::Root)?;
    let (root_path, toml_path) = paths(state_dir);
    let file = DeviceToml {
        schema: 1,
        node: what.node.clone(),
        group: what.group.clone(),
        registry: what.registry.clone(),
        machine: node_id().ok(),
    };
    let text = toml::to_string(&file).expect("a struct of strings and one number is TOML");
    // The root first: device.toml is the commit point, it is never there without its root.
    for (path, bytes) in [(root_path, &what.root_json[..]), (toml_path, text.as_bytes())] {
        fs::write_atomic(fs, &path, bytes).map_err(|source| DeviceError::Io { path, source })?;
    }
    Ok(())
}

/// Forgets the provisioning. Installed models and verified metadata stay on disk.
///
/// # Errors
/// What the file system says.
pub fn reset(state_dir: &Path) -> Result<(), DeviceError> {
    reset_on(&Disk, state_dir)
}

/// The same on another file system.
///
/// # Errors
/// As [`reset`].
pub fn reset_on(fs: &dyn FileSystem, state_dir: &Path) -> Result<(), DeviceError> {
    let (root_path, toml_path) = paths(state_dir);
    fs::remove(fs, &toml_path).map_err(|source| DeviceError::Io { path: toml_path, source })?;
    // Before its root goes; that one alone means nothing, should a power cut bring it back.
    fs.sync_dir(state_dir).map_err(|source| DeviceError::Io { path: state_dir.to_path_buf(), source })?;
    fs::remove(fs, &root_path).map_err(|source| DeviceError::Io { path: root_path, source })
}

impl Device {
    /// The device as provisioned; `None` when it never was.
    ///
    /// # Errors
    /// Files that are there but cannot be used: never taken for "not provisioned".
    pub fn open(state_dir: &Path) -> Result<Option<Self>, DeviceError> {
        Self::open_on(&Disk, state_dir)
    }

    /// The same on another file system.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_on(fs: &dyn FileSystem, state_dir: &Path) -> Result<Option<Self>, DeviceError> {
        let (root_path, toml_path) = paths(state_dir);
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| DeviceError::Io { path, source }
        };
        let Some(text) = fs::read(fs, &toml_path, DEVICE_LEN_MAX).map_err(io(&toml_path))? else {
            return Ok(None);
        };
        let file: DeviceToml = std::str::from_utf8(&text)
            .map_err(|e| e.to_string())
            .and_then(|text| toml::from_str(text).map_err(|e| e.to_string()))
            .map_err(|message| DeviceError::Parse { path: toml_path.clone(), message })?;
        if file.schema != 1 {
            let message = format!("schema {} is newer than this daemon", file.schema);
            return Err(DeviceError::Parse { path: toml_path, message });
        }
        check_name("node", &file.node, NODE_LEN_MAX)?;
        check_name("group", &file.group, GROUP_LEN_MAX)?;
        check_registry(&file.registry)?;
        let root_json = fs::read(fs, &root_path, ROOT_LEN_MAX)
            .map_err(io(&root_path))?
            .ok_or_else(|| io(&root_path)(io::ErrorKind::NotFound.into()))?;
        let DeviceToml { node, group, registry, machine, .. } = file;
        let is_moved = is_moved(machine.as_deref(), node_id().ok().as_deref());
        Ok(Some(Self { registry, node, group, root_json, state_dir: state_dir.to_path_buf(), is_moved }))
    }
}

/// A stable id for this machine: 32 hex digits, an application-specific hash of `/etc/machine-id`.
///
/// The machine id itself must not leave the machine (machine-id(5)); this hash may, and tells nobody the id.
///
/// # Errors
/// No machine id, as in many containers: give the device a name then.
pub fn node_id() -> Result<String, DeviceError> {
    let path = Path::new("/etc/machine-id");
    let bytes = fs::read(&Disk, path, 64)
        .and_then(|bytes| bytes.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|source| DeviceError::Io { path: path.to_path_buf(), source })?;
    let mut machine = [0u8; 16];
    hex::decode_to_slice(bytes.trim_ascii(), &mut machine)
        .map_err(|e| DeviceError::Parse { path: path.to_path_buf(), message: e.to_string() })?;
    Ok(node_id_of(&machine))
}

/// The scheme of `sd_id128_get_machine_app_specific`: keyed by the machine id, over the application's id.
fn node_id_of(machine: &[u8; 16]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, machine);
    let tag = hmac::sign(&key, &APP_ID);
    let mut id = [0u8; 16];
    id.copy_from_slice(&tag.as_ref()[..16]);
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    hex::encode(id)
}

/// Where either machine has no id, nothing can be said.
fn is_moved(provisioned_on: Option<&str>, here: Option<&str>) -> bool {
    provisioned_on.zip(here).is_some_and(|(there, here)| there != here)
}

fn paths(state_dir: &Path) -> (PathBuf, PathBuf) {
    (state_dir.join("root.json"), state_dir.join("device.toml"))
}

fn check_name(field: &'static str, value: &str, max: usize) -> Result<(), DeviceError> {
    let ok = !value.is_empty()
        && value.len() <= max
        && !value.starts_with('-')
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if ok { Ok(()) } else { Err(DeviceError::Name { field, value: value.to_owned(), max }) }
}

fn check_registry(registry: &Url) -> Result<(), DeviceError> {
    match registry.scheme() {
        "http" | "https" if registry.has_host() => Ok(()),
        "file" if registry.to_file_path().is_ok() => Ok(()),
        _ => Err(DeviceError::Registry(registry.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same as `systemd-id128 machine-id --app-specific=7b2f5d1c904a4e0b8f632dd671ae58c4` on such a machine.
    #[test]
    fn the_node_id_is_stable_and_not_the_machine_id() {
        let machine = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(node_id_of(&machine), "c7b3ce8d752f4c098eb6754622cf3db9");
        assert_eq!(node_id_of(&machine), node_id_of(&machine));
        assert_ne!(node_id_of(&machine), node_id_of(&[7; 16]));
    }

    #[test]
    fn only_another_machines_id_is_another_machine() {
        assert!(is_moved(Some("a"), Some("b")));
        for (there, here) in [(Some("a"), Some("a")), (None, Some("b")), (Some("a"), None), (None, None)] {
            assert!(!is_moved(there, here));
        }
    }

    #[test]
    fn names_that_would_break_topics_or_paths_are_refused() {
        for name in ["", "a/b", "..", "+", "#", "-rf", "ü", "a b", "a\0"] {
            assert!(check_name("node", name, NODE_LEN_MAX).is_err(), "{name:?}");
        }
        check_name("node", &"a".repeat(NODE_LEN_MAX), NODE_LEN_MAX).unwrap();
        assert!(check_name("node", &"a".repeat(NODE_LEN_MAX + 1), NODE_LEN_MAX).is_err());
    }

    #[test]
    fn registries_are_web_addresses_or_folders() {
        for good in ["https://r.example/x", "http://10.0.0.1:8080", "file:///media/stick"] {
            check_registry(&good.parse().unwrap()).unwrap();
        }
        for bad in ["ftp://r.example", "data:,x", "file://host/share"] {
            assert!(check_registry(&bad.parse().unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_root_that_is_none_is_not_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let what = Provisioned {
            root_json: b"{}".to_vec(),
            registry: "file:///media/stick".parse().unwrap(),
            node: "n".into(),
            group: "g".into(),
        };
        assert!(matches!(provision(dir.path(), &what), Err(DeviceError::Root(_))));
        assert_eq!(Device::open(dir.path()).unwrap(), None);
    }
}
