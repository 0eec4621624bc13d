//! CI stages, people sign: changes carried between machines as files.

use std::fs;
use std::path::Path;

use serde_json::json;
use tractd_registry::{Delegate, KeyFolder, Publish, Registry, RegistryError, Rotate, show, sign, verify};
use zeroize::Zeroizing;

use crate::support::{World, archive, copy_dir, passphrase};

/// Moves the named key files of a world into a folder of their own, as one carries them to another machine. Its
/// index goes along.
pub(crate) fn carry_away(world: &World, to: &Path, names: &[&str]) {
    fs::create_dir_all(to).unwrap();
    fs::copy(world.keys().join("index.json"), to.join("index.json")).unwrap();
    for name in names {
        fs::rename(world.keys().join(format!("{name}.age")), to.join(format!("{name}.age"))).unwrap();
    }
}

/// Closes the registry, does `change` to its folders, and opens it again to sign.
pub(crate) fn reopened(world: World, change: impl FnOnce(&Path, &Path)) -> World {
    let World { tmp, registry, now } = world;
    drop(registry);
    let (dir, keys) = (tmp.path().join("registry"), tmp.path().join("keys"));
    change(&dir, &keys);
    let mut registry = Registry::open(&dir, &keys, passphrase()).unwrap();
    registry.set_work_factor(Some(2));
    World { tmp, registry, now }
}

pub(crate) fn other_machine(dir: &Path) -> KeyFolder {
    KeyFolder::open(dir, passphrase()).unwrap()
}

#[test]
fn ci_stages_a_model_and_a_person_signs_it_elsewhere() {
    let world = World::with_digits();
    let offline = world.tmp.path().join("offline");
    carry_away(&world, &offline, &["team-vision"]);
    let bundle = world.archive("digits", 2);
    let now = world.now;
    let mut world = reopened(world, |dir, keys| {
        // CI has the index of the keys and not one key.
        let ci = dir.parent().unwrap().join("ci");
        fs::create_dir_all(&ci).unwrap();
        fs::copy(keys.join("index.json"), ci.join("index.json")).unwrap();
        let mut staging = Registry::stage(dir, &ci).unwrap();
        staging.add(&bundle, "vision", None, now).unwrap();
        // A second change builds on the first, still without a signature.
        staging.add(&archive(dir.parent().unwrap(), "digits", 3, 0), "vision", None, now).unwrap();
    });
    assert_eq!(world.registry.refresh(now).unwrap().accepted, Vec::<String>::new());
    let waiting = world.registry.staged().unwrap();
    assert_eq!((waiting.len(), waiting[0].role.as_str(), waiting[0].missing), (1, "team-vision", 1));

    let carried = offline.join("3.team-vision.json");
    fs::copy(&waiting[0].path, &carried).unwrap();
    let seen = show(&carried).unwrap();
    assert!(seen.lines[0].starts_with("team-vision version 3, good until 2027-12-01"), "{:?}", seen.lines);
    assert!(seen.lines.iter().any(|line| line.ends_with(", digits 3 not below 0")), "{:?}", seen.lines);
    assert_eq!(sign(&carried, &mut other_machine(&offline)).unwrap().signers, ["team-vision"]);
    fs::copy(&carried, &waiting[0].path).unwrap();

    assert_eq!(world.registry.refresh(now).unwrap().accepted, ["team-vision"]);
    assert_eq!(world.registry.staged().unwrap(), vec![]);
    world.publish_only(3, false);
    assert_eq!(world.activate(), vec![("digits".into(), 3)]);
}

#[test]
fn what_was_changed_on_the_way_is_not_taken_in() {
    let world = World::with_digits();
    let offline = world.tmp.path().join("offline");
    carry_away(&world, &offline, &["team-vision"]);
    let bundle = world.archive("digits", 2);
    let mut world = reopened(world, |_, _| {});
    world.registry.add(&bundle, "vision", None, world.now).unwrap();
    let path = world.registry.staged().unwrap().remove(0).path;
    sign(&path, &mut other_machine(&offline)).unwrap();
    let honest = fs::read(&path).unwrap();
    let mut file: serde_json::Value = serde_json::from_slice(&honest).unwrap();
    file["signed"]["targets"]["models/vision/digits/digits-2.tractd.tar.zst"]["length"] = json!(1);
    fs::write(&path, file.to_string()).unwrap();
    assert_eq!(world.registry.refresh(world.now).unwrap().accepted, Vec::<String>::new());
    // Nor is anything signed on top of it.
    let bundle = world.archive("digits", 3);
    let pending = world.registry.add(&bundle, "vision", None, world.now);
    assert!(matches!(pending, Err(RegistryError::Pending { .. })), "{pending:?}");
    // The registry moved on: the change must be made again.
    fs::rename(&path, path.with_file_name("9.team-vision.json")).unwrap();
    let stale = world.registry.refresh(world.now);
    assert!(matches!(stale, Err(RegistryError::Stale { on: 8, current: 2, .. })), "{stale:?}");
}

#[test]
fn root_keys_on_three_machines_sign_one_after_the_other() {
    let world = World::with_digits();
    let away: Vec<_> = [1, 2, 3]
        .iter()
        .map(|n| {
            let dir = world.tmp.path().join(format!("safe-{n}"));
            carry_away(&world, &dir, &[&format!("root-{n}")]);
            dir
        })
        .collect();
    let mut world = reopened(world, |_, _| {});
    world.registry.rotate(&Rotate::new("timestamp"), world.now).unwrap();
    let waiting = world.registry.staged().unwrap().remove(0);
    assert_eq!((waiting.role.as_str(), waiting.version, waiting.missing), ("root", 2, 2));
    // Signing twice with one key is signing once.
    for (safe, missing) in [(&away[0], 1), (&away[0], 1), (&away[2], 0)] {
        let signed = sign(&waiting.path, &mut other_machine(safe)).unwrap();
        assert_eq!(signed.signers.len(), 1);
        assert_eq!(world.registry.staged().unwrap()[0].missing, missing);
    }
    let refreshed = world.registry.refresh(world.now).unwrap();
    assert_eq!(refreshed.accepted, ["root"]);
    assert_eq!(verify(&world.dir(), None, world.now).unwrap().findings, vec![]);
    world.publish(2);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn a_team_brings_its_own_keys_and_a_threshold_of_them() {
    let mut world = World::with_digits();
    let team: Vec<_> = ["ann", "bea", "cem"]
        .iter()
        .map(|name| {
            let dir = world.tmp.path().join(name);
            let secret = Zeroizing::new(format!("secret of {name}"));
            let mut folder = KeyFolder::create(&dir, secret.clone(), Some(2)).unwrap();
            let public = folder.generate(&format!("team-audio-{name}"), "team-audio").unwrap();
            (KeyFolder::open(&dir, secret).unwrap(), public)
        })
        .collect();
    let (mut folders, keys): (Vec<_>, Vec<_>) = team.into_iter().unzip();
    world.registry.delegate(&Delegate { team: "audio".into(), keys, threshold: 2 }, world.now).unwrap();
    let waiting = world.registry.staged().unwrap().remove(0);
    assert_eq!((waiting.role.as_str(), waiting.version, waiting.missing), ("team-audio", 1, 2));
    // Without its file the team is skipped, by devices and by the walk, and stops nobody.
    assert_eq!(verify(&world.dir(), None, world.now).unwrap().findings, vec![]);
    world.publish(2);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
    sign(&waiting.path, &mut folders[0]).unwrap();
    sign(&waiting.path, &mut folders[2]).unwrap();
    assert_eq!(world.registry.refresh(world.now).unwrap().accepted, ["team-audio"]);

    let words = archive(world.tmp.path(), "words", 1, 0);
    world.registry.add(&words, "audio", None, world.now).unwrap();
    let waiting = world.registry.staged().unwrap().remove(0);
    sign(&waiting.path, &mut folders[1]).unwrap();
    assert_eq!(world.registry.refresh(world.now).unwrap().accepted, Vec::<String>::new(), "one of two");
    sign(&waiting.path, &mut folders[2]).unwrap();
    assert_eq!(world.registry.refresh(world.now).unwrap().accepted, ["team-audio"]);
    let what = Publish { healthy_secs: 0, ..Publish::new("words", 1, "lab") };
    world.registry.publish(&what, world.now).unwrap();
    assert_eq!(world.activate(), vec![("words".into(), 1)]);
}

#[test]
fn a_walk_finds_what_is_wrong_and_names_the_file() {
    let mut world = World::with_digits();
    world.publish(2);
    let sound = verify(&world.dir(), None, world.now).unwrap();
    assert_eq!(sound.findings, vec![]);
    // root, timestamp, snapshot, targets, rollout, team; one rollout file and two models.
    assert_eq!(sound.files, 9);
    let find = |change: &dyn Fn(&Path), root: Option<&[u8]>, later| {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(&world.dir(), copy.path());
        change(copy.path());
        let findings = verify(copy.path(), root, world.now + later).unwrap().findings;
        assert_eq!(findings.len(), 1, "{findings:?}");
        let name = findings[0].path.file_name().unwrap().to_str().unwrap().to_owned();
        format!("{}: {}", name.rsplit_once("digits-").map_or(&*name, |(_, name)| name), findings[0].what)
    };
    let zero = std::time::Duration::ZERO;
    let files = |dir: &Path| fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>();
    let flip = |dir: &Path| {
        let mut models = files(&dir.join("targets/models/vision/digits"));
        models.sort_by_key(|path| path.to_str().unwrap().ends_with("-1.tractd.tar.zst"));
        let mut bytes = fs::read(&models[0]).unwrap();
        bytes[40] ^= 1;
        fs::write(&models[0], bytes).unwrap();
    };
    assert_eq!(find(&flip, None, zero), "2.tractd.tar.zst: is not the signed file: length or hash differs");
    let append = |dir: &Path| fs::write(dir.join("metadata/4.snapshot.json"), b"{}").unwrap();
    assert_eq!(
        find(&append, None, zero),
        "4.snapshot.json: is not the file the timestamp vouches for: length or hash differs"
    );
    let nothing = |_: &Path| {};
    let expired = find(&nothing, None, crate::support::DAY);
    assert_eq!(expired, "timestamp.json: expired at 2026-12-02T00:00:00Z");
    let other = World::new();
    let stranger = fs::read(other.metadata("1.root.json")).unwrap();
    assert_eq!(
        find(&nothing, Some(&stranger), zero),
        "timestamp.json: carries 0 valid signatures of timestamp keys where 1 are needed"
    );
    world.attacker().rollout(|rollout| rollout["entries"][0]["digest"] = json!("ab".repeat(32)));
    let findings = verify(&world.dir(), None, world.now).unwrap().findings;
    assert!(findings[0].what.ends_with("is of what no team signed"), "{findings:?}");
}
