//! The device's side of the wire: encodes requests, decodes replies, without std or alloc.
//!
//! Everything here works on the caller's buffers and touches neither transport nor clock, so that the same code
//! serves a socket, a serial line, an MQTT payload and a test:
//!
//! - [`Call`] is a request with its input; [`encode_request`] makes one frame of it. Where RAM is too dear for a
//!   second copy of an image, [`encode_head`] writes only the start, and [`Call::body`] gives the rest from where it
//!   lies, in flash for example.
//! - [`FrameReader`] takes bytes as they arrive and hands out whole frames; [`Frame::reply_view`] reads what they say
//!   in place, [`Frame::reply`] by value (about 4 kB of stack).
//! - [`Client`] asks, asks again under the same id when nothing comes, waits when the daemon is busy, and gives up in
//!   time; over a [`Stream`] or, in checked packets, over a [`Serial`] line to a gateway.
//! - [`topic`] builds the MQTT topics in the caller's buffers.
//!
//! What it deliberately does not do: run several requests at once over one [`Client`], keep time, move bytes. The C
//! ABI is a crate of its own, `firmware-shim-c`. `scripts/firmware-size` measures text, static memory and stack.
//!
//! # Example
//!
//! ```
//! use tractd_firmware_shim::{Call, Client, DType, Patience, Serial, Step, Tensor};
//! # use tractd_firmware_shim::wire::{Class, Classes, Reply, Status, encode_reply, serial};
//!
//! // One 8x8 grey digit, as it came from the sensor.
//! let pixels = [0_u8; 64];
//! let image = Tensor { name: "image", dtype: DType::U8, shape: &[1, 1, 8, 8], data: &pixels };
//! let call = Call { deadline_ms: 500, ..Call::tensor("digits", image) };
//!
//! // As large as the largest reply that is wanted, and as the start of a request.
//! let (mut replies, mut head, mut out) = ([0; 512], [0; 96], [0; serial::PACKET_LEN_MAX]);
//! let boot = 7; // another number after every start
//! let mut client = Client::new(Serial::new(&mut replies, boot), &mut head, Patience::default(), boot);
//!
//! let mut exchange = client.start(now_ms(), &call).unwrap();
//! # let id = exchange.id();
//! loop {
//!     match exchange.poll(now_ms(), &mut out) {
//!         Step::Send(bytes) => write(bytes), // the device's own UART
//!         Step::Sleep(_) => {
//!             let received = read(); // what came until then
//!             # let received = gateway(id);
//!             exchange.on_bytes(&received);
//!         }
//!         Step::Done(reply) => {
//!             let best = reply.classes().next().expect("a classifier's answer");
//!             assert_eq!(best.label, "seven");
//!             break;
//!         }
//!         Step::TimedOut => break, // try later
//!         step => panic!("{step:?}"),
//!     }
//! }
//! # fn now_ms() -> u32 { 0 }
//! # fn write(_: &[u8]) {}
//! # fn read() {}
//! # fn gateway(id: u64) -> Vec<u8> {
//! #     let classes = Classes::from_slice(&[Class { index: 7, score: 0.9, label: "seven" }]).unwrap();
//! #     let reply = Reply { model: "digits", classes, ..Reply::new(Status::Ok) };
//! #     let (mut frame, mut out) = ([0; 256], [0; 512]);
//! #     let len = encode_reply(id, &reply, 0, &mut frame).unwrap();
//! #     let hello = serial::Hello { answer: false, payload_max: 250, frame_max: 4096, session: 1 };
//! #     let start = hello.encode(&mut out).unwrap();
//! #     let pieces = [&frame[..len]].into_iter();
//! #     let end = start + serial::Sender::new().next(pieces, 250, &mut out[start..]).unwrap();
//! #     out[..end].to_vec()
//! # }
//! ```
#![no_std]

mod call;
mod client;
mod link;
mod reader;

pub use call::{Call, Input, Tensor, encode_head, encode_request};
pub use client::{Client, Exchange, Patience, Step};
pub use link::{Link, Serial, Stream};
pub use reader::{FrameReader, ReadError};
pub use tractd_wire::{
    self as wire, Class, DType, DecodeError, EncodeError, Frame, Priority, Reply, ReplyView, Status,
    TensorView, Want, topic, views,
};
