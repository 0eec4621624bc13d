//! Keys in the wrong hands, and the way back.

use std::fs;

use serde_json::json;
use tractd_registry::{Publish, Registry, RegistryError, Rotate, verify};
use tractd_update::CheckError;
use tractd_update::verify::VerifyError;

use crate::support::{DAY, World, copy_dir, passphrase};

/// The far future of whoever wants the floors out of reach.
const FAR: u64 = 1 << 40;

fn rotate(world: &mut World, role: &str) {
    world.registry.rotate(&Rotate::new(role), world.now).unwrap();
}

/// A device that never saw anything but the pinned root.
fn fresh_device(world: &World) {
    fs::remove_dir_all(world.state()).unwrap();
    world.provision_with("lab", &world.dir(), fs::read(world.metadata("1.root.json")).unwrap());
}

#[test]
fn each_single_key_stolen() {
    for (file, key) in [
        ("1.root.json", "root-1"),
        ("2.targets.json", "targets"),
        ("4.snapshot.json", "snapshot"),
        ("timestamp.json", "timestamp"),
        ("3.rollout.json", "rollout"),
        ("3.team-vision.json", "team-vision"),
    ] {
        let mut world = World::with_digits();
        world.publish(2);
        let attacker = world.attacker();
        // The one key signs another artifact, another delegate, other pins: whatever its role could say.
        let name = if key == "root-1" { "2.root.json" } else { file };
        if key == "root-1" {
            fs::copy(world.metadata(file), world.metadata(name)).unwrap();
        }
        let rollout_key = attacker.read("1.root.json")["signed"]["roles"]["targets"]["keyids"].clone();
        attacker.forge(name, Some(key), |role| {
            role["version"] = json!(role["version"].as_u64().unwrap() + u64::from(key != "targets"));
            match key {
                "root-1" => role["roles"]["timestamp"]["keyids"] = rollout_key,
                "targets" => role["delegations"]["roles"][1]["paths"] = json!(["*/*/*/*"]),
                "snapshot" => role["meta"]["team-vision.json"]["version"] = json!(2),
                "timestamp" => role["meta"]["snapshot.json"]["version"] = json!(3),
                "rollout" => role["targets"]["rollout/lab.json"]["length"] = json!(1),
                _ => {
                    let two = "models/vision/digits/digits-2.tractd.tar.zst";
                    role["targets"][two]["hashes"]["sha256"] = json!("ab".repeat(32));
                }
            }
        });
        match world.check() {
            Err(CheckError::Verify(_)) => {}
            // The timestamp's can pin what was out before: it can delay, until the snapshot expires.
            Ok(outcome) => assert_eq!(outcome.activated, vec![], "{key}"),
            Err(other) => panic!("{key}: {other:?}"),
        }
        assert_eq!(world.active(), Some(1), "{key}");
    }
}

#[test]
fn a_hidden_newer_root_does_not_bring_revoked_keys_back() {
    let mut world = World::with_digits();
    let old = world.tmp.path().join("old");
    copy_dir(&world.dir(), &old);
    rotate(&mut world, "timestamp");
    world.check().unwrap();
    // The registry of before the rotation, and a timestamp by the revoked key newer than all.
    world.provision("lab", url::Url::from_directory_path(&old).unwrap().as_str());
    world.attacker_on(&old).forge("timestamp.json", Some("timestamp"), |role| role["version"] = json!(99));
    let replayed = world.check();
    assert!(
        matches!(&replayed, Err(CheckError::Verify(VerifyError::Signatures { role, .. })) if role == "timestamp"),
        "{replayed:?}"
    );
    // Nor with the cached chain gone: the newest root's number stands in the state.
    fs::remove_dir_all(world.state().join("tuf")).unwrap();
    let replayed = world.check();
    assert!(
        matches!(&replayed, Err(CheckError::Verify(VerifyError::Rollback { role, known: 2, offered: 1 })) if role == "root"),
        "{replayed:?}"
    );
    assert_eq!(world.active(), Some(1));
}

#[test]
fn a_fast_forward_of_the_online_roles_ends_with_their_rotation() {
    let mut world = World::with_digits();
    let honest = world.tmp.path().join("honest");
    copy_dir(&world.dir(), &honest);
    let attacker = world.attacker();
    fs::copy(world.metadata("3.snapshot.json"), world.metadata(&format!("{FAR}.snapshot.json"))).unwrap();
    attacker.forge(&format!("{FAR}.snapshot.json"), Some("snapshot"), |role| {
        role["version"] = json!(FAR);
        role["expires"] = json!("2027-11-01T00:00:00Z");
    });
    attacker.forge("timestamp.json", Some("timestamp"), |role| {
        role["version"] = json!(FAR);
        role["meta"]["snapshot.json"] = attacker.pin(&format!("{FAR}.snapshot.json"), FAR);
        role["expires"] = json!("2027-11-01T00:00:00Z");
        // And a time that makes everything honest look expired.
        role["x-tractd-issued"] = json!("2027-10-01T00:00:00Z");
    });
    // Only the offline keys' expiries bound the time: here the rollout role's comes first.
    let error = world.check();
    assert!(
        matches!(&error, Err(CheckError::Verify(VerifyError::Expired { role, .. })) if role == "rollout")
    );

    // The publisher's own copy was never touched.
    fs::remove_dir_all(world.dir()).unwrap();
    copy_dir(&honest, &world.dir());
    world.publish(2);
    let error = world.check();
    assert!(matches!(error, Err(CheckError::Verify(_))), "{error:?}");
    rotate(&mut world, "timestamp");
    rotate(&mut world, "snapshot");
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
    // The clock is the device's own again.
    assert!(!world.check().unwrap().clock_untrusted);
}

#[test]
fn every_role_can_get_new_keys_and_the_old_ones_are_worth_nothing() {
    let mut world = World::with_digits();
    let mut version = 1;
    for role in ["timestamp", "snapshot", "targets", "rollout", "team-vision", "root"] {
        let before: Vec<_> = world.registry.role_keys(role).unwrap().keyids;
        rotate(&mut world, role);
        let after = world.registry.role_keys(role).unwrap().keyids;
        assert_eq!(after.len(), before.len(), "{role}");
        assert!(before.iter().all(|key| !after.contains(key)), "{role}");
        let verified = verify(&world.dir(), None, world.now).unwrap();
        assert_eq!(verified.findings, vec![], "{role}");
        version += 1;
        world.publish(version);
        assert_eq!(world.activate(), vec![("digits".into(), version)], "{role}");
    }
    // Six new roots or delegations later, a device from the first day follows the whole chain.
    fresh_device(&world);
    assert_eq!(world.activate(), vec![("digits".into(), version)]);
    // What the old team key signs now, with the online keys stolen as well, is nobody's word.
    let newest = (1..).take_while(|v| world.metadata(&format!("{v}.team-vision.json")).exists()).last();
    let attacker = world.attacker();
    attacker.forge(&format!("{}.team-vision.json", newest.unwrap()), Some("team-vision"), |_| {});
    world.publish_only(version, true);
    attacker.repin_with("snapshot-1", "timestamp-1");
    fresh_device(&world);
    let outcome = world.check().unwrap();
    assert_eq!(outcome.failed[0].reason, "team-vision metadata: 0 of 1 signatures are valid");
}

#[test]
fn a_stolen_root_key_is_replaced_by_the_two_others() {
    let mut world = World::with_digits();
    fs::rename(world.keys().join("root-2.age"), world.tmp.path().join("stolen")).unwrap();
    let one = Rotate { remove: Some(vec!["root-2".into()]), ..Rotate::new("root") };
    let added = world.registry.rotate(&one, world.now).unwrap();
    assert_eq!(added[0].name, "root-4");
    let root = world.attacker().read("2.root.json");
    assert_eq!(root["signatures"].as_array().unwrap().len(), 3, "root-1, root-3 and root-4");
    world.publish(2);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn a_key_is_revoked_only_while_enough_are_left() {
    let mut world = World::with_digits();
    world.registry.revoke("root-3", world.now).unwrap();
    let two = world.registry.role_keys("root").unwrap();
    assert_eq!((two.keyids.len(), two.threshold), (2, 2));
    let few = world.registry.revoke("root-2", world.now);
    assert!(matches!(few, Err(RegistryError::Threshold { keys: 1, threshold: 2, .. })), "{few:?}");
    let gone = world.registry.revoke("root-3", world.now);
    assert!(matches!(gone, Err(RegistryError::NotAKey { .. })), "{gone:?}");
    let last = world.registry.revoke("timestamp", world.now);
    assert!(matches!(last, Err(RegistryError::Threshold { keys: 0, .. })), "{last:?}");
    world.publish(2);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn a_lost_online_key_is_replaced_and_a_lost_team_key_too() {
    for role in ["timestamp", "snapshot", "rollout", "team-vision", "targets"] {
        let mut world = World::with_digits();
        fs::remove_file(world.keys().join(format!("{role}.age"))).unwrap();
        let World { tmp, registry, now } = world;
        drop(registry);
        let (dir, keys) = (tmp.path().join("registry"), tmp.path().join("keys"));
        let mut registry = Registry::open(&dir, &keys, passphrase()).unwrap();
        registry.set_work_factor(Some(2));
        world = World { tmp, registry, now };
        rotate(&mut world, role);
        world.publish(2);
        assert_eq!(world.activate(), vec![("digits".into(), 2)], "{role}");
        assert_eq!(verify(&world.dir(), None, world.now + DAY / 2).unwrap().findings, vec![], "{role}");
    }
}

#[test]
fn an_aborted_rollout_stays_aborted() {
    use tractd_registry::Action::{Abort, Pause, Resume};
    let mut world = World::with_digits();
    world.publish(2);
    let steer = |world: &mut World, action| world.registry.steer("lab", "digits", action, world.now);
    let id = steer(&mut world, Pause).unwrap().id;
    assert_eq!(world.check().unwrap().waiting[0].reason, "the rollout is paused");
    let resumed = steer(&mut world, Resume).unwrap();
    assert_eq!((resumed.id, resumed.state.as_str()), (id, "active"));
    steer(&mut world, Abort).unwrap();
    assert_eq!(world.check().unwrap().waiting[0].reason, "the rollout is aborted");
    assert!(matches!(steer(&mut world, Resume), Err(RegistryError::Aborted(_))));
    let same = world.registry.publish(&Publish::new("digits", 2, "lab"), world.now);
    assert!(matches!(same, Err(RegistryError::Aborted(_))), "{same:?}");
    assert_eq!(world.active(), Some(1));
    world.publish_only(2, true);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
    assert_eq!(world.registry.rollouts().unwrap()[0].entries[0].version, 2);
    let none = world.registry.steer("lab", "words", Pause, world.now);
    assert!(matches!(none, Err(RegistryError::NoRollout { .. })), "{none:?}");
}
