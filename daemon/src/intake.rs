//! Where every transport ends: a [`Request`] goes in, exactly one [`Reply`] comes out.
//!
//! Nothing behind this file knows where a request came from, and nothing before it knows about models.

use crate::{
    floor::Floor,
    trial::{Answer, Watch},
};
use bytes::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use tractd_bundle::Digest;
use tractd_engine::{Class, Tensor, Timings};
use tractd_wire::{DType, Priority, Status, Want};

/// A cheap handle through which requests are handed in.
#[derive(Clone)]
pub struct Intake {
    floor: Arc<Floor>,
}

/// One question to one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Model selector: `digits`, `digits@7`, `digits@canary`.
    pub model: String,
    /// How long the answer is worth waiting for; `None` is the daemon's default.
    pub deadline: Option<Duration>,
    /// Its place among requests to the same model.
    pub priority: Priority,
    /// What is asked about.
    pub payload: Payload,
    /// Which kinds of answer are wanted.
    pub want: Want,
    /// Who asks, for the counters.
    pub origin: Origin,
}

/// The input of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// Tensors; `body` holds their little-endian bytes one after another, in the order of `descs`.
    Tensors {
        /// Name, type and shape of each tensor; their sizes add up to the length of `body`.
        descs: Vec<TensorDesc>,
        /// The bytes of all tensors.
        body: Bytes,
    },
    /// One JPEG or PNG file.
    Media(Bytes),
}

impl Payload {
    /// Bytes held while the request waits.
    pub fn bytes(&self) -> u64 {
        self.body().len() as u64
    }

    /// Whether the bytes are a part of a buffer others hold, too, of whatever size.
    pub(crate) fn is_shared(&self) -> bool {
        !self.body().is_unique()
    }

    /// Gives the bytes a buffer of their own: a queue must hold no more memory than it counts.
    pub(crate) fn detach(&mut self) {
        let (Payload::Tensors { body, .. } | Payload::Media(body)) = self;
        *body = Bytes::copy_from_slice(body);
    }

    fn body(&self) -> &Bytes {
        let (Payload::Tensors { body, .. } | Payload::Media(body)) = self;
        body
    }
}

/// Name, type and shape of one input tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDesc {
    /// Input name; may be empty when the model has one input.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major shape.
    pub shape: Vec<u32>,
}

/// How much of its time the thread that brings a request may spend on running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spare {
    /// Nothing: the run is somebody else's.
    None,
    /// Little: more has come in already.
    Some,
    /// As much as others don't notice: nothing else is there to do.
    Plenty,
}

/// Which transport a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The Unix socket.
    Socket {
        /// User id of the peer.
        uid: u32,
    },
    /// MQTT.
    Mqtt,
    /// A serial line.
    Serial,
}

/// The one answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    /// `Status::Ok`, or why there is no result.
    pub status: Status,
    /// Name of the model that answered, or the selector asked for when none did.
    pub model: Arc<str>,
    /// Version of the model that answered; 0 when none did.
    pub version: u64,
    /// Digest of the model that answered; zeros when none did.
    pub digest: Digest,
    /// Whether that model came signed from the registry.
    pub signed: bool,
    /// Time waited for a worker, in microseconds.
    pub queue_us: u32,
    /// Time in the worker.
    pub timings: Timings,
    /// When to ask again, in milliseconds; 0 when asking again is no use.
    pub retry_after_ms: u32,
    /// What went wrong and what to do about it; empty when nothing did.
    pub detail: String,
    /// The output tensors, when asked for.
    pub tensors: Vec<Tensor>,
    /// The best classes, when asked for and the model has them.
    pub classes: Vec<Class>,
}

impl Reply {
    /// An answer without a result.
    pub fn refusal(status: Status, model: &str, detail: impl Into<String>) -> Reply {
        Reply {
            status,
            model: model.into(),
            version: 0,
            digest: Digest([0; 32]),
            signed: false,
            queue_us: 0,
            timings: Timings::default(),
            retry_after_ms: 0,
            detail: detail.into(),
            tensors: Vec::new(),
            classes: Vec::new(),
        }
    }

    /// The same, with when to ask again.
    pub fn retry_after(self, retry_after_ms: u32) -> Reply {
        Reply { retry_after_ms, ..self }
    }
}

/// Where a reply goes. A connection takes all its replies through one channel, which saves a task per request.
pub(crate) enum ReplyTo {
    Once(oneshot::Sender<Reply>),
    Connection(Line),
    /// A copy for a version on trial: compared with what the client was answered, and nobody's otherwise.
    Shadow(Arc<Watch>, Answer),
}

/// A connection's channel, for one answer.
pub(crate) struct Line {
    pub(crate) id: u64,
    /// Unbounded, but never longer than the connection's bound of unanswered frames.
    pub(crate) outgoing: mpsc::UnboundedSender<(u64, Outgoing)>,
    /// Memory the request's body takes, given back with the reply.
    pub(crate) hold: Option<Hold>,
}

/// What goes out on a connection.
pub(crate) enum Outgoing {
    Reply(Reply),
    Answer { status: Status, detail: String, json: Vec<u8> },
}

/// Bytes taken from a budget until it is dropped.
pub(crate) struct Hold {
    budget: Arc<AtomicU64>,
    bytes: u64,
}

impl Hold {
    /// Takes `bytes`, unless that makes more than `bytes_max` together.
    pub(crate) fn take(budget: &Arc<AtomicU64>, bytes: u64, bytes_max: u64) -> Option<Hold> {
        let take = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= bytes_max);
        budget.fetch_update(Relaxed, Relaxed, take).ok()?;
        Some(Hold { budget: budget.clone(), bytes })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.fetch_sub(self.bytes, Relaxed);
    }
}

impl ReplyTo {
    /// Sends the reply; a peer that is gone no longer wants it.
    pub(crate) fn send(self, reply: Reply) {
        match self {
            ReplyTo::Once(sender) => drop(sender.send(reply)),
            ReplyTo::Connection(line) => line.send(Outgoing::Reply(reply)),
            ReplyTo::Shadow(watch, answer) => {
                for seen in answer.compared(&reply) {
                    watch.observe(seen);
                }
            }
        }
    }

    /// Whether nobody waits for the reply any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            ReplyTo::Once(sender) => sender.is_closed(),
            ReplyTo::Connection(line) => line.outgoing.is_closed(),
            ReplyTo::Shadow(..) => false,
        }
    }
}

impl Line {
    pub(crate) fn send(self, outgoing: Outgoing) {
        drop(self.hold);
        drop(self.outgoing.send((self.id, outgoing)));
    }
}

impl Intake {
    /// An intake onto `floor`.
    pub(crate) fn new(floor: Arc<Floor>) -> Intake {
        Intake { floor }
    }

    /// Hands in a request. It is answered exactly once: a result, a refusal (at once) or its expiry. Dropping the
    /// receiver cancels it, unless it already runs.
    pub fn submit(&self, request: Request) -> oneshot::Receiver<Reply> {
        let (sender, receiver) = oneshot::channel();
        self.hand_in(request, ReplyTo::Once(sender), Spare::None);
        receiver
    }

    /// Counts a refusal a transport made itself, of something that never became a request.
    pub fn count_refusal(&self, status: Status) {
        self.floor.outcomes.count(status);
    }

    /// Microseconds since the start.
    pub(crate) fn now_us(&self) -> u64 {
        self.floor.now().0
    }

    /// What a client that asks too much is told to wait, in milliseconds.
    pub(crate) fn retry_after_ms(&self) -> u32 {
        self.floor.retry_after_ms()
    }

    /// Hands in a request whose reply goes to a connection's channel, and runs it at once if it is short.
    pub(crate) fn submit_to(&self, request: Request, line: Line, spare: Spare) {
        self.hand_in(request, ReplyTo::Connection(line), spare);
    }

    fn hand_in(&self, request: Request, reply: ReplyTo, spare: Spare) {
        if let Some(run) = self.floor.submit(request, reply, spare) {
            run.carry_out(&self.floor);
        }
    }
}
