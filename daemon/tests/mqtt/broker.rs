//! A broker that misbehaves on demand, on rumqttc's packet codec: the faults mosquitto cannot be asked for.
//!
//! Both protocol versions, QoS 0 and 1, wills, retained messages, sessions that outlive their connection. It works in
//! MQTT 5's packets; 3.1.1 is translated at the edge.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnAckProperties, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode,
    Packet, PingResp, PubAck, PubAckReason, Publish, PublishProperties, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error, QoS};

/// How often a connection looks whether the faults have changed.
const GRAIN: Duration = Duration::from_millis(10);
/// A peer that takes nothing for this long is hung up on, so that a test ends.
const WRITE: Duration = Duration::from_secs(5);
/// A read that ends so ends for now: its time is up, or the whole process was stopped and went on.
const PAUSES: [ErrorKind; 3] = [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted];

/// What goes wrong; nothing by default.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Nothing is read any more, from old connections and new ones.
    pub frozen: bool,
    pub refuse_connect: Option<ConnectReturnCode>,
    pub refuse_subscribe: bool,
    pub refuse_publish: Option<PubAckReason>,
    /// Announced in CONNACK; a larger packet ends its connection.
    pub packet_bytes_max: Option<u32>,
    /// PUBACKs are kept until [`Broker::release`].
    pub hold_acks: bool,
    /// Everything is delivered twice.
    pub duplicate: bool,
    /// Deliveries come in pairs, the later one first.
    pub reorder: bool,
    /// Topics are sent as aliases to whoever allows it.
    pub alias: bool,
    /// A will is published this long after its connection ended, whoever has connected since.
    pub late_will: Option<Duration>,
}

/// What a client's CONNECT said.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub clean: bool,
    pub properties: Option<ConnectProperties>,
}

pub(crate) struct Broker {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    faults: Faults,
    sessions: HashMap<String, Session>,
    retained: BTreeMap<Bytes, Publish>,
    held: VecDeque<(String, u16)>,
    stashed: Option<Publish>,
    hellos: Vec<(String, Hello)>,
    published: Vec<(String, Publish)>,
    /// DISCONNECTs, by client.
    farewells: Vec<String>,
}

#[derive(Default)]
struct Session {
    filters: Vec<String>,
    link: Option<Link>,
    connections: u64,
    receive_max: usize,
    unacked: BTreeMap<u16, Publish>,
    /// Packet ids in the order they were sent, which is the order PUBACKs must have.
    order: VecDeque<u16>,
    out_of_order: usize,
    queue: VecDeque<Publish>,
    next_id: u16,
}

struct Link {
    stream: TcpStream,
    version: u8,
    aliases: bool,
}

impl Broker {
    pub(crate) fn start() -> Broker {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::downgrade(&state);
        listener.set_nonblocking(true).unwrap();
        thread::spawn(move || {
            // Ends with the broker, as every connection's thread does.
            while let Some(state) = shared.upgrade() {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let weak = Arc::downgrade(&state);
                        thread::spawn(move || Connection::new(stream).serve(&|| weak.upgrade()));
                    }
                    Err(_) => {
                        drop(state);
                        thread::sleep(GRAIN);
                    }
                }
            }
        });
        Broker { port, state }
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.lock().faults);
    }

    /// Cuts the client's connection.
    pub(crate) fn cut(&self, client: &str) {
        if let Some(link) = self.lock().sessions.get_mut(client).and_then(|session| session.link.take()) {
            let _ = link.stream.shutdown(Shutdown::Both); // it may have gone by itself
        }
    }

    /// Cuts the client's connection and forgets all it had.
    pub(crate) fn forget(&self, client: &str) {
        self.cut(client);
        let mut state = self.lock();
        state.held.retain(|(holder, _)| holder != client);
        if let Some(session) = state.sessions.get_mut(client) {
            *session = Session { connections: session.connections, ..Session::default() };
        }
    }

    /// Tells the client that another one took its place, and hangs up.
    pub(crate) fn take_over(&self, client: &str) {
        if let Some(link) = self.lock().sessions.get_mut(client).and_then(|session| session.link.as_mut()) {
            // By hand: the codec leaves the reason out where there are no properties.
            link.stream.write_all(&[0xe0, 2, DisconnectReasonCode::SessionTakenOver as u8, 0]).unwrap();
        }
        self.cut(client);
    }

    /// Acknowledges what `hold_acks` kept, at most `count`, the `skip` oldest left out.
    pub(crate) fn release(&self, skip: usize, count: usize) {
        let mut state = self.lock();
        for _ in 0..count {
            let Some((client, id)) = state.held.remove(skip) else { return };
            state.ack(&client, id);
        }
    }

    /// A publish from nowhere.
    pub(crate) fn deliver(&self, topic: &str, qos: QoS, payload: &[u8], properties: PublishProperties) {
        let publish = Publish::new(topic, qos, payload.to_vec(), Some(properties));
        self.lock().route(&publish);
    }

    pub(crate) fn hellos(&self, client: &str) -> Vec<Hello> {
        let state = self.lock();
        state.hellos.iter().filter(|(id, _)| id == client).map(|(_, hello)| hello.clone()).collect()
    }

    /// What the client has published on topics that contain `part`.
    pub(crate) fn published(&self, client: &str, part: &str) -> Vec<Publish> {
        let contains = |publish: &Publish| String::from_utf8_lossy(&publish.topic).contains(part);
        let state = self.lock();
        let published = state.published.iter().filter(|(id, publish)| id == client && contains(publish));
        published.map(|(_, publish)| publish.clone()).collect()
    }

    /// PUBACKs kept back now.
    pub(crate) fn held(&self) -> usize {
        self.lock().held.len()
    }

    pub(crate) fn farewells(&self, client: &str) -> usize {
        self.lock().farewells.iter().filter(|id| *id == client).count()
    }

    /// Deliveries the client has not acknowledged, and PUBACKs that came out of order.
    pub(crate) fn unacked(&self, client: &str) -> (usize, usize) {
        let state = self.lock();
        state.sessions.get(client).map_or((0, 0), |session| (session.unacked.len(), session.out_of_order))
    }

    pub(crate) fn retained(&self, topic: &str) -> Option<Bytes> {
        self.lock().retained.get(topic.as_bytes()).map(|publish| publish.payload.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the broker")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for session in self.lock().sessions.values_mut() {
            session.link = None;
        }
    }
}

impl State {
    fn handle(&mut self, client: &str, packet: Packet) {
        match packet {
            Packet::Publish(publish) => self.publish(client, publish),
            Packet::PubAck(ack) => self.acked(client, ack.pkid),
            Packet::Subscribe(subscribe) => {
                let refused = self.faults.refuse_subscribe;
                let filters: Vec<String> = subscribe.filters.into_iter().map(|filter| filter.path).collect();
                let code = if refused {
                    SubscribeReasonCode::NotAuthorized
                } else {
                    SubscribeReasonCode::Success(QoS::AtLeastOnce)
                };
                let return_codes = vec![code; filters.len()];
                let ack = SubAck { pkid: subscribe.pkid, return_codes, properties: None };
                let session = self.sessions.entry(client.to_owned()).or_default();
                session.send(&Packet::SubAck(ack));
                if !refused {
                    session.filters.extend(filters.iter().cloned());
                    let kept = self.retained.values().filter(|publish| {
                        filters.iter().any(|filter| matches(filter, &String::from_utf8_lossy(&publish.topic)))
                    });
                    kept.for_each(|publish| session.deliver(publish, self.faults.alias));
                }
            }
            Packet::PingReq(_) => {
                if let Some(session) = self.sessions.get_mut(client) {
                    session.send(&Packet::PingResp(PingResp));
                }
            }
            _ => {}
        }
    }

    fn publish(&mut self, client: &str, publish: Publish) {
        self.published.push((client.to_owned(), publish.clone()));
        if publish.qos != QoS::AtMostOnce {
            if self.faults.hold_acks {
                self.held.push_back((client.to_owned(), publish.pkid));
            } else {
                self.ack(client, publish.pkid);
            }
        }
        if self.faults.refuse_publish.is_none() {
            self.route(&publish);
        }
    }

    fn ack(&mut self, client: &str, pkid: u16) {
        let reason = self.faults.refuse_publish.unwrap_or(PubAckReason::Success);
        if let Some(session) = self.sessions.get_mut(client) {
            session.send(&Packet::PubAck(PubAck { pkid, reason, properties: None }));
        }
    }

    fn acked(&mut self, client: &str, id: u16) {
        let Some(session) = self.sessions.get_mut(client) else { return };
        if session.order.front() != Some(&id) {
            session.out_of_order += 1;
        }
        session.order.retain(|sent| *sent != id);
        session.unacked.remove(&id);
        while session.unacked.len() < session.receive_max {
            let Some(publish) = session.queue.pop_front() else { return };
            session.deliver(&publish, self.faults.alias);
        }
    }

    fn route(&mut self, publish: &Publish) {
        if publish.retain {
            if publish.payload.is_empty() {
                self.retained.remove(&publish.topic);
            } else {
                self.retained.insert(publish.topic.clone(), publish.clone());
            }
        }
        let live = Publish { retain: false, dup: false, ..publish.clone() };
        if !self.faults.reorder {
            return self.spread(&live);
        }
        match self.stashed.take() {
            Some(earlier) => {
                self.spread(&live);
                self.spread(&earlier);
            }
            None => self.stashed = Some(live),
        }
    }

    fn spread(&mut self, publish: &Publish) {
        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
        let twice = if self.faults.duplicate { 2 } else { 1 };
        for session in self.sessions.values_mut() {
            if session.filters.iter().any(|filter| matches(filter, &topic)) {
                for _ in 0..twice {
                    session.deliver(publish, self.faults.alias);
                }
            }
        }
    }
}

impl Session {
    fn deliver(&mut self, publish: &Publish, alias: bool) {
        let mut publish = publish.clone();
        if publish.qos == QoS::AtMostOnce {
            return self.send(&Packet::Publish(publish));
        }
        if self.link.is_none() || self.unacked.len() >= self.receive_max {
            self.queue.push_back(publish);
            return;
        }
        self.next_id = self.next_id % 60_000 + 1;
        publish.pkid = self.next_id;
        self.order.push_back(publish.pkid);
        self.unacked.insert(publish.pkid, publish.clone());
        if alias && self.link.as_ref().is_some_and(|link| link.aliases) {
            // The first one names the alias, the second leaves the topic out.
            let properties = publish.properties.get_or_insert_default();
            properties.topic_alias = Some(1);
            self.send(&Packet::Publish(publish.clone()));
            publish.topic = Bytes::new();
            publish.pkid += 1;
            self.next_id = publish.pkid;
        }
        self.send(&Packet::Publish(publish));
    }

    fn send(&mut self, packet: &Packet) {
        let Some(link) = &mut self.link else { return };
        let mut bytes = BytesMut::new();
        if link.version == 5 {
            packet.write(&mut bytes, None).expect("a packet of ours");
        } else if let Some(packet) = to_v4(packet) {
            packet.write(&mut bytes, usize::MAX).expect("a packet of ours");
        }
        if link.stream.write_all(&bytes).is_err() {
            self.link = None;
        }
    }

    /// A client is back: what it has not acknowledged comes again.
    fn resume(&mut self) {
        self.order.clear();
        for (id, publish) in std::mem::take(&mut self.unacked) {
            let again = Publish { dup: true, ..publish };
            self.order.push_back(id);
            self.unacked.insert(id, again.clone());
            self.send(&Packet::Publish(again));
        }
        for publish in std::mem::take(&mut self.queue) {
            self.deliver(&publish, false);
        }
    }
}

/// One connection, from its CONNECT to its end.
struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    version: u8,
    client: String,
    number: u64,
    will: Option<Publish>,
}

impl Connection {
    fn new(stream: TcpStream) -> Connection {
        stream.set_nonblocking(false).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(GRAIN)).unwrap();
        stream.set_write_timeout(Some(WRITE)).unwrap();
        let (buffer, client) = (BytesMut::new(), String::new());
        Connection { stream, buffer, version: 0, client, number: 0, will: None }
    }

    fn serve(mut self, broker: &dyn Fn() -> Option<Arc<Mutex<State>>>) {
        let mut chunk = vec![0; 64 << 10];
        while let Some(state) = broker() {
            if state.lock().expect("as above").faults.frozen {
                thread::sleep(GRAIN);
                continue;
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if PAUSES.contains(&error.kind()) => continue,
                Err(_) => break,
            }
            if !self.packets(&state) {
                break;
            }
        }
        let Some(state) = broker() else { return };
        let mut state = state.lock().expect("as above");
        if let Some(session) = state.sessions.get_mut(&self.client)
            && session.connections == self.number
        {
            session.link = None;
        }
        let late = state.faults.late_will;
        drop(state);
        if let Some(will) = self.will.take() {
            thread::sleep(late.unwrap_or_default());
            if let Some(state) = broker() {
                state.lock().expect("as above").route(&will);
            }
        }
    }

    /// Takes the whole packets in the buffer; false when the connection is over.
    fn packets(&mut self, state: &Mutex<State>) -> bool {
        if self.version == 0 {
            // Fixed header (2 for a CONNECT below 128 bytes, one more above), length and name of the protocol.
            let Some(level) = self.buffer.windows(4).position(|four| four == b"MQTT") else { return true };
            let Some(version) = self.buffer.get(level + 4) else { return true };
            self.version = *version;
        }
        loop {
            let max = state.lock().expect("as above").faults.packet_bytes_max;
            let packet = match read(self.version, &mut self.buffer, max) {
                Ok(packet) => packet,
                Err(Error::InsufficientBytes(_)) => return true,
                Err(_) => return false,
            };
            let mut state = state.lock().expect("as above");
            match packet {
                Packet::Connect(connect, will, _) => {
                    self.client = connect.client_id;
                    self.will = will.map(|will| Publish {
                        qos: will.qos,
                        retain: will.retain,
                        topic: will.topic,
                        payload: will.message,
                        ..Publish::default()
                    });
                    let hello = Hello { clean: connect.clean_start, properties: connect.properties };
                    if !self.connect(&mut state, hello) {
                        return false;
                    }
                }
                Packet::Disconnect(_) => {
                    self.will = None;
                    state.farewells.push(self.client.clone());
                    return false;
                }
                other => state.handle(&self.client, other),
            }
        }
    }

    fn connect(&mut self, state: &mut State, hello: Hello) -> bool {
        let properties = hello.properties.clone();
        let clean = hello.clean;
        state.hellos.push((self.client.clone(), hello));
        let code = state.faults.refuse_connect.unwrap_or(ConnectReturnCode::Success);
        let max_packet_size = state.faults.packet_bytes_max;
        let known = state.sessions.contains_key(&self.client);
        let session = state.sessions.entry(self.client.clone()).or_default();
        let session_present = known && !clean && !session.filters.is_empty();
        if !session_present {
            *session = Session { connections: session.connections, ..Session::default() };
        }
        session.connections += 1;
        self.number = session.connections;
        let receive_max = properties.as_ref().and_then(|properties| properties.receive_maximum);
        session.receive_max = receive_max.map_or(usize::MAX, usize::from);
        let aliases = properties.and_then(|properties| properties.topic_alias_max).unwrap_or(0) > 0;
        let stream = self.stream.try_clone().unwrap();
        session.link = Some(Link { stream, version: self.version, aliases });
        let properties = ConnAckProperties { max_packet_size, ..no_properties() };
        session.send(&Packet::ConnAck(ConnAck { session_present, code, properties: Some(properties) }));
        if code != ConnectReturnCode::Success {
            session.link = None;
            self.will = None;
            return false;
        }
        session.resume();
        true
    }
}

/// Waits until `done`, or fails saying `what`.
pub(crate) fn wait_until(what: &str, wait: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + wait;
    while !done() {
        assert!(Instant::now() < deadline, "{what} within {wait:?}");
        thread::sleep(GRAIN);
    }
}

fn read(version: u8, buffer: &mut BytesMut, max: Option<u32>) -> Result<Packet, Error> {
    if version == 5 {
        // The codec writes this shortest form, and refuses to read it.
        if buffer.starts_with(&[0xe0, 0]) {
            buffer.advance(2);
            return Ok(Packet::Disconnect(Disconnect::new(DisconnectReasonCode::NormalDisconnection)));
        }
        return Packet::read(buffer, max);
    }
    let max = max.map_or(usize::MAX, |max| max as usize);
    match rumqttc::Packet::read(buffer, max) {
        Ok(packet) => Ok(from_v4(packet)),
        Err(rumqttc::mqttbytes::Error::InsufficientBytes(count)) => Err(Error::InsufficientBytes(count)),
        Err(_) => Err(Error::MalformedPacket),
    }
}

fn from_v4(packet: rumqttc::Packet) -> Packet {
    use rumqttc::Packet as P;
    use rumqttc::v5::mqttbytes::v5 as to;
    match packet {
        P::Connect(connect) => {
            let will = connect
                .last_will
                .map(|will| to::LastWill::new(will.topic, will.message, qos(will.qos), will.retain, None));
            let connect = to::Connect {
                keep_alive: connect.keep_alive,
                client_id: connect.client_id,
                clean_start: connect.clean_session,
                properties: None,
            };
            Packet::Connect(connect, will, None)
        }
        P::Publish(publish) => {
            let mut to = Publish::new(publish.topic, qos(publish.qos), publish.payload, None);
            (to.pkid, to.retain, to.dup) = (publish.pkid, publish.retain, publish.dup);
            Packet::Publish(to)
        }
        P::PubAck(ack) => Packet::PubAck(PubAck::new(ack.pkid, None)),
        P::Subscribe(subscribe) => {
            let filters =
                subscribe.filters.into_iter().map(|filter| to::Filter::new(filter.path, qos(filter.qos)));
            let filters: Vec<_> = filters.collect();
            Packet::Subscribe(to::Subscribe { pkid: subscribe.pkid, filters, properties: None })
        }
        P::Disconnect => Packet::Disconnect(Disconnect::new(DisconnectReasonCode::NormalDisconnection)),
        _ => Packet::PingReq(to::PingReq),
    }
}

/// None for what 3.1.1 has no packet for.
fn to_v4(packet: &Packet) -> Option<rumqttc::Packet> {
    use rumqttc::Packet as P;
    Some(match packet {
        Packet::ConnAck(ack) => {
            let code = match ack.code {
                ConnectReturnCode::Success => rumqttc::ConnectReturnCode::Success,
                _ => rumqttc::ConnectReturnCode::NotAuthorized,
            };
            P::ConnAck(rumqttc::ConnAck::new(code, ack.session_present))
        }
        Packet::Publish(publish) => {
            let qos = match publish.qos {
                QoS::AtMostOnce => rumqttc::QoS::AtMostOnce,
                _ => rumqttc::QoS::AtLeastOnce,
            };
            let topic = String::from_utf8_lossy(&publish.topic).into_owned();
            let mut to = rumqttc::Publish::from_bytes(topic, qos, publish.payload.clone());
            (to.pkid, to.retain, to.dup) = (publish.pkid, publish.retain, publish.dup);
            P::Publish(to)
        }
        Packet::PubAck(ack) => P::PubAck(rumqttc::PubAck::new(ack.pkid)),
        Packet::SubAck(ack) => {
            let code = |code: &_| match code {
                SubscribeReasonCode::Success(_) => {
                    rumqttc::SubscribeReasonCode::Success(rumqttc::QoS::AtLeastOnce)
                }
                _ => rumqttc::SubscribeReasonCode::Failure,
            };
            P::SubAck(rumqttc::SubAck::new(ack.pkid, ack.return_codes.iter().map(code).collect()))
        }
        Packet::PingResp(_) => P::PingResp,
        _ => return None,
    })
}

fn qos(qos: rumqttc::QoS) -> QoS {
    match qos {
        rumqttc::QoS::AtMostOnce => QoS::AtMostOnce,
        _ => QoS::AtLeastOnce,
    }
}

fn no_properties() -> ConnAckProperties {
    ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}

/// Whether `filter` takes `topic`.
fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for part in filter.split('/') {
        match (part, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (part, Some(level)) if part == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}
