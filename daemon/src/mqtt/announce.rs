//! Announces: somebody says that the registry has something new. A hint and no more: nothing in it is read, and however
//! many come, the registry is asked no more often than [`REST`] allows.

use std::time::Duration;

use super::backoff::fraction;

/// Longest payload of an announce, in bytes: a group's or a model's name, for people who watch the broker.
pub(super) const PAYLOAD_BYTES_MAX: usize = 256;
/// An early check comes at random within this time, because every node of a fleet hears the same announce at once.
const SPREAD: Duration = Duration::from_secs(30);
/// Least time between two early checks: one that finds nothing costs the registry one small file.
const REST: Duration = Duration::from_secs(60);

/// When to look at the registry earlier than planned.
#[derive(Debug)]
pub(super) struct Announces {
    random: u64,
    due: Option<Duration>,
    rest_until: Duration,
}

impl Announces {
    /// `seed` tells nodes apart that hear the same announce.
    pub(super) fn new(seed: u64) -> Announces {
        Announces { random: seed | 1, due: None, rest_until: Duration::ZERO }
    }

    /// Plans a check, unless one is planned. What is announced during the rest after a check is looked for after it.
    pub(super) fn heard(&mut self, now: Duration) {
        if self.due.is_none() {
            self.due = Some(now.max(self.rest_until) + SPREAD.mul_f64(fraction(&mut self.random)));
        }
    }

    /// Whether it is time for the planned check; says so once.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let due = self.due.is_some_and(|due| due <= now);
        if due {
            self.due = None;
            self.rest_until = now + REST;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_do_not_ask_at_the_same_time() {
        let due = |seed| {
            let mut announces = Announces::new(seed);
            announces.heard(Duration::ZERO);
            announces.due.unwrap()
        };
        let times = [1, 3, 5, 7].map(|seed| due(seed << 32));
        assert!(times.iter().all(|due| *due < SPREAD), "{times:?}");
        assert!(times.windows(2).all(|pair| pair[0] != pair[1]), "{times:?}");
    }

    #[test]
    fn what_is_announced_during_the_rest_is_looked_for_after_it() {
        let mut announces = Announces::new(1);
        announces.heard(Duration::ZERO);
        assert!(announces.is_due(SPREAD));
        announces.heard(SPREAD + Duration::from_secs(1));
        assert!(!announces.is_due(SPREAD + REST - Duration::from_millis(1)));
        assert!(announces.is_due(SPREAD + REST + SPREAD));
        assert!(!announces.is_due(Duration::from_secs(3600)));
    }
}
