//! `tractctl rollout …`: who gets what, and when.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::json;
use tractd_registry::{Action, Registry};

use super::Failure;
use super::keys::change;
use super::registry::keys_dir;
use crate::args::{RegistryPlace, RolloutSteer};
use crate::print::{out, render, table};

/// Pauses, resumes, opens the next wave or aborts.
pub(crate) fn steer(args: &RolloutSteer, action: Action) -> Result<(), Failure> {
    change(&args.change, |registry| {
        let entry = registry.steer(&args.group, &args.model, action, SystemTime::now())?;
        let (id, model, version, state) = (&entry.id, &entry.model, entry.version, &entry.state);
        Ok(format!("rollout {id} ({model} {version}) is {state} at {} %", entry.share(Timestamp::now())))
    })
}

/// Shows every group's rollouts, as devices will see them. Needs no passphrase.
pub(crate) fn status(place: &RegistryPlace) -> Result<(), Failure> {
    let registry = Registry::stage(&place.registry, &keys_dir(&place.keys, &place.registry))?;
    let rollouts = registry.rollouts()?;
    if place.json {
        return Ok(out(&json!({ "groups": rollouts }).to_string())?);
    }
    let mut rows = table(&["GROUP", "MODEL", "VERSION", "STATE", "SHARE", "NEXT", "WINDOW", "ROLLOUT"]);
    for rollout in rollouts {
        for entry in rollout.entries {
            let now = Timestamp::now();
            let share = format!("{} %", entry.share(now));
            let next = entry.next_wave(now).map_or_else(String::new, |wave| match wave.from {
                Some(from) if wave.pct <= entry.pct => format!("{} % at {from}", wave.pct),
                _ => format!("{} %", wave.pct),
            });
            let window = entry.window.as_ref().map_or_else(String::new, |window| format!("{window} UTC"));
            let version = entry.version.to_string();
            let (state, id) = (&entry.state, &entry.id);
            rows.add_row([&rollout.group, &entry.model, &version, state, &share, &next, &window, id]);
        }
    }
    Ok(out(&render(rows, &[2, 4]))?)
}
