//! What devices act on: the rollout file and the team's word about an artifact. Devices have their own reader;
//! the golden files both sides are tested with hold them together.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `rollout/<group>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// 1.
    pub schema: u32,
    /// Which devices it is for.
    pub group: String,
    /// At most one entry a model, sorted by model.
    pub entries: Vec<Entry>,
}

/// One model's rollout in one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Names this rollout; a device's bucket, attempts and refusals hang on it.
    pub id: String,
    /// The model.
    pub model: String,
    /// Path of the artifact.
    pub target: String,
    /// Digest of the bundle, 64 hex digits.
    pub digest: String,
    /// Version of the bundle.
    pub version: u64,
    /// `active`, `paused` or `aborted`.
    pub state: String,
    /// Share of the group's devices, in percent; with waves by the clock, the most they reach.
    pub pct: u8,
    /// The shares in which it grows; none for all of `pct` at once.
    pub waves: Vec<Wave>,
    /// Maintenance window in UTC, as in `"22:00-04:00"`.
    pub window: Option<String>,
    /// Seconds a trial must stay healthy.
    pub healthy_secs: u64,
    /// Reserved for a controller's abort rules.
    pub abort: Value,
    /// Set to `version` when it is lower than what devices run.
    pub rollback_to: Option<u64>,
}

/// One step of a rollout. Shares grow from wave to wave; all of a rollout's have a time, or none has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    /// Share of the group's devices, in percent.
    pub pct: u8,
    /// When it begins; without, when the entry's `pct` lets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
}

/// The `custom` field of a model target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Custom {
    /// 1.
    pub schema: u32,
    /// The model.
    pub model: String,
    /// Its version.
    pub version: u64,
    /// Devices never go below it again.
    pub min_version: u64,
    /// Lowest tractd that can run it.
    pub min_runtime: Option<String>,
    /// Architectures, none for any.
    pub arch: Vec<String>,
    /// Digest of the unpacked bundle, 64 hex digits.
    pub digest: String,
    /// Memory the publisher measured, in bytes.
    pub peak_ram_bytes: Option<u64>,
    /// Bytes on a device's disk once unpacked.
    pub unpacked_bytes: Option<u64>,
    /// Reserved for deltas.
    pub deltas: Vec<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_documents_read_and_write_the_same() {
        for golden in [
            include_str!("../tests/golden/rollout-1.json"),
            include_str!("../tests/golden/rollout-1-waves.json"),
        ] {
            let rollout: Value = serde_json::from_str(golden).unwrap();
            let parsed: Rollout = serde_json::from_value(rollout.clone()).unwrap();
            assert_eq!(serde_json::to_value(parsed).unwrap(), rollout);
        }
        let custom: Value = serde_json::from_str(include_str!("../tests/golden/custom-1.json")).unwrap();
        let parsed: Custom = serde_json::from_value(custom.clone()).unwrap();
        assert_eq!(serde_json::to_value(parsed).unwrap(), custom);
    }

    /// Both rooms hold the same golden files.
    #[test]
    fn the_devices_golden_documents_are_ours() {
        let device = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../update/tests/golden");
        for name in ["rollout-1.json", "rollout-1-waves.json", "custom-1.json"] {
            let ours = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
            assert_eq!(std::fs::read(ours).unwrap(), std::fs::read(device.join(name)).unwrap(), "{name}");
        }
    }
}
