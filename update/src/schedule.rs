//! Pure: when a rollout's turn comes to a device: its wave, and the hours of its maintenance window.

use jiff::Timestamp;
use serde::Deserialize;

use crate::policy::{BUCKETS, Reason, bucket};
use crate::rollout::Entry;

/// One wave of a rollout: from then on, or once the publisher's `pct` lets it, this share of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wave {
    pct: u8,
    #[serde(default)]
    from: Option<Timestamp>,
}

/// Whether the rollout has reached this device at `unix_s`. A clock that is behind starts a wave late, never early.
pub(crate) fn wave(entry: &Entry, node: &str, unix_s: u64) -> Result<(), Reason> {
    let waves = waves(entry).ok_or(Reason::NotUnderstood("these waves"))?;
    let begun = |wave: &&Wave| wave.from.is_none_or(|from| from.as_second() <= unix_s.cast_signed());
    let share = match waves.iter().rfind(begun) {
        Some(wave) => wave.pct.min(entry.pct),
        None if waves.is_empty() => entry.pct,
        None => 0,
    };
    let bucket = bucket(node, &entry.id);
    let reaches = |pct: u8| bucket < u16::from(pct) * (BUCKETS / 100);
    if reaches(share) {
        return Ok(());
    }
    let own = waves.iter().find(|wave| reaches(wave.pct)).filter(|wave| wave.pct <= entry.pct);
    match own.and_then(|wave| Some((wave.pct, wave.from?))) {
        Some((pct, from)) => Err(Reason::Wave { bucket, pct, from: from.to_string() }),
        None => Err(Reason::Bucket { bucket, pct: share }),
    }
}

/// Growing shares, all with a time or none; `None` for anything else.
fn waves(entry: &Entry) -> Option<Vec<Wave>> {
    let waves: Option<Vec<Wave>> =
        entry.waves.iter().map(|wave| serde_json::from_value(wave.clone()).ok()).collect();
    let waves = waves?;
    let grow = waves.is_sorted_by(|a, b| a.pct < b.pct && a.from <= b.from);
    let alike = waves.iter().all(|wave| wave.from.is_some() == waves[0].from.is_some());
    let percent = waves.iter().all(|wave| (1..=100).contains(&wave.pct));
    (grow && alike && percent).then_some(waves)
}

/// Whether `minute` of the day lies in the rollout's window: `"22:00-04:00"`, in UTC, the second time excluded; over
/// midnight when it is the lower one.
pub(crate) fn window(entry: &Entry, minute: Option<u16>) -> Result<(), Reason> {
    let Some(window) = &entry.window else { return Ok(()) };
    let parsed = window.as_str().and_then(|text| {
        let (from, to) = text.split_once('-')?;
        Some((text, minute_of_day(from)?, minute_of_day(to)?))
    });
    let Some((text, from, to)) = parsed else { return Err(Reason::NotUnderstood("this window")) };
    let Some(minute) = minute else { return Err(Reason::WindowUnknown(text.to_owned())) };
    let inside = if from <= to { (from..to).contains(&minute) } else { minute >= from || minute < to };
    if inside { Ok(()) } else { Err(Reason::Window(text.to_owned())) }
}

fn minute_of_day(time: &str) -> Option<u16> {
    let (hour, minute) = time.split_once(':')?;
    let two = |text: &str, max| text.parse().ok().filter(|n: &u16| text.len() == 2 && *n <= max);
    Some(two(hour, 23)? * 60 + two(minute, 59)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// 2026-12-01T00:00:00Z.
    const DECEMBER_S: u64 = 1_796_083_200;

    /// The golden file's entries: two waves opened by hand, the second not yet; and three by the clock.
    fn golden(model: &str) -> Entry {
        let text = include_str!("../tests/golden/rollout-1-waves.json");
        let entries = crate::rollout::Rollout::parse(text.as_bytes(), "lab").unwrap().entries;
        entries.into_iter().find(|entry| entry.model == model).unwrap()
    }

    /// A node of this bucket in the entry's rollout.
    fn node_below(entry: &Entry, pct: u8, not_below: u8) -> String {
        let mut nodes = (0..10_000).map(|n| format!("node-{n}"));
        let range = u16::from(not_below) * 100..u16::from(pct) * 100;
        nodes.find(|node| range.contains(&bucket(node, &entry.id))).unwrap()
    }

    #[test]
    fn waves_by_hand_go_as_far_as_the_publisher_opened_them() {
        let mut entry = golden("digits");
        let (early, late) = (node_below(&entry, 5, 0), node_below(&entry, 25, 5));
        assert_eq!(wave(&entry, &early, 0), Ok(()));
        let bucket = bucket(&late, &entry.id);
        assert_eq!(wave(&entry, &late, DECEMBER_S), Err(Reason::Bucket { bucket, pct: 5 }));
        entry.pct = 25;
        assert_eq!(wave(&entry, &late, 0), Ok(()));
        // A publisher may close them again.
        entry.pct = 0;
        assert!(wave(&entry, &early, DECEMBER_S).is_err());
    }

    #[test]
    fn waves_by_the_clock_begin_at_their_second_and_a_late_clock_waits() {
        let mut entry = golden("words");
        let hour = |hours: u64| DECEMBER_S + hours * 3_600;
        let (first, second) = (node_below(&entry, 10, 0), node_below(&entry, 50, 10));
        let told = |node: &str, pct: u8, from: &str| {
            Err(Reason::Wave { bucket: bucket(node, &entry.id), pct, from: from.to_owned() })
        };
        assert_eq!(wave(&entry, &first, 0), told(&first, 10, "2026-12-01T00:00:00Z"));
        assert_eq!(wave(&entry, &first, hour(0)), Ok(()));
        assert_eq!(wave(&entry, &second, hour(0)), told(&second, 50, "2026-12-01T06:00:00Z"));
        assert_eq!(wave(&entry, &second, hour(6) - 1), told(&second, 50, "2026-12-01T06:00:00Z"));
        assert_eq!(wave(&entry, &second, hour(6)), Ok(()));
        // `pct` is the end in any case.
        let bucket = bucket(&second, &entry.id);
        entry.pct = 10;
        assert_eq!(wave(&entry, &second, hour(24)), Err(Reason::Bucket { bucket, pct: 10 }));
    }

    #[test]
    fn waves_that_make_no_sense_are_not_followed() {
        let mut entry = golden("digits");
        let node = node_below(&entry, 5, 0);
        for waves in [
            json!([{"pct": 0}]),
            json!([{"pct": 101}]),
            json!([{"pct": 25}, {"pct": 5}]),
            json!([{"pct": 5}, {"pct": 5}]),
            json!([{"pct": 5, "from": "2026-12-02T00:00:00Z"}, {"pct": 25, "from": "2026-12-01T00:00:00Z"}]),
            json!([{"pct": 5}, {"pct": 25, "from": "2026-12-01T00:00:00Z"}]),
            json!([{"pct": 5, "from": "tomorrow"}]),
            json!([{"pct": 5, "after": 3}]),
            json!([5, 25]),
        ] {
            entry.waves = waves.as_array().unwrap().clone();
            assert_eq!(wave(&entry, &node, DECEMBER_S), Err(Reason::NotUnderstood("these waves")), "{waves}");
        }
    }

    #[test]
    fn a_window_begins_with_its_first_minute_and_ends_before_its_last() {
        let at = |text: &str, minute: Option<u16>| {
            window(&Entry { window: Some(Value::from(text)), ..golden("digits") }, minute)
        };
        let closed = |text: &str| Err(Reason::Window(text.into()));
        assert_eq!(at("02:00-04:00", Some(119)), closed("02:00-04:00"));
        assert_eq!(at("02:00-04:00", Some(120)), Ok(()));
        assert_eq!(at("02:00-04:00", Some(239)), Ok(()));
        assert_eq!(at("02:00-04:00", Some(240)), closed("02:00-04:00"));
        assert_eq!(at("22:00-04:00", Some(0)), Ok(()));
        assert_eq!(at("22:00-04:00", Some(22 * 60)), Ok(()));
        assert_eq!(at("22:00-04:00", Some(12 * 60)), closed("22:00-04:00"));
        assert_eq!(at("02:00-04:00", None), Err(Reason::WindowUnknown("02:00-04:00".into())));
    }

    #[test]
    fn the_golden_window_is_read() {
        let entry = golden("words");
        assert_eq!(window(&entry, Some(23 * 60)), Ok(()));
        assert_eq!(window(&entry, Some(4 * 60)), Err(Reason::Window("22:00-04:00".into())));
    }
}
