//! Whatever happens in whatever order: every job ends exactly once, limits hold, and the order is kept.
//!
//! A failure prints its seed and shrunken steps; proptest replays it from `proptest-regressions/`.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use std::{cmp::Reverse, collections::BTreeMap};
use tractd_scheduler::{
    Instant, Job, Limits, Mode, ModelId, Priority, Reason, Route, Scheduler, SlotId, Ticket, Work,
};

const LIMITS: Limits = Limits { jobs_per_model: 5, jobs: 9, bytes: 300, workers: 2, memory_bytes: 1_000 };

#[derive(Debug, Clone)]
enum Step {
    Submit { model: u32, priority: Priority, lifetime_us: u64, bytes: u64, pinned: bool },
    Wait(u64),
    Next,
    Finish { index: usize, took_us: Option<u64> },
    Swap { model: u32, share: Option<u16> },
    Quarantine { model: u32 },
    RemoveModel { model: u32 },
    TakeQueued,
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    let priority = prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)];
    prop_oneof![
        12 => (0..3_u32, priority, 0..5_000_u64, 0..120_u64, prop::bool::weighted(0.1)).prop_map(
            |(model, priority, lifetime_us, bytes, pinned)| Step::Submit { model, priority, lifetime_us, bytes, pinned }
        ),
        4 => (0..2_000_u64).prop_map(Step::Wait),
        10 => Just(Step::Next),
        6 => (0..4_usize, prop::option::of(0..3_000_u64)).prop_map(|(index, took_us)| Step::Finish { index, took_us }),
        2 => (0..3_u32, prop::option::of(0..=10_000_u16)).prop_map(|(model, share)| Step::Swap { model, share }),
        1 => (0..3_u32).prop_map(|model| Step::Quarantine { model }),
        1 => (0..3_u32).prop_map(|model| Step::RemoveModel { model }),
        1 => Just(Step::TakeQueued),
        1 => Just(Step::Drain),
    ]
}

/// The scheduler and an account of every job ever submitted, kept apart from it.
struct World {
    scheduler: Scheduler<usize>,
    now: Instant,
    routes: BTreeMap<u32, Route>,
    crashed: Vec<SlotId>,
    queued: BTreeMap<usize, Job<usize>>,
    running: Vec<(Ticket, usize)>,
    ended: Vec<usize>,
    submitted: usize,
    draining: bool,
}

impl World {
    fn new() -> World {
        World {
            scheduler: Scheduler::new(LIMITS),
            now: Instant(0),
            routes: BTreeMap::new(),
            crashed: Vec::new(),
            queued: BTreeMap::new(),
            running: Vec::new(),
            ended: Vec::new(),
            submitted: 0,
            draining: false,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Submit { model, priority, lifetime_us, bytes, pinned } => {
                self.submit(model, priority, lifetime_us, bytes, pinned);
            }
            Step::Wait(us) => self.now.0 += us,
            Step::Next => drop(self.next()),
            Step::Finish { index, took_us } => self.finish(index, took_us),
            Step::Swap { model, share } => self.swap(model, share),
            Step::Quarantine { model } => {
                let Some(route) = self.routes.get(&model) else { return };
                self.crashed.push(route.stable);
                let returned = self.scheduler.quarantine(route.stable);
                self.returned(returned);
            }
            Step::RemoveModel { model } => {
                let returned = self.scheduler.remove_model(ModelId(model));
                self.returned(returned);
                assert!(self.queued.values().all(|job| job.model != ModelId(model)));
                if let Some(route) = self.routes.remove(&model) {
                    self.remove_slots(&route);
                }
            }
            Step::TakeQueued => {
                let returned = self.scheduler.take_queued();
                self.returned(returned);
                assert!(self.queued.is_empty());
            }
            Step::Drain => {
                self.scheduler.drain();
                self.draining = true;
            }
        }
    }

    fn submit(&mut self, model: u32, priority: Priority, lifetime_us: u64, bytes: u64, pinned: bool) {
        let payload = self.submitted;
        self.submitted += 1;
        let pin = self.routes.get(&model).map(|route| route.stable).filter(|_| pinned);
        let deadline = Instant(self.now.0 + lifetime_us);
        let job = Job { model: ModelId(model), pin, deadline, priority, bytes, payload };
        match self.scheduler.submit(self.now, job.clone()) {
            Ok(()) => {
                assert!(!self.draining && lifetime_us > 0 && self.routes.contains_key(&model));
                assert!(!self.crashed.contains(&self.routes[&model].stable));
                self.queued.insert(payload, job);
            }
            Err(refused) => {
                assert_eq!(refused.job, job);
                assert_eq!(
                    refused.retry_after_ms > 0,
                    matches!(refused.reason, Reason::Busy | Reason::Draining)
                );
                self.ended.push(payload);
            }
        }
    }

    fn next(&mut self) -> bool {
        match self.scheduler.next(self.now) {
            None => {
                assert!(self.queued.is_empty(), "an idle worker beside queued jobs");
                false
            }
            Some(Work::Expired(job)) => {
                assert!(job.deadline <= self.now);
                assert_eq!(self.queued.remove(&job.payload), Some(job.clone()));
                self.ended.push(job.payload);
                true
            }
            Some(Work::Run { ticket, job, .. }) => {
                assert_eq!(self.queued.remove(&job.payload), Some(job.clone()));
                assert!(self.queued.values().all(|other| other.deadline > self.now), "expiries come first");
                assert!(!self.crashed.contains(&ticket.slot()));
                let route = &self.routes[&job.model.0];
                match job.pin {
                    Some(pin) => assert_eq!(ticket.slot(), pin),
                    None => assert!(ticket.slot() == route.stable || Some(ticket.slot()) == route.candidate),
                }
                let rank = |job: &Job<usize>| (Reverse(job.priority), job.deadline, job.payload);
                let overtaken =
                    self.queued.values().find(|other| other.model == job.model && rank(other) < rank(&job));
                assert_eq!(overtaken, None, "{job:?} went first");
                self.running.push((ticket, job.payload));
                true
            }
        }
    }

    fn finish(&mut self, index: usize, took_us: Option<u64>) {
        if index < self.running.len() {
            let (ticket, payload) = self.running.swap_remove(index);
            self.scheduler.finished(ticket, took_us);
            self.ended.push(payload);
        }
    }

    fn swap(&mut self, model: u32, share: Option<u16>) {
        let Ok(slot) = self.scheduler.add_slot(100, 500) else { return };
        let former = self.routes.get(&model).copied();
        let route = match (share, former) {
            (Some(share), Some(former)) => {
                Route { stable: former.stable, candidate: Some(slot), mode: Mode::Canary, share }
            }
            _ => Route::to(slot),
        };
        self.scheduler.set_route(ModelId(model), route).unwrap();
        self.routes.insert(model, route);
        if let Some(former) = former {
            self.remove_slots(&former);
        }
    }

    /// Removes the slots of a former route that the present one no longer names.
    fn remove_slots(&mut self, former: &Route) {
        for slot in std::iter::once(former.stable).chain(former.candidate) {
            if let Ok(returned) = self.scheduler.remove_slot(slot) {
                self.returned(returned);
            }
        }
    }

    fn returned(&mut self, jobs: Vec<Job<usize>>) {
        for job in jobs {
            assert_eq!(self.queued.remove(&job.payload), Some(job.clone()));
            self.ended.push(job.payload);
        }
    }

    fn check(&self) {
        let stats = self.scheduler.stats();
        assert_eq!(stats.queued, self.queued.len());
        assert_eq!(stats.queued_bytes, self.queued.values().map(|job| job.bytes).sum::<u64>());
        assert_eq!(stats.running, self.running.len());
        assert!(stats.queued <= LIMITS.jobs && stats.queued_bytes <= LIMITS.bytes);
        assert!(stats.memory_bytes <= LIMITS.memory_bytes);
        for model in 0..3 {
            assert!(self.scheduler.queued(ModelId(model)) <= LIMITS.jobs_per_model);
        }
        assert_eq!(self.scheduler.next_deadline(), self.queued.values().map(|job| job.deadline).min());
        assert_eq!(self.scheduler.is_idle(), self.queued.is_empty() && self.running.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_job_ends_exactly_once(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for model in 0..3 {
            world.swap(model, None);
        }
        for step in steps {
            world.take(step);
            world.check();
        }
        while world.next() {
            world.check();
        }
        while !world.running.is_empty() {
            world.finish(0, Some(1));
            world.check();
        }
        prop_assert!(world.scheduler.is_idle());
        let mut ended = world.ended;
        ended.sort_unstable();
        prop_assert_eq!(ended, (0..world.submitted).collect::<Vec<_>>());
    }

    #[test]
    fn two_busy_models_share_worker_time_evenly(a_us in 100..50_000_u64, b_us in 100..50_000_u64, urgent: bool) {
        let limits = Limits { jobs_per_model: 4, jobs: 8, ..LIMITS };
        let mut scheduler = Scheduler::new(limits);
        let mut used = [0_u64; 2];
        for model in 0..2 {
            let slot = scheduler.add_slot(1, 10_000).unwrap();
            scheduler.set_route(ModelId(model), Route::to(slot)).unwrap();
        }
        for turn in 0..2_000_u64 {
            for model in 0..2 {
                let priority = if urgent && model == 0 { Priority::High } else { Priority::Normal };
                let job = Job { model: ModelId(model), pin: None, deadline: Instant(u64::MAX), priority, bytes: 1, payload: () };
                while scheduler.submit(Instant(turn), job.clone()).is_ok() {}
            }
            let Some(Work::Run { ticket, job, .. }) = scheduler.next(Instant(turn)) else { panic!("queues are full") };
            let took_us = [a_us, b_us][job.model.0 as usize];
            used[job.model.0 as usize] += took_us;
            scheduler.finished(ticket, Some(took_us));
        }
        prop_assert!(used[0].abs_diff(used[1]) <= 200_000, "{:?}", used);
    }
}
