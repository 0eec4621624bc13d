//! `tractctl rollout …`: who gets what, and when.

use std::time::SystemTime;

use serde_json::json;
use tractd_registry::{Action, Registry};

use super::Failure;
use super::keys::change;
use super::registry::keys_dir;
use crate::args::{RegistryPlace, RolloutSteer};
use crate::print::{out, render, table};

/// Pauses, resumes or aborts.
pub(crate) fn steer(args: &RolloutSteer, action: Action) -> Result<(), Failure> {
    change(&args.change, |registry| {
        let entry = registry.steer(&args.group, &args.model, action, SystemTime::now())?;
        Ok(format!("rollout {} ({} {}) is {}", entry.id, entry.model, entry.version, entry.state))
    })
}

/// Shows every group's rollouts, as devices will see them. Needs no passphrase.
pub(crate) fn status(place: &RegistryPlace) -> Result<(), Failure> {
    let registry = Registry::stage(&place.registry, &keys_dir(&place.keys, &place.registry))?;
    let rollouts = registry.rollouts()?;
    if place.json {
        return Ok(out(&json!({ "groups": rollouts }).to_string())?);
    }
    let mut rows = table(&["GROUP", "MODEL", "VERSION", "STATE", "SHARE", "ROLLOUT"]);
    for rollout in rollouts {
        for entry in rollout.entries {
            let (version, share) = (entry.version.to_string(), format!("{} %", entry.pct));
            rows.add_row([&rollout.group, &entry.model, &version, &entry.state, &share, &entry.id]);
        }
    }
    Ok(out(&render(rows, &[2, 4]))?)
}
