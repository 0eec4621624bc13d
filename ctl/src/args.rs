//! What can be typed: every verb, its options, and one example that can be pasted.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::at::At;

mod registry;

pub(crate) use registry::{
    Change, Keys, Registry, RegistryAdd, RegistryDelegate, RegistryInit, RegistryKey, RegistryKeyNew,
    RegistryPlace, RegistryPublish, RegistryRefresh, RegistryRevoke, RegistryRotate, RegistryServe,
    RegistrySign, RegistryStatus, RegistryVerify, Rollout, RolloutSteer,
};

/// Run models through tractd, pack them, publish them, and provision devices.
#[derive(Debug, Parser)]
#[command(name = "tractctl", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Send one input to a model and print its answer
    Infer(Infer),
    /// List the models a daemon serves
    Models(Ask),
    /// Show a daemon's health, counters and latencies
    Status(Ask),
    /// Watch nodes and their models on a broker
    Watch(Watch),
    /// Look at what commonly goes wrong on this machine and its broker, and say what to change
    Doctor(Doctor),
    /// Pack a model folder into one deterministic bundle file
    Pack(Pack),
    /// Show what runs a model's nodes: our int8 kernels, or tract, and why
    Inspect(Inspect),
    /// Keep a signed registry of models (plain static files)
    #[command(subcommand)]
    Registry(Registry),
    /// Say which devices run which model, and steer it while it is under way
    #[command(subcommand)]
    Rollout(Rollout),
    /// Give a device its root of trust, its registry and its name
    #[command(subcommand)]
    Device(Device),
    /// Ask a daemon about updates
    #[command(subcommand)]
    Update(Update),
    /// Measure the engine, or a daemon next to what it is compared with
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tractctl infer digits --image seven.png
  tractctl infer digits --input seven.npy --at mqtt://broker.local:1883/kitchen
  tractctl infer digits@2 --json request.json --json | jq .classes

A request file is {\"inputs\": {\"NAME\": [nested numbers]}}, or the nested numbers alone where the
model has one input. `-` reads standard input.")]
pub(crate) struct Infer {
    /// Model, or model@version, or model@label
    pub(crate) model: String,
    /// JPEG or PNG; the daemon resizes and normalises it as the model declares
    #[arg(long, value_name = "FILE", group = "source")]
    pub(crate) image: Option<PathBuf>,
    /// NumPy array (.npy), little-endian, row-major
    #[arg(long, value_name = "FILE.npy", group = "source")]
    pub(crate) input: Option<PathBuf>,
    /// With FILE: a request as JSON. Alone: print the answer as JSON
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "", action = clap::ArgAction::Append)]
    pub(crate) json: Vec<String>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Give up after this many milliseconds (the daemon refuses work it cannot finish in time)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) deadline_ms: Option<u32>,
    /// How many classes to print, best first
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) top: u16,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tractctl models
  tractctl status --json | jq .
  tractctl status --at unix:/run/tractd/tractd.sock")]
pub(crate) struct Ask {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Print the daemon's JSON as it is
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tractctl watch --at mqtt://broker.local            # all nodes, as a table that lives
  tractctl watch --at mqtt://broker.local/kitchen-1 --json | jq .
  tractctl watch --at mqtt://broker.local --once     # what is known now, and no more

On a terminal a table, otherwise a line for each change.")]
pub(crate) struct Watch {
    /// mqtt[s]://[user@]host[:port][/node]; without a node, all of them
    #[arg(long, value_name = "WHERE", default_value = "mqtt://127.0.0.1")]
    pub(crate) at: At,
    /// Topic prefix on the broker
    #[arg(long, value_name = "PREFIX", default_value = tractd_wire::topic::Prefix::DEFAULT.as_str())]
    pub(crate) prefix: String,
    /// Print what the broker keeps and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Print one JSON object for each message
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tractctl doctor
  tractctl doctor --broker mqtts://broker.local --at unix:/run/tractd/tractd.sock --json

Ends with 1 when something is wrong; advice alone ends with 0.")]
pub(crate) struct Doctor {
    /// unix:PATH [default: TRACTD_SOCKET, then the system's socket, then the user's]
    #[arg(long, value_name = "WHERE")]
    pub(crate) at: Option<At>,
    /// mqtt[s]://[user@]host[:port]
    #[arg(long, value_name = "WHERE", default_value = "mqtt://127.0.0.1")]
    pub(crate) broker: At,
    /// Topic prefix on the broker
    #[arg(long, value_name = "PREFIX", default_value = tractd_wire::topic::Prefix::DEFAULT.as_str())]
    pub(crate) prefix: String,
    #[command(flatten)]
    pub(crate) state: State,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which daemon is meant.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// unix:PATH or mqtt[s]://[user@]host[:port][/node] (password: TRACTD_MQTT_PASSWORD; PEM files
    /// for TLS: TRACTD_MQTT_CA, TRACTD_MQTT_CERT, TRACTD_MQTT_KEY); default: TRACTD_SOCKET, then the system's socket, then the user's
    #[arg(long, value_name = "WHERE")]
    pub(crate) at: Option<At>,
    /// Topic prefix on the broker
    #[arg(long, value_name = "PREFIX", default_value = tractd_wire::topic::Prefix::DEFAULT.as_str())]
    pub(crate) prefix: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl pack models/digits            # writes digits-1.tractd.tar.zst here

The same folder always gives the same bytes, on every machine.")]
pub(crate) struct Pack {
    /// Folder with manifest.toml and model.onnx
    pub(crate) dir: PathBuf,
    /// File or existing folder to write to [default: NAME-VERSION.tractd.tar.zst]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl inspect models/digits/1
  tractctl inspect models/digits/1 --kernels avx2 --json | jq .outside")]
pub(crate) struct Inspect {
    /// Model folder, with a manifest or with a lone model.onnx in NAME/VERSION/
    pub(crate) dir: PathBuf,
    /// Pack for this tier instead of the best that this machine has
    #[arg(long, value_name = "TIER")]
    pub(crate) kernels: Option<tractd_engine::Tier>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Device {
    /// Pin a root of trust, a registry and a name into a device's state folder
    Provision(DeviceProvision),
    /// Show what a device was provisioned with
    Show(DeviceShow),
    /// Forget the provisioning; installed models stay on disk
    Reset(DeviceReset),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl device provision --root registry/metadata/1.root.json \\
      --registry http://registry.local:8080 --node kitchen-1 --group kitchen")]
pub(crate) struct DeviceProvision {
    /// Root metadata to pin (from a place you trust, not from the registry's own server)
    #[arg(long, value_name = "FILE")]
    pub(crate) root: PathBuf,
    /// http://, https:// or file:// address of the registry, or its folder
    #[arg(long, value_name = "URL")]
    pub(crate) registry: String,
    /// The device's own name on MQTT and in rollouts [default: a hash of its machine id]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// The group whose rollouts it follows
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) group: String,
    #[command(flatten)]
    pub(crate) state: State,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl device show --state /var/lib/tractd")]
pub(crate) struct DeviceShow {
    #[command(flatten)]
    pub(crate) state: State,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl device reset --state /var/lib/tractd

For a device that goes to other hands, or a card cloned from another: provision it anew afterwards.")]
pub(crate) struct DeviceReset {
    #[command(flatten)]
    pub(crate) state: State,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct State {
    /// The daemon's state folder [default: /var/lib/tractd as root, else ~/.local/state/tractd]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Update {
    /// Have the daemon ask its registry now
    #[command(after_help = "Example:
  tractctl update check")]
    Check(Ask),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// How fast a model runs in this process
    Engine(BenchEngine),
    /// What the daemon's socket adds to a call within the process
    Serve(BenchServe),
    /// What the daemon adds to a bare echo through the same broker
    Mqtt(BenchMqtt),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tractctl bench engine models/digits/1
  taskset -c 1 tractctl bench engine mobilenet.onnx --kernels avx2 --json | jq .median_us

Timed is a session's run with tensors into the answer of the run before: its checks, the graph, and for what tract runs the
copies in and out.
Calls shorter than 20 µs are timed in groups, so that the clock does not count. load_ms is from opening the model's files
to the first answer, without the start of the process; peak_rss_kb is the process's. One thread; pinning it is up to you.")]
pub(crate) struct BenchEngine {
    /// ONNX file, or a model folder
    pub(crate) model: PathBuf,
    /// Arrays by input name (.npz), or a lone input's (.npy) [default: the first golden input, else seeded noise
    /// with 1 for each free dimension]
    #[arg(long, value_name = "IN.npz")]
    pub(crate) input: Option<PathBuf>,
    /// Write the outputs there, by name
    #[arg(long, value_name = "OUT.npz")]
    pub(crate) output: Option<PathBuf>,
    /// Pack for this tier instead of the best that this machine has
    #[arg(long, value_name = "TIER")]
    pub(crate) kernels: Option<tractd_engine::Tier>,
    /// Folder of compiled models: what is found there is loaded, what is not is put there
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Leave the whole model to tract, for comparison
    #[arg(long, conflicts_with = "kernels")]
    pub(crate) stock: bool,
    /// Timed samples [default: what a second holds, at least 20]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=10_000_000))]
    pub(crate) runs: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl bench serve --bundle models/digits/1")]
pub(crate) struct BenchServe {
    #[command(flatten)]
    pub(crate) source: BenchSource,
    /// unix:PATH [default: TRACTD_SOCKET, then the system's socket, then the user's]
    #[arg(long, value_name = "WHERE")]
    pub(crate) at: Option<At>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl bench mqtt --bundle models/digits/1 --at mqtt://127.0.0.1:1883/kitchen-1")]
pub(crate) struct BenchMqtt {
    #[command(flatten)]
    pub(crate) source: BenchSource,
    /// mqtt://[user@]host[:port]/node
    #[arg(long, value_name = "WHERE")]
    pub(crate) at: At,
    /// Topic prefix on the broker
    #[arg(long, value_name = "PREFIX", default_value = tractd_wire::topic::Prefix::DEFAULT.as_str())]
    pub(crate) prefix: String,
    /// Hold the echo client to this processor, as `taskset` may the daemon
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(..1024))]
    pub(crate) echo_core: Option<usize>,
}

/// What every benchmark sends.
#[derive(Debug, Args)]
pub(crate) struct BenchSource {
    /// Folder of the bundle that the daemon serves too; its first golden input is sent, seeded noise where it has none
    #[arg(long, value_name = "DIR")]
    pub(crate) bundle: PathBuf,
    /// Send this JPEG or PNG instead
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Counted runs of each side
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub(crate) runs: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
