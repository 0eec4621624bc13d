//! What can be wrong with bytes, and which status answers it.

use crate::{HEAD_LEN_MAX, Kind, MAGIC, NameError, Status, VERSION};

/// Why 20 bytes are no header this crate can go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not our protocol; nothing else in the bytes means anything.
    #[error("the frame starts with {found:02x?} instead of {MAGIC:02x?}")]
    Magic {
        /// The first two bytes.
        found: [u8; 2],
    },
    /// Another version of our protocol. The id is in the same place in all of them.
    #[error("the frame is of version {found}; this side speaks version {VERSION}")]
    Version {
        /// The version byte.
        found: u8,
        /// The frame's id.
        id: u64,
    },
    /// A kind that version 1 does not have.
    #[error("kind {found} is unknown")]
    Kind {
        /// The kind byte.
        found: u8,
        /// The frame's id.
        id: u64,
    },
    /// Reserved bytes that are not zero.
    #[error("the reserved bytes of the header are {found:#06x} instead of zero")]
    Reserved {
        /// The two bytes.
        found: u16,
        /// The frame's id.
        id: u64,
    },
    /// A head beyond [`HEAD_LEN_MAX`].
    #[error("a head of {len} bytes; at most {HEAD_LEN_MAX} are allowed")]
    HeadLen {
        /// The announced bytes.
        len: u16,
        /// The frame's id.
        id: u64,
    },
    /// A body beyond the receiver's limit.
    #[error("a body of {len} bytes; at most {max} are allowed")]
    BodyLen {
        /// The announced bytes.
        len: u32,
        /// The receiver's limit.
        max: u32,
        /// The frame's id.
        id: u64,
    },
}

impl HeaderError {
    /// The id to answer with; none where the bytes are not ours.
    pub const fn id(&self) -> Option<u64> {
        match *self {
            Self::Magic { .. } => None,
            Self::Version { id, .. }
            | Self::Kind { id, .. }
            | Self::Reserved { id, .. }
            | Self::HeadLen { id, .. }
            | Self::BodyLen { id, .. } => Some(id),
        }
    }

    /// The status to answer with.
    pub const fn status(&self) -> Status {
        match self {
            Self::Magic { .. } | Self::Kind { .. } | Self::Reserved { .. } => Status::Malformed,
            Self::Version { .. } => Status::Version,
            Self::HeadLen { .. } | Self::BodyLen { .. } => Status::TooLarge,
        }
    }
}

/// Why bytes in memory are not exactly one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Less than a header.
    #[error("{len} bytes are no frame")]
    Short {
        /// The bytes there are.
        len: usize,
    },
    /// The header is wrong.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// More or fewer bytes than the header announces.
    #[error("the frame has {found} bytes; its header announces {announced}")]
    Length {
        /// The bytes there are.
        found: usize,
        /// The bytes the header announces.
        announced: u64,
        /// The frame's id.
        id: u64,
    },
}

impl FrameError {
    /// The id to answer with; none where there is none.
    pub const fn id(&self) -> Option<u64> {
        match self {
            Self::Short { .. } => None,
            Self::Header(error) => error.id(),
            Self::Length { id, .. } => Some(*id),
        }
    }

    /// The status to answer with.
    pub const fn status(&self) -> Status {
        match self {
            Self::Header(error) => error.status(),
            Self::Short { .. } | Self::Length { .. } => Status::Malformed,
        }
    }
}

/// Why a head is no message; answered with [`Status::Malformed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The frame is of another kind than the one asked for.
    #[error("the frame is a {found}, not a {wanted}")]
    Kind {
        /// The kind asked for.
        wanted: Kind,
        /// The frame's kind.
        found: Kind,
    },
    /// The head ends within a field.
    #[error("the head ends within a field")]
    Truncated,
    /// A varint that does not fit its type, or a bool that is neither 0 nor 1.
    #[error("a number in the head does not fit its type")]
    Overflow,
    /// Text that is not UTF-8.
    #[error("a text in the head is not UTF-8")]
    Utf8,
    /// More tensors, dimensions or classes than allowed.
    #[error("the head lists more tensors, dimensions or classes than allowed")]
    TooMany,
    /// Bytes after the message.
    #[error("{len} bytes follow the message in the head")]
    Rest {
        /// How many.
        len: usize,
    },
    /// A number that has no meaning.
    #[error("{field} {number} is unknown")]
    Number {
        /// The field it stands in.
        field: &'static str,
        /// The number.
        number: u16,
    },
    /// The message can be read but contradicts the specification.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl DecodeError {
    /// The status to answer with.
    pub const fn status(&self) -> Status {
        Status::Malformed
    }
}

/// Why a message was not encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The buffer is too small; [`FRAME_HEAD_MAX`](crate::FRAME_HEAD_MAX) bytes always suffice.
    #[error("the buffer is too small for the header and the head")]
    Buffer,
    /// No reader would take the message.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// What both sides refuse: a writer does not send it, a reader does not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The model is no selector.
    #[error("model: {0}")]
    Model(#[from] NameError),
    /// A text beyond its limit.
    #[error("{field} has {len} bytes; at most {max} are allowed")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A list beyond its limit, from a writer that fills our vectors from lists of its own.
    #[error("{len} {field}; at most {max} are allowed")]
    TooMany {
        /// What there is too much of.
        field: &'static str,
        /// How many.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A reserved field that is not zero.
    #[error("{field} is reserved and must be 0")]
    Reserved {
        /// The field.
        field: &'static str,
    },
    /// An image and tensors at once.
    #[error("a request with an image describes no tensors")]
    MediaWithTensors,
    /// An image of no bytes.
    #[error("a request with an image needs a body")]
    MediaMissing,
    /// Tensors that no body could hold.
    #[error("the tensors are larger than any body can be")]
    TensorsTooLarge,
    /// The described bytes are not those of the body.
    #[error("the message describes a body of {described} bytes, the frame has {body}")]
    BodyLen {
        /// The bytes the types and shapes make; 0 for a query.
        described: u32,
        /// The bytes of the body.
        body: u32,
    },
}
