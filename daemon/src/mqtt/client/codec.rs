//! Packets of both protocol versions to bytes and back: the only file that names rumqttc, whose codec it is.
//!
//! What its codec leaves to its users:
//!
//! - Bytes missing inside of a packet and bytes yet to come are one error to it, so frames are cut here.
//! - A DISCONNECT without properties, as the standard allows, is half a packet to it.
//! - The failure codes of PUBACK and SUBACK are only logged by its event loop; here they are handed on.
//! - No topic alias is ever offered: aliased publishes arrive with an empty topic.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes as bytes5;
use rumqttc::v5::mqttbytes::v5 as packet5;
use rumqttc::{self as packet4, mqttbytes as bytes4};

use super::{Granted, Loss, Token};
use crate::mqtt::config::{Settings, Version};
use crate::mqtt::message::{Arrival, Message, Properties, Qos};

/// First byte of a DISCONNECT.
const DISCONNECT: u8 = 0xe0;
/// Smallest packet that takes its buffer along, in bytes: to copy less costs less than another buffer.
const OWN_BYTES_MIN: usize = 16 << 10;
/// Packet type of a PUBLISH.
const PUBLISH: u8 = 3;

/// What can come from a broker, in words common to both versions.
#[derive(Debug)]
pub(super) enum Packet {
    /// CONNACK that lets us in.
    Welcome(Granted),
    /// CONNACK, or a DISCONNECT, that doesn't, or no more.
    Farewell(Loss),
    Publish(Arrival, Option<Token>),
    PubAck {
        id: u16,
        refused: Option<String>,
    },
    SubAck {
        id: u16,
        refused: Vec<usize>,
    },
    UnsubAck {
        id: u16,
    },
    Pong,
    /// Nothing that is meant for us.
    Other,
}

/// What a buffer begins with.
#[derive(Debug)]
pub(super) enum Read {
    Packet(Packet),
    /// A part of a packet; at least this many bytes are missing.
    Part(usize),
}

/// One protocol version, with a limit on what is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codec {
    version: Version,
    packet_bytes_max: usize,
}

impl Codec {
    pub(super) fn new(settings: &Settings) -> Codec {
        Codec { version: settings.version, packet_bytes_max: settings.packet_bytes_max as usize }
    }

    /// Takes a packet off the front of `bytes`. The payload of a publish stays a part of their memory; that of a large one
    /// which is alone there takes it along, so that whoever it goes to has it for themselves.
    ///
    /// # Errors
    /// What comes is no MQTT, or more than is taken: nothing can follow it.
    pub(super) fn read(self, bytes: &mut BytesMut) -> Result<Read, Loss> {
        let length = match self.frame_length(bytes)? {
            Ok(length) => length,
            Err(missing) => return Ok(Read::Part(missing)),
        };
        let alone = bytes.len() == length && length >= OWN_BYTES_MIN;
        let mut frame = if alone { std::mem::take(bytes) } else { bytes.split_to(length) };
        let packet = match self.version {
            Version::V4 => packet4::Packet::read(&mut frame, length).map(from_v4).map_err(not_mqtt),
            Version::V5 => {
                if frame[0] == DISCONNECT && length < 4 {
                    // As the standard says of what is left out [MQTT 5.0, 3.14.2.1 and 3.14.2.2.1].
                    let reason = frame.get(2).copied().unwrap_or_default();
                    frame = BytesMut::from(&[DISCONNECT, 2, reason, 0][..]);
                }
                packet5::Packet::read(&mut frame, None).map(from_v5).map_err(not_mqtt)
            }
        };
        packet.map(Read::Packet)
    }

    /// Whether `bytes` hold a whole publish behind nothing but whole packets.
    pub(super) fn holds_publish(self, mut bytes: &[u8]) -> bool {
        while let Ok(Ok(length)) = self.frame_length(bytes) {
            if bytes[0] >> 4 == PUBLISH {
                return true;
            }
            bytes = &bytes[length..];
        }
        false
    }

    /// The length of the whole packet that `bytes` begin with, or how many are missing. Both versions frame alike.
    fn frame_length(self, bytes: &[u8]) -> Result<Result<usize, usize>, Loss> {
        match bytes4::check(bytes.iter(), self.packet_bytes_max) {
            Ok(header) => Ok(Ok(header.frame_length())),
            Err(bytes4::Error::InsufficientBytes(missing)) => Ok(Err(missing)),
            Err(bytes4::Error::PayloadSizeLimitExceeded(_)) => Err(Loss::ArrivalTooLarge),
            Err(error) => Err(not_mqtt(error)),
        }
    }

    /// Writes the CONNECT. With `forget` the broker drops the session it may still hold for us.
    pub(super) fn connect(
        self,
        settings: &Settings,
        password: Option<String>,
        will: &Message,
        forget: bool,
        out: &mut BytesMut,
    ) -> Result<(), Loss> {
        let keep_alive = u16::try_from(settings.keep_alive.as_secs()).unwrap_or(u16::MAX);
        let login = settings.username.as_ref().map(|user| (user.clone(), password.unwrap_or_default()));
        let client_id = settings.client_id.clone();
        match self.version {
            Version::V4 => {
                let mut connect = packet4::Connect::new(client_id);
                connect.keep_alive = keep_alive;
                connect.clean_session = forget;
                connect.last_will = Some(packet4::LastWill {
                    topic: will.topic.clone(),
                    message: will.payload.clone(),
                    qos: qos_v4(will.qos),
                    retain: will.retain,
                });
                connect.login = login.map(|(user, password)| packet4::Login::new(user, password));
                write_v4(&packet4::Packet::Connect(connect), out)
            }
            Version::V5 => {
                let mut properties = packet5::ConnectProperties::new();
                properties.session_expiry_interval = Some(settings.session_expiry_s);
                // The broker sends no more requests than we have places: admission control to the last client.
                properties.receive_maximum = Some(settings.queue);
                properties.max_packet_size = Some(settings.packet_bytes_max);
                let connect = packet5::Connect {
                    keep_alive,
                    client_id,
                    clean_start: forget,
                    properties: Some(properties),
                };
                let will = packet5::LastWill {
                    topic: Bytes::copy_from_slice(will.topic.as_bytes()),
                    message: will.payload.clone(),
                    qos: qos_v5(will.qos),
                    retain: will.retain,
                    properties: None,
                };
                let login = login.map(|(user, password)| packet5::Login::new(user, password));
                write_v5(&packet5::Packet::Connect(connect, Some(will), login), out)
            }
        }
    }

    /// Writes a publish; `id` is not looked at where its QoS needs none.
    pub(super) fn publish(self, id: u16, message: &Message, out: &mut BytesMut) -> Result<(), Loss> {
        let Message { topic, payload, retain, qos, properties } = message;
        match self.version {
            Version::V4 => {
                let qos = qos_v4(*qos);
                let mut publish = packet4::Publish::from_bytes(topic.as_str(), qos, payload.clone());
                (publish.pkid, publish.retain) = (id, *retain);
                write_v4(&packet4::Packet::Publish(publish), out)
            }
            Version::V5 => {
                let publish = packet5::Publish {
                    dup: false,
                    qos: qos_v5(*qos),
                    retain: *retain,
                    topic: Bytes::copy_from_slice(topic.as_bytes()),
                    pkid: id,
                    payload: payload.clone(),
                    properties: Some(properties_to_v5(properties)),
                };
                write_v5(&packet5::Packet::Publish(publish), out)
            }
        }
    }

    pub(super) fn ack(self, token: Token, out: &mut BytesMut) -> Result<(), Loss> {
        match self.version {
            Version::V4 => write_v4(&packet4::Packet::PubAck(packet4::PubAck::new(token.0)), out),
            Version::V5 => write_v5(&packet5::Packet::PubAck(packet5::PubAck::new(token.0, None)), out),
        }
    }

    pub(super) fn subscribe(
        self,
        id: u16,
        filters: &[(String, Qos)],
        out: &mut BytesMut,
    ) -> Result<(), Loss> {
        match self.version {
            Version::V4 => {
                let filter =
                    |(path, qos): &(String, Qos)| packet4::SubscribeFilter::new(path.clone(), qos_v4(*qos));
                let mut subscribe = packet4::Subscribe::new_many(filters.iter().map(filter));
                subscribe.pkid = id;
                write_v4(&packet4::Packet::Subscribe(subscribe), out)
            }
            Version::V5 => {
                let filter = |(path, qos): &(String, Qos)| packet5::Filter::new(path, qos_v5(*qos));
                let mut subscribe = packet5::Subscribe::new_many(filters.iter().map(filter), None);
                subscribe.pkid = id;
                write_v5(&packet5::Packet::Subscribe(subscribe), out)
            }
        }
    }

    pub(super) fn unsubscribe(self, id: u16, filter: &str, out: &mut BytesMut) -> Result<(), Loss> {
        match self.version {
            Version::V4 => {
                let mut unsubscribe = packet4::Unsubscribe::new(filter);
                unsubscribe.pkid = id;
                write_v4(&packet4::Packet::Unsubscribe(unsubscribe), out)
            }
            Version::V5 => {
                let mut unsubscribe = packet5::Unsubscribe::new(filter, None);
                unsubscribe.pkid = id;
                write_v5(&packet5::Packet::Unsubscribe(unsubscribe), out)
            }
        }
    }

    pub(super) fn ping(self, out: &mut BytesMut) -> Result<(), Loss> {
        match self.version {
            Version::V4 => write_v4(&packet4::Packet::PingReq, out),
            Version::V5 => write_v5(&packet5::Packet::PingReq(packet5::PingReq), out),
        }
    }

    pub(super) fn disconnect(self, out: &mut BytesMut) -> Result<(), Loss> {
        match self.version {
            Version::V4 => write_v4(&packet4::Packet::Disconnect, out),
            Version::V5 => {
                let reason = packet5::DisconnectReasonCode::NormalDisconnection;
                write_v5(&packet5::Packet::Disconnect(packet5::Disconnect::new(reason)), out)
            }
        }
    }
}

/// The size of a packet has been held against the broker's before it gets here.
fn write_v4(packet: &packet4::Packet, out: &mut BytesMut) -> Result<(), Loss> {
    packet.write(out, usize::MAX).map(drop).map_err(not_mqtt)
}

fn write_v5(packet: &packet5::Packet, out: &mut BytesMut) -> Result<(), Loss> {
    packet.write(out, None).map(drop).map_err(not_mqtt)
}

fn not_mqtt(error: impl std::fmt::Display) -> Loss {
    Loss::Broken(error.to_string())
}

fn from_v4(packet: packet4::Packet) -> Packet {
    use packet4::{ConnectReturnCode, Packet as P, SubscribeReasonCode};
    match packet {
        P::ConnAck(connack) if connack.code == ConnectReturnCode::Success => Packet::Welcome(Granted {
            session_present: connack.session_present,
            packet_bytes_max: None,
            receive_max: None,
            keep_alive: None,
        }),
        P::ConnAck(connack) => Packet::Farewell(Loss::Refused(format!("{:?}", connack.code))),
        P::Publish(publish) => {
            let token = (publish.qos != packet4::QoS::AtMostOnce).then_some(Token(publish.pkid));
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
        P::PubAck(ack) => Packet::PubAck { id: ack.pkid, refused: None },
        P::SubAck(ack) => {
            let failed = |code: &_| !matches!(code, SubscribeReasonCode::Success(_));
            Packet::SubAck { id: ack.pkid, refused: positions(&ack.return_codes, failed) }
        }
        P::UnsubAck(ack) => Packet::UnsubAck { id: ack.pkid },
        P::PingResp => Packet::Pong,
        _ => Packet::Other,
    }
}

fn from_v5(packet: packet5::Packet) -> Packet {
    use packet5::{ConnectReturnCode, Packet as P, PubAckReason, SubscribeReasonCode};
    match packet {
        P::ConnAck(connack) if connack.code == ConnectReturnCode::Success => {
            let properties = connack.properties.as_ref();
            Packet::Welcome(Granted {
                session_present: connack.session_present,
                packet_bytes_max: properties.and_then(|p| p.max_packet_size),
                receive_max: properties.and_then(|p| p.receive_max),
                keep_alive: properties
                    .and_then(|p| p.server_keep_alive)
                    .map(|seconds| Duration::from_secs(seconds.into())),
            })
        }
        P::ConnAck(connack) => Packet::Farewell(Loss::Refused(format!("{:?}", connack.code))),
        P::Disconnect(bye) => Packet::Farewell(match bye.reason_code {
            packet5::DisconnectReasonCode::SessionTakenOver => Loss::TakenOver,
            reason => Loss::Broken(format!("the broker disconnected us: {reason:?}")),
        }),
        P::Publish(publish) => arrival_v5(publish),
        P::PubAck(ack) => {
            // Nobody listening is no failure: the requester may have gone.
            let fine = matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
            Packet::PubAck { id: ack.pkid, refused: (!fine).then(|| format!("{:?}", ack.reason)) }
        }
        P::SubAck(ack) => {
            let failed = |code: &_| !matches!(code, SubscribeReasonCode::Success(_));
            Packet::SubAck { id: ack.pkid, refused: positions(&ack.return_codes, failed) }
        }
        P::UnsubAck(ack) => Packet::UnsubAck { id: ack.pkid },
        P::PingResp(_) => Packet::Pong,
        _ => Packet::Other,
    }
}

fn arrival_v5(publish: packet5::Publish) -> Packet {
    // A topic that is no UTF-8 becomes one that parses as none of ours, and is counted as such.
    let topic = String::from_utf8_lossy(&publish.topic).into_owned();
    let token = (publish.qos != bytes5::QoS::AtMostOnce).then_some(Token(publish.pkid));
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

fn qos_v4(qos: Qos) -> packet4::QoS {
    match qos {
        Qos::AtMostOnce => packet4::QoS::AtMostOnce,
        Qos::AtLeastOnce => packet4::QoS::AtLeastOnce,
    }
}

fn qos_v5(qos: Qos) -> bytes5::QoS {
    match qos {
        Qos::AtMostOnce => bytes5::QoS::AtMostOnce,
        Qos::AtLeastOnce => bytes5::QoS::AtLeastOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::config::Config;

    /// Packets of both versions, with properties, reasons and without.
    const PACKETS: &[&[u8]] = &[
        b"\x10\x06\0\x04MQTT",
        b"\x20\x02\x01\0",
        b"\x20\x09\0\0\x06\x22\0\x0a\x21\0\x14",
        b"\x30\x04\0\x01t\0",
        b"\x32\x17\0\x01t\0\x05\x0d\x08\0\x01r\x09\0\x02ab\x03\0\x01cpayl",
        b"\x32\x12\0\x01t\0\x05\x08\x26\0\x01k\0\x02vvpayl",
        b"\x40\x02\0\x01",
        b"\x40\x03\0\x01\x87",
        b"\x40\x08\0\x01\x87\x04\x1f\0\x01a",
        b"\x62\x02\0\x01",
        b"\x90\x04\0\x01\x01\x80",
        b"\x90\x05\0\x01\0\x01\x80",
        b"\xb0\x02\0\x01",
        b"\xb0\x04\0\x01\0\0",
        b"\xd0\0",
        b"\xe0\0",
        b"\xe0\x01\x8e",
        b"\xe0\x08\x8e\x06\x1f\0\x03abc",
        b"\xf0\x02\x18\0",
    ];

    fn codec(version: u8) -> Codec {
        Codec::new(&Config { version, ..Config::default() }.settings("n1").unwrap())
    }

    #[test]
    fn a_part_is_left_and_a_packet_taken() {
        for (version, packet) in
            [4, 5].into_iter().flat_map(|version| PACKETS.iter().map(move |p| (version, *p)))
        {
            for length in 0..packet.len() {
                let mut bytes = BytesMut::from(&packet[..length]);
                let read = codec(version).read(&mut bytes);
                assert!(
                    matches!(read, Ok(Read::Part(missing)) if missing <= packet.len() - length),
                    "{packet:x?}"
                );
                assert_eq!(bytes, &packet[..length]);
            }
            let mut bytes = BytesMut::from(&[packet, b"more"].concat()[..]);
            // An error is one of the whole packet: version 4 has no properties.
            assert!(!matches!(codec(version).read(&mut bytes), Ok(Read::Part(_))), "{packet:x?}");
            assert_eq!(bytes, b"more"[..]);
        }
    }

    #[test]
    fn no_bytes_are_too_much_for_it() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize % below
        };
        let (mut packets, mut errors) = (0, 0);
        for round in 0..200_000 {
            let mut packet = PACKETS[random(PACKETS.len())].to_vec();
            for _ in 0..=random(3) {
                let at = random(packet.len());
                match random(3) {
                    0 => packet[at] = random(256) as u8,
                    1 => packet.insert(at, random(256) as u8),
                    _ if packet.len() > 2 => drop(packet.remove(at)),
                    _ => {}
                }
            }
            if random(2) == 0 {
                packet[1] = packet.len() as u8 - 2;
            }
            let whole = codec(4).frame_length(&packet);
            let mut bytes = BytesMut::from(&packet[..]);
            match codec(4 + round as u8 % 2).read(&mut bytes) {
                Ok(Read::Part(missing)) => {
                    assert!(missing > 0);
                    assert_eq!(bytes, packet);
                }
                Ok(Read::Packet(_)) => {
                    packets += 1;
                    assert_eq!(whole, Ok(Ok(packet.len() - bytes.len())));
                }
                Err(_) => errors += 1,
            }
        }
        assert!(packets > 10_000 && errors > 10_000, "{packets} {errors}");
    }
}
