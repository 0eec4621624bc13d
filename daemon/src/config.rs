//! The configuration: one TOML file, its `conf.d/*.toml`, and nothing needed at all.
//!
//! Each file is parsed on its own first, so that a mistake is named with its file and line; then they are merged in
//! name order (tables merge, anything else is replaced) and turned into one checked [`Config`]. A key nobody reads
//! is collected, not swallowed: `tractd --check-config` refuses it, a running daemon warns of it.

use crate::{gateway, mqtt};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::ErrorKind,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the configuration is looked for when no `--config` names it; its absence is fine.
pub const DEFAULT_PATH: &str = "/etc/tractd/tractd.toml";

/// Largest configuration file read, in bytes: a device file given by mistake must not eat the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything that can be set. Every field has a default, so an empty file is a whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Folder of the store, the pinned root and the proofs. Default: `/var/lib/tractd` as root, else
    /// `$XDG_STATE_HOME/tractd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Folder of unsigned local models, `<name>/<version>/model.onnx` or `<name>/manifest.toml`. Default:
    /// `<state_dir>/models`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models_dir: Option<PathBuf>,
    /// Folder in which compiled models are kept, so that a restart is quick; safe to delete. Default: `$CACHE_DIRECTORY`,
    /// else `<state_dir>/cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Whether unsigned local models are loaded although a root is provisioned. Default: false.
    pub allow_unsigned: bool,
    /// Inference threads. Default: what the machine (or its CPU quota) has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<NonZeroUsize>,
    /// How long a stopping daemon finishes what it took on, in milliseconds. Default: 10,000.
    pub grace_ms: u64,
    /// Least severe level logged: error, warn, info, debug or trace; `RUST_LOG` wins. Default: info.
    pub log: log::LevelFilter,
    /// The Unix socket.
    pub socket: Socket,
    /// What is admitted.
    pub limits: Limits,
    /// The child process every model is tried in before it is loaded.
    pub proof: Proof,
    /// Updates from the registry the device was provisioned with.
    pub update: Update,
    /// The MQTT connection.
    pub mqtt: mqtt::Config,
    /// Serial lines with devices on them. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<gateway::Config>,
}

/// `[socket]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Socket {
    /// Path of the socket. Default: `$TRACTD_SOCKET`, else `/run/tractd/tractd.sock` as root, else
    /// `$XDG_RUNTIME_DIR/tractd/tractd.sock`, else `/tmp/tractd-<uid>/tractd.sock`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// User ids that may ask, beside root and the daemon's own. Default: empty; with `allow_gids` empty as well,
    /// whoever the socket's file mode lets in.
    pub allow_uids: Vec<u32>,
    /// Primary group ids that may ask. Default: empty.
    pub allow_gids: Vec<u32>,
    /// Connections held at once; one more is answered `busy` and closed. Default: 64.
    pub connections_max: NonZeroUsize,
    /// Requests one connection may have unanswered; one more is answered `busy`. Default: 128.
    pub inflight_max: NonZeroUsize,
    /// How long one frame may take to arrive, and one reply to be taken, in milliseconds. Default: 10,000.
    pub frame_timeout_ms: u64,
    /// How long a connection may stay silent with nothing in flight, in milliseconds. Default: 600,000.
    pub idle_timeout_ms: u64,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Largest body of one request, in bytes. Default: 67,108,864 (64 MiB).
    pub max_body_bytes: u32,
    /// Requests queued over all models. Default: 1,024.
    pub jobs: NonZeroUsize,
    /// Requests queued for one model. Default: 256.
    pub jobs_per_model: NonZeroUsize,
    /// Bytes of request bodies held at once. Default: 268,435,456 (256 MiB).
    pub queue_bytes: u64,
    /// Deadline of a request that names none, in milliseconds. Default: 10,000.
    pub deadline_ms: u32,
    /// Longest deadline granted, in milliseconds; a longer one is cut to it. Default: 300,000.
    pub deadline_ms_max: u32,
    /// Memory the loaded models may take together by their measured peaks, in bytes. Default: 80 % of the memory of
    /// the control group or the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// `[proof]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proof {
    /// Longest time a model may take to load and pass its self-test, in milliseconds, but for what it waits for a
    /// processor that others use (at most four times as long). Default: 60,000.
    pub wall_ms: u64,
    /// Most address space the child may map, in bytes. Default: 2,147,483,648 (2 GiB).
    pub address_space_bytes: u64,
}

/// `[update]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Update {
    /// Whether the registry is asked on its own schedule; asking by hand always works. Default: true.
    pub enabled: bool,
    /// Time between two checks, in seconds, spread by ±10 %. Default: 3,600.
    pub interval_s: u64,
    /// Addresses with the same files, asked in this order while the registry does not answer; at most 8. They need
    /// no trust. Read at the start. Default: none.
    pub mirrors: Vec<url::Url>,
    /// PEM file of the only authorities whose certificates count for an `https` registry. Read at the start.
    /// Default: those the system trusts.
    pub ca_file: Option<PathBuf>,
    /// How many times the latency of the version before a new one may take. Default: 3.
    pub slower_max: f64,
    /// How many times the memory of the version before a new one may take, beside 8 MiB. Default: 1.5.
    pub larger_max: f64,
    /// Largest archive fetched, in bytes, over a link that costs by the byte. Default: none, any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metered_bytes_max: Option<u64>,
    /// Whether the link costs by the byte: true, false, or "auto" for what NetworkManager says, and true where it says
    /// nothing. Default: true, so that the option above alone is enough.
    pub metered: Metered,
    /// Part of the answers in which a new version may differ from the one before, in percent. Default: 20.
    pub differ_percent_max: u32,
}

/// Whether the link costs by the byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Metered {
    /// It is known.
    Known(bool),
    /// The system is asked.
    Asked(Auto),
}

/// The word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// `"auto"`.
    Auto,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            state_dir: None,
            models_dir: None,
            cache_dir: None,
            allow_unsigned: false,
            workers: None,
            grace_ms: 10_000,
            log: log::LevelFilter::Info,
            socket: Socket::default(),
            limits: Limits::default(),
            proof: Proof::default(),
            update: Update::default(),
            mqtt: mqtt::Config::default(),
            gateway: Vec::new(),
        }
    }
}

impl Default for Socket {
    fn default() -> Self {
        Socket {
            path: None,
            allow_uids: Vec::new(),
            allow_gids: Vec::new(),
            connections_max: NonZeroUsize::new(64).expect("64 is not zero"),
            inflight_max: NonZeroUsize::new(128).expect("128 is not zero"),
            frame_timeout_ms: 10_000,
            idle_timeout_ms: 600_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_body_bytes: tractd_wire::BODY_LEN_MAX,
            jobs: NonZeroUsize::new(1024).expect("1024 is not zero"),
            jobs_per_model: NonZeroUsize::new(256).expect("256 is not zero"),
            queue_bytes: 256 << 20,
            deadline_ms: 10_000,
            deadline_ms_max: 300_000,
            memory_bytes: None,
        }
    }
}

impl Default for Proof {
    fn default() -> Self {
        Proof { wall_ms: 60_000, address_space_bytes: 2 << 30 }
    }
}

impl Default for Update {
    fn default() -> Self {
        Update {
            enabled: true,
            interval_s: 3_600,
            mirrors: Vec::new(),
            ca_file: None,
            metered_bytes_max: None,
            metered: Metered::Known(true),
            slower_max: 3.0,
            larger_max: 1.5,
            differ_percent_max: 20,
        }
    }
}

impl Config {
    /// Time a stopping daemon finishes what it took on.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    /// The whole configuration as TOML, defaults included.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every field of the configuration has a TOML form")
    }

    /// Values that parse but cannot work, the first of them.
    fn check(&self) -> Result<(), String> {
        let positive = [
            ("socket.frame_timeout_ms", self.socket.frame_timeout_ms),
            ("socket.idle_timeout_ms", self.socket.idle_timeout_ms),
            ("limits.max_body_bytes", self.limits.max_body_bytes.into()),
            ("limits.deadline_ms", self.limits.deadline_ms.into()),
            ("proof.wall_ms", self.proof.wall_ms),
            ("update.interval_s", self.update.interval_s),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(format!("{key} must be greater than 0"));
            }
        }
        for (key, factor) in
            [("update.slower_max", self.update.slower_max), ("update.larger_max", self.update.larger_max)]
        {
            if factor.is_nan() || factor < 1.0 {
                return Err(format!("{key} must be at least 1"));
            }
        }
        if self.limits.deadline_ms > self.limits.deadline_ms_max {
            return Err("limits.deadline_ms must not exceed limits.deadline_ms_max".into());
        }
        if u64::from(self.limits.max_body_bytes) > self.limits.queue_bytes {
            return Err("limits.max_body_bytes must not exceed limits.queue_bytes".into());
        }
        gateway::check(&self.gateway, self.limits.max_body_bytes)?;
        self.mqtt.check()
    }
}

/// A configuration as read, with the keys nobody reads.
#[derive(Debug)]
pub struct Read {
    /// The checked configuration.
    pub config: Config,
    /// `file: key` of each unknown key.
    pub unknown: Vec<String>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or its folder could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// Why it could not be.
        source: std::io::Error,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file at fault.
        path: PathBuf,
        /// The parser's message, with line and column.
        message: String,
    },
    /// Every file parses, but the values do not fit together.
    #[error("{0}")]
    Value(String),
}

/// Reads `path` and `conf.d/*.toml` beside it. Without `path`, [`DEFAULT_PATH`], which need not exist.
///
/// # Errors
/// An unreadable file, a type or syntax error, or values that cannot work. Unknown keys are no error here.
pub fn read(path: Option<&Path>) -> Result<Read, Error> {
    let main = path.unwrap_or(Path::new(DEFAULT_PATH));
    let mut files = Vec::new();
    match text(main) {
        Ok(text) => files.push((main.to_path_buf(), text)),
        Err(Error::Io { source, .. }) if path.is_none() && absent(&source) => {}
        Err(error) => return Err(error),
    }
    for file in fragments(&main.with_file_name("conf.d"))? {
        let text = text(&file)?;
        files.push((file, text));
    }
    merge(&files)
}

/// A folder in the way of `/etc/tractd` that we may not enter counts as absent for a daemon without root.
fn absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
}

fn text(path: &Path) -> Result<String, Error> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let length = fs::metadata(path).map_err(io)?.len();
    if length > FILE_BYTES_MAX {
        return Err(Error::Parse {
            path: path.to_path_buf(),
            message: format!("{length} bytes; at most {FILE_BYTES_MAX} are read"),
        });
    }
    fs::read_to_string(path).map_err(io)
}

fn fragments(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if absent(&error) => return Ok(Vec::new()),
        Err(source) => return Err(Error::Io { path: dir.to_path_buf(), source }),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    Ok(files)
}

fn merge(files: &[(PathBuf, String)]) -> Result<Read, Error> {
    let mut unknown = Vec::new();
    let mut merged = toml::Table::new();
    for (path, text) in files {
        let parse = |error: toml::de::Error| Error::Parse { path: path.clone(), message: error.to_string() };
        let deserializer = toml::Deserializer::parse(text).map_err(parse)?;
        let _: Config = serde_ignored::deserialize(deserializer, |key| {
            unknown.push(format!("{}: {key}", path.display()));
        })
        .map_err(parse)?;
        overlay(&mut merged, toml::from_str(text).map_err(parse)?);
    }
    let config: Config =
        merged.try_into().map_err(|error: toml::de::Error| Error::Value(error.to_string()))?;
    config.check().map_err(Error::Value)?;
    Ok(Read { config, unknown })
}

fn overlay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => overlay(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Read, Error> {
        merge(&[("t.toml".into(), text.into())])
    }

    #[test]
    fn empty_is_the_default() {
        assert_eq!(parse("").unwrap().config, Config::default());
    }

    #[test]
    fn effective_configuration_reads_back_equal() {
        let mut config =
            Config { state_dir: Some("/s".into()), workers: NonZeroUsize::new(3), ..Config::default() };
        config.socket.allow_gids = vec![7];
        let read = parse(&config.to_toml()).unwrap();
        assert_eq!(read.config, config);
        assert_eq!(read.unknown, Vec::<String>::new());
    }

    #[test]
    fn mirrors_and_authorities_of_the_registry_are_read() {
        let text = "[update]\nmirrors = [\"https://m.example/r\"]\nca_file = \"/etc/ca.pem\"\n";
        let update = parse(text).unwrap().config.update;
        assert_eq!(update.mirrors[0].as_str(), "https://m.example/r");
        assert_eq!(update.ca_file, Some("/etc/ca.pem".into()));
    }

    #[test]
    fn a_metered_link_is_known_or_asked_for() {
        let metered = |value: &str| {
            parse(&format!("[update]\nmetered = {value}")).map(|read| read.config.update.metered)
        };
        assert_eq!(metered("false").unwrap(), Metered::Known(false));
        assert_eq!(metered("\"auto\"").unwrap(), Metered::Asked(Auto::Auto));
        assert!(metered("\"perhaps\"").is_err());
    }

    #[test]
    fn unknown_keys_are_named_with_their_file() {
        let read = parse("grace = 1\n[socket]\nallow_uid = [1]\n").unwrap();
        assert_eq!(read.unknown, ["t.toml: grace", "t.toml: socket.allow_uid"]);
    }

    #[test]
    fn a_wrong_type_names_file_and_line() {
        let error = parse("\ngrace_ms = \"soon\"").unwrap_err().to_string();
        assert!(error.starts_with("t.toml: TOML parse error at line 2"), "{error}");
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        for (text, message) in [
            ("[limits]\ndeadline_ms = 0", "limits.deadline_ms must be greater than 0"),
            ("[limits]\ndeadline_ms = 400000", "limits.deadline_ms must not exceed limits.deadline_ms_max"),
            ("[update]\nslower_max = 0.5", "update.slower_max must be at least 1"),
            ("[update]\nlarger_max = nan", "update.larger_max must be at least 1"),
            ("[limits]\nqueue_bytes = 1", "limits.max_body_bytes must not exceed limits.queue_bytes"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn fragments_override_in_name_order_and_tables_merge() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("tractd.toml");
        fs::write(&main, "grace_ms = 1\n[socket]\nallow_uids = [1]\ninflight_max = 5\n").unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        fs::write(dir.path().join("conf.d/20.toml"), "grace_ms = 3\n").unwrap();
        fs::write(dir.path().join("conf.d/10.toml"), "grace_ms = 2\n[socket]\nallow_uids = [2]\n").unwrap();
        fs::write(dir.path().join("conf.d/30.toml.bak"), "grace_ms = 4\n").unwrap();
        let config = read(Some(&main)).unwrap().config;
        assert_eq!(config.grace_ms, 3);
        assert_eq!(config.socket.allow_uids, [2]);
        assert_eq!(config.socket.inflight_max.get(), 5);
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = read(Some(Path::new("/nonexistent/tractd.toml"))).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/tractd.toml: No such file or directory (os error 2)");
    }
}
