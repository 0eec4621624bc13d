//! No bytes make a decoder panic, and what a decoder takes keeps every rule.

use proptest::{collection::vec, prelude::*};
use tractd_wire::{topic::*, *};

use crate::golden;

/// Every decoder over the same bytes. What one takes must encode again: the writer knows the same rules.
fn decode_all(bytes: &[u8], body_len: u32) {
    let mut out = [0; FRAME_HEAD_MAX];
    let _ = Frame::parse(bytes, BODY_LEN_MAX);
    if let Some(Ok(header)) = bytes.first_chunk().map(Header::parse) {
        assert_eq!(bytes.first_chunk(), Some(&header.to_bytes()));
    }
    if let Ok(request) = decode_request(bytes, body_len) {
        let len = encode_request(1, &request, body_len, &mut out).unwrap();
        assert_eq!(decode_request(&out[HEADER_LEN..len], body_len), Ok(request));
    }
    if let Ok(reply) = decode_reply(bytes, body_len) {
        encode_reply(1, &reply, body_len, &mut out).unwrap();
        views(&reply.tensors, bytes).for_each(drop);
    }
    // The body of a frame in memory; beyond this, one decoder is like the other and it costs memory.
    if let Some(body) = BODY.get(..body_len as usize) {
        same_reply(bytes, body);
    }
    if let Ok(query) = decode_query(bytes, body_len) {
        encode_query(1, &query, &mut out).unwrap();
    }
    if let Ok(answer) = decode_answer(bytes) {
        encode_answer(1, &answer, body_len, &mut out).unwrap();
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (Name::parse(text), Word::parse(text), Prefix::parse(text));
        if let Ok(selector) = Selector::parse(text) {
            assert_eq!(selector.to_string(), text);
        }
        if let Ok(topic) = Topic::parse(Prefix::DEFAULT, text) {
            assert_eq!(topic.under(Prefix::DEFAULT).to_string(), text);
        }
    }
}

static BODY: [u8; 1 << 16] = [7; 1 << 16];

/// Both decoders of a reply take the same heads and find the same in them.
pub(crate) fn same_reply(head: &[u8], body: &[u8]) {
    let view = ReplyView::parse(head, body);
    let reply = match decode_reply(head, body.len() as u32) {
        Ok(reply) => reply,
        Err(_) => return assert!(view.is_err(), "only the view takes {head:02x?}"),
    };
    let view = view.unwrap();
    let tensors = view.tensors().map(|tensor| {
        let shape: Vec<u32> = tensor.shape.iter().collect();
        TensorDesc { name: tensor.name, dtype: tensor.dtype, shape: Shape::from_slice(&shape).unwrap() }
    });
    let viewed = Reply {
        status: view.status,
        model: view.model,
        version: view.version,
        digest: *view.digest,
        signed: view.signed,
        queue_us: view.queue_us,
        pre_us: view.pre_us,
        infer_us: view.infer_us,
        post_us: view.post_us,
        retry_after_ms: view.retry_after_ms,
        detail: view.detail,
        tensors: tensors.collect(),
        classes: view.classes().collect(),
    };
    // As text, because a score may be NaN.
    assert_eq!(format!("{viewed:?}"), format!("{reply:?}"));
    let data: Vec<_> = view.tensors().map(|tensor| tensor.data).collect();
    assert_eq!(data, views(&reply.tensors, body).map(|(_, data)| data).collect::<Vec<_>>());
}

/// The frame's own decoder, with the frame's own lengths.
fn decode_frame(bytes: &[u8]) {
    decode_all(bytes, 0);
    if let Ok(frame) = Frame::parse(bytes, BODY_LEN_MAX) {
        decode_all(frame.head, frame.header.body_len);
        same_reply(frame.head, frame.body);
    }
    if let Some(head) = bytes.get(HEADER_LEN..) {
        decode_all(head, 0);
    }
}

#[test]
fn a_golden_frame_cut_anywhere_is_refused() {
    for file in golden::ALL {
        let bytes = golden::bytes(file);
        let frame = Frame::parse(&bytes, BODY_LEN_MAX).unwrap();
        for len in 0..bytes.len() {
            assert!(Frame::parse(&bytes[..len], BODY_LEN_MAX).is_err());
            decode_frame(&bytes[..len]);
        }
        for len in 0..frame.head.len() {
            let head = Frame { head: &frame.head[..len], ..frame };
            let refused = match frame.header.kind {
                Kind::Request => head.request().err(),
                Kind::Reply => head.reply().err(),
                Kind::Query => head.query().err(),
                Kind::Answer => head.answer().err(),
            };
            assert_eq!(refused, Some(DecodeError::Truncated));
        }
    }
}

#[test]
fn a_golden_frame_with_any_byte_changed_never_panics() {
    for file in golden::ALL {
        let bytes = golden::bytes(file);
        for at in 0..bytes.len() {
            // All values where it matters most, the telling ones in the long tail of the largest frame.
            let values = if at < 160 { 0..=255 } else { 126..=129 };
            for value in values {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                decode_frame(&bytes);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..256), body_len: u32) {
        decode_all(&bytes, body_len);
    }

    /// Small bytes get past the varints, into the lists.
    #[test]
    fn small_bytes(bytes in vec(prop_oneof![0..4_u8, Just(b'a')], 0..96), body_len in 0..16_u32) {
        decode_all(&bytes, body_len);
    }

    /// What stands before the lists of a reply, right; then anything.
    #[test]
    fn small_bytes_in_the_lists(bytes in vec(prop_oneof![0..4_u8, Just(b'a')], 0..64), body_len in 0..16_usize) {
        let mut head = golden::bytes(golden::REPLY_REFUSED)[HEADER_LEN..].to_vec();
        head.truncate(head.len() - 2);
        head.extend(bytes);
        same_reply(&head, &BODY[..body_len]);
    }

    #[test]
    fn any_text(text in ".{0,96}", level in "[a-z_@/+#$0-9]{0,40}") {
        decode_all(text.as_bytes(), 0);
        decode_all(format!("tractd/v1/{level}").as_bytes(), 0);
    }

    /// A golden frame with a few bytes changed, inserted or removed.
    #[test]
    fn damaged_frames(
        which in 0..golden::ALL.len(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
    ) {
        let mut bytes = golden::bytes(golden::ALL[which]);
        for (at, byte, how) in damage {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        decode_frame(&bytes);
    }
}
