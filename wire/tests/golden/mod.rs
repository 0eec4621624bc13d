//! The frames of version 1, byte for byte, written from the specification and not by this crate. They are
//! frozen: a client in any language may be tested against these files.

/// The bytes of a golden file: hexadecimal, `#` starts a comment.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    text.lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).expect("two hexadecimal digits"))
        .collect()
}

pub(crate) const REQUEST_TENSORS: &str = include_str!("request-tensors.hex");
pub(crate) const REQUEST_MEDIA: &str = include_str!("request-media.hex");
pub(crate) const REQUEST_LIMITS: &str = include_str!("request-limits.hex");
pub(crate) const REPLY_OK: &str = include_str!("reply-ok.hex");
pub(crate) const REPLY_REFUSED: &str = include_str!("reply-refused.hex");
pub(crate) const QUERY_MODELS: &str = include_str!("query-models.hex");
pub(crate) const ANSWER_MODELS: &str = include_str!("answer-models.hex");

pub(crate) const ALL: [&str; 7] =
    [REQUEST_TENSORS, REQUEST_MEDIA, REQUEST_LIMITS, REPLY_OK, REPLY_REFUSED, QUERY_MODELS, ANSWER_MODELS];

/// Packets of the serial line; one file may hold several.
#[allow(dead_code, reason = "the shim's tests share this file and look at frames only")]
pub(crate) const SERIAL_HELLO: &str = include_str!("serial/hello.hex");
#[allow(dead_code, reason = "as above")]
pub(crate) const SERIAL_QUERY: &str = include_str!("serial/query-models.hex");
#[allow(dead_code, reason = "as above")]
pub(crate) const SERIAL_PARTS: &str = include_str!("serial/reply-refused-32.hex");
#[allow(dead_code, reason = "as above")]
pub(crate) const SERIAL_FULL: &str = include_str!("serial/full.hex");
