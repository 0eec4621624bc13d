//! Power cuts: after every operation of an update, a rollback, a collection and a key rotation, every loss the rules
//! allow. Then the same with one safeguard taken out each, which must be noticed: a check that notices nothing
//! proves nothing. By kind in `without`, and each single call in `without_any_single_one`: what nobody misses has to go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tractd_bundle::Limits;
use tractd_registry::Publish;
use tractd_update::fs::{self, FileSystem};
use tractd_update::trial::Stage;
use tractd_update::{Device, DeviceError, Event, Provisioned, Store, provision_on, reset_on};

use crate::sim::{Image, Mutation, Sim, Trouble};
use crate::support::{World, check_with};

/// States checked at most for one story, far above what any makes: an accident must not run for hours.
const STATES_MAX: usize = 60_000;
/// Every so many states, a whole check by the next process follows, down to the signatures.
const FOLLOWED: usize = 12;

/// What happened, and after how many operations.
#[derive(Default)]
struct Story {
    /// The versions that may be active, before and after.
    old: Option<u64>,
    new: Option<u64>,
    /// The new one is acknowledged.
    committed: Option<usize>,
    /// The bundle is proven: it is not fetched again.
    proving: Option<usize>,
    /// The floors of the new metadata are acknowledged.
    floors: Option<usize>,
    /// What the newest slot says from some operation on.
    kept: Vec<Kept>,
    /// Whether another check leads to `new`.
    follow: bool,
}

/// From operation `from` on `holds` is true of the newest slot.
struct Kept {
    from: usize,
    what: &'static str,
    holds: Box<dyn Fn(&Value) -> bool>,
}

impl Kept {
    fn new(from: usize, what: &'static str, holds: impl Fn(&Value) -> bool + 'static) -> Self {
        Self { from, what, holds: Box::new(holds) }
    }
}

struct Slot {
    sequence: u64,
    state: Value,
}

/// The state slots of a disk; an error when one is damaged.
fn slots(world: &World, sim: &Sim) -> Result<Vec<Slot>, String> {
    let mut slots = Vec::new();
    for name in ["store/state.a.json", "store/state.b.json"] {
        let bytes = fs::read(sim, &world.state().join(name), 1 << 20).map_err(|e| e.to_string())?;
        let Some(bytes) = bytes else { continue };
        let slot: Value = serde_json::from_slice(&bytes).map_err(|e| format!("{name} is damaged: {e}"))?;
        let state = slot["state"].clone();
        slots.push(Slot { sequence: state["sequence"].as_u64().unwrap_or(0), state });
    }
    slots.sort_by_key(|slot| slot.sequence);
    Ok(slots)
}

fn floor(slot: &Slot, of: &str) -> u64 {
    let floor = &slot.state["floors"][of];
    floor.as_u64().or(floor["version"].as_u64()).unwrap_or(0)
}

/// What the next process finds; an error says which promise is broken.
fn recovered(world: &World, story: &Story, base: &Sim, image: &Image, ops: usize) -> Result<(), String> {
    let sim = Sim::from_image(image).with(base.mutation());
    let mut store =
        Store::open_on(Arc::new(sim.clone()), &world.state()).map_err(|e| format!("no store: {e}"))?;
    let active = store.installed("digits").map(|installed| installed.version);
    let after = |mark: Option<usize>| mark.is_some_and(|mark| ops >= mark);
    if active != story.new && (after(story.committed) || active != story.old) {
        return Err(format!("{active:?} is active, not {:?} or {:?}", story.old, story.new));
    }
    if active.is_some() {
        store.bundle("digits", &Limits::default()).map_err(|e| format!("the active files: {e}"))?;
    }
    if store.installed("digits").is_some_and(|installed| installed.previous.is_some()) {
        store.previous_bundle("digits", &Limits::default()).map_err(|e| format!("the way back: {e}"))?;
    }
    let found = slots(world, &sim)?;
    let before = slots(world, base)?;
    if let (Some(found), Some(before)) = (found.last(), before.last()) {
        for of in ["root", "timestamp", "snapshot", "time_s"] {
            let same_keys = found.state["floors"][of]["keys"] == before.state["floors"][of]["keys"];
            if same_keys && floor(found, of) < floor(before, of) {
                return Err(format!("the floor of {of} fell"));
            }
        }
        let version = |slot: &Slot| slot.state["models"]["digits"]["version_floor"].as_u64();
        if version(found) < version(before) {
            return Err("the version floor fell".into());
        }
    }
    let last = |slots: &[Slot], of: &str| slots.last().map_or(0, |slot| floor(slot, of));
    if after(story.floors) && last(&found, "timestamp") == last(&before, "timestamp") {
        return Err("the new floors were acknowledged and are gone".into());
    }
    let state = found.last().map_or(&Value::Null, |slot| &slot.state);
    if let Some(kept) = story.kept.iter().find(|kept| ops >= kept.from && !(kept.holds)(state)) {
        return Err(format!("{} was acknowledged and is gone", kept.what));
    }
    metadata_is_whole(world, &sim, last(&found, "root"))?;
    for of in ["timestamp", "snapshot"] {
        let path = world.state().join(format!("tuf/{of}.json"));
        let bytes = fs::read(&sim, &path, 1 << 20).map_err(|e| e.to_string())?.unwrap_or_default();
        let role: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if role["signed"]["version"].as_u64().unwrap_or(0) < last(&found, of) {
            return Err(format!("the {of} that the floors speak of is gone, and the floors it lists"));
        }
    }
    Ok(())
}

/// Every cached role is one, and the chain of roots reaches as far as the floor says.
fn metadata_is_whole(world: &World, sim: &Sim, root: u64) -> Result<(), String> {
    let mut pending = vec![world.state().join("tuf")];
    let mut roots = 0;
    while let Some(dir) = pending.pop() {
        for path in sim.list(&dir).map_err(|e| e.to_string())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if sim.meta(&path).map_err(|e| e.to_string())?.is_some_and(|meta| meta.is_dir) {
                pending.push(path);
            } else if name.ends_with(".json") {
                let bytes = fs::read(sim, &path, 1 << 20).map_err(|e| e.to_string())?.unwrap_or_default();
                let role: Value =
                    serde_json::from_slice(&bytes).map_err(|e| format!("{name} is damaged: {e}"))?;
                if dir.ends_with("root_history") {
                    roots = roots.max(role["signed"]["version"].as_u64().unwrap_or(0));
                }
            }
        }
    }
    if roots < root { Err(format!("root {root} is the floor, {roots} the newest kept")) } else { Ok(()) }
}

/// Tries every state a cut leaves after `from` operations or later; the first broken promise, and how many states
/// there were.
fn enumerate(world: &World, story: &Story, sim: &Sim, base: &Sim, from: usize) -> (usize, Option<String>) {
    let mut states = 0;
    for ops in from..=sim.len() {
        for image in sim.images_after(ops) {
            states += 1;
            assert!(states <= STATES_MAX, "more than {STATES_MAX} states");
            let mut result = recovered(world, story, base, &image, ops);
            if result.is_ok() && story.follow && states % FOLLOWED == 0 {
                result = followed(world, story, &image, ops);
            }
            if let Err(broken) = result {
                return (states, Some(format!("after {ops} operations: {broken}")));
            }
        }
    }
    (states, None)
}

/// Another check comes through from there, and does not fetch what was proven.
fn followed(world: &World, story: &Story, image: &Image, ops: usize) -> Result<(), String> {
    let sim = Sim::from_image(image);
    let mut updater = world.updater_on(Arc::new(sim));
    let (outcome, events) = check_with(&mut updater, world.now, &mut |_| Ok(()));
    let outcome = outcome.map_err(|e| format!("the next check: {e}"))?;
    if !(outcome.failed.is_empty() && outcome.refused.is_empty()) {
        return Err(format!("the next check: {outcome:?}"));
    }
    let fetched = events.iter().any(|event| matches!(event, Event::Downloading { .. }));
    if fetched && story.proving.is_some_and(|proving| ops >= proving) {
        return Err("what was proven is fetched again".into());
    }
    let active = updater.store().installed("digits").map(|installed| installed.version);
    if active != story.new {
        return Err(format!("the next check leads to {active:?}"));
    }
    Ok(())
}

/// Runs a check on a simulated disk with what the device has.
fn check_story(world: &World, sim: &Sim, old: Option<u64>, new: Option<u64>) -> Story {
    let mut story = Story { old, new, follow: true, ..Story::default() };
    let before = slots(world, sim).unwrap();
    let mark = AtomicUsize::new(0);
    let mut updater = world.updater_on(Arc::new(sim.clone()));
    let mut events = Vec::new();
    let mut prove = |_: &tractd_bundle::Bundle| {
        mark.store(sim.len(), Ordering::Relaxed);
        Ok(())
    };
    let outcome = updater.check(world.now, &mut prove, &mut |event| events.push((sim.len(), event))).unwrap();
    assert!(outcome.failed.is_empty() && outcome.refused.is_empty(), "{outcome:?}");
    let at = |wanted: fn(&Event) -> bool| events.iter().find(|(_, event)| wanted(event)).map(|(at, _)| *at);
    story.committed = at(|event| matches!(event, Event::Activated { .. }));
    // At the latest when the check returned.
    story.floors = at(|event| matches!(event, Event::Found { .. })).or(Some(sim.len()));
    story.proving = Some(mark.into_inner()).filter(|at| *at > 0);
    // What takes the daemon down is counted, too.
    let tries =
        [("downloads", at(|event| matches!(event, Event::Downloading { .. }))), ("attempts", story.proving)];
    for (list, from) in tries {
        let before = before.last().map_or(0, |slot| entries(&slot.state, list));
        let counted = move |state: &Value| entries(state, list) > before;
        story.kept.extend(from.map(|from| Kept::new(from, list, counted)));
    }
    story
}

fn entries(state: &Value, list: &str) -> usize {
    state[list].as_array().map_or(0, Vec::len)
}

type Tale = fn(&World, &Sim) -> Story;

/// A device as it is, and what then happens to it.
fn tell(world: &World, tale: Tale, mutation: Option<Mutation>, from: usize) -> (usize, Option<String>) {
    // What comes after the cut runs whole, but for a checksum nobody looks at.
    let lasting = mutation.filter(|mutation| matches!(mutation, Mutation::NoCrc(_)));
    let base = Sim::copy_of(&world.state()).with(lasting);
    let sim = base.fork().with(mutation);
    let story = tale(world, &sim);
    enumerate(world, &story, &sim, &base, from)
}

fn holds(name: &str, world: &World, tale: Tale) -> usize {
    let (states, broken) = tell(world, tale, None, 0);
    println!("{name}: {states} states (at most {STATES_MAX} allowed)");
    assert_eq!(broken, None, "{name}");
    states
}

fn is_noticed(world: &World, tale: Tale, mutation: Mutation) {
    let (states, broken) = tell(world, tale, Some(mutation), 0);
    let broken = broken.unwrap_or_else(|| panic!("{mutation:?} was not noticed in {states} states"));
    println!("{mutation:?} noticed at state {states}: {broken}");
}

fn update(world: &World, sim: &Sim) -> Story {
    check_story(world, sim, Some(1), Some(2))
}

fn first_install(world: &World, sim: &Sim) -> Story {
    check_story(world, sim, None, Some(1))
}

fn third_version(world: &World, sim: &Sim) -> Story {
    check_story(world, sim, Some(2), Some(3))
}

fn new_keys_alone(world: &World, sim: &Sim) -> Story {
    check_story(world, sim, Some(1), Some(1))
}

/// The trial of version 2 goes on a stage, and then version 2 is taken back.
fn rollback(world: &World, sim: &Sim) -> Story {
    let mut store = Store::open_on(Arc::new(sim.clone()), &world.state()).unwrap();
    store.enter_stage("digits", Stage::Canary).unwrap();
    let canary = Kept::new(sim.len(), "the stage", |state| {
        let trial = &state["models"]["digits"]["trial"];
        trial.is_null() || trial["stage"] == "canary"
    });
    store.revert("digits", "bad").unwrap();
    let (committed, kept) = (Some(sim.len()), vec![canary]);
    Story { old: Some(2), new: Some(1), committed, kept, ..Story::default() }
}

/// The trial of version 2 ends well.
fn commit(world: &World, sim: &Sim) -> Story {
    let mut store = Store::open_on(Arc::new(sim.clone()), &world.state()).unwrap();
    store.count_start("digits").unwrap();
    let started = Kept::new(sim.len(), "the start", |state| {
        let trial = &state["models"]["digits"]["trial"];
        trial.is_null() || trial["starts"] == 2
    });
    store.settle("digits").unwrap();
    let settled =
        Kept::new(sim.len(), "the version floor", |state| state["models"]["digits"]["version_floor"] == 2);
    Story { old: Some(2), new: Some(2), kept: vec![started, settled], ..Story::default() }
}

fn publishing() -> World {
    let mut world = World::new();
    world.publish(1);
    world
}

fn updated() -> World {
    let mut world = updating();
    world.activate();
    world.publish(3);
    world
}

fn updating() -> World {
    let mut world = World::with_digits();
    world.publish(2);
    world
}

fn on_trial() -> World {
    let mut world = World::with_digits();
    world.add(2);
    world.registry.publish(&Publish::new("digits", 2, "lab"), world.now).unwrap();
    world.activate();
    world
}

/// Root 2 hands the timestamp to another key.
fn rotating() -> World {
    let world = World::with_digits();
    let attacker = world.attacker();
    let mut root = attacker.read("1.root.json");
    root["signed"]["version"] = json!(2);
    root["signed"]["roles"]["timestamp"]["keyids"] = root["signed"]["roles"]["snapshot"]["keyids"].clone();
    root["signatures"] =
        json!([attacker.sign("root-1", &root["signed"]), attacker.sign("root-2", &root["signed"])]);
    std::fs::write(world.metadata("2.root.json"), root.to_string()).unwrap();
    attacker.forge("timestamp.json", Some("snapshot"), |timestamp| {
        timestamp["version"] = json!(timestamp["version"].as_u64().unwrap() + 1);
    });
    world
}

#[test]
fn a_cut_leaves_exactly_the_old_or_the_new_version_and_no_floor_lower() {
    let mut states = 0;
    states += holds("first install", &publishing(), first_install);
    states += holds("update", &updating(), update);
    states += holds("update with a collection", &updated(), third_version);
    states += holds("key rotation", &rotating(), new_keys_alone);
    states += holds("rollback", &on_trial(), rollback);
    states += holds("end of a trial", &on_trial(), commit);
    println!("{states} states in all");
    assert!(states > 25_000, "{states}");
}

/// Takes out each sync and each rename by itself, whatever it is of: one that nobody misses is there for nothing.
fn needs_each(world: &World, tale: Tale, at_least: usize) {
    let whole = Sim::copy_of(&world.state());
    tale(world, &whole);
    let safeguards = whole.safeguards();
    let mut idle = Vec::new();
    for (number, (what, from)) in safeguards.iter().enumerate() {
        let what = what.replace(world.tmp.path().to_str().unwrap(), "");
        // Until then it is the story that holds.
        match tell(world, tale, Some(Mutation::Without(number)), *from) {
            (states, Some(broken)) => println!("without {what}: state {states} from there, {broken}"),
            (states, None) => idle.push(format!("{number}, {what}: not in {states} states")),
        }
    }
    assert!(idle.is_empty(), "{idle:#?}");
    println!("{} taken out, one at a time", safeguards.len());
    assert!(safeguards.len() >= at_least, "{}", safeguards.len());
}

macro_rules! each_noticed {
    ($($name:ident: $world:expr, $tale:expr, $at_least:expr;)*) => {
        mod without_any_single_one {
            use super::*;
            $(
                #[test]
                fn $name() {
                    needs_each(&$world, $tale, $at_least);
                }
            )*
        }
    };
}

each_noticed! {
    of_a_first_install: publishing(), first_install, 20;
    of_an_update: updating(), update, 20;
    of_an_update_with_a_collection: updated(), third_version, 20;
    of_a_key_rotation: rotating(), new_keys_alone, 10;
    of_a_rollback: on_trial(), rollback, 6;
    of_the_end_of_a_trial: on_trial(), commit, 6;
}

/// What is cut: a change of a device's provisioning.
type Act = fn(&World, &Sim);

/// What a device finds of its provisioning after a cut during `act`, done or not; `false` breaks a promise.
type Promise = fn(&World, Result<Option<Device>, DeviceError>, bool) -> bool;

/// As [`enumerate`], for what happens beside the store.
fn first_broken(
    world: &World,
    act: Act,
    promise: Promise,
    (base, mutation, from): (&Sim, Option<Mutation>, usize),
) -> (Option<usize>, Sim) {
    let sim = base.fork().with(mutation);
    act(world, &sim);
    let broken = (from..=sim.len()).find(|&ops| {
        let kept = |image: &Image| {
            let found = Device::open_on(&Sim::from_image(image), &world.state());
            promise(world, found, ops == sim.len())
        };
        !sim.images_after(ops).iter().all(kept)
    });
    (broken, sim)
}

fn provisions(world: &World, sim: &Sim) {
    let what = Provisioned {
        root_json: std::fs::read(world.metadata("1.root.json")).unwrap(),
        registry: "file:///media/stick".parse().unwrap(),
        node: "node-1".into(),
        group: "lab".into(),
    };
    provision_on(sim, &world.state(), &what).unwrap();
}

fn is_whole(world: &World, device: &Device) -> bool {
    let root = std::fs::read(world.metadata("1.root.json")).unwrap();
    (device.node.as_str(), device.group.as_str(), &device.root_json) == ("node-1", "lab", &root)
}

#[test]
fn a_cut_leaves_a_device_provisioned_or_not_and_each_sync_and_rename_is_needed() {
    let world = World::new();
    let blank = Sim::copy_of(&world.keys());
    let provisioned = blank.fork();
    provisions(&world, &provisioned);
    let acts: [(&str, &Sim, Act, Promise); 2] = [
        ("provisioning", &blank, provisions, |world, found, done| match found {
            Ok(Some(device)) => is_whole(world, &device),
            Ok(None) => !done,
            Err(_) => false,
        }),
        (
            "reset",
            &provisioned,
            |world, sim| reset_on(sim, &world.state()).unwrap(),
            |world, found, done| match found {
                Ok(Some(device)) => !done && is_whole(world, &device),
                Ok(None) => true,
                Err(_) => false,
            },
        ),
    ];
    for (name, base, act, promise) in acts {
        let base = Sim::from_image(&base.image());
        let (broken, sim) = first_broken(&world, act, promise, (&base, None, 0));
        assert_eq!(broken, None, "{name}");
        let safeguards = sim.safeguards();
        for (number, (what, from)) in safeguards.iter().enumerate() {
            let out = (&base, Some(Mutation::Without(number)), *from);
            assert!(first_broken(&world, act, promise, out).0.is_some(), "{name}: nobody misses the {what}");
        }
        println!("{name}: {} taken out, one at a time", safeguards.len());
        assert!(!safeguards.is_empty());
    }
}

macro_rules! noticed {
    ($($name:ident: $world:expr, $tale:expr, $mutation:expr;)*) => {
        mod without {
            use super::*;
            $(
                #[test]
                fn $name() {
                    is_noticed(&$world, $tale, $mutation);
                }
            )*
        }
    };
}

noticed! {
    the_sync_of_a_state_slot: updating(), update, Mutation::NoFileSync("store/state.");
    the_sync_of_the_folder_of_the_state: updating(), update, Mutation::NoDirSync("/store");
    the_rename_of_a_state_slot: updating(), update, Mutation::CopyForRename("store/state.");
    the_sync_of_a_slot_in_a_rollback: on_trial(), rollback, Mutation::NoFileSync("store/state.");
    the_sync_of_the_folder_in_a_rollback: on_trial(), rollback, Mutation::NoDirSync("/store");
    the_sync_of_the_stores_own_folder: publishing(), first_install, Mutation::NoDirSync("/state");
    the_sync_of_unpacked_files: updating(), update, Mutation::NoFileSync(".dir/");
    the_sync_of_the_unpacked_folder: updating(), update, Mutation::NoDirSync(".dir");
    the_sync_of_the_folder_of_bundles: updating(), update, Mutation::NoDirSync("/bundles");
    the_rename_of_the_unpacked_folder: updating(), update, Mutation::CopyForRename("/bundles/");
    the_sync_of_cached_metadata: rotating(), new_keys_alone, Mutation::NoFileSync("/tuf/");
    the_sync_of_the_folder_of_metadata: rotating(), new_keys_alone, Mutation::NoDirSync("/root_history");
    the_rename_of_cached_metadata: rotating(), new_keys_alone, Mutation::CopyForRename("/tuf/");
}

/// A bad block turns one digit of the newest slot into another: with the checksum the slot before counts, without
/// it the device believes what nobody wrote.
#[test]
fn a_flipped_digit_is_noticed_by_the_checksum_and_by_nothing_else() {
    let world = updating();
    world.activate();
    let wrong = |mutation| {
        let sim = Sim::copy_of(&world.state()).with(mutation);
        let newest = slots(&world, &sim).unwrap().last().unwrap().sequence;
        let name = if newest.is_multiple_of(2) { "store/state.a.json" } else { "store/state.b.json" };
        let path = world.state().join(name);
        let text = String::from_utf8(fs::read(&sim, &path, 1 << 20).unwrap().unwrap()).unwrap();
        let flipped = text.replace("\"active\":{\"version\":2", "\"active\":{\"version\":6");
        assert_ne!(text, flipped);
        sim.create(&path).unwrap().write_all(flipped.as_bytes()).unwrap();
        let store = Store::open_on(Arc::new(sim), &world.state()).unwrap();
        store.installed("digits").unwrap().version
    };
    assert!([1, 2].contains(&wrong(None)));
    assert_eq!(wrong(Some(Mutation::NoCrc("store/state."))), 6);
}

/// Each change of the disk fails in turn, once or from then on, in three ways. The process lives; the device has the
/// old or the new version, and the next check, on a disk that works again, comes through.
#[test]
fn a_full_or_broken_disk_at_any_write_costs_a_check_and_nothing_else() {
    let world = updating();
    let base = Sim::copy_of(&world.state());
    let whole = base.fork();
    let story = update(&world, &whole);
    let mut failures = 0;
    for trouble in [
        Trouble::Error(std::io::ErrorKind::StorageFull),
        Trouble::Error(std::io::ErrorKind::Other),
        Trouble::Short,
    ] {
        for at in 0..whole.steps() {
            for count in [1, usize::MAX - at] {
                let sim = base.fork().in_trouble(at, count, trouble);
                // Opening the store may fail, too: then nothing was changed.
                if let Ok(store) = Store::open_on(Arc::new(sim.clone()), &world.state()) {
                    drop(store);
                    let _ =
                        check_with(&mut world.updater_on(Arc::new(sim.clone())), world.now, &mut |_| Ok(()));
                }
                let image = sim.image();
                let place = format!("{trouble:?} at change {at}");
                let lax = Story { old: story.old, new: story.new, follow: true, ..Story::default() };
                recovered(&world, &lax, &base, &image, 0)
                    .unwrap_or_else(|broken| panic!("{place}: {broken}"));
                followed(&world, &lax, &image, 0).unwrap_or_else(|broken| panic!("{place}: {broken}"));
                failures += 1;
            }
        }
    }
    println!("{failures} failures");
    assert!(failures > 100, "{failures}");
}

#[test]
fn a_thousand_checks_without_news_write_nothing() {
    let world = World::with_digits();
    world.check().unwrap();
    let sim = Sim::copy_of(&world.state());
    let mut updater = world.updater_on(Arc::new(sim.clone()));
    let before = sim.steps();
    for _ in 0..1000 {
        let outcome = check_with(&mut updater, world.now, &mut |_| panic!("no proof is due")).0.unwrap();
        assert_eq!(outcome.activated, vec![]);
    }
    assert_eq!(sim.steps() - before, 0);
}
