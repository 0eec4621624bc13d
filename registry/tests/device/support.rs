//! One registry, one device, and an attacker with the publisher's keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::signature::Ed25519KeyPair;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tractd_bundle::{Bundle, Limits};
use tractd_registry::{Options, Publish, Registry};
use tractd_update::fs::{Disk, FileSystem};
use tractd_update::{CheckError, Config, Device, Event, Outcome, Provisioned, Store, Unproven, Updater};
use zeroize::Zeroizing;

pub(crate) const PASSPHRASE: &str = "correct horse battery staple";
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn passphrase() -> Zeroizing<String> {
    Zeroizing::new(PASSPHRASE.into())
}

/// 2026-12-01T00:00:00Z: the tests own the clock.
pub(crate) fn december() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_796_083_200)
}

pub(crate) struct World {
    pub(crate) tmp: tempfile::TempDir,
    pub(crate) registry: Registry,
    pub(crate) now: SystemTime,
}

impl World {
    /// A registry with team `vision` and a device of group `lab` that takes from its folder.
    pub(crate) fn new() -> Self {
        Self::at(december())
    }

    pub(crate) fn at(now: SystemTime) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let options = Options { work_factor: Some(2), ..Options::default() };
        let (dir, keys) = (tmp.path().join("registry"), tmp.path().join("keys"));
        let mut registry = Registry::init(&dir, &keys, passphrase(), &options, now).unwrap();
        registry.add_team("vision", now).unwrap();
        let world = Self { tmp, registry, now };
        world.provision("lab", url::Url::from_directory_path(world.dir()).unwrap().as_str());
        world
    }

    /// One whose device runs `digits` 1.
    pub(crate) fn with_digits() -> Self {
        let mut world = Self::new();
        world.publish(1);
        assert_eq!(world.activate(), vec![("digits".into(), 1)]);
        world
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.tmp.path().join("registry")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.tmp.path().join("keys")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.tmp.path().join("state")
    }

    pub(crate) fn provision(&self, group: &str, registry: &str) {
        self.provision_at(group, registry, fs::read(self.metadata("1.root.json")).unwrap());
    }

    pub(crate) fn provision_with(&self, group: &str, dir: &Path, root_json: Vec<u8>) {
        self.provision_at(group, url::Url::from_directory_path(dir).unwrap().as_str(), root_json);
    }

    fn provision_at(&self, group: &str, registry: &str, root_json: Vec<u8>) {
        let what = Provisioned {
            root_json,
            registry: registry.parse().unwrap(),
            node: "node-1".into(),
            group: group.into(),
        };
        tractd_update::provision(&self.state(), &what).unwrap();
    }

    pub(crate) fn archive(&self, model: &str, version: u64) -> PathBuf {
        archive(self.tmp.path(), model, version, 0)
    }

    pub(crate) fn add(&mut self, version: u64) {
        let archive = self.archive("digits", version);
        self.registry.add(&archive, "vision", None, self.now).unwrap();
    }

    /// Adds `digits` in this version and rolls it out to the group `lab`.
    pub(crate) fn publish(&mut self, version: u64) {
        self.add(version);
        self.publish_only(version, false);
    }

    /// Rolls out what was added; `restart` makes it a new rollout.
    pub(crate) fn publish_only(&mut self, version: u64, restart: bool) {
        let what = Publish { healthy_secs: 0, restart, ..Publish::new("digits", version, "lab") };
        self.registry.publish(&what, self.now).unwrap();
    }

    pub(crate) fn updater(&self) -> Updater {
        self.updater_on(Arc::new(Disk))
    }

    pub(crate) fn updater_on(&self, fs: Arc<dyn FileSystem>) -> Updater {
        let device = Device::open(&self.state()).unwrap().unwrap();
        Updater::new(device, Store::open_on(fs, &self.state()).unwrap(), Config::default())
    }

    /// A check by a process of its own, with every self-test passing.
    pub(crate) fn check(&self) -> Result<Outcome, CheckError> {
        check(&mut self.updater(), self.now).0
    }

    /// What a check activated.
    pub(crate) fn activate(&self) -> Vec<(String, u64)> {
        let outcome = self.check().unwrap();
        assert_eq!((&outcome.refused, &outcome.failed), (&vec![], &vec![]));
        outcome.activated.into_iter().map(|installed| (installed.name, installed.version)).collect()
    }

    /// The active version of `digits`; its files are hashed.
    pub(crate) fn active(&self) -> Option<u64> {
        let mut store = Store::open(&self.state()).unwrap();
        let installed = store.installed("digits")?;
        let bundle = store.bundle("digits", &Limits::default()).unwrap();
        assert_eq!((bundle.digest, bundle.version()), (installed.digest, installed.version));
        Some(installed.version)
    }

    pub(crate) fn metadata(&self, name: &str) -> PathBuf {
        self.dir().join("metadata").join(name)
    }

    pub(crate) fn attacker(&self) -> Attacker {
        self.attacker_on(&self.dir())
    }

    /// One who holds another copy of the registry.
    pub(crate) fn attacker_on(&self, dir: &Path) -> Attacker {
        Attacker { metadata: dir.join("metadata"), keys: self.keys() }
    }
}

pub(crate) fn check(updater: &mut Updater, now: SystemTime) -> (Result<Outcome, CheckError>, Vec<Event>) {
    check_with(updater, now, &mut |_| Ok(()))
}

pub(crate) fn check_with(
    updater: &mut Updater,
    now: SystemTime,
    prove: &mut dyn FnMut(&Bundle) -> Result<(), Unproven>,
) -> (Result<Outcome, CheckError>, Vec<Event>) {
    let mut events = Vec::new();
    let result = updater.check(now, prove, &mut |event| events.push(event));
    (result, events)
}

/// A packed bundle of a model nobody could run, but every room here can carry. `salt` changes its content.
pub(crate) fn archive(tmp: &Path, model: &str, version: u64, salt: u8) -> PathBuf {
    let dir = tmp.join(format!("source/{model}-{version}-{salt}"));
    fs::create_dir_all(&dir).unwrap();
    let manifest = format!(
        "schema = 1\nname = \"{model}\"\nversion = {version}\n\
         [[input]]\nname = \"x\"\ndtype = \"f32\"\nshape = [1, 4]\n\
         [[output]]\nname = \"y\"\ndtype = \"f32\"\nshape = [1, 4]\n"
    );
    fs::write(dir.join("manifest.toml"), manifest).unwrap();
    // Field 7 of a ModelProto is its graph; field 2 of that its name.
    let name: Vec<u8> = (0..100u8).map(|i| i.wrapping_mul(version as u8 ^ salt) & 0x7f).collect();
    let onnx = [&[0x3a, 102, 0x12, 100][..], &name].concat();
    fs::write(dir.join("model.onnx"), onnx).unwrap();
    let out = tmp.join(format!("{model}-{version}-{salt}.tractd.tar.zst"));
    tractd_bundle::pack(&dir, &out, &Limits::default(), &mut |_, _| {}).unwrap();
    out
}

/// Somebody with stolen keys, who writes what no publisher's tool would.
pub(crate) struct Attacker {
    metadata: PathBuf,
    keys: PathBuf,
}

impl Attacker {
    pub(crate) fn read(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.metadata.join(name)).unwrap()).unwrap()
    }

    /// Changes the signed part of `name` and signs it with `key`; `None` leaves it unsigned.
    pub(crate) fn forge(&self, name: &str, key: Option<&str>, change: impl FnOnce(&mut Value)) {
        let mut file = self.read(name);
        change(&mut file["signed"]);
        file["signatures"] = match key {
            Some(key) => json!([self.sign(key, &file["signed"])]),
            None => json!([]),
        };
        fs::write(self.metadata.join(name), serde_json::to_vec(&file).unwrap()).unwrap();
    }

    /// Pins what lies there now, as the next snapshot and timestamp: needs the online keys.
    pub(crate) fn repin(&self) {
        self.repin_with("snapshot", "timestamp");
    }

    /// The same with online keys of other names.
    pub(crate) fn repin_with(&self, snapshot_key: &str, timestamp_key: &str) {
        let timestamp = self.read("timestamp.json");
        let version = timestamp["signed"]["meta"]["snapshot.json"]["version"].as_u64().unwrap();
        let (old, new) = (format!("{version}.snapshot.json"), format!("{}.snapshot.json", version + 1));
        fs::copy(self.metadata.join(old), self.metadata.join(&new)).unwrap();
        self.forge(&new, Some(snapshot_key), |snapshot| {
            snapshot["version"] = json!(version + 1);
            for (role, meta) in snapshot["meta"].as_object_mut().unwrap() {
                *meta = self.pin(&format!("{}.{role}", meta["version"]), meta["version"].as_u64().unwrap());
            }
        });
        self.forge("timestamp.json", Some(timestamp_key), |timestamp| {
            timestamp["version"] = json!(timestamp["version"].as_u64().unwrap() + 1);
            timestamp["meta"]["snapshot.json"] = self.pin(&new, version + 1);
        });
    }

    pub(crate) fn pin(&self, name: &str, version: u64) -> Value {
        let bytes = fs::read(self.metadata.join(name)).unwrap();
        let sha256 = hex::encode(Sha256::digest(&bytes));
        json!({"version": version, "length": bytes.len(), "hashes": {"sha256": sha256}})
    }

    /// Another rollout file for the group `lab`, with the stolen rollout key.
    pub(crate) fn rollout(&self, change: impl FnOnce(&mut Value)) {
        let newest = (1..).take_while(|v| self.metadata.join(format!("{v}.rollout.json")).exists());
        let name = format!("{}.rollout.json", newest.last().unwrap());
        let dir = self.metadata.parent().unwrap().join("targets/rollout");
        self.forge(&name, Some("rollout"), |role| {
            let file = &mut role["targets"]["rollout/lab.json"];
            let old = dir.join(format!("{}.lab.json", file["hashes"]["sha256"].as_str().unwrap()));
            let mut rollout: Value = serde_json::from_slice(&fs::read(old).unwrap()).unwrap();
            change(&mut rollout);
            let bytes = serde_json::to_vec(&rollout).unwrap();
            let sha256 = hex::encode(Sha256::digest(&bytes));
            fs::write(dir.join(format!("{sha256}.lab.json")), &bytes).unwrap();
            *file = json!({"length": bytes.len(), "hashes": {"sha256": sha256}});
        });
        self.repin();
    }

    pub(crate) fn sign(&self, key: &str, signed: &Value) -> Value {
        let identity = age::scrypt::Identity::new(PASSPHRASE.to_owned().into());
        let pkcs8 =
            age::decrypt(&identity, &fs::read(self.keys.join(format!("{key}.age"))).unwrap()).unwrap();
        let index: Value = serde_json::from_slice(&fs::read(self.keys.join("index.json")).unwrap()).unwrap();
        let entry = index["keys"].as_array().unwrap().iter().find(|entry| entry["name"] == key).unwrap();
        let mut message = Vec::new();
        let formatter = olpc_cjson::CanonicalFormatter::new();
        signed.serialize(&mut serde_json::Serializer::with_formatter(&mut message, formatter)).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).unwrap();
        json!({"keyid": entry["id"], "sig": hex::encode(pair.sign(&message).as_ref())})
    }
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
