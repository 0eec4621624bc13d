//! Request and reply through a broker, MQTT 5. The only file of this crate that names rumqttc.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAckProperties, ConnectReturnCode, Packet, PubAckReason, Publish, PublishProperties,
    SubscribeReasonCode,
};
use rumqttc::v5::{Client, Connection, ConnectionError, Event, MqttOptions};
use rumqttc::{NetworkOptions, Transport};
use tractd_wire::topic::{Format, Node, Prefix, RequestTopic, Topic, Word};
use tractd_wire::{Name, Selector};

use crate::at::{ANY_NODE, At};

/// Largest reply taken from a broker, in bytes: the default of the daemon's own requests, and some head.
const PACKET_LEN_MAX: u32 = tractd_wire::BODY_LEN_MAX + 64 * 1024;
/// Exchanges under way where as many as possible are measured: the daemon's default `mqtt.queue`.
pub const WINDOW: usize = 16;
/// What a reply may take beyond the request's own deadline.
const GRACE: Duration = Duration::from_secs(5);
/// What a reply may take where the daemon's default deadline holds.
const PATIENCE: Duration = Duration::from_secs(30);
/// The variable that holds the broker's password.
const PASSWORD: &str = "TRACTD_MQTT_PASSWORD";
/// The variables that name PEM files for TLS: who may have signed the broker's certificate (the system's authorities
/// where unset), and our own certificate with its key.
pub(crate) const CA: &str = "TRACTD_MQTT_CA";
pub(crate) const CERT: &str = "TRACTD_MQTT_CERT";
#[cfg(feature = "tls")]
const KEY: &str = "TRACTD_MQTT_KEY";

/// A broker and the node behind it.
#[derive(Debug, Clone)]
pub struct Road<'a> {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Host of the broker.
    pub host: &'a str,
    /// Its port.
    pub port: u16,
    /// Who logs in, if anybody.
    pub user: Option<&'a str>,
    /// The node, or `_any`.
    pub node: &'a str,
    /// `tractd/v1` unless the operator chose another.
    pub prefix: &'a str,
}

impl<'a> Road<'a> {
    /// The road to an address behind a broker; none to a socket.
    pub fn of(at: &'a At, prefix: &'a str) -> Option<Self> {
        match at {
            At::Unix(_) => None,
            At::Mqtt { tls, host, port, user, node } => {
                Some(Self { tls: *tls, host, port: *port, user: user.as_deref(), node, prefix })
            }
        }
    }
}

/// Sends `payload` to `model` and waits for the reply's payload.
pub fn ask(
    road: &Road<'_>,
    model: &str,
    format: Format,
    payload: Vec<u8>,
    deadline_ms: u32,
) -> Result<Vec<u8>> {
    // The name is in the request's topic and in the reply's: nobody else may be using it on this broker.
    let client_id = client_id();
    let request = request_to(road, model, format, &client_id)?;
    let prefix = Prefix::parse(road.prefix)?;
    let reply_topic = request.reply().under(prefix).to_string();
    let request_topic = Topic::Request(request).under(prefix).to_string();
    let patience = match deadline_ms {
        0 => PATIENCE,
        ms => Duration::from_millis(ms.into()) + GRACE,
    };
    let at = format!("{}:{}", road.host, road.port);
    let nobody = || {
        format!(
            "no node listens to {request_topic}; the connected ones: \
             mosquitto_sub -h {} -p {} -v -W 1 -t '{}/+/status'",
            road.host, road.port, road.prefix
        )
    };
    let (client, mut connection) = Client::new(options(road, &client_id)?, 8);
    client.subscribe(&reply_topic, QoS::AtLeastOnce)?;
    let until = Instant::now() + patience;
    let mut payload = Some(payload);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(event) = connection.recv_timeout(left) else {
            bail!("no reply through {at} within {} ms: {}", patience.as_millis(), nobody());
        };
        let packet = match event {
            Ok(Event::Incoming(packet)) => packet,
            Ok(Event::Outgoing(_)) => continue,
            Err(error) => return Err(broker_error(error)).with_context(|| format!("the broker at {at}")),
        };
        match packet {
            Packet::ConnAck(ack) => {
                let limit = ack.properties.and_then(|properties| properties.max_packet_size);
                let size = payload.as_ref().map_or(0, Vec::len);
                // A packet above the broker's limit would end the connection without a word.
                if limit.is_some_and(|limit| size as u64 + 1024 > limit.into()) {
                    bail!("the input has {size} bytes; the broker at {at} takes no packet of that size");
                }
            }
            Packet::SubAck(ack) => {
                if ack.return_codes.iter().any(|code| !matches!(code, SubscribeReasonCode::Success(_))) {
                    bail!("the broker at {at} does not let us read {reply_topic}; see its access list");
                }
                let properties = PublishProperties {
                    response_topic: Some(reply_topic.clone()),
                    correlation_data: Some(client_id.clone().into_bytes().into()),
                    message_expiry_interval: Some(
                        u32::try_from(patience.as_secs()).unwrap_or(u32::MAX).max(1),
                    ),
                    ..PublishProperties::default()
                };
                let bytes = payload.take().unwrap_or_default();
                client.publish_with_properties(&request_topic, QoS::AtLeastOnce, false, bytes, properties)?;
            }
            Packet::PubAck(ack) => match ack.reason {
                PubAckReason::Success => {}
                PubAckReason::NoMatchingSubscribers => bail!(nobody()),
                PubAckReason::NotAuthorized => {
                    bail!("the broker at {at} does not let us write {request_topic}; see its access list")
                }
                other => bail!("the broker at {at} did not take the request: {other:?}"),
            },
            Packet::Publish(publish) if publish.topic.as_ref() == reply_topic.as_bytes() => {
                return Ok(publish.payload.to_vec());
            }
            Packet::Disconnect(bye) => bail!("the broker at {at} hung up: {:?}", bye.reason_code),
            _ => {}
        }
    }
}

/// A connection that stays: one exchange at a time, QoS 1. Knows no access list's refusals; [`ask`] does.
pub struct Line<'a> {
    road: Road<'a>,
    client_id: String,
    client: Client,
    connection: Connection,
    granted: Granted,
    /// What came in while another packet was waited for.
    early: VecDeque<Publish>,
}

/// What the broker said when it let us in; where it said nothing, what MQTT 5 says instead.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    /// Largest packet taken, in bytes.
    pub(crate) packet_bytes_max: Option<u32>,
    /// QoS 1 messages taken unacknowledged.
    pub(crate) receive_max: u16,
    pub(crate) retain: bool,
    pub(crate) shared_subscriptions: bool,
    /// 1 where QoS 2 is missing, 0 where QoS 1 is.
    pub(crate) qos_max: u8,
}

impl Granted {
    fn of(properties: Option<ConnAckProperties>) -> Self {
        let p = properties.as_ref();
        Self {
            packet_bytes_max: p.and_then(|p| p.max_packet_size),
            receive_max: p.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
            retain: p.and_then(|p| p.retain_available) != Some(0),
            shared_subscriptions: p.and_then(|p| p.shared_subscription_available) != Some(0),
            qos_max: p.and_then(|p| p.max_qos).unwrap_or(2),
        }
    }
}

/// A publish that came in.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    /// It was kept by the broker and is not new.
    pub(crate) retain: bool,
}

impl<'a> Line<'a> {
    /// Connects and listens to its own mailbox.
    pub fn open(road: &Road<'a>) -> Result<Self> {
        let client_id = client_id();
        let (client, connection) = Client::new(options(road, &client_id)?, 2 * WINDOW);
        let mut line = Self {
            road: road.clone(),
            client_id,
            client,
            connection,
            granted: Granted::of(None),
            early: VecDeque::new(),
        };
        line.connect()?;
        let mailbox = line.mailbox();
        line.subscribe(&mailbox)?;
        Ok(line)
    }

    fn connect(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Event::Incoming(Packet::ConnAck(ack)) = self.event(until)? {
                self.granted = Granted::of(ack.properties);
                return Ok(());
            }
        }
    }

    /// Where requests to `model` go on this line.
    pub fn request_topic(&self, model: &str, format: Format) -> Result<String> {
        let request = request_to(&self.road, model, format, &self.client_id)?;
        Ok(Topic::Request(request).under(Prefix::parse(self.road.prefix)?).to_string())
    }

    /// Publishes `payload` to `topic` and gives what comes into the mailbox.
    pub fn exchange(&mut self, topic: &str, payload: Vec<u8>, patience: Duration) -> Result<Vec<u8>> {
        self.send(topic, payload)?;
        Ok(self.receive(Instant::now() + patience)?.payload.to_vec())
    }

    /// As many exchanges as `count`, with at most [`WINDOW`] under way.
    pub fn exchanges(&mut self, topic: &str, payload: &[u8], count: usize, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let mut sent = 0;
        for received in 0..count {
            while sent < count && sent - received < WINDOW {
                self.send(topic, payload.to_vec())?;
                sent += 1;
            }
            self.receive(until)?;
        }
        Ok(())
    }

    /// What comes next on any subscription, `None` when nothing has come by `until`.
    pub(crate) fn heard(&mut self, until: Instant) -> Result<Option<Heard>> {
        let heard = |publish: Publish| Heard {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.to_vec(),
            retain: publish.retain,
        };
        if let Some(publish) = self.early.pop_front() {
            return Ok(Some(heard(publish)));
        }
        loop {
            let wait = until.saturating_duration_since(Instant::now());
            match self.connection.recv_timeout(wait) {
                Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => return Ok(Some(heard(publish))),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(broker_error(error)).with_context(|| self.at()),
                Err(_) => return Ok(None),
            }
        }
    }

    /// Publishes and waits for the broker's word.
    pub(crate) fn publish(&mut self, topic: &str, retain: bool, payload: &[u8]) -> Result<PubAckReason> {
        self.client.publish(topic, QoS::AtLeastOnce, retain, payload.to_vec())?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.event(until)? {
                Event::Incoming(Packet::PubAck(ack)) => return Ok(ack.reason),
                Event::Incoming(Packet::Publish(publish)) => self.early.push_back(publish),
                _ => {}
            }
        }
    }

    /// What the broker said when it let us in.
    pub(crate) fn granted(&self) -> &Granted {
        &self.granted
    }

    fn send(&self, topic: &str, payload: Vec<u8>) -> Result<()> {
        let properties = PublishProperties {
            response_topic: Some(self.mailbox()),
            // Nobody else sends into this mailbox, but a correlation that came before is answered from the daemon's
            // memory.
            correlation_data: Some(unique_correlation().to_vec().into()),
            ..PublishProperties::default()
        };
        Ok(self.client.publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties)?)
    }

    fn at(&self) -> String {
        format!("the broker at {}:{}", self.road.host, self.road.port)
    }

    /// The name nobody else uses on this broker.
    pub(crate) fn name(&self) -> &str {
        &self.client_id
    }

    fn mailbox(&self) -> String {
        format!("{}/_res/{}", self.road.prefix, self.client_id)
    }

    /// Subscribes, and fails where the broker does not let us.
    pub(crate) fn subscribe(&mut self, filter: &str) -> Result<()> {
        self.client.subscribe(filter, QoS::AtLeastOnce)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.event(until)? {
                Event::Incoming(Packet::SubAck(ack)) => {
                    let refused = |code: &_| !matches!(code, SubscribeReasonCode::Success(_));
                    if ack.return_codes.iter().any(refused) {
                        bail!("{} does not let us read {filter}; see its access list", self.at());
                    }
                    return Ok(());
                }
                Event::Incoming(Packet::Publish(publish)) => self.early.push_back(publish),
                _ => {}
            }
        }
    }

    fn receive(&mut self, until: Instant) -> Result<Publish> {
        if let Some(publish) = self.early.pop_front() {
            return Ok(publish);
        }
        loop {
            if let Event::Incoming(Packet::Publish(publish)) = self.event(until)? {
                return Ok(publish);
            }
        }
    }

    fn event(&mut self, until: Instant) -> Result<Event> {
        match self.connection.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Ok(event)) => Ok(event),
            Ok(Err(error)) => Err(broker_error(error)).with_context(|| self.at()),
            Err(_) => bail!("nothing came through {} in time", self.at()),
        }
    }
}

/// A client on a thread of its own that sends back what it is sent: what a broker costs by itself.
pub struct Echo {
    topic: String,
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Echo {
    /// Connects the echoing client. It answers `reply_bytes`, whatever it is sent, so that both sides of a comparison
    /// send as much. `core` is the only processor it may run on.
    pub fn start(road: &Road<'_>, reply_bytes: usize, core: Option<usize>) -> Result<Self> {
        let topic = format!("{}/_echo/{:08x}", road.prefix, unique());
        let (stop, stopped) = std::sync::mpsc::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (host, user, prefix) =
            (road.host.to_owned(), road.user.map(str::to_owned), road.prefix.to_owned());
        let (port, tls, listen) = (road.port, road.tls, topic.clone());
        let reply = vec![0; reply_bytes];
        let thread = std::thread::spawn(move || {
            if let Some(core) = core {
                let mut cores = rustix::thread::CpuSet::new();
                cores.set(core);
                rustix::thread::sched_setaffinity(None, &cores).context("pinning the echo client")?;
            }
            let road =
                Road { tls, host: &host, port, user: user.as_deref(), node: ANY_NODE, prefix: &prefix };
            let mut line = Line::open(&road)?;
            line.subscribe(&listen)?;
            let _ = ready.send(()); // nobody waits once the benchmark gave up
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                // Often enough to notice the end.
                let Ok(publish) = line.receive(Instant::now() + Duration::from_millis(200)) else { continue };
                let reply_to = publish.properties.and_then(|properties| properties.response_topic);
                if let Some(topic) = reply_to {
                    line.client.publish(topic, QoS::AtLeastOnce, false, reply.clone())?;
                }
            }
            Ok(())
        });
        match is_ready.recv_timeout(PATIENCE) {
            Ok(()) => Ok(Self { topic, stop, thread }),
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                _ => bail!("the echo client did not come up"),
            },
        }
    }

    /// Where to send what is to be echoed.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Ends the client.
    pub fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

fn options(road: &Road<'_>, client_id: &str) -> Result<MqttOptions> {
    let mut options = MqttOptions::new(client_id, road.host, road.port);
    options.set_keep_alive(Duration::from_secs(30));
    options.set_max_packet_size(Some(PACKET_LEN_MAX));
    // Without this, Nagle's algorithm and delayed acknowledgements cost 40 ms a side.
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    if road.tls {
        options.set_transport(encrypted()?);
    }
    if let Some(user) = road.user {
        let password =
            std::env::var(PASSWORD).with_context(|| format!("set {PASSWORD} to the password of {user}"))?;
        options.set_credentials(user, password);
    }
    Ok(options)
}

#[cfg(feature = "tls")]
fn encrypted() -> Result<Transport> {
    // rumqttc builds its side of TLS with the process's provider; a second call finds the first one's.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = match (pem(CERT)?, pem(KEY)?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => bail!("set both {CERT} and {KEY}, or none"),
    };
    match (pem(CA)?, client) {
        (Some(ca), client) => Ok(Transport::tls(ca, client, None)),
        (None, None) => Ok(Transport::tls_with_default_config()),
        (None, Some(_)) => bail!("set {CA} beside {CERT}"),
    }
}

#[cfg(feature = "tls")]
fn pem(variable: &str) -> Result<Option<Vec<u8>>> {
    let Some(path) = std::env::var_os(variable) else { return Ok(None) };
    let path = std::path::Path::new(&path);
    Ok(Some(std::fs::read(path).with_context(|| format!("{variable}={}", path.display()))?))
}

#[cfg(not(feature = "tls"))]
fn encrypted() -> Result<Transport> {
    bail!("this tractctl was built without TLS")
}

fn broker_error(error: ConnectionError) -> anyhow::Error {
    match error {
        ConnectionError::Io(error) => anyhow::anyhow!("cannot be reached: {error}"),
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                anyhow::anyhow!("wants a login: mqtt://USER@host and {PASSWORD}")
            }
            other => anyhow::anyhow!("refused the connection: {other:?}"),
        },
        other => anyhow::anyhow!("{other}"),
    }
}

/// A name that nobody else uses on the broker.
fn client_id() -> String {
    format!("tractctl-{}-{:08x}", std::process::id(), unique())
}

fn request_to<'a>(
    road: &Road<'a>,
    model: &'a str,
    format: Format,
    client_id: &'a str,
) -> Result<RequestTopic<'a>> {
    let node = match road.node {
        ANY_NODE => Node::Any,
        name => Node::Named(Name::parse(name)?),
    };
    Ok(RequestTopic {
        node,
        model: Selector::parse(model)?,
        format,
        client: Word::parse(client_id)?,
        id: None,
    })
}

/// Differs between calls within a process and, with the process id, between processes.
fn unique() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.subsec_nanos() ^ (now.as_secs() as u32).rotate_left(16)
}

/// 16 bytes that no earlier request of this process had.
fn unique_correlation() -> [u8; 16] {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut correlation = [0; 16];
    correlation[..8].copy_from_slice(&next.to_le_bytes());
    correlation[8..12].copy_from_slice(&unique().to_le_bytes());
    correlation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_is_not_there_is_said() {
        // Free a moment ago, so that nobody listens there.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let road =
            Road { tls: false, host: "127.0.0.1", port, user: None, node: "_any", prefix: "tractd/v1" };
        let error = format!("{:#}", ask(&road, "m", Format::Json, vec![], 100).unwrap_err());
        assert!(error.starts_with(&format!("the broker at 127.0.0.1:{port}: cannot be reached")), "{error}");
    }
}
