//! The example models: their pictures, and what another runtime computed for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tractd_bundle::{Bundle, Limits};
use tractd_ctl::exchange::Reply;

/// Bytes of one record of `held-out.bin`: the class, then 8×8 pixels.
const RECORD_LEN: usize = 65;

/// The folder of a version of `digits`.
pub fn dir(version: u64) -> PathBuf {
    crate::root().join("models/digits").join(version.to_string())
}

/// The float model that `digits` 1 was quantised from.
pub fn float_dir() -> PathBuf {
    crate::root().join("models/digits-float/1")
}

/// The folder of the camera-sized model.
pub fn camera_dir() -> PathBuf {
    crate::root().join("models/camera/1")
}

/// A large colour JPEG.
///
/// # Panics
/// When the repository lacks it.
pub fn large_jpeg() -> Vec<u8> {
    read(&crate::root().join("models/camera/samples/scene-1-3000x2000.jpg"))
}

/// One real digit as a PNG.
#[derive(Debug, Clone)]
pub struct Sample {
    /// File name without its ending: class and row of the data set, as in `7-0017`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The file.
    pub png: Vec<u8>,
    /// What it shows.
    pub class: u32,
}

/// The digits that the golden vectors were made from, one of each class.
///
/// # Panics
/// When the repository lacks them.
pub fn samples() -> Vec<Sample> {
    let expected = Expected::of(&dir(1));
    let dir = crate::root().join("models/digits/samples");
    let sample = |name: &String| {
        let path = dir.join(format!("{name}.png"));
        let class = name.as_bytes()[0] - b'0';
        Sample { name: name.clone(), png: read(&path), path, class: class.into() }
    };
    expected.logits.keys().map(sample).collect()
}

/// A held-out digit: 64 pixels from 0 to 255, row by row, and its class.
///
/// # Panics
/// When the repository lacks them.
pub fn held_out() -> Vec<(u32, Vec<u8>)> {
    let bytes = read(&crate::root().join("models/digits/held-out.bin"));
    bytes.chunks_exact(RECORD_LEN).map(|record| (record[0].into(), record[1..].to_vec())).collect()
}

/// What a bundle's first output must be for the pictures its golden vectors were made from, as ONNX Runtime computed
/// it, and how far a device may be off.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Name of the model.
    pub model: String,
    /// Version of the bundle.
    pub version: u64,
    /// Digest of the bundle.
    pub digest: [u8; 32],
    logits: BTreeMap<String, Vec<f32>>,
    abs: f32,
    rel: f32,
}

impl Expected {
    /// Reads a bundle's golden vectors.
    ///
    /// # Panics
    /// When the folder is no sound bundle.
    pub fn of(dir: &Path) -> Self {
        let bundle = Bundle::open(dir, &Limits::default()).expect("the example is a sound bundle");
        let manifest = bundle.manifest.as_ref().expect("it has a manifest");
        let logits = manifest.golden.iter().map(|golden| {
            let file = &golden.outputs[0];
            let name = file.trim_start_matches("golden/").split('.').next().unwrap_or_default();
            (name.to_owned(), floats(&read(&dir.join(file))))
        });
        Self {
            model: manifest.name.clone(),
            version: manifest.version,
            digest: bundle.digest.0,
            logits: logits.collect(),
            abs: manifest.tolerance.abs,
            rel: manifest.tolerance.rel,
        }
    }

    /// Holds a reply's output against what ONNX Runtime computed for the picture `name`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn check(&self, name: &str, reply: &Reply) -> Result<(), String> {
        if reply.status != tractd_wire::Status::Ok {
            return Err(format!("{name}: {} ({})", reply.status, reply.detail));
        }
        if (reply.model.as_str(), reply.version, reply.digest) != (&self.model, self.version, self.digest) {
            return Err(format!("{name}: answered by {} {}", reply.model, reply.version));
        }
        let tensor = reply.tensors.first().ok_or_else(|| format!("{name}: no output"))?;
        let got = floats(&tensor.data);
        let golden = self.logits.get(name).ok_or_else(|| format!("{name}: no golden vector"))?;
        if got.len() != golden.len() {
            return Err(format!("{name}: {} values instead of {}", got.len(), golden.len()));
        }
        // A NaN is near nothing, so it fails here too.
        let near = |(got, golden): (&f32, &f32)| (got - golden).abs() <= self.abs + self.rel * golden.abs();
        if got.iter().zip(golden).all(near) {
            return Ok(());
        }
        Err(format!("{name}: {got:?} is not {golden:?} within {}", self.abs))
    }

    /// The largest distance between this bundle's and another's golden outputs for one picture: how far apart the
    /// two are, beside the tolerance.
    pub fn distance(&self, other: &Self, name: &str) -> f32 {
        let pairs =
            self.logits.get(name).into_iter().flatten().zip(other.logits.get(name).into_iter().flatten());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }
}

/// Little-endian bytes as floats.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The place of the largest value.
pub fn best(values: &[f32]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or_default()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
