//! TUF metadata as this registry writes it, and its signatures (TUF 1.0, ed25519).

use std::collections::BTreeMap;

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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RoleKeys {
    pub(crate) keyids: Vec<String>,
    pub(crate) threshold: usize,
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

/// Why a metadata file of our own is not taken up again.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Not the JSON it should be.
    #[error("does not parse: {0}")]
    Parse(#[from] serde_json::Error),
    /// Not signed by the key this publisher has for the role: somebody else wrote it.
    #[error("is not signed by this publisher's {0} key")]
    NotOurs(String),
}

/// Signs `role` with every key of `keys` and gives the file's bytes.
pub(crate) fn sign<T: Serialize>(role: &T, keys: &[SigningKey]) -> Vec<u8> {
    let message = canonical(role);
    let signatures = keys
        .iter()
        .map(|key| Signature { keyid: key.id().to_owned(), sig: hex::encode(key.sign(&message)) })
        .collect();
    let mut bytes =
        serde_json::to_vec_pretty(&Signed { signatures, signed: role }).expect("metadata is plain JSON");
    bytes.push(b'\n');
    bytes
}

/// Parses a file of ours. It must be signed by one of `keys`: what we did not sign we do not build on.
pub(crate) fn open<T: DeserializeOwned>(
    bytes: &[u8],
    role: &str,
    keys: &BTreeMap<String, Key>,
) -> Result<T, MetadataError> {
    let signed: Signed<Value> = serde_json::from_slice(bytes)?;
    let message = canonical(&signed.signed);
    let good = signed.signatures.iter().any(|signature| {
        let key = keys.get(&signature.keyid).and_then(|key| hex::decode(&key.keyval.public).ok());
        let (Some(key), Ok(sig)) = (key, hex::decode(&signature.sig)) else { return false };
        UnparsedPublicKey::new(&ED25519, key).verify(&message, &sig).is_ok()
    });
    if !good {
        return Err(MetadataError::NotOurs(role.to_owned()));
    }
    Ok(serde_json::from_value(signed.signed)?)
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
