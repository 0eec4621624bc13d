//! A request as a device has it: descriptions and bytes side by side, all of them borrowed.

use tractd_wire::{
    self as wire, Content, DType, EncodeError, Invalid, Priority, RANK_MAX, Request, Shape, TENSORS_MAX,
    TensorDesc, Tensors, Want,
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

impl<'a> Call<'a> {
    /// A call with the defaults, of one JPEG or PNG.
    pub const fn media(model: &'a str, image: &'a [u8]) -> Self {
        Self::new(model, Input::Media(image))
    }

    /// A call with the defaults, of tensors.
    pub const fn tensors(model: &'a str, tensors: &'a [Tensor<'a>]) -> Self {
        Self::new(model, Input::Tensors(tensors))
    }

    const fn new(model: &'a str, input: Input<'a>) -> Self {
        Self { model, input, deadline_ms: 0, priority: Priority::Normal, want: Want::ALL }
    }

    /// The pieces of the body, to be sent one after another behind what [`encode_head`] wrote.
    pub fn body(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (image, tensors) = match self.input {
            Input::Media(image) => (Some(image), [].as_slice()),
            Input::Tensors(tensors) => (None, tensors),
        };
        image.into_iter().chain(tensors.iter().map(|tensor| tensor.data))
    }

    fn body_len(&self) -> Result<u32, Invalid> {
        self.body()
            .try_fold(0_u32, |sum, piece| sum.checked_add(piece.len().try_into().ok()?))
            .ok_or(Invalid::TensorsTooLarge)
    }

    fn request(&self) -> Result<Request<'a>, Invalid> {
        let (content, tensors) = match self.input {
            Input::Media(_) => (Content::Media, Tensors::new()),
            Input::Tensors(tensors) => (Content::Tensors, describe(tensors)?),
        };
        let (deadline_ms, priority, want) = (self.deadline_ms, self.priority, self.want);
        Ok(Request { deadline_ms, priority, content, want, tensors, ..Request::tensors(self.model) })
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
    wire::encode_request(id, &call.request()?, call.body_len()?, out)
}

fn describe<'a>(tensors: &[Tensor<'a>]) -> Result<Tensors<'a>, Invalid> {
    let mut descs = Tensors::new();
    for &Tensor { name, dtype, shape, data } in tensors {
        let too_long = |_| Invalid::TooMany { field: "dimensions", len: shape.len(), max: RANK_MAX };
        let shape = Shape::from_slice(shape).map_err(too_long)?;
        let desc = TensorDesc { name, dtype, shape };
        let described = desc.byte_len().ok_or(Invalid::TensorsTooLarge)?;
        if described as usize != data.len() {
            let body = data.len().try_into().unwrap_or(u32::MAX);
            return Err(Invalid::BodyLen { described, body });
        }
        let too_many = |_| Invalid::TooMany { field: "tensors", len: tensors.len(), max: TENSORS_MAX };
        descs.push(desc).map_err(too_many)?;
    }
    Ok(descs)
}
