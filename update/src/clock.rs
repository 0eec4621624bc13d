//! Which time to believe. Many boards have no clock that survives a power cut.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// No daemon of this source ran before 2026-11-01T00:00:00Z. Raised with releases.
const BUILD_EPOCH_S: u64 = 1_793_491_200;

/// The time expiry is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// Unix seconds.
    pub(crate) unix_s: u64,
    /// The system clock is behind what is known: a freeze would go unnoticed until it is right.
    pub(crate) untrusted: bool,
}

impl Now {
    pub(crate) fn for_certificates(self, unset: bool) -> Clock {
        Clock { unix_s: self.unix_s, trusted: !self.untrusted && !unset }
    }
}

/// The latest of the system clock, the build and the saved floor.
pub(crate) fn now(system: SystemTime, floor_s: u64) -> Now {
    let system_s = system.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let known_s = BUILD_EPOCH_S.max(floor_s);
    Now { unix_s: system_s.max(known_s), untrusted: system_s < known_s }
}

/// The time servers' certificates are judged by.
///
/// A clock that is not trusted is behind: what it gives is a time that has passed. A certificate that begins later shows
/// that time went on, since whoever signed it had a clock; so it moves the time it is judged by, and with it the end
/// it has to reach. It moves nothing else, and a trusted clock not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    unix_s: u64,
    trusted: bool,
}

impl Clock {
    /// The latest of the system's clock, this build and `floor_s`, the latest time the device saw signed. `unset` says
    /// that nobody told this machine the time since it started, so that its clock may be behind without showing it.
    #[must_use]
    pub fn new(system: SystemTime, floor_s: u64, unset: bool) -> Self {
        now(system, floor_s).for_certificates(unset)
    }

    /// Unix seconds.
    #[must_use]
    pub fn unix_s(self) -> u64 {
        self.unix_s
    }

    /// The time to judge a chain by of which a certificate begins at `latest_begin_s`, since 1970.
    pub(crate) fn judging(self, latest_begin_s: u64) -> Duration {
        let unix_s = if self.trusted { self.unix_s } else { self.unix_s.max(latest_begin_s) };
        Duration::from_secs(unix_s)
    }
}

/// What to save once metadata is verified whose earliest part expires at `expires_s`: never later than that, so
/// that neither a boot with a clock in the future nor a stolen timestamp key can lock updates out for long.
pub(crate) fn floor(floor_s: u64, now: Now, expires_s: u64) -> u64 {
    floor_s.max(now.unix_s.min(expires_s))
}

/// Whether a floor moved enough to be worth a write: once a day, not at every poll.
pub(crate) fn worth_saving(old_s: u64, new_s: u64) -> bool {
    new_s >= old_s.saturating_add(Duration::from_hours(24).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_s: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(unix_s)
    }

    #[test]
    fn the_latest_known_time_counts() {
        let later = BUILD_EPOCH_S + 100;
        assert_eq!(now(at(0), 0), Now { unix_s: BUILD_EPOCH_S, untrusted: true });
        assert_eq!(now(at(0), later), Now { unix_s: later, untrusted: true });
        assert_eq!(now(at(later + 5), later), Now { unix_s: later + 5, untrusted: false });
        assert_eq!(
            now(UNIX_EPOCH - Duration::from_secs(9), 0),
            Now { unix_s: BUILD_EPOCH_S, untrusted: true }
        );
    }

    #[test]
    fn a_certificate_moves_a_clock_that_may_be_behind_and_no_other() {
        let known = BUILD_EPOCH_S + 100;
        let judging =
            |system_s, unset, begin_s| Clock::new(at(system_s), known, unset).judging(begin_s).as_secs();
        assert_eq!(judging(0, false, known + 9), known + 9);
        assert_eq!(judging(0, false, known - 9), known, "never back");
        assert_eq!(judging(known + 5, true, known + 9), known + 9);
        assert_eq!(judging(known + 5, false, known + 9), known + 5);
    }

    #[test]
    fn the_floor_stops_at_the_expiry_and_never_falls() {
        let now = Now { unix_s: 500, untrusted: false };
        assert_eq!(floor(100, now, 400), 400);
        assert_eq!(floor(100, now, 900), 500);
        assert_eq!(floor(700, now, 900), 700);
        assert!(!worth_saving(100, 86_499));
        assert!(worth_saving(100, 86_500));
    }
}
