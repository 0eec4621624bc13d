//! The serial line against golden packets, against itself, and against noise.

use proptest::{collection::vec, prelude::*, sample::Index};
use tractd_wire::{serial::*, *};

use crate::golden;

const HELLO: Hello = Hello { answer: true, payload_max: 250, frame_max: 65_536, session: 0x0102_0304 };

/// The packets of a frame, at most `payload_max` bytes in each.
fn packets(frame: &[u8], payload_max: u8) -> Vec<Vec<u8>> {
    let mut sender = Sender::new();
    let mut out = [0xaa; PACKET_LEN_MAX];
    let mut packets = Vec::new();
    loop {
        // In pieces, as a head and a body in flash are.
        match sender.next(frame.chunks(7), payload_max, &mut out).unwrap() {
            0 => return packets,
            len => packets.push(out[..len].to_vec()),
        }
    }
}

/// What the line brought: whole frames and everything else, in order.
#[derive(Debug, PartialEq)]
enum Heard {
    Frame(Vec<u8>),
    Other(Event),
}

fn hear(line: impl IntoIterator<Item = impl AsRef<[u8]>>, buffer_len: usize) -> Vec<Heard> {
    let mut receiver = Receiver::new();
    let mut buffer = vec![0; buffer_len];
    let mut heard = Vec::new();
    for piece in line {
        let mut input = piece.as_ref();
        while let Some(event) = receiver.read(&mut buffer, &mut input) {
            heard.push(match event {
                Event::Frame { len } => {
                    assert!(frame(&buffer, len).is_some(), "what is handed out is a frame");
                    Heard::Frame(buffer[..len].to_vec())
                }
                other => Heard::Other(other),
            });
        }
        assert_eq!(input, [], "everything is taken");
    }
    heard
}

#[test]
fn packets_are_the_golden_ones() {
    let mut out = [0xaa; 19];
    assert_eq!(HELLO.encode(&mut out), Ok(19));
    assert_eq!(out[..], golden::bytes(golden::SERIAL_HELLO));
    assert_eq!(HELLO.encode(&mut out[..18]), Err(EncodeError::Buffer));

    let query = golden::bytes(golden::QUERY_MODELS);
    assert_eq!(packets(&query, 250).concat(), golden::bytes(golden::SERIAL_QUERY));
    let refused = golden::bytes(golden::REPLY_REFUSED);
    assert_eq!(packets(&refused, 32).concat(), golden::bytes(golden::SERIAL_PARTS));

    let mut full: Vec<u8> = vec![0; 250];
    full.extend([1, 1]);
    full.extend((0..248).map(|i| i + 1));
    let packets = packets(&full, 255);
    assert_eq!(packets[1], golden::bytes(golden::SERIAL_FULL));
    assert_eq!((packets.len(), packets[1].len()), (2, PACKET_LEN_MAX));
}

#[test]
fn golden_packets_are_read_however_the_line_is_cut() {
    let line = [golden::SERIAL_HELLO, golden::SERIAL_PARTS, golden::SERIAL_QUERY].map(golden::bytes).concat();
    let expected = [
        Heard::Other(Event::Hello(HELLO)),
        Heard::Frame(golden::bytes(golden::REPLY_REFUSED)),
        Heard::Frame(golden::bytes(golden::QUERY_MODELS)),
    ];
    for size in 1..=line.len() {
        assert_eq!(hear(line.chunks(size), 128), expected, "{size}");
    }
}

#[test]
fn a_part_lost_costs_its_frame_alone() {
    let frame = golden::bytes(golden::REPLY_REFUSED);
    let parts = packets(&frame, 32);
    for lost in 0..parts.len() {
        let mut line = parts.clone();
        line.remove(lost);
        line.extend(parts.clone());
        assert_eq!(hear(line, 128), [Heard::Frame(frame.clone())], "{lost}");
    }
}

#[test]
fn sixty_four_parts_lost_in_a_row_are_noticed_by_the_length() {
    let media = vec![1; 200];
    let request = Request::media("digits");
    let mut bytes = vec![0; 256];
    let len = encode_request(1, &request, 200, &mut bytes).unwrap();
    bytes.truncate(len);
    bytes.extend(media);
    let mut parts = packets(&bytes, 1);
    parts.drain(100..164);
    assert_eq!(hear(parts, 512), [Heard::Other(Event::Damaged)]);
}

#[test]
fn a_frame_beyond_the_buffer_is_said_once_and_left_out() {
    let large = golden::bytes(golden::REQUEST_LIMITS);
    let small = golden::bytes(golden::QUERY_MODELS);
    let header = Header::parse(large.first_chunk().unwrap()).unwrap();
    for payload_max in [250, 13, 1] {
        let line = [packets(&large, payload_max), packets(&small, payload_max)].concat();
        let expected = [Heard::Other(Event::TooLarge { header }), Heard::Frame(small.clone())];
        assert_eq!(hear(line, 64), expected, "{payload_max}");
    }
}

#[test]
fn a_line_that_starts_in_the_middle_is_found_into() {
    let frame = golden::bytes(golden::REPLY_REFUSED);
    let line = packets(&frame, 250).concat();
    for start in 1..line.len() - 1 {
        let heard = hear([&line[start..], &line], 128);
        assert_eq!(heard.last(), Some(&Heard::Frame(frame.clone())), "{start}");
    }
}

#[test]
fn what_is_no_hello_is_not_taken_for_one() {
    // Kind, flags and payload as given, with a right CRC: by way of the sender, which writes any payload.
    let hello = |edit: fn(&mut [u8])| {
        let mut content = [1, 1, 1, 250, 0, 0, 0, 0, 1, 0, 4, 3, 2, 1].to_vec();
        edit(&mut content);
        let crc = crc::Crc::<u16>::new(&crc::CRC_16_IBM_3740).checksum(&content);
        content.extend(crc.to_be_bytes());
        let mut packet = vec![0; 64];
        let len = cobs::encode(&content, &mut packet);
        packet.truncate(len);
        packet.push(0);
        hear([packet], 64)
    };
    assert_eq!(hello(|_| {}), [Heard::Other(Event::Hello(HELLO))]);
    assert_eq!(hello(|c| c[1] = 2), [Heard::Other(Event::Version(2))]);
    let damaged = [Heard::Other(Event::Damaged)];
    assert_eq!(hello(|c| c[2] = 2), damaged);
    assert_eq!(hello(|c| c[3] = 0), damaged);
    assert_eq!(hello(|c| c[4] = 1), damaged);
    assert_eq!(hello(|c| c[0] = 3), damaged);
}

#[test]
fn a_buffer_too_small_for_a_packet_is_said() {
    let mut out = [0; PACKET_LEN_MAX];
    for len in 0..=OVERHEAD {
        let said = Sender::new().next([&[1_u8][..]].into_iter(), 250, &mut out[..len]);
        assert_eq!(said, Err(EncodeError::Buffer), "{len}");
    }
    let said = Sender::new().next([&[1_u8][..]].into_iter(), 250, &mut out[..=OVERHEAD]);
    assert_eq!(said, Ok(OVERHEAD + 1));
}

proptest! {
    /// Any frame, cut in any way by the sender and by the line, arrives as it was.
    #[test]
    fn any_frame_arrives(
        body in vec(prop_oneof![Just(0), any::<u8>()], 1..900), payload_max: u8, out_len in 8..=PACKET_LEN_MAX,
        size in 1..300_usize,
    ) {
        let mut bytes = vec![0; 64];
        let len = encode_request(9, &Request::media("m"), body.len() as u32, &mut bytes).unwrap();
        bytes.truncate(len);
        let mut sender = Sender::new();
        let mut line = Vec::new();
        let mut out = vec![0xaa; out_len];
        loop {
            match sender.next([&bytes[..], &body[..]].into_iter(), payload_max, &mut out).unwrap() {
                0 => break,
                len => line.extend_from_slice(&out[..len]),
            }
        }
        bytes.extend(body);
        prop_assert_eq!(hear(line.chunks(size), bytes.len()), [Heard::Frame(bytes)]);
    }

    /// One burst of at most 16 damaged bits in a packet is always noticed: that is what the CRC is for. And the line
    /// is found into again.
    #[test]
    fn a_burst_is_noticed(at: Index, bits in 1_u16.., shift in 0..8_u32) {
        let frame = golden::bytes(golden::REPLY_REFUSED);
        let good = packets(&frame, 250).concat();
        let mut line = good.clone();
        let at = 1 + at.index(line.len() - 4);
        let burst = (u32::from(bits) << shift).to_be_bytes();
        line[at] ^= burst[2];
        line[at + 1] ^= burst[3];
        line.extend(&good);
        let heard = hear([line], 128);
        let frames = heard.iter().filter(|heard| **heard == Heard::Frame(frame.clone())).count();
        // COBS itself may spread a burst; what was damaged is never handed out as something else.
        prop_assert!(heard.iter().all(|heard| matches!(heard, Heard::Frame(found) if *found == frame)
            || matches!(heard, Heard::Other(Event::Damaged))));
        prop_assert!((1..=2).contains(&frames));
    }

    /// Noise never panics, and a frame behind it and a zero is heard.
    #[test]
    fn noise(noise in vec(prop_oneof![Just(0), 0..5_u8, any::<u8>()], 0..400), buffer_len in 21..64_usize) {
        let query = golden::bytes(golden::QUERY_MODELS);
        let line = [noise, packets(&query, 250).concat()].concat();
        prop_assert_eq!(hear([line], buffer_len).pop(), Some(Heard::Frame(query)));
    }
}
