//! Attacks by name. The device runs `digits` 1 and must keep it.

use std::fs;

use serde_json::{Value, json};
use tractd_registry::Publish;
use tractd_update::CheckError;
use tractd_update::verify::VerifyError;

use crate::support::{World, archive};

/// `digits` 1 runs, 2 is out.
fn world() -> World {
    let mut world = World::with_digits();
    world.publish(2);
    world
}

fn verify_error(world: &World) -> VerifyError {
    match world.check() {
        Err(CheckError::Verify(error)) => {
            assert_eq!(world.active(), Some(1));
            error
        }
        other => panic!("{other:?}"),
    }
}

/// The one reason of a check that reached its entry and did not install it.
fn refused(world: &World) -> String {
    let outcome = world.check().unwrap();
    assert_eq!(outcome.activated, vec![]);
    assert_eq!(world.active(), Some(1));
    let reasons = outcome.refused.into_iter().map(|refused| refused.reason);
    let mut reasons: Vec<_> = reasons.chain(outcome.failed.into_iter().map(|failed| failed.reason)).collect();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    reasons.remove(0)
}

fn change_file(path: &std::path::Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn target_file(world: &World, version: u64) -> std::path::PathBuf {
    let dir = world.dir().join("targets/models/vision/digits");
    let suffix = format!(".digits-{version}.tractd.tar.zst");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.into_iter().find(|path| path.to_str().unwrap().ends_with(&suffix)).unwrap()
}

#[test]
fn tampered_target_bytes() {
    let world = world();
    change_file(&target_file(&world, 2), |bytes| bytes[60] ^= 1);
    assert!(refused(&world).ends_with("the bytes are not the signed ones"));
}

#[test]
fn a_substituted_target() {
    let world = world();
    fs::copy(target_file(&world, 1), target_file(&world, 2)).unwrap();
    let reason = refused(&world);
    assert!(reason.contains("not the signed ones") || reason.contains("bytes"), "{reason}");
}

#[test]
fn an_endless_and_a_short_target() {
    let world = world();
    change_file(&target_file(&world, 2), |bytes| bytes.resize(1 << 20, 0));
    assert!(refused(&world).contains("more than"));
    change_file(&target_file(&world, 2), |bytes| bytes.truncate(10));
    assert!(refused(&world).contains("ended after 10 of"));
    fs::remove_file(target_file(&world, 2)).unwrap();
    assert!(refused(&world).ends_with("is not there"));
}

#[test]
fn tampered_metadata() {
    let world = world();
    let timestamp = fs::read(world.metadata("timestamp.json")).unwrap();
    world.attacker().forge("timestamp.json", Some("rollout"), |role| role["version"] = json!(99));
    let error = verify_error(&world);
    assert!(
        matches!(&error, VerifyError::Signatures { role, found: 0, .. } if role == "timestamp"),
        "{error:?}"
    );
    for garbage in [&b"not json"[..], b"{}", b"[[[[[[[[", b""] {
        fs::write(world.metadata("timestamp.json"), garbage).unwrap();
        assert!(matches!(verify_error(&world), VerifyError::Malformed(_)));
    }
    fs::write(world.metadata("timestamp.json"), "[".repeat(10_000)).unwrap();
    assert!(matches!(verify_error(&world), VerifyError::Malformed(_)));
    fs::write(world.metadata("timestamp.json"), timestamp).unwrap();

    let snapshot = fs::read(world.metadata("4.snapshot.json")).unwrap();
    change_file(&world.metadata("4.snapshot.json"), |bytes| bytes.push(b' '));
    assert!(matches!(verify_error(&world), VerifyError::Mismatch(_)));
    fs::write(world.metadata("4.snapshot.json"), snapshot).unwrap();
    change_file(&world.metadata("3.team-vision.json"), |bytes| bytes.push(b' '));
    assert!(refused(&world).starts_with("metadata does not fit together"));
}

#[test]
fn an_html_page_instead_of_metadata() {
    let world = world();
    fs::write(world.metadata("timestamp.json"), "<!doctype html><title>Log in</title>").unwrap();
    let portal = world.check();
    assert!(
        matches!(portal, Err(CheckError::Fetch(tractd_update::source::FetchError::WebPage(_)))),
        "{portal:?}"
    );
    assert_eq!(world.active(), Some(1));
}

#[test]
fn a_registry_of_other_keys() {
    let world = world();
    let mut other = World::new();
    other.publish(3);
    world.provision("lab", url::Url::from_directory_path(other.dir()).unwrap().as_str());
    let error = verify_error(&world);
    assert!(
        matches!(error, VerifyError::Signatures { found: 0, .. } | VerifyError::Rollback { .. }),
        "{error:?}"
    );
}

#[test]
fn a_team_role_nobody_signed() {
    let world = world();
    let attacker = world.attacker();
    attacker.forge("3.team-vision.json", None, |_| {});
    attacker.repin();
    assert_eq!(refused(&world), "team-vision metadata: 0 of 1 signatures are valid");
}

#[test]
fn a_team_role_signed_by_a_stolen_rollout_key() {
    let world = world();
    let attacker = world.attacker();
    attacker.forge("3.team-vision.json", Some("rollout"), |_| {});
    attacker.repin();
    assert_eq!(refused(&world), "team-vision metadata: 0 of 1 signatures are valid");
}

#[test]
fn duplicate_signatures_are_one() {
    let world = world();
    let attacker = world.attacker();
    // A root of one key's signature, three times over, where two keys are asked for.
    fs::copy(world.metadata("1.root.json"), world.metadata("2.root.json")).unwrap();
    attacker.forge("2.root.json", Some("root-1"), |root| root["version"] = json!(2));
    change_file(&world.metadata("2.root.json"), |bytes| {
        let mut file: Value = serde_json::from_slice(bytes).unwrap();
        let one = file["signatures"][0].clone();
        file["signatures"] = json!([one, one, one]);
        *bytes = serde_json::to_vec(&file).unwrap();
    });
    let error = verify_error(&world);
    assert!(matches!(error, VerifyError::Signatures { .. } | VerifyError::Malformed(_)), "{error:?}");
}

#[test]
fn a_rollout_of_what_no_team_signed() {
    let world = world();
    let target = "models/vision/digits/digits-9.tractd.tar.zst";
    world.attacker().rollout(|rollout| rollout["entries"][0]["target"] = json!(target));
    assert_eq!(refused(&world), format!("no team signed {target}"));
}

#[test]
fn a_rollout_of_another_digest_than_the_team_signed() {
    let world = world();
    world.attacker().rollout(|rollout| rollout["entries"][0]["digest"] = json!("ab".repeat(32)));
    assert!(refused(&world).starts_with(&format!("the rollout says digest \"{}\"", "ab".repeat(32))));
}

#[test]
fn a_rollout_with_a_path_that_leaves_the_folder() {
    for target in ["../../digits/x", "models/vision/digits/..", "/etc/passwd", "models/vision/digits/x\0"] {
        let world = world();
        world.attacker().rollout(|rollout| rollout["entries"][0]["target"] = json!(target));
        assert!(matches!(world.check(), Err(CheckError::Rollout(_))), "{target}");
        assert_eq!(world.active(), Some(1));
    }
}

#[test]
fn a_stolen_rollout_key_cannot_go_below_the_teams_minimum() {
    let mut world = World::with_digits();
    world.publish(2);
    world.activate();
    let archive = world.archive("digits", 3);
    world.registry.add(&archive, "vision", Some(2), world.now).unwrap();
    let one = |entry: &mut Value, digest: &str| {
        entry["version"] = json!(1);
        entry["digest"] = json!(digest);
        entry["target"] = json!("models/vision/digits/digits-1.tractd.tar.zst");
        entry["rollback_to"] = json!(1);
        entry["id"] = json!("evil");
    };
    let digest = tractd_update::Store::open(&world.state()).unwrap().installed("digits").unwrap().previous;
    let digest = digest.unwrap().digest.to_hex();
    // Not even before the release that brings the new minimum is seen installed.
    world.registry.refresh(world.now).unwrap();
    world.attacker().rollout(|rollout| one(&mut rollout["entries"][0], &digest));
    let outcome = world.check().unwrap();
    assert_eq!(outcome.refused[0].reason, "version 1 is below 2, the lowest its team allows");
    assert_eq!(world.active(), Some(2));
}

#[test]
fn a_lower_version_without_a_rollback() {
    let mut world = World::with_digits();
    world.publish(2);
    world.activate();
    let digest = tractd_update::Store::open(&world.state()).unwrap().installed("digits").unwrap().previous;
    world.attacker().rollout(|rollout| {
        let entry = &mut rollout["entries"][0];
        entry["version"] = json!(1);
        entry["digest"] = json!(digest.unwrap().digest.to_hex());
        entry["target"] = json!("models/vision/digits/digits-1.tractd.tar.zst");
    });
    let outcome = world.check().unwrap();
    assert_eq!(outcome.refused[0].reason, "version 1 is below 2, which was active already");
    assert_eq!(world.active(), Some(2));
}

#[test]
fn a_publishers_rollback_is_followed() {
    let mut world = World::with_digits();
    world.publish(2);
    world.activate();
    let back = Publish { rollback: true, ..Publish::new("digits", 1, "lab") };
    world.registry.publish(&back, world.now).unwrap();
    assert_eq!(world.activate(), vec![("digits".into(), 1)]);
    assert_eq!(world.active(), Some(1));
}

#[test]
fn rollback_of_the_timestamp() {
    let mut world = World::with_digits();
    let old = fs::read(world.metadata("timestamp.json")).unwrap();
    world.registry.refresh(world.now).unwrap();
    world.check().unwrap();
    fs::write(world.metadata("timestamp.json"), old).unwrap();
    let error = verify_error(&world);
    assert!(
        matches!(&error, VerifyError::Rollback { role, known: 4, offered: 3 } if role == "timestamp"),
        "{error:?}"
    );
    // Also when the metadata cache is gone, or another device's: the floors stand in the state.
    for damage in 0..3 {
        let cache = world.state().join("tuf");
        match damage {
            0 => fs::remove_dir_all(cache).unwrap(),
            1 => fs::write(cache.join("timestamp.json"), b"").unwrap(),
            _ => fs::copy(world.metadata("timestamp.json"), cache.join("timestamp.json")).map(drop).unwrap(),
        }
        let error = verify_error(&world);
        assert!(matches!(&error, VerifyError::Rollback { role, .. } if role == "timestamp"), "{error:?}");
    }
}

#[test]
fn rollback_of_the_snapshot_by_a_stolen_timestamp_key() {
    let mut world = World::with_digits();
    world.registry.refresh(world.now).unwrap();
    world.check().unwrap();
    let attacker = world.attacker();
    attacker.forge("timestamp.json", Some("timestamp"), |timestamp| {
        timestamp["version"] = json!(50);
        timestamp["meta"]["snapshot.json"] = attacker.pin("2.snapshot.json", 2);
    });
    assert!(matches!(verify_error(&world), VerifyError::Rollback { .. }));
    fs::remove_dir_all(world.state().join("tuf")).unwrap();
    let error = verify_error(&world);
    assert!(matches!(&error, VerifyError::Rollback { role, .. } if role == "snapshot"), "{error:?}");
}

#[test]
fn a_broken_team_does_not_stop_the_others() {
    let mut world = World::new();
    world.registry.add_team("audio", world.now).unwrap();
    let words = archive(world.tmp.path(), "words", 1, 0);
    world.registry.add(&words, "audio", None, world.now).unwrap();
    world.registry.publish(&Publish::new("words", 1, "lab"), world.now).unwrap();
    world.publish(1);
    let attacker = world.attacker();
    attacker.forge("2.team-audio.json", None, |_| {});
    attacker.repin();
    let outcome = world.check().unwrap();
    assert_eq!(outcome.activated[0].name, "digits");
    assert_eq!(outcome.failed[0].model, "words");
}

#[test]
fn a_bundle_that_is_not_what_was_signed_about_it() {
    let world = world();
    let attacker = world.attacker();
    // The team's own key, but its description is of another bundle.
    attacker.forge("3.team-vision.json", Some("team-vision"), |team| {
        let target = "models/vision/digits/digits-2.tractd.tar.zst";
        team["targets"][target]["custom"]["digest"] = json!("cd".repeat(32));
    });
    attacker.rollout(|rollout| rollout["entries"][0]["digest"] = json!("cd".repeat(32)));
    assert!(refused(&world).starts_with("its archive holds digits 2 sha256:"));
    assert!(refused(&world).starts_with("blocked for this rollout: its archive holds"));
}
