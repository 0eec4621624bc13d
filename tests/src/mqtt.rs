//! Plain MQTT clients of both versions, as somebody without `tractctl` would write them. The only file of this package
//! that names rumqttc.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rumqttc::NetworkOptions;
use rumqttc::mqttbytes::QoS as QoS4;
use rumqttc::v5::mqttbytes::QoS as QoS5;
use rumqttc::v5::mqttbytes::v5::PublishProperties;

/// How long a broker may take to accept a subscription.
const START: Duration = Duration::from_secs(30);
/// Largest packet taken, in bytes.
const PACKET_LEN_MAX: u32 = 80 << 20;
/// Packets that wait while the broker is slow: more than any test sends without waiting for something.
const WAITING_MAX: usize = 10_000;

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where.
    pub topic: String,
    /// What.
    pub payload: Vec<u8>,
    /// MQTT 5: what it answers.
    pub correlation: Vec<u8>,
    /// MQTT 5: name and value.
    pub user_properties: Vec<(String, String)>,
    /// Whether the broker had kept it.
    pub retained: bool,
}

/// A client of either version.
pub struct Client {
    link: Link,
    /// The client id; replies come to `<prefix>/_res/<name>`.
    pub name: String,
    waiting: VecDeque<Message>,
}

#[expect(clippy::large_enum_variant, reason = "a test has a handful of them")]
enum Link {
    V4(rumqttc::Client, rumqttc::Connection),
    V5(rumqttc::v5::Client, rumqttc::v5::Connection),
}

impl Client {
    /// Connects with MQTT `version` (4 is 3.1.1) and subscribes to `filter`, where `{me}` is the client id.
    ///
    /// # Panics
    /// When the broker does not accept it in time.
    pub fn connect(port: u16, version: u8, filter: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let filter = filter.replace("{me}", &name);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        let link = if version == 4 {
            let mut options = rumqttc::MqttOptions::new(&name, "127.0.0.1", port);
            options.set_max_packet_size(PACKET_LEN_MAX as usize, PACKET_LEN_MAX as usize);
            let (client, mut connection) = rumqttc::Client::new(options, WAITING_MAX);
            connection.eventloop.set_network_options(network);
            client.subscribe(filter, QoS4::AtLeastOnce).expect("the queue is empty");
            Link::V4(client, connection)
        } else {
            let mut options = rumqttc::v5::MqttOptions::new(&name, "127.0.0.1", port);
            options.set_max_packet_size(Some(PACKET_LEN_MAX)).set_network_options(network);
            let (client, connection) = rumqttc::v5::Client::new(options, WAITING_MAX);
            client.subscribe(filter, QoS5::AtLeastOnce).expect("the queue is empty");
            Link::V5(client, connection)
        };
        let mut client = Self { link, name, waiting: VecDeque::new() };
        let until = Instant::now() + START;
        while !client.step(until).expect("the broker accepts the subscription") {}
        client
    }

    /// Publishes at QoS 1. In MQTT 5 with a response topic and correlation data.
    ///
    /// # Panics
    /// When 64 messages are waiting already.
    pub fn publish(&mut self, topic: &str, payload: Vec<u8>, reply_to: Option<(&str, &[u8])>) {
        self.send(topic, payload, reply_to, false);
    }

    /// Publishes a retained message at QoS 1.
    ///
    /// # Panics
    /// When 64 messages are waiting already.
    pub fn publish_retained(&mut self, topic: &str, payload: Vec<u8>, reply_to: Option<(&str, &[u8])>) {
        self.send(topic, payload, reply_to, true);
    }

    fn send(&mut self, topic: &str, payload: Vec<u8>, reply_to: Option<(&str, &[u8])>, retain: bool) {
        match &self.link {
            Link::V4(client, _) => {
                client.try_publish(topic, QoS4::AtLeastOnce, retain, payload).expect("there is room");
            }
            Link::V5(client, _) => {
                let properties = PublishProperties {
                    response_topic: reply_to.map(|(topic, _)| topic.to_owned()),
                    correlation_data: reply_to.map(|(_, id)| id.to_vec().into()),
                    ..PublishProperties::default()
                };
                client
                    .try_publish_with_properties(topic, QoS5::AtLeastOnce, retain, payload, properties)
                    .expect("there is room");
            }
        }
    }

    /// The next message; `None` when none comes in time.
    ///
    /// # Panics
    /// When the connection breaks.
    pub fn next(&mut self, at_most: Duration) -> Option<Message> {
        let until = Instant::now() + at_most;
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return Some(message);
            }
            self.step(until)?;
        }
    }

    /// Lets one thing happen; whether it was the acceptance of a subscription. `None` when the time is over.
    fn step(&mut self, until: Instant) -> Option<bool> {
        let left = until.saturating_duration_since(Instant::now());
        match &mut self.link {
            Link::V4(_, connection) => {
                use rumqttc::{Event, Incoming};
                match connection.recv_timeout(left).ok()?.expect("the broker stays") {
                    Event::Incoming(Incoming::SubAck(_)) => return Some(true),
                    Event::Incoming(Incoming::Publish(publish)) => self.waiting.push_back(Message {
                        topic: publish.topic,
                        payload: publish.payload.to_vec(),
                        correlation: Vec::new(),
                        user_properties: Vec::new(),
                        retained: publish.retain,
                    }),
                    _ => {}
                }
            }
            Link::V5(_, connection) => {
                use rumqttc::v5::{Event, Incoming};
                match connection.recv_timeout(left).ok()?.expect("the broker stays") {
                    Event::Incoming(Incoming::SubAck(_)) => return Some(true),
                    Event::Incoming(Incoming::Publish(publish)) => {
                        let properties = publish.properties.unwrap_or_default();
                        self.waiting.push_back(Message {
                            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                            payload: publish.payload.to_vec(),
                            correlation: properties.correlation_data.unwrap_or_default().to_vec(),
                            user_properties: properties.user_properties,
                            retained: publish.retain,
                        });
                    }
                    _ => {}
                }
            }
        }
        Some(false)
    }
}
