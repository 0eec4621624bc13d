//! What crosses the broker, without a word of any client library.

use bytes::Bytes;

/// Delivery promise of a publish; 2 is neither subscribed to nor sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Qos {
    /// 0: sent once, forgotten.
    AtMostOnce,
    /// 1: kept until acknowledged.
    AtLeastOnce,
}

/// The MQTT 5 properties this contract uses. All empty on 3.1.1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Properties {
    pub(super) response_topic: Option<String>,
    pub(super) correlation: Option<Bytes>,
    /// Remaining life, in seconds, as the broker counted it down.
    pub(super) expiry_s: Option<u32>,
    pub(super) content_type: Option<String>,
    /// Of a reply; nobody reads a request's.
    pub(super) user: Vec<(&'static str, String)>,
}

/// A publish on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    pub(super) qos: Qos,
    pub(super) properties: Properties,
}

impl Message {
    /// A retained statement about ourselves, kept until the broker has it.
    pub(super) fn notice(topic: String, payload: impl Into<Bytes>) -> Message {
        let properties =
            Properties { content_type: Some("application/json".to_owned()), ..Properties::default() };
        Message { topic, payload: payload.into(), retain: true, qos: Qos::AtLeastOnce, properties }
    }

    /// Upper bound of the packet's size on the wire, either version: to be compared with the broker's maximum
    /// before sending, because a packet above it costs the connection, again after every reconnect.
    pub(super) fn packet_bytes_max(&self) -> usize {
        // Fixed header (5), topic length (2), packet id (2), property length (4).
        const FRAMING: usize = 13;
        let p = &self.properties;
        let text = |s: &Option<String>| s.as_ref().map_or(0, |s| 3 + s.len());
        let properties = text(&p.response_topic)
            + text(&p.content_type)
            + p.correlation.as_ref().map_or(0, |c| 3 + c.len())
            + p.expiry_s.map_or(0, |_| 5)
            + p.user.iter().map(|(key, value)| 5 + key.len() + value.len()).sum::<usize>();
        FRAMING + self.topic.len() + properties + self.payload.len()
    }
}

/// A publish that came in on one of our subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    /// The broker says it may have delivered this before.
    pub(super) dup: bool,
    pub(super) qos: Qos,
    pub(super) properties: Properties,
}
