//! The messages as they are used: checked enums, borrowed text, no copy of a body.

use crate::{
    CLASSES_MAX, Content, DETAIL_LEN_MAX, DType, Priority, RANK_MAX, Status, TENSORS_MAX, Want, What,
};

/// The dimensions of a tensor, outermost first; elements lie in row-major order. Empty for a scalar.
pub type Shape = heapless::Vec<u32, RANK_MAX>;
/// The tensors of a body, in the order their bytes follow one another.
pub type Tensors<'a> = heapless::Vec<TensorDesc<'a>, TENSORS_MAX>;
/// The classes of a reply, best first.
pub type Classes<'a> = heapless::Vec<Class<'a>, CLASSES_MAX>;

/// Asks a model for an answer.
///
/// `T` is what describes the tensors: [`Tensors`], or an iterator over descriptions that lie elsewhere, see
/// [`encode_request_from`](crate::encode_request_from).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a, T = Tensors<'a>> {
    /// A [`Selector`](crate::Selector): `digits`, `digits@7`, `digits@canary`.
    pub model: &'a str,
    /// Milliseconds from the daemon's receipt until the answer is worth nothing; 0 for the daemon's default.
    pub deadline_ms: u32,
    /// Who goes first when the model is busy.
    pub priority: Priority,
    /// What the body is.
    pub content: Content,
    /// What the reply should carry.
    pub want: Want,
    /// Reserved for streams (the latest frame wins); 0.
    pub stream: u32,
    /// Reserved for sequences (recurrent state); 0.
    pub sequence: u32,
    /// The body's tensors; none for [`Content::Media`].
    pub tensors: T,
}

impl<'a> Request<'a> {
    /// A request with the defaults, whose body is the tensors that will be described in it.
    pub const fn tensors(model: &'a str) -> Self {
        Self::new(model, Content::Tensors)
    }

    /// A request with the defaults, whose body is one JPEG or PNG.
    pub const fn media(model: &'a str) -> Self {
        Self::new(model, Content::Media)
    }

    const fn new(model: &'a str, content: Content) -> Self {
        Self {
            model,
            deadline_ms: 0,
            priority: Priority::Normal,
            content,
            want: Want::ALL,
            stream: 0,
            sequence: 0,
            tensors: Tensors::new(),
        }
    }
}

/// What became of a request. Its body is the bytes of `tensors`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply<'a> {
    /// How it ended.
    pub status: Status,
    /// The model that answered, or the selector that was asked for; empty where neither is known.
    pub model: &'a str,
    /// The version that answered; 0 where none did.
    pub version: u64,
    /// The digest of the bundle that answered; zeros where none did.
    pub digest: [u8; 32],
    /// Whether that bundle came signed from the registry.
    pub signed: bool,
    /// Microseconds in the queue.
    pub queue_us: u32,
    /// Microseconds of pre-processing.
    pub pre_us: u32,
    /// Microseconds of inference.
    pub infer_us: u32,
    /// Microseconds of post-processing.
    pub post_us: u32,
    /// Milliseconds after which a retryable refusal is worth another try; 0 says nothing.
    pub retry_after_ms: u32,
    /// For people: what was wrong and what to do; empty when all is well.
    pub detail: &'a str,
    /// The body's tensors.
    pub tensors: Tensors<'a>,
    /// The best classes, best first.
    pub classes: Classes<'a>,
}

impl<'a> Reply<'a> {
    /// A reply with this status and nothing else.
    pub const fn new(status: Status) -> Self {
        Self {
            status,
            model: "",
            version: 0,
            digest: [0; 32],
            signed: false,
            queue_us: 0,
            pre_us: 0,
            infer_us: 0,
            post_us: 0,
            retry_after_ms: 0,
            detail: "",
            tensors: Tensors::new(),
            classes: Classes::new(),
        }
    }

    /// A reply without an answer. It always encodes: a detail that is too long is cut.
    pub fn refusal(status: Status, retry_after_ms: u32, detail: &'a str) -> Self {
        Self { retry_after_ms, detail: truncate(detail, DETAIL_LEN_MAX), ..Self::new(status) }
    }
}

/// The name, type and shape of one tensor of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDesc<'a> {
    /// As in the model's graph, of any characters; may be empty where the model has one input.
    pub name: &'a str,
    /// The element type.
    pub dtype: DType,
    /// The dimensions, row-major.
    pub shape: Shape,
}

/// A [`TensorDesc`] whose dimensions lie elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorRef<'a> {
    /// As in the model's graph, of any characters; may be empty where the model has one input.
    pub name: &'a str,
    /// The element type.
    pub dtype: DType,
    /// The dimensions, row-major; at most [`RANK_MAX`].
    pub shape: &'a [u32],
}

impl TensorDesc<'_> {
    /// Bytes of the tensor in the body; none when no body could hold it. A dimension of 0 makes it 0 bytes, however
    /// large the others are.
    pub fn byte_len(&self) -> Option<u32> {
        self.as_ref().byte_len()
    }

    /// The same without a copy of the dimensions.
    pub fn as_ref(&self) -> TensorRef<'_> {
        TensorRef { name: self.name, dtype: self.dtype, shape: &self.shape }
    }
}

impl TensorRef<'_> {
    /// Bytes of the tensor in the body, as [`TensorDesc::byte_len`].
    pub fn byte_len(&self) -> Option<u32> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().try_fold(self.dtype.size() as u32, |len, &dim| len.checked_mul(dim))
    }
}

/// One class of a classifier's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Class<'a> {
    /// Its place in the output tensor.
    pub index: u32,
    /// Its score, as the model's post-processing gives it.
    pub score: f32,
    /// Its label; empty where the model has none.
    pub label: &'a str,
}

/// Asks the daemon about itself. It has no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// What is asked for.
    pub what: What,
}

/// What the daemon says about itself. Its body is JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// How the query ended.
    pub status: Status,
    /// For people: what was wrong; empty when all is well.
    pub detail: &'a str,
}

/// Bytes of a body that holds these tensors; none when no body could.
pub fn body_len(tensors: &[TensorDesc<'_>]) -> Option<u32> {
    tensors.iter().try_fold(0_u32, |sum, tensor| sum.checked_add(tensor.byte_len()?))
}

/// Each tensor with its bytes in the body. A decoded message's body has all of them; where a body is too short the
/// rest is left out.
pub fn views<'t, 'n, 'b>(
    tensors: &'t [TensorDesc<'n>],
    mut body: &'b [u8],
) -> impl Iterator<Item = (&'t TensorDesc<'n>, &'b [u8])> {
    tensors.iter().map_while(move |tensor| {
        let (data, rest) = body.split_at_checked(tensor.byte_len()? as usize)?;
        body = rest;
        Some((tensor, data))
    })
}

/// The longest start of `text` that has at most `len_max` bytes and ends with a whole character: for details and
/// labels that come from elsewhere and must fit a message.
pub fn truncate(text: &str, len_max: usize) -> &str {
    text.get(..text.floor_char_boundary(len_max)).unwrap_or_default()
}
