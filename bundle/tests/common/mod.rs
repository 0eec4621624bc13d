use std::path::{Path, PathBuf};

/// The frozen example of the format.
pub(crate) fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schema-1")
}

pub(crate) const FILES: [&str; 6] = [
    "golden/0.count.bin",
    "golden/0.picture.bin",
    "golden/0.scores.bin",
    "labels.txt",
    "manifest.toml",
    "model.onnx",
];

/// The fixture's files, by path, in the archive's order.
pub(crate) fn files() -> Vec<(String, Vec<u8>)> {
    FILES.iter().map(|file| ((*file).to_owned(), std::fs::read(fixture().join(file)).unwrap())).collect()
}

/// Everything below `dir`, folders too.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(entries(&path));
        }
        found.push(path);
    }
    found
}
