use std::sync::Arc;

use tractd_bundle::DType;

/// A tensor somebody else holds: a slice of a request.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The input's name; may be empty where the model has a single input.
    pub name: &'a str,
    /// The element type.
    pub dtype: DType,
    /// Row-major.
    pub shape: &'a [u32],
    /// Little-endian elements, no padding. Any alignment.
    pub data: &'a [u8],
}

/// What a session is given.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// One tensor per input, in any order.
    Tensors(&'a [TensorView<'a>]),
    /// One JPEG or PNG, for a model that declares how a picture becomes its input.
    Media(&'a [u8]),
}

/// What the answer is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The output tensors.
    pub tensors: bool,
    /// The best classes, where the manifest asks for them.
    pub classes: bool,
}

impl Want {
    /// Everything there is.
    pub const ALL: Want = Want { tensors: true, classes: true };
}

/// What a session gives back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// In the manifest's order, as the graph gave them.
    pub tensors: Vec<Tensor>,
    /// Best first.
    pub classes: Vec<Class>,
    /// Where the time went.
    pub timings: Timings,
}

/// A tensor of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The output's name.
    pub name: Arc<str>,
    /// The element type.
    pub dtype: DType,
    /// Row-major.
    pub shape: Vec<u32>,
    /// Little-endian elements, no padding.
    pub data: Vec<u8>,
}

/// One of the best classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// Where it stands in the output, counted over all its elements.
    pub index: u32,
    /// The output's value, or its softmax where the manifest asks for it.
    pub score: f32,
    /// Empty where the bundle has no labels.
    pub label: Arc<str>,
}

/// Microseconds spent in each part of a run, by a monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Checks, decoding, resizing.
    pub pre_us: u32,
    /// The graph.
    pub infer_us: u32,
    /// Classes and copying out.
    pub post_us: u32,
}
