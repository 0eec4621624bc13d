//! Which requests run where they arrive, and that such a run is like any other.

use super::requests::{BRIEF_US, SHORT_US};
use super::*;
use crate::intake::{Origin, Payload, Reply, Spare, TensorDesc};
use bytes::Bytes;
use std::path::Path;
use tokio::sync::oneshot;
use tractd_bundle::{Bundle, Digest, Limits as BundleLimits};
use tractd_engine::PlanOptions;
use tractd_update::trial::{Rules, Stage};
use tractd_wire::{DType, Status, Want};

/// A floor without threads, and a model of 8 × 8 floats that is said to take `service_us`.
fn floor(workers: usize, service_us: u64) -> Arc<Floor> {
    let limits = Limits { jobs_per_model: 4, jobs: 4, bytes: 10_000, workers, memory_bytes: 1 << 30 };
    let floor = Floor::new(limits, &config::Limits::default());
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits/1");
    let bundle = Bundle::open(&dir, &BundleLimits::default()).unwrap();
    let plan = Arc::new(Plan::load(&bundle, &PlanOptions::default()).unwrap());
    let stats = Arc::new(ModelStats::default());
    let loaded = Loaded { plan, name: "digits".into(), signed: false, peak_bytes: 1, service_us, stats };
    // Nobody prepares the places meanwhile.
    let prepare = {
        let floor = floor.clone();
        std::thread::spawn(move || prepare(&floor, workers))
    };
    floor.install(loaded, None).unwrap();
    prepare.join().unwrap();
    floor
}

fn prepare(floor: &Floor, mut places: usize) {
    while places > 0 {
        if let Task::Prepare { mut place, generation, plans } = floor.take() {
            place.prepare(generation, plans);
            floor.prepared(place);
            places -= 1;
        }
    }
}

fn request() -> Request {
    Request {
        model: "digits".into(),
        deadline: None,
        priority: tractd_wire::Priority::Normal,
        payload: Payload::Tensors {
            descs: vec![TensorDesc { name: "image".into(), dtype: DType::F32, shape: vec![1, 1, 8, 8] }],
            body: vec![0; 256].into(),
        },
        want: Want::CLASSES,
        origin: Origin::Mqtt,
    }
}

type Replied = oneshot::Receiver<Reply>;

fn submit(floor: &Floor, request: Request, spare: Spare) -> (Option<Run>, Replied) {
    let (sender, replied) = oneshot::channel();
    (floor.submit(request, ReplyTo::Once(sender), spare), replied)
}

#[track_caller]
fn check(workers: usize, service_us: u64, spare: Spare, runs_here: bool) {
    let (run, _replied) = submit(&floor(workers, service_us), request(), spare);
    assert_eq!(run.is_some(), runs_here);
}

#[test]
fn short_runs_are_the_arriving_threads_own() {
    check(2, SHORT_US, Spare::Plenty, true);
    check(2, SHORT_US + 1, Spare::Plenty, false);
    check(2, BRIEF_US, Spare::Some, true);
    check(2, BRIEF_US + 1, Spare::Some, false);
    check(2, 1, Spare::None, false);
    // With one place there is nobody to run beside.
    check(1, SHORT_US, Spare::Some, true);
    // How long the first run takes, nobody knows.
    check(2, 0, Spare::Plenty, false);
}

#[test]
fn an_image_waits_for_a_worker_however_small() {
    let image = Request { payload: Payload::Media(Bytes::from_static(b"\x89PNG")), ..request() };
    let (run, _replied) = submit(&floor(2, 1), image, Spare::Plenty);
    assert!(run.is_none());
}

#[test]
fn nobody_is_overtaken() {
    let floor = floor(2, 1);
    let (queued, _replied) = submit(&floor, request(), Spare::None);
    let (second, _replied_too) = submit(&floor, request(), Spare::Plenty);
    assert!(queued.is_none() && second.is_none());
    assert_eq!(floor.stats().queued, 2);
}

#[test]
fn a_run_here_takes_a_place_and_gives_it_back() {
    let floor = floor(1, 1);
    let (run, mut replied) = submit(&floor, request(), Spare::Plenty);
    let run = run.expect("it is short, and nothing is before it");
    assert_eq!((floor.stats().queued, floor.stats().running), (0, 1));
    // The only place is taken: the next one waits, whoever brings it.
    let (second, mut replied_too) = submit(&floor, request(), Spare::Plenty);
    assert!(second.is_none());
    assert!(matches!(floor.take(), Task::Idle));

    run.carry_out(&floor);
    let reply = replied.try_recv().expect("answered before the thread goes on");
    assert_eq!((reply.status, reply.version, reply.classes.len() > 1), (Status::Ok, 1, true));
    assert_eq!((floor.stats().queued, floor.stats().running), (1, 0));
    let Task::Run(run) = floor.take() else { panic!("a worker finds the second one") };
    run.carry_out(&floor);
    assert_eq!(replied_too.try_recv().map(|reply| reply.status), Ok(Status::Ok));
    assert_eq!((floor.stats().queued, floor.stats().running), (0, 0));
}

#[test]
fn what_is_on_trial_is_left_to_the_workers() {
    let floor = floor(2, 1);
    let rules = Rules { healthy: Duration::from_secs(60), slower_max: 3.0, differ_percent_max: 20 };
    let watch = Watch::new("digits", Digest([0; 32]), rules, Stage::Shadow, Box::new(|_| {}));
    let slot = floor.state().models["digits"].slot;
    floor.state().trials.insert(slot, (Arc::new(watch), Version::Candidate));
    assert!(submit(&floor, request(), Spare::Plenty).0.is_none());
}

#[test]
fn a_queue_holds_no_more_memory_than_it_counts() {
    let large = Bytes::from(vec![0; 1 << 20]);
    let part = || Payload::Tensors {
        descs: vec![TensorDesc { name: "image".into(), dtype: DType::F32, shape: vec![1, 1, 8, 8] }],
        body: large.slice(..256),
    };
    let floor = floor(1, 1);
    let (here, _replied) = submit(&floor, Request { payload: part(), ..request() }, Spare::Plenty);
    assert!(
        here.expect("it runs here").pending.request.payload.is_shared(),
        "what runs at once is not copied"
    );
    let (queued, _replied) = submit(&floor, Request { payload: part(), ..request() }, Spare::None);
    assert!(queued.is_none());
    let left = floor.state().scheduler.take_queued();
    assert!(!left[0].payload.request.payload.is_shared());
    assert_eq!(left[0].payload.request.payload, part());
}

#[test]
fn a_place_of_before_a_change_of_models_is_not_used() {
    let floor = floor(1, 1);
    floor.state().generation += 1;
    assert!(submit(&floor, request(), Spare::Plenty).0.is_none());
    assert_eq!(floor.stats().queued, 1);
}
