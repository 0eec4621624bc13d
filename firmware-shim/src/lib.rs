//! The device's side of the wire: encodes requests, decodes replies, without std or alloc.
//!
//! Everything here works on the caller's buffers and touches no transport, so that the same code serves a socket, a
//! serial line, an MQTT payload and a test:
//!
//! - [`Call`] is a request with its input; [`encode_request`] makes one frame of it. Where RAM is too dear for a
//!   second copy of an image, [`encode_head`] writes only the start, and [`Call::body`] gives the rest from where it
//!   lies, in flash for example.
//! - [`FrameReader`] takes bytes as they arrive and hands out whole frames; [`Frame::reply`] reads what they say.
//!   Requests may be pipelined; replies may come in any order and carry the request's id.
//! - [`tractd_wire::topic`] builds the MQTT topics in the caller's buffers.
//!
//! What it deliberately does not do yet: keep time, retry, correlate (a sans-IO `Client` over these parts), frame a
//! noisy serial line (COBS and a CRC around the same frames). The C ABI is a crate of its own.
//!
//! # Example
//!
//! ```
//! use tractd_firmware_shim::{Call, DType, FrameReader, Status, Tensor, encode_request};
//!
//! // One 8x8 grey digit, as it came from the sensor.
//! let pixels = [0_u8; 64];
//! let input = [Tensor { name: "image", dtype: DType::U8, shape: &[1, 1, 8, 8], data: &pixels }];
//! let call = Call { deadline_ms: 500, ..Call::tensors("digits", &input) };
//!
//! let mut out = [0; 128];
//! let len = encode_request(7, &call, &mut out).unwrap();
//! let received = transfer(&out[..len]); // the device's own socket, UART, modem, …
//!
//! // As large as the largest reply that is wanted: 20 bytes of header, the head, the tensors.
//! let mut reader = FrameReader::<512>::new();
//! let mut received = &received[..];
//! while let Some(frame) = reader.read(&mut received).unwrap() {
//!     let reply = frame.reply().unwrap();
//!     match reply.status {
//!         Status::Ok => assert_eq!(reply.classes[0].label, "seven"),
//!         status if status.retryable() => { /* again in reply.retry_after_ms */ }
//!         status => panic!("{status}: {}", reply.detail),
//!     }
//! }
//! # fn transfer(_: &[u8]) -> Vec<u8> {
//! #     use tractd_wire::{Class, Classes, Reply, encode_reply};
//! #     let classes = Classes::from_slice(&[Class { index: 7, score: 0.9, label: "seven" }]).unwrap();
//! #     let mut out = [0; 256];
//! #     let reply = Reply { model: "digits", classes, ..Reply::new(Status::Ok) };
//! #     let len = encode_reply(7, &reply, 0, &mut out).unwrap();
//! #     out[..len].to_vec()
//! # }
//! ```
#![no_std]

mod call;
mod reader;

pub use call::{Call, Input, Tensor, encode_head, encode_request};
pub use reader::{FrameReader, ReadError};
pub use tractd_wire::{
    self as wire, Class, DType, DecodeError, EncodeError, Frame, Priority, Reply, Status, Want, views,
};
