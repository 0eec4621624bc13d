//! Bad input at the real daemon: each gets its own clear answer, and everybody else keeps being served.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tractd_ctl::exchange::{Input, Reply};
use tractd_ctl::socket::Socket;
use tractd_ctl::tensor::Tensor;
use tractd_tests::daemon::{Daemon, Home, request};
use tractd_tests::digits::{self, Expected};
use tractd_tests::process::wait_for;
use tractd_wire::{DType, HEADER_LEN, Header, Kind, Status, What};

const PATIENCE: Duration = Duration::from_secs(30);

fn home() -> Home {
    let home = Home::new().with_config(
        "[mqtt]\nenabled = false\n[update]\nenabled = false\n[socket]\nframe_timeout_ms = 700\n\
         [limits]\nmax_body_bytes = 1048576\n",
    );
    home.put_model(&digits::dir(1), "digits", 1);
    home
}

fn image(shape: &[u32], fill: f32) -> Tensor {
    let count = shape.iter().product::<u32>() as usize;
    let data = fill.to_le_bytes().repeat(count);
    Tensor { name: "image".into(), dtype: DType::F32, shape: shape.to_vec(), data }
}

fn still_answers(daemon: &Daemon<'_>) {
    let sample = digits::samples().remove(0);
    let reply = daemon.ask("digits", Input::Media(sample.png.clone()));
    assert_eq!(Expected::of(&digits::dir(1)).check(&sample.name, &reply), Ok(()));
}

#[test]
fn wrong_tensors_and_models_are_told_apart() {
    let home = home();
    let daemon = home.start();
    let good = image(&[1, 1, 8, 8], 0.5);
    let mut socket = daemon.connect();
    let mut check = |model: &str, input: Input, status: Status, says: &[&str]| {
        let reply = socket.infer(&request(model, input)).unwrap();
        assert_eq!(reply.status, status, "{}", reply.detail);
        for words in says {
            assert!(reply.detail.contains(words), "{:?} lacks {words:?}", reply.detail);
        }
    };
    let tensor = |tensor: Tensor| Input::Tensors(vec![tensor]);
    check("digits", tensor(good.clone()), Status::Ok, &[]);
    check("digits@1", tensor(good.clone()), Status::Ok, &[]);
    check("digits@9", tensor(good.clone()), Status::ModelNotFound, &["digits"]);
    check("birds", tensor(good.clone()), Status::ModelNotFound, &["birds"]);
    let doubles = Tensor { dtype: DType::F64, data: vec![0; 512], ..good.clone() };
    check("digits", tensor(doubles), Status::InvalidInput, &["image", "f64", "f32"]);
    check("digits", tensor(image(&[1, 1, 8, 9], 0.5)), Status::InvalidInput, &["image", "9"]);
    check("digits", tensor(image(&[64], 0.5)), Status::InvalidInput, &["image"]);
    let renamed = Tensor { name: "pixels".into(), ..good.clone() };
    check("digits", tensor(renamed), Status::InvalidInput, &["pixels", "image"]);
    let unnamed = Tensor { name: String::new(), ..good.clone() };
    check("digits", tensor(unnamed), Status::Ok, &[]);
    check("digits", tensor(image(&[1, 1, 8, 8], f32::NAN)), Status::InvalidInput, &["image"]);
    check("digits", tensor(image(&[1, 1, 8, 8], f32::INFINITY)), Status::InvalidInput, &["image"]);
    check("digits", Input::Tensors(vec![good.clone(), good]), Status::InvalidInput, &["image"]);
    check(
        "digits",
        Input::Media(b"GIF89a no picture we read".to_vec()),
        Status::UnsupportedType,
        &["JPEG", "PNG"],
    );
    let mut torn = digits::samples().remove(0).png;
    torn.truncate(torn.len() / 2);
    check("digits", Input::Media(torn), Status::InvalidInput, &[]);
    still_answers(&daemon);
}

#[test]
fn frames_that_are_none_get_their_own_answer() {
    let home = home();
    let daemon = home.start();
    let frame = request("digits", Input::Tensors(vec![image(&[1, 1, 8, 8], 0.0)])).frame(77).unwrap();

    let edited = |at: usize, bytes: &[u8]| {
        let mut frame = frame.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    // What is sent, the status answered, the id answered, and whether the connection lives on.
    let cases: &[(&str, Vec<u8>, Status, u64, bool)] = &[
        ("another protocol", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), Status::Malformed, 0, false),
        ("another version", edited(2, &[9]), Status::Version, 77, false),
        ("an unknown kind", edited(3, &[9]), Status::Malformed, 77, false),
        ("reserved bytes", edited(6, &[1]), Status::Malformed, 77, false),
        ("a head beyond its limit", edited(4, &5000u16.to_le_bytes()), Status::TooLarge, 77, false),
        ("a head that is no message", edited(HEADER_LEN, &[0xff; 8]), Status::Malformed, 77, true),
        ("a reply sent to the daemon", edited(3, &[2]), Status::Malformed, 77, true),
    ];
    for (what, bytes, status, id, lives) in cases {
        let mut stream = UnixStream::connect(home.socket()).unwrap();
        stream.write_all(bytes).unwrap();
        let reply = read_reply(&mut stream);
        assert_eq!((reply.status, reply.id), (*status, *id), "{what}: {}", reply.detail);
        assert!(!reply.detail.is_empty(), "{what}");
        if *lives {
            stream.write_all(&frame).unwrap();
            assert_eq!(read_reply(&mut stream).status, Status::Ok, "{what}");
        } else {
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "{what}: the connection should be closed");
        }
    }
    still_answers(&daemon);
}

#[test]
fn oversized_and_truncated_frames_hang_nobody() {
    let home = home();
    let daemon = home.start();

    // Announces more than the limit; the rest is passed over and the connection lives on.
    let large = vec![0u8; 1_048_577];
    let mut socket = Socket::connect(&home.socket()).unwrap();
    let reply = socket.infer(&request("digits", Input::Media(large))).unwrap();
    assert_eq!(reply.status, Status::TooLarge);
    assert!(reply.detail.contains("1048577") && reply.detail.contains("1048576"), "{}", reply.detail);
    let reply = socket.infer(&request("digits", Input::Tensors(vec![image(&[1, 1, 8, 8], 0.0)]))).unwrap();
    assert_eq!(reply.status, Status::Ok);

    // Ends within the frame.
    let frame = request("digits", Input::Tensors(vec![image(&[1, 1, 8, 8], 0.0)])).frame(5).unwrap();
    for cut in [10, HEADER_LEN, HEADER_LEN + 3, frame.len() - 1] {
        let mut stream = UnixStream::connect(home.socket()).unwrap();
        stream.write_all(&frame[..cut]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let reply = read_reply(&mut stream);
        assert_eq!(reply.status, Status::Malformed, "cut at {cut}: {}", reply.detail);
    }

    // Stops within the frame and stays: given up after the time a frame may take.
    let mut stream = UnixStream::connect(home.socket()).unwrap();
    stream.write_all(&frame[..frame.len() - 1]).unwrap();
    let reply = read_reply(&mut stream);
    assert_eq!((reply.status, reply.id), (Status::Malformed, 5));
    assert!(reply.detail.contains("700ms"), "{}", reply.detail);
    still_answers(&daemon);
}

#[test]
fn ten_thousand_requests_at_once_are_answered_or_refused_and_none_hangs() {
    const CONNECTIONS: usize = 50;
    const EACH: u64 = 200;
    let home = Home::new().with_config(
        "[mqtt]\nenabled = false\n[update]\nenabled = false\n[socket]\ninflight_max = 200\n\
         [limits]\njobs_per_model = 100\n",
    );
    home.put_model(&digits::dir(1), "digits", 1);
    let daemon = home.start();
    let sample = digits::samples().remove(4);
    let expected = Expected::of(&digits::dir(1));
    let barrier = std::sync::Barrier::new(CONNECTIONS);
    let counts: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(|| {
                    let mut socket = daemon.connect();
                    let request = request("digits", Input::Media(sample.png.clone()));
                    let frames: Vec<u8> = (1..=EACH).flat_map(|id| request.frame(id).unwrap()).collect();
                    barrier.wait();
                    socket.send(&frames, PATIENCE).unwrap();
                    let mut seen = vec![false; EACH as usize];
                    let (mut answered, mut refused) = (0, 0);
                    for _ in 0..EACH {
                        let reply = Reply::from_parts(&socket.receive(PATIENCE).unwrap().frame()).unwrap();
                        assert!(!std::mem::replace(&mut seen[reply.id as usize - 1], true), "answered twice");
                        if reply.status == Status::Busy {
                            assert!(reply.retry_after_ms > 0, "refused without saying when to come back");
                            refused += 1;
                        } else {
                            assert_eq!(expected.check(&sample.name, &reply), Ok(()));
                            answered += 1;
                        }
                    }
                    (answered, refused)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (answered, refused) = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    assert_eq!(answered + refused, 10_000);
    assert!(answered >= 100, "only {answered} were answered");
    assert!(refused >= 1, "nothing was refused: the queue has no bound");
    let status = daemon.status();
    assert_eq!(status["queue"]["jobs"], 0);
    assert_eq!(status["replies"]["ok"], answered);
    assert_eq!(status["replies"]["busy"], refused);
    still_answers(&daemon);
}

#[test]
fn a_client_that_vanishes_takes_nothing_with_it() {
    let home = home();
    let daemon = home.start();
    let frame = request("digits", Input::Tensors(vec![image(&[1, 1, 8, 8], 0.0)])).frame(1).unwrap();
    for round in 0..100 {
        let mut stream = UnixStream::connect(home.socket()).unwrap();
        // Some after the whole request, some within it.
        let until = if round % 2 == 0 { frame.len() } else { frame.len() / 2 };
        stream.write_all(&frame[..until]).unwrap();
        drop(stream);
    }
    wait_for("the connections' end", PATIENCE, || {
        // Turned away while the others' ends are being noticed.
        let status = Socket::connect(&home.socket()).ok()?.query(What::Status).ok()?;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        // The one that asks is open itself.
        (status["connections"]["open"] == 1).then_some(())
    });
    let status = daemon.status();
    assert_eq!(status["queue"]["jobs"], 0);
    assert_eq!(status["queue"]["bytes"], 0);
    still_answers(&daemon);
}

#[test]
fn a_deadline_that_cannot_be_met_is_said() {
    let home = home();
    home.put_model(&digits::camera_dir(), "camera", 1);
    let daemon = home.start();
    let jpeg = digits::large_jpeg();
    // Decoding 6 megapixels takes longer than this; behind others of its kind it is not even begun.
    let mut socket = daemon.connect();
    let mut hurried = request("camera", Input::Media(jpeg));
    hurried.deadline_ms = 1;
    let frames: Vec<u8> = (1..=6).flat_map(|id| hurried.frame(id).unwrap()).collect();
    socket.send(&frames, PATIENCE).unwrap();
    let replies: Vec<Reply> =
        (0..6).map(|_| Reply::from_parts(&socket.receive(PATIENCE).unwrap().frame()).unwrap()).collect();
    let late = replies.iter().filter(|reply| reply.status == Status::DeadlineExceeded).count();
    assert!(late >= 1, "{:?}", replies.iter().map(|reply| reply.status.name()).collect::<Vec<_>>());
    still_answers(&daemon);
}

fn read_reply(stream: &mut UnixStream) -> Reply {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    let header = Header::parse(&header).unwrap();
    assert_eq!(header.kind, Kind::Reply);
    let mut rest = vec![0; usize::from(header.head_len) + header.body_len as usize];
    stream.read_exact(&mut rest).unwrap();
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(&rest);
    Reply::from_frame(&frame).unwrap()
}
