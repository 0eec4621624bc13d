//! The 20 bytes: what is refused, in which order, and with which id and status it can be answered.

use tractd_wire::*;

const HEADER: Header = Header { kind: Kind::Request, head_len: 0x1000, body_len: 0x0403_0201, id: 0x0807 };

/// The header with the byte at `at` replaced.
fn with(at: usize, byte: u8) -> [u8; HEADER_LEN] {
    let mut bytes = HEADER.to_bytes();
    bytes[at] = byte;
    bytes
}

#[test]
fn every_byte_has_its_place() {
    let bytes = [b't', b'd', 1, 1, 0, 0x10, 0, 0, 0x01, 0x02, 0x03, 0x04, 0x07, 0x08, 0, 0, 0, 0, 0, 0];
    assert_eq!(HEADER.to_bytes(), bytes);
    assert_eq!(Header::parse(&bytes), Ok(HEADER));
    assert_eq!(HEADER.frame_len(), 20 + 0x1000 + 0x0403_0201);
}

#[test]
fn what_is_wrong_is_said_with_id_and_status() {
    let id = 0x0807;
    for (at, byte, error, answer) in [
        (0, b'T', HeaderError::Magic { found: *b"Td" }, (None, Status::Malformed)),
        (1, 0, HeaderError::Magic { found: *b"t\0" }, (None, Status::Malformed)),
        (2, 0, HeaderError::Version { found: 0, id }, (Some(id), Status::Version)),
        (2, 2, HeaderError::Version { found: 2, id }, (Some(id), Status::Version)),
        (3, 0, HeaderError::Kind { found: 0, id }, (Some(id), Status::Malformed)),
        (3, 5, HeaderError::Kind { found: 5, id }, (Some(id), Status::Malformed)),
        (6, 1, HeaderError::Reserved { found: 1, id }, (Some(id), Status::Malformed)),
        (7, 1, HeaderError::Reserved { found: 256, id }, (Some(id), Status::Malformed)),
        (4, 1, HeaderError::HeadLen { len: 4097, id }, (Some(id), Status::TooLarge)),
    ] {
        assert_eq!(Header::parse(&with(at, byte)), Err(error));
        assert_eq!((error.id(), error.status()), answer);
    }
}

/// A newer version may give every other byte a new meaning.
#[test]
fn another_version_is_said_before_anything_else() {
    let mut bytes = [0xff; HEADER_LEN];
    bytes[..3].copy_from_slice(b"td\x02");
    assert_eq!(Header::parse(&bytes), Err(HeaderError::Version { found: 2, id: u64::MAX }));
}

#[test]
fn the_body_is_limited_by_the_receiver() {
    let max = HEADER.body_len;
    assert_eq!(HEADER.limit_body(max), Ok(HEADER));
    let error = HeaderError::BodyLen { len: max, max: max - 1, id: 0x0807 };
    assert_eq!(HEADER.limit_body(max - 1), Err(error));
    assert_eq!(error.status(), Status::TooLarge);
    assert_eq!(error.to_string(), "a body of 67305985 bytes; at most 67305984 are allowed");
}

#[test]
fn a_frame_in_memory_is_exact() {
    let header = Header { kind: Kind::Query, head_len: 1, body_len: 2, id: 9 };
    let bytes = [&header.to_bytes()[..], &[1, 8, 9]].concat();
    assert_eq!(Frame::parse(&bytes, 2), Ok(Frame { header, head: &[1], body: &[8, 9] }));

    let length = |found| Err(FrameError::Length { found, announced: 23, id: 9 });
    assert_eq!(Frame::parse(&bytes[..19], 2), Err(FrameError::Short { len: 19 }));
    assert_eq!(Frame::parse(&bytes[..20], 2), length(20));
    assert_eq!(Frame::parse(&bytes[..22], 2), length(22));
    assert_eq!(Frame::parse(&[&bytes[..], &[0]].concat(), 2), length(24));
    let too_long = HeaderError::BodyLen { len: 2, max: 1, id: 9 };
    assert_eq!(Frame::parse(&bytes, 1), Err(FrameError::Header(too_long)));
    assert_eq!(FrameError::Header(too_long).id(), Some(9));
    assert_eq!(FrameError::Header(too_long).status(), Status::TooLarge);
}

#[test]
fn a_frame_is_read_as_what_it_is() {
    let header = Header { kind: Kind::Query, head_len: 1, body_len: 0, id: 9 };
    let frame = Frame { header, head: &[1], body: &[] };
    assert_eq!(frame.query(), Ok(Query { what: What::Models }));
    let wrong = |wanted| DecodeError::Kind { wanted, found: Kind::Query };
    assert_eq!(frame.request(), Err(wrong(Kind::Request)));
    assert_eq!(frame.reply(), Err(wrong(Kind::Reply)));
    assert_eq!(frame.answer(), Err(wrong(Kind::Answer)));
    assert_eq!(wrong(Kind::Reply).to_string(), "the frame is a query, not a reply");
}
