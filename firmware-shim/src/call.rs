//! A request as a device has it: descriptions and bytes side by side, all of them borrowed.

use core::slice;

use tractd_wire::{
    Content, DType, EncodeError, Invalid, Priority, RANK_MAX, Request, TensorRef, Want, encode_request_from,
};

/// A request and its input.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The model: `digits`, `digits@7`, `digits@canary`.
    pub model: &'a str,
    /// What it should look at.
    pub input: Input<'a>,
    /// Milliseconds until the answer is worth nothing; 0 for the daemon's default.
    pub deadline_ms: u32,
    /// Who goes first when the model is busy.
    pub priority: Priority,
    /// What the reply should carry. [`Want::CLASSES`] keeps it small.
    pub want: Want,
}

/// What a model should look at.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// One JPEG or PNG, which the daemon decodes and scales.
    Media(&'a [u8]),
    /// The one tensor of a model with one input.
    Tensor(Tensor<'a>),
    /// Tensors, as the model declares them.
    Tensors(&'a [Tensor<'a>]),
}

/// One tensor with its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// As in the model's graph; may be empty where the model has one input.
    pub name: &'a str,
    /// The element type.
    pub dtype: DType,
    /// The dimensions, row-major.
    pub shape: &'a [u32],
    /// The elements, little-endian.
    pub data: &'a [u8],
}

impl<'a> Tensor<'a> {
    const fn describe(&self) -> TensorRef<'a> {
        TensorRef { name: self.name, dtype: self.dtype, shape: self.shape }
    }
}

impl<'a> Call<'a> {
    /// A call with the defaults, of one JPEG or PNG.
    pub const fn media(model: &'a str, image: &'a [u8]) -> Self {
        Self::new(model, Input::Media(image))
    }

    /// A call with the defaults, of the tensor of a model with one input.
    pub const fn tensor(model: &'a str, tensor: Tensor<'a>) -> Self {
        Self::new(model, Input::Tensor(tensor))
    }

    /// A call with the defaults, of tensors.
    pub const fn tensors(model: &'a str, tensors: &'a [Tensor<'a>]) -> Self {
        Self::new(model, Input::Tensors(tensors))
    }

    const fn new(model: &'a str, input: Input<'a>) -> Self {
        Self { model, input, deadline_ms: 0, priority: Priority::Normal, want: Want::ALL }
    }

    /// The pieces of the body, to be sent one after another behind what [`encode_head`] wrote.
    pub fn body(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let (image, tensors) = self.parts();
        image.into_iter().chain(tensors.iter().map(|tensor| tensor.data))
    }

    /// An image or tensors.
    const fn parts(&self) -> (Option<&'a [u8]>, &[Tensor<'a>]) {
        match &self.input {
            Input::Media(image) => (Some(image), &[]),
            Input::Tensor(tensor) => (None, slice::from_ref(tensor)),
            Input::Tensors(tensors) => (None, tensors),
        }
    }
}

/// Writes the whole frame and says how many bytes it is.
///
/// # Errors
/// [`EncodeError::Invalid`] when no daemon would take it, [`EncodeError::Buffer`] when `out` is too small.
pub fn encode_request(id: u64, call: &Call<'_>, out: &mut [u8]) -> Result<usize, EncodeError> {
    let mut len = encode_head(id, call, out)?;
    for piece in call.body() {
        let space = out.get_mut(len..).and_then(|rest| rest.get_mut(..piece.len()));
        space.ok_or(EncodeError::Buffer)?.copy_from_slice(piece);
        len += piece.len();
    }
    Ok(len)
}

/// Writes the header and the head and says how many bytes they are; the pieces of [`Call::body`] follow them.
///
/// # Errors
/// [`EncodeError::Invalid`] when no daemon would take it, [`EncodeError::Buffer`] when `out` is too small.
pub fn encode_head(id: u64, call: &Call<'_>, out: &mut [u8]) -> Result<usize, EncodeError> {
    let &Call { model, deadline_ms, priority, want, .. } = call;
    let (image, tensors) = call.parts();
    let mut body_len = image.map_or(0, <[u8]>::len);
    for tensor in tensors {
        check(tensor)?;
        body_len = body_len.saturating_add(tensor.data.len());
    }
    let body_len = u32::try_from(body_len).map_err(|_| Invalid::TensorsTooLarge)?;
    let content = if image.is_some() { Content::Media } else { Content::Tensors };
    let tensors = tensors.iter().map(Tensor::describe);
    let (stream, sequence) = (0, 0);
    let request = Request { model, deadline_ms, priority, content, want, stream, sequence, tensors };
    encode_request_from(id, &request, body_len, out)
}

/// Each tensor has its own bytes: two that are wrong alike would make a right sum.
fn check(tensor: &Tensor<'_>) -> Result<(), Invalid> {
    if tensor.shape.len() > RANK_MAX {
        return Err(Invalid::TooMany { field: "dimensions", len: tensor.shape.len(), max: RANK_MAX });
    }
    let described = tensor.describe().byte_len().ok_or(Invalid::TensorsTooLarge)?;
    let body = tensor.data.len().try_into().unwrap_or(u32::MAX);
    if described == body { Ok(()) } else { Err(Invalid::BodyLen { described, body }) }
}
