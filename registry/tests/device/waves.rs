//! Rollouts in waves and windows, from the publisher's verbs to what the device does.

use std::time::{Duration, UNIX_EPOCH};

use tractd_registry::{Action, Publish, RegistryError, Share};
use tractd_update::policy::bucket;

use crate::support::{World, check};

const HOUR: Duration = Duration::from_secs(3_600);

/// A world whose device runs `digits` 1 with 2 added, and the first percentage that reaches it in the rollout of 2.
fn world() -> (World, u8) {
    let mut world = World::with_digits();
    world.add(2);
    let id = start(&mut world, Share::Percent(0), None);
    let pct = u8::try_from(bucket("node-1", &id) / 100 + 1).unwrap();
    assert!((2..100).contains(&pct), "{id}: choose another node");
    (world, pct)
}

/// Begins the rollout of version 2, or changes it; gives its id.
fn start(world: &mut World, share: Share, window: Option<&str>) -> String {
    let window = window.map(str::to_owned);
    let what = Publish { share, window, healthy_secs: 0, ..Publish::new("digits", 2, "lab") };
    world.registry.publish(&what, world.now).unwrap().id
}

fn steer(world: &mut World, action: Action) -> u8 {
    world.registry.steer("lab", "digits", action, world.now).unwrap().pct
}

/// Why the device waits.
fn waits(world: &World) -> String {
    let outcome = world.check().unwrap();
    assert_eq!(outcome.activated, vec![]);
    outcome.waiting[0].reason.clone()
}

#[test]
fn a_wave_opened_by_hand_reaches_the_device() {
    let (mut world, pct) = world();
    start(&mut world, Share::Waves { pcts: vec![1, pct - 1, pct, 100], every: None }, None);
    assert_eq!(steer(&mut world, Action::Next), pct - 1);
    assert!(waits(&world).ends_with(&format!("is not within {} %", pct - 1)));
    steer(&mut world, Action::Pause);
    assert_eq!(waits(&world), "the rollout is paused");
    let paused = world.registry.steer("lab", "digits", Action::Next, world.now);
    assert!(matches!(paused, Err(RegistryError::Paused(_))), "{paused:?}");
    assert_eq!(steer(&mut world, Action::Resume), pct - 1);
    waits(&world);
    assert_eq!(steer(&mut world, Action::Next), pct);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
    assert_eq!(steer(&mut world, Action::Next), 100);
    let last = world.registry.steer("lab", "digits", Action::Next, world.now);
    assert!(matches!(last, Err(RegistryError::LastWave(_))), "{last:?}");
}

#[test]
fn a_wave_by_the_clock_reaches_the_device_at_its_hour_without_the_publisher() {
    let (mut world, pct) = world();
    start(&mut world, Share::Waves { pcts: vec![pct - 1, pct, 100], every: Some(6 * HOUR) }, None);
    let begins = "which begins at 2026-12-01T06:00:00Z";
    assert!(waits(&world).ends_with(begins), "{}", waits(&world));
    world.now += 6 * HOUR - Duration::from_secs(1);
    assert!(waits(&world).ends_with(begins));
    // A device without a clock knows no more than the time the publisher signed: it comes late, not early.
    let lost = check(&mut world.updater(), UNIX_EPOCH).0.unwrap();
    assert!(lost.clock_untrusted && lost.activated.is_empty());
    world.now += Duration::from_secs(1);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn a_pause_puts_off_the_waves_that_had_not_begun() {
    let (mut world, pct) = world();
    start(&mut world, Share::Waves { pcts: vec![pct - 1, pct, 100], every: Some(6 * HOUR) }, None);
    world.now += HOUR;
    steer(&mut world, Action::Pause);
    world.now += 10 * HOUR;
    steer(&mut world, Action::Resume);
    assert!(waits(&world).ends_with("which begins at 2026-12-01T17:00:00Z"), "{}", waits(&world));
    steer(&mut world, Action::Next);
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn a_window_in_utc_holds_the_device_back_until_it_opens() {
    let (mut world, _) = world();
    start(&mut world, Share::Percent(100), Some("22:00-04:00"));
    world.now += 5 * HOUR;
    assert_eq!(waits(&world), "it is not 22:00-04:00 UTC, its maintenance window");
    let lost = check(&mut world.updater(), UNIX_EPOCH).0.unwrap();
    let told = "its maintenance window is 22:00-04:00 UTC, and the clock is not trusted";
    assert_eq!(lost.waiting[0].reason, told);
    world.now += 17 * HOUR;
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn windows_and_waves_that_cannot_be_are_not_signed() {
    let (mut world, _) = world();
    let mut publish = |share, window: Option<&str>| {
        let window = window.map(str::to_owned);
        let what = Publish { share, window, ..Publish::new("digits", 2, "lab") };
        world.registry.publish(&what, world.now).unwrap_err()
    };
    let never = publish(Share::Percent(100), Some("02:00-02:00"));
    assert!(matches!(never, RegistryError::Window(_)), "{never:?}");
    let falling = publish(Share::Waves { pcts: vec![50, 5], every: None }, None);
    assert!(matches!(falling, RegistryError::Waves(_)), "{falling:?}");
}
