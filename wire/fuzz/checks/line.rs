//! Any bytes as a serial line: however they are cut they say the same, every frame handed out is one, and a frame sent
//! behind them is heard.

use tractd_wire::{serial::*, *};

pub(crate) fn check(bytes: &[u8]) {
    let (size, line) =
        bytes.split_first().map_or((1, bytes), |(&size, line)| (usize::from(size).max(1), line));
    let mut frame = [0; 64];
    let len = encode_query(7, &Query { what: What::Status }, &mut frame).expect("a query fits");
    let mut packet = [0; PACKET_LEN_MAX];
    let sent = Sender::new().next([&frame[..len]].into_iter(), 250, &mut packet).expect("a packet fits");

    let whole = hear([line, &packet[..sent]].into_iter());
    assert_eq!(hear(line.chunks(size).chain([&packet[..sent]])), whole);
    assert_eq!(whole.last().map(|(_, frame)| &frame[..]), Some(&frame[..len]));
}

fn hear<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<(Event, Vec<u8>)> {
    let mut receiver = Receiver::new();
    let mut buffer = [0; 300];
    let mut heard = Vec::new();
    for mut piece in pieces {
        while let Some(event) = receiver.read(&mut buffer, &mut piece) {
            let found = match event {
                Event::Frame { len } => {
                    assert!(frame(&buffer, len).is_some());
                    buffer[..len].to_vec()
                }
                Event::TooLarge { header } => {
                    assert!(header.frame_len() > buffer.len() as u64);
                    Vec::new()
                }
                Event::Hello(hello) => {
                    let mut packet = [0; PACKET_LEN_MAX];
                    let len = hello.encode(&mut packet).expect("a packet fits");
                    let again = Receiver::new().read(&mut [], &mut &packet[..len]);
                    assert_eq!(again, Some(event));
                    Vec::new()
                }
                Event::Version(_) | Event::Damaged => Vec::new(),
            };
            heard.push((event, found));
        }
        assert_eq!(piece, []);
    }
    heard
}
