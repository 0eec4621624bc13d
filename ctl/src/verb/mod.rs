//! The verbs. Each file is one of them: what was typed in, what is printed out.

mod bench;
mod device;
mod doctor;
mod infer;
mod inspect;
mod keys;
mod pack;
mod registry;
mod rollout;
mod see;
mod watch;

use tractd_engine::Tier;
use tractd_registry::Action;
use tractd_wire::topic::Prefix;

use crate::args::{Device, Registry, RegistryKey, Rollout, Update, Verb};
use crate::at::{At, default_at};
use crate::socket::Socket;

/// Why a verb did not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A daemon said no; what it said is printed already.
    Refused,
    /// What was typed cannot be meant.
    Usage(String),
    /// Anything else.
    Error(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Does what was asked for.
pub(crate) fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Infer(args) => infer::infer(args),
        Verb::Models(ask) => see::models(&ask),
        Verb::Status(ask) => see::status(&ask),
        Verb::Watch(args) => watch::watch(&args),
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Pack(args) => pack::pack(&args),
        Verb::Inspect(args) => inspect::inspect(&args),
        Verb::Registry(Registry::Init(args)) => registry::init(&args),
        Verb::Registry(Registry::Key(RegistryKey::New(args))) => keys::new(&args),
        Verb::Registry(Registry::Key(RegistryKey::List(args))) => keys::list(&args),
        Verb::Registry(Registry::Delegate(args)) => keys::delegate(&args),
        Verb::Registry(Registry::Rotate(args)) => keys::rotate(&args),
        Verb::Registry(Registry::Revoke(args)) => keys::revoke(&args),
        Verb::Registry(Registry::Sign(args)) => keys::sign(&args),
        Verb::Registry(Registry::Verify(args)) => registry::verify(&args),
        Verb::Registry(Registry::Add(args)) => registry::add(&args),
        Verb::Registry(Registry::Publish(args)) => registry::publish(&args),
        Verb::Registry(Registry::Refresh(args)) => registry::refresh(&args),
        Verb::Registry(Registry::Status(args)) => registry::status(&args),
        Verb::Registry(Registry::Serve(args)) => registry::serve(&args),
        Verb::Rollout(Rollout::Start(args)) => registry::publish(&args),
        Verb::Rollout(Rollout::Pause(args)) => rollout::steer(&args, Action::Pause),
        Verb::Rollout(Rollout::Resume(args)) => rollout::steer(&args, Action::Resume),
        Verb::Rollout(Rollout::Next(args)) => rollout::steer(&args, Action::Next),
        Verb::Rollout(Rollout::Abort(args)) => rollout::steer(&args, Action::Abort),
        Verb::Rollout(Rollout::Status(args)) => rollout::status(&args),
        Verb::Device(Device::Provision(args)) => device::provision(&args),
        Verb::Device(Device::Show(args)) => device::show(&args),
        Verb::Device(Device::Reset(args)) => device::reset(&args),
        Verb::Update(Update::Check(ask)) => see::check_updates(&ask),
        Verb::Bench(verb) => bench::bench(&verb),
    }
}

/// A connection to the daemon meant, for verbs that only the socket answers.
fn connect(at: Option<&At>, prefix: &str) -> Result<Socket, Failure> {
    match at.cloned().unwrap_or_else(default_at) {
        At::Unix(path) => Ok(Socket::connect(&path)?),
        at @ At::Mqtt { .. } => {
            let other = if prefix == Prefix::DEFAULT.as_str() {
                String::new()
            } else {
                format!(" --prefix {prefix}")
            };
            Err(Failure::Usage(format!(
                "this verb asks a socket (--at unix:PATH); over MQTT a node tells of itself: \
                 tractctl watch --at {at}{other}"
            )))
        }
    }
}

/// The tier asked for, if this machine has it; else its best.
fn tier(asked: Option<Tier>) -> Result<Tier, Failure> {
    let tier = asked.unwrap_or_else(Tier::detect);
    if tier.is_available() {
        return Ok(tier);
    }
    let here: Vec<_> = Tier::available().map(Tier::name).collect();
    Err(Failure::Usage(format!("--kernels {}: this machine has {}", tier.name(), here.join(", "))))
}
