//! What is loaded, what is refused, and that neither kills the daemon.

use crate::{
    harness::{Ask, Daemon, Site, wait_until},
    onnx,
};
use std::{fs, process::Command};
use tractd_wire::{DType, Status};

fn model(daemon: &Daemon, name: &str, state: &str) -> serde_json::Value {
    let models = daemon.models();
    let found = models["models"]
        .as_array()
        .unwrap()
        .iter()
        .find(|model| model["name"] == name && model["state"] == state);
    found.unwrap_or_else(|| panic!("no {name} in state {state}: {models:#}")).clone()
}

fn lookup(daemon: &Daemon, index: i64) -> crate::harness::Reply {
    daemon.connect().ask(&Ask::tensor("lookup", "index", DType::I64, &[1], index.to_le_bytes().to_vec()))
}

#[test]
fn without_any_model_it_runs() {
    let site = Site::new();
    let daemon = site.start();
    assert_eq!(daemon.models()["models"], serde_json::json!([]));
    assert_eq!(daemon.status()["state"], "ready");
}

#[test]
fn a_broken_model_is_listed_with_the_reason_and_others_are_served() {
    let site = Site::new();
    site.add_example("digits", 1);
    site.add_model("broken", 1, b"this is no ONNX file");
    let daemon = site.start();
    let broken = model(&daemon, "broken", "failed");
    assert_eq!((&broken["version"], &broken["signed"]), (&1.into(), &false.into()));
    let reason = broken["reason"].as_str().unwrap();
    assert!(!reason.is_empty());
    let reply = daemon.connect().ask(&Ask::media("broken", vec![1]));
    assert_eq!(reply.status, Status::ModelNotFound);
    assert!(
        reply.detail.contains("did not load") && reply.detail.contains(&reason[..reason.len().min(20)]),
        "{}",
        reply.detail
    );
    let reply =
        daemon.connect().ask(&Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]));
    assert_eq!(reply.status, Status::Ok);
}

#[test]
fn a_broken_newer_version_leaves_the_older_one_in_place() {
    let site = Site::new();
    site.add_model("lookup", 1, &onnx::lookup());
    site.add_model("lookup", 2, b"broken");
    let daemon = site.start();
    assert_eq!(model(&daemon, "lookup", "ready")["version"], 1);
    assert_eq!(model(&daemon, "lookup", "failed")["version"], 2);
    let reply = lookup(&daemon, 2);
    assert_eq!((reply.status, reply.version, reply.body), (Status::Ok, 1, 12_f32.to_le_bytes().to_vec()));
}

#[test]
fn a_model_that_crashes_is_quarantined_and_others_go_on() {
    let site = Site::new();
    site.add_model("lookup", 1, &onnx::lookup());
    site.add_example("digits", 1);
    let daemon = site.start();
    assert_eq!(lookup(&daemon, 3).status, Status::Ok);
    assert_eq!(lookup(&daemon, 1_000_000).status, Status::Quarantined);
    assert_eq!(lookup(&daemon, 3).status, Status::Quarantined);
    assert_eq!(model(&daemon, "lookup", "quarantined")["version"], 1);
    let digits = Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]);
    for _ in 0..8 {
        assert_eq!(daemon.connect().ask(&digits).status, Status::Ok, "every worker survived");
    }
    daemon.signal("-HUP");
    wait_until(|| lookup(&daemon, 3).status == Status::Ok, || daemon.log().join("\n"));
}

#[test]
fn sighup_loads_swaps_and_removes_under_requests() {
    let site = Site::new();
    site.add_example("digits", 1);
    let daemon = site.start();
    let digits = || Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]);
    let first = daemon.connect().ask(&digits());
    assert_eq!((first.status, first.version), (Status::Ok, 1));

    site.add_example("digits", 2);
    daemon.signal("-HUP");
    let mut client = daemon.connect();
    let mut second = client.ask(&digits());
    wait_until(
        || {
            let reply = daemon.connect().ask(&digits());
            assert_eq!(reply.status, Status::Ok, "none is lost during the swap");
            reply.version == 2
        },
        || daemon.log().join("\n"),
    );
    second = if second.version == 2 { second } else { client.ask(&digits()) };
    assert_eq!((second.status, second.version), (Status::Ok, 2));
    assert_ne!((second.digest, &second.body), (first.digest, &first.body));
    assert_eq!(daemon.models()["models"].as_array().unwrap().len(), 1);

    fs::remove_dir_all(site.models().join("digits")).unwrap();
    daemon.signal("-HUP");
    wait_until(
        || daemon.connect().ask(&digits()).status == Status::ModelNotFound,
        || daemon.log().join("\n"),
    );
}

#[test]
fn what_was_proven_once_is_not_tried_again_by_the_same_version() {
    let site = Site::new();
    site.add_example("digits", 1);
    drop(site.start());
    let file = site.dir.path().join("state/proofs.json");
    let proofs: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let proofs = proofs["proofs"].as_object().unwrap();
    assert_eq!(proofs.len(), 1);
    let proof = proofs.values().next().unwrap();
    assert_eq!(proof["golden"], 10);
    assert!(proof["peak_bytes"].as_u64().unwrap() > 0);
    // A made-up measure shows that the file is believed.
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace(&format!("\"peak_bytes\": {}", proof["peak_bytes"]), "\"peak_bytes\": 12345"),
    )
    .unwrap();
    let daemon = site.start();
    assert_eq!(model(&daemon, "digits", "ready")["peak_ram_bytes"], 12345);
}

#[test]
fn models_beyond_the_memory_are_refused_by_their_measured_peak() {
    let site = Site::new();
    site.add_example("digits", 1);
    site.configure("[limits]\nmemory_bytes = 1000");
    let daemon = site.start();
    let reason = model(&daemon, "digits", "failed")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("1000 are free"), "{reason}");
}

#[test]
fn a_trial_has_the_configured_limits() {
    let site = Site::new();
    site.add_model("slow", 1, &onnx::squares(512, 400));
    site.configure("[proof]\nwall_ms = 300");
    let daemon = site.start();
    let reason = model(&daemon, "slow", "failed")["reason"].as_str().unwrap().to_owned();
    // Other tests may have had the processors all the while.
    assert!(reason.contains("did not end within 300ms") || reason.contains("too busy"), "{reason}");

    let site = Site::new();
    // Each matrix is 64 MiB.
    site.add_model("large", 1, &onnx::squares(4096, 1));
    site.configure("[proof]\naddress_space_bytes = 80000000");
    let daemon = site.start();
    model(&daemon, "large", "failed");
}

#[test]
fn on_a_provisioned_device_unsigned_models_need_permission() {
    let site = Site::new();
    site.add_example("digits", 1);
    let state = site.dir.path().join("state");
    fs::create_dir_all(&state).unwrap();
    // A device whose identity is damaged may have been provisioned: the safe reading.
    fs::write(state.join("device.toml"), "damaged").unwrap();
    let daemon = site.start();
    let reason = model(&daemon, "digits", "failed")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("allow_unsigned"), "{reason}");
    assert_eq!(daemon.status()["update"]["provisioned"], true);

    site.configure("allow_unsigned = true");
    daemon.signal("-HUP");
    wait_until(|| daemon.models()["models"][0]["state"] == "ready", || daemon.models().to_string());
    assert_eq!(model(&daemon, "digits", "ready")["signed"], false);
}

#[test]
fn the_hidden_trial_ends_with_a_verdict_on_one_line() {
    let site = Site::new();
    site.add_example("digits", 1);
    let output = Command::new(env!("CARGO_BIN_EXE_tractd"))
        .args(["--prove"])
        .arg(site.models().join("digits/1"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
    assert!(output.status.success());
}
