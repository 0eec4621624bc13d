//! Requests that come twice: at QoS 1 the broker may repeat one, and a client that heard nothing sends it again.
//! The second gets the answer of the first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::message::{Arrival, Message};
use super::outbox::Tag;

/// Requests remembered at once.
const ENTRIES_MAX: usize = 1024;
/// Reply payloads remembered at once, in bytes.
const BYTES_MAX: usize = 16 << 20;
/// How long a request without a deadline is remembered.
const KEEP: Duration = Duration::from_secs(30);

/// By what two requests are the same: correlation, reply topic, and the content, because some clients put the same
/// correlation on everything they send, and must not get an old answer to a new question.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    correlation: Bytes,
    reply_topic: String,
    payload_len: usize,
    crc32: u32,
}

impl Key {
    pub(super) fn new(correlation: Option<Bytes>, reply_topic: &str, arrival: &Arrival) -> Key {
        let mut crc32 = crc32fast::Hasher::new();
        crc32.update(arrival.topic.as_bytes());
        crc32.update(&arrival.payload);
        Key {
            correlation: correlation.unwrap_or_default(),
            reply_topic: reply_topic.to_owned(),
            payload_len: arrival.payload.len(),
            crc32: crc32.finalize(),
        }
    }
}

/// How far a request is that came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is being worked on under this number.
    Working(u64),
    /// It was answered with this message, last sent under this tag.
    Answered(Tag, Arc<Message>),
}

#[derive(Debug, Default)]
pub(super) struct Repeats {
    entries: HashMap<Arc<Key>, (Duration, Seen)>,
    /// In order of arrival, with when each may go; superseded ones are recognised by their time.
    order: VecDeque<(Duration, Arc<Key>)>,
    bytes: usize,
}

impl Repeats {
    pub(super) fn seen(&mut self, now: Duration, key: &Key) -> Option<&Seen> {
        self.entries.get(key).filter(|(until, _)| *until > now).map(|(_, seen)| seen)
    }

    /// A request goes to work; it is remembered until its deadline.
    pub(super) fn working(
        &mut self,
        now: Duration,
        key: impl Into<Arc<Key>>,
        job: u64,
        deadline: Option<Duration>,
    ) {
        let key = key.into();
        let until = now + deadline.unwrap_or(KEEP);
        self.forget(&key);
        while let Some((oldest_until, oldest)) = self.order.front() {
            let current = self.entries.get(oldest).is_some_and(|(until, _)| until == oldest_until);
            if current && *oldest_until > now && self.entries.len() < ENTRIES_MAX {
                break;
            }
            self.evict_oldest();
        }
        self.entries.insert(key.clone(), (until, Seen::Working(job)));
        self.order.push_back((until, key));
    }

    /// It has been answered.
    pub(super) fn answered(&mut self, key: &Key, tag: Tag, message: &Arc<Message>) {
        let Some((_, seen)) = self.entries.get_mut(key) else { return };
        *seen = Seen::Answered(tag, message.clone());
        self.bytes += message.payload.len();
        while self.bytes > BYTES_MAX && !self.order.is_empty() {
            self.evict_oldest();
        }
    }

    /// It was refused for now: the same request may be tried again.
    pub(super) fn forget(&mut self, key: &Key) {
        if let Some((_, Seen::Answered(_, message))) = self.entries.remove(key) {
            self.bytes -= message.payload.len();
        }
    }

    fn evict_oldest(&mut self) {
        let Some((until, key)) = self.order.pop_front() else { return };
        if self.entries.get(&key).is_some_and(|(current, _)| *current == until) {
            self.forget(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::message::{Properties, Qos};

    fn arrival(payload: &[u8]) -> Arrival {
        Arrival {
            topic: "t".to_owned(),
            payload: Bytes::copy_from_slice(payload),
            retain: false,
            dup: false,
            qos: Qos::AtLeastOnce,
            properties: Properties::default(),
        }
    }

    fn key(correlation: &'static str, payload: &[u8]) -> Key {
        Key::new(Some(Bytes::from(correlation)), "res", &arrival(payload))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn reply(bytes: usize) -> Arc<Message> {
        Message { retain: false, ..Message::notice("res".to_owned(), vec![0; bytes]) }.into()
    }

    #[test]
    fn a_repetition_is_known_until_the_deadline() {
        let mut repeats = Repeats::default();
        repeats.working(at(0), key("a", b"x"), 7, Some(at(10)));
        assert_eq!(repeats.seen(at(1), &key("a", b"x")), Some(&Seen::Working(7)));
        assert_eq!(repeats.seen(at(1), &key("b", b"x")), None);
        repeats.answered(&key("a", b"x"), 3, &reply(5));
        assert_eq!(repeats.seen(at(9), &key("a", b"x")), Some(&Seen::Answered(3, reply(5))));
        assert_eq!(repeats.seen(at(10), &key("a", b"x")), None);
    }

    #[test]
    fn the_same_correlation_on_another_question_is_another_request() {
        let mut repeats = Repeats::default();
        repeats.working(at(0), key("1", b"three"), 7, None);
        assert_eq!(repeats.seen(at(0), &key("1", b"seven")), None);
        assert_eq!(repeats.seen(at(0), &key("1", b"three")), Some(&Seen::Working(7)));
    }

    #[test]
    fn memory_is_bounded_by_number_and_bytes() {
        let mut repeats = Repeats::default();
        for job in 0..2 * ENTRIES_MAX as u64 {
            repeats.working(at(0), key("k", &job.to_le_bytes()), job, None);
        }
        assert_eq!(repeats.entries.len(), ENTRIES_MAX);
        assert_eq!(repeats.order.len(), ENTRIES_MAX);
        assert_eq!(repeats.seen(at(0), &key("k", &0_u64.to_le_bytes())), None);

        let (first, last) = (key("k", &1024_u64.to_le_bytes()), key("k", &2047_u64.to_le_bytes()));
        repeats.answered(&first, 1, &reply(BYTES_MAX));
        assert_eq!(repeats.bytes, BYTES_MAX);
        repeats.answered(&last, 2, &reply(1));
        assert_eq!(repeats.bytes, 1);
        assert_eq!(repeats.seen(at(0), &first), None);
        assert_eq!(repeats.seen(at(0), &last), Some(&Seen::Answered(2, reply(1))));
    }

    #[test]
    fn the_past_is_cleared_by_the_next_request() {
        let mut repeats = Repeats::default();
        repeats.working(at(0), key("a", b""), 1, Some(at(1)));
        repeats.working(at(0), key("b", b""), 2, Some(at(9)));
        repeats.working(at(2), key("c", b""), 3, Some(at(9)));
        assert_eq!((repeats.entries.len(), repeats.order.len()), (2, 2));
    }
}
