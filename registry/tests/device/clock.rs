//! Devices without a clock, with a wrong one, and what they take for the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tractd_update::source::{Access, FetchError};
use tractd_update::verify::VerifyError;
use tractd_update::{CheckError, Config, Device, Outcome, Roots, Store, Updater};

use crate::faulty::Faulty;
use crate::support::{DAY, World, check};

fn check_at(world: &World, time: SystemTime) -> Result<Outcome, CheckError> {
    check(&mut world.updater(), time).0
}

fn expired(outcome: &Result<Outcome, CheckError>) -> bool {
    matches!(outcome, Err(CheckError::Verify(VerifyError::Expired { .. })))
}

/// 2031: an RTC whose battery died, or one that was set wrong.
fn far_ahead(world: &World) -> SystemTime {
    world.now + 5 * 365 * DAY
}

#[test]
fn a_stick_in_1970_with_the_network_off_installs_and_says_the_clock_is_untrusted() {
    let mut world = World::new();
    world.publish(1);
    let outcome = check_at(&world, UNIX_EPOCH).unwrap();
    assert!(outcome.clock_untrusted);
    assert_eq!(outcome.activated[0].version, 1);
    assert!(!world.check().unwrap().clock_untrusted, "and with the right time it is trusted again");
}

#[test]
fn a_stick_of_expired_metadata_is_refused_in_any_year_while_models_keep_serving() {
    let mut world = World::with_digits();
    world.publish(2);
    // A later stick was seen: its signed time is known, even by a device that wakes in 1970.
    let old = world.tmp.path().join("old-stick");
    crate::support::copy_dir(&world.dir(), &old);
    world.now += 40 * DAY;
    world.registry.refresh(world.now).unwrap();
    check_at(&world, UNIX_EPOCH).unwrap();
    world.provision("lab", url::Url::from_directory_path(&old).unwrap().as_str());
    for time in [UNIX_EPOCH, world.now, far_ahead(&world)] {
        let refused = check_at(&world, time);
        assert!(matches!(refused, Err(CheckError::Verify(_))), "{refused:?}");
    }
    assert_eq!(world.active(), Some(2));
}

#[test]
fn a_clock_far_ahead_blocks_until_it_is_right_and_not_a_day_longer() {
    let mut world = World::with_digits();
    world.publish(2);
    let refused = check_at(&world, far_ahead(&world));
    assert!(expired(&refused), "{refused:?}");
    assert_eq!(world.active(), Some(1));
    assert_eq!(world.activate(), vec![("digits".into(), 2)]);
}

#[test]
fn a_clock_hours_ahead_leaves_a_floor_no_later_than_the_expiry() {
    let mut world = World::with_digits();
    check_at(&world, world.now + DAY - Duration::from_secs(1)).unwrap();
    world.registry.refresh(world.now).unwrap();
    let outcome = check_at(&world, world.now).unwrap();
    assert!(!outcome.clock_untrusted, "a floor within the day is not worth a write");
}

#[test]
fn the_time_learnt_from_a_signature_survives_a_restart_without_a_clock() {
    let mut world = World::new();
    world.now += 30 * DAY;
    world.registry.refresh(world.now).unwrap();
    check_at(&world, UNIX_EPOCH).unwrap();
    let frozen = world.tmp.path().join("frozen");
    crate::support::copy_dir(&world.dir(), &frozen);
    world.now += 30 * DAY;
    world.registry.refresh(world.now).unwrap();
    check_at(&world, UNIX_EPOCH).unwrap();
    // Frozen a month ago: a device that forgot the time would take it for fresh.
    std::fs::remove_dir_all(world.state().join("tuf")).unwrap();
    world.provision("lab", url::Url::from_directory_path(&frozen).unwrap().as_str());
    let refused = check_at(&world, UNIX_EPOCH);
    assert!(matches!(refused, Err(CheckError::Verify(_))), "{refused:?}");
}

/// A server certificate for `localhost` by itself, good for these days of 2026, and its PEM.
fn certificate(from: (u8, u8), until: (u8, u8)) -> (ServerConfig, Vec<u8>) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2026, from.0, from.1);
    params.not_after = date_time_ymd(2026, until.0, until.1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let config = server(vec![certificate.der().clone()], &key);
    (config, certificate.pem().into_bytes())
}

fn server(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> ServerConfig {
    ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap()
}

fn check_tls(world: &World, roots: Roots, time: SystemTime) -> Result<Outcome, CheckError> {
    let device = Device::open(&world.state()).unwrap().unwrap();
    let access = Access { roots, ..Access::default() };
    let config = Config { access, ..Config::default() };
    check(&mut Updater::new(device, Store::open(&world.state()).unwrap(), config), time).0
}

fn untrusted(outcome: &Result<Outcome, CheckError>, why: &str) {
    let Err(CheckError::Fetch(FetchError::Transport { message, .. })) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(message.contains(why), "{message}");
}

#[test]
fn tls_with_an_authority_of_ones_own() {
    let mut world = World::new();
    world.publish(1);
    let (server, pem) = certificate((11, 15), (12, 31));
    world.provision("lab", &Faulty::tls(&world.dir(), server).url);
    untrusted(&check_tls(&world, Roots::System, world.now), "invalid peer certificate");
    let (_, other) = certificate((11, 15), (12, 31));
    untrusted(&check_tls(&world, Roots::Pem(other), world.now), "invalid peer certificate");
    untrusted(&check_tls(&world, Roots::Pem(b"no PEM".to_vec()), world.now), "no certificate authority");
    let outcome = check_tls(&world, Roots::Pem(pem), world.now).unwrap();
    assert_eq!(outcome.activated[0].version, 1);
}

#[test]
fn tls_judges_certificates_by_the_same_floor_as_metadata() {
    let mut world = World::with_digits();
    world.now += 20 * DAY;
    world.registry.refresh(world.now).unwrap();
    world.check().unwrap();
    // It is 1970 again; what is known is that 21 December has come.
    let (server, pem) = certificate((12, 15), (12, 31));
    world.provision("lab", &Faulty::tls(&world.dir(), server).url);
    check_tls(&world, Roots::Pem(pem), UNIX_EPOCH).unwrap();
    let (server, pem) = certificate((11, 15), (12, 15));
    world.provision("lab", &Faulty::tls(&world.dir(), server).url);
    untrusted(&check_tls(&world, Roots::Pem(pem), UNIX_EPOCH), "expired");
}

#[test]
fn a_certificate_that_begins_after_a_clock_that_is_behind_is_believed() {
    let mut world = World::new();
    world.publish(1);
    // All a device in 1970 knows is when it was built, in November; the certificate was made anew since.
    let (server, pem) = certificate((12, 15), (12, 31));
    world.provision("lab", &Faulty::tls(&world.dir(), server).url);
    let outcome = check_tls(&world, Roots::Pem(pem), UNIX_EPOCH).unwrap();
    assert_eq!(outcome.activated[0].version, 1);
    let seen = outcome.certificate.unwrap();
    assert_eq!(seen.until(), "2026-12-31T00:00:00Z");
    assert!(outcome.clock_untrusted);
}

#[test]
fn a_certificate_that_has_not_begun_is_refused_by_a_clock_that_was_set() {
    let mut world = World::new();
    world.publish(1);
    let (server, pem) = certificate((12, 15), (12, 31));
    world.provision("lab", &Faulty::tls(&world.dir(), server).url);
    untrusted(&check_tls(&world, Roots::Pem(pem.clone()), world.now), "not valid yet");
    // A clock nobody set may be behind although it shows a time later than all that is known.
    let device = Device::open(&world.state()).unwrap().unwrap();
    let access = Access { roots: Roots::Pem(pem), clock_unset: true, ..Access::default() };
    let config = Config { access, ..Config::default() };
    let mut updater = Updater::new(device, Store::open(&world.state()).unwrap(), config);
    assert_eq!(check(&mut updater, world.now).0.unwrap().activated[0].version, 1);
}

#[test]
fn what_an_untrusted_clock_forgives_is_the_beginning_alone() {
    let mut world = World::new();
    world.publish(1);
    // Of another authority, and for another name: no time helps.
    let (server, _) = certificate((12, 15), (12, 31));
    let (_, other) = certificate((12, 15), (12, 31));
    world.provision("lab", &Faulty::tls(&world.dir(), server).url);
    untrusted(&check_tls(&world, Roots::Pem(other), UNIX_EPOCH), "invalid peer certificate");
    // It ended before the time that is known.
    let (server, pem) = certificate((10, 1), (10, 31));
    world.provision("lab", &Faulty::tls(&world.dir(), server).url);
    untrusted(&check_tls(&world, Roots::Pem(pem), UNIX_EPOCH), "expired");
    // Its issuer's, which comes with it, begins after it has ended: that long ago cannot be now.
    let (server, pem) = chain((12, 1), (12, 10), (12, 20));
    world.provision("lab", &Faulty::tls(&world.dir(), server).url);
    untrusted(&check_tls(&world, Roots::Pem(pem), UNIX_EPOCH), "expired");
}

/// A server certificate for `localhost` good for these days, from an intermediate that begins on `then`; and the root's
/// PEM.
fn chain(from: (u8, u8), until: (u8, u8), then: (u8, u8)) -> (ServerConfig, Vec<u8>) {
    let ca = |name: &str, begin: (u8, u8)| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2026, begin.0, begin.1);
        params.not_after = date_time_ymd(2027, 12, 31);
        params
    };
    let (root_key, middle_key, key) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (root, middle) = (ca("root", (1, 1)), ca("middle", then));
    let pem = root.self_signed(&root_key).unwrap().pem();
    let root = Issuer::from_params(&root, &root_key);
    let middle_certificate = middle.signed_by(&middle_key, &root).unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2026, from.0, from.1);
    params.not_after = date_time_ymd(2026, until.0, until.1);
    let leaf = params.signed_by(&key, &Issuer::from_params(&middle, &middle_key)).unwrap();
    let config = server(vec![leaf.der().clone(), middle_certificate.der().clone()], &key);
    (config, pem.into_bytes())
}
