//! Trials in virtual time: each bad model ends at its stage, a good one gets through, and whatever happens in
//! whatever order keeps the rules.

use std::time::Duration;

use proptest::prelude::*;
use tractd_update::trial::{Fault, Observation, Rules, Stage, Step, Trial, Version, slower};

const RULES: Rules = Rules { healthy: Duration::from_secs(100), slower_max: 3.0, differ_percent_max: 20 };

/// A trial and its clock.
struct World {
    trial: Trial,
    now: Duration,
}

impl World {
    fn at(stage: Stage) -> Self {
        Self { trial: Trial::new(RULES, stage, Duration::ZERO), now: Duration::ZERO }
    }

    /// `count` requests both versions run alike.
    fn healthy(&mut self, count: usize) {
        for _ in 0..count {
            self.ran(100, 100);
            assert_eq!(self.trial.observe(Observation::Compared { same: true }), None);
        }
    }

    fn ran(&mut self, incumbent_us: u64, candidate_us: u64) -> Option<Fault> {
        let of = |version, infer_us| Observation::Ran { version, infer_us };
        assert_eq!(self.trial.observe(of(Version::Incumbent, incumbent_us)), None);
        self.trial.observe(of(Version::Candidate, candidate_us))
    }

    /// After `seconds` more: what is due, which is then done.
    fn wait(&mut self, seconds: u64) -> Option<Step> {
        self.now += Duration::from_secs(seconds);
        let due = self.trial.due(self.now);
        if let Some(step) = due {
            self.trial.advance(step, self.now);
        }
        due
    }
}

#[test]
fn a_good_version_goes_through_shadow_canary_and_all() {
    let mut world = World::at(Stage::Shadow);
    world.healthy(20);
    assert_eq!(world.wait(24), None);
    assert_eq!(world.wait(1), Some(Step::Next(Stage::Canary)));
    world.healthy(20);
    assert_eq!(world.wait(24), None);
    assert_eq!(world.wait(1), Some(Step::Next(Stage::All)));
    world.healthy(20);
    assert_eq!(world.wait(49), None);
    assert_eq!(world.wait(1), Some(Step::Commit));
    assert_eq!(world.wait(1_000), None);
}

#[test]
fn a_step_is_due_until_it_is_done() {
    let mut world = World::at(Stage::All);
    world.healthy(20);
    let later = Duration::from_secs(50);
    assert_eq!(world.trial.due(later), Some(Step::Commit));
    assert_eq!(world.trial.due(later), Some(Step::Commit));
    world.trial.advance(Step::Commit, later);
    assert_eq!(world.trial.due(later), None);
}

#[test]
fn a_stage_that_saw_too_little_waits_four_times_as_long_and_no_longer() {
    let mut world = World::at(Stage::Shadow);
    world.healthy(19);
    assert_eq!(world.wait(99), None);
    assert_eq!(world.wait(1), Some(Step::Next(Stage::Canary)));
    // What the stage before saw does not count for this one.
    assert_eq!(world.wait(99), None);
    assert_eq!(world.wait(1), Some(Step::Next(Stage::All)));
}

#[test]
fn no_healthy_time_is_no_trial() {
    let rules = Rules { healthy: Duration::ZERO, ..RULES };
    let trial = Trial::new(rules, Stage::All, Duration::from_secs(7));
    assert_eq!(trial.due(Duration::from_secs(7)), Some(Step::Commit));
}

#[test]
fn one_nan_or_one_crash_is_too_many() {
    for (seen, fault) in
        [(Observation::NotANumber, Fault::NotANumber), (Observation::Crashed, Fault::Crashed)]
    {
        for stage in [Stage::Shadow, Stage::Canary, Stage::All] {
            let mut world = World::at(stage);
            world.healthy(30);
            assert_eq!(world.trial.observe(seen.clone()), Some(fault.clone()));
            assert_eq!(world.trial.observe(seen.clone()), None, "a fault is told once");
            assert_eq!(world.wait(1_000), None, "what failed is never committed");
        }
    }
}

#[test]
fn the_third_error_is_one_too_many() {
    let mut world = World::at(Stage::Canary);
    let failed = || Observation::Failed("no".into());
    world.healthy(7);
    assert_eq!(world.trial.observe(failed()), None);
    assert_eq!(world.trial.observe(failed()), None);
    let fault = Fault::Errors { failed: 3, runs: 10, last: "no".into() };
    assert_eq!(world.trial.observe(failed()), Some(fault));
}

#[test]
fn latency_is_compared_by_medians_of_twenty_runs() {
    let mut world = World::at(Stage::Shadow);
    for _ in 0..19 {
        assert_eq!(world.ran(1_000, 10_000), None);
    }
    let fault = Fault::Slow { candidate_us: 10_000, incumbent_us: 1_000 };
    assert_eq!(world.ran(1_000, 10_000), Some(fault));

    // A few slow runs are anybody's.
    let mut world = World::at(Stage::Shadow);
    for run in 0..60 {
        assert_eq!(world.ran(1_000, if run % 3 == 0 { 90_000 } else { 2_900 }), None);
    }
}

#[test]
fn a_candidate_that_turns_slow_later_is_noticed() {
    let mut world = World::at(Stage::All);
    world.healthy(500);
    let slow = (0..64).find_map(|_| world.ran(100, 900));
    assert_eq!(slow, Some(Fault::Slow { candidate_us: 900, incumbent_us: 100 }));
}

#[test]
fn a_timers_grain_is_no_difference() {
    assert!(!slower(100, 1, 3.0));
    assert!(slower(102, 1, 3.0));
    assert!(!slower(3_000, 1_000, 3.0));
    assert!(slower(3_001, 1_000, 3.0));
}

#[test]
fn more_than_a_fifth_of_other_answers_is_too_many() {
    let mut world = World::at(Stage::Shadow);
    for answer in 0..100 {
        let seen = Observation::Compared { same: answer % 5 != 4 };
        assert_eq!(world.trial.observe(seen), None, "answer {answer}");
    }
    let seen = Observation::Compared { same: false };
    assert_eq!(world.trial.observe(seen), Some(Fault::Disagrees { different: 21, compared: 101 }));
}

#[derive(Debug, Clone)]
enum Happens {
    Wait(u64),
    Seen(Observation),
    /// The process dies and a new one begins where the durable state says.
    Restart,
}

fn happens() -> impl Strategy<Value = Happens> {
    let version = prop_oneof![Just(Version::Incumbent), Just(Version::Candidate)];
    let ran = (version, 1..2_000_u64).prop_map(|(version, infer_us)| Observation::Ran { version, infer_us });
    let seen = prop_oneof![
        60 => ran,
        20 => prop::bool::weighted(0.9).prop_map(|same| Observation::Compared { same }),
        2 => Just(Observation::Failed("no".into())),
        1 => Just(Observation::NotANumber),
        1 => Just(Observation::Crashed),
    ];
    prop_oneof![3 => (0..200_u64).prop_map(Happens::Wait), 20 => seen.prop_map(Happens::Seen), 1 => Just(Happens::Restart)]
}

proptest! {
    #[test]
    fn stages_only_go_forward_in_time_and_nothing_follows_a_fault(story in prop::collection::vec(happens(), 1..400)) {
        let mut world = World::at(Stage::Shadow);
        let (mut faulted, mut committed, mut entered) = (false, false, Duration::ZERO);
        for step in story {
            match step {
                Happens::Wait(seconds) => {
                    let stage = world.trial.stage();
                    let step = world.wait(seconds);
                    prop_assert!(!((faulted || committed) && step.is_some()));
                    let Some(step) = step else { continue };
                    let least = RULES.healthy / if stage == Stage::All { 2 } else { 4 };
                    prop_assert!(world.now - entered >= least);
                    match step {
                        Step::Next(next) => prop_assert!(next > stage),
                        Step::Commit => prop_assert_eq!(stage, Stage::All),
                    }
                    committed |= step == Step::Commit;
                    entered = world.now;
                }
                Happens::Seen(seen) => {
                    let grave = matches!(seen, Observation::NotANumber | Observation::Crashed);
                    let fault = world.trial.observe(seen);
                    prop_assert!(!((faulted || committed) && fault.is_some()));
                    prop_assert!(!grave || faulted || committed || fault.is_some());
                    faulted |= fault.is_some();
                }
                Happens::Restart if !faulted && !committed => {
                    world.trial = Trial::new(RULES, world.trial.stage(), world.now);
                    entered = world.now;
                }
                Happens::Restart => {}
            }
        }
    }
}
