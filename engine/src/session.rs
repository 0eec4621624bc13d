use std::sync::Arc;

use tractd_bundle::DType;

use crate::{Input, Output, Plan, Want};

/// One worker's state on a [`Plan`]: buffers and the graph's own state. Not shared; make one per thread.
pub struct Session {
    plan: Arc<Plan>,
}

/// Why a run gave no answer. All but `Internal` are the request's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// No such input.
    #[error("the model has no input `{name}`; its inputs are {known}")]
    UnknownInput {
        /// As given.
        name: String,
        /// The model's inputs.
        known: String,
    },
    /// The same input again.
    #[error("input `{name}` is given twice")]
    DuplicateInput {
        /// Which.
        name: String,
    },
    /// An input is lacking.
    #[error("input `{name}` is missing")]
    MissingInput {
        /// Which.
        name: String,
    },
    /// Another element type.
    #[error("input `{name}` is {got} where the model takes {expected}")]
    WrongDtype {
        /// Which.
        name: String,
        /// The model's.
        expected: DType,
        /// The request's.
        got: DType,
    },
    /// Another shape, or free dimensions of one name that differ.
    #[error("input `{name}` has shape {got:?} where the model takes [{expected}]")]
    WrongShape {
        /// Which.
        name: String,
        /// The model's.
        expected: String,
        /// The request's.
        got: Vec<u32>,
    },
    /// Shape and bytes do not go together.
    #[error("input `{name}` has {got} bytes where its dtype and shape make {expected}")]
    WrongLength {
        /// Which.
        name: String,
        /// By dtype and shape.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// NaN or infinite, and the manifest does not say `allow_nan`.
    #[error("input `{name}` has a NaN or infinity at element {index}")]
    NotFinite {
        /// Which.
        name: String,
        /// The first, counted over all elements.
        index: usize,
    },
    /// A `bool` that is neither 0 nor 1.
    #[error("input `{name}` has a bool other than 0 and 1 at element {index}")]
    NotBool {
        /// Which.
        name: String,
        /// The first, counted over all elements.
        index: usize,
    },
    /// Not a JPEG or PNG, or the model takes no pictures.
    #[error("{0}")]
    UnsupportedMedia(String),
    /// A damaged picture.
    #[error("the picture does not decode: {0}")]
    MediaDecode(String),
    /// Beyond a limit: a picture's pixels, a free dimension.
    #[error("{what} is {got}, more than the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// In the limit's unit.
        got: u64,
        /// In pixels or elements.
        limit: u64,
    },
    /// The graph failed on a sound input: the model's fault, or ours.
    #[error("the model failed: {0}")]
    Internal(String),
}

impl Session {
    /// A fresh state on `plan`.
    ///
    /// # Errors
    /// The graph's state cannot be set up.
    pub fn new(plan: Arc<Plan>) -> Result<Session, RunError> {
        Ok(Session { plan })
    }

    /// The plan this runs.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Runs the model once. The session stays usable after an error.
    ///
    /// # Errors
    /// [`RunError`]
    pub fn run(&mut self, input: Input<'_>, want: Want) -> Result<Output, RunError> {
        _ = (input, want);
        Err(RunError::Internal("not built yet".to_owned()))
    }
}
