//! The frames, messages, status codes and topic names of tractd, without std or alloc.
//!
//! One frame is a 20-byte [`Header`], a head (a [postcard] message of at most [`HEAD_LEN_MAX`] bytes) and a body of
//! raw bytes (tensors, an image, JSON). The same frame travels over the Unix socket, a serial line and the MQTT
//! payloads of the format `postcard`. `docs/wire.md` is the specification for clients in other languages.
//!
//! | module | what it holds |
//! |---|---|
//! | [`Header`], [`Frame`] | the fixed 20 bytes, and a frame that is wholly in memory |
//! | [`Request`], [`Reply`], [`Query`], [`Answer`] | the messages as people use them: checked enums and names |
//! | `frozen` (private) | the same messages as version 1 sends them: plain numbers, never changed again |
//! | [`Status`], [`DType`], … | the numbers; each one is frozen |
//! | [`Name`], [`Selector`] | what a model may be called, and how a version is pinned |
//! | [`ReplyView`] | a reply read in place, for small stacks |
//! | [`serial`] | frames over a serial line: packets, checks, fragments |
//! | [`topic`] | the MQTT topic tree, parsed and built in the caller's buffers |
//!
//! What it deliberately does not do: read or write a transport, copy a body, know a model, keep time.
//!
//! [postcard]: https://postcard.jamesmunns.com/wire-format
#![no_std]

mod code;
mod error;
mod frame;
mod frozen;
mod message;
mod name;
pub mod serial;
pub mod topic;
mod view;
mod writer;

pub use code::{Content, DType, Kind, Priority, Status, Want, What};
pub use error::{DecodeError, EncodeError, FrameError, HeaderError, Invalid};
pub use frame::{Frame, Header};
pub use frozen::{
    decode_answer, decode_query, decode_reply, decode_request, encode_answer, encode_query, encode_reply,
    encode_request, encode_request_from,
};
pub use message::{
    Answer, Class, Classes, Query, Reply, Request, Shape, TensorDesc, TensorRef, Tensors, body_len, truncate,
    views,
};
pub use name::{Name, NameError, Pin, Selector};
pub use view::{ReplyView, ShapeView, TensorView};

/// The vectors of [`Request`], [`Reply`] and [`TensorDesc`] are this version's.
pub use heapless;

/// The first two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"td";
/// The version of the header's third byte that this crate speaks.
pub const VERSION: u8 = 1;
/// Bytes of a header. Magic, version and id keep their places in every version, so that any can be answered.
pub const HEADER_LEN: usize = 20;
/// Bytes of a head. Every message whose parts keep their own limits fits, so only those need looking after.
pub const HEAD_LEN_MAX: usize = 4096;
/// Bytes of a buffer that any header with its head fits into.
pub const FRAME_HEAD_MAX: usize = HEADER_LEN + HEAD_LEN_MAX;
/// Bytes of a body unless configured otherwise: a 4K RGB frame in f32 is 95 MiB and should rather be sent as a JPEG.
pub const BODY_LEN_MAX: u32 = 64 << 20;
/// Tensors of one request or reply.
pub const TENSORS_MAX: usize = 8;
/// Dimensions of one tensor; ONNX graphs in the field stay below seven.
pub const RANK_MAX: usize = 8;
/// Classes of one reply.
pub const CLASSES_MAX: usize = 10;
/// Bytes of a model, node or group name.
pub const NAME_LEN_MAX: usize = 63;
/// Bytes of `name@pin`.
pub const SELECTOR_LEN_MAX: usize = 2 * NAME_LEN_MAX + 1;
/// Bytes of a tensor's name. ONNX names are longer than a model's and of any characters; 127 keeps their length
/// prefix one byte.
pub const TENSOR_NAME_LEN_MAX: usize = 127;
/// Bytes of a class label.
pub const LABEL_LEN_MAX: usize = 127;
/// Bytes of an error's detail.
pub const DETAIL_LEN_MAX: usize = 512;

// The promise of HEAD_LEN_MAX: the largest reply of legal parts, each varint at its longest.
const _: () = {
    let tensor = 1 + TENSOR_NAME_LEN_MAX + 1 + 1 + 5 * RANK_MAX;
    let class = 5 + 4 + 1 + LABEL_LEN_MAX;
    let fixed = 3 + (1 + SELECTOR_LEN_MAX) + 10 + 32 + 1 + 5 * 5 + (2 + DETAIL_LEN_MAX);
    assert!(fixed + 1 + TENSORS_MAX * tensor + 1 + CLASSES_MAX * class <= HEAD_LEN_MAX);
};
