//! What the publisher's side refuses, and what it writes.

use std::fs;

use serde_json::{Value, json};
use tractd_registry::{Options, Publish, Registry, RegistryError, Server, Share};

use crate::support::{DAY, World, archive, december, passphrase};

#[test]
fn an_existing_registry_is_never_made_again() {
    let world = World::new();
    let made = Registry::init(&world.dir(), &world.keys(), passphrase(), &Options::default(), december());
    assert!(matches!(made, Err(RegistryError::Exists(_))));
    let none = Registry::open(&world.tmp.path().join("none"), &world.keys(), passphrase());
    assert!(matches!(none, Err(RegistryError::None(_))));
}

#[test]
fn the_roles_are_those_of_the_layout() {
    let mut world = World::new();
    world.publish(1);
    let read = |name: &str| world.attacker().read(name)["signed"].clone();
    let root = read("1.root.json");
    assert_eq!(root["roles"]["root"]["threshold"], 2);
    assert_eq!(root["roles"]["root"]["keyids"].as_array().unwrap().len(), 3);
    assert_eq!(root["consistent_snapshot"], true);
    let targets = read("2.targets.json");
    assert_eq!(targets["targets"], json!({}), "it only delegates");
    let roles: Vec<Value> = targets["delegations"]["roles"].as_array().unwrap().clone();
    let roles: Vec<_> = roles.iter().map(|r| json!([r["name"], r["paths"], r["terminating"]])).collect();
    let expected = json!([["rollout", ["rollout/*"], true], ["team-vision", ["models/vision/*/*"], true]]);
    assert_eq!(Value::from(roles), expected);
    let timestamp = read("timestamp.json");
    assert_eq!(timestamp["expires"], "2026-12-02T00:00:00Z");
    assert_eq!(timestamp["x-tractd-issued"], "2026-12-01T00:00:00Z");
    assert_eq!(timestamp["meta"]["snapshot.json"]["version"], 3);
    assert_eq!(read("3.snapshot.json")["expires"], "2026-12-08T00:00:00Z");
}

#[test]
fn what_was_added_is_seen_only_with_the_next_release() {
    let mut world = World::new();
    let before = fs::read(world.metadata("timestamp.json")).unwrap();
    world.add(1);
    assert_eq!(fs::read(world.metadata("timestamp.json")).unwrap(), before);
    assert!(world.metadata("2.team-vision.json").exists());
}

#[test]
fn a_version_is_signed_once_and_never_changes() {
    let mut world = World::new();
    let first = world.archive("digits", 1);
    assert!(world.registry.add(&first, "vision", None, world.now).unwrap().new);
    assert!(!world.registry.add(&first, "vision", None, world.now).unwrap().new);
    let other = archive(world.tmp.path(), "digits", 1, 7);
    let changed = world.registry.add(&other, "vision", None, world.now);
    assert!(matches!(changed, Err(RegistryError::Changed { version: 1, .. })), "{changed:?}");
}

#[test]
fn names_are_unique_across_teams() {
    let mut world = World::new();
    world.add(1);
    world.registry.add_team("audio", world.now).unwrap();
    let two = world.archive("digits", 2);
    let taken = world.registry.add(&two, "audio", None, world.now);
    assert!(matches!(&taken, Err(RegistryError::OtherTeam { owner, .. }) if owner == "vision"), "{taken:?}");
    let nobody = world.registry.add(&two, "video", None, world.now);
    assert!(matches!(nobody, Err(RegistryError::NoTeam(_))));
    assert!(matches!(world.registry.add_team("../x", world.now), Err(RegistryError::Name { .. })));
}

#[test]
fn only_what_is_added_can_be_published() {
    let mut world = World::new();
    world.publish(2);
    let publish = |world: &mut World, what: Publish| world.registry.publish(&what, world.now).unwrap_err();
    let missing = publish(&mut world, Publish::new("digits", 3, "lab"));
    assert!(matches!(missing, RegistryError::NotAdded { version: 3, .. }));
    let group = publish(&mut world, Publish::new("digits", 2, "../lab"));
    assert!(matches!(group, RegistryError::Name { .. }));
    let much =
        publish(&mut world, Publish { share: Share::Percent(101), ..Publish::new("digits", 2, "lab") });
    assert!(matches!(much, RegistryError::Percent(101)));
    world.add(1);
    let back = publish(&mut world, Publish::new("digits", 1, "lab"));
    assert!(matches!(back, RegistryError::Backward { version: 1, current: 2, .. }));
    let archive = world.archive("digits", 3);
    world.registry.add(&archive, "vision", Some(2), world.now).unwrap();
    let low = publish(&mut world, Publish { rollback: true, ..Publish::new("digits", 1, "lab") });
    assert!(matches!(low, RegistryError::BelowMinimum { min_version: 2, .. }));
}

#[test]
fn no_bundle_is_not_signed() {
    let mut world = World::new();
    let path = world.tmp.path().join("x.tractd.tar.zst");
    fs::write(&path, b"not a bundle").unwrap();
    let refused = world.registry.add(&path, "vision", None, world.now);
    assert!(matches!(refused, Err(RegistryError::Bundle { .. })), "{refused:?}");
}

#[test]
fn metadata_somebody_else_wrote_is_not_built_on() {
    let mut world = World::new();
    world.attacker().forge("1.rollout.json", Some("team-vision"), |_| {});
    world.add(1);
    let refused = world.registry.publish(&Publish::new("digits", 1, "lab"), world.now);
    assert!(matches!(refused, Err(RegistryError::Metadata { .. })), "{refused:?}");
}

#[test]
fn a_refresh_renews_what_is_due_and_names_what_it_cannot() {
    let mut world = World::new();
    let daily = world.registry.refresh(world.now + DAY).unwrap();
    assert_eq!(daily.renewed, ["snapshot", "timestamp"]);
    let World { tmp, registry, now } = world;
    drop(registry);
    let (dir, keys) = (tmp.path().join("registry"), tmp.path().join("keys"));
    for away in ["root-2.age", "root-3.age"] {
        fs::rename(keys.join(away), tmp.path().join(away)).unwrap();
    }
    let mut registry = Registry::open(&dir, &keys, passphrase()).unwrap();
    let yearly = registry.refresh(now + 300 * DAY).unwrap();
    assert_eq!(yearly.renewed, ["targets", "rollout", "team-vision", "snapshot", "timestamp"]);
    assert_eq!(yearly.due, ["root"]);
    let waiting = registry.staged().unwrap();
    assert_eq!((waiting.len(), waiting[0].role.as_str(), waiting[0].missing), (1, "root", 1));
}

#[test]
fn a_registry_has_one_writer() {
    let world = World::new();
    let second = Registry::open(&world.dir(), &world.keys(), passphrase());
    assert!(matches!(second, Err(RegistryError::Locked(_))));
}

#[test]
fn the_server_knows_ranges_etags_and_its_own_files_only() {
    let mut world = World::new();
    world.publish(1);
    let server = Server::start(&world.dir(), "127.0.0.1:0").unwrap();
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let base = format!("http://{}", server.addr());
    let url = format!("{base}/metadata/timestamp.json");
    let whole = agent.get(&url).call().unwrap();
    let etag = whole.headers()["etag"].to_str().unwrap().to_owned();
    let bytes = whole.into_body().read_to_vec().unwrap();
    assert_eq!(bytes, fs::read(world.metadata("timestamp.json")).unwrap());
    let part = agent.get(&url).header("Range", "bytes=10-").header("If-Range", &etag).call().unwrap();
    assert_eq!(part.status().as_u16(), 206);
    let expected = format!("bytes 10-{}/{}", bytes.len() - 1, bytes.len());
    assert_eq!(part.headers()["content-range"].to_str().unwrap(), expected);
    assert_eq!(part.into_body().read_to_vec().unwrap(), bytes[10..]);
    let status = |name: &str, field: (&str, &str)| {
        agent.get(format!("{base}{name}")).header(field.0, field.1).call().unwrap().status().as_u16()
    };
    assert_eq!(status("/metadata/timestamp.json", ("If-None-Match", &etag)), 304);
    assert_eq!(status("/metadata/timestamp.json", ("Range", "bytes=99999999-")), 416);
    assert_eq!(status("/metadata/timestamp.json", ("If-Range", "\"other\"")), 200);
    assert_eq!(status("/metadata/none.json", ("X", "y")), 404);
    assert_eq!(status("/metadata/", ("X", "y")), 404);
    assert_eq!(status("/keys/index.json", ("X", "y")), 404);
}
