//! The way things should go, and the ways a device stays what it was.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::UNIX_EPOCH;

use tractd_bundle::Limits;
use tractd_registry::{Publish, Server, Share};
use tractd_update::policy::ATTEMPTS_MAX;
use tractd_update::verify::VerifyError;
use tractd_update::{CheckError, Event, Store, StoreError};

use crate::support::{DAY, World, check, check_with};

#[test]
fn a_model_is_added_published_checked_and_activated() {
    let mut world = World::new();
    world.publish(1);
    let mut updater = world.updater();
    let (outcome, events) = check(&mut updater, world.now);
    let outcome = outcome.unwrap();
    let installed = updater.store().installed("digits").unwrap();
    assert_eq!(outcome.activated, vec![installed.clone()]);
    assert_eq!((installed.version, installed.team.as_str(), installed.previous), (1, "vision", None));
    assert_eq!(installed.rollout, "lab-digits-1-r2");
    assert!(installed.dir.ends_with(format!("store/bundles/sha256-{}", installed.digest.to_hex())));
    assert!(!outcome.clock_untrusted);
    let tomorrow = (world.now + DAY).duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(outcome.metadata_expires_s, tomorrow);

    let (model, version) = ("digits".to_owned(), 1);
    let total = fs::metadata(world.archive("digits", 1)).unwrap().len();
    let download = |bytes| Event::Downloading { model: model.clone(), version, bytes, total };
    let expected = vec![
        Event::Checking,
        Event::Found { model: model.clone(), version },
        download(0),
        download(total),
        Event::SelfTesting { model: model.clone(), version },
        Event::Activated {
            model: model.clone(),
            version,
            digest: installed.digest,
            dir: installed.dir,
            previous: None,
        },
    ];
    assert_eq!(events, expected);
}

#[test]
fn version_two_takes_over_and_version_one_is_kept() {
    let mut world = World::with_digits();
    world.publish(2);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
    let store = Store::open(&world.state()).unwrap();
    let installed = store.installed("digits").unwrap();
    assert_eq!((installed.version, installed.previous.unwrap().version), (2, 1));
    drop(store);
    world.publish(3);
    world.activate();
    let bundles = fs::read_dir(world.state().join("store/bundles")).unwrap().count();
    assert_eq!(bundles, 2, "the active and the previous one");
    for folder in ["blobs", "staging"] {
        assert_eq!(fs::read_dir(world.state().join("store").join(folder)).unwrap().count(), 0, "{folder}");
    }
}

#[test]
fn the_same_over_http_with_resumption() {
    let mut world = World::new();
    let server = Server::start(&world.dir(), "127.0.0.1:0").unwrap();
    world.provision("lab", &format!("http://{}/", server.addr()));
    world.publish(1);
    // An earlier try left the first bytes.
    let archive = fs::read(world.archive("digits", 1)).unwrap();
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&archive));
    drop(world.updater());
    fs::write(world.state().join(format!("store/blobs/{sha256}")), &archive[..50]).unwrap();
    let (outcome, events) = check(&mut world.updater(), world.now);
    assert_eq!(outcome.unwrap().activated[0].version, 1);
    let first = events.iter().find_map(|event| match event {
        Event::Downloading { bytes, .. } => Some(*bytes),
        _ => None,
    });
    assert_eq!(first, Some(50));
    world.publish(2);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn nothing_new_asks_for_no_proof() {
    let world = World::with_digits();
    let (outcome, events) = check_with(&mut world.updater(), world.now, &mut |_| panic!("no proof is due"));
    assert_eq!(outcome.unwrap().activated, vec![]);
    assert_eq!(events, vec![Event::Checking]);
}

#[test]
fn another_groups_rollout_is_not_ours() {
    let mut world = World::new();
    world.provision("factory", url::Url::from_directory_path(world.dir()).unwrap().as_str());
    world.publish(1);
    let outcome = world.check().unwrap();
    assert!(outcome.no_rollout);
    assert_eq!(world.active(), None);
}

#[test]
fn a_share_of_devices_waits_and_keeps_its_bucket_when_the_share_grows() {
    let mut world = World::new();
    world.add(1);
    let publish = |world: &mut World, pct| {
        let what = Publish { share: Share::Percent(pct), ..Publish::new("digits", 1, "lab") };
        world.registry.publish(&what, world.now).unwrap().id
    };
    let first = publish(&mut world, 0);
    let waiting = world.check().unwrap().waiting;
    assert!(waiting[0].reason.ends_with("of 10000 is not within 0 %"), "{}", waiting[0].reason);
    assert_eq!(publish(&mut world, 100), first, "the same rollout");
    assert_eq!(world.activate(), vec![("digits".into(), 1)]);
}

#[test]
fn a_failing_self_test_keeps_the_old_version_and_is_not_retried() {
    let mut world = World::with_digits();
    world.publish(2);
    let mut proofs = 0;
    let mut prove = |_: &tractd_bundle::Bundle| {
        proofs += 1;
        Err("golden vector 0 is off by 0.5".into())
    };
    let (outcome, events) = check_with(&mut world.updater(), world.now, &mut prove);
    let reason = "self-test: golden vector 0 is off by 0.5".to_owned();
    assert_eq!(outcome.unwrap().refused[0].reason, reason);
    let refused = Event::Refused { model: "digits".into(), version: 2, reason, known: false };
    assert_eq!(events.last(), Some(&refused));
    assert_eq!(world.active(), Some(1));

    let (outcome, _) = check_with(&mut world.updater(), world.now, &mut prove);
    let refused = &outcome.unwrap().refused[0].reason;
    assert_eq!(refused, "blocked for this rollout: self-test: golden vector 0 is off by 0.5");
    assert_eq!(proofs, 1);
    assert_eq!(world.active(), Some(1));

    // The publisher asks for another try.
    let again = Publish { restart: true, ..Publish::new("digits", 2, "lab") };
    world.registry.publish(&again, world.now).unwrap();
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn a_version_that_turns_out_bad_is_taken_back_and_stays_away() {
    let mut world = World::with_digits();
    world.publish(2);
    world.activate();
    let mut updater = world.updater();
    let mut events = Vec::new();
    let back = updater.revert("digits", "crashed 3 times", &mut |event| events.push(event)).unwrap();
    assert_eq!(back.unwrap().version, 1);
    let (model, reason) = ("digits".to_owned(), "crashed 3 times".to_owned());
    assert_eq!(events, vec![Event::RolledBack { model, version: 2, to: Some(1), reason }]);
    let (outcome, _) = check(&mut updater, world.now);
    assert_eq!(outcome.unwrap().refused[0].reason, "blocked for this rollout: crashed 3 times");
    drop(updater);
    assert_eq!(world.active(), Some(1));
}

#[test]
fn a_crash_between_download_and_commit_leaves_the_old_version() {
    let mut world = World::with_digits();
    world.publish(2);
    for _ in 0..ATTEMPTS_MAX {
        let mut updater = world.updater();
        let crash = catch_unwind(AssertUnwindSafe(|| {
            check_with(&mut updater, world.now, &mut |_| panic!("the daemon dies here"))
        }));
        assert!(crash.is_err());
        drop(updater);
        assert_eq!(world.active(), Some(1));
    }
    // Counted before each try, so a bundle that kills the daemon does not kill it for ever.
    let outcome = world.check().unwrap();
    assert_eq!(outcome.refused[0].reason, "tried 3 times without coming to an end");
    assert_eq!(world.active(), Some(1));
}

#[test]
fn a_damaged_state_file_leaves_the_other_one() {
    for bytes in [&b""[..], b"{\"crc32\":\"00000000\",\"state\":{}}", b"\0\0\0\0\0\0\0\0"] {
        let mut world = World::with_digits();
        world.publish(2);
        world.activate();
        let slots = ["a", "b"].map(|slot| world.state().join(format!("store/state.{slot}.json")));
        let sequence = |path: &std::path::PathBuf| {
            let file: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            file["state"]["sequence"].as_u64().unwrap()
        };
        let newest = slots.iter().max_by_key(|path| sequence(path)).unwrap();
        fs::write(newest, bytes).unwrap();
        assert_eq!(world.active(), Some(1), "the state before the commit");
        assert_eq!(world.activate(), vec![("digits".into(), 2)]);
        assert_eq!(world.active(), Some(2));

        slots.iter().for_each(|path| fs::write(path, bytes).unwrap());
        assert!(matches!(Store::open(&world.state()), Err(StoreError::Damaged(_))));
    }
}

#[test]
fn files_that_changed_on_disk_are_noticed_and_fetched_again() {
    let world = World::with_digits();
    let mut updater = world.updater();
    let dir = updater.store().installed("digits").unwrap().dir;
    fs::write(dir.join("model.onnx"), [0x3a, 3, 0x12, 1, b'x']).unwrap();
    let changed = updater.store_mut().bundle("digits", &Limits::default()).map(|_| ());
    assert!(matches!(changed, Err(StoreError::Changed { version: 1, .. })), "{changed:?}");
    assert_eq!(check(&mut updater, world.now).0.unwrap().activated[0].version, 1);
    updater.store_mut().bundle("digits", &Limits::default()).unwrap();
}

#[test]
fn expired_metadata_blocks_new_installs_and_nothing_else() {
    let mut world = World::with_digits();
    world.publish(2);
    world.now += 2 * DAY;
    let expired = world.check();
    assert!(
        matches!(&expired, Err(CheckError::Verify(VerifyError::Expired { role, .. })) if role == "timestamp"),
        "{expired:?}"
    );
    assert_eq!(world.active(), Some(1));
    world.registry.refresh(world.now).unwrap();
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn a_clock_of_1970_installs_and_says_so() {
    let mut world = World::new();
    world.publish(1);
    let (outcome, _) = check(&mut world.updater(), UNIX_EPOCH);
    let outcome = outcome.unwrap();
    assert!(outcome.clock_untrusted);
    assert_eq!(outcome.activated[0].version, 1);
    // The signed time was remembered: an older repository is expired even for this clock.
    let mut later = World::at(world.now + 40 * DAY);
    later.publish(1);
    check(&mut later.updater(), UNIX_EPOCH).0.unwrap();
    later.provision("lab", url::Url::from_directory_path(world.dir()).unwrap().as_str());
    let stale = check(&mut later.updater(), UNIX_EPOCH).0;
    assert!(matches!(stale, Err(CheckError::Verify(_))), "{stale:?}");
}

#[test]
fn a_store_has_one_owner() {
    let world = World::with_digits();
    let _first = world.updater();
    assert!(matches!(Store::open(&world.state()), Err(StoreError::Locked(_))));
}

#[test]
fn a_registry_that_is_away_changes_nothing() {
    let world = World::with_digits();
    world.provision("lab", "file:///nowhere/at/all");
    assert!(matches!(world.check(), Err(CheckError::Fetch(_))));
    world.provision("lab", "http://127.0.0.1:1/");
    assert!(matches!(world.check(), Err(CheckError::Fetch(_))));
    assert_eq!(world.active(), Some(1));
}
