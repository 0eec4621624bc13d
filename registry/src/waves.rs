//! Pure: the waves of a rollout, how they are planned, opened, held and taken up again.

use jiff::{SignedDuration, Timestamp};

use crate::documents::{Entry, Wave};
use crate::error::RegistryError;
use crate::request::Share;

impl Entry {
    /// Share of the group the rollout reaches at this time, in percent, as devices with a right clock see it.
    #[must_use]
    pub fn share(&self, now: Timestamp) -> u8 {
        let begun = self.waves.iter().rfind(|wave| wave.from.is_none_or(|from| from <= now));
        match begun {
            Some(wave) => wave.pct.min(self.pct),
            None if self.waves.is_empty() => self.pct,
            None => 0,
        }
    }

    /// The wave that has not begun yet, if one is to come.
    #[must_use]
    pub fn next_wave(&self, now: Timestamp) -> Option<Wave> {
        self.waves.iter().find(|wave| wave.pct > self.share(now)).copied()
    }
}

/// The `pct` and the waves of a new entry.
pub(crate) fn plan(share: &Share, now: Timestamp) -> Result<(u8, Vec<Wave>), RegistryError> {
    let (pcts, every) = match share {
        Share::Percent(pct) if *pct <= 100 => return Ok((*pct, Vec::new())),
        Share::Percent(pct) => return Err(RegistryError::Percent(*pct)),
        Share::Waves { pcts, every } => (pcts, every),
    };
    let refused = || RegistryError::Waves(pcts.clone());
    let [first, .., last] = pcts[..] else { return Err(refused()) };
    if first == 0 || last > 100 || !pcts.is_sorted_by(|a, b| a < b) {
        return Err(refused());
    }
    let Some(every) = every else {
        return Ok((first, pcts.iter().map(|&pct| Wave { pct, from: None }).collect()));
    };
    let every = SignedDuration::try_from(*every).map_err(|_| refused())?;
    let begins = |n: usize| {
        let after = every.checked_mul(i32::try_from(n).ok()?)?;
        let whole = SignedDuration::from_secs(after.as_secs());
        (whole < SignedDuration::from_hours(100 * 365 * 24)).then(|| now.checked_add(whole).ok())?
    };
    let wave = |(n, &pct)| Some(Wave { pct, from: Some(begins(n)?) });
    let waves = pcts.iter().enumerate().map(wave).collect::<Option<_>>().ok_or_else(refused)?;
    Ok((last, waves))
}

/// Begins the next wave, now; false when there is none.
pub(crate) fn open_next(entry: &mut Entry, now: Timestamp) -> bool {
    let Some(next) = entry.next_wave(now) else { return false };
    entry.pct = entry.pct.max(next.pct);
    for wave in entry.waves.iter_mut().filter(|wave| wave.pct <= next.pct) {
        wave.from = wave.from.map(|from| from.min(now));
    }
    true
}

/// What has begun is as far as it goes.
pub(crate) fn hold(entry: &mut Entry, now: Timestamp) {
    entry.pct = entry.share(now);
}

/// Waves by the clock that were held go on, as far after each other as before.
pub(crate) fn go_on(entry: &mut Entry, now: Timestamp) {
    let held = entry.waves.iter().position(|wave| wave.pct > entry.pct && wave.from.is_some());
    let Some(held) = held else { return };
    // Before the first one nothing had begun: it begins now.
    let last_begun = entry.waves[held.saturating_sub(1)].from.unwrap_or(now);
    let late = now.duration_since(last_begun).max(SignedDuration::ZERO);
    for wave in &mut entry.waves[held..] {
        wave.from = wave.from.map(|from| from.checked_add(late).unwrap_or(from));
    }
    entry.pct = entry.waves.last().map_or(entry.pct, |wave| wave.pct);
}

/// Two different times of the day, `22:00-04:00`.
pub(crate) fn is_window(text: &str) -> bool {
    let minute = |time: &str| {
        let digits = time.len() == 5 && time.bytes().enumerate().all(|(at, b)| at == 2 || b.is_ascii_digit());
        let (hour, minute) = time.split_once(':').filter(|_| digits)?;
        (hour < "24" && minute < "60").then_some(())
    };
    text.split_once('-')
        .is_some_and(|(from, to)| from != to && minute(from).is_some() && minute(to).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(text: &str) -> Timestamp {
        format!("2026-12-{text}:00Z").parse().unwrap()
    }

    fn entry(share: &Share, now: Timestamp) -> Entry {
        let golden: crate::Rollout =
            serde_json::from_str(include_str!("../tests/golden/rollout-1.json")).unwrap();
        let (pct, waves) = plan(share, now).unwrap();
        Entry { pct, waves, ..golden.entries[0].clone() }
    }

    fn by_hand() -> Entry {
        entry(&Share::Waves { pcts: vec![5, 25, 100], every: None }, at("01T00:00"))
    }

    fn every_six_hours() -> Entry {
        let every = Some(Duration::from_secs(6 * 3_600));
        entry(&Share::Waves { pcts: vec![5, 25, 100], every }, at("01T00:00"))
    }

    /// The waves' beginnings, without the year.
    fn begins(entry: &Entry) -> Vec<String> {
        let from = |wave: &Wave| wave.from.unwrap().to_string()["2026-12-".len()..][..8].to_owned();
        entry.waves.iter().map(from).collect()
    }

    #[test]
    fn waves_by_hand_open_one_after_the_other() {
        let (mut entry, now) = (by_hand(), at("01T00:00"));
        for share in [5, 25, 100] {
            assert_eq!((entry.share(now), entry.pct), (share, share));
            assert_eq!(open_next(&mut entry, now), share < 100);
        }
        assert_eq!(entry.next_wave(now), None);
    }

    #[test]
    fn waves_by_the_clock_begin_by_themselves_or_when_opened() {
        let mut entry = every_six_hours();
        assert_eq!(begins(&entry), ["01T00:00", "01T06:00", "01T12:00"]);
        let share = |entry: &Entry, text| entry.share(at(text));
        assert_eq!(
            [share(&entry, "01T05:59"), share(&entry, "01T06:00"), share(&entry, "02T00:00")],
            [5, 25, 100]
        );
        assert_eq!(entry.next_wave(at("01T06:00")).map(|wave| wave.pct), Some(100));
        assert!(open_next(&mut entry, at("01T02:00")));
        assert_eq!(begins(&entry), ["01T00:00", "01T02:00", "01T12:00"]);
        assert!(open_next(&mut entry, at("01T03:00")));
        assert!(!open_next(&mut entry, at("01T03:00")));
    }

    #[test]
    fn a_pause_puts_off_what_had_not_begun_by_its_length() {
        let mut entry = every_six_hours();
        hold(&mut entry, at("01T07:00"));
        assert_eq!((entry.pct, entry.share(at("09T00:00"))), (25, 25), "no wave begins in the pause");
        go_on(&mut entry, at("03T00:00"));
        assert_eq!(entry.pct, 100);
        assert_eq!(begins(&entry), ["01T00:00", "01T06:00", "03T06:00"]);
        let mut by_hand = by_hand();
        hold(&mut by_hand, at("01T00:00"));
        go_on(&mut by_hand, at("02T00:00"));
        assert_eq!((by_hand.pct, by_hand.share(at("03T00:00"))), (5, 5));
        let mut whole = entry_of(100);
        hold(&mut whole, at("01T00:00"));
        go_on(&mut whole, at("02T00:00"));
        assert_eq!(whole.pct, 100);
    }

    fn entry_of(pct: u8) -> Entry {
        entry(&Share::Percent(pct), at("01T00:00"))
    }

    #[test]
    fn waves_that_do_not_grow_are_refused() {
        let now = at("01T00:00");
        for pcts in [vec![], vec![50], vec![0, 100], vec![25, 5], vec![5, 5], vec![5, 101]] {
            let refused = plan(&Share::Waves { pcts: pcts.clone(), every: None }, now);
            assert!(matches!(refused, Err(RegistryError::Waves(_))), "{pcts:?}");
        }
        let century = Some(Duration::from_secs(100 * 365 * 86_400));
        let refused = plan(&Share::Waves { pcts: vec![5, 100], every: century }, now);
        assert!(matches!(refused, Err(RegistryError::Waves(_))));
        assert!(matches!(plan(&Share::Percent(101), now), Err(RegistryError::Percent(101))));
    }

    #[test]
    fn a_window_is_two_different_times() {
        assert!(is_window("22:00-04:00") && is_window("00:00-23:59"));
        for bad in [
            "",
            "22-04",
            "02:00-02:00",
            "24:00-02:00",
            "2:00-04:00",
            "02:60-04:00",
            "02:00",
            "aa:bb-cc:dd",
            "02.00-04.00",
        ] {
            assert!(!is_window(bad), "{bad}");
        }
    }
}
