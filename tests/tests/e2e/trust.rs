//! What a provisioned device must refuse, and that it keeps what it had.

use std::path::{Path, PathBuf};

use tractd_ctl::exchange::Input;
use tractd_tests::daemon::{Daemon, Home, copy};
use tractd_tests::digits::{self, Expected};
use tractd_tests::process::{Said, tractctl};
use tractd_tests::registry::Registry;
use tractd_wire::Status;

/// A device that runs signed `digits` 1.
fn device(registry: &Registry) -> Home {
    registry.add(&digits::dir(1));
    registry.publish("digits@1");
    let home = Home::new();
    registry.provision(&home, "bench-1");
    home
}

fn check(home: &Home) -> Said {
    tractctl(&["update", "check", "--at", &home.at()])
}

/// The answer is right, signed, and this version's.
pub(crate) fn answers_as(daemon: &Daemon<'_>, version: u64) {
    let sample = digits::samples().remove(2);
    let reply = daemon.ask("digits", Input::Media(sample.png.clone()));
    assert_eq!(Expected::of(&digits::dir(version)).check(&sample.name, &reply), Ok(()));
    assert!(reply.signed);
}

#[test]
fn a_tampered_bundle_is_refused_and_the_previous_one_stays() {
    let registry = Registry::new();
    let home = device(&registry);
    let daemon = home.start();
    daemon.update_to("digits", 1);
    registry.add(&digits::dir(2));
    registry.publish("digits@2");
    let archive = target(&registry.path(), "digits-2.tractd.tar.zst");
    let mut bytes = std::fs::read(&archive).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&archive, bytes).unwrap();

    let said = check(&home);
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.out.contains("digits 2"), "{}{}", said.out, said.err);
    answers_as(&daemon, 1);

    // The right bytes again: nothing stands in the way.
    let mut bytes = std::fs::read(&archive).unwrap();
    bytes[middle] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    daemon.update_to("digits", 2);
    answers_as(&daemon, 2);
}

#[test]
fn tampered_metadata_is_refused_whole() {
    let registry = Registry::new();
    let home = device(&registry);
    let daemon = home.start();
    daemon.update_to("digits", 1);
    registry.add(&digits::dir(2));
    registry.publish("digits@2");
    let timestamp = registry.path().join("metadata/timestamp.json");
    let text = std::fs::read_to_string(&timestamp).unwrap();
    let version = text.find("\"version\"").unwrap() + "\"version\":".len();
    let mut forged = text.clone();
    forged.insert(version, '9');
    std::fs::write(&timestamp, forged).unwrap();
    let said = check(&home);
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.err.starts_with("error: "), "{}", said.err);
    answers_as(&daemon, 1);
}

#[test]
fn a_registry_of_other_keys_is_not_believed() {
    let ours = Registry::new();
    let home = device(&ours);
    let theirs = Registry::new();
    theirs.add(&digits::dir(2));
    theirs.publish("digits@2");
    // Somebody points the device's address at a registry of their own.
    let metadata = ours.path().join("metadata");
    std::fs::remove_dir_all(&metadata).unwrap();
    copy(&theirs.path().join("metadata"), &metadata);
    let daemon = home.start();
    let said = check(&home);
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.err.starts_with("error: "), "{}", said.err);
    assert_eq!(daemon.version_of("digits"), None);
}

#[test]
fn unsigned_models_need_permission_beside_a_root_and_never_take_a_signed_name() {
    let registry = Registry::new();
    let home = device(&registry);
    home.put_model(&digits::dir(2), "digits", 2);
    home.put_model(&digits::float_dir(), "digits-float", 1);
    let mut daemon = home.start();
    daemon.update_to("digits", 1);
    answers_as(&daemon, 1);
    let sample = digits::samples().remove(0);
    let reply = daemon.ask("digits-float", Input::Media(sample.png.clone()));
    assert_eq!(reply.status, Status::ModelNotFound, "{}", reply.detail);
    let reason = |daemon: &Daemon<'_>| {
        let models = daemon.models();
        let entry = models["models"].as_array().unwrap().iter().find(|model| model["name"] == "digits-float");
        entry.and_then(|entry| entry["reason"].as_str()).unwrap_or_default().to_owned()
    };
    assert!(reason(&daemon).contains("allow_unsigned"), "{}", daemon.models());
    daemon.process.terminate();
    drop(daemon);

    let home =
        home.with_config("allow_unsigned = true\n[mqtt]\nenabled = false\n[update]\nenabled = false\n");
    let daemon = home.start();
    let reply = daemon.ask("digits-float", Input::Media(sample.png));
    assert_eq!((reply.status, reply.signed), (Status::Ok, false), "{}", reply.detail);
    answers_as(&daemon, 1);
}

#[test]
fn a_failing_self_test_leaves_the_previous_version_running() {
    let registry = Registry::new();
    let home = device(&registry);
    let daemon = home.start();
    daemon.update_to("digits", 1);

    // Genuine, signed, and wrong: its golden outputs are another digit's.
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("digits");
    copy(&digits::dir(2), &bad);
    let golden = bad.join("golden");
    std::fs::copy(golden.join("3-0045.logits.bin"), golden.join("7-0017.logits.bin")).unwrap();
    let manifest = std::fs::read_to_string(bad.join("manifest.toml")).unwrap();
    std::fs::write(bad.join("manifest.toml"), manifest.replace("version = 2", "version = 3")).unwrap();
    registry.add(&bad);
    registry.publish("digits@3");

    let said = check(&home);
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.out.contains("refused: digits 3"), "{}{}", said.out, said.err);
    assert!(said.out.contains("self-test failed: golden vector 7"), "{}", said.out);
    answers_as(&daemon, 1);

    // And the next good one is taken.
    let good = dir.path().join("good");
    copy(&digits::dir(2), &good);
    std::fs::write(good.join("manifest.toml"), manifest.replace("version = 2", "version = 4")).unwrap();
    registry.add(&good);
    registry.publish("digits@4");
    daemon.update_to("digits", 4);
    assert_eq!(daemon.version_of("digits"), Some(4));
}

#[test]
fn files_changed_on_the_device_are_noticed_at_the_next_load() {
    let registry = Registry::new();
    let home = device(&registry);
    let mut daemon = home.start();
    daemon.update_to("digits", 1);
    daemon.process.terminate();
    drop(daemon);
    let model = find(&home.state().join("store/bundles"), "model.onnx").expect("the installed model");
    let mut bytes = std::fs::read(&model).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let mut permissions = std::fs::metadata(&model).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(&model, permissions).unwrap();
    std::fs::write(&model, bytes).unwrap();
    let daemon = home.start();
    assert_eq!(daemon.version_of("digits"), None, "{}", daemon.models());
}

/// The stored file of a target: its name carries its hash.
fn target(registry: &Path, name: &str) -> PathBuf {
    find(&registry.join("targets"), name).expect("the target is there")
}

/// A file below `dir` whose name ends so.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).find_map(|path| {
        if path.is_dir() {
            return find(&path, name);
        }
        path.file_name()?.to_str()?.ends_with(name).then_some(path)
    })
}
