//! TUF metadata as this registry writes it, and its signatures (TUF 1.0, ed25519).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::keys::SigningKey;

/// The specification the metadata follows.
pub(crate) const SPEC_VERSION: &str = "1.0.31";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Signed<T> {
    pub(crate) signatures: Vec<Signature>,
    pub(crate) signed: T,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Signature {
    pub(crate) keyid: String,
    pub(crate) sig: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) keytype: String,
    pub(crate) scheme: String,
    pub(crate) keyval: KeyVal,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeyVal {
    /// 32 bytes, hex.
    pub(crate) public: String,
}

/// The keys of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// Their ids.
    pub keyids: Vec<String>,
    /// How many of them must sign.
    pub threshold: usize,
}

/// What every role begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    #[serde(rename = "_type")]
    pub(crate) kind: String,
    pub(crate) spec_version: String,
    pub(crate) version: u64,
    #[serde(with = "whole_seconds")]
    pub(crate) expires: Timestamp,
}

impl Head {
    pub(crate) fn new(kind: &str, version: u64, expires: Timestamp) -> Self {
        Self { kind: kind.into(), spec_version: SPEC_VERSION.into(), version, expires }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Root {
    #[serde(flatten)]
    pub(crate) head: Head,
    pub(crate) consistent_snapshot: bool,
    pub(crate) keys: BTreeMap<String, Key>,
    pub(crate) roles: BTreeMap<String, RoleKeys>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Targets {
    #[serde(flatten)]
    pub(crate) head: Head,
    pub(crate) targets: BTreeMap<String, TargetFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delegations: Option<Delegations>,
}

impl Targets {
    /// The same for longer.
    pub(crate) fn renewed(self, version: u64, expires: Timestamp) -> Self {
        Self { head: Head::new("targets", version, expires), ..self }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TargetFile {
    pub(crate) length: u64,
    pub(crate) hashes: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) custom: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Delegations {
    pub(crate) keys: BTreeMap<String, Key>,
    pub(crate) roles: Vec<DelegatedRole>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DelegatedRole {
    pub(crate) name: String,
    pub(crate) keyids: Vec<String>,
    pub(crate) threshold: usize,
    pub(crate) terminating: bool,
    pub(crate) paths: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    #[serde(flatten)]
    pub(crate) head: Head,
    pub(crate) meta: BTreeMap<String, MetaFile>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TimestampRole {
    #[serde(flatten)]
    pub(crate) head: Head,
    pub(crate) meta: BTreeMap<String, MetaFile>,
    /// When it was signed: a device without a clock learns the time from it.
    #[serde(rename = "x-tractd-issued", with = "whole_seconds")]
    pub(crate) issued: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MetaFile {
    pub(crate) version: u64,
    pub(crate) length: u64,
    pub(crate) hashes: BTreeMap<String, String>,
}

impl MetaFile {
    pub(crate) fn of(version: u64, bytes: &[u8]) -> Self {
        Self { version, length: bytes.len() as u64, hashes: hashes(bytes) }
    }
}

/// Whose signatures make a role's file count, as the role's delegator says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Authority {
    pub(crate) keys: BTreeMap<String, Key>,
    pub(crate) threshold: usize,
}

impl Authority {
    /// The keys `role` names, of those its delegator lists.
    pub(crate) fn new(role: &RoleKeys, listed: &BTreeMap<String, Key>) -> Self {
        let named = |(id, _): &(&String, &Key)| role.keyids.contains(id);
        let keys = listed.iter().filter(named).map(|(id, key)| (id.clone(), key.clone())).collect();
        Self { keys, threshold: role.threshold }
    }

    /// Enough different keys signed exactly this.
    pub(crate) fn check(&self, role: &str, file: &Signed<Value>) -> Result<(), MetadataError> {
        let found = signers(file, &self.keys).len();
        if found >= self.threshold.max(1) {
            return Ok(());
        }
        Err(MetadataError::Signatures { role: role.to_owned(), found, threshold: self.threshold })
    }
}

/// Why a metadata file of our own is not taken up again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// Not the JSON it should be.
    #[error("does not parse: {0}")]
    Parse(#[from] serde_json::Error),
    /// Not signed by a key this publisher has for the role: somebody else wrote it.
    #[error("is not signed by this publisher's {0} key")]
    NotOurs(String),
    /// Not signed by enough of the keys the role has.
    #[error("carries {found} valid signatures of {role} keys where {threshold} are needed")]
    Signatures {
        /// The role.
        role: String,
        /// Valid ones, each key counted once.
        found: usize,
        /// Needed ones.
        threshold: usize,
    },
    /// Not the file another one vouches for.
    #[error("is not the file {by} vouches for: {what} differs")]
    Pin {
        /// The file that names it.
        by: String,
        /// Version, length or hash.
        what: &'static str,
    },
    /// Too old by its own word.
    #[error("expired at {0}")]
    Expired(Timestamp),
}

/// An envelope without signatures.
pub(crate) fn unsigned<T: Serialize>(role: &T) -> Signed<Value> {
    let signed = serde_json::to_value(role).expect("metadata is plain JSON");
    Signed { signatures: Vec::new(), signed }
}

/// Adds the signatures of `keys`; a key that signed before signs anew in its place.
pub(crate) fn add_signatures(file: &mut Signed<Value>, keys: &[SigningKey]) {
    let message = canonical(&file.signed);
    for key in keys {
        file.signatures.retain(|signature| signature.keyid != key.id());
        let sig = hex::encode(key.sign(&message));
        file.signatures.push(Signature { keyid: key.id().to_owned(), sig });
    }
}

/// The keys of `keys` whose signature on the file is right, each once however often it signed.
pub(crate) fn signers(file: &Signed<Value>, keys: &BTreeMap<String, Key>) -> BTreeSet<String> {
    let message = canonical(&file.signed);
    let good = file.signatures.iter().filter(|signature| {
        let key = keys.get(&signature.keyid).and_then(|key| hex::decode(&key.keyval.public).ok());
        let (Some(key), Ok(sig)) = (key, hex::decode(&signature.sig)) else { return false };
        UnparsedPublicKey::new(&ED25519, key).verify(&message, &sig).is_ok()
    });
    good.map(|signature| signature.keyid.clone()).collect()
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Signed<Value>, MetadataError> {
    Ok(serde_json::from_slice(bytes)?)
}

/// The file's bytes.
pub(crate) fn bytes(file: &Signed<Value>) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(file).expect("metadata is plain JSON");
    bytes.push(b'\n');
    bytes
}

/// Parses a file of ours. It must be signed by one of `keys`: what we did not sign we do not build on.
pub(crate) fn open<T: DeserializeOwned>(
    bytes: &[u8],
    role: &str,
    keys: &BTreeMap<String, Key>,
) -> Result<T, MetadataError> {
    let file = parse(bytes)?;
    if signers(&file, keys).is_empty() {
        return Err(MetadataError::NotOurs(role.to_owned()));
    }
    Ok(serde_json::from_value(file.signed)?)
}

/// The id securesystemslib gives the key, so that other tools name it alike.
pub(crate) fn key_id(key: &Key) -> String {
    hex::encode(Sha256::digest(canonical(key)))
}

pub(crate) fn hashes(bytes: &[u8]) -> BTreeMap<String, String> {
    BTreeMap::from([("sha256".to_owned(), hex::encode(Sha256::digest(bytes)))])
}

/// The bytes signatures cover: OLPC canonical JSON.
fn canonical<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let formatter = olpc_cjson::CanonicalFormatter::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    value.serialize(&mut serializer).expect("metadata holds no floats and no odd keys");
    bytes
}

/// TUF times have no fraction: `2026-11-22T10:00:00Z`.
mod whole_seconds {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&time.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
