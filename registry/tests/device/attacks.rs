//! Attacks by name. The device runs `digits` 1 and must keep it.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tractd_registry::Publish;
use tractd_update::CheckError;
use tractd_update::source::FetchError;
use tractd_update::verify::VerifyError;

use crate::faulty::Faulty;
use crate::support::{DAY, World, archive, copy_dir};

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
fn a_sibling_team_that_is_expired_rogue_unsigned_or_missing() {
    for sibling in ["expired", "rogue", "unsigned", "missing"] {
        let mut world = World::new();
        world.registry.add_team("audio", world.now).unwrap();
        let words = archive(world.tmp.path(), "words", 1, 0);
        world.registry.add(&words, "audio", None, world.now).unwrap();
        let publish = Publish { healthy_secs: 0, ..Publish::new("words", 1, "lab") };
        world.registry.publish(&publish, world.now).unwrap();
        world.publish(1);
        let attacker = world.attacker();
        let genuine = "models/vision/digits/digits-1.tractd.tar.zst";
        match sibling {
            "expired" => attacker.forge("2.team-audio.json", Some("team-audio"), |role| {
                role["expires"] = json!("2026-11-30T00:00:00Z");
            }),
            // It claims the other team's artifact, with a floor no version reaches.
            "rogue" => attacker.forge("2.team-audio.json", Some("team-audio"), |role| {
                let mut file = attacker.read("2.team-vision.json")["signed"]["targets"][genuine].clone();
                file["custom"]["min_version"] = json!(99);
                file["hashes"]["sha256"] = json!("ab".repeat(32));
                role["targets"][genuine] = file;
            }),
            "unsigned" => attacker.forge("2.team-audio.json", None, |_| {}),
            _ => {}
        }
        attacker.repin();
        if sibling == "missing" {
            fs::remove_file(world.metadata("2.team-audio.json")).unwrap();
        }
        let outcome = world.check().unwrap();
        let active: Vec<_> = outcome.activated.iter().map(|installed| installed.name.as_str()).collect();
        let failed: Vec<_> = outcome.failed.iter().map(|failed| failed.model.as_str()).collect();
        match sibling {
            "rogue" => assert_eq!((active, failed), (vec!["digits", "words"], vec![]), "{outcome:?}"),
            _ => assert_eq!((active, failed), (vec!["digits"], vec!["words"]), "{sibling}: {outcome:?}"),
        }
        assert_eq!(world.active(), Some(1), "{sibling}");
    }
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

#[test]
fn metadata_nobody_signed() {
    for (file, role) in [
        ("1.root.json", "root"),
        ("timestamp.json", "timestamp"),
        ("4.snapshot.json", "snapshot"),
        ("2.targets.json", "targets"),
        ("3.rollout.json", "rollout"),
    ] {
        let world = world();
        let attacker = world.attacker();
        let mut name = file.to_owned();
        if role == "root" {
            fs::copy(world.metadata(file), world.metadata("2.root.json")).unwrap();
            name = "2.root.json".into();
        }
        attacker.forge(&name, None, |signed| {
            if role == "root" {
                signed["version"] = json!(2);
            }
        });
        match role {
            "snapshot" => attacker.forge("timestamp.json", Some("timestamp"), |timestamp| {
                timestamp["version"] = json!(9);
                timestamp["meta"]["snapshot.json"] = attacker.pin("4.snapshot.json", 4);
            }),
            "targets" | "rollout" => attacker.repin(),
            _ => {}
        }
        let error = verify_error(&world);
        assert!(
            matches!(&error, VerifyError::Signatures { role: unsigned, found: 0, .. } if unsigned == role),
            "{role}: {error:?}"
        );
    }
}

#[test]
fn rollback_of_targets_rollout_and_teams_by_stolen_online_keys() {
    for role in ["targets", "rollout", "team-vision"] {
        let mut world = world();
        world.registry.add_team("audio", world.now).unwrap();
        world.activate();
        let attacker = world.attacker();
        let pins = attacker.read("5.snapshot.json")["signed"]["meta"].clone();
        let version = pins[format!("{role}.json")]["version"].as_u64().unwrap();
        fs::copy(world.metadata("5.snapshot.json"), world.metadata("6.snapshot.json")).unwrap();
        attacker.forge("6.snapshot.json", Some("snapshot"), |snapshot| {
            snapshot["version"] = json!(6);
            let old = attacker.pin(&format!("{}.{role}.json", version - 1), version - 1);
            snapshot["meta"][format!("{role}.json")] = old;
        });
        attacker.forge("timestamp.json", Some("timestamp"), |timestamp| {
            timestamp["version"] = json!(9);
            timestamp["meta"]["snapshot.json"] = attacker.pin("6.snapshot.json", 6);
        });
        let error = world.check().unwrap_err();
        let expected = format!("{role}.json (via snapshot)");
        assert!(
            matches!(&error, CheckError::Verify(VerifyError::Rollback { role, .. }) if *role == expected),
            "{error:?}"
        );
        assert_eq!(world.active(), Some(2));
    }
}

#[test]
fn a_freeze_is_noticed_when_the_timestamp_expires() {
    let mut world = World::with_digits();
    let frozen = world.tmp.path().join("frozen");
    copy_dir(&world.dir(), &frozen);
    world.publish(2);
    world.provision("lab", url::Url::from_directory_path(&frozen).unwrap().as_str());
    world.now += DAY - DAY / 24;
    assert_eq!(world.check().unwrap().activated, vec![]);
    world.now += DAY / 12;
    let error = verify_error(&world);
    assert!(matches!(&error, VerifyError::Expired { role, .. } if role == "timestamp"), "{error:?}");
}

#[test]
fn mix_and_match() {
    // Every file is genuine and signed; they never were out together.
    for (old, new) in [
        ("3.snapshot.json", "4.snapshot.json"),
        ("1.targets.json", "2.targets.json"),
        ("2.rollout.json", "3.rollout.json"),
    ] {
        let world = world();
        fs::copy(world.metadata(old), world.metadata(new)).unwrap();
        assert!(matches!(verify_error(&world), VerifyError::Mismatch(_)), "{new}");
    }
    let world = world();
    fs::copy(world.metadata("2.team-vision.json"), world.metadata("3.team-vision.json")).unwrap();
    assert!(refused(&world).starts_with("metadata does not fit together"));
}

#[test]
fn endless_metadata_ends_at_its_limit() {
    for (name, limit) in [("timestamp.json", 16_384), ("2.root.json", 512_000)] {
        let world = world();
        fs::write(world.metadata(name), vec![b' '; limit + 1]).unwrap();
        let error = world.check();
        let limit = limit as u64;
        assert!(
            matches!(&error, Err(CheckError::Fetch(FetchError::TooLong { limit_bytes, .. })) if *limit_bytes == limit),
            "{error:?}"
        );
        assert_eq!(world.active(), Some(1));
    }
}

#[test]
fn deeply_nested_metadata() {
    for role in ["timestamp", "4.snapshot", "2.targets"] {
        let world = world();
        let attacker = world.attacker();
        let nested = format!("{{\"signed\":{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let nested = &nested[..if role == "timestamp" { 16_000 } else { nested.len() }];
        fs::write(world.metadata(&format!("{role}.json")), nested).unwrap();
        match role {
            "4.snapshot" => attacker.forge("timestamp.json", Some("timestamp"), |timestamp| {
                timestamp["version"] = json!(9);
                timestamp["meta"]["snapshot.json"] = attacker.pin("4.snapshot.json", 4);
            }),
            "2.targets" => attacker.repin(),
            _ => {}
        }
        let error = verify_error(&world);
        assert!(matches!(error, VerifyError::Malformed(_)), "{role}: {error:?}");
    }
}

#[test]
fn ten_thousand_delegations() {
    let world = world();
    let attacker = world.attacker();
    attacker.forge("2.targets.json", Some("targets"), |targets| {
        let roles = targets["delegations"]["roles"].as_array_mut().unwrap();
        let vision = roles.iter().find(|role| role["name"] == "team-vision").unwrap().clone();
        let many = (0..10_000).map(|n| {
            let mut role = vision.clone();
            role["name"] = json!(format!("team-{n}"));
            role["terminating"] = json!(false);
            role
        });
        let rollout = roles[0].clone();
        *roles = std::iter::once(rollout).chain(many).chain([vision.clone()]).collect();
    });
    attacker.repin();
    let started = Instant::now();
    assert_eq!(refused(&world), "no team signed models/vision/digits/digits-2.tractd.tar.zst");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_cache_that_was_damaged_or_swapped_or_is_another_devices() {
    let mut other = World::with_digits();
    other.registry.refresh(other.now).unwrap();
    other.check().unwrap();
    let files = ["root.json", "timestamp.json", "snapshot.json", "targets.json"];
    for damage in ["zero-length", "swapped", "another registry's", "longer than any limit", "gone"] {
        let mut world = World::with_digits();
        let cache = world.state().join("tuf");
        match damage {
            "zero-length" => files.iter().for_each(|name| fs::write(cache.join(name), b"").unwrap()),
            "swapped" => {
                fs::rename(cache.join("timestamp.json"), cache.join("x")).unwrap();
                fs::rename(cache.join("snapshot.json"), cache.join("timestamp.json")).unwrap();
                fs::rename(cache.join("x"), cache.join("snapshot.json")).unwrap();
            }
            "another registry's" => {
                fs::remove_dir_all(&cache).unwrap();
                copy_dir(&other.state().join("tuf"), &cache);
            }
            "longer than any limit" => {
                fs::write(cache.join("timestamp.json"), vec![b' '; 6_000_000]).unwrap();
            }
            _ => fs::remove_dir_all(&cache).unwrap(),
        }
        world.publish(2);
        assert_eq!(world.activate(), vec![("digits".into(), 2)], "{damage}");
    }
}

/// A file of each kind, by a piece of its name.
const KINDS: [&str; 7] = [
    "timestamp.json",
    ".snapshot.json",
    ".targets.json",
    ".rollout.json",
    ".team-vision.json",
    ".lab.json",
    ".zst",
];

#[test]
fn every_file_answered_with_403_404_or_500() {
    let world = world();
    let before = world.tmp.path().join("before");
    copy_dir(&world.state(), &before);
    for code in [403, 404, 500] {
        for kind in KINDS {
            fs::remove_dir_all(world.state()).unwrap();
            copy_dir(&before, &world.state());
            let server = Faulty::start(&world.dir(), move |path| path.ends_with(kind).then_some(code));
            world.provision("lab", &server.url);
            match world.check() {
                Err(CheckError::Fetch(_)) => {}
                Ok(outcome) => {
                    assert_eq!(outcome.activated, vec![], "{kind} {code}");
                    assert_eq!(outcome.failed.len(), 1, "{kind} {code}: {outcome:?}");
                }
                Err(other) => panic!("{kind} {code}: {other:?}"),
            }
            assert_eq!(world.active(), Some(1));
            let well = Faulty::start(&world.dir(), |_| None);
            world.provision("lab", &well.url);
            assert_eq!(world.activate(), vec![("digits".into(), 2)], "{kind} {code}");
        }
    }
}

#[test]
fn a_download_that_never_ends_well_is_given_up_and_a_new_rollout_begins_anew() {
    let mut world = world();
    let honest = fs::read(target_file(&world, 2)).unwrap();
    change_file(&target_file(&world, 2), |bytes| *bytes.last_mut().unwrap() ^= 1);
    for _ in 0..64 {
        assert!(refused(&world).ends_with("the bytes are not the signed ones"));
    }
    let before = fs::read(world.state().join("store/state.a.json")).unwrap();
    let reason = refused(&world);
    assert_eq!(reason, "its download was tried 64 times; a new rollout begins anew");
    assert_eq!(fs::read(world.state().join("store/state.a.json")).unwrap(), before, "and nothing is written");
    fs::write(target_file(&world, 2), honest).unwrap();
    assert_eq!(refused(&world), reason);
    let again = Publish { restart: true, healthy_secs: 0, ..Publish::new("digits", 2, "lab") };
    world.registry.publish(&again, world.now).unwrap();
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}
