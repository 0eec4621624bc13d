//! The arrows between the rooms, as ARCHITECTURE.md draws them, held against what cargo builds and what files name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tractd_tests::root;

/// Which rooms a room may depend on when it is built for use (tests may reach further).
const ARROWS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("firmware-shim", &["wire"]),
    ("firmware-shim-c", &["firmware-shim"]),
    ("kernels", &[]),
    ("compiler", &["kernels"]),
    ("bundle", &[]),
    ("engine", &["bundle", "compiler"]),
    ("scheduler", &[]),
    ("update", &["bundle"]),
    ("registry", &["bundle"]),
    ("daemon", &["bundle", "compiler", "engine", "kernels", "scheduler", "update", "wire"]),
    // `update` for `device provision`: who writes the device's files is who reads them.
    ("ctl", &["bundle", "engine", "registry", "update", "wire"]),
    ("tests", &["bundle", "ctl", "engine", "firmware-shim", "registry", "update", "wire"]),
];

/// Which rooms may depend on a crate at all.
const NAMED_BY: &[(&str, &[&str])] = &[
    ("tract-onnx", &["compiler", "engine"]),
    ("tract-linalg", &["compiler", "kernels"]),
    ("rumqttc", &["ctl", "daemon", "tests"]),
    ("rumqttd", &["tests"]),
    ("serial2-tokio", &["daemon"]),
    ("sigstore-tuf", &["update"]),
    ("tough", &["registry"]),
    ("tokio", &["daemon", "tests"]),
    ("clap", &["ctl", "daemon", "tests"]),
    ("anyhow", &["ctl", "daemon", "tests"]),
];

/// The one file (or folder) of each room that names an outside crate, so that replacing it is one file's work.
const NAMED_IN: &[(&str, &[&str])] = &[
    ("rumqttc", &["ctl/src/mqtt.rs", "daemon/src/mqtt/client/codec.rs", "tests/src/mqtt.rs"]),
    ("rumqttd", &["tests/src/broker.rs"]),
    ("serial2_tokio", &["daemon/src/gateway.rs"]),
    ("sigstore_tuf", &["update/src/verify.rs"]),
    // Certificates are judged by the device's time, which their libraries have no place for.
    (
        "rustls",
        &[
            "update/src/tls.rs",
            "update/src/tls/verifier.rs",
            "daemon/src/mqtt/tls/read.rs",
            "ctl/src/mqtt.rs",
        ],
    ),
    // The registry writes its metadata itself; tough reads it back in the registry's own tests.
    ("tough", &[]),
];

/// What must not end up in a binary, whichever way it would get there.
const ABSENT: &[(&str, &[&str])] = &[
    ("daemon", &["tractd-ctl", "tractd-registry", "tough", "age", "tiny_http", "rumqttd"]),
    ("ctl", &["tractd-daemon", "rumqttd"]),
    ("wire", &["tokio", "serde_json"]),
    ("firmware-shim", &["tokio", "serde_json"]),
    ("firmware-shim-c", &["tokio", "serde_json", "cbindgen"]),
];

#[test]
fn every_room_depends_only_where_its_arrows_point() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(room, to)| (*room, to.iter().copied().collect())).collect();
    for (room, dependencies) in rooms() {
        let allowed = allowed.get(room.as_str()).unwrap_or_else(|| panic!("room {room} has no arrows here"));
        let rooms = dependencies.iter().filter_map(|name| name.strip_prefix("tractd-"));
        let beyond: Vec<_> = rooms.filter(|to| !allowed.contains(to)).collect();
        assert_eq!(beyond, Vec::<&str>::new(), "{room} reaches into rooms it must not know");
    }
}

#[test]
fn outside_crates_stay_in_the_rooms_that_own_them() {
    for (room, dependencies) in rooms() {
        for (name, owners) in NAMED_BY {
            let named = dependencies.contains(*name);
            assert!(!named || owners.contains(&room.as_str()), "{room} depends on {name}");
        }
    }
}

#[test]
fn outside_crates_are_named_in_one_file_of_a_room() {
    for (name, files) in NAMED_IN {
        let mut found = Vec::new();
        for (room, _) in ARROWS {
            each_source(&root().join(room).join("src"), &mut |path, text| {
                if names(text, name) {
                    found.push(path.strip_prefix(root()).unwrap().display().to_string());
                }
            });
        }
        found.retain(|file| !files.iter().any(|allowed| file == allowed));
        assert_eq!(found, Vec::<String>::new(), "{name} is named outside {files:?}");
    }
}

#[test]
fn only_one_module_of_update_touches_the_disk() {
    let mut found = Vec::new();
    each_source(&root().join("update/src"), &mut |path, text| {
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        if names(product, "std::fs") || names(product, "File") {
            found.push(path.strip_prefix(root()).unwrap().display().to_string());
        }
    });
    found.retain(|file| file != "update/src/fs.rs" && !file.starts_with("update/src/fs/"));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn binaries_hold_nothing_that_belongs_elsewhere() {
    let metadata = metadata(&[]);
    let names: BTreeMap<&str, &str> =
        array(&metadata["packages"]).map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in array(&metadata["resolve"]["nodes"]) {
        let normal = array(&node["deps"])
            .filter(|dep| array(&dep["dep_kinds"]).any(|kind| kind["kind"].is_null()))
            .map(|dep| text(&dep["pkg"]));
        edges.insert(text(&node["id"]), normal.collect());
    }
    for (room, absent) in ABSENT {
        let package = format!("tractd-{room}");
        let start = names.iter().find(|(_, name)| **name == package).map(|(id, _)| *id).unwrap();
        let mut reached = BTreeSet::from([start]);
        let mut open = vec![start];
        while let Some(id) = open.pop() {
            for next in edges.get(id).into_iter().flatten() {
                if reached.insert(next) {
                    open.push(next);
                }
            }
        }
        let reached: BTreeSet<&str> = reached.iter().map(|id| names[id]).collect();
        let found: Vec<_> = absent.iter().filter(|name| reached.contains(**name)).collect();
        assert_eq!(found, Vec::<&&str>::new(), "{room} links what it must not");
    }
}

#[test]
fn unsafe_code_lives_in_the_kernels_and_the_c_abi_alone() {
    for (room, _) in ARROWS.iter().filter(|(room, _)| !["kernels", "firmware-shim-c"].contains(room)) {
        let manifest = std::fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        // The workspace's lints forbid it; a room that does not take them could allow it.
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{room} does not take the lints");
    }
}

/// Each room with what it depends on when built for use, by package name.
fn rooms() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata(&["--no-deps"]);
    array(&metadata["packages"])
        .map(|package| {
            let room = text(&package["name"]).strip_prefix("tractd-").expect("every package is tractd-…");
            let normal = array(&package["dependencies"]).filter(|dependency| dependency["kind"].is_null());
            (room.to_owned(), normal.map(|dependency| text(&dependency["name"]).to_owned()).collect())
        })
        .collect()
}

fn metadata(arguments: &[&str]) -> Value {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("cargo metadata gives a list here").iter()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("cargo metadata gives text here")
}

/// Whether code (not a comment) holds `word` as a word of its own.
fn names(source: &str, word: &str) -> bool {
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    source.lines().map(|line| line.split("//").next().unwrap_or_default()).any(|line| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            !before.is_some_and(part_of_a_word) && !after.is_some_and(part_of_a_word)
        })
    })
}

fn each_source(dir: &Path, visit: &mut dyn FnMut(&Path, &str)) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            each_source(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}
