//! The two documents a device acts on: the rollout file (who gets what) and the team's word about an artifact.
//! Both are contracts with the publisher; their golden shapes are in `tests/golden/`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes of a rollout file: a thousand entries of a full kilobyte.
pub const ROLLOUT_LEN_MAX: u64 = 1 << 20;
/// Entries of a rollout file: more models than a device has room for.
pub const ENTRIES_MAX: usize = 1024;
/// Longest name of a model, in bytes.
pub const NAME_LEN_MAX: usize = 63;
/// Longest target path, in bytes.
const TARGET_LEN_MAX: usize = 512;

/// `rollout/<group>.json`, signed by the rollout role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// 1.
    pub schema: u32,
    /// The group it is for; a device checks it against its own.
    pub group: String,
    /// At most one entry a model.
    pub entries: Vec<Entry>,
}

/// One model's rollout in one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Names this rollout; refusals, attempts and buckets hang on it.
    pub id: String,
    /// The model.
    pub model: String,
    /// Path of the artifact, `models/<team>/<model>/<file>`.
    pub target: String,
    /// Digest of the bundle, 64 hex digits.
    pub digest: String,
    /// Version of the bundle.
    pub version: u64,
    /// Whether to install.
    pub state: EntryState,
    /// Share of the group's devices, in percent, 0 to 100; with waves by the clock, the most they reach.
    pub pct: u8,
    /// The shares in which it grows: `{"pct": 5}`, or with the time of its beginning, `{"pct": 5, "from":
    /// "2026-12-01T06:00:00Z"}`. `pct` is how far they may go. A device that cannot read them does not install.
    #[serde(default)]
    pub waves: Vec<Value>,
    /// Maintenance window in UTC, as in `"22:00-04:00"`. A device that cannot read it does not install.
    #[serde(default)]
    pub window: Option<Value>,
    /// Seconds a trial must stay healthy. Read by trials, not by installing.
    #[serde(default)]
    pub healthy_secs: u64,
    /// Reserved: when the publisher's controller gives up. Devices ignore it.
    #[serde(default)]
    pub abort: Value,
    /// A lower version this rollout may install; must equal `version` to count.
    #[serde(default)]
    pub rollback_to: Option<u64>,
}

/// Whether a rollout installs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryState {
    /// Devices install.
    Active,
    /// Devices wait.
    Paused,
    /// Nobody installs any more.
    Aborted,
    /// A state of a later schema: wait.
    #[serde(other)]
    Unknown,
}

/// The `custom` field of a model target, signed by its team.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Custom {
    /// 1.
    pub schema: u32,
    /// The model.
    pub model: String,
    /// Its version.
    pub version: u64,
    /// Once a team says this, its devices go below it for nobody's rollout.
    pub min_version: u64,
    /// Lowest tractd that can run it, `major.minor.patch`.
    #[serde(default)]
    pub min_runtime: Option<String>,
    /// Architectures as Rust names them (`x86_64`, `aarch64`, `arm`); none means any.
    #[serde(default)]
    pub arch: Vec<String>,
    /// Digest of the unpacked bundle, 64 hex digits.
    pub digest: String,
    /// Memory the publisher measured, in bytes.
    #[serde(default)]
    pub peak_ram_bytes: Option<u64>,
    /// Bytes on the device's disk once unpacked.
    #[serde(default)]
    pub unpacked_bytes: Option<u64>,
    /// Reserved for deltas.
    #[serde(default)]
    pub deltas: Vec<Value>,
}

/// Why a signed document cannot be acted on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Not the JSON it should be.
    #[error("does not parse: {0}")]
    Parse(String),
    /// Made for a newer device.
    #[error("schema {0} is newer than this daemon")]
    Schema(u32),
    /// More entries than [`ENTRIES_MAX`].
    #[error("{0} entries, at most {ENTRIES_MAX} allowed")]
    TooMany(usize),
    /// A value that must not be.
    #[error("{field} is not valid: {value:?}")]
    Field {
        /// Which.
        field: &'static str,
        /// What stood there.
        value: String,
    },
    /// Two entries for one model: nobody could say which is meant.
    #[error("two entries for model {0:?}")]
    Twice(String),
}

impl Rollout {
    /// Parses and checks a verified rollout file for `group`.
    ///
    /// # Errors
    /// See [`DocumentError`].
    pub fn parse(bytes: &[u8], group: &str) -> Result<Self, DocumentError> {
        let rollout: Self = parse(bytes)?;
        check_schema(rollout.schema)?;
        check("group", &rollout.group, rollout.group == group)?;
        if rollout.entries.len() > ENTRIES_MAX {
            return Err(DocumentError::TooMany(rollout.entries.len()));
        }
        let mut models = std::collections::BTreeSet::new();
        for entry in &rollout.entries {
            entry.check()?;
            if !models.insert(&entry.model) {
                return Err(DocumentError::Twice(entry.model.clone()));
            }
        }
        Ok(rollout)
    }
}

impl Entry {
    fn check(&self) -> Result<(), DocumentError> {
        check("id", &self.id, !self.id.is_empty() && self.id.len() <= 128)?;
        check("model", &self.model, is_model_name(&self.model))?;
        check("digest", &self.digest, is_digest(&self.digest))?;
        check("version", &self.version.to_string(), self.version > 0)?;
        check("pct", &self.pct.to_string(), self.pct <= 100)?;
        let target = Target::parse(&self.target)?;
        check("target", &self.target, target.model == self.model)
    }
}

impl Custom {
    /// Parses and checks what a team signed about a target.
    ///
    /// # Errors
    /// See [`DocumentError`].
    pub fn parse(value: &Value) -> Result<Self, DocumentError> {
        let custom: Self =
            serde_json::from_value(value.clone()).map_err(|e| DocumentError::Parse(e.to_string()))?;
        check_schema(custom.schema)?;
        check("model", &custom.model, is_model_name(&custom.model))?;
        check("digest", &custom.digest, is_digest(&custom.digest))?;
        check("version", &custom.version.to_string(), custom.version > 0)?;
        Ok(custom)
    }
}

/// A target path taken apart: `models/<team>/<model>/<file>`, every segment harmless as a file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The team whose role signs it.
    pub team: &'a str,
    /// The model.
    pub model: &'a str,
    /// The packed bundle's file name.
    pub file: &'a str,
}

impl<'a> Target<'a> {
    /// # Errors
    /// [`DocumentError::Field`] for anything else: `..`, absolute, NUL, unicode, another depth.
    pub fn parse(path: &'a str) -> Result<Self, DocumentError> {
        let refused = || DocumentError::Field { field: "target", value: path.to_owned() };
        if path.len() > TARGET_LEN_MAX {
            return Err(refused());
        }
        let mut segments = path.split('/');
        let parts = (segments.next(), segments.next(), segments.next(), segments.next(), segments.next());
        match parts {
            (Some("models"), Some(team), Some(model), Some(file), None)
                if is_segment(team) && is_model_name(model) && is_segment(file) =>
            {
                Ok(Self { team, model, file })
            }
            _ => Err(refused()),
        }
    }
}

/// `[a-z0-9][a-z0-9_-]*`, at most [`NAME_LEN_MAX`] bytes.
fn is_model_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    first
        && name.len() <= NAME_LEN_MAX
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

fn is_segment(segment: &str) -> bool {
    !segment.is_empty()
        && !segment.starts_with('.')
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes).map_err(|e| DocumentError::Parse(e.to_string()))
}

fn check_schema(schema: u32) -> Result<(), DocumentError> {
    if schema == 1 { Ok(()) } else { Err(DocumentError::Schema(schema)) }
}

fn check(field: &'static str, value: &str, ok: bool) -> Result<(), DocumentError> {
    if ok { Ok(()) } else { Err(DocumentError::Field { field, value: value.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../tests/golden/rollout-1.json");

    #[test]
    fn the_golden_rollouts_read_and_write_the_same() {
        let rollout = Rollout::parse(GOLDEN.as_bytes(), "lab").unwrap();
        assert_eq!(rollout.entries[0].state, EntryState::Active);
        assert_eq!(rollout.entries[0].healthy_secs, 60);
        let written = serde_json::to_value(&rollout).unwrap();
        assert_eq!(written, serde_json::from_str::<Value>(GOLDEN).unwrap());
        let waves = include_str!("../tests/golden/rollout-1-waves.json");
        let written = serde_json::to_value(Rollout::parse(waves.as_bytes(), "lab").unwrap()).unwrap();
        assert_eq!(written, serde_json::from_str::<Value>(waves).unwrap());
    }

    #[test]
    fn the_golden_custom_reads_and_writes_the_same() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/custom-1.json")).unwrap();
        let custom = Custom::parse(&golden).unwrap();
        assert_eq!(custom.min_version, 2);
        assert_eq!(serde_json::to_value(&custom).unwrap(), golden);
    }

    #[test]
    fn another_groups_file_is_refused() {
        let refused = Rollout::parse(GOLDEN.as_bytes(), "factory").unwrap_err();
        assert_eq!(refused, DocumentError::Field { field: "group", value: "lab".into() });
    }

    #[test]
    fn an_unknown_state_is_not_taken_for_active() {
        let rollout = Rollout::parse(GOLDEN.replace("\"active\"", "\"trial\"").as_bytes(), "lab").unwrap();
        assert_eq!(rollout.entries[0].state, EntryState::Unknown);
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for path in [
            "../models/a/digits/x",
            "models/../digits/x",
            "models/a/digits/..",
            "models/a/digits/../../x",
            "/models/a/digits/x",
            "models/a/digits/x/y",
            "models/a/digits",
            "models//digits/x",
            "models/a/digits/x\0",
            "models/a/digits/ｘ",
            "models/a/digits/a b",
            "models/a/digits/%2e%2e",
            "models\\a\\digits\\x",
        ] {
            assert!(Target::parse(path).is_err(), "{path:?}");
            let text = GOLDEN.replace(
                "models/vision/digits/digits-3.tractd.tar.zst",
                &path.escape_default().to_string().replace("\\u{0}", "\\u0000").replace("\\u{ff58}", "x/.."),
            );
            assert!(Rollout::parse(text.as_bytes(), "lab").is_err(), "{path:?}");
        }
        let target = Target::parse("models/vision/digits/digits-3.tractd.tar.zst").unwrap();
        assert_eq!((target.team, target.model, target.file), ("vision", "digits", "digits-3.tractd.tar.zst"));
    }

    #[test]
    fn two_entries_for_a_model_are_refused() {
        let mut value: Value = serde_json::from_str(GOLDEN).unwrap();
        let entry = value["entries"][0].clone();
        value["entries"].as_array_mut().unwrap().push(entry);
        let refused = Rollout::parse(value.to_string().as_bytes(), "lab").unwrap_err();
        assert_eq!(refused, DocumentError::Twice("digits".into()));
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let text = format!("{{\"schema\":1,\"abort\":{}", "[".repeat(100_000));
        assert!(matches!(Rollout::parse(text.as_bytes(), "lab"), Err(DocumentError::Parse(_))));
    }
}
