//! One connection to the broker: the only file that names rumqttc.
//!
//! rumqttc 0.25 loses or loops in ways its users have to know; what this file does about each:
//!
//! - A [`Connection`] lives from CONNECT to the first error. Its event loop is then dropped, never reused: `clean()`
//!   leaves a collision behind (rumqtt#1014, #1056) and events of the dead connection in its buffer, and drops what
//!   was queued when the session is gone. What must not be lost waits in our outbox.
//! - Polling and sending share one task, so nothing here awaits the client (rumqtt#1025); only `try_*` is called.
//! - The future of `poll` is kept across calls of [`Connection::next`], because dropping it in the middle of a write
//!   loses a packet. It is large, so one stream holds it in place for as long as the connection lasts.
//! - What it had read before an error stays in its buffer: acknowledgements are taken from there, or their messages
//!   would be sent twice.
//! - Every acknowledgement is checked: rumqttc only logs the failure codes of PUBACK and SUBACK.
//! - After our own DISCONNECT has been written the loop is not polled again: it would reconnect.
//! - No topic alias is ever offered: aliased publishes arrive with an empty topic.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, unfold};
use rumqttc::v5::mqttbytes::v5 as packet5;
use rumqttc::{NetworkOptions, Transport, mqttbytes, v5};

use super::config::{Address, Settings, Version};
use super::message::{Arrival, Message, Properties, Qos};
use super::tls;
use crate::certificates::Certificates;

/// Longest a TCP connect with its CONNACK may take, in seconds.
const CONNECT_S_MAX: u64 = 5;
/// Longest password file read, in bytes: it holds one line.
const PASSWORD_BYTES_MAX: u64 = 4096;
const SILENT: &str = "it did not answer a ping";

/// What a connection reports. `Sent` and `Quiet` are not heard from the broker; everything else proves it alive.
#[derive(Debug)]
pub(super) enum Event {
    /// CONNACK, with what the broker allows.
    Connected(Granted),
    /// A publish on one of our subscriptions; a token comes with one that wants an acknowledgement.
    Publish(Arrival, Option<Token>),
    /// PUBACK of the message sent under `tag`, with the reason when the broker refused it.
    Acked { tag: u64, refused: Option<String> },
    /// SUBACK, with the positions of the filters the broker refused.
    Subscribed { refused: Vec<usize> },
    /// A sign of life without a meaning for us.
    Alive,
    /// Something of ours went out.
    Sent,
    /// Our DISCONNECT has been written; the connection is over.
    Closed,
    /// The connection is over.
    Lost(Loss),
}

/// What the CONNACK said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    /// Whether the broker still has our subscriptions and unacknowledged requests.
    pub(super) session_present: bool,
    /// Largest packet the broker takes, in bytes.
    pub(super) packet_bytes_max: Option<u32>,
    /// QoS 1 messages the broker takes unacknowledged.
    pub(super) receive_max: Option<u16>,
    /// The keep-alive the broker imposes.
    pub(super) keep_alive: Option<Duration>,
}

/// Acknowledges one arrival, on the connection it came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Token(pub(super) u16);

/// Why a connection ended, as far as we act differently on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Loss {
    /// Another client with our id connected: most likely a cloned device.
    #[error("another client connected with our client id; give each daemon its own mqtt.client_id")]
    TakenOver,
    /// The broker closed the connection without a word.
    #[error("it closed the connection")]
    Closed,
    /// It did so again, soon after it had let us in. A take-over looks like this in 3.1.1, which has no reason codes,
    /// and where the DISCONNECT carries its reason and no properties (mosquitto's), which rumqttc takes for half a packet.
    #[error(
        "it lets us in and closes the connection again; most likely another client has our client id: give each daemon \
         its own mqtt.client_id"
    )]
    ClosedAgain,
    /// A packet above our limit arrived, which the broker would send again after every reconnect.
    #[error("the broker sent a packet of more than mqtt.max_packet_bytes")]
    ArrivalTooLarge,
    /// The broker refused us at CONNECT.
    #[error("the broker refused the connection: {0}")]
    Refused(String),
    /// Anything else, in words.
    #[error("{0}")]
    Broken(String),
}

/// The channel into the event loop is full; try again after the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

enum Client {
    V4(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

enum EventLoop {
    V4(Box<rumqttc::EventLoop>),
    V5(Box<v5::EventLoop>),
}

/// A packet in words common to both versions.
enum Packet {
    Connected(Granted),
    Publish(Arrival, Option<Token>),
    PubAck { id: u16, refused: Option<String> },
    SubAck { refused: Vec<usize> },
    Other,
    Wrote,
    WrotePublish { id: u16 },
    WroteDisconnect,
}

/// What the event loop gives, each with whether another publish was read with it, and at last why there is no more.
type Polling = Pin<Box<dyn Stream<Item = Result<(Packet, bool), Loss>> + Send>>;

/// How far a connection is.
enum Stage {
    Open(EventLoop),
    /// It is over; what was read before and still counts is yet to be told.
    Ending(VecDeque<Packet>, Loss),
}

/// One connection, from CONNECT to its end.
pub(super) struct Connection {
    client: Client,
    polling: Polling,
    behind: bool,
    /// Something was turned away since the last packet went out.
    full: bool,
    /// QoS 1 messages handed over whose packet id is not known yet, oldest first.
    unsent: VecDeque<u64>,
    /// The tag of each packet id that waits for its PUBACK.
    unacked: HashMap<u16, u64>,
}

impl Connection {
    /// Prepares a connection; the first [`next`](Connection::next) opens it. With `forget` the broker drops the
    /// session it may still hold for us.
    ///
    /// # Errors
    /// The password file or one of TLS can't be read.
    pub(super) fn open(
        settings: &Settings,
        certificates: &Certificates,
        will: &Message,
        forget: bool,
    ) -> Result<Connection, Loss> {
        let password = settings.password_file.as_deref().map(read_password).transpose()?;
        let login = settings.username.as_ref().map(|user| (user.clone(), password.unwrap_or_default()));
        let transport = transport(&settings.address, certificates)?;
        // Everything that can be waiting at once: replies, acknowledgements of requests, a few commands.
        let channel = usize::from(settings.inflight) + 2 * usize::from(settings.queue) + 64;
        let (client, event_loop) = match settings.version {
            Version::V4 => {
                let (client, event_loop) = open_v4(settings, transport, will, forget, login, channel);
                (Client::V4(client), EventLoop::V4(Box::new(event_loop)))
            }
            Version::V5 => {
                let (client, event_loop) = open_v5(settings, transport, will, forget, login, channel);
                (Client::V5(client), EventLoop::V5(Box::new(event_loop)))
            }
        };
        let polling = poll(event_loop);
        let (unsent, unacked) = (VecDeque::new(), HashMap::new());
        Ok(Connection { client, polling, behind: false, full: false, unsent, unacked })
    }

    /// Whether publishes have been read that [`next`](Connection::next) has not given out.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// The next event. Safe to drop and call again; never returns once the connection is over. What went out is of
    /// interest to whom there was no room for before, and to nobody else: each turn of the caller's costs as much as
    /// the writing.
    pub(super) async fn next(&mut self) -> Event {
        while let Some(polled) = self.polling.next().await {
            match polled {
                Ok((Packet::WroteDisconnect, _)) => return Event::Closed,
                Ok((packet, behind)) => {
                    self.behind = behind;
                    match self.event(packet) {
                        Event::Sent if !std::mem::take(&mut self.full) => {}
                        event => return event,
                    }
                }
                Err(loss) => return Event::Lost(loss),
            }
        }
        std::future::pending().await
    }

    fn event(&mut self, packet: Packet) -> Event {
        match packet {
            Packet::Connected(granted) => Event::Connected(granted),
            Packet::Publish(arrival, token) => Event::Publish(arrival, token),
            Packet::PubAck { id, refused } => match self.unacked.remove(&id) {
                Some(tag) => Event::Acked { tag, refused },
                None => Event::Alive,
            },
            Packet::SubAck { refused } => Event::Subscribed { refused },
            Packet::Other => Event::Alive,
            Packet::Wrote | Packet::WroteDisconnect | Packet::WrotePublish { id: 0 } => Event::Sent,
            Packet::WrotePublish { id } => {
                // The loop takes messages off its channel in order, so the oldest tag has just got its id.
                if let Some(tag) = self.unsent.pop_front() {
                    self.unacked.insert(id, tag);
                }
                Event::Sent
            }
        }
    }

    /// Hands over a message; one of QoS 1 is reported by its tag when the broker has it.
    pub(super) fn publish(&mut self, tag: u64, message: &Message) -> Result<(), Full> {
        let Message { topic, payload, retain, .. } = message;
        let done = match &self.client {
            Client::V4(client) => {
                client.try_publish(topic.as_str(), qos_v4(message.qos), *retain, payload.clone()).is_ok()
            }
            Client::V5(client) => {
                let properties = properties_to_v5(&message.properties);
                let qos = qos_v5(message.qos);
                client
                    .try_publish_with_properties(topic.as_str(), qos, *retain, payload.clone(), properties)
                    .is_ok()
            }
        };
        if done && message.qos == Qos::AtLeastOnce {
            self.unsent.push_back(tag);
        }
        self.room_for(done)
    }

    /// Acknowledges an arrival of this connection.
    pub(super) fn ack(&mut self, token: Token) -> Result<(), Full> {
        let done = match &self.client {
            Client::V4(client) => {
                let mut publish = rumqttc::Publish::new("", rumqttc::QoS::AtLeastOnce, Vec::new());
                publish.pkid = token.0;
                client.try_ack(&publish).is_ok()
            }
            Client::V5(client) => {
                let mut publish =
                    packet5::Publish::new("", v5::mqttbytes::QoS::AtLeastOnce, Bytes::new(), None);
                publish.pkid = token.0;
                client.try_ack(&publish).is_ok()
            }
        };
        self.room_for(done)
    }

    /// Subscribes to all filters in one packet.
    pub(super) fn subscribe(&mut self, filters: &[(String, Qos)]) -> Result<(), Full> {
        let done = match &self.client {
            Client::V4(client) => {
                let filter =
                    |(path, qos): &(String, Qos)| rumqttc::SubscribeFilter::new(path.clone(), qos_v4(*qos));
                client.try_subscribe_many(filters.iter().map(filter)).is_ok()
            }
            Client::V5(client) => {
                let filter = |(path, qos): &(String, Qos)| packet5::Filter::new(path, qos_v5(*qos));
                client.try_subscribe_many(filters.iter().map(filter)).is_ok()
            }
        };
        self.room_for(done)
    }

    /// Ends a subscription.
    pub(super) fn unsubscribe(&mut self, filter: &str) -> Result<(), Full> {
        let done = match &self.client {
            Client::V4(client) => client.try_unsubscribe(filter).is_ok(),
            Client::V5(client) => client.try_unsubscribe(filter).is_ok(),
        };
        self.room_for(done)
    }

    /// Ends the connection in order; the broker then drops our will. [`Event::Closed`] follows.
    pub(super) fn disconnect(&mut self) -> Result<(), Full> {
        let done = match &self.client {
            Client::V4(client) => client.try_disconnect().is_ok(),
            Client::V5(client) => client.try_disconnect().is_ok(),
        };
        self.room_for(done)
    }

    /// What was handed over, or not.
    fn room_for(&mut self, done: bool) -> Result<(), Full> {
        self.full |= !done;
        if done { Ok(()) } else { Err(Full) }
    }
}

/// Whether the next connection could be opened with the files as they are.
///
/// # Errors
/// What is wrong with one of them.
pub(super) fn look_at_files(settings: &Settings, certificates: &Certificates) -> Result<(), Loss> {
    transport(&settings.address, certificates).map(drop)
}

/// Polls until the connection is over, by an error or by our own DISCONNECT, and never again.
fn poll(event_loop: EventLoop) -> Polling {
    let polls = unfold(Some(Stage::Open(event_loop)), |stage| async move {
        let (mut remains, loss) = match stage? {
            Stage::Open(mut event_loop) => match event_loop.next().await {
                Ok(packet) => {
                    let behind = event_loop.is_behind();
                    let over = matches!(packet, Packet::WroteDisconnect);
                    return Some((Ok((packet, behind)), (!over).then_some(Stage::Open(event_loop))));
                }
                Err(loss) => (remains(event_loop), loss),
            },
            Stage::Ending(remains, loss) => (remains, loss),
        };
        Some(match remains.pop_front() {
            Some(packet) => (Ok((packet, false)), Some(Stage::Ending(remains, loss))),
            None => (Err(loss), None),
        })
    });
    // Asked again after its end, it has to say so again.
    Box::pin(polls.fuse())
}

impl EventLoop {
    /// What is there already, or else what comes.
    async fn next(&mut self) -> Result<Packet, Loss> {
        match self {
            EventLoop::V4(event_loop) => match event_loop.state.events.pop_front() {
                Some(event) => Ok(packet_v4(event)),
                None => event_loop.poll().await.map(packet_v4).map_err(loss_v4),
            },
            EventLoop::V5(event_loop) => match event_loop.state.events.pop_front() {
                Some(event) => Ok(packet_v5(event)),
                None => event_loop.poll().await.map(packet_v5).map_err(loss_v5),
            },
        }
    }

    /// Whether a publish has been read that was not given out.
    fn is_behind(&self) -> bool {
        use v5::Event;
        match self {
            EventLoop::V4(event_loop) => event_loop
                .state
                .events
                .iter()
                .any(|event| matches!(event, rumqttc::Event::Incoming(rumqttc::Packet::Publish(_)))),
            EventLoop::V5(event_loop) => event_loop
                .state
                .events
                .iter()
                .any(|event| matches!(event, Event::Incoming(packet5::Packet::Publish(_)))),
        }
    }
}

/// Acknowledgements that were read together with what ended the connection: without them their messages would be sent
/// twice. Arrivals come again.
fn remains(event_loop: EventLoop) -> VecDeque<Packet> {
    let mut packets: VecDeque<Packet> = match event_loop {
        EventLoop::V4(event_loop) => event_loop.state.events.into_iter().map(packet_v4).collect(),
        EventLoop::V5(event_loop) => event_loop.state.events.into_iter().map(packet_v5).collect(),
    };
    packets.retain(|packet| matches!(packet, Packet::PubAck { .. } | Packet::WrotePublish { .. }));
    packets
}

fn read_password(path: &Path) -> Result<String, Loss> {
    let broken = |what: String| Loss::Broken(format!("mqtt.password_file {}: {what}", path.display()));
    let length = std::fs::metadata(path).map_err(|error| broken(error.to_string()))?.len();
    if length > PASSWORD_BYTES_MAX {
        return Err(broken(format!("{length} bytes are no password")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| broken(error.to_string()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn host_port(address: &Address) -> (&str, u16) {
    match address {
        Address::Tcp { host, port, .. } => (host, *port),
        Address::Unix { path } => (path, 0),
    }
}

fn transport(address: &Address, certificates: &Certificates) -> Result<Transport, Loss> {
    Ok(match address {
        Address::Tcp { tls: None, .. } => Transport::tcp(),
        Address::Tcp { tls: Some(files), .. } => encrypted(files, certificates)?,
        Address::Unix { .. } => Transport::unix(),
    })
}

#[cfg(feature = "tls")]
fn encrypted(files: &tls::Files, certificates: &Certificates) -> Result<Transport, Loss> {
    Ok(Transport::tls_with_config(rumqttc::TlsConfiguration::Rustls(files.read(certificates)?)))
}

#[cfg(not(feature = "tls"))]
fn encrypted(_: &tls::Files, _: &Certificates) -> Result<Transport, Loss> {
    Err(Loss::Broken("this tractd was built without TLS".to_owned()))
}

/// Without nodelay every QoS 1 exchange waits 40 ms for a delayed acknowledgement of TCP's.
fn network() -> NetworkOptions {
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_S_MAX);
    network
}

fn open_v4(
    settings: &Settings,
    transport: Transport,
    will: &Message,
    forget: bool,
    login: Option<(String, String)>,
    channel: usize,
) -> (rumqttc::AsyncClient, rumqttc::EventLoop) {
    let (host, port) = host_port(&settings.address);
    let mut options = rumqttc::MqttOptions::new(&settings.client_id, host, port);
    options.set_transport(transport);
    options.set_keep_alive(settings.keep_alive);
    options.set_clean_session(forget);
    options.set_manual_acks(true);
    options.set_inflight(settings.inflight);
    options.set_max_packet_size(settings.packet_bytes_max as usize, settings.packet_bytes_max as usize);
    options.set_last_will(rumqttc::LastWill::new(
        &will.topic,
        will.payload.to_vec(),
        qos_v4(will.qos),
        will.retain,
    ));
    if let Some((user, password)) = login {
        options.set_credentials(user, password);
    }
    let (client, mut event_loop) = rumqttc::AsyncClient::new(options, channel);
    event_loop.set_network_options(network());
    (client, event_loop)
}

fn open_v5(
    settings: &Settings,
    transport: Transport,
    will: &Message,
    forget: bool,
    login: Option<(String, String)>,
    channel: usize,
) -> (v5::AsyncClient, v5::EventLoop) {
    let (host, port) = host_port(&settings.address);
    let mut options = v5::MqttOptions::new(&settings.client_id, host, port);
    options.set_transport(transport);
    options.set_network_options(network());
    options.set_connection_timeout(CONNECT_S_MAX);
    options.set_keep_alive(settings.keep_alive);
    options.set_clean_start(forget);
    options.set_session_expiry_interval(Some(settings.session_expiry_s));
    options.set_manual_acks(true);
    // The broker sends no more requests than we have places: admission control to the last client.
    options.set_receive_maximum(Some(settings.queue));
    // The default of 10 KiB drops the connection on a larger request, again after every reconnect.
    options.set_max_packet_size(Some(settings.packet_bytes_max));
    // The default reserves 14 MB for 65,535 packet ids.
    options.set_outgoing_inflight_upper_limit(settings.inflight);
    options.set_last_will(packet5::LastWill::new(
        &will.topic,
        will.payload.to_vec(),
        qos_v5(will.qos),
        will.retain,
        None,
    ));
    if let Some((user, password)) = login {
        options.set_credentials(user, password);
    }
    v5::AsyncClient::new(options, channel)
}

fn packet_v4(event: rumqttc::Event) -> Packet {
    use rumqttc::{Outgoing, Packet as P};
    match event {
        rumqttc::Event::Incoming(P::ConnAck(connack)) => Packet::Connected(Granted {
            session_present: connack.session_present,
            packet_bytes_max: None,
            receive_max: None,
            keep_alive: None,
        }),
        rumqttc::Event::Incoming(P::Publish(publish)) => {
            let token = (publish.qos != rumqttc::QoS::AtMostOnce).then_some(Token(publish.pkid));
            let arrival = Arrival {
                topic: publish.topic,
                payload: publish.payload,
                retain: publish.retain,
                dup: publish.dup,
                qos: if token.is_some() { Qos::AtLeastOnce } else { Qos::AtMostOnce },
                properties: Properties::default(),
            };
            Packet::Publish(arrival, token)
        }
        rumqttc::Event::Incoming(P::PubAck(ack)) => Packet::PubAck { id: ack.pkid, refused: None },
        rumqttc::Event::Incoming(P::SubAck(ack)) => {
            let failed = |code: &_| !matches!(code, rumqttc::SubscribeReasonCode::Success(_));
            Packet::SubAck { refused: positions(&ack.return_codes, failed) }
        }
        rumqttc::Event::Incoming(_) => Packet::Other,
        rumqttc::Event::Outgoing(outgoing) => match outgoing {
            Outgoing::Publish(id) => Packet::WrotePublish { id },
            Outgoing::Disconnect => Packet::WroteDisconnect,
            _ => Packet::Wrote,
        },
    }
}

fn packet_v5(event: v5::Event) -> Packet {
    use packet5::{Packet as P, PubAckReason, SubscribeReasonCode};
    match event {
        v5::Event::Incoming(P::ConnAck(connack)) => {
            let properties = connack.properties.as_ref();
            Packet::Connected(Granted {
                session_present: connack.session_present,
                packet_bytes_max: properties.and_then(|p| p.max_packet_size),
                receive_max: properties.and_then(|p| p.receive_max),
                keep_alive: properties
                    .and_then(|p| p.server_keep_alive)
                    .map(|seconds| Duration::from_secs(seconds.into())),
            })
        }
        v5::Event::Incoming(P::Publish(publish)) => arrival_v5(publish),
        v5::Event::Incoming(P::PubAck(ack)) => {
            // Nobody listening is no failure: the requester may have gone.
            let fine = matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
            Packet::PubAck { id: ack.pkid, refused: (!fine).then(|| format!("{:?}", ack.reason)) }
        }
        v5::Event::Incoming(P::SubAck(ack)) => {
            let failed = |code: &_| !matches!(code, SubscribeReasonCode::Success(_));
            Packet::SubAck { refused: positions(&ack.return_codes, failed) }
        }
        v5::Event::Incoming(_) => Packet::Other,
        v5::Event::Outgoing(outgoing) => match outgoing {
            rumqttc::Outgoing::Publish(id) => Packet::WrotePublish { id },
            rumqttc::Outgoing::Disconnect => Packet::WroteDisconnect,
            _ => Packet::Wrote,
        },
    }
}

fn arrival_v5(publish: packet5::Publish) -> Packet {
    // A topic that is no UTF-8 becomes one that parses as none of ours, and is counted as such.
    let topic = String::from_utf8_lossy(&publish.topic).into_owned();
    let token = (publish.qos != v5::mqttbytes::QoS::AtMostOnce).then_some(Token(publish.pkid));
    let properties = publish.properties.map_or_else(Properties::default, |p| Properties {
        response_topic: p.response_topic,
        // Remembered for longer than the packet, so not as a part of the buffer it was read into.
        correlation: p.correlation_data.map(|data| Bytes::copy_from_slice(&data)),
        expiry_s: p.message_expiry_interval,
        content_type: p.content_type,
        user: Vec::new(),
    });
    let arrival = Arrival {
        topic,
        payload: publish.payload,
        retain: publish.retain,
        dup: publish.dup,
        qos: if token.is_some() { Qos::AtLeastOnce } else { Qos::AtMostOnce },
        properties,
    };
    Packet::Publish(arrival, token)
}

fn properties_to_v5(properties: &Properties) -> packet5::PublishProperties {
    packet5::PublishProperties {
        response_topic: properties.response_topic.clone(),
        correlation_data: properties.correlation.clone(),
        message_expiry_interval: properties.expiry_s,
        content_type: properties.content_type.clone(),
        user_properties: properties
            .user
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect(),
        ..packet5::PublishProperties::default()
    }
}

fn positions<T>(codes: &[T], failed: impl Fn(&T) -> bool) -> Vec<usize> {
    codes.iter().enumerate().filter(|(_, code)| failed(code)).map(|(position, _)| position).collect()
}

fn qos_v4(qos: Qos) -> rumqttc::QoS {
    match qos {
        Qos::AtMostOnce => rumqttc::QoS::AtMostOnce,
        Qos::AtLeastOnce => rumqttc::QoS::AtLeastOnce,
    }
}

fn qos_v5(qos: Qos) -> v5::mqttbytes::QoS {
    match qos {
        Qos::AtMostOnce => v5::mqttbytes::QoS::AtMostOnce,
        Qos::AtLeastOnce => v5::mqttbytes::QoS::AtLeastOnce,
    }
}

fn loss_v4(error: rumqttc::ConnectionError) -> Loss {
    use rumqttc::{ConnectionError as E, StateError as S};
    match error {
        E::MqttState(S::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded(_))) => {
            Loss::ArrivalTooLarge
        }
        E::ConnectionRefused(code) => Loss::Refused(format!("{code:?}")),
        E::Io(error) => Loss::Broken(error.to_string()),
        E::MqttState(S::ConnectionAborted) => Loss::Closed,
        E::MqttState(S::AwaitPingResp) => Loss::Broken(SILENT.to_owned()),
        other => Loss::Broken(other.to_string()),
    }
}

fn loss_v5(error: v5::ConnectionError) -> Loss {
    use packet5::DisconnectReasonCode;
    use v5::{ConnectionError as E, StateError as S};
    match error {
        E::MqttState(S::ServerDisconnect { reason_code: DisconnectReasonCode::SessionTakenOver, .. }) => {
            Loss::TakenOver
        }
        E::MqttState(S::ServerDisconnect { reason_code, .. }) => {
            Loss::Broken(format!("the broker disconnected us: {reason_code:?}"))
        }
        E::MqttState(
            S::IncomingPacketTooLarge { .. }
            | S::Deserialization(v5::mqttbytes::Error::PayloadSizeLimitExceeded { .. }),
        ) => Loss::ArrivalTooLarge,
        E::ConnectionRefused(code) => Loss::Refused(format!("{code:?}")),
        E::Io(error) => Loss::Broken(error.to_string()),
        E::MqttState(S::ConnectionAborted) => Loss::Closed,
        E::MqttState(S::AwaitPingResp) => Loss::Broken(SILENT.to_owned()),
        other => Loss::Broken(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::config::Config;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    /// A connection to a broker that lets its only client in, answers with `answer` once it has been sent `after` bytes,
    /// and takes whatever else comes.
    async fn connected(after: usize, answer: &'static [u8]) -> Connection {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("mqtt://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 4096];
            assert!(client.read(&mut bytes).await.unwrap() > 0);
            client.write_all(b"\x20\x03\0\0\0").await.unwrap();
            let mut length = 0;
            while length < after {
                length += client.read(&mut bytes).await.unwrap();
            }
            client.write_all(answer).await.unwrap();
            while client.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
        });
        let settings = Config { url, ..Config::default() }.settings("n1").unwrap();
        let certificates = Certificates::new(&crate::config::Config::default(), 0);
        let will = Message::notice("status".to_owned(), "lost");
        let mut connection = Connection::open(&settings, &certificates, &will, false).unwrap();
        assert!(matches!(connection.next().await, Event::Connected(_)));
        connection
    }

    fn message(qos: Qos) -> Message {
        let properties = Properties::default();
        Message { topic: "t".to_owned(), payload: "four".into(), retain: false, qos, properties }
    }

    #[tokio::test]
    async fn what_was_read_with_the_end_of_the_connection_still_counts() {
        // Two publishes of 12 bytes each. Both are acknowledged, and no packet has the type that follows.
        let mut connection = connected(24, b"\x40\x02\0\x01\x40\x02\0\x02\0\0").await;
        for tag in [7, 8] {
            connection.publish(tag, &message(Qos::AtLeastOnce)).unwrap();
        }
        assert!(matches!(connection.next().await, Event::Acked { tag: 7, refused: None }));
        assert!(matches!(connection.next().await, Event::Acked { tag: 8, refused: None }));
        assert!(matches!(connection.next().await, Event::Lost(_)));
        assert!(timeout(Duration::from_millis(100), connection.next()).await.is_err());
    }

    #[tokio::test]
    async fn what_went_out_is_told_to_whom_there_was_no_room_for() {
        let mut connection = connected(0, b"").await;
        let message = message(Qos::AtMostOnce);
        connection.publish(0, &message).unwrap();
        let told = timeout(Duration::from_millis(100), connection.next()).await;
        assert!(told.is_err(), "{told:?}");

        while connection.publish(0, &message).is_ok() {}
        assert!(matches!(connection.next().await, Event::Sent));
        assert_eq!(connection.publish(0, &message), Ok(()));
    }
}
