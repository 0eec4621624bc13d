//! Counters and latency histograms.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tractd_engine::Timings;
use tractd_wire::Status;

/// Longest time told apart in a histogram, in microseconds; longer ones count as this. Ten minutes.
const TRACKED_US_MAX: u64 = 600_000_000;

/// Digits kept of a time: a histogram of two takes about 12 KiB, one of three ten times that.
const DIGITS: u8 = 2;

/// Every status, in the order of its counter.
const STATUSES: [Status; 14] = [
    Status::Ok,
    Status::Malformed,
    Status::Forbidden,
    Status::ModelNotFound,
    Status::DeadlineExceeded,
    Status::TooLarge,
    Status::UnsupportedType,
    Status::InvalidInput,
    Status::Busy,
    Status::Internal,
    Status::Quarantined,
    Status::Draining,
    Status::Version,
    Status::InsufficientMemory,
];

/// How requests ended.
#[derive(Debug, Default)]
pub(crate) struct Outcomes([AtomicU64; STATUSES.len()]);

impl Outcomes {
    pub(crate) fn count(&self, status: Status) {
        let index = STATUSES.iter().position(|known| *known == status).expect("STATUSES lists every status");
        self.0[index].fetch_add(1, Relaxed);
    }

    /// Counts by the status's name, those that are zero left out.
    pub(crate) fn by_name(&self) -> BTreeMap<&'static str, u64> {
        let counts = STATUSES.iter().zip(&self.0).map(|(status, count)| (status.name(), count.load(Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

/// What one model did since the daemon started, over all its versions: a swap must not turn counters back.
#[derive(Debug)]
pub(crate) struct ModelStats {
    pub(crate) outcomes: Outcomes,
    /// Requests nobody waited for any more when their turn came.
    pub(crate) abandoned: AtomicU64,
    /// A lock of its own, taken by a worker for four additions per answered request and by whoever reads a
    /// status; a histogram per worker would multiply the memory instead.
    latency: Mutex<Latency>,
}

#[derive(Debug)]
struct Latency {
    queue: Histogram<u32>,
    pre: Histogram<u32>,
    infer: Histogram<u32>,
    post: Histogram<u32>,
}

impl Default for ModelStats {
    fn default() -> Self {
        let new =
            || Histogram::new_with_max(TRACKED_US_MAX, DIGITS).expect("the bounds are constants that work");
        let latency = Mutex::new(Latency { queue: new(), pre: new(), infer: new(), post: new() });
        ModelStats { outcomes: Outcomes::default(), abandoned: AtomicU64::new(0), latency }
    }
}

impl ModelStats {
    /// Records where one answered request spent its time.
    pub(crate) fn record(&self, queue_us: u32, timings: Timings) {
        let mut latency = self.latency.lock().expect("nothing panics while recording");
        latency.queue.saturating_record(queue_us.into());
        latency.pre.saturating_record(timings.pre_us.into());
        latency.infer.saturating_record(timings.infer_us.into());
        latency.post.saturating_record(timings.post_us.into());
    }

    /// The histograms' summary.
    pub(crate) fn latency(&self) -> LatencyReport {
        let latency = self.latency.lock().expect("nothing panics while recording");
        LatencyReport {
            count: latency.queue.len(),
            queue: Percentiles::of(&latency.queue),
            pre: Percentiles::of(&latency.pre),
            infer: Percentiles::of(&latency.infer),
            post: Percentiles::of(&latency.post),
        }
    }
}

/// Latencies of answered requests by stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LatencyReport {
    count: u64,
    queue: Percentiles,
    pre: Percentiles,
    infer: Percentiles,
    post: Percentiles,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Percentiles {
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    max_us: u64,
}

impl Percentiles {
    fn of(histogram: &Histogram<u32>) -> Percentiles {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Percentiles { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), max_us: histogram.max() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_stage() {
        let stats = ModelStats::default();
        for n in 1..=100 {
            stats.record(n, Timings { pre_us: 1, infer_us: 2 * n, post_us: 0 });
        }
        let report = stats.latency();
        assert_eq!(report.count, 100);
        assert_eq!(report.queue, Percentiles { p50_us: 50, p90_us: 90, p99_us: 99, max_us: 100 });
        assert_eq!(report.infer, Percentiles { p50_us: 100, p90_us: 180, p99_us: 198, max_us: 200 });
        assert_eq!(report.post.max_us, 0);
    }

    #[test]
    fn outcomes_by_name() {
        let outcomes = Outcomes::default();
        outcomes.count(Status::Ok);
        outcomes.count(Status::Ok);
        outcomes.count(Status::Busy);
        assert_eq!(outcomes.by_name(), BTreeMap::from([("busy", 1), ("ok", 2)]));
    }
}
