//! When to connect again: at once would hammer a broker that has just come back, together with everybody else.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// A connection that held this long was a good one; the next loss starts over.
const PROVEN: Duration = Duration::from_secs(5);
/// Two clients with one id throw each other out; taking turns slowly keeps the broker usable.
const TAKEN_OVER: Duration = Duration::from_secs(10);

/// Doubling waits, each cut at random to between half and all of itself.
#[derive(Debug)]
pub(super) struct Backoff {
    losses: u32,
    random: u64,
}

impl Backoff {
    /// `seed` tells devices apart that lost their broker in the same moment.
    pub(super) fn new(seed: u64) -> Backoff {
        Backoff { losses: 0, random: seed | 1 }
    }

    /// The wait after a connection that held for `held`, zero when it never came up.
    pub(super) fn after(&mut self, held: Duration, taken_over: bool) -> Duration {
        if held >= PROVEN {
            self.losses = 0;
        }
        let longest = FIRST.saturating_mul(1 << self.losses.min(16)).min(LONGEST);
        self.losses = self.losses.saturating_add(1);
        let wait = longest / 2 + longest.mul_f64(fraction(&mut self.random) / 2.0);
        if taken_over { wait.max(TAKEN_OVER) } else { wait }
    }
}

/// xorshift64*, uniform in [0, 1). The state must not be 0.
pub(super) fn fraction(random: &mut u64) -> f64 {
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_half_a_minute_and_are_never_the_same_for_two() {
        let (mut a, mut b) = (Backoff::new(1), Backoff::new(2));
        for longest_ms in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let waits = [a.after(Duration::ZERO, false), b.after(Duration::ZERO, false)];
            for wait in waits {
                let range = Duration::from_millis(longest_ms / 2)..=Duration::from_millis(longest_ms);
                assert!(range.contains(&wait), "{wait:?} not in {range:?}");
            }
            assert_ne!(waits[0], waits[1]);
        }
    }

    #[test]
    fn a_good_connection_starts_over_and_a_bad_one_does_not() {
        let mut backoff = Backoff::new(1);
        for _ in 0..7 {
            backoff.after(Duration::ZERO, false);
        }
        assert!(backoff.after(Duration::from_secs(4), false) >= Duration::from_secs(15));
        assert!(backoff.after(Duration::from_secs(5), false) <= Duration::from_millis(500));
        assert_eq!(backoff.after(Duration::from_secs(60), true), Duration::from_secs(10));
    }
}
