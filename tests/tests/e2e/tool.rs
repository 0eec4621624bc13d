//! What `tractctl` says: to people, to programs, and when something is wrong.

use std::process::Command;

use serde_json::Value;
use tractd_tests::daemon::Home;
use tractd_tests::digits;
use tractd_tests::process::{Said, run, tractctl};
use tractd_tests::registry::Registry;

fn refused(arguments: &[&str], code: i32, says: &[&str]) {
    let said = tractctl(arguments);
    assert_eq!(said.code, Some(code), "{arguments:?}: {}{}", said.out, said.err);
    for words in says {
        assert!(said.err.contains(words), "{arguments:?}: {:?} lacks {words:?}", said.err);
    }
    assert_eq!(said.out, "", "{arguments:?} prints an error where results belong");
}

#[test]
fn without_a_daemon_it_says_what_to_do() {
    let nowhere = "unix:/nonexistent/tractd.sock";
    let png = digits::samples().remove(0).path;
    let png = png.to_str().unwrap();
    let says = ["no daemon at /nonexistent/tractd.sock; start it with `tractd` or set TRACTD_SOCKET"];
    refused(&["models", "--at", nowhere], 1, &says);
    refused(&["status", "--at", nowhere], 1, &says);
    refused(&["update", "check", "--at", nowhere], 1, &says);
    refused(&["infer", "digits", "--image", png, "--at", nowhere], 1, &says);
    let mut command = Command::new(tractd_tests::binary("tractctl"));
    let said = run(command.arg("models").env("TRACTD_SOCKET", "/nonexistent/other.sock"));
    assert!(said.err.contains("no daemon at /nonexistent/other.sock"), "{}", said.err);
}

#[test]
fn wrong_usage_ends_with_2() {
    refused(&["infer", "digits"], 2, &["an input is missing: --image FILE, --input FILE.npy or --json FILE"]);
    refused(&["infer", "Digits!", "--image", "x.png"], 2, &["MODEL \"Digits!\""]);
    refused(&["infer", "digits", "--image", "a.png", "--input", "a.npy"], 2, &["cannot be used with"]);
    refused(&["infer", "digits", "--image", "a.png", "--json", "b.json"], 2, &["one input only"]);
    refused(
        &["models", "--at", "somewhere"],
        2,
        &["expected unix:PATH, mqtt://host[:port][/node] or mqtts://host[:port][/node]"],
    );
    refused(&["models", "--at", "mqtt://broker"], 2, &["tractctl watch --at mqtt://broker:1883"]);
    refused(&["registry", "publish", "digits"], 2, &["no MODEL@VERSION, as in digits@2"]);
    refused(&["fly"], 2, &["unrecognized subcommand 'fly'"]);
    let said = tractctl::<&str>(&[]);
    assert_eq!(said.code, Some(2));
}

#[test]
fn every_verb_has_help_with_an_example() {
    let verbs = [
        "infer",
        "models",
        "status",
        "pack",
        "registry init",
        "registry key new",
        "registry key list",
        "registry delegate",
        "registry add",
        "registry publish",
        "registry rotate",
        "registry revoke",
        "registry sign",
        "registry refresh",
        "registry verify",
        "registry status",
        "registry serve",
        "rollout start",
        "rollout pause",
        "rollout resume",
        "rollout abort",
        "rollout status",
        "device provision",
        "device show",
        "update check",
    ];
    for verb in verbs {
        let mut words: Vec<&str> = verb.split(' ').collect();
        words.push("--help");
        let help = tractctl(&words).ok();
        assert!(help.contains("Example"), "{verb} has no example:\n{help}");
        assert!(help.contains(&format!("tractctl {verb}")), "{verb}'s example is of another verb:\n{help}");
    }
}

#[test]
fn bench_engine_says_all_that_it_measures() {
    let model = digits::dir(1).display().to_string();
    let measured = |more: &[&str]| -> Value {
        let arguments = ["bench", "engine", model.as_str(), "--json", "--runs", "3"];
        serde_json::from_str(&tractctl(&[&arguments[..], more].concat()).ok()).unwrap()
    };
    let figures = measured(&[]);
    let keys: Vec<&String> = figures.as_object().unwrap().keys().collect();
    let expected = [
        "digest",
        "from_cache",
        "int8_macs",
        "kernels",
        "load_ms",
        "median_us",
        "model",
        "outside",
        "p10_us",
        "p90_us",
        "peak_rss_kb",
        "probe_us",
        "samples",
        "total_macs",
        "undisturbed_samples",
        "undisturbed_us",
    ];
    assert_eq!(keys, expected);
    let us = ["p10_us", "median_us", "p90_us"].map(|key| figures[key].as_f64().unwrap());
    assert!(0.0 < us[0] && us.is_sorted(), "{us:?}");
    assert!(figures["probe_us"].as_f64().unwrap() > 0.0);
    // Other tests may have kept each run company.
    let undisturbed = figures["undisturbed_samples"].as_u64().unwrap();
    assert_eq!((undisturbed <= 3, undisturbed == 0), (true, figures["undisturbed_us"].is_null()));
    assert!(figures["load_ms"].as_f64().unwrap() > 0.0);
    assert!(figures["peak_rss_kb"].as_u64().unwrap() > 1024);
    assert_eq!((&figures["samples"], &figures["outside"]), (&3.into(), &0.into()));
    assert!(figures["int8_macs"].as_u64().unwrap() > 0);
    assert_eq!(figures["int8_macs"], figures["total_macs"]);

    assert_eq!(measured(&["--kernels", "portable"])["kernels"], "portable");
    let stock = measured(&["--stock"]);
    assert_eq!((&stock["kernels"], &stock["int8_macs"]), (&"none".into(), &0.into()));
    assert_eq!(stock["total_macs"], figures["total_macs"]);
    assert!(stock["outside"].as_u64().unwrap() > 0);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("not.npy"), "not numpy").unwrap();
    std::fs::write(at("not.json"), "{").unwrap();
    refused(&["infer", "digits", "--image", &at("none.png")], 1, &["cannot read", "none.png"]);
    refused(&["infer", "digits", "--input", &at("not.npy")], 1, &["not.npy", "not a readable .npy file"]);
    refused(&["infer", "digits", "--json", &at("not.json")], 1, &["not.json is no JSON"]);
    refused(&["pack", &at("nowhere")], 1, &["nowhere is no folder; give the one with manifest.toml"]);
    refused(
        &["registry", "add", &at("none.zst")],
        1,
        &["none.zst is no file; `tractctl pack DIR` makes one"],
    );
    refused(&["registry", "serve", &at("nowhere")], 1, &["nowhere is no registry", "tractctl registry init"]);
    refused(&["registry", "status", "--registry", &at("nowhere")], 1, &["nowhere is no registry"]);
    refused(
        &["device", "show", "--state", &at("empty")],
        1,
        &["is not provisioned; `tractctl device provision`"],
    );
    let provision =
        ["device", "provision", "--registry", "http://r", "--node", "n", "--root", &at("none.json")];
    refused(&provision, 1, &["cannot read the root", "none.json"]);
}

#[test]
fn a_registry_is_made_once_and_opened_with_its_passphrase_only() {
    let registry = Registry::new();
    let path = registry.path().display().to_string();
    refused(&["registry", "init", &path], 1, &["holds a registry already"]);
    let tractctl_with = |passphrase: &str, arguments: &[&str]| -> Said {
        let mut command = Command::new(tractd_tests::binary("tractctl"));
        let file = registry.path().with_file_name("passphrase");
        std::fs::write(&file, passphrase).unwrap();
        run(command.args(arguments).args(["--registry", &path, "--passphrase-file"]).arg(file))
    };
    let packed = registry.pack(&digits::dir(1)).display().to_string();
    let said = tractctl_with("wrong\n", &["registry", "add", &packed, "--team", "lab"]);
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.err.contains("passphrase"), "{}", said.err);
    refused(
        &["registry", "add", &packed, "--registry", &path, "--team", "strangers"],
        1,
        &["no team \"strangers\""],
    );
    refused(&["registry", "publish", "digits@1", "--registry", &path], 1, &["no team signed digits 1"]);
    let status = tractctl(&["registry", "status", "--registry", &path]).ok();
    assert!(status.contains("team-lab"), "{status}");
    registry.add(&digits::dir(1));
    registry.publish("digits@1");
    let refreshed = tractctl(&["registry", "refresh", "--registry", &path]).ok();
    assert!(refreshed.contains("timestamp"), "{refreshed}");
}

#[test]
fn answers_come_as_text_and_as_json_from_every_kind_of_input() {
    let home = Home::new();
    home.put_model(&digits::dir(1), "digits", 1);
    let _daemon = home.start();
    let sample = digits::samples().remove(7);
    let png = sample.path.display().to_string();
    let at = home.at();

    let text = tractctl(&["infer", "digits", "--image", &png, "--at", &at]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("digits 1 (") && lines[0].ends_with(", unsigned)"), "{text}");
    assert!(lines[1].starts_with("7 ") && lines[1].contains(" %"), "{text}");
    assert!(lines.last().unwrap().starts_with("queue "), "{text}");
    let one = tractctl(&["infer", "digits", "--image", &png, "--at", &at, "--top", "1"]).ok();
    assert_eq!(one.lines().count(), 3, "{one}");

    let json = |arguments: &[&str]| -> Value {
        let mut all = vec!["infer", "digits", "--at", &at];
        all.extend_from_slice(arguments);
        serde_json::from_str(&tractctl(&all).ok()).unwrap()
    };
    let by_image = json(&["--image", &png, "--json"]);
    assert_eq!(by_image["status"], 200);
    assert_eq!(by_image["classes"][0]["label"], "7");
    assert_eq!(by_image["outputs"]["logits"]["shape"], serde_json::json!([1, 10]));

    // The same pixels as numbers, in both other forms.
    let golden = std::fs::read(digits::dir(1).join(format!("golden/{}.image.bin", sample.name))).unwrap();
    let pixels = digits::floats(&golden);
    let rows: Vec<&[f32]> = pixels.chunks(8).collect();
    let file = home.state().with_file_name("request.json");
    std::fs::write(&file, serde_json::json!({ "inputs": { "image": [[rows]] } }).to_string()).unwrap();
    let by_json = json(&["--json", file.to_str().unwrap(), "--json"]);
    std::fs::write(&file, serde_json::json!([[rows]]).to_string()).unwrap();
    let bare = json(&["--json", file.to_str().unwrap(), "--json"]);
    let npy = home.state().with_file_name("input.npy");
    std::fs::write(&npy, npy_of(&golden)).unwrap();
    let by_npy = json(&["--input", npy.to_str().unwrap(), "--json"]);
    for other in [&by_json, &bare, &by_npy] {
        assert_eq!(other["outputs"], by_image["outputs"]);
        assert_eq!(other["classes"], by_image["classes"]);
    }

    let models: Value = serde_json::from_str(&tractctl(&["models", "--at", &at, "--json"]).ok()).unwrap();
    assert_eq!(models["models"][0]["name"], "digits");
    let table = tractctl(&["models", "--at", &at]).ok();
    assert!(table.contains("image f32[1,1,8,8]") && table.contains("unsigned"), "{table}");
    let status = tractctl(&["status", "--at", &at]).ok();
    assert!(status.contains("not provisioned") && status.contains("INFER p50"), "{status}");
    let status: Value = serde_json::from_str(&tractctl(&["status", "--at", &at, "--json"]).ok()).unwrap();
    assert_eq!(status["models"][0]["latency"]["count"], status["replies"]["ok"]);
}

#[test]
fn a_refusal_ends_with_1_and_says_why() {
    let home = Home::new();
    home.put_model(&digits::dir(1), "digits", 1);
    let _daemon = home.start();
    let png = digits::samples().remove(0).path.display().to_string();
    let at = home.at();
    refused(&["infer", "birds", "--image", &png, "--at", &at], 1, &["error: model-not-found: "]);
    let text = home.state().with_file_name("text.png");
    std::fs::write(&text, "no picture").unwrap();
    let text = text.to_str().unwrap();
    refused(&["infer", "digits", "--image", text, "--at", &at], 1, &["error: unsupported-type: "]);
    let said = tractctl(&["infer", "birds", "--image", &png, "--at", &at, "--json"]);
    assert_eq!(said.code, Some(1));
    let answer: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&answer["status"], &answer["name"]), (&404.into(), &"model-not-found".into()));
    refused(&["update", "check", "--at", &at], 1, &["not provisioned"]);
}

/// A .npy file of floats with the shape of a digit.
fn npy_of(data: &[u8]) -> Vec<u8> {
    let mut header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 8, 8), }".to_owned();
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(header.len() as u16).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}
