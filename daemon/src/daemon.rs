//! From the configuration to a running daemon and back: what is started in which order, the signals, and the end.

use crate::{
    arguments::Arguments,
    certificates::Certificates,
    config::{self, Config},
    connection::{Desk, Turns},
    fleet::{self, Fleet, Sources},
    floor::{BEAT, Floor},
    gateway,
    intake::Intake,
    logging, machine, mqtt,
    observe::Observer,
    place::{Heart, RUN_MAX},
    proofs::Proofs,
    socket::{self, Bound},
    updates::{self, Updates},
    workers::{Pulse, Workers},
};
use anyhow::Context as _;
use sd_notify::NotifyState;
use std::{
    fs::DirBuilder,
    future::pending,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tractd_scheduler::Limits;

/// Threads that move bytes. Two, so that one large frame does not hold up the others; the models need the rest.
const IO_THREADS: usize = 2;

/// Time connections and MQTT have to bring their last replies home after the last request was answered.
const FAREWELL: Duration = Duration::from_secs(3);

/// Name of a node whose own cannot be made out.
const NAMELESS: &str = "node";

/// Runs the daemon until a signal ends it.
pub(crate) fn run(arguments: &Arguments, mut config: Config) -> anyhow::Result<()> {
    arguments.apply(&mut config);
    let state_dir = config.state_dir.clone().unwrap_or_else(machine::default_state_dir);
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(&state_dir) {
        log::warn!("{}: {error}; nothing will be remembered", state_dir.display());
    }
    let socket = config.socket.path.clone().unwrap_or_else(socket::default_path);
    let (bound, place) = match Bound::from_systemd().context("the socket systemd passed")? {
        Some(bound) => (bound, "as passed by systemd".to_owned()),
        None => (Bound::bind(&socket)?, socket.display().to_string()),
    };

    let limits = Limits {
        jobs_per_model: config.limits.jobs_per_model.get(),
        jobs: config.limits.jobs.get(),
        bytes: config.limits.queue_bytes,
        workers: config.workers.unwrap_or_else(machine::processors).get(),
        memory_bytes: config.limits.memory_bytes.unwrap_or_else(machine::models_memory_bytes),
    };
    let floor = Floor::new(limits, &config.limits);
    let mut workers = Workers::start(&floor).context("starting the workers")?;
    // It may be inside a run, as a worker.
    let mqtt_heart = workers.heart(RUN_MAX);

    let device = updates::device(&state_dir);
    let named = config.mqtt.node.clone();
    let node = named.unwrap_or_else(|| node(device.as_ref().ok().and_then(Option::as_ref)));
    let certificates = Arc::new(Certificates::new(&config, tractd_update::time_floor_s(&state_dir)));
    let (background, ready) = Background::start(&config, &state_dir, &floor, device, &certificates)?;
    let observer = Observer {
        node: node.clone().into(),
        floor: floor.clone(),
        fleet: background.fleet_board.clone(),
        updates: background.updates_board.clone(),
        socket: Arc::default(),
        connections_max: config.socket.connections_max.get(),
        gateways: config.gateway.iter().map(|line| Arc::new(gateway::Board::new(line))).collect(),
        certificates,
    };
    log::info!(
        node, workers = limits.workers, kernels = tractd_engine::Tier::detect().name(), socket:% = place, state:% = state_dir.display();
        "tractd {} starts", env!("CARGO_PKG_VERSION")
    );

    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .thread_name("io")
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let pulse = workers.pulse();
    let shell =
        Shell { arguments, config, state_dir, node, floor: floor.clone(), observer, pulse, mqtt_heart };
    let ended = runtime.block_on(shell.run(bound, &background, ready));
    floor.stop();
    runtime.shutdown_timeout(FAREWELL);
    let deadline = Instant::now() + FAREWELL;
    if !workers.join(deadline) {
        log::warn!("a model was still running when the grace time ended");
    }
    background.join(deadline);
    log::info!("tractd ends");
    ended
}

/// The node's name on MQTT: as provisioned, else derived from the machine.
fn node(device: Option<&tractd_update::Device>) -> String {
    match device {
        Some(device) => device.node.clone(),
        None => tractd_update::node_id().unwrap_or_else(|error| {
            log::warn!("no node id: {error}; the node is called {NAMELESS:?}");
            NAMELESS.into()
        }),
    }
}

/// The two threads that look after models.
struct Background {
    fleet: mpsc::Sender<fleet::Command>,
    updates: mpsc::Sender<updates::Command>,
    fleet_board: Arc<fleet::Board>,
    updates_board: Arc<updates::Board>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    /// Starts both. The receiver hears once the models found at the start have been tried.
    fn start(
        config: &Config,
        state_dir: &Path,
        floor: &Arc<Floor>,
        device: Result<Option<tractd_update::Device>, String>,
        certificates: &Arc<Certificates>,
    ) -> anyhow::Result<(Background, oneshot::Receiver<()>)> {
        let (fleet_commands, fleet_inbox) = mpsc::channel();
        let (updates_commands, updates_inbox) = mpsc::channel();
        let (fleet_board, updates_board) = (Arc::<fleet::Board>::default(), Arc::<updates::Board>::default());
        let proofs = Arc::new(Proofs::open(state_dir, &config.proof));
        let failed = updates_commands.clone();
        let fleet = Fleet {
            floor: floor.clone(),
            proofs: proofs.clone(),
            board: fleet_board.clone(),
            sources: sources(config, state_dir),
            cache_dir: config.cache_dir.clone().unwrap_or_else(|| machine::default_cache_dir(state_dir)),
            failed: Box::new(move |failure| drop(failed.send(updates::Command::LoadFailed(failure)))),
        };
        let updates = Updates {
            config: config.update.clone(),
            state_dir: state_dir.to_path_buf(),
            proofs,
            board: updates_board.clone(),
            certificates: certificates.clone(),
            floor: floor.clone(),
            fleet: fleet_commands.clone(),
            commands: updates_commands.clone(),
            fresh: Default::default(),
            signed: Default::default(),
            watches: Default::default(),
        };
        let (ready, is_ready) = oneshot::channel();
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let body = || {
                machine::give_way();
                body();
            };
            thread::Builder::new()
                .name(name.into())
                .spawn(body)
                .with_context(|| format!("starting thread {name}"))
        };
        let threads = vec![
            spawn("fleet", Box::new(move || fleet.run(&fleet_inbox, ready)))?,
            spawn("updates", Box::new(move || updates.run(device, &updates_inbox)))?,
        ];
        let (fleet, updates) = (fleet_commands, updates_commands);
        Ok((Background { fleet, updates, fleet_board, updates_board, threads }, is_ready))
    }

    /// Ends both; what does not end in time (a download, a model being tried) is left to the end of the process,
    /// which the store survives at any point.
    fn join(self, deadline: Instant) {
        drop(self.updates.send(updates::Command::Stop));
        drop(self.fleet.send(fleet::Command::Stop));
        for thread in self.threads {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    log::warn!("thread {} is cut off", thread.thread().name().unwrap_or_default());
                    return;
                }
                thread::sleep(Duration::from_millis(1));
            }
            drop(thread.join());
        }
    }
}

fn sources(config: &Config, state_dir: &Path) -> Sources {
    Sources {
        models_dir: config.models_dir.clone().unwrap_or_else(|| state_dir.join("models")),
        allow_unsigned: config.allow_unsigned,
    }
}

/// The asynchronous part: transports and signals.
struct Shell<'a> {
    arguments: &'a Arguments,
    config: Config,
    state_dir: PathBuf,
    node: String,
    floor: Arc<Floor>,
    observer: Observer,
    pulse: Pulse,
    mqtt_heart: Arc<Heart>,
}

impl Shell<'_> {
    async fn run(
        mut self,
        bound: Bound,
        background: &Background,
        ready: oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let (draining, drains) = watch::channel(false);
        let (closing, closes) = watch::channel(false);
        let settings = watch::Sender::new(Arc::new(self.config.socket.clone()));
        let intake = Intake::new(self.floor.clone());
        let desk = Arc::new(Desk {
            intake: intake.clone(),
            observer: self.observer.clone(),
            updates: background.updates.clone(),
            held_bytes: Arc::new(AtomicU64::new(0)),
            held_bytes_max: self.config.limits.queue_bytes,
            body_bytes_max: self.config.limits.max_body_bytes,
            turns: Turns::default(),
        });
        let mut gateways = JoinSet::new();
        for (line, board) in self.config.gateway.iter().zip(self.observer.gateways.iter()) {
            gateways.spawn(gateway::run(line.clone(), desk.clone(), board.clone(), closes.clone()));
        }
        let counters = self.observer.socket.clone();
        let mut sockets =
            tokio::spawn(socket::serve(bound, desk, counters, settings.subscribe(), drains, closes.clone()));
        let reloads = settings.subscribe();
        let mqtt = self.config.mqtt.enabled.then(|| {
            let settings = self.config.mqtt.settings(&self.node).map_err(anyhow::Error::msg)?;
            let (node, observer) = (self.node.clone(), self.observer.clone());
            let updates = background.updates.clone();
            let check = move || drop(updates.send(updates::Command::Hint));
            self.start_mqtt(mqtt::run(settings, node, intake, observer, reloads, closes, check))
        });
        let mqtt = mqtt.transpose()?;

        let mut ready = Some(ready);
        let mut ticks = watchdog_ticks();
        let failure = loop {
            tokio::select! {
                Ok(()) = async { ready.as_mut().expect("guarded").await }, if ready.is_some() => {
                    ready = None;
                    notify(&[NotifyState::Ready]);
                    log::info!("ready");
                }
                () = tick(&mut ticks) => {
                    if self.is_alive().await {
                        notify(&[NotifyState::Watchdog]);
                    } else {
                        log::error!("a thread no longer answers; the watchdog is not told that all is well");
                    }
                }
                _ = hang_up.recv() => self.reload(background, &settings),
                _ = terminate.recv() => break None,
                _ = interrupt.recv() => break None,
                ended = &mut sockets => {
                    let error = ended.map_err(anyhow::Error::new).and_then(|served| served.map_err(Into::into));
                    break Some(error.err().unwrap_or_else(|| anyhow::anyhow!("the socket ended")));
                }
            }
        };

        notify(&[NotifyState::Stopping]);
        log::info!(grace_ms = self.config.grace_ms; "draining");
        self.floor.drain();
        draining.send_replace(true);
        let (floor, grace) = (self.floor.clone(), self.config.grace());
        let idle = tokio::task::spawn_blocking(move || floor.wait_idle(grace));
        tokio::select! {
            idle = idle => if !idle.unwrap_or(false) {
                log::warn!("requests were left when the grace time ended");
            },
            _ = terminate.recv() => log::warn!("told twice to end: the grace time is cut"),
            _ = interrupt.recv() => log::warn!("told twice to end: the grace time is cut"),
        }
        self.floor.stop();
        closing.send_replace(true);
        if failure.is_none() && timeout(FAREWELL, &mut sockets).await.is_err() {
            log::warn!("connections were cut off");
            sockets.abort();
        }
        if timeout(FAREWELL, async { while gateways.join_next().await.is_some() {} }).await.is_err() {
            log::warn!("serial lines were cut off");
        }
        if let Some(mqtt) = mqtt
            && timeout(FAREWELL, mqtt).await.is_err()
        {
            log::warn!("MQTT was cut off");
        }
        failure.map_or(Ok(()), Err)
    }

    /// Runs MQTT on a thread of its own, which takes no turns with other tasks: what a request costs there is its own
    /// packets and, when the model is small, its own run. The receiver hears of the end.
    fn start_mqtt(
        &self,
        mqtt: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<oneshot::Receiver<()>> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("starting MQTT")?;
        let (floor, heart) = (self.floor.clone(), self.mqtt_heart.clone());
        let (ended, has_ended) = oneshot::channel();
        let body = move || {
            runtime.spawn(async move {
                loop {
                    heart.beat(floor.now());
                    tokio::time::sleep(BEAT).await;
                }
            });
            runtime.block_on(mqtt);
            let _ = ended.send(()); // nobody waits once the daemon has given up on it
        };
        thread::Builder::new().name("mqtt".into()).spawn(body).context("starting thread mqtt")?;
        Ok(has_ended)
    }

    /// Whether the io threads run tasks and every worker's heart beats.
    async fn is_alive(&self) -> bool {
        let io = timeout(Duration::from_secs(1), tokio::spawn(async {})).await;
        matches!(io, Ok(Ok(()))) && self.pulse.is_alive()
    }

    /// Reads the configuration again; a bad one changes nothing. Then looks for models and updates.
    fn reload(&mut self, background: &Background, settings: &watch::Sender<Arc<config::Socket>>) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        match config::read(self.arguments.config.as_deref()) {
            Ok(read) => {
                warn_of_unknown(&read.unknown);
                let mut config = read.config;
                self.arguments.apply(&mut config);
                self.warn_of_fixed(&config);
                logging::set_level(config.log);
                settings.send_replace(Arc::new(config.socket.clone()));
                drop(background.updates.send(updates::Command::Configure(config.update.clone())));
                let fixed = self.config.clone();
                self.config = Config {
                    mqtt: fixed.mqtt,
                    gateway: fixed.gateway,
                    limits: fixed.limits,
                    proof: fixed.proof,
                    ..config
                };
                log::info!("configuration read again");
            }
            Err(error) => log::error!("the configuration stays as it was: {error}"),
        }
        // The threads are joined only after this task ended.
        drop(background.fleet.send(fleet::Command::Reload(sources(&self.config, &self.state_dir))));
        if self.config.update.enabled {
            drop(background.updates.send(updates::Command::Check(None)));
        }
        notify(&[NotifyState::Ready]);
    }

    /// Says which changed values wait for a restart.
    fn warn_of_fixed(&self, new: &Config) {
        let old = &self.config;
        let fixed = [
            ("state_dir", old.state_dir != new.state_dir),
            ("cache_dir", old.cache_dir != new.cache_dir),
            ("workers", old.workers != new.workers),
            ("socket.path", old.socket.path != new.socket.path),
            ("limits", old.limits != new.limits),
            ("proof", old.proof != new.proof),
            ("mqtt", old.mqtt != new.mqtt),
            ("gateway", old.gateway != new.gateway),
        ];
        for (key, _) in fixed.iter().filter(|(_, changed)| *changed) {
            log::warn!("{key} changed: it takes effect at the next start");
        }
    }
}

/// Warns of keys nobody reads.
pub(crate) fn warn_of_unknown(unknown: &[String]) {
    for key in unknown {
        log::warn!("unknown configuration key {key}");
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("telling systemd: {error}");
    }
}

/// Half the time systemd gives, when it watches.
fn watchdog_ticks() -> Option<tokio::time::Interval> {
    let mut ticks = interval(sd_notify::watchdog_enabled()? / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Some(ticks)
}

async fn tick(ticks: &mut Option<tokio::time::Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => pending().await,
    }
}
