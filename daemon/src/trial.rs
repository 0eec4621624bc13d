//! A version on trial, seen from the workers: what they observe of it, and how two answers are compared.
//!
//! The decisions are `tractd_update::trial`'s; here are its clock, its lock, and what leads observations to it.

use crate::intake::Reply;
use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tractd_bundle::{DType, Digest};
use tractd_engine::{Class, Tensor};
use tractd_update::trial::{Fault, Observation, Rules, Stage, Step, Trial, Version};
use tractd_wire::Status;

/// Least time between two copies of requests, in microseconds.
const COPY_PAUSE_US: u64 = 5_000;
/// And at least this many times what one copy takes: copies cost a tenth of one worker at most.
const COPY_PAUSE_RUNS: u64 = 10;
/// Distance of two outputs, relative to their size, from which on they count as different answers. Two versions of
/// one model are never equal; two unrelated answers are about 1.4 apart.
const DISTANCE_MAX: f64 = 0.5;

/// What is told once a trial failed.
pub(crate) type Alarm = Box<dyn Fn(Failed) + Send + Sync>;

/// A version to be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) fault: Fault,
}

/// One trial, shared by whoever sees the version run.
pub(crate) struct Watch {
    name: String,
    digest: Digest,
    start: Instant,
    /// A lock of its own: taken by a worker for a few additions per request of a model on trial, by nobody else's.
    trial: Mutex<Trial>,
    /// When the next copy may be made, in microseconds since `start`.
    next_copy_us: AtomicU64,
    alarm: Alarm,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("name", &self.name).field("trial", &self.trial).finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) fn new(name: &str, digest: Digest, rules: Rules, stage: Stage, alarm: Alarm) -> Watch {
        Watch {
            name: name.to_owned(),
            digest,
            start: Instant::now(),
            trial: Mutex::new(Trial::new(rules, stage, Duration::ZERO)),
            next_copy_us: AtomicU64::new(0),
            alarm,
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    pub(crate) fn stage(&self) -> Stage {
        self.trial().stage()
    }

    /// What the time leads to; see [`Trial::due`].
    pub(crate) fn due(&self) -> Option<Step> {
        self.trial().due(self.start.elapsed())
    }

    pub(crate) fn advance(&self, step: Step) {
        self.trial().advance(step, self.start.elapsed());
    }

    /// Takes in what a worker saw; true when the trial has just failed, and somebody else was told so.
    pub(crate) fn observe(&self, observation: Observation) -> bool {
        let fault = self.trial().observe(observation);
        if let Some(fault) = fault {
            (self.alarm)(Failed { name: self.name.clone(), digest: self.digest, fault });
            return true;
        }
        false
    }

    /// Whether a copy of a request the incumbent just answered, in `infer_us`, should go to the candidate. Every
    /// request while there are few, a bounded part of the time when there are many.
    pub(crate) fn wants_copy(&self, infer_us: u64) -> bool {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let pause = COPY_PAUSE_US.max(infer_us.saturating_mul(COPY_PAUSE_RUNS));
        let next = self.next_copy_us.load(Relaxed);
        now >= next
            && self.stage() == Stage::Shadow
            && self.next_copy_us.compare_exchange(next, now.saturating_add(pause), Relaxed, Relaxed).is_ok()
    }

    fn trial(&self) -> MutexGuard<'_, Trial> {
        self.trial.lock().expect("nothing panics while a trial takes something in")
    }
}

/// What the answer of `version` shows.
pub(crate) fn seen(version: Version, reply: &Reply) -> Option<Observation> {
    let candidate = version == Version::Candidate;
    match reply.status {
        Status::Ok if candidate && holds_nan(reply) => Some(Observation::NotANumber),
        Status::Ok => Some(Observation::Ran { version, infer_us: reply.timings.infer_us.into() }),
        Status::Quarantined if candidate => Some(Observation::Crashed),
        Status::Internal if candidate => Some(Observation::Failed(reply.detail.clone())),
        // Wrong with the request, or nobody's fault.
        _ => None,
    }
}

/// What the incumbent answered, kept for comparison.
#[derive(Debug)]
pub(crate) struct Answer {
    tensors: Vec<Tensor>,
    classes: Vec<Class>,
}

impl Answer {
    pub(crate) fn of(reply: &Reply) -> Answer {
        Answer { tensors: reply.tensors.clone(), classes: reply.classes.clone() }
    }

    /// What the candidate's answer to the same request shows.
    pub(crate) fn compared(&self, reply: &Reply) -> Vec<Observation> {
        let refused = matches!(
            reply.status,
            Status::InvalidInput | Status::UnsupportedType | Status::TooLarge | Status::Malformed
        );
        if refused {
            let why = format!("it refused what the version before answered: {}", reply.detail);
            return vec![Observation::Failed(why)];
        }
        let seen = seen(Version::Candidate, reply);
        let same = (reply.status == Status::Ok).then(|| Observation::Compared { same: self.is_like(reply) });
        seen.into_iter().chain(same).collect()
    }

    /// Whether two answers come to the same: the best class where there are classes, else outputs that are near
    /// each other.
    fn is_like(&self, reply: &Reply) -> bool {
        match (self.classes.first(), reply.classes.first()) {
            (Some(ours), Some(theirs)) => ours.index == theirs.index,
            (None, None) => {
                self.tensors.len() == reply.tensors.len()
                    && self.tensors.iter().zip(&reply.tensors).all(|(ours, theirs)| are_near(ours, theirs))
            }
            _ => false,
        }
    }
}

fn are_near(ours: &Tensor, theirs: &Tensor) -> bool {
    if ours.name != theirs.name || ours.dtype != theirs.dtype || ours.shape != theirs.shape {
        return false;
    }
    if ours.data == theirs.data {
        return true;
    }
    let (Some(a), Some(b)) = (numbers(ours), numbers(theirs)) else { return false };
    let (mut apart, mut size) = (0.0, 0.0);
    for (a, b) in a.zip(b) {
        apart += (a - b) * (a - b);
        size += a * a;
    }
    // With a NaN in the incumbent's own answer nothing can be said, and false is what this comparison gives.
    let differ = apart > DISTANCE_MAX * DISTANCE_MAX * size;
    !differ
}

fn holds_nan(reply: &Reply) -> bool {
    let in_tensors = reply.tensors.iter().filter_map(numbers).any(|mut values| values.any(f64::is_nan));
    in_tensors || reply.classes.iter().any(|class| class.score.is_nan())
}

/// The elements of a tensor as numbers; `None` for truth values. 64-bit integers lose what is beyond 2^53.
fn numbers(tensor: &Tensor) -> Option<Box<dyn Iterator<Item = f64> + '_>> {
    fn each<const N: usize>(data: &[u8], number: fn([u8; N]) -> f64) -> Box<dyn Iterator<Item = f64> + '_> {
        Box::new(data.as_chunks::<N>().0.iter().map(move |&element| number(element)))
    }
    let data = &tensor.data;
    Some(match tensor.dtype {
        DType::F32 => each(data, |e| f32::from_le_bytes(e).into()),
        DType::F64 => each(data, f64::from_le_bytes),
        DType::F16 => each(data, |e| f16(u16::from_le_bytes(e))),
        DType::U8 => each(data, |[e]| e.into()),
        DType::I8 => each(data, |e| i8::from_le_bytes(e).into()),
        DType::U16 => each(data, |e| u16::from_le_bytes(e).into()),
        DType::I16 => each(data, |e| i16::from_le_bytes(e).into()),
        DType::U32 => each(data, |e| u32::from_le_bytes(e).into()),
        DType::I32 => each(data, |e| i32::from_le_bytes(e).into()),
        DType::U64 => each(data, |e| u64::from_le_bytes(e) as f64),
        DType::I64 => each(data, |e| i64::from_le_bytes(e) as f64),
        DType::Bool => return None,
    })
}

/// IEEE 754 binary16.
fn f16(bits: u16) -> f64 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let fraction = f64::from(bits & 0x3ff);
    sign * match bits >> 10 & 0x1f {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1024.0 + fraction) * 2f64.powi(i32::from(exponent) - 25),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(values: &[f32]) -> Reply {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = Tensor { name: "y".into(), dtype: DType::F32, shape: vec![values.len() as u32], data };
        Reply { tensors: vec![tensor], ..Reply::refusal(Status::Ok, "m", "") }
    }

    fn class(index: u32, score: f32) -> Reply {
        let classes = vec![Class { index, score, label: "".into() }];
        Reply { classes, ..Reply::refusal(Status::Ok, "m", "") }
    }

    fn check(incumbent: &Reply, candidate: &Reply, expected: &[Observation]) {
        assert_eq!(Answer::of(incumbent).compared(candidate), expected);
    }

    fn ran() -> Observation {
        Observation::Ran { version: Version::Candidate, infer_us: 0 }
    }

    #[test]
    fn answers_are_compared_by_their_best_class_else_by_their_distance() {
        let same = |same| [ran(), Observation::Compared { same }];
        check(&reply(&[3.0, 4.0]), &reply(&[3.0, 4.0]), &same(true));
        check(&reply(&[3.0, 4.0]), &reply(&[3.0, 1.6]), &same(true));
        check(&reply(&[3.0, 4.0]), &reply(&[3.0, 1.4]), &same(false));
        check(&reply(&[3.0, 4.0]), &reply(&[3.0]), &same(false));
        check(&class(3, 0.9), &class(3, 0.2), &same(true));
        check(&class(3, 0.9), &class(4, 0.9), &same(false));
        check(&class(3, 0.9), &reply(&[1.0]), &same(false));
    }

    #[test]
    fn a_nan_is_seen_in_tensors_and_in_scores() {
        let same = Observation::Compared { same: true };
        check(&reply(&[1.0]), &reply(&[f32::NAN]), &[Observation::NotANumber, same.clone()]);
        check(&class(1, 1.0), &class(1, f32::NAN), &[Observation::NotANumber, same]);
        let half = |bits: u16| {
            let data = bits.to_le_bytes().to_vec();
            let tensor = Tensor { name: "y".into(), dtype: DType::F16, shape: vec![1], data };
            holds_nan(&Reply { tensors: vec![tensor], ..reply(&[]) })
        };
        assert!(half(0x7e00) && half(0xfc01) && !half(0x7c00) && !half(0x3c00));
        assert_eq!((f16(0x3c00), f16(0xc000), f16(0x0001)), (1.0, -2.0, 2f64.powi(-24)));
    }

    #[test]
    fn what_the_incumbent_answered_must_not_be_refused() {
        let refused = Reply::refusal(Status::InvalidInput, "m", "no such input");
        let why = "it refused what the version before answered: no such input";
        check(&reply(&[1.0]), &refused, &[Observation::Failed(why.into())]);
        check(&reply(&[1.0]), &Reply::refusal(Status::Busy, "m", ""), &[]);
        let crash = Reply::refusal(Status::Quarantined, "m", "");
        check(&reply(&[1.0]), &crash, &[Observation::Crashed]);
    }

    #[test]
    fn the_incumbents_own_trouble_is_not_the_candidates() {
        for status in [Status::Internal, Status::Quarantined, Status::InvalidInput] {
            assert_eq!(seen(Version::Incumbent, &Reply::refusal(status, "m", "")), None);
        }
        assert_eq!(seen(Version::Candidate, &Reply::refusal(Status::InvalidInput, "m", "")), None);
    }

    #[test]
    fn copies_are_made_in_the_shadow_and_not_too_often() {
        let rules = Rules { healthy: Duration::from_secs(60), slower_max: 3.0, differ_percent_max: 20 };
        let watch = |stage| Watch::new("m", Digest([0; 32]), rules, stage, Box::new(|_| {}));
        let shadow = watch(Stage::Shadow);
        assert!(shadow.wants_copy(1_000_000));
        assert!(!shadow.wants_copy(1_000_000), "ten seconds have not passed");
        assert!(!watch(Stage::Canary).wants_copy(1));
    }
}
