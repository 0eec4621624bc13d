//! `manifest.toml`, schema 1, parsed into checked types: whoever holds a [`Manifest`] need not check it again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::DType;
use image::ImageSpec;

mod check;
pub(crate) mod image;

/// The only manifest format there is so far.
pub const MANIFEST_SCHEMA: u32 = 1;
/// Characters of a model's name; names become topic levels, folder names and registry paths.
pub const NAME_LEN_MAX: usize = 63;
/// Inputs, and outputs, of one model: what one frame on the wire describes.
pub const TENSORS_MAX: usize = 8;
/// Dimensions of one tensor: what one frame on the wire describes.
pub const RANK_MAX: usize = 8;
/// Classes in one answer: what one frame on the wire holds.
pub const TOP_K_MAX: usize = 10;

/// What a bundle says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Manifest {
    /// Always [`MANIFEST_SCHEMA`].
    pub schema: u32,
    /// The model's name, `[a-z0-9][a-z0-9_-]*`, unique in a fleet.
    pub name: String,
    /// Grows with every release; 1 or more.
    pub version: u64,
    /// One line for people.
    pub description: String,
    /// SPDX expression.
    pub license: String,
    /// The file of class names, one per line.
    pub labels: Option<String>,
    /// In the order of the graph's inputs by name; one at least.
    pub inputs: Vec<InputSpec>,
    /// One at least.
    pub outputs: Vec<OutputSpec>,
    /// Architectures it may run on (`x86_64`, `aarch64`, `arm`); empty means any.
    pub arch: Vec<String>,
    /// The oldest `tractd` that can run it, as `MAJOR.MINOR.PATCH`.
    pub min_runtime: Option<String>,
    /// The author's claim; the device measures for itself, and refuses an update that takes far more.
    pub peak_ram_bytes: Option<u64>,
    /// How far the device's outputs may be from the golden ones.
    pub tolerance: Tolerance,
    /// Inputs with the outputs another runtime computed for them.
    pub golden: Vec<GoldenSpec>,
    /// Free-form record of how the model came about.
    pub provenance: BTreeMap<String, toml::Value>,
}

/// Name, element type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorSpec {
    /// As in the graph.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// Row-major; at most [`RANK_MAX`] dimensions.
    pub shape: Vec<Dim>,
}

/// One `[[input]]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InputSpec {
    /// What the graph takes.
    #[serde(flatten)]
    pub tensor: TensorSpec,
    /// How a picture becomes this tensor, if it can be one.
    pub image: Option<ImageSpec>,
    /// Whether NaN and infinities may come in; by default they are refused.
    pub allow_nan: bool,
}

/// One `[[output]]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputSpec {
    /// What the graph gives.
    #[serde(flatten)]
    pub tensor: TensorSpec,
    /// How classes are read off it.
    #[serde(flatten)]
    pub post: Post,
}

/// What happens to an output after the graph. The tensor in the answer stays as the graph gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Post {
    /// Scores are the softmax of the output, over all its elements.
    pub softmax: bool,
    /// How many of the best classes to name, best first; at most [`TOP_K_MAX`].
    pub top_k: Option<usize>,
}

/// One dimension of a shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a dimension must be a size, or a name where it is free")]
pub enum Dim {
    /// So many elements; 1 or more.
    Fixed(u32),
    /// Chosen by each request, the same wherever the name stands.
    Free(String),
}

/// `|got - golden| <= abs + rel * |golden|`, for every element.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// Default: 1e-4.
    #[serde(default = "Tolerance::default_abs")]
    pub abs: f32,
    /// Default: 1e-3.
    #[serde(default = "Tolerance::default_rel")]
    pub rel: f32,
}

/// One `[[golden]]`: raw little-endian, row-major tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoldenSpec {
    /// One file per input, in the manifest's order.
    pub inputs: Vec<String>,
    /// One file per output, in the manifest's order.
    pub outputs: Vec<String>,
    /// What computed the outputs, as in `onnxruntime 1.32`.
    pub from: String,
    /// The size of every free dimension, by name.
    pub shape: BTreeMap<String, u32>,
}

/// Why a manifest is refused; says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not UTF-8, not TOML, an unknown key, or a value of the wrong type.
    #[error("manifest.toml: {0}")]
    Syntax(String),
    /// Written for another release of the format.
    #[error("manifest.toml: schema {found} is not supported, only {MANIFEST_SCHEMA}")]
    Schema {
        /// What the file says.
        found: i64,
    },
    /// A value that cannot be meant.
    #[error("manifest.toml: `{field}` {problem}")]
    Field {
        /// Where, as in `input.x.shape`.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// Whether `name` can be a model's: `[a-z0-9][a-z0-9_-]{0,62}`.
pub fn is_model_name(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=NAME_LEN_MAX).contains(&name.len())
        && inner(name.as_bytes()[0])
        && name.bytes().all(|c| inner(c) || c == b'_' || c == b'-')
}

impl Manifest {
    /// Parses and checks.
    ///
    /// # Errors
    /// The first thing wrong, by field.
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        check::parse(text)
    }

    /// Every file of the bundle the manifest names, itself and the model included, sorted, each once.
    pub fn files(&self) -> BTreeSet<&str> {
        let golden = self.golden.iter().flat_map(|golden| golden.inputs.iter().chain(&golden.outputs));
        [crate::MANIFEST_FILE, crate::MODEL_FILE]
            .into_iter()
            .chain(self.labels.as_deref())
            .chain(golden.map(String::as_str))
            .collect()
    }
}

impl TensorSpec {
    /// The shape with every free dimension put in, or `None` where `free` lacks one.
    pub fn resolved(&self, free: &BTreeMap<String, u32>) -> Option<Vec<u32>> {
        self.shape
            .iter()
            .map(|dim| match dim {
                Dim::Fixed(size) => Some(*size),
                Dim::Free(name) => free.get(name).copied(),
            })
            .collect()
    }

    /// The names of its free dimensions.
    pub fn free_dims(&self) -> impl Iterator<Item = &str> {
        self.shape.iter().filter_map(|dim| match dim {
            Dim::Fixed(_) => None,
            Dim::Free(name) => Some(name.as_str()),
        })
    }

    /// Bytes of a tensor of `shape`, or `None` where that does not fit 64 bits.
    pub fn byte_len(&self, shape: &[u32]) -> Option<u64> {
        shape.iter().try_fold(self.dtype.size() as u64, |bytes, &dim| bytes.checked_mul(dim.into()))
    }
}

impl Tolerance {
    fn default_abs() -> f32 {
        1e-4
    }

    fn default_rel() -> f32 {
        1e-3
    }
}

impl Default for Tolerance {
    fn default() -> Tolerance {
        Tolerance { abs: Tolerance::default_abs(), rel: Tolerance::default_rel() }
    }
}
