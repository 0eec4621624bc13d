//! What has to reach the broker, and the requests whose acknowledgement waits for it.
//!
//! A connection forgets what it was handed when it ends: a message of QoS 1 stays here until its PUBACK, and is sent
//! again on the next one. A request is acknowledged when its reply has been, in the order the requests came, as MQTT
//! demands [MQTT-4.6.0-2]. So whatever fails in between, the broker still has either the request or the reply.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::client::Token;
use super::exchange::Address;
use super::message::{Message, Qos};

/// Names a message between the outbox and the connection.
pub(super) type Tag = u64;

/// A request waiting for its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending(u64);

/// Bounds of an [`Outbox`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Payload bytes held.
    pub(super) bytes: usize,
    /// Messages held.
    pub(super) messages: usize,
    /// QoS 1 messages under way.
    pub(super) inflight: usize,
}

#[derive(Debug)]
struct Entry {
    message: Arc<Message>,
    /// Where a refusal goes should the message turn out too large; none for notices.
    address: Option<Address>,
    /// Requests that this message answers.
    answers: Vec<Pending>,
    sent: bool,
}

/// Messages in the order they were put in. Pure: the caller moves them.
#[derive(Debug)]
pub(super) struct Outbox {
    limits: Limits,
    entries: BTreeMap<Tag, Entry>,
    bytes: usize,
    next_tag: Tag,
    /// QoS 1 entries under way, and how many may be.
    inflight: usize,
    window: usize,
}

/// There is no room for the message that would have answered these requests.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom(pub(super) Vec<Pending>);

/// A message that was taken out again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) message: Arc<Message>,
    pub(super) address: Option<Address>,
    pub(super) answers: Vec<Pending>,
}

impl Outbox {
    pub(super) fn new(limits: Limits) -> Outbox {
        Outbox {
            limits,
            entries: BTreeMap::new(),
            bytes: 0,
            next_tag: 1,
            inflight: 0,
            window: limits.inflight,
        }
    }

    /// Puts a message in. A notice takes the place of an unsent older one on the same topic.
    ///
    /// # Errors
    /// The bounds are reached; the message is dropped.
    pub(super) fn push(
        &mut self,
        message: impl Into<Arc<Message>>,
        address: Option<Address>,
        answers: Vec<Pending>,
    ) -> Result<Tag, NoRoom> {
        let message = message.into();
        if message.retain {
            self.entries.retain(|_, entry| {
                let stale = entry.message.retain && !entry.sent && entry.message.topic == message.topic;
                if stale {
                    self.bytes -= entry.message.payload.len();
                }
                !stale
            });
        }
        let bytes = self.bytes + message.payload.len();
        if self.entries.len() >= self.limits.messages || bytes > self.limits.bytes {
            return Err(NoRoom(answers));
        }
        self.bytes = bytes;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.entries.insert(tag, Entry { message, address, answers, sent: false });
        Ok(tag)
    }

    /// The next message to hand over, unless the window is full.
    pub(super) fn next(&self) -> Option<(Tag, &Arc<Message>)> {
        let (tag, entry) = self.entries.iter().find(|(_, entry)| !entry.sent)?;
        let free = entry.message.qos == Qos::AtMostOnce || self.inflight < self.window;
        free.then_some((*tag, &entry.message))
    }

    /// The message has been handed over. One of QoS 0 is thereby done: the requests it answers are returned.
    pub(super) fn sent(&mut self, tag: Tag) -> Vec<Pending> {
        let Some(entry) = self.entries.get_mut(&tag) else { return Vec::new() };
        match entry.message.qos {
            Qos::AtMostOnce => self.remove(tag),
            Qos::AtLeastOnce => {
                entry.sent = true;
                self.inflight += 1;
                Vec::new()
            }
        }
    }

    /// The broker has the message: the requests it answers are returned.
    pub(super) fn acked(&mut self, tag: Tag) -> Vec<Pending> {
        self.remove(tag)
    }

    /// A connection is up: everything unacknowledged is to be sent again, `window` messages at a time.
    pub(super) fn connected(&mut self, window: Option<u16>) {
        self.inflight = 0;
        self.window = window.map_or(self.limits.inflight, |window| self.limits.inflight.min(window.into()));
        for entry in self.entries.values_mut() {
            entry.sent = false;
        }
    }

    /// Takes out the messages the broker wouldn't take, with what they answer.
    pub(super) fn take_larger_than(&mut self, packet_bytes_max: usize) -> Vec<Taken> {
        let larger = |(_, entry): &(&Tag, &Entry)| entry.message.packet_bytes_max() > packet_bytes_max;
        let tags: Vec<Tag> = self.entries.iter().filter(larger).map(|(tag, _)| *tag).collect();
        tags.into_iter()
            .filter_map(|tag| {
                let Entry { message, address, answers, .. } = self.entries.remove(&tag)?;
                self.bytes -= message.payload.len();
                Some(Taken { message, address, answers })
            })
            .collect()
    }

    /// Adds requests to those a waiting message answers; false when it is no longer here.
    pub(super) fn also_answers(&mut self, tag: Tag, requests: &[Pending]) -> bool {
        match self.entries.get_mut(&tag) {
            Some(entry) => {
                entry.answers.extend(requests);
                true
            }
            None => false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn remove(&mut self, tag: Tag) -> Vec<Pending> {
        let Some(entry) = self.entries.remove(&tag) else { return Vec::new() };
        self.bytes -= entry.message.payload.len();
        if entry.sent {
            self.inflight -= 1;
        }
        entry.answers
    }
}

/// The requests of one connection that still want their acknowledgement, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Acknowledgements {
    /// Token and whether it has been answered; the first has the number `first`.
    waiting: VecDeque<(Token, bool)>,
    first: u64,
}

impl Acknowledgements {
    /// A request has come.
    pub(super) fn expect(&mut self, token: Token) -> Pending {
        self.waiting.push_back((token, false));
        Pending(self.first + self.waiting.len() as u64 - 1)
    }

    /// It has been answered. Those of an earlier connection are not known any more.
    pub(super) fn answered(&mut self, Pending(number): Pending) {
        let place = number.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        if let Some((_, answered)) = place.and_then(|place| self.waiting.get_mut(place)) {
            *answered = true;
        }
    }

    /// The next acknowledgement to send.
    pub(super) fn next(&mut self) -> Option<Token> {
        let (token, _) = self.waiting.front().copied().filter(|(_, answered)| *answered)?;
        self.waiting.pop_front();
        self.first += 1;
        Some(token)
    }

    /// The connection is over: the broker sends these requests again, or has lost them.
    pub(super) fn forget(&mut self) {
        self.first += self.waiting.len() as u64;
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::message::Properties;

    fn message(topic: &str, payload: &'static str, qos: Qos) -> Message {
        Message {
            topic: topic.to_owned(),
            payload: payload.into(),
            retain: false,
            qos,
            properties: Properties::default(),
        }
    }

    fn outbox(inflight: usize) -> Outbox {
        Outbox::new(Limits { bytes: 10, messages: 4, inflight })
    }

    /// Hands over everything the window lets through; returns the payloads.
    fn pump(outbox: &mut Outbox) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some((tag, message)) = outbox.next() {
            sent.push(String::from_utf8(message.payload.to_vec()).unwrap());
            outbox.sent(tag);
        }
        sent
    }

    #[test]
    fn a_message_leaves_only_by_its_acknowledgement() {
        let mut outbox = outbox(2);
        let tags: Vec<Tag> = ["a", "b", "c"]
            .map(|p| outbox.push(message("r", p, Qos::AtLeastOnce), None, vec![]).unwrap())
            .to_vec();
        assert_eq!(pump(&mut outbox), ["a", "b"]);
        outbox.acked(tags[0]);
        assert_eq!(pump(&mut outbox), ["c"]);
        // The connection is lost before the others were acknowledged: both go again, in their order.
        outbox.connected(None);
        assert_eq!(pump(&mut outbox), ["b", "c"]);
        outbox.acked(tags[1]);
        outbox.acked(tags[2]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_broker_may_narrow_the_window_but_not_widen_it() {
        let mut outbox = outbox(2);
        for payload in ["a", "b", "c"] {
            outbox.push(message("r", payload, Qos::AtLeastOnce), None, vec![]).unwrap();
        }
        outbox.connected(Some(1));
        assert_eq!(pump(&mut outbox), ["a"]);
        outbox.connected(Some(100));
        assert_eq!(pump(&mut outbox), ["a", "b"]);
    }

    #[test]
    fn qos_0_passes_a_full_window_and_is_done_when_sent() {
        let mut outbox = outbox(1);
        outbox.push(message("r", "a", Qos::AtLeastOnce), None, vec![]).unwrap();
        assert_eq!(pump(&mut outbox), ["a"]);
        let tag = outbox.push(message("r", "b", Qos::AtMostOnce), None, vec![Pending(7)]).unwrap();
        assert_eq!(outbox.next().map(|(tag, _)| tag), Some(tag));
        assert_eq!(outbox.sent(tag), [Pending(7)]);
        assert_eq!(outbox.len(), 1);
    }

    #[test]
    fn both_bounds_hold() {
        let mut outbox = outbox(1);
        assert_eq!(
            outbox.push(message("r", "12345678901", Qos::AtLeastOnce), None, vec![]),
            Err(NoRoom(vec![]))
        );
        for _ in 0..4 {
            outbox.push(message("r", "1", Qos::AtLeastOnce), None, vec![]).unwrap();
        }
        assert_eq!(outbox.push(message("r", "1", Qos::AtLeastOnce), None, vec![]), Err(NoRoom(vec![])));
        outbox.acked(1);
        outbox.push(message("r", "1", Qos::AtLeastOnce), None, vec![]).unwrap();
    }

    #[test]
    fn only_the_newest_unsent_notice_of_a_topic_is_kept() {
        let mut outbox = outbox(1);
        let notice = |payload: &'static str| Message::notice("status".to_owned(), payload);
        outbox.push(notice("1"), None, vec![]).unwrap();
        outbox.push(notice("2"), None, vec![]).unwrap();
        assert_eq!(pump(&mut outbox), ["2"]);
        outbox.push(notice("3"), None, vec![]).unwrap();
        assert_eq!(outbox.len(), 2);
        outbox.acked(2);
        assert_eq!(pump(&mut outbox), ["3"]);
    }

    #[test]
    fn what_a_new_broker_would_not_take_is_taken_out() {
        let mut outbox = outbox(4);
        outbox.push(message("r", "1", Qos::AtLeastOnce), None, vec![]).unwrap();
        outbox.push(message("r", "12345678", Qos::AtLeastOnce), None, vec![Pending(3)]).unwrap();
        // 13 bytes of framing, 1 of topic.
        assert!(outbox.take_larger_than(22).is_empty());
        let taken = outbox.take_larger_than(21);
        let large = message("r", "12345678", Qos::AtLeastOnce).into();
        assert_eq!(taken, [Taken { message: large, address: None, answers: vec![Pending(3)] }]);
        assert_eq!(pump(&mut outbox), ["1"]);
    }

    #[test]
    fn requests_are_acknowledged_in_the_order_they_came() {
        let mut acks = Acknowledgements::default();
        let [a, b, c] = [11, 12, 13].map(|id| acks.expect(Token(id)));
        acks.answered(b);
        assert_eq!(acks.next(), None);
        acks.answered(a);
        assert_eq!([acks.next(), acks.next(), acks.next()], [Some(Token(11)), Some(Token(12)), None]);
        // A lost connection: the broker repeats c under another id, the old one must never be acknowledged.
        acks.forget();
        let again = acks.expect(Token(1));
        acks.answered(c);
        assert_eq!(acks.next(), None);
        acks.answered(again);
        assert_eq!(acks.next(), Some(Token(1)));
    }
}
