//! Overload, deadlines, clients that vanish.

use crate::{
    harness::{Ask, Daemon, Site, floats, wait_until},
    onnx,
};
use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};
use tractd_wire::{DType, Status};

/// Side of the slow model's matrix; 100 squarings take some ten to hundred milliseconds.
const N: u64 = 320;

pub(crate) fn slow(site: &Site) {
    site.add_model("slow", 1, &onnx::squares(N, 100));
}

pub(crate) fn slow_ask() -> Ask<'static> {
    Ask::tensor("slow", "x", DType::F32, &[N as u32, N as u32], floats(&vec![0.001; (N * N) as usize]))
}

/// Waits until nothing is queued and nothing runs.
fn wait_quiet(daemon: &Daemon) {
    let quiet = || {
        let queue = daemon.status()["queue"].clone();
        queue["jobs"] == 0 && queue["running"] == 0
    };
    wait_until(quiet, || daemon.status().to_string());
}

#[test]
fn ten_thousand_at_once_are_answered_or_refused_with_a_time_and_none_hangs() {
    let site = Site::new();
    site.add_example("digits", 1);
    site.configure("[socket]\ninflight_max = 20000\n[limits]\njobs = 128\njobs_per_model = 64");
    let daemon = site.start();
    const CLIENTS: u64 = 10;
    const EACH: u64 = 1_000;
    let start = Instant::now();
    let outcomes: Vec<(Status, u32)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut client = daemon.connect();
                scope.spawn(move || {
                    let ask = Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]);
                    let frames: Vec<u8> = (0..EACH).flat_map(|id| ask.frame(id)).collect();
                    let mut stream = client.stream.try_clone().unwrap();
                    let writer = thread::spawn(move || stream.write_all(&frames).unwrap());
                    let replies: Vec<_> = (0..EACH).map(|_| client.receive()).collect();
                    writer.join().unwrap();
                    let mut ids: Vec<u64> = replies.iter().map(|reply| reply.id).collect();
                    ids.sort_unstable();
                    assert_eq!(ids, (0..EACH).collect::<Vec<_>>());
                    replies.into_iter().map(|reply| (reply.status, reply.retry_after_ms)).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let count = |wanted| outcomes.iter().filter(|(status, _)| *status == wanted).count() as u64;
    let (ok, busy) = (count(Status::Ok), count(Status::Busy));
    assert_eq!(ok + busy, CLIENTS * EACH, "{outcomes:?}");
    assert!(ok >= 64 && busy > 0, "{ok} answered, {busy} refused");
    assert!(
        outcomes.iter().all(|(status, retry_after_ms)| (*status == Status::Busy) == (*retry_after_ms > 0))
    );
    println!("{ok} answered, {busy} refused in {:?}", start.elapsed());
    let status = daemon.status();
    assert_eq!(status["requests"], CLIENTS * EACH);
    assert_eq!(status["models"][0]["replies"]["ok"], ok);
    assert_eq!(status["models"][0]["latency"]["count"], ok);
}

#[test]
fn one_connection_has_its_own_limit() {
    let site = Site::new();
    slow(&site);
    site.configure("workers = 1\n[socket]\ninflight_max = 2");
    let daemon = site.start();
    let mut client = daemon.connect();
    for _ in 0..3 {
        client.send(&slow_ask());
    }
    let first = client.receive();
    assert_eq!((first.id, first.status), (3, Status::Busy));
    assert!(first.retry_after_ms > 0 && first.detail.contains("2 requests unanswered"), "{first:?}");
    assert_eq!((client.receive().status, client.receive().status), (Status::Ok, Status::Ok));
}

#[test]
fn a_deadline_is_answered_in_time_though_every_worker_is_busy() {
    let site = Site::new();
    site.add_model("slow", 1, &onnx::squares(N, 400));
    site.configure("workers = 1");
    let daemon = site.start();
    let mut client = daemon.connect();
    client.send(&slow_ask());
    wait_until(|| daemon.status()["queue"]["running"] == 1, || daemon.status().to_string());
    let start = Instant::now();
    client.send(&slow_ask().within(30));
    let reply = client.receive();
    let waited = start.elapsed();
    assert_eq!((reply.id, reply.status, reply.retry_after_ms), (2, Status::DeadlineExceeded, 0));
    assert!(waited.as_millis() >= 30, "{waited:?}");
    let slow = client.receive();
    assert_eq!((slow.id, slow.status), (1, Status::Ok));
    assert!(start.elapsed() > waited, "the expiry did not wait for the worker");
}

/// Its trial gives way to the processes that keep the device's one processor busy.
#[test]
fn a_model_that_could_not_be_tried_on_a_busy_device_is_tried_again() {
    if !std::fs::exists("/proc/self/schedstat").unwrap() {
        println!("left out: this kernel does not count how long a process was on a processor");
        return;
    }
    let site = Site::new();
    // Some hundred milliseconds, of which it gets a few in each second.
    site.add_model("slow", 1, &onnx::squares(N, 400));
    site.configure("[proof]\nwall_ms = 1000");
    let over = AtomicBool::new(false);
    let daemon = thread::scope(|scope| {
        on_one_processor();
        for _ in 0..4 {
            // A thread is where the one that started it is.
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let daemon = site.start();
        over.store(true, Ordering::Relaxed);
        daemon
    });
    let log = daemon.log().join("\n");
    assert!(log.contains("the device is too busy for the model's trial"), "{log}");
    let reply = daemon.connect().ask(&slow_ask());
    assert_eq!((reply.status, reply.retry_after_ms > 0), (Status::Busy, true));
    daemon.wait_log("model loaded");
    assert_eq!(daemon.connect().ask(&slow_ask()).status, Status::Ok);
}

fn on_one_processor() {
    let mut allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
    allowed.clear();
    allowed.set(first);
    rustix::thread::sched_setaffinity(None, &allowed).unwrap();
}

#[test]
fn a_client_that_vanishes_takes_its_queued_requests_with_it() {
    let site = Site::new();
    slow(&site);
    site.configure("workers = 1");
    let daemon = site.start();
    let mut client = daemon.connect();
    for _ in 0..10 {
        client.send(&slow_ask());
    }
    wait_until(|| daemon.status()["queue"]["jobs"].as_u64() >= Some(5), || daemon.status().to_string());
    drop(client);
    wait_quiet(&daemon);
    let status = daemon.status();
    let model = &status["models"][0];
    assert!(model["abandoned"].as_u64().unwrap() >= 1, "{model}");
    assert_eq!(daemon.connect().ask(&slow_ask()).status, Status::Ok);
}

#[test]
fn a_client_that_vanishes_within_a_frame_leaves_nothing_behind() {
    let site = Site::new();
    site.add_example("digits", 1);
    let daemon = site.start();
    let frame = slow_ask().frame(1);
    for length in [5, 25, 1000, frame.len() / 2] {
        let mut client = daemon.connect();
        client.stream.write_all(&frame[..length]).unwrap();
    }
    // The connection that asks is open itself.
    wait_until(|| daemon.status()["connections"]["open"] == 1, || daemon.status().to_string());
}

#[test]
fn bodies_under_way_have_a_budget() {
    let site = Site::new();
    slow(&site);
    // One matrix is 409,600 bytes: the second one no longer fits.
    site.configure("workers = 1\n[limits]\nmax_body_bytes = 600000\nqueue_bytes = 600000");
    let daemon = site.start();
    let mut client = daemon.connect();
    client.send(&slow_ask());
    client.send(&slow_ask());
    let refused = client.receive();
    assert_eq!((refused.id, refused.status, refused.retry_after_ms), (2, Status::Busy, 100));
    assert_eq!(client.receive().status, Status::Ok);
    assert_eq!(client.ask(&slow_ask()).status, Status::Ok);
}

#[test]
fn a_busy_model_does_not_hold_up_another() {
    let site = Site::new();
    slow(&site);
    site.add_example("digits", 1);
    site.configure("workers = 1");
    let daemon = site.start();
    let mut busy = daemon.connect();
    for _ in 0..20 {
        busy.send(&slow_ask());
    }
    let mut other = daemon.connect();
    let reply = other.ask(&Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]));
    assert_eq!(reply.status, Status::Ok);
    let left = daemon.status()["queue"]["jobs"].as_u64().unwrap();
    assert!(left >= 15, "{left} of the busy model's requests were left");
}
