//! The queue of one model, in the order its jobs run.

use crate::{Instant, Job, Priority, SlotId};
use std::{cmp::Reverse, collections::BTreeMap};

/// Priority, then earliest deadline, then arrival.
pub(crate) type Key = (Reverse<Priority>, Instant, u64);

/// A queued job and when it came.
#[derive(Debug)]
pub(crate) struct Queued<T> {
    pub(crate) job: Job<T>,
    pub(crate) arrived: Instant,
}

#[derive(Debug)]
pub(crate) struct Queue<T> {
    jobs: BTreeMap<Key, Queued<T>>,
    bytes: u64,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Queue<T> {
        Queue { jobs: BTreeMap::new(), bytes: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn push(&mut self, key: Key, queued: Queued<T>) {
        self.bytes += queued.job.bytes;
        let former = self.jobs.insert(key, queued);
        debug_assert!(former.is_none(), "arrival numbers are unique");
    }

    pub(crate) fn first(&self) -> Option<&Key> {
        self.jobs.keys().next()
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Queued<T>> {
        let queued = self.jobs.remove(key)?;
        self.bytes -= queued.job.bytes;
        Some(queued)
    }

    /// Keys of the jobs whose pin satisfies `wanted`.
    pub(crate) fn keys_by_pin(&self, wanted: impl Fn(Option<SlotId>) -> bool) -> Vec<Key> {
        self.jobs.iter().filter(|(_, queued)| wanted(queued.job.pin)).map(|(key, _)| *key).collect()
    }
}
