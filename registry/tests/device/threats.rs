//! docs/threat-model.md names a test for each defence; here it is held to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Every `#[test]` of the workspace's rooms, as `file::name`.
fn tests_below(dir: &Path, found: &mut BTreeMap<String, usize>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !name.starts_with('.') && !matches!(name, "target" | "golden") {
                tests_below(&path, found);
            }
        } else if let Some(stem) = name.strip_suffix(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    marked = true;
                } else if let Some((name, _)) =
                    line.split_once("fn ").and_then(|(_, rest)| rest.split_once('('))
                {
                    if marked {
                        *found.entry(format!("{stem}::{name}")).or_default() += 1;
                    }
                    marked = false;
                }
            }
        }
    }
}

#[test]
fn every_test_the_threat_model_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut tests = BTreeMap::new();
    for room in ["bundle", "daemon", "engine", "registry", "scheduler", "tests", "update", "wire"] {
        tests_below(&root.join(room), &mut tests);
    }
    let text = fs::read_to_string(root.join("docs/threat-model.md")).unwrap();
    let rows: Vec<&str> =
        text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attack")).collect();
    assert!(rows.len() > 40, "{} attacks", rows.len());
    for row in rows {
        let named = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let named: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for name in named {
            assert!(tests.contains_key(name), "there is no test {name}: {row}");
        }
    }
}
