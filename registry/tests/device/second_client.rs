//! The same repository read by python-tuf, which shares no line with ours. Needs `pip install 'tuf==7.*'`; set
//! `TRACTD_TUF_PYTHON` to the interpreter that has it. Skipped, loudly, without; `TRACTD_TUF_REQUIRED=1` makes
//! that a failure.

use std::env;
use std::process::Command;
use std::time::{Duration, SystemTime};

use tractd_registry::{Action, Delegate, Publish, Rollout, Rotate, Server, Share};

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

#[test]
fn python_tuf_accepts_the_repository_through_every_kind_of_change() {
    let Some(python) = python() else { return };
    let mut world = World::at(SystemTime::now());
    let server = Server::start(&world.dir(), "127.0.0.1:0").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python_tuf_client.py");
    let client = world.tmp.path().join("python-client");
    let fetch = |targets: &[&str]| {
        let output = Command::new(&python)
            .arg(script)
            .arg(format!("http://{}", server.addr()))
            .arg(world_root(&client, &server))
            .arg(&client)
            .args(targets)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    };
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
    let length = std::fs::metadata(words).unwrap().len();
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
    let read: Rollout =
        serde_json::from_slice(&std::fs::read(client.join("targets/rollout%2Flab.json")).unwrap()).unwrap();
    assert_eq!(read.entries[0], world.registry.rollouts().unwrap()[0].entries[0]);
    let waves: Vec<u8> = read.entries[0].waves.iter().map(|wave| wave.pct).collect();
    assert_eq!((waves, read.entries[0].window.as_deref()), (vec![5, 25, 100], Some("22:00-04:00")));
    // And from the first root again, without what it kept: the whole chain at once.
    std::fs::remove_dir_all(&client).unwrap();
    fetch(&["rollout/lab.json", one, "models/audio/words/words-1.tractd.tar.zst"]);
}

/// The pinned root, fetched once.
fn world_root(client: &std::path::Path, server: &Server) -> std::path::PathBuf {
    let path = client.with_extension("root.json");
    if !path.exists() {
        let url = format!("http://{}/metadata/1.root.json", server.addr());
        let root = ureq::get(url).call().unwrap().into_body().read_to_vec().unwrap();
        std::fs::write(&path, root).unwrap();
    }
    path
}
