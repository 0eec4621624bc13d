//! Any bytes and any passing of time at a client: it never panics, never goes on for ever, and what it calls a reply
//! is one to its own request.

use tractd_firmware_shim::{Call, Client, Link, Patience, Serial, Step, Stream};

/// The first byte chooses the link and the clock; then, again and again, a byte of time and one of length before so
/// many bytes from the line.
pub(crate) fn check(bytes: &[u8]) {
    let Some((&first, script)) = bytes.split_first() else { return };
    let (mut replies, mut head) = ([0; 200], [0; 64]);
    let start_ms = if first & 2 == 0 { 0 } else { u32::MAX - 100 };
    let patience = Patience { timeout_ms: 2_000, resend_ms: 100 };
    if first & 1 == 0 {
        run(Client::new(Serial::new(&mut replies, 1), &mut head, patience, 1), start_ms, script);
    } else {
        run(Client::new(Stream::new(&mut replies), &mut head, patience, 1), start_ms, script);
    }
}

fn run(mut client: Client<'_, impl Link>, start_ms: u32, mut script: &[u8]) {
    let call = Call::media("digits", &[7; 60]);
    let mut out = [0; 64];
    let mut now_ms = start_ms;
    let mut exchange = client.start(now_ms, &call).expect("a right call");
    loop {
        // Between two rests a client sends its HELLO and its frame at most.
        let mut sent = 0;
        let wait_ms = loop {
            match exchange.poll(now_ms, &mut out) {
                Step::Send(packet) => {
                    assert!(!packet.is_empty());
                    sent += 1;
                    assert!(sent < 200, "a request has no end");
                }
                Step::Sleep(Some(wait_ms)) => break wait_ms,
                Step::Done(reply) => {
                    reply.tensors().for_each(drop);
                    reply.classes().for_each(drop);
                    return;
                }
                Step::TimedOut => return assert!(now_ms.wrapping_sub(start_ms) >= 2_000),
                Step::TooLarge(len) => return assert!(len > 200),
                Step::Broken => return,
                Step::Sleep(None) => panic!("a request under way was forgotten"),
            }
        };
        assert!((1..=2_000).contains(&wait_ms));
        match script {
            [time, len, rest @ ..] => {
                let (input, rest) = rest.split_at(usize::from(*len).min(rest.len()));
                now_ms = now_ms.wrapping_add(u32::from(*time));
                let taken = exchange.on_bytes(input);
                assert!(taken <= input.len());
                script = rest;
            }
            // Nothing more comes: it must end by time alone.
            _ => now_ms = now_ms.wrapping_add(wait_ms),
        }
    }
}
