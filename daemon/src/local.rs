//! Unsigned models in a folder: `<name>/<version>/` (bare or with a manifest), or `<name>/` with a manifest.

use std::{
    fs,
    path::{Path, PathBuf},
};
use tractd_bundle::{MANIFEST_FILE, MODEL_FILE, is_model_name};

/// Entries of a folder looked at; a wrong folder given by mistake must not take minutes.
const ENTRIES_MAX: usize = 4096;

/// One name found, and its folders from the highest version down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) dirs: Vec<PathBuf>,
}

/// Looks for models, in name order. A folder that does not exist holds none; what is no model is passed over.
pub(crate) fn scan(models_dir: &Path) -> Vec<Found> {
    let mut found: Vec<Found> = folders(models_dir)
        .into_iter()
        .filter(|(name, _)| is_model_name(name))
        .filter_map(|(name, dir)| {
            let dirs = if dir.join(MANIFEST_FILE).is_file() { vec![dir] } else { versions(&dir) };
            (!dirs.is_empty()).then_some(Found { name, dirs })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn versions(dir: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<(u64, PathBuf)> = folders(dir)
        .into_iter()
        .filter_map(|(name, dir)| {
            let version =
                name.parse().ok().filter(|version: &u64| *version > 0 && version.to_string() == name)?;
            (dir.join(MODEL_FILE).exists() || dir.join(MANIFEST_FILE).exists()).then_some((version, dir))
        })
        .collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    versions.into_iter().map(|(_, dir)| dir).collect()
}

fn folders(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                log::warn!("{}: {error}", dir.display());
            }
            return Vec::new();
        }
    };
    entries
        .take(ENTRIES_MAX)
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            entry.path().is_dir().then(|| (name, entry.path()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_version_first_and_strangers_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "b/9/model.onnx",
            "b/10/model.onnx",
            "b/010/model.onnx",
            "b/0/model.onnx",
            "b/empty/x",
            "a/manifest.toml",
            "Upper/1/model.onnx",
            "c/1/readme",
        ] {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let at = |path| dir.path().join(path);
        assert_eq!(
            scan(dir.path()),
            [
                Found { name: "a".into(), dirs: vec![at("a")] },
                Found { name: "b".into(), dirs: vec![at("b/10"), at("b/9")] },
            ]
        );
        assert_eq!(scan(&at("nowhere")), []);
    }
}
