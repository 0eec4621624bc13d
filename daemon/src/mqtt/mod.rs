//! MQTT: requests in, replies out, and what the node says about itself. `docs/mqtt.md` is the contract.
//!
//! | module | what it holds |
//! |---|---|
//! | `config` | the `[mqtt]` section, checked |
//! | `client` | one connection; its `codec` is the only file that names rumqttc |
//! | `exchange`, `json` | publishes to requests, replies to publishes |
//! | `announce` | when to look at the registry earlier |
//! | `statements` | what the node says about its models |
//! | `tls` | whom to trust and who we are, read anew for each connection |
//! | `outbox`, `repeats` | what must reach the broker, and what came twice |
//! | `room` | the decisions: events and time in, effects out |
//! | here | the shell: waits for what happens, and does what was decided |
//!
//! What it deliberately does not do: QoS 2, wildcards in replies, work of its own. A broker that is absent costs a
//! log line and nothing else.

mod announce;
mod backoff;
mod client;
mod config;
mod exchange;
mod json;
mod message;
mod outbox;
mod repeats;
mod room;
mod statements;
mod tls;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at, sleep_until};

use self::backoff::Backoff;
use self::client::{Connection, Full, Loss};
use self::room::{Effect, Event, Now, Room};
use crate::certificates::Certificates;
use crate::intake::{Intake, Line, Outgoing, Request, Spare};
use crate::observe::Observer;

pub use config::{Config, Settings};

/// How often the clock is looked at when nothing happens: the grain of everything that waits.
const TICK: Duration = Duration::from_secs(1);
/// A connection that the broker closes before this is over was closed soon.
const SOON: Duration = Duration::from_secs(60);
/// How often the files of TLS are looked at: they are replaced every few weeks or hours.
const STAMP: Duration = Duration::from_secs(10);
/// Longest the farewell may take, beyond which the broker publishes our will instead.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves requests from the broker until `shutdown` turns true. Nothing else ends it: it reconnects for ever. `reloads`
/// changes when the daemon was told to look at its files again. `check_updates` is called when the registry is worth a
/// look before its time, at most once a minute.
pub async fn run<T>(
    settings: Settings,
    node: String,
    intake: Intake,
    observer: Observer,
    reloads: watch::Receiver<T>,
    shutdown: watch::Receiver<bool>,
    check_updates: impl Fn() + Send + 'static,
) {
    // Std's hasher keys are the operating system's randomness, which is all that is needed here.
    let seed = RandomState::new().hash_one(&node);
    let room = Room::new(&settings, &node, seed);
    let (replies, replied) = mpsc::unbounded_channel();
    let shell = Shell {
        link: Link::Down { until: Instant::now() },
        room,
        backoff: Backoff::new(seed),
        started: Instant::now(),
        connected_at: None,
        closed_soon: 0,
        stamp: None,
        stamped: None,
        forget_session: false,
        stalled: None,
        said: None,
        certificates: observer.certificates.clone(),
        settings,
        intake,
        replies,
        replied,
        check_updates: Box::new(check_updates),
    };
    shell.run(observer, reloads, shutdown).await;
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Connected,
    /// By the kind of loss: that a broker back on its feet now refuses us is news.
    Lost(std::mem::Discriminant<Loss>),
}

/// Everything but broker and replies that the shell waits for; it comes seldom.
struct Surroundings<T> {
    observer: Observer,
    /// None once nobody can change them any more.
    models: Option<watch::Receiver<u64>>,
    metrics: Option<Interval>,
    tick: Interval,
    reloads: watch::Receiver<T>,
    shutdown: watch::Receiver<bool>,
}

enum Happened {
    Event(Event),
    /// The files may be others.
    Reload,
    Shutdown,
}

enum Link {
    Down { until: Instant },
    Up(Box<Connection>),
}

struct Shell {
    settings: Settings,
    certificates: Arc<Certificates>,
    room: Room,
    link: Link,
    backoff: Backoff,
    started: Instant,
    connected_at: Option<Instant>,
    /// Connections in a row that the broker closed soon after it had let us in.
    closed_soon: u32,
    /// The TLS files as the connection read them, and when they were last looked at.
    stamp: Option<tls::Stamp>,
    stamped: Option<Instant>,
    /// The session holds a message that would cost every connection; the next one starts without it.
    forget_session: bool,
    /// What the connection had no room for.
    stalled: Option<Effect>,
    /// The state last logged, so that a broker that stays away is mentioned once and not at every attempt.
    said: Option<Said>,
    intake: Intake,
    /// Replies on their way back from wherever they were made. No longer than [`room`] has jobs in hand.
    replies: mpsc::UnboundedSender<(u64, Outgoing)>,
    replied: mpsc::UnboundedReceiver<(u64, Outgoing)>,
    check_updates: Box<dyn Fn() + Send>,
}

impl Shell {
    async fn run<T>(
        mut self,
        observer: Observer,
        reloads: watch::Receiver<T>,
        shutdown: watch::Receiver<bool>,
    ) {
        self.room.handle(self.now(), Event::Models(observer.models()));
        let surroundings = Surroundings::new(observer, self.settings.metrics_interval, reloads, shutdown);
        // Kept from turn to turn: to begin to wait for five things and to stop again costs a request more than its own
        // way through here.
        let mut around = Box::pin(surroundings.next());
        loop {
            let event = tokio::select! {
                event = self.link.next() => Event::Link(event),
                Some((job, Outgoing::Reply(reply))) = self.replied.recv() => Event::Reply { job, reply },
                (happened, surroundings) = &mut around => {
                    around.set(surroundings.next());
                    match happened {
                        Happened::Event(event) => event,
                        Happened::Reload => {
                            self.stamped = None;
                            Event::Tick
                        }
                        Happened::Shutdown => break,
                    }
                }
            };
            self.step(event);
        }
        self.farewell().await;
    }

    /// Finishes what is in hand and says goodbye, as far as there is somebody to say it to.
    async fn farewell(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        self.step(Event::Drain);
        while self.room.is_connected() {
            let event = tokio::select! {
                event = self.link.next() => Event::Link(event),
                Some((job, Outgoing::Reply(reply))) = self.replied.recv() => Event::Reply { job, reply },
                () = sleep_until(deadline) => {
                    log::warn!("the broker did not take our farewell in {} s", FAREWELL.as_secs());
                    return;
                }
            };
            self.step(event);
        }
    }

    fn step(&mut self, event: Event) {
        let event = match event {
            Event::Link(event) => {
                self.watch(&event);
                Event::Link(event)
            }
            Event::Tick if self.renewed() => {
                self.renew();
                Event::Tick
            }
            other => other,
        };
        self.room.handle(self.now(), event);
        self.carry_out();
        self.reopen();
    }

    /// Keeps the link's own books: who is alive since when, and when to try again.
    fn watch(&mut self, event: &client::Event) {
        match event {
            client::Event::Connected(_) => {
                self.connected_at = Some(Instant::now());
                self.forget_session = false;
                let address = self.settings.address.clone();
                self.say(
                    log::Level::Info,
                    Said::Connected,
                    format_args!("connected to the broker at {address}"),
                );
            }
            client::Event::Lost(loss) => self.lost(loss),
            client::Event::Closed => {
                self.link = Link::Down { until: Instant::now() };
                self.connected_at = None;
                self.stalled = None;
            }
            _ => {}
        }
    }

    fn lost(&mut self, loss: &Loss) {
        let held = self.connected_at.take().map_or(Duration::ZERO, |at| at.elapsed());
        let soon = *loss == Loss::Closed && !held.is_zero() && held < SOON;
        self.closed_soon = if soon { self.closed_soon + 1 } else { 0 };
        let loss = if self.closed_soon > 1 { &Loss::ClosedAgain } else { loss };
        let wait = self.backoff.after(held, matches!(loss, Loss::TakenOver | Loss::ClosedAgain));
        self.forget_session |= *loss == Loss::ArrivalTooLarge;
        self.link = Link::Down { until: Instant::now() + wait };
        self.stalled = None;
        let (address, said) = (self.settings.address.clone(), Said::Lost(std::mem::discriminant(loss)));
        self.say(log::Level::Warn, said, format_args!("no broker at {address}: {loss}; trying on"));
    }

    /// Whether a file of TLS was replaced since the connection was opened.
    fn renewed(&mut self) -> bool {
        let Some(files) = self.settings.address.tls() else { return false };
        let just = self.stamped.is_some_and(|at| at.elapsed() < STAMP);
        if just || self.connected_at.is_none() {
            return false;
        }
        self.stamped = Some(Instant::now());
        let stamp = files.stamp();
        let renewed = self.stamp.as_ref() != Some(&stamp);
        self.stamp = Some(stamp);
        renewed
    }

    /// Connects anew with the files as they are now. Files that can't be used, perhaps because only one of two has been
    /// replaced so far, leave the connection alone.
    fn renew(&mut self) {
        match client::look_at_files(&self.settings, &self.certificates) {
            Ok(()) => {
                log::info!("the files of TLS were replaced; connecting anew");
                if let Link::Up(connection) = &mut self.link
                    && connection.disconnect() == Err(Full)
                {
                    self.stamp = None;
                }
            }
            Err(loss) => log::warn!("the files of TLS were replaced, the connection stays as it is: {loss}"),
        }
    }

    /// Opens the next connection when its time has come.
    fn reopen(&mut self) {
        let Link::Down { until } = self.link else { return };
        if until > Instant::now() || self.room.is_leaving() {
            return;
        }
        self.stamp = self.settings.address.tls().map(tls::Files::stamp);
        match Connection::open(&self.settings, &self.certificates, &self.room.will(), self.forget_session) {
            Ok(connection) => self.link = Link::Up(Box::new(connection)),
            Err(loss) => self.lost(&loss),
        }
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.stalled.take().or_else(|| self.room.effect()) {
            if let Effect::Submit(job, request) = effect {
                self.submit(job, request);
                continue;
            }
            if effect == Effect::CheckUpdates {
                (self.check_updates)();
                continue;
            }
            let Link::Up(connection) = &mut self.link else { continue };
            let done = match &effect {
                Effect::Publish(tag, message) => connection.publish(*tag, message),
                Effect::Acknowledge(token) => connection.ack(*token),
                Effect::Subscribe(filters) => connection.subscribe(filters),
                Effect::Unsubscribe(filter) => connection.unsubscribe(filter),
                Effect::Close => connection.disconnect(),
                Effect::Submit(..) | Effect::CheckUpdates => Ok(()),
            };
            if done == Err(Full) {
                self.stalled = Some(effect);
                return;
            }
        }
    }

    /// Hands a request in. What ran here is answered already; one such run is made per turn of the loop, whose other
    /// branches have their chance in between.
    fn submit(&mut self, job: u64, request: Request) {
        let line = Line { id: job, outgoing: self.replies.clone(), hold: None };
        let behind = matches!(&self.link, Link::Up(connection) if connection.is_behind());
        self.intake.submit_to(request, line, if behind { Spare::Some } else { Spare::Plenty });
        while let Ok((job, outgoing)) = self.replied.try_recv() {
            if let Outgoing::Reply(reply) = outgoing {
                self.room.handle(self.now(), Event::Reply { job, reply });
            }
        }
    }

    fn say(&mut self, level: log::Level, state: Said, text: fmt::Arguments<'_>) {
        if self.said.as_ref() == Some(&state) {
            log::debug!("{text}");
            return;
        }
        log::log!(level, "{text}");
        self.said = Some(state);
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { at: self.started.elapsed(), unix_ms: unix.as_millis() as u64 }
    }
}

impl<T> Surroundings<T> {
    fn new(
        observer: Observer,
        metrics_interval: Option<Duration>,
        reloads: watch::Receiver<T>,
        shutdown: watch::Receiver<bool>,
    ) -> Surroundings<T> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let metrics = metrics_interval.map(|every| {
            let mut metrics = interval_at(Instant::now() + every, every);
            metrics.set_missed_tick_behavior(MissedTickBehavior::Skip);
            metrics
        });
        Surroundings { models: Some(observer.changed()), observer, metrics, tick, reloads, shutdown }
    }

    async fn next(mut self) -> (Happened, Surroundings<T>) {
        let happened = tokio::select! {
            alive = changed(&mut self.models) => {
                if !alive {
                    self.models = None;
                }
                Happened::Event(Event::Models(self.observer.models()))
            }
            () = ticked(&mut self.metrics) => Happened::Event(Event::Metrics(self.observer.status())),
            _ = self.tick.tick() => Happened::Event(Event::Tick),
            Ok(()) = self.reloads.changed() => Happened::Reload,
            _ = self.shutdown.wait_for(|down| *down) => Happened::Shutdown,
        };
        (happened, self)
    }
}

/// Whether whoever tells of changes is still there, once one has happened; never where nobody is.
async fn changed(changes: &mut Option<watch::Receiver<u64>>) -> bool {
    match changes {
        Some(changes) => changes.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

async fn ticked(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

impl Link {
    /// What happens next; while the link is down, the end of the wait.
    async fn next(&mut self) -> client::Event {
        match self {
            Link::Up(connection) => connection.next().await,
            Link::Down { until } => {
                sleep_until(*until).await;
                client::Event::Sent
            }
        }
    }
}
