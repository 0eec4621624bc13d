//! One connection to the broker, from CONNECT to its end.
//!
//! rumqttc's packets and codec (`codec`), and an event loop of our own: its own sends each packet by itself, where here
//! whatever a turn of the caller's has to say leaves in one write. Nor has this one the traps of that:
//!
//! - A connection is over with the first error. What must not be lost waits in our outbox; nothing is carried over, so
//!   no collision of packet ids (rumqtt#1014, #1056) and no queue of a dead session (there dropped without a word).
//! - All is done in one place, [`Connection::poll`], and is there or in a buffer: to stop waiting for it and to ask again
//!   loses nothing, and no channel between sender and poller can fill up (rumqtt#1025).
//! - What was read before an error is told before it: acknowledgements among it, or their messages would be sent twice.
//! - A broker that takes nothing doesn't keep the ping from being missed.
//! - Our own DISCONNECT is the last thing said, and the broker's end is waited for: to close with something unread would
//!   make the kernel take back what the broker has not read either, and it would publish our will.

mod codec;
mod stream;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep, timeout};

use self::codec::{Codec, Packet, Read};
use self::stream::{Road, Stream};
use super::config::Settings;
use super::message::{Arrival, Message, Qos};
use crate::certificates::Certificates;

/// Longest a connect with its CONNACK may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest the broker may take to close the connection after our DISCONNECT.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
/// Room made for reading where it is not known how much comes: some dozens of small requests.
const READ_BYTES: usize = 16 << 10;
/// What may wait to be written before more is turned away: as much as a socket takes at once, or one message.
const WRITE_BYTES_MAX: usize = 256 << 10;
/// Larger buffers are let go of once they are empty; a large packet leaves one.
const KEEP_BYTES_MAX: usize = 1 << 20;
/// Events given out while something waits to be written: the first reply of a burst should not wait for its last, nor
/// each be written by itself.
const UNWRITTEN_EVENTS_MAX: u32 = 8;

/// What a connection reports.
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
    /// There is room again for what was turned away.
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
    /// It did so again, soon after it had let us in. A take-over looks like this in 3.1.1, which has no reason codes, and
    /// from mosquitto 2.0, which has one and does not send it.
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

/// As much waits to be written as may, or nothing more may be; in the first case [`Event::Sent`] tells when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// What an answer with a packet id belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The message of this tag.
    Publish(u64),
    Subscribe,
    Unsubscribe,
}

/// A broker that has let us in.
struct Opened {
    stream: Box<dyn Stream>,
    granted: Granted,
    /// What came behind the CONNACK.
    read: BytesMut,
}

type Opening = Pin<Box<dyn Future<Output = Result<Opened, Loss>> + Send>>;

/// How far a connection is.
enum Stage {
    Opening(Opening),
    Open(Box<dyn Stream>),
    Over,
}

/// How far our own end of it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// Our DISCONNECT waits to be written.
    Said,
    /// It has been, and nothing follows; the broker closes its end, or time passes.
    Shut,
}

/// One connection, from CONNECT to its end.
pub(super) struct Connection {
    stage: Stage,
    codec: Codec,
    /// Read and not given out.
    read: BytesMut,
    /// To be written.
    write: BytesMut,
    /// Written to a stream that may hold it back.
    unflushed: bool,
    /// Events given out since something has waited to be written.
    unwritten_events: u32,
    /// Why nothing can be written any more; what came before that is still to be read.
    broken: Option<Loss>,
    /// Something was turned away for want of room.
    full: bool,
    leaving: Leaving,
    waiting: HashMap<u16, Waiting>,
    last_id: u16,
    keep_alive: Duration,
    /// When to ping; after our DISCONNECT, when to wait for the broker's end no longer. It ends with the connection.
    timer: Pin<Box<Sleep>>,
    /// A ping has not been answered.
    pinged: bool,
    /// Something has been written since it was last time to ping.
    moved: bool,
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
        let password = settings.password_file.as_deref().map(stream::read_password).transpose()?;
        let road = Road::to(&settings.address, certificates)?;
        let codec = Codec::new(settings);
        let mut connect = BytesMut::new();
        codec.connect(settings, password, will, forget, &mut connect)?;
        let opening = async move {
            let opened = timeout(CONNECT_MAX, open(road, codec, connect)).await;
            let late = || Loss::Broken(format!("it did not let us in within {} s", CONNECT_MAX.as_secs()));
            opened.map_err(|_| late())?
        };
        Ok(Connection {
            stage: Stage::Opening(Box::pin(opening)),
            codec,
            read: BytesMut::new(),
            write: BytesMut::new(),
            unflushed: false,
            unwritten_events: 0,
            broken: None,
            full: false,
            leaving: Leaving::No,
            waiting: HashMap::new(),
            last_id: 0,
            keep_alive: settings.keep_alive,
            timer: Box::pin(sleep(settings.keep_alive)),
            pinged: false,
            moved: false,
        })
    }

    /// Whether publishes have been read that [`next`](Connection::next) has not given out.
    pub(super) fn is_behind(&self) -> bool {
        self.codec.holds_publish(&self.read)
    }

    /// The next event. Safe to drop and call again; never returns once the connection is over. Until it is called, what
    /// was handed over stays here.
    pub(super) async fn next(&mut self) -> Event {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        let told = match &mut self.stage {
            Stage::Opening(opening) => {
                ready!(opening.as_mut().poll(context)).map(|opened| self.opened(opened))
            }
            Stage::Open(_) => ready!(self.poll_open(context)),
            Stage::Over => return Poll::Pending,
        };
        let event = told.unwrap_or_else(Event::Lost);
        if matches!(event, Event::Lost(_) | Event::Closed) {
            self.stage = Stage::Over;
        }
        Poll::Ready(event)
    }

    fn opened(&mut self, Opened { stream, granted, read }: Opened) -> Event {
        self.stage = Stage::Open(stream);
        self.read = read;
        // A broker that wants no pings gets them all the same: they are how we know that it lives.
        self.keep_alive = granted.keep_alive.filter(|every| !every.is_zero()).unwrap_or(self.keep_alive);
        self.timer.as_mut().reset(Instant::now() + self.keep_alive);
        Event::Connected(granted)
    }

    /// Gives out what has been read before it reads on, and writes before it waits.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, Loss>> {
        while self.leaving != Leaving::Shut {
            if self.unwritten_events >= UNWRITTEN_EVENTS_MAX {
                self.poll_write(context);
            }
            let missing = match self.codec.read(&mut self.read)? {
                Read::Packet(packet) => {
                    self.unwritten_events += u32::from(!self.write.is_empty());
                    return Poll::Ready(self.event(packet));
                }
                Read::Part(missing) => missing,
            };
            self.poll_ping(context)?;
            self.poll_write(context);
            if self.leaving == Leaving::Said && self.write.is_empty() && !self.unflushed {
                self.leaving = Leaving::Shut;
                self.timer.as_mut().reset(Instant::now() + GOODBYE_MAX);
                break;
            }
            if self.full && self.write.len() < WRITE_BYTES_MAX {
                self.full = false;
                return Poll::Ready(Ok(Event::Sent));
            }
            match (self.poll_read(context, missing), self.broken.take()) {
                (Poll::Ready(Ok(0)), _) => return Poll::Ready(Err(Loss::Closed)),
                (Poll::Ready(Ok(_)), loss) => self.broken = loss,
                (_, Some(loss)) => return Poll::Ready(Err(loss)),
                (Poll::Ready(Err(error)), None) => return Poll::Ready(Err(broken(&error))),
                (Poll::Pending, None) => return Poll::Pending,
            }
        }
        self.poll_goodbye(context).map(|()| Ok(Event::Closed))
    }

    /// Waits for the broker's end of a connection that we have ended, for as long as that may take.
    fn poll_goodbye(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // First, or a broker that goes on talking would be listened to for ever.
        if self.timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if let Stage::Open(stream) = &mut self.stage {
            // Again and again does no harm, and an error here is an end.
            let _ = Pin::new(stream).poll_shutdown(context);
        }
        loop {
            self.read.clear();
            match self.poll_read(context, 0) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Pings when it is time to, unless the last was not answered. One that is yet to be written behind a large message
    /// has time for as long as that moves.
    fn poll_ping(&mut self, context: &mut Context<'_>) -> Result<(), Loss> {
        while self.timer.as_mut().poll(context).is_ready() {
            let moving = std::mem::take(&mut self.moved) && !self.write.is_empty();
            match self.pinged {
                true if !moving => return Err(Loss::Broken("it did not answer a ping".to_owned())),
                true => {}
                false => self.codec.ping(&mut self.write)?,
            }
            self.pinged = true;
            self.timer.as_mut().reset(Instant::now() + self.keep_alive);
        }
        Ok(())
    }

    /// Writes as much as is taken.
    fn poll_write(&mut self, context: &mut Context<'_>) {
        self.unwritten_events = 0;
        let Stage::Open(stream) = &mut self.stage else { return };
        if self.broken.is_some() {
            return;
        }
        while !self.write.is_empty() {
            match Pin::new(&mut *stream).poll_write(context, &self.write) {
                Poll::Ready(Ok(0)) => return self.broken = Some(Loss::Closed),
                Poll::Ready(Ok(count)) => self.write.advance(count),
                Poll::Ready(Err(error)) => return self.broken = Some(broken(&error)),
                Poll::Pending => return,
            }
            (self.unflushed, self.moved) = (true, true);
        }
        if self.unflushed {
            match Pin::new(&mut *stream).poll_flush(context) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.broken = Some(broken(&error)),
                Poll::Pending => {}
            }
        }
        if self.write.capacity() > KEEP_BYTES_MAX {
            self.write = BytesMut::new();
        }
    }

    /// Reads as much as is there. What `read` begins with lacks `missing` bytes.
    fn poll_read(&mut self, context: &mut Context<'_>, missing: usize) -> Poll<io::Result<usize>> {
        let Stage::Open(stream) = &mut self.stage else { return Poll::Pending };
        if self.read.is_empty() && self.read.capacity() > KEEP_BYTES_MAX {
            self.read = BytesMut::new();
        }
        // A large packet gets what it lacks: room for more would have its beginning copied once more.
        let begun = self.read.len() >= READ_BYTES;
        self.read.reserve(if begun { missing } else { missing.max(READ_BYTES) });
        pin!(stream.read_buf(&mut self.read)).poll(context)
    }

    fn event(&mut self, packet: Packet) -> Result<Event, Loss> {
        Ok(match packet {
            Packet::Publish(arrival, token) => Event::Publish(arrival, token),
            Packet::PubAck { id, refused } => match self.waiting.remove(&id) {
                Some(Waiting::Publish(tag)) => Event::Acked { tag, refused },
                _ => Event::Alive,
            },
            Packet::SubAck { id, refused } => match self.waiting.remove(&id) {
                Some(Waiting::Subscribe) => Event::Subscribed { refused },
                _ => Event::Alive,
            },
            Packet::UnsubAck { id } => {
                self.waiting.remove(&id);
                Event::Alive
            }
            Packet::Pong => {
                self.pinged = false;
                Event::Alive
            }
            Packet::Farewell(loss) => return Err(loss),
            Packet::Welcome(_) | Packet::Other => Event::Alive,
        })
    }

    /// Hands over a message; one of QoS 1 is reported by its tag when the broker has it.
    pub(super) fn publish(&mut self, tag: u64, message: &Message) -> Result<(), Full> {
        let waiting = (message.qos == Qos::AtLeastOnce).then_some(Waiting::Publish(tag));
        self.hand_over(waiting, |codec, id, out| codec.publish(id, message, out))
    }

    /// Acknowledges an arrival of this connection.
    pub(super) fn ack(&mut self, token: Token) -> Result<(), Full> {
        self.hand_over(None, |codec, _, out| codec.ack(token, out))
    }

    /// Subscribes to all filters in one packet.
    pub(super) fn subscribe(&mut self, filters: &[(String, Qos)]) -> Result<(), Full> {
        self.hand_over(Some(Waiting::Subscribe), |codec, id, out| codec.subscribe(id, filters, out))
    }

    /// Ends a subscription.
    pub(super) fn unsubscribe(&mut self, filter: &str) -> Result<(), Full> {
        self.hand_over(Some(Waiting::Unsubscribe), |codec, id, out| codec.unsubscribe(id, filter, out))
    }

    /// Ends the connection in order; the broker then drops our will. [`Event::Closed`] follows.
    pub(super) fn disconnect(&mut self) -> Result<(), Full> {
        self.hand_over(None, |codec, _, out| codec.disconnect(out))?;
        self.leaving = Leaving::Said;
        Ok(())
    }

    /// Has a packet written where there is room for it, under an id if its answer is waited for. What can't be written
    /// costs the connection, and so is told.
    fn hand_over(
        &mut self,
        waiting: Option<Waiting>,
        write: impl FnOnce(Codec, u16, &mut BytesMut) -> Result<(), Loss>,
    ) -> Result<(), Full> {
        let open = matches!(self.stage, Stage::Open(_)) && self.leaving == Leaving::No;
        self.full = open && self.write.len() >= WRITE_BYTES_MAX;
        if self.full || !open {
            return Err(Full);
        }
        let id = waiting.map_or(0, |waiting| self.wait_for(waiting));
        if let Err(loss) = write(self.codec, id, &mut self.write) {
            self.broken.get_or_insert(loss);
        }
        Ok(())
    }

    /// A packet id that nothing else waits for. There are far fewer who wait than ids.
    fn wait_for(&mut self, what: Waiting) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.waiting.contains_key(&self.last_id) {
                self.waiting.insert(self.last_id, what);
                return self.last_id;
            }
        }
    }
}

/// Connects and waits to be let in.
async fn open(road: Road, codec: Codec, connect: BytesMut) -> Result<Opened, Loss> {
    let broken = |error| broken(&error);
    let mut stream = road.open().await.map_err(broken)?;
    stream.write_all(&connect).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut read = BytesMut::with_capacity(READ_BYTES);
    loop {
        match codec.read(&mut read)? {
            Read::Packet(Packet::Welcome(granted)) => return Ok(Opened { stream, granted, read }),
            Read::Packet(Packet::Farewell(loss)) => return Err(loss),
            Read::Packet(_) => return Err(Loss::Broken("it did not answer CONNECT".to_owned())),
            Read::Part(_) => {
                if stream.read_buf(&mut read).await.map_err(broken)? == 0 {
                    return Err(Loss::Closed);
                }
            }
        }
    }
}

/// Whether the next connection could be opened with the files as they are.
///
/// # Errors
/// What is wrong with one of them.
pub(super) fn look_at_files(settings: &Settings, certificates: &Certificates) -> Result<(), Loss> {
    Road::to(&settings.address, certificates).map(drop)
}

fn broken(error: &io::Error) -> Loss {
    Loss::Broken(error.to_string())
}

#[cfg(test)]
mod tests;
