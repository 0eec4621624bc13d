//! The same repository read by python-tuf, which shares no line with ours. Needs `pip install 'tuf==7.*'`; set
//! `TRACTD_TUF_PYTHON` to the interpreter that has it. Skipped, loudly, without; `TRACTD_TUF_REQUIRED=1` makes
//! that a failure.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use tractd_registry::{Action, Delegate, KeyFolder, Publish, Registry, Rollout, Rotate, Server, Share, sign};
use zeroize::Zeroizing;

use crate::staging::{carry_away, other_machine, reopened};
use crate::support::{World, archive};

fn python() -> Option<String> {
    let python = env::var("TRACTD_TUF_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python).args(["-c", "import tuf.ngclient"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(env::var_os("TRACTD_TUF_REQUIRED").is_none(), "{python} has no python-tuf");
    eprintln!("SKIPPED: {python} has no python-tuf, so no second client read the repository");
    None
}

/// python-tuf on a served registry, with what it keeps from one look to the next.
struct SecondClient {
    python: String,
    server: Server,
    dir: PathBuf,
    pinned: PathBuf,
}

impl SecondClient {
    /// One that pins the first root; `None` without python-tuf.
    fn of(world: &World) -> Option<Self> {
        let python = python()?;
        let server = Server::start(&world.dir(), "127.0.0.1:0").unwrap();
        let pinned = world.tmp.path().join("python-root.json");
        fs::copy(world.metadata("1.root.json"), &pinned).unwrap();
        Some(Self { python, server, dir: world.tmp.path().join("python-client"), pinned })
    }

    /// Walks the metadata and fetches these targets; a line for each, with its length.
    fn fetch(&self, targets: &[&str]) -> Result<String, String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python_tuf_client.py");
        let output = Command::new(&self.python)
            .arg(script)
            .arg(format!("http://{}", self.server.addr()))
            .args([&self.pinned, &self.dir])
            .args(targets)
            .output()
            .unwrap();
        let (said, errors) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
        if output.status.success() { Ok(said) } else { Err(errors) }
    }

    /// The same where every target must come, each in the length of its file.
    fn takes(&self, after: &str, targets: &[&str]) {
        let said = self.fetch(targets).unwrap_or_else(|errors| panic!("{after}: {errors}"));
        let names: Vec<&str> = said.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, targets, "{after}");
    }

    /// Forgets all but the pinned root: the whole chain at once.
    fn forget(&self) {
        fs::remove_dir_all(&self.dir).unwrap();
    }

    /// The rollout file it has.
    fn rollout(&self) -> Rollout {
        serde_json::from_slice(&fs::read(self.dir.join("targets/rollout%2Flab.json")).unwrap()).unwrap()
    }
}

#[test]
fn python_tuf_accepts_the_repository_through_every_kind_of_change() {
    let mut world = World::at(SystemTime::now());
    let Some(client) = SecondClient::of(&world) else { return };
    let fetch = |targets: &[&str]| client.fetch(targets).unwrap();
    fetch(&[]);
    world.publish(1);
    let one = "models/vision/digits/digits-1.tractd.tar.zst";
    assert_eq!(fetch(&["rollout/lab.json", one]).lines().count(), 2);

    world.registry.add_team("audio", world.now).unwrap();
    let words = archive(world.tmp.path(), "words", 1, 0);
    world.registry.add(&words, "audio", None, world.now).unwrap();
    world.registry.publish(&Publish::new("words", 1, "lab"), world.now).unwrap();
    world.registry.refresh(world.now).unwrap();
    let sizes = fetch(&["rollout/lab.json", one, "models/audio/words/words-1.tractd.tar.zst"]);
    let length = fs::metadata(words).unwrap().len();
    assert_eq!(sizes.lines().last().unwrap(), format!("models/audio/words/words-1.tractd.tar.zst {length}"));

    for role in ["timestamp", "snapshot", "targets", "rollout", "team-vision", "root"] {
        world.registry.rotate(&Rotate::new(role), world.now).unwrap();
        assert_eq!(fetch(&["rollout/lab.json", one]).lines().count(), 2, "{role}");
    }
    world.registry.revoke("root-6", world.now).unwrap();
    for action in [Action::Pause, Action::Resume, Action::Abort] {
        world.registry.steer("lab", "words", action, world.now).unwrap();
        fetch(&["rollout/lab.json", one]);
    }
    world.registry.delegate(&Delegate::new("video"), world.now).unwrap();
    world.registry.refresh(world.now).unwrap();
    fetch(&["rollout/lab.json", one]);
    let share = Share::Waves { pcts: vec![5, 25, 100], every: Some(Duration::from_secs(3_600)) };
    let window = Some("22:00-04:00".to_owned());
    let what = Publish { share, window, ..Publish::new("digits", 1, "lab") };
    world.registry.publish(&what, world.now).unwrap();
    world.registry.steer("lab", "digits", Action::Next, world.now).unwrap();
    fetch(&["rollout/lab.json", one]);
    let read = client.rollout();
    assert_eq!(read.entries[0], world.registry.rollouts().unwrap()[0].entries[0]);
    let waves: Vec<u8> = read.entries[0].waves.iter().map(|wave| wave.pct).collect();
    assert_eq!((waves, read.entries[0].window.as_deref()), (vec![5, 25, 100], Some("22:00-04:00")));
    // And from the first root again, without what it kept: the whole chain at once.
    client.forget();
    fetch(&["rollout/lab.json", one, "models/audio/words/words-1.tractd.tar.zst"]);
}

/// The roads on which no key is where the registry is: CI stages with the index of the keys alone, teams bring keys
/// and a threshold of their own, and the root's keys sign one after the other.
#[test]
fn python_tuf_accepts_what_was_staged_and_signed_elsewhere() {
    let mut world = World::at(SystemTime::now());
    let Some(client) = SecondClient::of(&world) else { return };
    let (lab, one, two) = ("rollout/lab.json", model("vision/digits", 1), model("vision/digits", 2));
    let words = model("audio/words", 1);
    world.publish(1);
    client.takes("a first model", &[lab, &one]);

    // CI stages, the team signs on its own machine.
    let now = world.now;
    let vision = world.tmp.path().join("vision");
    carry_away(&world, &vision, &["team-vision"]);
    let bundle = world.archive("digits", 2);
    let mut world = reopened(world, |dir, keys| {
        let ci = dir.parent().unwrap().join("ci");
        fs::create_dir_all(&ci).unwrap();
        fs::copy(keys.join("index.json"), ci.join("index.json")).unwrap();
        Registry::stage(dir, &ci).unwrap().add(&bundle, "vision", Some(1), now).unwrap();
    });
    world.registry.refresh(now).unwrap();
    client.takes("staging", &[lab, &one]);
    let unsigned = client.fetch(&[&two]).unwrap_err();
    assert!(unsigned.contains("no role names"), "{unsigned}");
    sign_staged(&world, &mut other_machine(&vision));
    assert_eq!(world.registry.refresh(now).unwrap().accepted, ["team-vision"]);
    world.publish_only(2, false);
    client.takes("a staged model", &[lab, &one, &two]);

    // A team of three that needs two of them.
    let (mut folders, mut keys) = (Vec::new(), Vec::new());
    for name in ["ann", "bea", "cem"] {
        let secret = Zeroizing::new(format!("secret of {name}"));
        let mut folder = KeyFolder::create(&world.tmp.path().join(name), secret, Some(2)).unwrap();
        keys.push(folder.generate(&format!("team-audio-{name}"), "team-audio").unwrap());
        folders.push(folder);
    }
    let delegate = Delegate { team: "audio".into(), keys: keys.clone(), threshold: 2 };
    world.registry.delegate(&delegate, now).unwrap();
    client.takes("a team whose file waits", &[lab, &two]);
    sign_staged(&world, &mut folders[0]);
    sign_staged(&world, &mut folders[2]);
    assert_eq!(world.registry.refresh(now).unwrap().accepted, ["team-audio"]);
    client.takes("a team with a threshold", &[lab, &two]);
    world.registry.add(&archive(world.tmp.path(), "words", 1, 0), "audio", None, now).unwrap();
    sign_staged(&world, &mut folders[1]);
    sign_staged(&world, &mut folders[2]);
    world.registry.refresh(now).unwrap();
    world.registry.publish(&Publish::new("words", 1, "lab"), now).unwrap();
    client.takes("a model that two of three signed", &[lab, &words]);

    // A key made here takes the place of one of them, and one signature is enough; then another one goes.
    let remove = Some(vec!["team-audio-cem".to_owned()]);
    let other = Rotate { remove, threshold: Some(1), ..Rotate::new("team-audio") };
    world.registry.rotate(&other, now).unwrap();
    client.takes("a team with another key", &[lab, &words]);
    world.registry.revoke("team-audio-bea", now).unwrap();
    client.takes("a team with a key less", &[lab, &words]);

    // The root's keys are on three machines, and so are those that come.
    let safes = [1, 2, 3].map(|n| world.tmp.path().join(format!("safe-{n}")));
    for (n, safe) in (1..).zip(&safes) {
        carry_away(&world, safe, &[&format!("root-{n}")]);
    }
    let mut world = reopened(world, |_, _| {});
    world.registry.rotate(&Rotate::new("timestamp"), now).unwrap();
    client.takes("a root that waits", &[lab, &words]);
    sign_staged(&world, &mut other_machine(&safes[0]));
    sign_staged(&world, &mut other_machine(&safes[2]));
    assert_eq!(world.registry.refresh(now).unwrap().accepted, ["root"]);
    client.takes("a root signed on two machines", &[lab, &words]);

    // Back to an earlier version, to every device again.
    let back = Publish { rollback: true, restart: true, ..Publish::new("digits", 1, "lab") };
    world.registry.publish(&back, now).unwrap();
    client.takes("a way back", &[lab, &one]);
    assert_eq!(client.rollout().entries, world.registry.rollouts().unwrap()[0].entries);
    client.forget();
    client.takes("all of it, from the pinned root", &[lab, &one, &two, &words]);
}

/// Signs what waits for it in `staged/`.
fn sign_staged(world: &World, keys: &mut KeyFolder) {
    let waiting = world.registry.staged().unwrap();
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    sign(&waiting[0].path, keys).unwrap();
}

fn model(path: &str, version: u64) -> String {
    let name = path.rsplit('/').next().unwrap();
    format!("models/{path}/{name}-{version}.tractd.tar.zst")
}
