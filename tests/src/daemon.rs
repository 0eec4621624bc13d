//! A real `tractd` on folders of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tractd_ctl::exchange::{Input, Reply, Request};
use tractd_ctl::socket::Socket;
use tractd_wire::{Want, What};

use crate::process::{Process, tractctl, wait_for};

/// How long a daemon may take until it answers: with the dev profile, each model's proof takes part of it.
const START: Duration = Duration::from_secs(180);

/// What a daemon is started on; outlives it, so that it can be started again on the same state.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    config: String,
    environment: Vec<(OsString, OsString)>,
    wrapper: Vec<OsString>,
}

impl Home {
    /// An empty state without MQTT.
    pub fn new() -> Self {
        let dir =
            tempfile::Builder::new().prefix("tractd-").tempdir().expect("a temporary folder can be made");
        std::fs::create_dir_all(dir.path().join("models")).expect("it can be written");
        Self { dir, config: String::new(), environment: Vec::new(), wrapper: Vec::new() }
            .with_config("[mqtt]\nenabled = false\n[update]\nenabled = false\n")
    }

    /// The same, with this configuration instead.
    pub fn with_config(mut self, toml: &str) -> Self {
        self.config = toml.to_owned();
        self
    }

    /// The same, connected to a broker on loopback that speaks MQTT `version` (5 or 4).
    pub fn with_broker(self, port: u16, version: u8) -> Self {
        self.with_config(&format!(
            "[mqtt]\nenabled = true\nurl = \"mqtt://127.0.0.1:{port}\"\nversion = {version}\n\
             [update]\nenabled = false\n"
        ))
    }

    /// The same, started by this command with the daemon's own as its arguments.
    pub fn under(mut self, wrapper: &[&dyn AsRef<std::ffi::OsStr>]) -> Self {
        self.wrapper = wrapper.iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// The same, with a variable in the daemon's environment.
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The folder of unsigned local models.
    pub fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("tractd.sock")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("tractd.toml")
    }

    /// The log of every daemon started here.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("tractd.log")
    }

    /// `--at` for `tractctl`.
    pub fn at(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// Puts a model folder (or a bare `model.onnx`) into the local models as NAME/VERSION.
    pub fn put_model(&self, from: &Path, name: &str, version: u64) {
        let to = self.models().join(name).join(version.to_string());
        copy(from, &to);
    }

    /// Starts a daemon here without waiting for it.
    pub fn spawn(&self) -> Daemon<'_> {
        self.spawn_with(&[])
    }

    /// The same, with these variables in its environment, this once.
    pub fn spawn_with(&self, environment: &[(&str, &str)]) -> Daemon<'_> {
        std::fs::write(self.config(), &self.config).expect("the configuration can be written");
        let tractd = crate::binary("tractd");
        let mut words = self.wrapper.iter();
        let mut command = match words.next() {
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(&tractd);
                command
            }
            None => Command::new(&tractd),
        };
        command.arg("--config").arg(self.config()).arg("--state").arg(self.state());
        command.arg("--socket").arg(self.socket()).arg("--models").arg(self.models());
        command.env_remove("TRACTD_SOCKET").env_remove("NOTIFY_SOCKET").env("RUST_LOG", "info");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.envs(environment.iter().copied());
        Daemon { process: Process::start(&mut command, &self.log()), home: self }
    }

    /// Starts a daemon here and waits until it has tried every model it found.
    ///
    /// # Panics
    /// When it ends or stays silent.
    pub fn start(&self) -> Daemon<'_> {
        self.start_with(&[])
    }

    /// The same, with these variables in its environment, this once.
    ///
    /// # Panics
    /// When it ends or stays silent.
    pub fn start_with(&self, environment: &[(&str, &str)]) -> Daemon<'_> {
        let mut daemon = self.spawn_with(environment);
        wait_for("the daemon's start", START, || {
            assert!(daemon.process.is_running(), "the daemon ended:\n{}", daemon.process.log());
            let mut socket = Socket::connect(&self.socket()).ok()?;
            let status: Value = serde_json::from_str(&socket.query(What::Status).ok()?).ok()?;
            (status["state"] == "ready").then_some(())
        });
        daemon
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon<'a> {
    /// The process.
    pub process: Process,
    /// What it runs on.
    pub home: &'a Home,
}

impl Daemon<'_> {
    /// A connection of its own.
    ///
    /// # Panics
    /// When nobody listens.
    pub fn connect(&self) -> Socket {
        Socket::connect(&self.home.socket()).expect("the daemon listens")
    }

    /// Asks over the socket.
    ///
    /// # Panics
    /// When there is no reply at all; refusals are replies.
    pub fn ask(&self, model: &str, input: Input) -> Reply {
        self.connect().infer(&request(model, input)).expect("the daemon replies")
    }

    /// The list of models.
    ///
    /// # Panics
    /// When the daemon does not answer with JSON.
    pub fn models(&self) -> Value {
        self.query(What::Models)
    }

    /// The status.
    ///
    /// # Panics
    /// When the daemon does not answer with JSON.
    pub fn status(&self) -> Value {
        self.query(What::Status)
    }

    fn query(&self, what: What) -> Value {
        let text = self.connect().query(what).expect("the daemon answers");
        serde_json::from_str(&text).expect("its answers are JSON")
    }

    /// Waits until `model` is served in `version`.
    ///
    /// # Panics
    /// When it isn't in time.
    pub fn wait_for_model(&self, model: &str, version: u64) {
        wait_for(&format!("{model} {version}"), START, || {
            (self.version_of(model) == Some(version)).then_some(())
        });
    }

    /// The version of a model that is served, if any is.
    pub fn version_of(&self, model: &str) -> Option<u64> {
        let models = self.models();
        let entry = models["models"].as_array()?.iter().find(|entry| entry["name"] == model)?.clone();
        (entry["state"] == "ready").then(|| entry["version"].as_u64()).flatten()
    }

    /// Has it ask its registry, and waits until `model` is served in `version`. What `tractctl` says must be that
    /// this one version was activated.
    ///
    /// # Panics
    /// When anything else comes of it.
    pub fn update_to(&self, model: &str, version: u64) {
        let said = tractctl(&["update", "check", "--at", &self.home.at()]).ok();
        assert_eq!(said, format!("activated {model}@{version}\n"));
        self.wait_for_model(model, version);
    }

    /// SIGHUP: look at the local models and the configuration again.
    pub fn reload(&self) {
        self.process.signal(Signal::HUP);
    }
}

/// A request with the defaults.
pub fn request(model: &str, input: Input) -> Request {
    Request { model: model.to_owned(), deadline_ms: 0, input, want: Want::ALL }
}

/// Copies a folder, or one file as `model.onnx`.
///
/// # Panics
/// When files cannot be read or written.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a temporary folder can be written");
    if from.is_file() {
        std::fs::copy(from, to.join("model.onnx")).expect("the model can be copied");
        return;
    }
    for entry in std::fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let path = entry.expect("the folder can be read").path();
        let name = path.file_name().expect("an entry has a name");
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            std::fs::copy(&path, to.join(name)).expect("the file can be copied");
        }
    }
}
