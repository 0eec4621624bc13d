//! The publisher's keys: ed25519, one `age` file each, and an index of their public halves.
//!
//! `keys/index.json` holds nothing secret. `keys/<name>.age` is the PKCS#8 key under a passphrase (scrypt).
//! A key file may be moved away, or never have been here: what it should sign then waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use tractd_bundle::is_model_name;
use zeroize::Zeroizing;

use crate::files::{self, SECRET};
use crate::metadata::{Key, KeyVal, key_id};

/// Strongest scrypt work factor opened: 2^22 takes 4 GiB; a planted file must not ask for more.
const WORK_FACTOR_MAX: u8 = 22;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Others could have copied it.
    #[error("{path} may be read by others (mode {mode:o}); chmod 600 it, and think of rotating the key")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Nobody made it.
    #[error("there is no key {0:?} in the key folder's index")]
    Unknown(String),
    /// Names are given once.
    #[error("there is a key {0:?} already")]
    Exists(String),
    /// A public half that cannot be one.
    #[error("{0:?} is no public key: its name, its length or its id is wrong")]
    Public(String),
    /// Most likely the passphrase.
    #[error("{path} cannot be decrypted: {message} (wrong passphrase?)")]
    Decrypt {
        /// The file.
        path: PathBuf,
        /// What age said.
        message: String,
    },
    /// Not what the index says it is.
    #[error("{0} is not the key its index names")]
    Mismatch(PathBuf),
    /// The index does not parse.
    #[error("{path}: {message}")]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The system gives no randomness.
    #[error("no random numbers to make a key from")]
    Random,
}

/// The public half of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// The file's name without `.age`: `root-1`, `targets`, `team-vision`.
    pub name: String,
    /// The role it signs: `root`, `targets`, `team-vision`.
    pub role: String,
    /// The TUF key id.
    pub id: String,
    /// Raw public key, hex.
    pub public: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    schema: u32,
    keys: Vec<KeyInfo>,
}

/// A folder of keys, opened with one passphrase, or for their public halves only.
pub struct KeyFolder {
    dir: PathBuf,
    /// `None` never signs.
    passphrase: Option<Zeroizing<String>>,
    /// For new keys; `None` lets age choose about a second of this machine.
    work_factor: Option<u8>,
    index: Index,
    /// scrypt takes its second once a key, not once a signature.
    open: BTreeMap<String, SigningKey>,
}

/// A key ready to sign.
#[derive(Clone)]
pub(crate) struct SigningKey {
    id: String,
    pair: std::sync::Arc<Ed25519KeyPair>,
}

impl SigningKey {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl std::fmt::Debug for KeyFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyFolder").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl KeyFolder {
    /// An empty folder, readable by its owner only. `work_factor` (log2) is for keys made in it; `None` lets each
    /// take about a second of this machine to open.
    ///
    /// # Errors
    /// One is there already, or what the file system says.
    pub fn create(
        dir: &Path,
        passphrase: Zeroizing<String>,
        work_factor: Option<u8>,
    ) -> Result<Self, KeyError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_at(dir))?;
        let path = dir.join("index.json");
        if path.exists() {
            return Err(io_at(&path)(io::ErrorKind::AlreadyExists.into()));
        }
        let index = Index { schema: 1, keys: Vec::new() };
        let folder =
            Self { dir: dir.into(), passphrase: Some(passphrase), work_factor, index, open: BTreeMap::new() };
        folder.save()?;
        Ok(folder)
    }

    /// One that is there. Keys are decrypted when they are needed.
    ///
    /// # Errors
    /// [`KeyError::Index`], or what the file system says.
    pub fn open(dir: &Path, passphrase: Zeroizing<String>) -> Result<Self, KeyError> {
        Ok(Self { passphrase: Some(passphrase), ..Self::public_only(dir)? })
    }

    /// The public halves: what is written with them waits for signatures.
    ///
    /// # Errors
    /// As [`KeyFolder::open`].
    pub fn public_only(dir: &Path) -> Result<Self, KeyError> {
        let path = dir.join("index.json");
        let bytes = fs::read(&path).map_err(io_at(&path))?;
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|e| KeyError::Index { path: path.clone(), message: e.to_string() })?;
        if index.schema != 1 {
            let message = format!("schema {} is newer than this tool", index.schema);
            return Err(KeyError::Index { path, message });
        }
        Ok(Self { dir: dir.into(), passphrase: None, work_factor: None, index, open: BTreeMap::new() })
    }

    /// scrypt work factor (log2) of keys made from now on; `None` is about a second each.
    pub fn set_work_factor(&mut self, work_factor: Option<u8>) {
        self.work_factor = work_factor;
    }

    /// Whether it was opened to sign.
    pub(crate) fn signs(&self) -> bool {
        self.passphrase.is_some()
    }

    /// The public halves, in the order they came.
    #[must_use]
    pub fn list(&self) -> &[KeyInfo] {
        &self.index.keys
    }

    /// The key of a name.
    pub(crate) fn named(&self, name: &str) -> Result<&KeyInfo, KeyError> {
        let key = self.index.keys.iter().find(|key| key.name == name);
        key.ok_or_else(|| KeyError::Unknown(name.to_owned()))
    }

    /// Every public key a role ever had here, by id.
    pub(crate) fn public(&self, role: &str) -> BTreeMap<String, Key> {
        let keys = self.index.keys.iter().filter(|key| key.role == role);
        keys.map(|key| (key.id.clone(), tuf_key(&key.public))).collect()
    }

    /// Those of `ids` whose key file is here, decrypted.
    pub(crate) fn signers(&mut self, ids: &BTreeSet<String>) -> Result<Vec<SigningKey>, KeyError> {
        if self.passphrase.is_none() {
            return Ok(Vec::new());
        }
        let keys: Vec<_> = self.index.keys.iter().filter(|key| ids.contains(&key.id)).cloned().collect();
        let keys = keys.iter().filter(|key| self.path(&key.name).exists()).collect::<Vec<_>>();
        keys.into_iter().map(|key| self.signer(key)).collect()
    }

    /// Makes a key, writes it encrypted, and names it in the index.
    ///
    /// # Errors
    /// [`KeyError::Exists`], or what the file system says.
    pub fn generate(&mut self, name: &str, role: &str) -> Result<KeyInfo, KeyError> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        let pkcs8 = Zeroizing::new(pkcs8.as_ref().to_vec());
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| KeyError::Random)?;
        let public = hex::encode(pair.public_key().as_ref());
        let info = KeyInfo { name: name.into(), role: role.into(), id: key_id(&tuf_key(&public)), public };
        self.check_new(&info)?;

        let path = self.path(name);
        let mut recipient = age::scrypt::Recipient::new(self.secret(&path)?);
        if let Some(log_n) = self.work_factor {
            recipient.set_work_factor(log_n);
        }
        let encrypted =
            age::encrypt(&recipient, &pkcs8).map_err(|e| io_at(&path)(io::Error::other(e.to_string())))?;
        files::write_atomic(&path, &encrypted, SECRET).map_err(io_at(&path))?;

        self.open.insert(name.to_owned(), SigningKey { id: info.id.clone(), pair: pair.into() });
        self.index.keys.push(info.clone());
        self.save()?;
        Ok(info)
    }

    /// Takes up the public half of a key that lies elsewhere. The same again is no error.
    ///
    /// # Errors
    /// [`KeyError::Exists`] under another content, [`KeyError::Public`].
    pub fn import(&mut self, key: &KeyInfo) -> Result<(), KeyError> {
        if self.index.keys.contains(key) {
            return Ok(());
        }
        self.check_new(key)?;
        self.index.keys.push(key.clone());
        self.save()
    }

    fn check_new(&self, key: &KeyInfo) -> Result<(), KeyError> {
        let is_name = |name: &str| is_model_name(name.strip_prefix("team-").unwrap_or(name));
        let named = is_name(&key.name) && is_name(&key.role);
        let plain = hex::decode(&key.public).is_ok_and(|public| public.len() == 32);
        if !named || !plain || key.id != key_id(&tuf_key(&key.public)) {
            return Err(KeyError::Public(key.name.clone()));
        }
        let taken = |other: &KeyInfo| other.name == key.name || other.id == key.id;
        if self.index.keys.iter().any(taken) || self.path(&key.name).exists() {
            return Err(KeyError::Exists(key.name.clone()));
        }
        Ok(())
    }

    fn save(&self) -> Result<(), KeyError> {
        let path = self.dir.join("index.json");
        let index = serde_json::to_vec_pretty(&self.index).expect("an index of strings is JSON");
        files::write_atomic(&path, &index, SECRET).map_err(io_at(&path))
    }

    fn signer(&mut self, info: &KeyInfo) -> Result<SigningKey, KeyError> {
        if let Some(key) = self.open.get(&info.name) {
            return Ok(key.clone());
        }
        let path = self.path(&info.name);
        let mode = fs::metadata(&path).map_err(io_at(&path))?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path, mode });
        }
        let encrypted = fs::read(&path).map_err(io_at(&path))?;
        let mut identity = age::scrypt::Identity::new(self.secret(&path)?);
        identity.set_max_work_factor(WORK_FACTOR_MAX);
        let pkcs8 = age::decrypt(&identity, &encrypted).map(Zeroizing::new);
        let pkcs8 = pkcs8.map_err(|e| KeyError::Decrypt { path: path.clone(), message: e.to_string() })?;
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| KeyError::Mismatch(path.clone()))?;
        if hex::encode(pair.public_key().as_ref()) != info.public {
            return Err(KeyError::Mismatch(path));
        }
        let key = SigningKey { id: info.id.clone(), pair: pair.into() };
        self.open.insert(info.name.clone(), key.clone());
        Ok(key)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.age"))
    }

    fn secret(&self, path: &Path) -> Result<SecretString, KeyError> {
        let message = || "the folder was opened without a passphrase".to_owned();
        match &self.passphrase {
            Some(passphrase) => Ok(SecretString::from(passphrase.as_str())),
            None => Err(KeyError::Decrypt { path: path.to_path_buf(), message: message() }),
        }
    }
}

fn tuf_key(public: &str) -> Key {
    Key { keytype: "ed25519".into(), scheme: "ed25519".into(), keyval: KeyVal { public: public.to_owned() } }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> KeyError + use<> {
    let path = path.to_path_buf();
    move |source| KeyError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(dir: &Path) -> KeyFolder {
        KeyFolder::create(dir, Zeroizing::new("correct horse".into()), Some(2)).unwrap()
    }

    fn reopen(dir: &Path, passphrase: &str) -> KeyFolder {
        KeyFolder::open(dir, Zeroizing::new(passphrase.into())).unwrap()
    }

    #[test]
    fn a_key_comes_back_with_the_passphrase_and_only_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = folder(dir.path()).generate("team-vision", "team-vision").unwrap();
        let ids = BTreeSet::from([made.id.clone()]);
        let signers = reopen(dir.path(), "correct horse").signers(&ids).unwrap();
        assert_eq!(signers[0].id(), made.id);
        let wrong = reopen(dir.path(), "incorrect horse").signers(&ids).map(|_| ());
        assert!(matches!(wrong, Err(KeyError::Decrypt { .. })), "{wrong:?}");
        fs::rename(dir.path().join("team-vision.age"), dir.path().join("away")).unwrap();
        assert_eq!(reopen(dir.path(), "correct horse").signers(&ids).unwrap().len(), 0);
        assert_eq!(KeyFolder::public_only(dir.path()).unwrap().signers(&ids).unwrap().len(), 0);
    }

    #[test]
    fn a_public_half_from_elsewhere_is_checked_and_named_once() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let made = folder(there.path()).generate("team-audio", "team-audio").unwrap();
        let mut folder = folder(here.path());
        folder.import(&made).unwrap();
        folder.import(&made).unwrap();
        assert_eq!(folder.list(), std::slice::from_ref(&made));
        let other = KeyInfo { name: "other".into(), ..made.clone() };
        assert!(matches!(folder.import(&other), Err(KeyError::Exists(_))));
        for (name, public) in
            [("../x", made.public.clone()), ("short", "ab".into()), ("odd", "cd".repeat(32))]
        {
            let bad = KeyInfo { name: name.into(), public, ..made.clone() };
            assert!(matches!(folder.import(&bad), Err(KeyError::Public(_))), "{name}");
        }
    }

    #[test]
    fn keys_are_written_encrypted_and_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        folder(&keys).generate("targets", "targets").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&keys), 0o700);
        assert_eq!(mode(&keys.join("targets.age")), 0o600);
        let bytes = fs::read(keys.join("targets.age")).unwrap();
        assert!(bytes.starts_with(b"age-encryption.org/v1\n-> scrypt "));
    }

    #[test]
    fn a_key_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let made = folder(dir.path()).generate("targets", "targets").unwrap();
        let path = dir.path().join("targets.age");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = reopen(dir.path(), "correct horse").signers(&BTreeSet::from([made.id])).map(|_| ());
        assert!(matches!(refused, Err(KeyError::Exposed { mode: 0o640, .. })), "{refused:?}");
    }

    #[test]
    fn a_swapped_key_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = folder(dir.path());
        let made = folder.generate("targets", "targets").unwrap();
        folder.generate("snapshot", "snapshot").unwrap();
        fs::rename(dir.path().join("snapshot.age"), dir.path().join("targets.age")).unwrap();
        let refused = reopen(dir.path(), "correct horse").signers(&BTreeSet::from([made.id])).map(|_| ());
        assert!(matches!(refused, Err(KeyError::Mismatch(_))), "{refused:?}");
    }

    #[test]
    fn key_ids_are_those_of_securesystemslib() {
        // python3: SSlibKey.from_dict("", {...})._get_keyid() for this public key
        let key = tuf_key("1a18abd2cde9d9b86bca7c3187f4c6dd61f34d7f5e3a1f8e1a2d14d9f4a8d0b1");
        assert_eq!(key_id(&key), "3c9906cc5b7342413d0b9f9bd8a6de7a74be8b38c2e1273cf8715f237e66705c");
    }
}
