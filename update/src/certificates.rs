//! How long a certificate is good for.

use std::time::Duration;

use jiff::Timestamp;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

/// Certificates with less time left than this are warned of, however long they were made for, in seconds: who renews
/// by hand needs two weeks.
const RENEW_S: u64 = 14 * 24 * 3_600;
/// And those with less left than this part of their own time: what is made for days is renewed by a machine.
const RENEW_PART: u64 = 4;

/// From when until when a certificate is good, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// notBefore.
    pub from_s: u64,
    /// notAfter.
    pub until_s: u64,
}

impl Validity {
    /// Of a certificate in DER; `None` when it is none.
    #[must_use]
    pub fn of(der: &[u8]) -> Option<Self> {
        let validity = Certificate::from_der(der).ok()?.tbs_certificate.validity;
        let seconds = |time: Duration| time.as_secs();
        let (from_s, until_s) =
            (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
        Some(Self { from_s: seconds(from_s), until_s: seconds(until_s) })
    }

    /// Its end for people, RFC 3339.
    #[must_use]
    pub fn until(self) -> String {
        let seconds = i64::try_from(self.until_s).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_string()
    }

    /// Whether it should have been renewed by now: fewer than two weeks, and less than a quarter of its time, are left.
    #[must_use]
    pub fn ends_soon(self, now_s: u64) -> bool {
        let whole_s = self.until_s.saturating_sub(self.from_s);
        self.until_s.saturating_sub(now_s) < RENEW_S.min(whole_s / RENEW_PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: u64 = 24 * 3_600;

    #[test]
    fn the_last_quarter_or_the_last_two_weeks_are_soon() {
        let soon = |days: u64, left_s: u64| {
            let validity = Validity { from_s: 1_000, until_s: 1_000 + days * DAY_S };
            validity.ends_soon(validity.until_s - left_s)
        };
        assert!(!soon(365, 14 * DAY_S) && soon(365, 14 * DAY_S - 1));
        assert!(!soon(4, DAY_S) && soon(4, DAY_S - 1));
        let over = Validity { from_s: 0, until_s: 100 };
        assert!(over.ends_soon(101));
    }

    #[test]
    fn what_is_no_certificate_has_no_validity() {
        assert_eq!(Validity::of(b""), None);
        assert_eq!(Validity::of(b"0\x03\x02\x01\x01"), None);
    }
}
