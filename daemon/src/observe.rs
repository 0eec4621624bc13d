//! What the daemon tells about itself: the models and the status, as JSON. Both are a contract; `tests/status.rs`
//! holds them.

use crate::{
    certificates::{Certificate, Certificates},
    fleet,
    floor::{Floor, Loaded},
    gateway, socket, stats,
    updates::{self, UpdateStatus},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use tokio::sync::watch;
use tractd_bundle::{Dim, TensorSpec};

/// A cheap handle on what the daemon tells about itself.
#[derive(Clone)]
pub struct Observer {
    pub(crate) node: Arc<str>,
    pub(crate) floor: Arc<Floor>,
    pub(crate) fleet: Arc<fleet::Board>,
    pub(crate) updates: Arc<updates::Board>,
    pub(crate) socket: Arc<socket::Counters>,
    pub(crate) connections_max: usize,
    pub(crate) gateways: Arc<[Arc<gateway::Board>]>,
    pub(crate) certificates: Arc<Certificates>,
}

/// The list of models.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Models {
    pub(crate) models: Vec<Model>,
}

/// One version of a model: served, or why not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Model {
    name: String,
    /// Absent when not even that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    signed: bool,
    /// `ready`, `loading`, `quarantined` or `failed`.
    state: &'static str,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What a roll-back would put in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_version: Option<u64>,
    /// The rest is known of loaded models only.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Details {
    description: String,
    /// Whether one JPEG or PNG is understood as its input.
    takes_media: bool,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    labels: Vec<Arc<str>>,
    /// Memory measured in its trial.
    peak_ram_bytes: u64,
    weight_bytes: u64,
    /// Golden vectors that held in its trial.
    golden: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Tensor {
    name: String,
    dtype: &'static str,
    /// Row-major; a free dimension is its name.
    shape: Vec<serde_json::Value>,
}

/// The whole status.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Status {
    version: &'static str,
    node: Arc<str>,
    /// `starting`, `ready` or `draining`.
    state: &'static str,
    pid: u32,
    uptime_ms: u64,
    workers: usize,
    /// The tier of the int8 kernels; what they cannot take runs on tract.
    kernels: &'static str,
    memory: Memory,
    queue: Queue,
    connections: Connections,
    /// Serial lines, as configured.
    gateways: Vec<gateway::LineStatus>,
    /// Requests taken in, over all transports.
    requests: u64,
    /// Replies by status name, refusals of unreadable frames included.
    replies: BTreeMap<&'static str, u64>,
    update: UpdateStatus,
    /// Those of servers as last seen, and those named in the configuration.
    certificates: Vec<Certificate>,
    models: Vec<ModelStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Memory {
    rss_bytes: u64,
    /// By the measured peaks of what is loaded, and the limit it is held to.
    models_bytes: u64,
    models_bytes_max: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Queue {
    jobs: usize,
    jobs_max: usize,
    bytes: u64,
    bytes_max: u64,
    running: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Connections {
    open: usize,
    open_max: usize,
    accepted: u64,
    turned_away: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ModelStatus {
    name: Arc<str>,
    version: u64,
    digest: String,
    signed: bool,
    state: &'static str,
    queued: usize,
    /// Replies by status name since the daemon started, over all versions.
    replies: BTreeMap<&'static str, u64>,
    abandoned: u64,
    latency: stats::LatencyReport,
}

impl Observer {
    /// `{"models": […], "updates": {…}}`: what is served, being loaded, or refused and why; and how far each
    /// model's latest version is.
    pub fn models(&self) -> serde_json::Value {
        let mut models = to_json(&self.models_list());
        models["updates"] = to_json(&self.updates.status().models);
        models
    }

    /// Everything there is to tell: state, memory, queue, counters, updates, latencies.
    pub fn status(&self) -> serde_json::Value {
        to_json(&self.status_report())
    }

    /// Counts up whenever a model is loaded, swapped, refused or quarantined.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.floor.changes()
    }

    fn models_list(&self) -> Models {
        let board = self.fleet.content().clone();
        let mut models: Vec<Model> = Vec::new();
        for (loaded, quarantined, _) in self.floor.all_loaded() {
            models.push(served(&loaded, quarantined, &board));
        }
        for name in &board.loading {
            models.push(absent(name, None, false, "loading", None));
        }
        for (name, failure) in &board.failures {
            let mut model =
                absent(name, failure.version, failure.signed, "failed", Some(failure.reason.clone()));
            model.digest = failure.digest.map(|digest| digest.to_string());
            models.push(model);
        }
        // What answers to a name comes first: a reader who looks for a name finds that.
        let rank = |model: &Model| {
            ["ready", "quarantined", "loading", "failed"].iter().position(|s| *s == model.state)
        };
        models.sort_by(|a, b| (&a.name, rank(a), a.version).cmp(&(&b.name, rank(b), b.version)));
        Models { models }
    }

    fn status_report(&self) -> Status {
        let stats = self.floor.stats();
        let limits = &self.floor.limits;
        let mut models: Vec<ModelStatus> = self
            .floor
            .all_loaded()
            .into_iter()
            .map(|(loaded, quarantined, queued)| ModelStatus {
                name: loaded.name.clone(),
                version: loaded.plan.version(),
                digest: loaded.plan.digest().to_string(),
                signed: loaded.signed,
                state: state_of(quarantined),
                queued,
                replies: loaded.stats.outcomes.by_name(),
                abandoned: loaded.stats.abandoned.load(Relaxed),
                latency: loaded.stats.latency(),
            })
            .collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Status {
            version: env!("CARGO_PKG_VERSION"),
            node: self.node.clone(),
            state: match (self.floor.is_draining(), self.floor.is_starting()) {
                (true, _) => "draining",
                (_, true) => "starting",
                _ => "ready",
            },
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.floor.uptime().as_millis()).unwrap_or(u64::MAX),
            workers: limits.workers,
            kernels: tractd_engine::Tier::detect().name(),
            memory: Memory {
                rss_bytes: rss_bytes(),
                models_bytes: stats.memory_bytes,
                models_bytes_max: limits.memory_bytes,
            },
            queue: Queue {
                jobs: stats.queued,
                jobs_max: limits.jobs,
                bytes: stats.queued_bytes,
                bytes_max: limits.bytes,
                running: stats.running,
            },
            connections: Connections {
                open: self.socket.open.load(Relaxed),
                open_max: self.connections_max,
                accepted: self.socket.accepted.load(Relaxed),
                turned_away: self.socket.turned_away.load(Relaxed),
            },
            gateways: self.gateways.iter().map(|line| line.status()).collect(),
            requests: self.floor.requests.load(Relaxed),
            replies: self.floor.outcomes.by_name(),
            update: self.updates.status().clone(),
            certificates: self.certificates.report(),
            models,
        }
    }
}

fn to_json(content: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(content).expect("every field has a JSON form and every map has text keys")
}

fn served(loaded: &Loaded, quarantined: bool, board: &fleet::BoardContent) -> Model {
    let plan = &loaded.plan;
    let description = plan.bundle().manifest.as_ref().map(|manifest| manifest.description.clone());
    Model {
        name: loaded.name.to_string(),
        version: Some(plan.version()),
        digest: Some(plan.digest().to_string()),
        signed: loaded.signed,
        state: state_of(quarantined),
        reason: quarantined.then(|| "it crashed on a request; SIGHUP gives it another try".into()),
        previous_version: board.previous.get(&*loaded.name).copied().filter(|_| loaded.signed),
        details: Some(Details {
            description: description.unwrap_or_default(),
            takes_media: plan.takes_media(),
            inputs: plan.inputs().iter().map(|input| tensor(&input.tensor)).collect(),
            outputs: plan.outputs().iter().map(|output| tensor(&output.tensor)).collect(),
            labels: plan.labels().to_vec(),
            peak_ram_bytes: loaded.peak_bytes,
            weight_bytes: plan.weight_bytes(),
            golden: board.golden.get(&plan.digest()).copied().unwrap_or(0),
        }),
    }
}

fn absent(
    name: &str,
    version: Option<u64>,
    signed: bool,
    state: &'static str,
    reason: Option<String>,
) -> Model {
    let (digest, previous_version, details) = (None, None, None);
    Model { name: name.to_owned(), version, digest, signed, state, reason, previous_version, details }
}

fn state_of(quarantined: bool) -> &'static str {
    if quarantined { "quarantined" } else { "ready" }
}

fn tensor(spec: &TensorSpec) -> Tensor {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(size) => (*size).into(),
        Dim::Free(name) => name.clone().into(),
    };
    Tensor { name: spec.name.clone(), dtype: spec.dtype.name(), shape: spec.shape.iter().map(dim).collect() }
}

/// Resident memory; 0 where /proc does not tell.
fn rss_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(rustix::param::page_size() as u64)
}
