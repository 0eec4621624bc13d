//! What happens on the connection and what follows from it. Pure: events and the time go in, effects come out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tractd_wire::topic::{Filter, Prefix, Topic};
use tractd_wire::{DType, Name, Status};

use super::announce::{Announces, PAYLOAD_BYTES_MAX};
use super::client::{self, Granted, Loss, Token};
use super::config::Settings;
use super::exchange::{Address, Ask, Dropped, Exchange, Incoming};
use super::message::{Arrival, Message, Properties, Qos};
use super::outbox::{Acknowledgements, Limits, NoRoom, Outbox, Pending, Tag};
use super::repeats::{Key, Repeats, Seen};
use super::statements::{About, Fields, model_states};
use crate::intake::{Reply, Request};

/// After this a requester that was turned away may try again, in milliseconds: a few typical inferences.
const BUSY_RETRY_AFTER_MS: u32 = 200;
/// Requests in hand at once, in whatever way they came. The receive maximum keeps QoS 1 far below it, but mosquitto
/// 2.0 lets a whole queue through after the first acknowledgement, and QoS 0 and 3.1.1 have no limit. It is more than
/// the daemon queues for a model, so that its admission decides, and not this.
const JOBS_MAX: usize = 1024;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the daemon may take after its start to find its models; until then a state that the broker retains for a
/// model we don't have is left alone.
const FIND_MODELS: Duration = Duration::from_secs(10);
/// How often a refused subscription is tried again: access lists are edited by people.
const RESUBSCRIBE: Duration = Duration::from_secs(30);

/// States of a node, as its status says them.
const READY: &str = "ready";
const DEAF: &str = "deaf";
const OFFLINE: &str = "offline";
const LOST: &str = "lost";

/// Places of the filters in our SUBSCRIBE.
const REQUESTS: usize = 0;
const ANNOUNCES: usize = 4;
const SHARED: usize = 5;

/// The tag of messages nobody waits for.
const UNTRACKED: Tag = 0;

/// The time, as told by the shell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Since the start, monotonic.
    pub(super) at: Duration,
    /// Milliseconds since 1970, for requests that carry a clock time.
    pub(super) unix_ms: u64,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// On the connection.
    Link(client::Event),
    /// A job has ended.
    Reply { job: u64, reply: Reply },
    /// The models are now these: `{"models": […]}`.
    Models(Value),
    /// It is time for the metrics.
    Metrics(Value),
    /// Time has passed.
    Tick,
    /// The daemon is going down.
    Drain,
}

/// What to do about it.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    /// Hand in a request; its reply comes back under this number.
    Submit(u64, Request),
    /// Look at the registry before it is time.
    CheckUpdates,
    Subscribe(Vec<(String, Qos)>),
    Unsubscribe(String),
    Publish(Tag, Arc<Message>),
    Acknowledge(Token),
    /// Disconnect in order.
    Close,
}

/// Everything countable, as it stands in the metrics.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Counters {
    pub(super) connects: u64,
    pub(super) requests: u64,
    pub(super) replies: u64,
    /// Replies that are refusals, by code.
    pub(super) refused: BTreeMap<u16, u64>,
    pub(super) repeated: u64,
    pub(super) dropped_retained: u64,
    pub(super) dropped_topic: u64,
    /// Announces heard, and the checks they led to.
    pub(super) announces: u64,
    pub(super) early_checks: u64,
    /// Replies there was no room to keep.
    pub(super) dropped_replies: u64,
    /// Replies the broker refused to take.
    pub(super) refused_by_broker: u64,
    /// Connections given up because of a packet above our limit.
    pub(super) oversize: u64,
    /// Other daemons heard under our name.
    pub(super) doubles: u64,
}

#[derive(Debug)]
struct Job {
    address: Address,
    answers: Vec<Pending>,
    key: Option<Arc<Key>>,
}

/// How far the farewell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// Work in hand is being finished.
    Draining,
    /// "offline" is on its way.
    Saying,
    /// It has been said.
    Closed,
}

/// The state behind one broker.
#[derive(Debug)]
pub(super) struct Room {
    exchange: Exchange,
    queue: usize,
    packet_bytes_max: usize,
    /// Tells this run of the daemon from an earlier one.
    boot: String,
    /// Counts connections: a late will carries the number of the birth it belongs to.
    seq: u64,
    granted: Option<Granted>,
    /// The broker confirmed our subscriptions on this connection.
    subscribed: bool,
    /// Where Home Assistant listens for descriptions, if it should get any.
    discovery_prefix: Option<String>,
    /// Bytes of metrics per day, and when the next are due so that they are kept to.
    metrics_bytes_per_day: u64,
    metrics_due: Duration,
    /// Whose share of the requests for any node is taken.
    share_group: Option<String>,
    /// What our status says; none before the first word.
    said: Option<&'static str>,
    /// Another daemon under our name, by its boot id; told once.
    double: Option<String>,
    /// We said something on an earlier connection.
    spoke_before: bool,
    resubscribe_at: Option<Duration>,
    outbox: Outbox,
    acknowledgements: Acknowledgements,
    repeats: Repeats,
    announces: Announces,
    jobs: HashMap<u64, Job>,
    next_job: u64,
    models: Vec<Value>,
    /// How far each model's latest version is.
    updates: Fields,
    /// Element type by model and input.
    types: HashMap<(String, String), DType>,
    /// Since when each model is as it is, in milliseconds since 1970.
    since: HashMap<String, (u64, Fields)>,
    /// What the retained topics of the models say.
    published: BTreeMap<String, Bytes>,
    leaving: Leaving,
    effects: VecDeque<Effect>,
    pub(super) counters: Counters,
}

impl Room {
    pub(super) fn new(settings: &Settings, node: &str, seed: u64) -> Room {
        Room {
            exchange: Exchange {
                prefix: settings.prefix.clone(),
                node: node.to_owned(),
                request_bytes_max: settings.request_bytes_max,
            },
            queue: settings.queue.into(),
            packet_bytes_max: settings.packet_bytes_max as usize,
            boot: format!("{seed:016x}"),
            seq: 0,
            granted: None,
            subscribed: false,
            discovery_prefix: settings.discovery_prefix.clone(),
            metrics_bytes_per_day: settings.metrics_bytes_per_day,
            metrics_due: Duration::ZERO,
            share_group: settings.share_group.clone(),
            said: None,
            double: None,
            spoke_before: false,
            resubscribe_at: None,
            outbox: Outbox::new(Limits {
                bytes: settings.outbox_bytes,
                messages: settings.outbox_messages,
                inflight: settings.inflight.into(),
            }),
            acknowledgements: Acknowledgements::default(),
            repeats: Repeats::default(),
            announces: Announces::new(seed),
            jobs: HashMap::new(),
            next_job: 1,
            models: Vec::new(),
            updates: Fields::new(),
            types: HashMap::new(),
            since: HashMap::new(),
            published: BTreeMap::new(),
            leaving: Leaving::No,
            effects: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// The will of the next connection. It carries the number its birth will carry.
    pub(super) fn will(&mut self) -> Message {
        self.seq += 1;
        self.status(LOST)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.granted.is_some()
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving != Leaving::No
    }

    pub(super) fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Link(event) => self.link(now, event),
            Event::Reply { job, reply } => self.finish(job, &reply),
            Event::Models(models) => self.models(now.unix_ms, &models),
            Event::Metrics(metrics) => self.metrics(now.at, metrics),
            Event::Tick => {
                self.clear_leftovers(now);
                self.check_early(now.at);
            }
            Event::Drain => self.drain(),
        }
        self.resubscribe(now);
        self.leave();
    }

    /// The next thing to do. What needs a connection is only given out while there is one.
    pub(super) fn effect(&mut self) -> Option<Effect> {
        if let Some(effect) = self.effects.pop_front() {
            return Some(effect);
        }
        self.granted?;
        if let Some(token) = self.acknowledgements.next() {
            return Some(Effect::Acknowledge(token));
        }
        let (tag, message) = self.outbox.next()?;
        let message = message.clone();
        self.answered(|outbox| outbox.sent(tag));
        Some(Effect::Publish(tag, message))
    }

    fn link(&mut self, now: Now, event: client::Event) {
        match event {
            client::Event::Connected(granted) => self.connected(granted),
            client::Event::Publish(arrival, token) => self.arrival(now, &arrival, token),
            client::Event::Acked { tag, refused } => {
                if let Some(reason) = refused {
                    self.counters.refused_by_broker += 1;
                    log::warn!("the broker refused a message of ours: {reason}; look at its access list");
                }
                self.answered(|outbox| outbox.acked(tag));
            }
            client::Event::Subscribed { refused } => self.subscribed(now, &refused),
            client::Event::Lost(loss) => {
                if loss == Loss::ArrivalTooLarge {
                    self.counters.oversize += 1;
                }
                self.disconnected();
            }
            client::Event::Closed => self.disconnected(),
            client::Event::Alive | client::Event::Sent => {}
        }
    }

    fn connected(&mut self, granted: Granted) {
        self.counters.connects += 1;
        self.granted = Some(granted);
        self.spoke_before = self.said.is_some();
        self.outbox.connected(granted.receive_max);
        let limit = self.reply_bytes_max();
        for taken in self.outbox.take_larger_than(limit) {
            let bytes = taken.message.packet_bytes_max();
            let instead = taken.address.map(|address| address.too_large("", bytes, limit));
            self.send(instead, None, taken.answers);
        }
        // Also where the session was kept: it may be one for other topics, and what others said about us in the
        // meantime comes with the subscription only.
        self.subscribe();
    }

    fn disconnected(&mut self) {
        self.granted = None;
        self.subscribed = false;
        self.resubscribe_at = None;
        self.acknowledgements.forget();
        self.effects.retain(|effect| matches!(effect, Effect::Submit(..) | Effect::CheckUpdates));
    }

    /// The requests, and at QoS 0, because nothing depends on them, our own statements, see [`own`](Room::own), and
    /// announces.
    fn subscribe(&mut self) {
        let (node, prefix) = (self.node(), self.prefix());
        let requests = Filter::Requests { node }.under(prefix).to_string();
        let mut filters = vec![
            (requests, Qos::AtLeastOnce),
            (Topic::Status { node }.under(prefix).to_string(), Qos::AtMostOnce),
            (format!("{prefix}/{node}/model/+/state"), Qos::AtMostOnce),
            (format!("{prefix}/{node}/update/+/state"), Qos::AtMostOnce),
            (Topic::Announce.under(prefix).to_string(), Qos::AtMostOnce),
        ];
        filters.extend(self.shared().map(|shared| (shared, Qos::AtLeastOnce)));
        self.effects.push_back(Effect::Subscribe(filters));
    }

    fn subscribed(&mut self, now: Now, refused: &[usize]) {
        if let Some(group) = self.share_group.as_ref().filter(|_| refused.contains(&SHARED)) {
            log::error!(group; "the broker refused the shared subscription; it may have none, or an access list");
        }
        if refused.contains(&ANNOUNCES) {
            log::info!(
                "the broker refused the subscription to announces; the registry is asked at its interval"
            );
        }
        if refused.contains(&REQUESTS) {
            log::error!("the broker refused the subscription to the requests; look at its access list");
            self.resubscribe_at = Some(now.at + RESUBSCRIBE);
            self.say(DEAF);
            return;
        }
        self.subscribed = true;
        self.ready(now.unix_ms);
    }

    /// Our share of the requests for any node of a group.
    fn shared(&self) -> Option<String> {
        let group = Name::parse(self.share_group.as_ref()?).expect("the configuration has checked the group");
        Some(Filter::SharedRequests { group }.under(self.prefix()).to_string())
    }

    /// Takes no more of the group's requests, and finishes what is in hand.
    fn drain(&mut self) {
        if self.leaving != Leaving::No {
            return;
        }
        self.leaving = Leaving::Draining;
        if self.granted.is_some() {
            self.effects.extend(self.shared().map(Effect::Unsubscribe));
        }
    }

    fn resubscribe(&mut self, now: Now) {
        if self.resubscribe_at.is_some_and(|at| at <= now.at) {
            self.resubscribe_at = None;
            self.subscribe();
        }
    }

    /// Requests can come: say so, and what there is to ask.
    fn ready(&mut self, unix_ms: u64) {
        if self.leaving != Leaving::No {
            return;
        }
        self.say(READY);
        // The broker may have lost what it retained; topics of models that went meanwhile still have to be emptied.
        self.published.values_mut().for_each(|payload| *payload = Bytes::from_static(b"?"));
        self.publish_models(unix_ms);
    }

    fn arrival(&mut self, now: Now, arrival: &Arrival, token: Option<Token>) {
        let pending = token.map(|token| self.acknowledgements.expect(token));
        if matches!(self.leaving, Leaving::Saying | Leaving::Closed) {
            // Unacknowledged, so the broker keeps it for our successor.
            return;
        }
        if self.own(arrival) || self.announced(now.at, arrival) {
            pending.into_iter().for_each(|pending| self.acknowledgements.answered(pending));
            return;
        }
        let types = &self.types;
        let look_up = |model: &str, input: &str| {
            let name = model.split('@').next().unwrap_or(model);
            types.get(&(name.to_owned(), input.to_owned())).copied()
        };
        match self.exchange.incoming(now.unix_ms, arrival, &look_up) {
            Incoming::Request(ask) => self.request(now, arrival, *ask, pending),
            Incoming::Refuse(address, reply) => {
                self.reply(address, &reply, None, pending.into_iter().collect())
            }
            Incoming::Drop(reason) => {
                match reason {
                    Dropped::Retained => self.counters.dropped_retained += 1,
                    Dropped::Topic => self.counters.dropped_topic += 1,
                }
                log::debug!("a publish was dropped: {reason:?}");
                pending.into_iter().for_each(|pending| self.acknowledgements.answered(pending));
            }
        }
    }

    /// What the broker says about us, where it is ours to correct; true when the topic is one of our statements.
    fn own(&mut self, arrival: &Arrival) -> bool {
        match Topic::parse(self.prefix(), &arrival.topic) {
            Ok(Topic::Status { node }) if node == self.node() => {
                let status = serde_json::from_slice(&arrival.payload).unwrap_or_default();
                self.own_status(&status, arrival.retain);
                true
            }
            Ok(Topic::ModelState { node, .. } | Topic::UpdateState { node, .. }) if node == self.node() => {
                if arrival.retain && !arrival.payload.is_empty() {
                    self.published.entry(arrival.topic.clone()).or_insert(Bytes::from_static(b"?"));
                }
                true
            }
            _ => false,
        }
    }

    /// A will may come late, after the birth that followed it, and a clone may speak under our name.
    fn own_status(&mut self, status: &Value, retained: bool) {
        let boot = status["boot"].as_str().unwrap_or_default();
        let present = matches!(status["state"].as_str(), Some(READY | DEAF));
        let Some(said) = self.said else { return };
        if !retained && !present {
            self.say(said);
        }
        // What is retained may be our predecessor's; once we have spoken on an earlier connection, it isn't.
        let other = boot != self.boot && present && (!retained || self.spoke_before);
        if other && self.double.as_deref() != Some(boot) {
            log::error!(boot; "another daemon calls itself {}; give each its own node id", self.exchange.node);
            self.counters.doubles += 1;
            self.double = Some(boot.to_owned());
        }
    }

    /// Takes an announce as a reason to look at the registry earlier, whatever it says; true when the topic is that of
    /// announces. One the broker retained is as old as it likes, and would come again with every connection.
    fn announced(&mut self, now: Duration, arrival: &Arrival) -> bool {
        if Topic::parse(self.prefix(), &arrival.topic) != Ok(Topic::Announce) {
            return false;
        }
        if arrival.retain {
            self.counters.dropped_retained += 1;
        } else if arrival.payload.len() <= PAYLOAD_BYTES_MAX {
            self.counters.announces += 1;
            self.announces.heard(now);
        }
        true
    }

    fn check_early(&mut self, now: Duration) {
        if self.announces.is_due(now) {
            self.counters.early_checks += 1;
            self.effects.push_back(Effect::CheckUpdates);
        }
    }

    /// Empties the retained states of models that went while we did not run.
    fn clear_leftovers(&mut self, now: Now) {
        let leftover = |payload: &Bytes| payload.as_ref() == b"?";
        if now.at >= FIND_MODELS && self.subscribed && self.published.values().any(leftover) {
            self.publish_models(now.unix_ms);
        }
    }

    fn request(&mut self, now: Now, arrival: &Arrival, ask: Ask, pending: Option<Pending>) {
        self.counters.requests += 1;
        let answers: Vec<Pending> = pending.into_iter().collect();
        let named = ask.correlation.is_some();
        // Without a name of its own only the broker's word makes a request a repetition.
        let key = (named || arrival.qos == Qos::AtLeastOnce)
            .then(|| Arc::new(Key::new(ask.correlation, ask.address.topic(), arrival)));
        let seen = key.as_ref().filter(|_| named || arrival.dup);
        match seen.and_then(|key| self.repeats.seen(now.at, key)).cloned() {
            Some(Seen::Working(job)) if self.jobs.contains_key(&job) => {
                self.counters.repeated += 1;
                self.jobs.entry(job).and_modify(|job| job.answers.extend(answers));
                return;
            }
            Some(Seen::Answered(tag, message)) => {
                self.counters.repeated += 1;
                let waiting = !answers.is_empty() && self.outbox.also_answers(tag, &answers);
                if !waiting {
                    self.send(Some(message), Some(ask.address), answers);
                }
                return;
            }
            _ => {}
        }
        if self.jobs.len() >= JOBS_MAX {
            let busy = Reply::refusal(Status::Busy, &ask.request.model, "too many MQTT requests in hand");
            self.reply(ask.address, &busy.retry_after(BUSY_RETRY_AFTER_MS), None, answers);
            return;
        }
        let job = self.next_job;
        self.next_job += 1;
        if let Some(key) = &key {
            self.repeats.working(now.at, key.clone(), job, ask.request.deadline);
        }
        self.jobs.insert(job, Job { address: ask.address, answers, key });
        self.effects.push_back(Effect::Submit(job, ask.request));
    }

    fn finish(&mut self, job: u64, reply: &Reply) {
        let Some(Job { address, answers, key }) = self.jobs.remove(&job) else { return };
        self.reply(address, reply, key, answers);
    }

    fn reply(&mut self, address: Address, reply: &Reply, key: Option<Arc<Key>>, answers: Vec<Pending>) {
        let mut status = reply.status;
        let mut message = address.message(reply);
        let (bytes, limit) = (message.packet_bytes_max(), self.reply_bytes_max());
        if bytes > limit {
            status = Status::TooLarge;
            message = address.too_large(&reply.model, bytes, limit);
        }
        self.counters.replies += 1;
        if status != Status::Ok {
            *self.counters.refused.entry(status.code()).or_default() += 1;
        }
        let message = Arc::new(message);
        let remembered = key.map(|key| (key, message.clone()));
        let tag = self.send(Some(message), Some(address), answers);
        match (remembered, tag) {
            (Some((key, message)), Some(tag)) if !status.retryable() => {
                self.repeats.answered(&key, tag, &message)
            }
            (Some((key, _)), _) => self.repeats.forget(&key),
            (None, _) => {}
        }
    }

    /// Puts a message into the outbox. Where it doesn't fit, its requests are let go of, counted.
    fn send(
        &mut self,
        message: Option<impl Into<Arc<Message>>>,
        address: Option<Address>,
        answers: Vec<Pending>,
    ) -> Option<Tag> {
        let limit = self.reply_bytes_max();
        let message =
            message.map(Into::<Arc<Message>>::into).filter(|message| message.packet_bytes_max() <= limit);
        let pushed = match message {
            Some(message) => self.outbox.push(message, address, answers),
            None => Err(NoRoom(answers)),
        };
        match pushed {
            Ok(tag) => Some(tag),
            Err(NoRoom(answers)) => {
                self.counters.dropped_replies += 1;
                answers.into_iter().for_each(|pending| self.acknowledgements.answered(pending));
                None
            }
        }
    }

    fn answered(&mut self, take: impl FnOnce(&mut Outbox) -> Vec<Pending>) {
        for pending in take(&mut self.outbox) {
            self.acknowledgements.answered(pending);
        }
    }

    fn reply_bytes_max(&self) -> usize {
        let brokers = self.granted.and_then(|granted| granted.packet_bytes_max);
        brokers.map_or(self.packet_bytes_max, |max| self.packet_bytes_max.min(max as usize))
    }

    fn models(&mut self, unix_ms: u64, models: &Value) {
        self.models = models["models"].as_array().cloned().unwrap_or_default();
        self.updates = models["updates"].as_object().cloned().unwrap_or_default();
        self.types.clear();
        for model in &self.models {
            let name = model["name"].as_str().unwrap_or_default();
            for input in model["inputs"].as_array().into_iter().flatten() {
                let dtype = input["dtype"].as_str().and_then(DType::from_name);
                if let (Some(input), Some(dtype)) = (input["name"].as_str(), dtype) {
                    self.types.insert((name.to_owned(), input.to_owned()), dtype);
                }
            }
        }
        if self.granted.is_some() && self.subscribed {
            self.publish_models(unix_ms);
        }
    }

    /// Publishes the retained topics of the models that say something new; those of models that are gone are
    /// emptied, which deletes them.
    fn publish_models(&mut self, unix_ms: u64) {
        let models = model_states(&self.models);
        for (name, state) in &models {
            let known = self.since.entry(name.clone()).or_insert_with(|| (unix_ms, state.clone()));
            if known.1 != *state {
                *known = (unix_ms, state.clone());
            }
        }
        let about = About { node: self.node(), prefix: self.prefix() };
        let limits = json!({ "request_bytes_max": self.exchange.request_bytes_max, "queue": self.queue });
        let mut current = BTreeMap::from([about.description(&self.models, &limits)]);
        let named = models.iter().filter_map(|(name, state)| Some((Name::parse(name).ok()?, state)));
        current.extend(
            named.map(|(model, state)| about.model_state(model, state, self.since[model.as_str()].0)),
        );
        let updates =
            self.updates.iter().filter_map(|(name, update)| Some((Name::parse(name).ok()?, update)));
        current.extend(updates.map(|(model, update)| about.update_state(model, update)));
        if let Some(discovery) = &self.discovery_prefix {
            let models = models.keys().filter_map(|name| Name::parse(name).ok());
            current.extend(about.discovery(discovery, models));
        }

        for topic in self.published.keys() {
            current.entry(topic.clone()).or_default();
        }
        for (topic, payload) in &current {
            if self.published.get(topic) != Some(payload) {
                let message = Message::notice(topic.clone(), payload.clone());
                if self.send(Some(message), None, Vec::new()).is_none() {
                    log::warn!(topic:% = topic; "a statement has no room in the outbox or is too large for the broker");
                }
            }
        }
        current.retain(|_, payload| !payload.is_empty());
        self.published = current;
    }

    /// Metrics, unless they come too soon for what a day may cost.
    fn metrics(&mut self, now: Duration, mut metrics: Value) {
        if self.granted.is_none() || now < self.metrics_due {
            return;
        }
        if let (Some(fields), Ok(counters)) = (metrics.as_object_mut(), serde_json::to_value(&self.counters))
        {
            fields.insert("mqtt".to_owned(), counters);
        }
        let message = Message {
            topic: Topic::Metrics { node: self.node() }.under(self.prefix()).to_string(),
            payload: metrics.to_string().into(),
            retain: false,
            qos: Qos::AtMostOnce,
            properties: Properties::default(),
        };
        let bytes = message.packet_bytes_max();
        // The first of a day comes at once, so the others share what it leaves.
        let others = self.metrics_bytes_per_day.saturating_sub(bytes as u64).max(1);
        self.metrics_due = now + DAY.mul_f64(bytes as f64 / others as f64).min(DAY);
        if bytes <= self.reply_bytes_max() {
            self.effects.push_back(Effect::Publish(UNTRACKED, message.into()));
        }
    }

    fn say(&mut self, state: &'static str) {
        self.said = Some(state);
        let message = self.status(state);
        self.send(Some(message), None, Vec::new());
    }

    fn status(&self, state: &str) -> Message {
        let status = json!({
            "state": state,
            "boot": self.boot,
            "seq": self.seq,
            "version": env!("CARGO_PKG_VERSION"),
            "proto": tractd_wire::VERSION,
            "max_bytes": self.exchange.request_bytes_max,
            "queue": self.queue,
        });
        let topic = Topic::Status { node: self.node() }.under(self.prefix()).to_string();
        Message::notice(topic, status.to_string())
    }

    /// Goes through the farewell: finish the work, say "offline", disconnect.
    fn leave(&mut self) {
        match self.leaving {
            Leaving::Draining if self.jobs.is_empty() && self.outbox.is_empty() => {
                self.leaving = Leaving::Saying;
                self.say(OFFLINE);
            }
            Leaving::Saying if self.outbox.is_empty() && self.granted.is_some() => {
                self.leaving = Leaving::Closed;
                self.effects.push_back(Effect::Close);
            }
            _ => {}
        }
    }

    fn node(&self) -> Name<'_> {
        Name::parse(&self.exchange.node).expect("the daemon has checked its node's name")
    }

    fn prefix(&self) -> Prefix<'_> {
        Prefix::parse(&self.exchange.prefix).expect("the configuration has checked the prefix")
    }
}

#[cfg(test)]
mod tests;
