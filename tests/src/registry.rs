//! A registry made, filled and served by the real `tractctl`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::daemon::Home;
use crate::process::{Process, Said, run, tractctl, wait_for};

/// What every signing key of the tests and the demo is encrypted with.
pub const PASSPHRASE: &str = "only for tests";
/// The team that signs, and the group of devices that is told what to run.
pub const TEAM: &str = "lab";
/// See [`TEAM`].
pub const GROUP: &str = "bench";
/// How long the server may take until it says its address.
const START: Duration = Duration::from_secs(10);

/// A registry folder, its keys, and a server for it.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    server: Option<Process>,
    url: String,
}

impl Registry {
    /// An empty registry, served on loopback.
    ///
    /// # Panics
    /// When `tractctl` refuses.
    pub fn new() -> Self {
        let dir =
            tempfile::Builder::new().prefix("tractd-registry-").tempdir().expect("a folder can be made");
        let mut registry = Self { dir, server: None, url: String::new() };
        let path = registry.path();
        // The keys live for minutes: scrypt need not take its second for each.
        let quick = [arg("--work-factor"), arg("10")];
        tractctl(&[arg("registry"), arg("init"), &path, arg("--team"), arg(TEAM), quick[0], quick[1]]).ok();
        registry.serve();
        registry
    }

    /// The folder that is served.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    /// The folder of its keys.
    pub fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    /// The root to pin on devices.
    pub fn root(&self) -> PathBuf {
        self.path().join("metadata/1.root.json")
    }

    /// Where it is served.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Packs a model folder and signs it in.
    ///
    /// # Panics
    /// When `tractctl` refuses.
    pub fn add(&self, model: &Path) {
        self.try_add(model).ok();
    }

    /// The same, for when it should fail.
    pub fn try_add(&self, model: &Path) -> Said {
        let packed = self.pack(model);
        tractctl(&[
            arg("registry"),
            arg("add"),
            &packed,
            arg("--registry"),
            &self.path(),
            arg("--team"),
            arg(TEAM),
        ])
    }

    /// Packs a model folder into a file.
    ///
    /// # Panics
    /// When `tractctl` refuses.
    pub fn pack(&self, model: &Path) -> PathBuf {
        let said = tractctl(&[arg("pack"), model, arg("--output"), self.dir.path(), arg("--json")]).ok();
        let said: serde_json::Value = serde_json::from_str(&said).expect("--json is JSON");
        PathBuf::from(said["file"].as_str().expect("the file is named"))
    }

    /// Tells the group to run `model@version`, without a trial.
    ///
    /// # Panics
    /// When `tractctl` refuses.
    pub fn publish(&self, model: &str) {
        self.publish_on_trial(model, 0);
    }

    /// Tells the group to run `model@version` after a trial of so many seconds.
    ///
    /// # Panics
    /// When `tractctl` refuses.
    pub fn publish_on_trial(&self, model: &str, healthy_secs: u64) {
        run(Command::new(crate::binary("tractctl"))
            .args(["registry", "publish", model, "--group", GROUP])
            .args(["--healthy-secs", &healthy_secs.to_string(), "--registry"])
            .arg(self.path()))
        .ok();
    }

    /// Provisions a device with this registry.
    ///
    /// # Panics
    /// When `tractctl` refuses.
    pub fn provision(&self, home: &Home, node: &str) {
        run(Command::new(crate::binary("tractctl"))
            .args(["device", "provision", "--registry", &self.url, "--node", node, "--group", GROUP])
            .arg("--root")
            .arg(self.root())
            .arg("--state")
            .arg(home.state()))
        .ok();
    }

    /// Takes the server away.
    pub fn go_offline(&mut self) {
        self.server = None;
    }

    fn serve(&mut self) {
        let log = self.dir.path().join("server.log");
        let process = Process::start(
            Command::new(crate::binary("tractctl"))
                .args(["registry", "serve"])
                .arg(self.path())
                .args(["--listen", "127.0.0.1:0"]),
            &log,
        );
        self.url = wait_for("the registry's address", START, || {
            let said = process.log();
            let at = said.find("http://")?;
            said[at..].split(';').next().map(str::to_owned)
        });
        self.server = Some(process);
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

fn arg(word: &str) -> &Path {
    Path::new(word)
}
