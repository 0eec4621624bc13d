//! The client against a daemon and a gateway made of the wire's own encoders, on a line and a clock that the test owns.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]

#[path = "../../wire/fuzz/checks/client.rs"]
mod fuzzed;

use proptest::{collection::vec, prelude::*};
use tractd_firmware_shim::{
    wire::{Class, Classes, Frame, encode_reply, serial},
    *,
};

const PATIENCE: Patience = Patience { timeout_ms: 10_000, resend_ms: 1_000 };
const IMAGE: &[u8] = b"\x89PNG\r\n\x1a\n";

fn call() -> Call<'static> {
    Call { want: Want::CLASSES, ..Call::media("digits", IMAGE) }
}

fn reply(id: u64, reply: &Reply<'_>) -> Vec<u8> {
    let mut out = vec![0; 4096];
    let len = encode_reply(id, reply, 0, &mut out).unwrap();
    out.truncate(len);
    out
}

fn seven(id: u64) -> Vec<u8> {
    let classes = Classes::from_slice(&[Class { index: 7, score: 0.9, label: "seven" }]).unwrap();
    reply(id, &Reply { classes, ..Reply::new(Status::Ok) })
}

fn busy(id: u64, retry_after_ms: u32) -> Vec<u8> {
    reply(id, &Reply::refusal(Status::Busy, retry_after_ms, "full"))
}

fn packets(frame: &[u8]) -> Vec<u8> {
    let (mut sender, mut out, mut line) = (serial::Sender::new(), [0; 257], Vec::new());
    while let len @ 1.. = sender.next([frame].into_iter(), 250, &mut out).unwrap() {
        line.extend_from_slice(&out[..len]);
    }
    line
}

fn hello(session: u32, answer: bool) -> Vec<u8> {
    let mut out = [0; 19];
    serial::Hello { answer, payload_max: 50, frame_max: 4096, session }.encode(&mut out).unwrap();
    out.to_vec()
}

/// What a poll came to, with everything sent before it put together.
#[derive(Debug, PartialEq)]
enum Said {
    /// Bytes were sent, and then so long a sleep.
    Sent(Vec<u8>, u32),
    Sleep(u32),
    Class(u32),
    Refused(Status),
    TimedOut,
    TooLarge(u64),
    Broken,
}

fn poll<L: Link>(exchange: &mut Exchange<'_, '_, '_, L>, now_ms: u32) -> Said {
    let (mut sent, mut out) = (Vec::new(), [0; 40]);
    loop {
        return match exchange.poll(now_ms, &mut out) {
            Step::Send(bytes) => {
                sent.extend_from_slice(bytes);
                continue;
            }
            Step::Sleep(Some(ms)) if sent.is_empty() => Said::Sleep(ms),
            Step::Sleep(Some(ms)) => Said::Sent(sent, ms),
            Step::Done(reply) => match reply.classes().next() {
                Some(class) => Said::Class(class.index),
                None => Said::Refused(reply.status),
            },
            Step::TimedOut => Said::TimedOut,
            Step::TooLarge(len) => Said::TooLarge(len),
            Step::Broken => Said::Broken,
            Step::Sleep(None) => panic!("a request under way was forgotten"),
        };
    }
}

/// A client over a stream, and its request as one frame.
fn stream<'b>(replies: &'b mut [u8], head: &'b mut [u8]) -> (Client<'b, Stream<'b>>, Vec<u8>) {
    let mut frame = vec![0; 256];
    let len = encode_request(1 << 32 | 1, &call(), &mut frame).unwrap();
    frame.truncate(len);
    (Client::new(Stream::new(replies), head, PATIENCE, 1), frame)
}

/// Every test runs at the start of the clock, over its end, and from its end.
const STARTS_MS: [u32; 3] = [0, u32::MAX - 1_500, u32::MAX];

#[test]
fn a_silent_request_is_sent_again_ever_later_and_given_up_in_time() {
    for start in STARTS_MS {
        let at = |ms: u32| start.wrapping_add(ms);
        let (mut replies, mut head) = ([0; 256], [0; 64]);
        let (mut client, frame) = stream(&mut replies, &mut head);
        let mut exchange = client.start(start, &call()).unwrap();
        assert_eq!(poll(&mut exchange, at(0)), Said::Sent(frame.clone(), 1_000));
        assert_eq!(poll(&mut exchange, at(999)), Said::Sleep(1));
        assert_eq!(poll(&mut exchange, at(1_000)), Said::Sent(frame.clone(), 2_000));
        assert_eq!(poll(&mut exchange, at(2_999)), Said::Sleep(1));
        assert_eq!(poll(&mut exchange, at(3_000)), Said::Sent(frame.clone(), 4_000));
        assert_eq!(poll(&mut exchange, at(7_000)), Said::Sent(frame, 3_000));
        assert_eq!(poll(&mut exchange, at(9_999)), Said::Sleep(1));
        assert_eq!(poll(&mut exchange, at(10_000)), Said::TimedOut);
        assert!(matches!(exchange.poll(at(10_001), &mut []), Step::Sleep(None)));
    }
}

#[test]
fn a_busy_daemon_is_left_alone_for_as_long_as_it_asks() {
    for start in STARTS_MS {
        let at = |ms: u32| start.wrapping_add(ms);
        let (mut replies, mut head) = ([0; 256], [0; 64]);
        let (mut client, frame) = stream(&mut replies, &mut head);
        let mut exchange = client.start(start, &call()).unwrap();
        let id = exchange.id();
        assert_eq!(poll(&mut exchange, at(0)), Said::Sent(frame.clone(), 1_000));
        let refusal = busy(id, 3_000);
        assert_eq!(exchange.on_bytes(&refusal), refusal.len());
        assert_eq!(poll(&mut exchange, at(10)), Said::Sleep(3_000));
        assert_eq!(poll(&mut exchange, at(3_009)), Said::Sleep(1));
        assert_eq!(poll(&mut exchange, at(3_010)), Said::Sent(frame.clone(), 1_000));
        // With nothing asked, as long as a silence.
        exchange.on_bytes(&busy(id, 0));
        assert_eq!(poll(&mut exchange, at(3_020)), Said::Sleep(1_000));
        assert_eq!(poll(&mut exchange, at(4_020)), Said::Sent(frame, 1_000));
        // Another try would come too late: the refusal is the answer.
        exchange.on_bytes(&busy(id, 6_000));
        assert_eq!(poll(&mut exchange, at(4_030)), Said::Refused(Status::Busy));
    }
}

#[test]
fn only_its_own_reply_ends_a_request() {
    let (mut replies, mut head) = ([0; 256], [0; 64]);
    let (mut client, _) = stream(&mut replies, &mut head);
    let id = client.start(0, &call()).unwrap().id();
    // Given up for another, whose id is the next; a late reply to the first is not its.
    let mut exchange = client.start(5, &call()).unwrap();
    assert_eq!(exchange.id(), id + 1);
    assert!(matches!(poll(&mut exchange, 5), Said::Sent(..)));
    exchange.on_bytes(&seven(id));
    assert_eq!(poll(&mut exchange, 6), Said::Sleep(999));
    // Both in one read: what stands behind the reply is left to be taken later.
    let both = [seven(id + 1), seven(id + 1)].concat();
    assert_eq!(exchange.on_bytes(&both), both.len() / 2);
    assert_eq!(exchange.on_bytes(&both[both.len() / 2..]), 0);
    assert_eq!(poll(&mut exchange, 7), Said::Class(7));
    assert_eq!(client.reply().unwrap().classes().next().unwrap().label, "seven");
    assert_eq!(client.on_bytes(&both), both.len());
}

#[test]
fn a_reply_nobody_can_read_does_not_prolong_a_request() {
    let (mut replies, mut head) = ([0; 256], [0; 64]);
    let (mut client, _) = stream(&mut replies, &mut head);
    // A right header over a head of another version.
    let mut unread = seven(1 << 32 | 1);
    unread[20..].fill(0xff);
    let mut exchange = client.start(0, &call()).unwrap();
    poll(&mut exchange, 0);
    exchange.on_bytes(&unread);
    assert_eq!(poll(&mut exchange, 9_999), Said::Sleep(1));
    exchange.on_bytes(&unread);
    assert_eq!(poll(&mut exchange, 10_000), Said::TimedOut);
}

#[test]
fn what_is_no_answer_is_said() {
    let (mut replies, mut head) = ([0; 80], [0; 64]);
    let (mut client, frame) = stream(&mut replies, &mut head);
    let mut exchange = client.start(0, &call()).unwrap();
    let id = exchange.id();
    poll(&mut exchange, 0);
    let refusal = reply(
        id,
        &Reply::refusal(Status::ModelNotFound, 0, "no model is called digits here; ask for what there is"),
    );
    let long = refusal.len() as u64;
    assert!(long > 80);
    let taken = exchange.on_bytes(&refusal);
    assert_eq!(poll(&mut exchange, 1), Said::TooLarge(long));
    assert_eq!(client.on_bytes(&refusal[taken..]), refusal.len() - taken);

    let mut exchange = client.start(0, &call()).unwrap();
    poll(&mut exchange, 0);
    exchange.on_bytes(b"HTTP/1.1 400 Bad Request");
    assert_eq!(poll(&mut exchange, 1), Said::Broken);
    assert_eq!(poll(&mut exchange, 2), Said::Broken);
    // Connected anew, the same request goes out again.
    client.reset();
    let resumed = call();
    let Said::Sent(again, _) = poll(&mut client.resume(&resumed), 3) else { panic!("it is not sent again") };
    assert_eq!(again[20..], frame[20..]);

    let too_small = Client::new(Stream::new(&mut [0; 80]), &mut [0; 30], PATIENCE, 1).start(0, &call()).err();
    assert_eq!(too_small, Some(EncodeError::Buffer));
}

#[test]
fn a_line_is_greeted_before_anything_is_sent_and_after_every_restart() {
    let (mut replies, mut head) = ([0; 256], [0; 64]);
    let mut client = Client::new(Serial::new(&mut replies, 9), &mut head, PATIENCE, 9);
    let call = call();
    let mut exchange = client.start(0, &call).unwrap();
    let id = exchange.id();
    let mut mine = [0; 19];
    let own = serial::Hello { answer: true, payload_max: 250, frame_max: 256, session: 9 };
    own.encode(&mut mine).unwrap();
    assert_eq!(poll(&mut exchange, 0), Said::Sent(mine.to_vec(), 1_000));
    assert_eq!(poll(&mut exchange, 1_000), Said::Sent(mine.to_vec(), 2_000));

    let heard = |said: Said| {
        let Said::Sent(line, _) = said else { panic!("{said:?}") };
        let (mut buffer, mut receiver, mut events) = ([0; 512], serial::Receiver::new(), Vec::new());
        let mut rest = &line[..];
        while let Some(event) = receiver.read(&mut buffer, &mut rest) {
            events.push(match event {
                serial::Event::Frame { len } => Ok(Frame::parse(&buffer[..len], 4096).unwrap().header.id),
                other => Err(other),
            });
        }
        events
    };
    exchange.on_bytes(&hello(1, false));
    assert_eq!(heard(poll(&mut exchange, 1_010)), [Ok(id)]);
    // The same session again asks for an answer and for nothing else.
    exchange.on_bytes(&hello(1, true));
    let answered = serial::Event::Hello(serial::Hello { answer: false, ..own });
    assert_eq!(poll(&mut exchange, 1_020), Said::Sleep(1_990), "it is answered with the next that is sent");
    // Another session: the gateway has lost the request.
    exchange.on_bytes(&hello(2, true));
    assert_eq!(heard(poll(&mut exchange, 1_030)), [Err(answered), Ok(id)]);
    exchange.on_bytes(&packets(&seven(id)));
    assert_eq!(poll(&mut exchange, 1_040), Said::Class(7));
}

/// What happens on the way.
#[derive(Debug, Clone)]
enum Fault {
    None,
    Lose,
    Damage(prop::sample::Index, u8),
    Duplicate,
    Restart,
    Busy(u16),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        1 => Just(Fault::Lose),
        1 => (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, bits)| Fault::Damage(at, bits)),
        1 => Just(Fault::Duplicate),
        1 => Just(Fault::Restart),
        1 => (0..500_u16).prop_map(Fault::Busy),
    ]
}

proptest! {
    /// Whatever happens to a line for a while, the request ends: with its own reply once the line is good, and never
    /// later than its time.
    #[test]
    fn a_request_ends(faults in vec(fault(), 0..12), start_ms: u32, delay_ms in 0..300_u32) {
        let (mut replies, mut head, mut out) = ([0; 256], [0; 64], [0; 60]);
        let patience = Patience { timeout_ms: 60_000, resend_ms: 100 };
        let mut client = Client::new(Serial::new(&mut replies, 1), &mut head, patience, 1);
        let call = call();
        let mut exchange = client.start(start_ms, &call).unwrap();
        let id = exchange.id();
        let (mut gateway, mut buffer, mut session) = (serial::Receiver::new(), vec![0; 512], 1);
        let mut faults = faults.into_iter();
        let mut now_ms = start_ms;
        let ended = loop {
            match exchange.poll(now_ms, &mut out) {
                Step::Send(bytes) => {
                    let mut bytes = bytes.to_vec();
                    let fault = faults.next().unwrap_or(Fault::None);
                    match &fault {
                        Fault::Lose => bytes.clear(),
                        Fault::Damage(at, bits) => { let at = at.index(bytes.len()); bytes[at] ^= bits; }
                        Fault::Duplicate => bytes = bytes.repeat(2),
                        _ => {}
                    }
                    let mut back = Vec::new();
                    let mut rest = &bytes[..];
                    while let Some(event) = gateway.read(&mut buffer, &mut rest) {
                        match event {
                            serial::Event::Hello(_) => back.extend(hello(session, false)),
                            serial::Event::Frame { len } => {
                                let found = Frame::parse(&buffer[..len], 4096).unwrap().header.id;
                                prop_assert_eq!(found, id);
                                let frame = match fault { Fault::Busy(ms) => busy(id, ms.into()), _ => seven(id) };
                                back.extend(packets(&frame));
                            }
                            _ => {}
                        }
                    }
                    if let Fault::Restart = fault {
                        session += 1;
                        gateway = serial::Receiver::new();
                        back = hello(session, true);
                    }
                    now_ms = now_ms.wrapping_add(delay_ms);
                    exchange.on_bytes(&back);
                }
                Step::Sleep(Some(wait_ms)) => now_ms = now_ms.wrapping_add(wait_ms),
                Step::Done(reply) => break reply.classes().next().map(|class| class.index),
                Step::TimedOut => {
                    prop_assert!(now_ms.wrapping_sub(start_ms) >= 60_000);
                    break None;
                }
                step => panic!("{step:?}"),
            }
        };
        prop_assert_eq!(ended, Some(7));
    }

    #[test]
    fn any_bytes_at_any_time(script in vec(any::<u8>(), 0..300)) {
        fuzzed::check(&script);
    }
}

#[test]
fn what_fuzzing_kept_holds() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/fuzz/corpus/client");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        fuzzed::check(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 3, "the corpus is there");
}
