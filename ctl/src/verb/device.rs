//! `tractctl device provision`, `show` and `reset`.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context, anyhow};
use serde_json::json;
use tractd_update::{Device, Provisioned};
use url::Url;

use super::Failure;
use crate::args::{DeviceProvision, DeviceReset, DeviceShow};
use crate::at::default_state_dir;
use crate::print::{out, render, table};

/// Pins a root of trust, a registry and a name into a device's state folder.
pub(crate) fn provision(args: &DeviceProvision) -> Result<(), Failure> {
    let state = args.state.state.clone().unwrap_or_else(default_state_dir);
    let node = match &args.node {
        Some(node) => node.clone(),
        None => tractd_update::node_id().context("give the device a name with --node")?,
    };
    tractd_wire::Name::parse(&node).map_err(|error| Failure::Usage(format!("--node {node:?}: {error}")))?;
    tractd_wire::Name::parse(&args.group)
        .map_err(|error| Failure::Usage(format!("--group {:?}: {error}", args.group)))?;
    let root_json =
        std::fs::read(&args.root).with_context(|| format!("cannot read the root {}", args.root.display()))?;
    let what =
        Provisioned { root_json, registry: registry_url(&args.registry)?, node, group: args.group.clone() };
    tractd_update::provision(&state, &what)?;
    hand_over(&state)
        .with_context(|| format!("giving the files in {} to the folder's owner", state.display()))?;
    let line = if args.json {
        json!({
            "state": state, "registry": what.registry.as_str(), "node": what.node, "group": what.group,
        })
        .to_string()
    } else {
        format!(
            "{} of group {} now takes models from {} (state: {}); restart tractd to begin",
            what.node,
            what.group,
            what.registry,
            state.display()
        )
    };
    Ok(out(&line)?)
}

/// Root provisions for a service that runs as a user of its own: what was written belongs to whom the folder belongs.
fn hand_over(state: &Path) -> std::io::Result<()> {
    let folder = std::fs::metadata(state)?;
    for name in ["root.json", "device.toml"] {
        let path = state.join(name);
        let file = std::fs::metadata(&path)?;
        if (file.uid(), file.gid()) != (folder.uid(), folder.gid()) {
            chown(&path, Some(folder.uid()), Some(folder.gid()))?;
        }
    }
    Ok(())
}

/// Shows what a device was provisioned with.
pub(crate) fn show(args: &DeviceShow) -> Result<(), Failure> {
    let state = args.state.state.clone().unwrap_or_else(default_state_dir);
    let device = Device::open(&state)?.ok_or_else(|| {
        anyhow!("{} is not provisioned; `tractctl device provision` does that", state.display())
    })?;
    let fields = [
        ("node", device.node.as_str()),
        ("group", device.group.as_str()),
        ("registry", device.registry.as_str()),
    ];
    if args.json {
        let mut line = json!({ "state": state });
        for (name, value) in fields {
            line[name] = value.into();
        }
        line["moved"] = device.is_moved.into();
        return Ok(out(&line.to_string())?);
    }
    let mut rows = table(&[]);
    rows.add_row(["state", &state.display().to_string()]);
    for (name, value) in fields {
        rows.add_row([name, value]);
    }
    if device.is_moved {
        rows.add_row(["machine", "another one than it was provisioned on: a cloned card? Provision it anew"]);
    }
    Ok(out(&render(rows, &[]))?)
}

/// Makes a device an unprovisioned one. The daemon takes it up when it starts next.
pub(crate) fn reset(args: &DeviceReset) -> Result<(), Failure> {
    let state = args.state.state.clone().unwrap_or_else(default_state_dir);
    let was = Device::open(&state).ok().flatten().map(|device| device.node);
    tractd_update::reset(&state)?;
    if args.json {
        return Ok(out(&json!({ "state": state, "was": was }).to_string())?);
    }
    let line = match was {
        Some(node) => format!("{node} is no longer provisioned (state: {}); restart tractd", state.display()),
        None => format!("{} was not provisioned", state.display()),
    };
    Ok(out(&line)?)
}

/// An address, or the path of a folder on this machine.
fn registry_url(text: &str) -> Result<Url, Failure> {
    if text.contains("://") {
        return Url::parse(text).map_err(|error| Failure::Usage(format!("--registry {text:?}: {error}")));
    }
    let path = std::fs::canonicalize(Path::new(text))
        .with_context(|| format!("--registry {text} is neither an address nor a folder here"))?;
    Url::from_directory_path(&path).map_err(|()| anyhow!("{} has no file:// address", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_an_address_or_a_folder() {
        assert_eq!(registry_url("http://r:8080").unwrap().as_str(), "http://r:8080/");
        let dir = tempfile::tempdir().unwrap();
        let url = registry_url(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(url.scheme(), "file");
        let Failure::Error(error) = registry_url("no-such-folder").unwrap_err() else { panic!("usage") };
        let text = format!("{error:#}");
        assert!(
            text.starts_with("--registry no-such-folder is neither an address nor a folder here"),
            "{text}"
        );
    }
}
