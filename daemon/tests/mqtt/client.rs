//! A small MQTT client of our own, blocking, for both versions: independent of the library the daemon uses, and able
//! to send what no library would.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// What a publish carries beside its payload; all but `retain` exist in version 5 only.
#[derive(Debug, Default, Clone)]
pub(crate) struct Extras {
    pub retain: bool,
    pub response_topic: Option<String>,
    pub correlation: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub topic: String,
    pub payload: Vec<u8>,
    pub correlation: Option<Vec<u8>>,
    pub user: Vec<(String, String)>,
}

impl Received {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&self.payload));
        })
    }

    pub(crate) fn user(&self, key: &str) -> Option<&str> {
        self.user.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

pub(crate) struct Client {
    stream: TcpStream,
    version: u8,
    next_id: u16,
    received: VecDeque<Received>,
}

impl Client {
    pub(crate) fn connect(port: u16, version: u8, id: &str) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Client { stream, version, next_id: 1, received: VecDeque::new() };
        let mut body = Vec::new();
        text(&mut body, b"MQTT");
        body.extend([version, 2, 0, 60]);
        client.no_properties(&mut body);
        text(&mut body, id.as_bytes());
        client.write(0x10, &body);
        let (kind, body) = client.read(Instant::now() + Duration::from_secs(5)).expect("a CONNACK");
        assert_eq!((kind, body[1]), (0x20, 0), "connected");
        client
    }

    /// Subscribes at QoS 1 and waits for the broker's word.
    pub(crate) fn subscribe(&mut self, filter: &str) {
        let id = self.id();
        let mut body = id.to_be_bytes().to_vec();
        self.no_properties(&mut body);
        text(&mut body, filter.as_bytes());
        body.push(1);
        self.write(0x82, &body);
        self.wait_for(0x90);
    }

    /// Publishes at QoS 1 and waits until the broker has it.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], extras: &Extras) {
        let id = self.id();
        let mut body = Vec::new();
        text(&mut body, topic.as_bytes());
        body.extend(id.to_be_bytes());
        if self.version == 5 {
            let mut properties = Vec::new();
            if let Some(topic) = &extras.response_topic {
                properties.push(0x08);
                text(&mut properties, topic.as_bytes());
            }
            if let Some(data) = &extras.correlation {
                properties.push(0x09);
                text(&mut properties, data);
            }
            length(&mut body, properties.len());
            body.extend(properties);
        }
        body.extend(payload);
        self.write(0x32 | u8::from(extras.retain), &body);
        self.wait_for(0x40);
    }

    /// The next publish within `wait`.
    pub(crate) fn receive(&mut self, wait: Duration) -> Option<Received> {
        let deadline = Instant::now() + wait;
        while self.received.is_empty() {
            self.take(deadline)?;
        }
        self.received.pop_front()
    }

    fn wait_for(&mut self, wanted: u8) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.take(deadline).unwrap_or_else(|| panic!("no packet {wanted:#x}")) != wanted {}
    }

    /// Reads one packet; publishes are put aside and acknowledged.
    fn take(&mut self, deadline: Instant) -> Option<u8> {
        let (first, body) = self.read(deadline)?;
        if first & 0xf0 == 0x30 {
            let qos = first >> 1 & 3;
            let mut rest = body.as_slice();
            let topic = String::from_utf8(take_text(&mut rest)).unwrap();
            if qos > 0 {
                let (id, after) = rest.split_at(2);
                rest = after;
                self.write(0x40, id);
            }
            let (mut correlation, mut user) = (None, Vec::new());
            if self.version == 5 {
                let count = take_length(&mut rest);
                let (mut properties, after) = rest.split_at(count);
                rest = after;
                while let Some((&kind, after)) = properties.split_first() {
                    properties = after;
                    match kind {
                        0x01 => properties = &properties[1..],
                        0x02 => properties = &properties[4..],
                        0x03 | 0x08 => drop(take_text(&mut properties)),
                        0x09 => correlation = Some(take_text(&mut properties)),
                        0x26 => {
                            let mut word = || String::from_utf8(take_text(&mut properties)).unwrap();
                            user.push((word(), word()));
                        }
                        other => panic!("property {other:#x}"),
                    }
                }
            }
            self.received.push_back(Received { topic, payload: rest.to_vec(), correlation, user });
        }
        Some(first & 0xf0)
    }

    fn read(&mut self, deadline: Instant) -> Option<(u8, Vec<u8>)> {
        let wait = deadline.checked_duration_since(Instant::now())?;
        self.stream.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).unwrap();
        let mut byte = [0];
        self.stream.read_exact(&mut byte).ok()?;
        let first = byte[0];
        self.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut count, mut shift) = (0, 0);
        loop {
            self.stream.read_exact(&mut byte).unwrap();
            count |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; count];
        self.stream.read_exact(&mut body).unwrap();
        Some((first, body))
    }

    fn write(&mut self, first: u8, body: &[u8]) {
        let mut packet = vec![first];
        length(&mut packet, body.len());
        packet.extend(body);
        self.stream.write_all(&packet).unwrap();
    }

    fn no_properties(&self, body: &mut Vec<u8>) {
        if self.version == 5 {
            body.push(0);
        }
    }

    fn id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id
    }
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend(bytes);
}

fn take_text(rest: &mut &[u8]) -> Vec<u8> {
    let (count, after) = rest.split_first_chunk().unwrap();
    let (bytes, after) = after.split_at(u16::from_be_bytes(*count).into());
    *rest = after;
    bytes.to_vec()
}

fn length(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        out.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return;
        }
    }
}

fn take_length(rest: &mut &[u8]) -> usize {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (&byte, after) = rest.split_first().unwrap();
        *rest = after;
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}
