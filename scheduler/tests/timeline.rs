//! The rules one at a time, as timelines with exact times.

#![allow(clippy::unwrap_used)]

use tractd_scheduler::{
    Instant, Job, Limits, Mode, ModelId, OutOfMemory, Priority, Reason, Route, Scheduler, SlotId, SlotInUse,
    Ticket, UnknownSlot, Work,
};

const A: ModelId = ModelId(1);
const B: ModelId = ModelId(2);
const LIMITS: Limits = Limits { jobs_per_model: 4, jobs: 6, bytes: 100, workers: 2, memory_bytes: 1000 };
const SERVICE_US: u64 = 10_000;

/// A scheduler with one slot per model.
fn scheduler(limits: Limits, models: &[ModelId]) -> (Scheduler<u32>, Vec<SlotId>) {
    let mut scheduler = Scheduler::new(limits);
    let slots = models
        .iter()
        .map(|model| {
            let slot = scheduler.add_slot(100, SERVICE_US).unwrap();
            scheduler.set_route(*model, Route::to(slot)).unwrap();
            slot
        })
        .collect();
    (scheduler, slots)
}

fn job(model: ModelId, payload: u32) -> Job<u32> {
    Job { model, pin: None, deadline: Instant(1_000_000), priority: Priority::Normal, bytes: 1, payload }
}

fn run(scheduler: &mut Scheduler<u32>, now: u64) -> (Ticket, u32) {
    match scheduler.next(Instant(now)) {
        Some(Work::Run { ticket, job, .. }) => (ticket, job.payload),
        other => panic!("expected a run, got {other:?}"),
    }
}

/// Runs everything queued, one at a time, each taking what is expected.
fn order(scheduler: &mut Scheduler<u32>) -> Vec<u32> {
    let mut order = Vec::new();
    while let Some(work) = scheduler.next(Instant(10)) {
        let Work::Run { ticket, job, .. } = work else { panic!("nothing expires here") };
        scheduler.finished(ticket, Some(SERVICE_US));
        order.push(job.payload);
    }
    order
}

#[test]
fn within_a_model_priority_then_deadline_then_arrival() {
    let (mut s, _) = scheduler(LIMITS, &[A]);
    s.submit(Instant(0), job(A, 1)).unwrap();
    s.submit(Instant(0), job(A, 2)).unwrap();
    s.submit(Instant(0), Job { deadline: Instant(500_000), ..job(A, 3) }).unwrap();
    s.submit(Instant(0), Job { priority: Priority::High, ..job(A, 4) }).unwrap();
    assert_eq!(order(&mut s), [4, 3, 1, 2]);
    assert!(s.is_idle());
}

#[test]
fn a_busy_model_does_not_starve_another() {
    let (mut s, _) = scheduler(LIMITS, &[A, B]);
    for n in 0..4 {
        s.submit(Instant(0), job(A, n)).unwrap();
    }
    let (first, _) = run(&mut s, 1);
    s.finished(first, Some(SERVICE_US));
    s.submit(Instant(2), job(B, 100)).unwrap();
    assert_eq!(run(&mut s, 3).1, 100);
}

#[test]
fn even_urgent_jobs_get_only_a_bounded_head_start() {
    let limits = Limits { jobs_per_model: 100, jobs: 200, ..LIMITS };
    let (mut s, _) = scheduler(limits, &[A, B]);
    for n in 0..20 {
        s.submit(Instant(0), Job { priority: Priority::High, ..job(A, n) }).unwrap();
    }
    s.submit(Instant(0), Job { priority: Priority::Low, ..job(B, 100) }).unwrap();
    let position = order(&mut s).iter().position(|payload| *payload == 100);
    assert_eq!(position, Some(5), "a head start of 40 ms is used up after 4 runs of 10 ms");
}

#[test]
fn a_model_that_slept_does_not_come_back_with_saved_up_time() {
    let limits = Limits { jobs_per_model: 100, jobs: 200, ..LIMITS };
    let (mut s, _) = scheduler(limits, &[A, B]);
    for n in 0..50 {
        s.submit(Instant(0), job(A, n)).unwrap();
    }
    order(&mut s);
    for n in 0..4 {
        s.submit(Instant(20), job(A, n)).unwrap();
        s.submit(Instant(20), job(B, 100 + n)).unwrap();
    }
    let order = order(&mut s);
    let of_a = order[..4].iter().filter(|payload| **payload < 100).count();
    assert!((1..=3).contains(&of_a), "{order:?}");
}

#[test]
fn full_queues_refuse_with_a_measured_waiting_time() {
    let (mut s, _) = scheduler(LIMITS, &[A, B]);
    for n in 0..4 {
        s.submit(Instant(0), job(A, n)).unwrap();
    }
    for (n, retry_after_ms) in [(4, 5), (5, 10), (6, 15)] {
        let refused = s.submit(Instant(0), job(A, n)).unwrap_err();
        assert_eq!(
            (refused.reason, refused.retry_after_ms, refused.job.payload),
            (Reason::Busy, retry_after_ms, n)
        );
    }
    let (ticket, _) = run(&mut s, 0);
    s.finished(ticket, Some(90_000));
    s.submit(Instant(0), job(A, 7)).unwrap();
    let refused = s.submit(Instant(0), job(A, 8)).unwrap_err();
    assert_eq!(refused.retry_after_ms, 30, "third in line at (7 × 10 + 90) / 8 = 20 ms over two workers");
}

#[test]
fn the_total_of_jobs_is_bounded_too() {
    let (mut s, _) = scheduler(LIMITS, &[A, B]);
    for n in 0..3 {
        s.submit(Instant(0), job(A, n)).unwrap();
        s.submit(Instant(0), job(B, n)).unwrap();
    }
    assert_eq!(s.submit(Instant(0), job(A, 9)).unwrap_err().reason, Reason::Busy);
    assert_eq!(s.stats().queued, 6);
}

#[test]
fn bytes_are_bounded_and_one_model_cannot_hold_them_all() {
    let (mut s, _) = scheduler(LIMITS, &[A, B]);
    s.submit(Instant(0), Job { bytes: 40, ..job(A, 1) }).unwrap();
    let refused = s.submit(Instant(0), Job { bytes: 20, ..job(A, 2) }).unwrap_err();
    assert_eq!(refused.reason, Reason::Busy);
    s.submit(Instant(0), Job { bytes: 60, ..job(B, 3) }).unwrap();
    assert_eq!(s.submit(Instant(0), job(A, 4)).unwrap_err().reason, Reason::Busy);
    assert_eq!(s.stats().queued_bytes, 100);
}

#[test]
fn expiry_is_exact_and_comes_before_work() {
    let (mut s, _) = scheduler(LIMITS, &[A]);
    s.submit(Instant(0), Job { deadline: Instant(1_500), ..job(A, 1) }).unwrap();
    s.submit(Instant(0), Job { priority: Priority::High, ..job(A, 2) }).unwrap();
    assert_eq!(s.next_deadline(), Some(Instant(1_500)));
    assert_eq!(
        s.submit(Instant(9), Job { deadline: Instant(9), ..job(A, 3) }).unwrap_err().reason,
        Reason::Expired
    );
    let expired = s.next(Instant(1_500));
    assert!(matches!(expired, Some(Work::Expired(Job { payload: 1, .. }))), "{expired:?}");
    assert_eq!(run(&mut s, 1_500).1, 2);
}

#[test]
fn a_clock_takes_only_what_expired() {
    let (mut s, _) = scheduler(LIMITS, &[A]);
    s.submit(Instant(0), Job { deadline: Instant(1_500), ..job(A, 1) }).unwrap();
    s.submit(Instant(0), job(A, 2)).unwrap();
    assert_eq!(s.expire(Instant(1_499)), None);
    assert_eq!(s.expire(Instant(1_500)).map(|job| job.payload), Some(1));
    assert_eq!(s.expire(Instant(1_500)), None);
}

#[test]
fn waiting_time_is_told() {
    let (mut s, _) = scheduler(LIMITS, &[A]);
    s.submit(Instant(100), job(A, 1)).unwrap();
    assert!(matches!(s.next(Instant(350)), Some(Work::Run { queued_us: 250, .. })));
}

#[test]
fn draining_refuses_and_finishes() {
    let (mut s, _) = scheduler(LIMITS, &[A]);
    s.submit(Instant(0), job(A, 1)).unwrap();
    s.submit(Instant(0), job(A, 2)).unwrap();
    s.drain();
    let refused = s.submit(Instant(0), job(A, 3)).unwrap_err();
    assert_eq!((refused.reason, refused.retry_after_ms), (Reason::Draining, 1_000));
    let (ticket, payload) = run(&mut s, 1);
    assert_eq!(payload, 1);
    assert_eq!(s.take_queued().iter().map(|job| job.payload).collect::<Vec<_>>(), [2]);
    assert!(!s.is_idle());
    s.finished(ticket, Some(5));
    assert!(s.is_idle());
}

#[test]
fn a_swap_sends_queued_jobs_to_the_new_slot_and_frees_the_old_after_its_last() {
    let (mut s, slots) = scheduler(LIMITS, &[A]);
    s.submit(Instant(0), job(A, 1)).unwrap();
    s.submit(Instant(0), job(A, 2)).unwrap();
    let (ticket, _) = run(&mut s, 1);
    let new = s.add_slot(300, SERVICE_US).unwrap();
    assert_eq!(s.remove_slot(slots[0]), Err(SlotInUse));
    s.set_route(A, Route::to(new)).unwrap();
    assert_eq!(s.remove_slot(slots[0]), Ok(vec![]));
    assert_eq!(s.stats().memory_bytes, 400, "the old slot still runs a job");
    assert_eq!(run(&mut s, 2).0.slot(), new);
    s.finished(ticket, Some(5));
    assert_eq!(s.stats().memory_bytes, 300);
    assert_eq!(s.set_route(A, Route::to(slots[0])), Err(UnknownSlot));
}

#[test]
fn memory_is_admitted_by_peak() {
    let mut s = Scheduler::<u32>::new(LIMITS);
    s.add_slot(700, 1).unwrap();
    assert_eq!(s.add_slot(301, 1), Err(OutOfMemory { needed: 301, free: 300 }));
    s.add_slot(300, 1).unwrap();
}

#[test]
fn a_quarantined_model_answers_nobody_until_routed_anew() {
    let (mut s, slots) = scheduler(LIMITS, &[A, B]);
    s.submit(Instant(0), job(A, 1)).unwrap();
    s.submit(Instant(0), job(B, 2)).unwrap();
    let returned = s.quarantine(slots[0]);
    assert_eq!(returned.iter().map(|job| job.payload).collect::<Vec<_>>(), [1]);
    assert_eq!(s.submit(Instant(0), job(A, 3)).unwrap_err().reason, Reason::Quarantined);
    assert_eq!(run(&mut s, 1).1, 2);
    let new = s.add_slot(1, 1).unwrap();
    s.set_route(A, Route::to(new)).unwrap();
    s.submit(Instant(2), job(A, 4)).unwrap();
    assert_eq!(run(&mut s, 3).0.slot(), new);
}

#[test]
fn a_crashed_candidate_leaves_the_stable_version_alone() {
    let (mut s, slots) = scheduler(LIMITS, &[A]);
    let candidate = s.add_slot(1, 1).unwrap();
    let route = Route { stable: slots[0], candidate: Some(candidate), mode: Mode::Canary, share: 10_000 };
    s.set_route(A, route).unwrap();
    s.submit(Instant(0), job(A, 1)).unwrap();
    s.submit(Instant(0), Job { pin: Some(candidate), ..job(A, 2) }).unwrap();
    let returned = s.quarantine(candidate);
    assert_eq!(returned.iter().map(|job| job.payload).collect::<Vec<_>>(), [2]);
    assert_eq!(run(&mut s, 1).0.slot(), slots[0]);
}

#[test]
fn a_canary_gets_exactly_its_share_evenly_spread() {
    let (mut s, slots) = scheduler(LIMITS, &[A]);
    let candidate = s.add_slot(1, SERVICE_US).unwrap();
    let route = Route { stable: slots[0], candidate: Some(candidate), mode: Mode::Canary, share: 2_500 };
    s.set_route(A, route).unwrap();
    let picks: Vec<bool> = (0..12)
        .map(|n| {
            s.submit(Instant(0), job(A, n)).unwrap();
            let (ticket, _) = run(&mut s, 0);
            let picked = ticket.slot() == candidate;
            s.finished(ticket, Some(SERVICE_US));
            picked
        })
        .collect();
    let expected: Vec<bool> = (0..12).map(|n| n % 4 == 3).collect();
    assert_eq!(picks, expected);
}

#[test]
fn a_shadow_candidate_gets_only_what_is_pinned_to_it() {
    let (mut s, slots) = scheduler(LIMITS, &[A]);
    let candidate = s.add_slot(1, SERVICE_US).unwrap();
    let route = Route { stable: slots[0], candidate: Some(candidate), mode: Mode::Shadow, share: 10_000 };
    s.set_route(A, route).unwrap();
    s.submit(Instant(0), job(A, 1)).unwrap();
    s.submit(Instant(0), Job { pin: Some(candidate), priority: Priority::Low, ..job(A, 1) }).unwrap();
    assert_eq!(run(&mut s, 1).0.slot(), slots[0]);
    assert_eq!(run(&mut s, 1).0.slot(), candidate);
}

#[test]
fn a_run_that_nobody_waited_for_costs_its_model_nothing() {
    let (mut s, _) = scheduler(LIMITS, &[A, B]);
    s.submit(Instant(0), job(A, 1)).unwrap();
    s.submit(Instant(0), job(A, 2)).unwrap();
    s.submit(Instant(0), Job { deadline: Instant(2_000_000), ..job(B, 3) }).unwrap();
    let (ticket, first) = run(&mut s, 0);
    s.finished(ticket, None);
    assert_eq!((first, run(&mut s, 0).1), (1, 2));
}

#[test]
fn what_a_run_takes_is_known_once_one_has_run() {
    let (mut s, _) = scheduler(LIMITS, &[]);
    let slot = s.add_slot(100, 0).unwrap();
    s.set_route(A, Route::to(slot)).unwrap();
    assert_eq!(s.service_us(slot), None);
    let mut known_after = |took_us| {
        s.submit(Instant(0), job(A, 1)).unwrap();
        let (ticket, _) = run(&mut s, 0);
        s.finished(ticket, took_us);
        s.service_us(slot)
    };
    assert_eq!(known_after(None), None, "it was not run after all");
    assert_eq!(known_after(Some(800)), Some(800), "the first counts whole");
    assert_eq!(known_after(Some(1_600)), Some(900), "the others an eighth");
    // Faster than the clock tells, and yet not unknown.
    assert_eq!((0..100).map(|_| known_after(Some(0))).last(), Some(Some(1)));
}
