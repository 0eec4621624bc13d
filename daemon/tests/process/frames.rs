//! Every kind of bad input gets its own answer, and the connection goes on wherever its frames can still be told
//! apart.

use crate::harness::{Ask, Client, Daemon, Site, floats, repository_models};
use std::{fs, io::Write};
use tractd_wire::{BODY_LEN_MAX, DType, Status, What};

/// The shape of a digit.
const SHAPE: [u32; 4] = [1, 1, 8, 8];

fn digits() -> (Site, Daemon) {
    let site = Site::new();
    site.add_example("digits", 1);
    let daemon = site.start();
    (site, daemon)
}

fn digit() -> Ask<'static> {
    let body = fs::read(repository_models().join("digits/1/golden/7-0017.image.bin")).unwrap();
    Ask::tensor("digits", "image", DType::F32, &SHAPE, body)
}

/// The connection is in order: a digit is answered right on it.
fn check_alive(client: &mut Client) {
    let reply = client.ask(&digit());
    assert_eq!((reply.status, reply.labels[0].as_str()), (Status::Ok, "7"), "{}", reply.detail);
}

#[test]
fn a_digit_is_answered_by_tensor_and_by_picture() {
    let (_site, daemon) = digits();
    let mut client = daemon.connect();
    let reply = client.ask(&digit());
    assert_eq!(
        (reply.status, reply.model.as_str(), reply.version, reply.signed),
        (Status::Ok, "digits", 1, false)
    );
    assert_eq!((reply.labels.len(), reply.labels[0].as_str(), reply.body.len()), (3, "7", 40));
    assert_ne!(reply.digest, [0; 32]);
    assert_eq!(client.ask(&Ask { model: "digits@1", ..digit() }).body, reply.body);

    let samples = repository_models().join("digits/samples");
    for entry in fs::read_dir(samples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "png") {
            continue;
        }
        let reply = client.ask(&Ask::media("digits", fs::read(&path).unwrap()));
        assert_eq!((reply.status, reply.labels.len()), (Status::Ok, 3), "{path:?} {}", reply.detail);
    }
}

#[test]
fn wrong_requests_are_told_apart() {
    let (_site, daemon) = digits();
    let mut client = daemon.connect();
    let image = |body| Ask::tensor("digits", "image", DType::F32, &SHAPE, body);
    let zeros = || vec![0; 256];
    let mut nan = vec![0.0; 64];
    nan[9] = f32::NAN;
    for (ask, status, detail) in [
        (Ask { model: "cats", ..digit() }, Status::ModelNotFound, "no model cats here"),
        (
            Ask { model: "digits@9", ..digit() },
            Status::ModelNotFound,
            "no version 9 here; it is at version 1",
        ),
        (Ask { model: "digits@canary", ..digit() }, Status::ModelNotFound, "labelled \"canary\""),
        (Ask::tensor("digits", "picture", DType::F32, &SHAPE, zeros()), Status::InvalidInput, "picture"),
        (Ask::tensor("digits", "image", DType::I32, &SHAPE, zeros()), Status::InvalidInput, "i32"),
        (Ask::tensor("digits", "image", DType::F32, &[64], zeros()), Status::InvalidInput, "[64]"),
        (image(floats(&nan)), Status::InvalidInput, "element 9"),
        (Ask::media("digits", b"GIF89a".to_vec()), Status::UnsupportedType, ""),
    ] {
        let reply = client.ask(&ask);
        assert_eq!(reply.status, status, "{}", reply.detail);
        assert!(reply.detail.contains(detail), "{:?} lacks {detail:?}", reply.detail);
        check_alive(&mut client);
    }
    let replies = &daemon.status()["replies"];
    assert_eq!(
        (&replies["model-not-found"], &replies["invalid-input"], &replies["ok"]),
        (&3.into(), &4.into(), &8.into())
    );
}

#[test]
fn a_wrong_head_costs_only_its_own_frame() {
    let (_site, daemon) = digits();
    let mut client = daemon.connect();
    let frame = digit().frame(5);
    let body_at = frame.len() - 256;
    for byte in 20..body_at {
        let mut wrong = frame.clone();
        wrong[byte] ^= 0xff;
        client.stream.write_all(&wrong).unwrap();
        let reply = client.receive();
        assert_eq!(reply.id, 5);
        assert_ne!(reply.status, Status::Internal, "byte {byte}: {}", reply.detail);
    }
    check_alive(&mut client);
}

#[test]
fn a_body_that_is_not_what_the_head_says_is_malformed() {
    let (_site, daemon) = digits();
    let mut client = daemon.connect();
    let mut frame = digit().frame(6);
    let body_len = u32::from_le_bytes(frame[8..12].try_into().unwrap()) + 4;
    frame[8..12].copy_from_slice(&body_len.to_le_bytes());
    frame.extend([0; 4]);
    client.stream.write_all(&frame).unwrap();
    let reply = client.receive();
    assert_eq!((reply.id, reply.status), (6, Status::Malformed), "{}", reply.detail);
    check_alive(&mut client);
}

#[test]
fn an_oversized_body_is_refused_and_skipped() {
    let site = Site::new();
    site.add_example("digits", 1);
    site.configure("[limits]\nmax_body_bytes = 1000");
    let daemon = site.start();
    let mut client = daemon.connect();
    let big = Ask::media("digits", vec![0; 3_000_000]);
    for _ in 0..3 {
        let reply = client.ask(&big);
        assert_eq!((reply.status, reply.retry_after_ms), (Status::TooLarge, 0));
        assert!(reply.detail.contains("at most 1000"), "{}", reply.detail);
    }
    check_alive(&mut client);
}

#[test]
fn a_header_that_cannot_be_trusted_ends_the_connection_after_its_answer() {
    let (_site, daemon) = digits();
    let frame = digit().frame(9);
    for (at, value, id, status) in [
        (0, b'x', 0, Status::Malformed),
        (2, 2, 9, Status::Version),
        (3, 9, 9, Status::Malformed),
        (6, 1, 9, Status::Malformed),
        (5, 0xff, 9, Status::TooLarge),
    ] {
        let mut client = daemon.connect();
        let mut wrong = frame.clone();
        wrong[at] = value;
        client.stream.write_all(&wrong).unwrap();
        let reply = client.receive();
        assert_eq!((reply.id, reply.status), (id, status), "byte {at}: {}", reply.detail);
        assert!(client.is_closed());
    }
    check_alive(&mut daemon.connect());
}

#[test]
fn a_frame_that_ends_early_is_answered_when_the_peer_still_listens() {
    let (_site, daemon) = digits();
    let frame = digit().frame(3);
    for length in [1, 19, 21, frame.len() - 1] {
        let mut client = daemon.connect();
        client.stream.write_all(&frame[..length]).unwrap();
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let reply = client.receive();
        assert_eq!(
            (reply.status, reply.id),
            (Status::Malformed, if length < 20 { 0 } else { 3 }),
            "{length} bytes"
        );
        assert!(client.is_closed());
    }
}

#[test]
fn a_peer_that_has_said_everything_still_gets_its_replies() {
    let (_site, daemon) = digits();
    let mut client = daemon.connect();
    for _ in 0..20 {
        client.send(&digit());
    }
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut ids: Vec<u64> = (0..20).map(|_| client.receive().id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=20).collect::<Vec<_>>());
    assert!(client.is_closed());
}

#[test]
fn a_frame_that_dawdles_is_cut_off_and_told() {
    let site = Site::new();
    site.add_example("digits", 1);
    site.configure("[socket]\nframe_timeout_ms = 200");
    let daemon = site.start();
    let mut client = daemon.connect();
    client.stream.write_all(&digit().frame(4)[..30]).unwrap();
    let reply = client.receive();
    assert_eq!((reply.id, reply.status), (4, Status::Malformed));
    assert!(reply.detail.contains("longer than 200ms"), "{}", reply.detail);
    assert!(client.is_closed());
}

#[test]
fn a_silent_connection_is_closed_after_the_idle_time() {
    let site = Site::new();
    site.configure("[socket]\nidle_timeout_ms = 100");
    let daemon = site.start();
    assert!(daemon.connect().is_closed());
}

#[test]
fn queries_are_answered_between_requests() {
    let (_site, daemon) = digits();
    let mut client = daemon.connect();
    let models = client.query(What::Models);
    assert_eq!(models["models"][0]["name"], "digits");
    check_alive(&mut client);
    let (status, detail, _) = client.try_query(What::CheckUpdates);
    assert_eq!((status, detail.as_str()), (Status::Ok, ""));
    let mut wrong = digit().frame(8);
    wrong[3] = 3;
    client.stream.write_all(&wrong[..]).unwrap();
    let (header, ..) = client.frame().unwrap();
    assert_eq!(header.id, 8);
    check_alive(&mut client);
    assert_eq!(BODY_LEN_MAX, 64 << 20);
}
