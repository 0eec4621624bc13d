//! `tractctl registry …`: the publisher's verbs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use serde_json::json;
use tractd_registry::{Options, Publish, Registry, Server, Share};
use tractd_wire::{Pin, Selector};

use super::Failure;
use crate::args::{
    Keys, RegistryAdd, RegistryInit, RegistryPublish, RegistryRefresh, RegistryServe, RegistryStatus,
    RegistryVerify,
};
use crate::passphrase::{Purpose, passphrase};
use crate::print::{bytes, out, render, short_digest, table};
use crate::progress;

const DAY: Duration = Duration::from_secs(86_400);

/// Makes an empty registry and its signing keys.
pub(crate) fn init(args: &RegistryInit) -> Result<(), Failure> {
    let keys = keys_dir(&args.keys, &args.dir);
    if args.dir.join("metadata").exists() {
        // Before asking for a passphrase.
        return Err(anyhow!("{} holds a registry already", args.dir.display()).into());
    }
    let secret = passphrase(args.keys.passphrase_file.as_deref(), Purpose::Make)?;
    let options =
        Options { root_keys: args.root_keys, root_threshold: args.threshold, work_factor: args.work_factor };
    let now = SystemTime::now();
    let spinner = progress::spinner("making keys");
    let mut registry = Registry::init(&args.dir, &keys, secret, &options, now)?;
    registry.set_work_factor(args.work_factor);
    for team in &args.team {
        spinner.set_message(format!("making the key of team {team}"));
        registry.add_team(team, now)?;
    }
    spinner.finish_and_clear();
    let root = args.dir.join("metadata/1.root.json");
    if args.json {
        let line = json!({
            "registry": args.dir, "keys": keys, "root": root, "teams": registry.teams()?,
            "root_keys": options.root_keys, "root_threshold": options.root_threshold,
        });
        return Ok(out(&line.to_string())?);
    }
    out(&format!(
        "registry {dir} for {teams}; pin {root} on devices\n\
         keys in {keys}: keep root-1 to root-{n} offline and apart ({threshold} of {n} replace every other key);\n\
         timestamp, snapshot and rollout are needed to publish",
        dir = args.dir.display(),
        teams = args.team.join(", "),
        root = root.display(),
        keys = keys.display(),
        n = options.root_keys,
        threshold = options.root_threshold,
    ))?;
    Ok(())
}

/// Signs a bundle into the registry.
pub(crate) fn add(args: &RegistryAdd) -> Result<(), Failure> {
    if !args.bundle.is_file() {
        return Err(anyhow!("{} is no file; `tractctl pack DIR` makes one", args.bundle.display()).into());
    }
    let mut registry = open_to(&args.registry, &args.keys, args.stage)?;
    let spinner = progress::spinner("checking and signing");
    let added = registry.add(&args.bundle, &args.team, args.min_version, SystemTime::now())?;
    spinner.finish_and_clear();
    let line = if args.json {
        json!({
            "model": added.model, "version": added.version, "digest": format!("sha256:{}", added.digest),
            "target": added.target, "bytes": added.bytes, "new": added.new,
        })
        .to_string()
    } else if added.new {
        format!(
            "{} {} {} team {} ({}, digest {}); `tractctl rollout start {0}@{1}` gives it to devices",
            added.model,
            added.version,
            if args.stage { "staged for" } else { "signed by" },
            args.team,
            bytes(added.bytes),
            short_digest(&added.digest)
        )
    } else {
        format!("{} {} was signed before, with this very content", added.model, added.version)
    };
    out(&line)?;
    tell_staged(&registry)
}

/// Tells a group of devices which version to run.
pub(crate) fn publish(args: &RegistryPublish) -> Result<(), Failure> {
    let usage = || Failure::Usage(format!("{:?} is no MODEL@VERSION, as in digits@2", args.model));
    let selector = Selector::parse(&args.model).map_err(|_| usage())?;
    let Pin::Version(version) = selector.pin else { return Err(usage()) };
    let model = selector.name.as_str();
    let share = if args.waves.is_empty() {
        Share::Percent(args.percent)
    } else {
        Share::Waves { pcts: args.waves.clone(), every: args.every }
    };
    let what = Publish {
        share,
        window: args.window.clone(),
        healthy_secs: args.healthy_secs,
        rollback: args.rollback,
        restart: args.again,
        ..Publish::new(model, version, &args.group)
    };
    let mut registry = open_to(&args.registry, &args.keys, args.stage)?;
    let spinner = progress::spinner("signing");
    let published = registry.publish(&what, SystemTime::now())?;
    spinner.finish_and_clear();
    let line = if args.json {
        json!({
            "id": published.id, "model": model, "version": version, "group": args.group,
            "percent": published.pct, "waves": published.waves, "target": published.target,
            "digest": format!("sha256:{}", published.digest), "rollout_version": published.rollout_version,
        })
        .to_string()
    } else {
        let (first, to_come) = match (&args.waves[..], args.every) {
            ([], _) => (args.percent, String::new()),
            ([first, ..], None) => (
                *first,
                format!("; `tractctl rollout next {model} --group {}` opens the next wave", args.group),
            ),
            ([first, ..], Some(_)) => (*first, "; the other waves begin by themselves".to_owned()),
        };
        format!(
            "{model} {version} goes to {first} % of group {} (rollout {}){to_come}",
            args.group, published.id
        )
    };
    out(&line)?;
    tell_staged(&registry)
}

/// Signs anew what would expire.
pub(crate) fn refresh(args: &RegistryRefresh) -> Result<(), Failure> {
    let mut registry = open(&args.registry, &args.keys)?;
    let spinner = progress::spinner("signing");
    let refreshed = registry.refresh(SystemTime::now())?;
    spinner.finish_and_clear();
    if args.json {
        let line =
            json!({ "accepted": refreshed.accepted, "renewed": refreshed.renewed, "due": refreshed.due });
        out(&line.to_string())?;
    } else {
        if !refreshed.accepted.is_empty() {
            out(&format!("taken in: {}", refreshed.accepted.join(", ")))?;
        }
        out(&format!("signed anew: {}", refreshed.renewed.join(", ")))?;
        if !refreshed.due.is_empty() {
            out(&format!("due, and their keys are not here: {}", refreshed.due.join(", ")))?;
        }
    }
    tell_staged(&registry)
}

/// Walks a registry offline and lists what is wrong with it.
pub(crate) fn verify(args: &RegistryVerify) -> Result<(), Failure> {
    let root = args
        .root
        .as_ref()
        .map(|path| std::fs::read(path).with_context(|| format!("cannot read the root {}", path.display())));
    let root = root.transpose()?;
    let found = tractd_registry::verify(&args.dir, root.as_deref(), SystemTime::now())?;
    if args.json {
        let findings: Vec<_> =
            found.findings.iter().map(|f| json!({ "path": f.path, "what": f.what })).collect();
        let line = json!({ "files": found.files, "target_bytes": found.target_bytes, "findings": findings });
        out(&line.to_string())?;
    } else {
        for finding in &found.findings {
            out(&format!("{}: {}", finding.path.display(), finding.what))?;
        }
        out(&format!("{} files, {} of targets", found.files, bytes(found.target_bytes)))?;
    }
    match found.findings.len() {
        0 => Ok(()),
        count => Err(anyhow!("{count} files are not as they should be").into()),
    }
}

/// Shows every role's version and expiry.
pub(crate) fn status(args: &RegistryStatus) -> Result<(), Failure> {
    let roles = open(&args.registry, &args.keys)?.status()?;
    if args.json {
        let roles: Vec<_> = roles
            .iter()
            .map(|role| json!({ "role": role.role, "version": role.version, "expires_unix_s": role.expires_s }))
            .collect();
        return Ok(out(&json!({ "roles": roles }).to_string())?);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut rows = table(&["ROLE", "VERSION", "EXPIRES"]);
    for role in roles {
        let left = Duration::from_secs(role.expires_s).saturating_sub(now);
        let expires = match (left.is_zero(), left.as_secs() / DAY.as_secs()) {
            (true, _) => "expired; `tractctl registry refresh`".to_owned(),
            (false, 0) => format!("in {} h", left.as_secs() / 3_600),
            (false, days) => format!("in {days} days"),
        };
        rows.add_row([role.role, role.version.to_string(), expires]);
    }
    Ok(out(&render(rows, &[1]))?)
}

/// Serves a registry folder until interrupted.
pub(crate) fn serve(args: &RegistryServe) -> Result<(), Failure> {
    if !args.dir.join("metadata").is_dir() {
        let dir = args.dir.display();
        return Err(anyhow!("{dir} is no registry; `tractctl registry init {dir}` makes one").into());
    }
    let server = Server::start(&args.dir, args.listen).with_context(|| cannot_listen(args.listen))?;
    out(&format!("serving {} at http://{}; Ctrl-C ends it", args.dir.display(), server.addr()))?;
    server.wait();
    Ok(())
}

fn cannot_listen(address: SocketAddr) -> String {
    format!("cannot listen on {address}; --listen takes another address, and port 0 any free one")
}

/// On standard error, so that `--json` stays one object.
pub(crate) fn tell_staged(registry: &Registry) -> Result<(), Failure> {
    for waiting in registry.staged()? {
        match waiting.missing {
            0 => eprintln!("{} is signed; `tractctl registry refresh` takes it in", waiting.path.display()),
            missing => eprintln!("{} waits for {missing} signatures", waiting.path.display()),
        }
    }
    Ok(())
}

/// Opens a registry to change it: with the keys, or to stage without one.
pub(crate) fn open_to(dir: &Path, keys: &Keys, stage: bool) -> Result<Registry, Failure> {
    if stage { Ok(Registry::stage(dir, &keys_dir(keys, dir))?) } else { open(dir, keys) }
}

pub(crate) fn open(dir: &Path, keys: &Keys) -> Result<Registry, Failure> {
    if !dir.join("metadata/1.root.json").exists() {
        // Before asking for a passphrase.
        let dir = dir.display();
        return Err(anyhow!(
            "{dir} is no registry; name one with --registry, or make one with `tractctl registry init {dir}`"
        )
        .into());
    }
    let secret = passphrase(keys.passphrase_file.as_deref(), Purpose::Open)?;
    Ok(Registry::open(dir, &keys_dir(keys, dir), secret)?)
}

/// The folder named, or `keys` beside the registry: never below it, where it would be served.
pub(crate) fn keys_dir(keys: &Keys, registry: &Path) -> PathBuf {
    match &keys.keys {
        Some(dir) => dir.clone(),
        None => registry.parent().unwrap_or(Path::new("")).join("keys"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_beside_the_registry() {
        let none = Keys { keys: None, passphrase_file: None };
        assert_eq!(keys_dir(&none, Path::new("registry")), Path::new("keys"));
        assert_eq!(keys_dir(&none, Path::new("/srv/registry")), Path::new("/srv/keys"));
        let named = Keys { keys: Some("k".into()), passphrase_file: None };
        assert_eq!(keys_dir(&named, Path::new("/srv/registry")), Path::new("k"));
    }
}
