//! The shim against the wire's golden frames, and the reader against any way a stream can be cut.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]

#[path = "../../wire/tests/golden/mod.rs"]
mod golden;

use proptest::{collection::vec, prelude::*};
use tractd_firmware_shim::{
    wire::{HeaderError, Invalid},
    *,
};

/// The call encodes to the golden frame, in one piece and in its parts, and to nothing when the space is short.
#[track_caller]
fn check(id: u64, call: &Call<'_>, file: &str) {
    let bytes = golden::bytes(file);
    let mut out = [0xaa; 256];
    assert_eq!(encode_request(id, call, &mut out), Ok(bytes.len()));
    assert_eq!(out[..bytes.len()], bytes);

    let mut out = [0xaa; 256];
    let len = encode_head(id, call, &mut out).unwrap();
    assert_eq!([&out[..len], &call.body().collect::<Vec<_>>().concat()].concat(), bytes);

    for short in 0..bytes.len() {
        assert_eq!(encode_request(id, call, &mut out[..short]), Err(EncodeError::Buffer), "{short}");
    }
}

#[test]
fn requests_are_the_golden_ones() {
    let floats = [0.5_f32, -1.0, 3.25].map(f32::to_le_bytes).concat();
    let tensors = [
        Tensor { name: "input:0", dtype: DType::F32, shape: &[1, 3], data: &floats },
        Tensor { name: "größe", dtype: DType::I16, shape: &[], data: &[0xfe, 0xff] },
    ];
    let call = Call {
        deadline_ms: 1500,
        priority: Priority::High,
        want: Want::TENSORS,
        ..Call::tensors("digits@7", &tensors)
    };
    check(0x0102_0304_0506_0708, &call, golden::REQUEST_TENSORS);
    check(1, &Call::media("digits", b"\x89PNG\r\n\x1a\n"), golden::REQUEST_MEDIA);
}

#[test]
fn what_no_daemon_would_take_is_not_sent() {
    let encode = |call: &Call<'_>| match encode_request(1, call, &mut [0; 256]) {
        Err(EncodeError::Invalid(invalid)) => invalid,
        other => panic!("{other:?}"),
    };
    let tensor = Tensor { name: "x", dtype: DType::U16, shape: &[2], data: &[0; 4] };
    let nine = [tensor; 9];
    assert_eq!(encode(&Call::tensors("m", &nine)), Invalid::TooMany { field: "tensors", len: 9, max: 8 });
    let flat = [Tensor { shape: &[1; 9], ..tensor }];
    let deep = Invalid::TooMany { field: "dimensions", len: 9, max: 8 };
    assert_eq!(encode(&Call::tensors("m", &flat)), deep);
    assert_eq!(deep.to_string(), "9 dimensions; at most 8 are allowed");
    // Together the lengths would be right.
    let swapped = [Tensor { data: &[0; 2], ..tensor }, Tensor { data: &[0; 6], ..tensor }];
    assert_eq!(encode(&Call::tensors("m", &swapped)), Invalid::BodyLen { described: 4, body: 2 });
    assert_eq!(encode(&Call::media("m", &[])), Invalid::MediaMissing);
}

/// Everything the reader says about these pieces, one after another: ids and heads and bodies, or errors.
fn read<const N: usize>(
    pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> Vec<Result<Vec<u8>, ReadError>> {
    let mut buffer = [0; N];
    let mut reader = FrameReader::new(&mut buffer);
    let mut said = Vec::new();
    for piece in pieces {
        let mut input = piece.as_ref();
        loop {
            match reader.read(&mut input) {
                Ok(Some(frame)) => {
                    said.push(Ok([&frame.header.to_bytes()[..], frame.head, frame.body].concat()));
                }
                Ok(None) => break,
                Err(error @ ReadError::TooLarge { .. }) => said.push(Err(error)),
                Err(error) => {
                    said.push(Err(error));
                    return said;
                }
            }
        }
        assert_eq!(input, [], "what is not yet a frame is kept");
    }
    said
}

#[test]
fn frames_are_read_however_the_stream_is_cut() {
    let frames = golden::ALL.map(golden::bytes);
    let stream = frames.concat();
    let expected: Vec<_> = frames.into_iter().map(Ok).collect();
    for size in 1..=stream.len() {
        assert_eq!(read::<2048>(stream.chunks(size)), expected, "{size}");
    }
}

#[test]
fn a_reply_is_read_from_its_bytes() {
    let mut buffer = [0; 256];
    let mut reader = FrameReader::new(&mut buffer);
    let bytes = golden::bytes(golden::REPLY_REFUSED);
    let (start, mut end) = bytes.split_at(33);
    assert_eq!(reader.read(&mut &start[..]), Ok(None));
    let frame = reader.read(&mut end).unwrap().unwrap();
    assert_eq!(frame.header.id, u64::MAX);
    let reply = frame.reply().unwrap();
    assert_eq!((reply.status, reply.retry_after_ms, reply.detail), (Status::Busy, 250, "the queue is full"));

    let mut buffer = [0; 256];
    let mut reader = FrameReader::new(&mut buffer);
    let bytes = golden::bytes(golden::REPLY_OK);
    let frame = reader.read(&mut &bytes[..]).unwrap().unwrap();
    let reply = frame.reply().unwrap();
    assert_eq!(reply.classes[0], Class { index: u32::MAX, score: 0.75, label: "sieben ✓" });
    let tensors: Vec<_> = views(&reply.tensors, frame.body).map(|(t, data)| (t.name, data)).collect();
    assert_eq!(tensors, [("scores", &[1, 2, 254, 255][..])]);
}

#[test]
fn a_frame_beyond_the_buffer_is_left_out_and_said() {
    let [small, large] = [golden::QUERY_MODELS, golden::REQUEST_LIMITS].map(golden::bytes);
    let stream = [&small[..], &large, &small].concat();
    let too_large = ReadError::TooLarge { id: 0, len: large.len() as u64 };
    assert_eq!(too_large.to_string(), format!("frame 0 of {} bytes is larger than the buffer", large.len()));
    for size in 1..=stream.len() {
        assert_eq!(
            read::<21>(stream.chunks(size)),
            [Ok(small.clone()), Err(too_large), Ok(small.clone())],
            "{size}"
        );
    }
}

#[test]
fn a_wrong_header_is_said_until_the_reset() {
    let mut buffer = [0; 64];
    let mut reader = FrameReader::new(&mut buffer);
    let error = Err(ReadError::Header(HeaderError::Magic { found: *b"HT" }));
    let mut input = &b"HTTP/1.1 400 Bad Request"[..];
    assert_eq!(reader.read(&mut input), error);
    assert_eq!(reader.read(&mut input), error);
    reader.reset();
    let bytes = golden::bytes(golden::QUERY_MODELS);
    assert!(reader.read(&mut &bytes[..]).unwrap().is_some());
}

proptest! {
    /// Golden frames with damage, in any pieces: no panic, and every frame handed out is one that was in the stream.
    #[test]
    fn any_stream(
        which in vec(0..golden::ALL.len(), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        size in 1..200_usize,
    ) {
        let mut stream: Vec<u8> = which.iter().flat_map(|&i| golden::bytes(golden::ALL[i])).collect();
        for (at, byte) in damage {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        let said = read::<2048>(stream.chunks(size));
        prop_assert_eq!(&said, &read::<2048>([&stream]));
        let mut rest = &stream[..];
        for frame in said.into_iter().flatten() {
            let at = rest.windows(frame.len()).position(|window| window == frame);
            prop_assert!(at.is_some());
            rest = &rest[at.unwrap_or_default() + frame.len()..];
        }
    }

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..128), size in 1..40_usize) {
        read::<64>(bytes.chunks(size));
        read::<64>([[&b"td\x01\x01"[..], &bytes].concat()]);
    }
}
