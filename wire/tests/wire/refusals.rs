//! Each rule of a message, broken once: the writer refuses to send it and the reader to take it.

use tractd_wire::*;

use crate::golden;

/// The head of a request that postcard takes, made by hand: all bytes after the model, then the tensors.
fn request_head(model: &str, middle: [u8; 6], tensors: &[u8]) -> Vec<u8> {
    [&[model.len() as u8], model.as_bytes(), &middle, tensors].concat()
}

const TENSORS: [u8; 6] = [0, 1, 0, 3, 0, 0];
const MEDIA: [u8; 6] = [0, 1, 1, 3, 0, 0];
/// One u8 tensor `x` of shape [2].
const X2: &[u8] = &[1, 1, b'x', 1, 1, 2];

#[track_caller]
fn refused(head: &[u8], body_len: u32, error: impl Into<DecodeError>, text: &str) {
    let error = error.into();
    assert_eq!(decode_request(head, body_len), Err(error));
    assert_eq!(error.to_string(), text);
    assert_eq!(error.status(), Status::Malformed);
}

#[test]
fn numbers_without_a_meaning_name_their_field() {
    let number = |field, number| DecodeError::Number { field, number };
    let middle = |at: usize, byte| {
        let mut middle = TENSORS;
        middle[at] = byte;
        request_head("m", middle, X2)
    };
    refused(&middle(1, 3), 2, number("priority", 3), "priority 3 is unknown");
    refused(&middle(2, 2), 2, number("content", 2), "content 2 is unknown");
    refused(&middle(3, 4), 2, number("want", 4), "want 4 is unknown");
    refused(&middle(4, 1), 2, Invalid::Reserved { field: "stream" }, "stream is reserved and must be 0");
    refused(&middle(5, 1), 2, Invalid::Reserved { field: "sequence" }, "sequence is reserved and must be 0");
    let head = request_head("m", TENSORS, &[1, 1, b'x', 13, 1, 2]);
    refused(&head, 2, number("dtype", 13), "dtype 13 is unknown");
    let head = request_head("m", TENSORS, &[1, 1, b'x', 0, 1, 2]);
    refused(&head, 2, number("dtype", 0), "dtype 0 is unknown");
    assert_eq!(decode_query(&[0], 0), Err(number("what", 0)));
    assert_eq!(decode_query(&[4], 0), Err(number("what", 4)));
    assert_eq!(decode_answer(&[0xc9, 0x01, 0]), Err(number("status", 201)));
}

#[test]
fn models_are_selectors() {
    for (model, error, text) in [
        ("", NameError::Empty, "model: a name is missing"),
        (
            "Digits",
            NameError::Character,
            "model: a name may hold a-z, 0-9, '_' and '-' only, and '_' and '-' not first",
        ),
        (
            "digits@0",
            NameError::Version,
            "model: a version is a number from 1 to 18446744073709551615 without leading zeros",
        ),
    ] {
        refused(&request_head(model, TENSORS, X2), 2, Invalid::Model(error), text);
        let mut out = [0; 64];
        let refused = Err(EncodeError::Invalid(Invalid::Model(error)));
        assert_eq!(encode_request(1, &Request::media(model), 1, &mut out), refused);
        if !model.is_empty() {
            let reply = Reply { model, ..Reply::new(Status::Ok) };
            assert_eq!(encode_reply(1, &reply, 0, &mut out), refused);
        }
    }
}

#[test]
fn the_body_is_what_the_head_describes() {
    let sum = |described, body| Invalid::BodyLen { described, body };
    let head = request_head("m", TENSORS, X2);
    assert!(decode_request(&head, 2).is_ok());
    refused(&head, 3, sum(2, 3), "the message describes a body of 2 bytes, the frame has 3");
    refused(&head, 0, sum(2, 0), "the message describes a body of 2 bytes, the frame has 0");
    assert_eq!(decode_query(&[1], 1), Err(sum(0, 1).into()));

    let media = request_head("m", MEDIA, &[0]);
    assert!(decode_request(&media, 1).is_ok());
    refused(&media, 0, Invalid::MediaMissing, "a request with an image needs a body");
    let both = request_head("m", MEDIA, X2);
    refused(&both, 2, Invalid::MediaWithTensors, "a request with an image describes no tensors");
}

#[test]
fn sizes_cannot_overflow() {
    // f64 (8 bytes) times 2^29 is 2^32; u8 times (2^32 - 1) fits, twice does not.
    let large = request_head("m", TENSORS, &[1, 0, 11, 1, 0x80, 0x80, 0x80, 0x80, 0x02]);
    refused(&large, 0, Invalid::TensorsTooLarge, "the tensors are larger than any body can be");
    let max = [0, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f];
    let one = request_head("m", TENSORS, &[&[1], &max[..]].concat());
    assert_eq!(decode_request(&one, u32::MAX).unwrap().tensors[0].byte_len(), Some(u32::MAX));
    let two = request_head("m", TENSORS, &[&[2], &max[..], &max].concat());
    refused(&two, u32::MAX, Invalid::TensorsTooLarge, "the tensors are larger than any body can be");
}

#[test]
fn lists_and_texts_have_limits() {
    let nine_tensors = [&[9][..], &[0, 1, 0].repeat(9)].concat();
    let many = "the head lists more tensors, dimensions or classes than allowed";
    refused(&request_head("m", TENSORS, &nine_tensors), 9, DecodeError::TooMany, many);
    let nine_dims = [&[1, 0, 1, 9][..], &[1; 9]].concat();
    refused(&request_head("m", TENSORS, &nine_dims), 1, DecodeError::TooMany, many);

    let too_long = Invalid::TooLong { field: "tensor name", len: 128, max: 127 };
    let text = "tensor name has 128 bytes; at most 127 are allowed";
    let long_name = [&[1, 0x80, 1][..], &[b'n'; 128], &[1, 0]].concat();
    refused(&request_head("m", TENSORS, &long_name), 1, too_long, text);

    let mut out = [0; FRAME_HEAD_MAX];
    let label = "l".repeat(LABEL_LEN_MAX + 1);
    let class = Class { index: 0, score: 0.0, label: &label };
    let reply = Reply { classes: Classes::from_slice(&[class]).unwrap(), ..Reply::new(Status::Ok) };
    let too_long = Invalid::TooLong { field: "label", len: 128, max: 127 };
    assert_eq!(encode_reply(1, &reply, 0, &mut out), Err(too_long.into()));

    let detail = "d".repeat(DETAIL_LEN_MAX + 1);
    let too_long = Invalid::TooLong { field: "detail", len: 513, max: 512 };
    let reply = Reply { detail: &detail, ..Reply::new(Status::Ok) };
    assert_eq!(encode_reply(1, &reply, 0, &mut out), Err(too_long.into()));
    let answer = Answer { status: Status::Internal, detail: &detail };
    assert_eq!(encode_answer(1, &answer, 0, &mut out), Err(too_long.into()));
}

#[test]
fn heads_are_exact() {
    let head = request_head("m", TENSORS, X2);
    let rest = [&head[..], &[0]].concat();
    refused(&rest, 2, DecodeError::Rest { len: 1 }, "1 bytes follow the message in the head");
    for len in 0..head.len() {
        refused(&head[..len], 2, DecodeError::Truncated, "the head ends within a field");
    }
    let mut not_utf8 = head.clone();
    not_utf8[1] = 0xff;
    refused(&not_utf8, 2, DecodeError::Utf8, "a text in the head is not UTF-8");
    // A deadline of 2^32.
    let deadline = [&[1, b'm', 0x80, 0x80, 0x80, 0x80, 0x10][..], &TENSORS[1..], X2].concat();
    refused(&deadline, 2, DecodeError::Overflow, "a number in the head does not fit its type");
    // `signed`, after status, model, version and digest, is 2.
    let mut reply = golden::bytes(golden::REPLY_REFUSED).split_off(HEADER_LEN);
    reply[2 + 7 + 1 + 32] = 2;
    assert_eq!(decode_reply(&reply, 0), Err(DecodeError::Overflow));
}

#[test]
fn a_refusal_always_encodes() {
    let detail = "ä".repeat(400);
    let reply = Reply::refusal(Status::Internal, 0, &detail);
    assert_eq!(reply.detail, "ä".repeat(256));
    let mut out = [0; FRAME_HEAD_MAX];
    let len = encode_reply(1, &reply, 0, &mut out).unwrap();
    assert_eq!(decode_reply(&out[HEADER_LEN..len], 0), Ok(reply));
    assert_eq!(truncate(&detail[..], 1), "");
    assert_eq!(truncate("abc", 2), "ab");
    assert_eq!(truncate("abc", 3), "abc");
}
