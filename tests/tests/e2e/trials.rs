//! New versions that are genuine, signed, and bad: each is stopped at the stage that should stop it, the device says
//! why, and no client is answered by what was found to be bad.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tractd_ctl::exchange::{Input, Reply, Request};
use tractd_ctl::tensor::Tensor;
use tractd_tests::broker::Mosquitto;
use tractd_tests::daemon::{Daemon, Home, request};
use tractd_tests::digits::floats;
use tractd_tests::mqtt::Client;
use tractd_tests::onnx::Graph;
use tractd_tests::process::{tractctl, wait_for};
use tractd_tests::registry::Registry;
use tractd_wire::{DType, Status};

use crate::roads::connected_node;

const PATIENCE: Duration = Duration::from_secs(120);
/// Long enough that a slow machine sees enough requests in each quarter.
const HEALTHY_S: u64 = 12;

/// A device that runs version 1 of model `m`, the registry it follows, and its broker where it has one.
struct Site {
    registry: Registry,
    models: tempfile::TempDir,
    home: Home,
    broker: Option<Mosquitto>,
}

impl Site {
    fn new(first: Graph, len: u64) -> Self {
        Self::with(first, len, Home::new())
    }

    fn on_a_broker(first: Graph, len: u64) -> Self {
        let broker = Mosquitto::start().expect("mosquitto is installed (Debian package mosquitto)");
        let home = Home::new().with_broker(broker.port, 5);
        Self { broker: Some(broker), ..Self::with(first, len, home) }
    }

    fn with(first: Graph, len: u64, home: Home) -> Self {
        let (registry, models) = (Registry::new(), tempfile::tempdir().unwrap());
        let site = Self { registry, models, home, broker: None };
        site.registry.provision(&site.home, "bench-1");
        site.registry.add(&site.bundle(&first, len, 1));
        site.registry.publish("m@1");
        site
    }

    /// The daemon, serving version 1.
    fn start(&self) -> Daemon<'_> {
        let daemon = self.home.start();
        daemon.update_to("m", 1);
        daemon
    }

    /// Rolls a graph out as version 2; gives what `tractctl update check` said.
    fn roll_out(&self, graph: &Graph, len: u64) -> String {
        self.registry.add(&self.bundle(graph, len, 2));
        self.registry.publish_on_trial("m@2", HEALTHY_S);
        tractctl(&["update", "check", "--at", &self.home.at()]).out
    }

    fn bundle(&self, graph: &Graph, len: u64, version: u64) -> PathBuf {
        self.bundle_with(graph, len, version, "")
    }

    /// With more lines in the manifest.
    fn bundle_with(&self, graph: &Graph, len: u64, version: u64, more: &str) -> PathBuf {
        let dir = self.models.path().join(version.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let manifest = format!(
            "schema = 1\nname = \"m\"\nversion = {version}\n{more}\n\
             [[input]]\nname = \"x\"\ndtype = \"f32\"\nshape = [1, {len}]\n\
             [[output]]\nname = \"y\"\ndtype = \"f32\"\nshape = [1, {len}]\n"
        );
        write(&dir.join("manifest.toml"), manifest.as_bytes());
        write(&dir.join("model.onnx"), &graph.file(&[1, len]));
        dir
    }
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

/// `y = -x`.
fn negation() -> Graph {
    Graph::new().node("Neg", &["x"], "y")
}

/// Asks for `-value`; whoever answers must be right.
fn ask(daemon: &Daemon<'_>, value: f32, len: usize) -> Reply {
    let reply = daemon.connect().infer(&negated(value, len)).expect("the daemon replies");
    assert_eq!((reply.status, reply.detail.as_str()), (Status::Ok, ""));
    reply
}

fn negated(value: f32, len: usize) -> Request {
    let data = std::iter::repeat_n(value.to_le_bytes(), len).flatten().collect();
    let shape = vec![1, u32::try_from(len).unwrap()];
    request("m", Input::Tensors(vec![Tensor { name: "x".into(), dtype: DType::F32, shape, data }]))
}

fn answers(daemon: &Daemon<'_>, value: f32) -> u64 {
    let reply = ask(daemon, value, 4);
    assert_eq!(floats(&reply.tensors[0].data), [-value; 4], "version {}", reply.version);
    reply.version
}

fn update(daemon: &Daemon<'_>) -> Value {
    daemon.status()["update"]["models"]["m"].clone()
}

/// Asks until the trial has failed; gives the values' count and the reason. Every reply is version 1's, and right,
/// but for those of a canary. `value` is told the stage, too.
fn until_rolled_back(daemon: &Daemon<'_>, at: &str, value: impl Fn(u64, &str) -> f32) -> (u64, String) {
    let started = Instant::now();
    let mut stage = "shadow".to_owned();
    for count in 0.. {
        let version = answers(daemon, value(count, &stage));
        let update = update(daemon);
        assert!(version == 1 || stage == "canary" || update["stage"] == "canary", "{version}: {update}");
        if update["state"] == "rolled-back" {
            assert_eq!((&update["version"], &update["stage"]), (&2.into(), &at.into()), "{update}");
            return (count, update["reason"].as_str().unwrap().to_owned());
        }
        update["stage"].as_str().unwrap_or_default().clone_into(&mut stage);
        assert!(started.elapsed() < PATIENCE, "no end of the trial: {update}\n{}", daemon.process.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    unreachable!("the range has no end")
}

/// The device says why, to whoever asks it and over MQTT; the refused version is not tried again, and version 1 goes
/// on, also after a restart.
fn says_why_and_stays_with_version_1(
    site: &Site,
    mut daemon: Daemon<'_>,
    state: &str,
    reason: &str,
    len: usize,
) {
    let said = tractctl(&["update", "check", "--at", &site.home.at()]).out;
    assert!(said.contains("blocked for this rollout") && said.contains(reason), "{said}");
    let printed = tractctl(&["status", "--at", &site.home.at()]).ok();
    assert!(printed.contains(&format!("m 2: {state}: ")) && printed.contains(reason), "{printed}");
    if let Some(broker) = &site.broker {
        let topic = format!("tractd/v1/{}/update/m/state", connected_node(broker.port, &daemon));
        let told = wait_for("the update's state on the broker", Duration::from_secs(20), || {
            let message = Client::connect(broker.port, 5, &topic).next(Duration::from_secs(1))?;
            let told: Value = serde_json::from_slice(&message.payload).unwrap();
            (told["state"] == state).then_some(told)
        });
        assert_eq!(told, update(&daemon), "what MQTT tells is what the status tells");
        assert!(told["reason"].as_str().unwrap().contains(reason), "{told}");
    }
    daemon.process.terminate();
    drop(daemon);
    let daemon = site.home.start();
    assert_eq!(ask(&daemon, 3.0, len).version, 1);
    assert!(update(&daemon)["reason"].as_str().unwrap().contains(reason), "{}", update(&daemon));
}

#[test]
fn a_good_version_passes_shadow_canary_and_all_and_no_request_fails() {
    let site = Site::new(negation(), 4);
    let daemon = site.start();
    let graph = Graph::new().node("Neg", &["x"], "a").node("Neg", &["a"], "b").node("Neg", &["b"], "y");
    assert_eq!(site.roll_out(&graph, 4), "activated m@2\n");
    let mut seen = Vec::new();
    let started = Instant::now();
    while update(&daemon)["state"] != "committed" {
        let stage = update(&daemon)["stage"].as_str().unwrap_or_default().to_owned();
        let version = answers(&daemon, 2.0);
        if seen.last() != Some(&(stage.clone(), version)) {
            seen.push((stage, version));
        }
        assert!(started.elapsed() < PATIENCE, "{}", update(&daemon));
        std::thread::sleep(Duration::from_millis(5));
    }
    let answered = |stage: &str, version| seen.contains(&(stage.to_owned(), version));
    assert!(answered("shadow", 1) && !answered("shadow", 2), "{seen:?}");
    assert!(answered("canary", 1) && answered("canary", 2), "{seen:?}");
    assert!(answered("all", 2), "{seen:?}");
    assert_eq!(update(&daemon), serde_json::json!({ "version": 2, "state": "committed" }));
    assert_eq!(answers(&daemon, 2.0), 2);
}

#[test]
fn wrong_answers_are_found_in_the_shadow() {
    let site = Site::on_a_broker(negation(), 4);
    let daemon = site.start();
    site.roll_out(&Graph::new().node("Abs", &["x"], "y"), 4);
    let (_, reason) = until_rolled_back(&daemon, "shadow", |_, _| 2.0);
    assert_eq!(reason, "trial (shadow): 20 of 20 answers differ from those of the version before");
    says_why_and_stays_with_version_1(&site, daemon, "rolled-back", "20 of 20 answers differ", 4);
}

#[test]
fn a_nan_is_found_in_the_shadow() {
    let site = Site::on_a_broker(negation(), 4);
    let daemon = site.start();
    site.roll_out(&nan_above(0.0), 4);
    let (_, reason) = until_rolled_back(&daemon, "shadow", |_, _| 2.0);
    assert_eq!(reason, "trial (shadow): its answer held a NaN");
    says_why_and_stays_with_version_1(&site, daemon, "rolled-back", "its answer held a NaN", 4);
}

/// What is asked while it only runs copies, it does well. The first client it is to answer asks something else, and is
/// answered by version 1.
#[test]
fn a_candidate_that_fails_when_it_answers_is_found_in_the_canary_and_no_client_notices() {
    let site = Site::on_a_broker(negation(), 4);
    let daemon = site.start();
    site.roll_out(&nan_above(100.0), 4);
    let value = |_, stage: &str| if stage == "canary" { 200.0 } else { 2.0 };
    let (count, reason) = until_rolled_back(&daemon, "canary", value);
    println!("after {count} requests: {reason}");
    assert_eq!(reason, "trial (canary): its answer held a NaN");
    says_why_and_stays_with_version_1(
        &site,
        daemon,
        "rolled-back",
        "trial (canary): its answer held a NaN",
        4,
    );
}

/// The same with one that answers its share of the canary well at first, and then fails on every request.
#[test]
fn a_candidate_that_turns_bad_in_the_canary_is_found_there() {
    let site = Site::on_a_broker(negation(), 4);
    let daemon = site.start();
    site.roll_out(&crash_from(100), 4);
    let answered = std::cell::Cell::new(0);
    let value = |_, stage: &str| {
        if stage == "canary" {
            answered.set(answered.get() + 1);
        }
        if answered.get() > 50 { 100.0 } else { 2.0 }
    };
    let (_, reason) = until_rolled_back(&daemon, "canary", value);
    assert!(answered.get() > 50, "{reason}");
    assert!(
        reason == "trial (canary): it crashed on a request" || reason.starts_with("trial (canary): 3 of"),
        "{reason}"
    );
    says_why_and_stays_with_version_1(&site, daemon, "rolled-back", "trial (canary): ", 4);
}

#[test]
fn a_crash_at_the_hundredth_request_is_found_in_the_shadow() {
    let site = Site::on_a_broker(negation(), 4);
    let daemon = site.start();
    site.roll_out(&crash_from(100), 4);
    let (count, reason) = until_rolled_back(&daemon, "shadow", |count, _| count as f32);
    println!("after {count} requests: {reason}");
    assert!(count >= 100, "{count}: {reason}");
    assert!(
        reason == "trial (shadow): it crashed on a request" || reason.starts_with("trial (shadow): 3 of"),
        "{reason}"
    );
    says_why_and_stays_with_version_1(&site, daemon, "rolled-back", "trial (shadow)", 4);
}

#[test]
fn ten_times_slower_is_found_by_the_self_test() {
    const LEN: u64 = 1 << 16;
    let site = Site::on_a_broker(negation(), LEN);
    let daemon = site.start();
    let slow = negation_with_zero(&|mut graph, from, to| {
        let mut last = from.to_owned();
        for step in 0..12 {
            let next = format!("s{step}");
            graph = graph.node("Sin", &[&last], &next);
            last = next;
        }
        graph.node("Cos", &[&last], to)
    });
    let said = site.roll_out(&slow, LEN);
    assert!(said.contains("refused: m 2: self-test: it takes "), "{said}");
    assert!(said.contains("µs where the version before takes"), "{said}");
    let reason = "µs where the version before takes";
    says_why_and_stays_with_version_1(&site, daemon, "refused", reason, LEN as usize);
}

#[test]
fn double_the_memory_is_found_by_the_self_test() {
    let site = Site::on_a_broker(negation_with_constant(32), 4);
    let daemon = site.start();
    let said = site.roll_out(&negation_with_constant(64), 4);
    assert!(said.contains("refused: m 2: self-test: it takes "), "{said}");
    assert!(said.contains("bytes of memory where the version before takes"), "{said}");
    let reason = "bytes of memory where the version before takes";
    says_why_and_stays_with_version_1(&site, daemon, "refused", reason, 4);
}

/// There is no version before to measure it by.
#[test]
fn more_memory_than_its_team_signed_is_found_by_the_self_test() {
    let site = Site::new(negation(), 4);
    let claim = |mib: u64| format!("peak_ram_bytes = {}", mib << 20);
    site.registry.add(&site.bundle_with(&negation_with_constant(64), 4, 2, &claim(16)));
    site.registry.publish("m@2");
    let daemon = site.home.start();
    let check = || tractctl(&["update", "check", "--at", &site.home.at()]).out;
    let said = check();
    assert!(said.contains("refused: m 2: self-test: it takes "), "{said}");
    assert!(said.contains(&format!("bytes of memory where its team signed {}", 16 << 20)), "{said}");
    site.registry.add(&site.bundle_with(&negation_with_constant(64), 4, 3, &claim(128)));
    site.registry.publish("m@3");
    assert_eq!(check(), "activated m@3\n");
    // A first version is activated before it is loaded.
    let serves = || daemon.connect().infer(&negated(1.0, 4)).is_ok_and(|reply| reply.status == Status::Ok);
    wait_for("version 3", PATIENCE, || serves().then_some(()));
    assert_eq!(answers(&daemon, 1.0), 3);
}

#[test]
fn a_crash_at_load_is_found_by_the_self_test() {
    let site = Site::on_a_broker(negation(), 4);
    let daemon = site.start();
    let said = site.roll_out(&Graph::new().node("FlyToTheMoon", &["x"], "y"), 4);
    assert!(said.contains("refused: m 2: self-test: ") && said.contains("FlyToTheMoon"), "{said}");
    says_why_and_stays_with_version_1(&site, daemon, "refused", "FlyToTheMoon", 4);
}

#[test]
fn a_daemon_killed_three_times_during_a_trial_goes_back() {
    let site = Site::new(negation(), 4);
    let mut daemon = site.start();
    site.roll_out(&Graph::new().node("Neg", &["x"], "a").node("Identity", &["a"], "y"), 4);
    for _ in 0..3 {
        assert_eq!(update(&daemon)["state"], "trial");
        daemon.process.kill();
        drop(daemon);
        daemon = site.home.start();
        assert_eq!(answers(&daemon, 2.0), 1);
    }
    let update = update(&daemon);
    assert_eq!(
        update["reason"], "trial (shadow): the daemon ended 3 times while it was on trial",
        "{update}"
    );
    says_why_and_stays_with_version_1(&site, daemon, "rolled-back", "the daemon ended 3 times", 4);
}

/// At every step of an update the daemon dies while clients ask. The next one has version 1 or version 2, both whole,
/// and ends up with version 2.
#[test]
fn a_daemon_killed_at_any_step_under_load_comes_back_and_through() {
    let steps =
        ["found", "downloading", "self-testing", "trial-shadow", "trial-canary", "trial-all", "committed"];
    for step in steps {
        let site = Site::new(negation(), 4);
        let daemon = killed_at(&site, step, &negation());
        println!("{step}: version {} after", answers(&daemon, 2.0));
        tractctl(&["update", "check", "--at", &site.home.at()]).ok();
        wait_for("version 2", PATIENCE, || {
            answers(&daemon, 2.0);
            (update(&daemon)["state"] == "committed" && update(&daemon)["version"] == 2).then_some(())
        });
        assert_eq!(answers(&daemon, 2.0), 2, "{step}");
    }
}

/// The same where version 2 is bad: whoever comes next has version 1, and knows why.
#[test]
fn a_daemon_killed_as_it_refuses_or_takes_back_comes_back_with_version_1() {
    let crash_at_load = Graph::new().node("FlyToTheMoon", &["x"], "y");
    for (step, graph, reason) in [
        ("rolled-back-shadow", nan_above(0.0), "trial (shadow): its answer held a NaN"),
        ("refused", crash_at_load, "FlyToTheMoon"),
    ] {
        let site = Site::new(negation(), 4);
        let daemon = killed_at(&site, step, &graph);
        assert_eq!(answers(&daemon, 2.0), 1, "{step}");
        assert!(update(&daemon)["reason"].as_str().unwrap().contains(reason), "{}", update(&daemon));
        let said = tractctl(&["update", "check", "--at", &site.home.at()]).out;
        assert!(said.contains("blocked for this rollout"), "{said}");
        assert_eq!(answers(&daemon, 2.0), 1, "{step}");
    }
}

/// A daemon dies, while it answers requests, as version 2 takes that step. Gives the next one.
fn killed_at<'a>(site: &'a Site, step: &str, second: &Graph) -> Daemon<'a> {
    drop(site.start());
    let mut daemon = site.home.start_with(&[("TRACTD_DIE_AT", &format!("{step}@2"))]);
    site.registry.add(&site.bundle(second, 4, 2));
    site.registry.publish_on_trial("m@2", 4);
    let mut check = std::process::Command::new(tractd_tests::binary("tractctl"));
    let mut check = check.args(["update", "check", "--at", &site.home.at()]).spawn().unwrap();
    let mut answered = 0;
    let started = Instant::now();
    while daemon.process.is_running() {
        if let Ok(mut socket) = tractd_ctl::socket::Socket::connect(&site.home.socket()) {
            answered += usize::from(socket.infer(&negated(2.0, 4)).is_ok());
        }
        assert!(started.elapsed() < PATIENCE, "{step} is never reached:\n{}", daemon.process.log());
    }
    check.wait().unwrap();
    drop(daemon);
    println!("{step}: {answered} answers before");
    assert!(answered > 0, "{step}: nothing was asked");
    site.home.start()
}

#[test]
fn only_an_enabled_daemon_asks_by_itself_and_at_its_interval() {
    let config =
        |enabled: bool| format!("[mqtt]\nenabled = false\n[update]\nenabled = {enabled}\ninterval_s = 1\n");
    let site = Site::with(negation(), 4, Home::new().with_config(&config(false)));
    let daemon = site.home.start();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(daemon.status()["update"]["last_check_unix_ms"], Value::Null);
    drop(daemon);
    let site = Site { home: site.home.with_config(&config(true)), ..site };
    let daemon = site.home.start();
    daemon.wait_for_model("m", 1);
    let last = || daemon.status()["update"]["last_check_unix_ms"].as_u64().unwrap();
    let first = last();
    wait_for("the next check", Duration::from_secs(20), || (last() > first).then_some(()));
}

#[test]
fn a_large_archive_waits_while_the_link_is_metered() {
    let config =
        "[mqtt]\nenabled = false\n[update]\nenabled = false\nmetered_bytes_max = 10\nmetered = \"auto\"\n";
    let site = Site::with(negation(), 4, Home::new().with_config(config));
    let path = site.models.path().join("bin");
    std::fs::create_dir(&path).unwrap();
    let network_manager = |metered: u8| {
        let busctl = path.join("busctl");
        write(&busctl, format!("#!/bin/sh\necho u {metered}\n").as_bytes());
        std::fs::set_permissions(&busctl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    network_manager(1);
    let search = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
    let daemon = site.home.start_with(&[("PATH", &search)]);
    let check = || tractctl(&["update", "check", "--at", &site.home.at()]).ok();
    assert!(check().ends_with("10 are fetched over this metered link\n"), "{}", check());
    assert_eq!(update(&daemon)["state"], "waiting");
    network_manager(2);
    assert_eq!(check(), "activated m@1\n");
}

#[test]
fn what_will_hurt_later_is_told_and_a_reset_device_is_none() {
    let site = Site::new(negation(), 4);
    let file = site.home.state().join("device.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let machine = text.lines().find_map(|line| line.strip_prefix("machine = ")).map(str::to_owned);
    let Some(machine) = machine else {
        eprintln!("SKIPPED: this machine has no id, so no card can be told from another's");
        return;
    };
    write(&file, text.replace(&machine, "\"another\"").as_bytes());
    let daemon = site.start();
    let warnings = daemon.status()["update"]["warnings"].to_string();
    assert!(warnings.contains("provisioned on another machine"), "{warnings}");
    let printed = tractctl(&["status", "--at", &site.home.at()]).ok();
    assert!(printed.contains("warning: this state was provisioned on another machine"), "{printed}");
    drop(daemon);
    let state = site.home.state();
    let state = state.to_str().unwrap();
    let shown = tractctl(&["device", "show", "--state", state]).ok();
    assert!(shown.contains("another one than it was provisioned on"), "{shown}");
    assert!(
        tractctl(&["device", "reset", "--state", state]).ok().contains("bench-1 is no longer provisioned")
    );
    assert_eq!(site.home.start().status()["update"]["provisioned"], false);
}

#[test]
fn a_daemon_told_to_end_does_not_count_as_a_crash() {
    let site = Site::new(negation(), 4);
    let mut daemon = site.start();
    site.roll_out(&Graph::new().node("Neg", &["x"], "a").node("Identity", &["a"], "y"), 4);
    for _ in 0..4 {
        assert!(daemon.process.terminate().success());
        drop(daemon);
        daemon = site.home.start();
        assert_eq!(update(&daemon)["state"], "trial", "{}", update(&daemon));
    }
}

/// `y = -x + (t - t)`, where `t = detour(x)`.
fn negation_with_zero(detour: &dyn Fn(Graph, &str, &str) -> Graph) -> Graph {
    detour(Graph::new(), "x", "t").node("Sub", &["t", "t"], "zero").node("Neg", &["x"], "negated").node(
        "Add",
        &["negated", "zero"],
        "y",
    )
}

/// `y = -x + 0`, the zero being the sum of a constant of so many MiB.
fn negation_with_constant(mib: i64) -> Graph {
    Graph::new()
        .constant("size", &[mib, 1 << 18])
        .node("ConstantOfShape", &["size"], "zeros")
        .node("ReduceSum", &["zeros"], "sum")
        .cast("sum", "zero", false)
        .node("Neg", &["x"], "negated")
        .node("Add", &["negated", "zero"], "y")
}

/// `y = -x + (r - r)`, where `r = √(most - x)`: NaN where `x` is above `most`, which the self-test's zeros are not.
fn nan_above(most: f32) -> Graph {
    negation_with_zero(&|graph, from, to| {
        graph
            .constant("most_int", &[most as i64])
            .cast("most_int", "most", false)
            .node("Sub", &["most", from], "left")
            .node("Sqrt", &["left"], to)
    })
}

/// `y = -x`, by way of a table of so many entries that is asked for entry `x`.
fn crash_from(len: usize) -> Graph {
    Graph::new()
        .constant("table", &vec![0; len])
        .cast("x", "index", true)
        .node("Gather", &["table", "index"], "found")
        .cast("found", "zero", false)
        .node("Neg", &["x"], "negated")
        .node("Add", &["negated", "zero"], "y")
}
