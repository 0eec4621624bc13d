//! `tractctl registry key …` and the verbs that change or use keys.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow};
use serde_json::json;
use tractd_registry::{Delegate, KeyFolder, KeyInfo, Rotate};

use super::Failure;
use super::registry::{keys_dir, open_to, tell_staged};
use crate::args::{
    Change, Keys, RegistryDelegate, RegistryKeyNew, RegistryPlace, RegistryRevoke, RegistryRotate,
    RegistrySign,
};
use crate::passphrase::{Purpose, passphrase};
use crate::print::{out, render, table};
use crate::progress;

/// Makes a key, and its public half beside it.
pub(crate) fn new(args: &RegistryKeyNew) -> Result<(), Failure> {
    let dir = folder(&args.keys)?;
    let there = dir.join("index.json").exists();
    let purpose = if there { Purpose::Open } else { Purpose::Make };
    let secret = passphrase(args.keys.passphrase_file.as_deref(), purpose)?;
    let mut folder =
        if there { KeyFolder::open(&dir, secret)? } else { KeyFolder::create(&dir, secret, None)? };
    folder.set_work_factor(args.work_factor);
    let spinner = progress::spinner("making a key");
    let key = folder.generate(&args.name, &args.role)?;
    spinner.finish_and_clear();
    let public = dir.join(format!("{}.pub.json", key.name));
    std::fs::write(&public, format!("{:#}\n", serde_json::to_value(&key)?))
        .with_context(|| format!("cannot write {}", public.display()))?;
    Ok(out(&format!("{} signs {}; its public half is {}", key.name, key.role, public.display()))?)
}

/// Lists the public halves.
pub(crate) fn list(place: &RegistryPlace) -> Result<(), Failure> {
    let folder = KeyFolder::public_only(&keys_dir(&place.keys, &place.registry))?;
    if place.json {
        return Ok(out(&json!({ "keys": folder.list() }).to_string())?);
    }
    let mut rows = table(&["KEY", "ROLE", "ID"]);
    for key in folder.list() {
        rows.add_row([&key.name, &key.role, &key.id]);
    }
    Ok(out(&render(rows, &[]))?)
}

/// Lets a team sign models.
pub(crate) fn delegate(args: &RegistryDelegate) -> Result<(), Failure> {
    let keys = args.key.iter().map(|path| public(path)).collect::<Result<_, _>>()?;
    let what = Delegate { team: args.team.clone(), keys, threshold: args.threshold };
    change(&args.change, |registry| {
        registry.delegate(&what, SystemTime::now())?;
        Ok(format!("team {} may sign models below models/{0}/", what.team))
    })
}

/// Gives a role other keys.
pub(crate) fn rotate(args: &RegistryRotate) -> Result<(), Failure> {
    let what = Rotate {
        role: args.role.clone(),
        remove: (!args.remove.is_empty()).then(|| args.remove.clone()),
        add: args.key.iter().map(|path| public(path)).collect::<Result<_, _>>()?,
        threshold: args.threshold,
    };
    change(&args.change, |registry| {
        let added = registry.rotate(&what, SystemTime::now())?;
        let names: Vec<_> = added.iter().map(|key| key.name.as_str()).collect();
        Ok(format!("{} gets {}", what.role, names.join(", ")))
    })
}

/// Takes a key away from its role.
pub(crate) fn revoke(args: &RegistryRevoke) -> Result<(), Failure> {
    change(&args.change, |registry| {
        registry.revoke(&args.key, SystemTime::now())?;
        Ok(format!("{} signs nothing any more", args.key))
    })
}

/// Shows staged files, and signs them with the keys of a folder.
pub(crate) fn sign(args: &RegistrySign) -> Result<(), Failure> {
    let mut folder = None;
    for path in &args.files {
        for line in tractd_registry::show(path)?.lines {
            out(&line)?;
        }
        if args.show {
            continue;
        }
        let folder = match &mut folder {
            Some(folder) => folder,
            none => {
                let secret = passphrase(args.keys.passphrase_file.as_deref(), Purpose::Open)?;
                none.insert(KeyFolder::open(&self::folder(&args.keys)?, secret)?)
            }
        };
        let signed = tractd_registry::sign(path, folder)?;
        if signed.signers.is_empty() {
            return Err(anyhow!("no key here signs {}; {} is as it was", signed.role, path.display()).into());
        }
        out(&format!("{} signed by {}", path.display(), signed.signers.join(", ")))?;
    }
    Ok(())
}

/// Opens the registry as asked, changes it, and tells what waits for signatures.
pub(crate) fn change(
    to: &Change,
    what: impl FnOnce(&mut tractd_registry::Registry) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let mut registry = open_to(&to.place.registry, &to.place.keys, to.stage)?;
    let spinner = progress::spinner("signing");
    let line = what(&mut registry)?;
    spinner.finish_and_clear();
    let line = if to.place.json { json!({ "done": line }).to_string() } else { line };
    out(&line)?;
    tell_staged(&registry)
}

/// Beside no registry a key folder must be named.
fn folder(keys: &Keys) -> Result<PathBuf, Failure> {
    keys.keys.clone().ok_or_else(|| Failure::Usage("name the key folder with --keys DIR".into()))
}

fn public(path: &Path) -> Result<KeyInfo, Failure> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = serde_json::from_slice(&text);
    Ok(key.with_context(|| format!("{} is no public key of `registry key new`", path.display()))?)
}
