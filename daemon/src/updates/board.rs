//! What the update thread lets others see.

use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};
use tractd_update::Outcome;

/// What a check came to, as JSON tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// Whether the registry was asked and believed.
    pub(crate) ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Models activated, `name@version`.
    pub(crate) activated: Vec<String>,
    /// Versions refused for good, failed this time, or waiting for their turn.
    pub(crate) refused: Vec<Trouble>,
    pub(crate) failed: Vec<Trouble>,
    pub(crate) waiting: Vec<Trouble>,
    /// Whether the registry has no rollout for this device's group.
    pub(crate) no_rollout: bool,
    /// Whether the clock is behind what is known.
    pub(crate) clock_untrusted: bool,
}

/// A version and what is the matter with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Trouble {
    pub(crate) model: String,
    pub(crate) version: u64,
    pub(crate) reason: String,
}

/// What the status tells of updates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct UpdateStatus {
    pub(crate) provisioned: bool,
    pub(crate) enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) registry: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// What goes on now: `idle`, `checking`, `downloading`, `self-testing`.
    pub(crate) phase: &'static str,
    /// Of the present download.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) progress: Option<Progress>,
    /// End of the last check, in milliseconds of Unix time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_check_unix_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<Report>,
    /// What will hurt later: an expiry that is near, a clock behind what is known, a state moved here from another
    /// machine.
    pub(crate) warnings: Vec<String>,
    /// How far each model's latest version is, by model.
    pub(crate) models: BTreeMap<String, ModelUpdate>,
    /// Why the store or the device's identity cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// How far a version is on this device; also published over MQTT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ModelUpdate {
    pub(crate) version: u64,
    /// `waiting`, `found`, `downloading`, `self-testing`, `trial`, `committed`, `refused`, `failed` (to be tried
    /// again) or `rolled-back`.
    pub(crate) state: &'static str,
    /// Of a trial: `shadow`, `canary` or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stage: Option<&'static str>,
    /// Why it goes no further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// A download under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Progress {
    pub(crate) model: String,
    pub(crate) version: u64,
    pub(crate) bytes: u64,
    pub(crate) total_bytes: u64,
}

/// What the thread lets others see.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Written by the update thread, read for a status.
    status: Mutex<UpdateStatus>,
}

impl Board {
    pub(crate) fn status(&self) -> MutexGuard<'_, UpdateStatus> {
        self.status.lock().expect("nothing panics while writing the board")
    }
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Report {
        let refusals = |refused: Vec<tractd_update::Refused>| {
            let trouble =
                |r: tractd_update::Refused| Trouble { model: r.model, version: r.version, reason: r.reason };
            refused.into_iter().map(trouble).collect()
        };
        let activated =
            outcome.activated.iter().map(|model| format!("{}@{}", model.name, model.version)).collect();
        let failed =
            |f: tractd_update::Failure| Trouble { model: f.model, version: f.version, reason: f.reason };
        Report {
            ok: true,
            error: None,
            activated,
            refused: refusals(outcome.refused),
            failed: outcome.failed.into_iter().map(failed).collect(),
            waiting: refusals(outcome.waiting),
            no_rollout: outcome.no_rollout,
            clock_untrusted: outcome.clock_untrusted,
        }
    }
}
