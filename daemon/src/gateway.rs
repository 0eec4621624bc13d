//! Devices on serial lines: their requests reach the same intake as everybody's, in the packets of
//! [`tractd_wire::serial`].
//!
//! One task owns one line. It opens the device file, says HELLO, answers, and when the file fails or vanishes (a
//! cable pulled) tries to open it again. A device that says a new session has restarted: what it had asked before is
//! dropped.

use crate::{
    connection::Desk,
    frame,
    intake::{Hold, Line, Origin, Outgoing, Reply, Request, Spare},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serial2_tokio::SerialPort;
use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    io,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tractd_wire::{
    Status,
    serial::{Event, Hello, PACKET_LEN_MAX, PAYLOAD_LEN_MAX, Receiver, Sender},
};

/// Pause before a device file that failed is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Time the last replies have to leave a line when the daemon ends.
const FLUSH: Duration = Duration::from_secs(1);

/// Bytes read at once; a tty holds 4 KiB.
const READ_BYTES: usize = 4096;

/// HELLOs waiting to be written; a device that asks more often does not read them.
const HELLOS_MAX: usize = 4;

/// What a device is told to wait when its requests fill their budget, in milliseconds.
const BUDGET_RETRY_MS: u32 = 100;

/// `[[gateway]]`, once for each line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The device file: `/dev/ttyUSB0`, better a name that stays, `/dev/serial/by-id/…`.
    pub path: PathBuf,
    /// Bits per second; 8 data bits, no parity, one stop bit, no flow control. Default: 115,200.
    #[serde(default = "baud_default")]
    pub baud: u32,
    /// Largest frame taken from the line, in bytes, kept in memory while the daemon runs. Default: 65,536, six seconds
    /// at 115,200 bits per second.
    #[serde(default = "frame_bytes_max_default")]
    pub frame_bytes_max: NonZeroUsize,
    /// Requests a line may have unanswered; one more is answered `busy`. Default: 4.
    #[serde(default = "inflight_max_default")]
    pub inflight_max: NonZeroUsize,
}

fn baud_default() -> u32 {
    115_200
}

fn frame_bytes_max_default() -> NonZeroUsize {
    NonZeroUsize::new(65_536).expect("it is not zero")
}

fn inflight_max_default() -> NonZeroUsize {
    NonZeroUsize::new(4).expect("it is not zero")
}

/// Values that parse but cannot work, the first of them.
pub(crate) fn check(gateways: &[Config], body_bytes_max: u32) -> Result<(), String> {
    for (i, gateway) in gateways.iter().enumerate() {
        let path = gateway.path.display();
        if gateway.baud == 0 {
            return Err(format!("gateway {path}: baud must be greater than 0"));
        }
        if gateway.frame_bytes_max.get() as u64 > u64::from(body_bytes_max) {
            return Err(format!("gateway {path}: frame_bytes_max must not exceed limits.max_body_bytes"));
        }
        if gateways[..i].iter().any(|other| other.path == gateway.path) {
            return Err(format!("gateway {path}: two gateways cannot share a line"));
        }
    }
    Ok(())
}

/// What a line has seen; lives as long as the daemon.
#[derive(Debug)]
pub(crate) struct Board {
    path: String,
    open: AtomicBool,
    opened: AtomicU64,
    /// Times a device said a session that was new.
    sessions: AtomicU64,
    requests: AtomicU64,
    repeated: AtomicU64,
    replies: AtomicU64,
    damaged: AtomicU64,
}

/// A line in the status.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LineStatus {
    path: String,
    /// Whether the device file is open.
    open: bool,
    /// Times it was opened.
    opened: u64,
    /// Starts of the device that were noticed.
    sessions: u64,
    requests: u64,
    /// Requests that came again while they were under way; they are answered once.
    repeated: u64,
    replies: u64,
    /// Packets and frames left out because their bytes are not what was sent.
    damaged: u64,
}

impl Board {
    pub(crate) fn new(config: &Config) -> Board {
        Board {
            path: config.path.display().to_string(),
            open: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            replies: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        }
    }

    pub(crate) fn status(&self) -> LineStatus {
        LineStatus {
            path: self.path.clone(),
            open: self.open.load(Relaxed),
            opened: self.opened.load(Relaxed),
            sessions: self.sessions.load(Relaxed),
            requests: self.requests.load(Relaxed),
            repeated: self.repeated.load(Relaxed),
            replies: self.replies.load(Relaxed),
            damaged: self.damaged.load(Relaxed),
        }
    }
}

/// Serves a line until `closing` turns true, by when every request has been answered.
pub(crate) async fn run(
    config: Config,
    desk: Arc<Desk>,
    board: Arc<Board>,
    mut closing: watch::Receiver<bool>,
) {
    let mut said = String::new();
    while !*closing.borrow() {
        let failure = match SerialPort::open(&config.path, config.baud) {
            Ok(port) => {
                log::info!(path:% = config.path.display(), baud = config.baud; "serial line open");
                said.clear();
                board.opened.fetch_add(1, Relaxed);
                board.open.store(true, Relaxed);
                let ended = Gateway::new(&config, &desk, &board).serve(port, &mut closing).await;
                board.open.store(false, Relaxed);
                ended
            }
            Err(error) => Err(error),
        };
        let Err(error) = failure else { return };
        // Once for each reason: a board that is not plugged in may stay away for days.
        let failure = error.to_string();
        if failure != said {
            log::warn!(path:% = config.path.display(); "serial line: {failure}; trying again every {REOPEN:?}");
            said = failure;
        }
        tokio::select! {
            () = sleep(REOPEN) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

type Replies = mpsc::UnboundedReceiver<(u64, Outgoing)>;

/// One line while its file is open.
struct Gateway<'a> {
    config: &'a Config,
    desk: &'a Desk,
    board: &'a Board,
    receiver: Receiver,
    frame: Vec<u8>,
    /// Another number each time the file is opened, so that the device asks again what was lost meanwhile.
    session: u32,
    device: Option<Hello>,
    /// Ids under way. Together with the refusals in the channel they are bounded by `unanswered_max`.
    under_way: HashSet<u64>,
    unanswered: usize,
    outgoing: mpsc::UnboundedSender<(u64, Outgoing)>,
    replies: Replies,
    /// Packets to be written, and how much of them is.
    out: Vec<u8>,
    written: usize,
    /// HELLOs among them.
    hellos: usize,
}

impl<'a> Gateway<'a> {
    fn new(config: &'a Config, desk: &'a Desk, board: &'a Board) -> Self {
        let (outgoing, replies) = mpsc::unbounded_channel();
        Gateway {
            config,
            desk,
            board,
            receiver: Receiver::new(),
            frame: vec![0; config.frame_bytes_max.get()],
            session: RandomState::new().hash_one(0) as u32,
            device: None,
            under_way: HashSet::new(),
            unanswered: 0,
            outgoing,
            replies,
            out: Vec::new(),
            written: 0,
            hellos: 0,
        }
    }

    /// Moves bytes until the line fails or the daemon ends.
    async fn serve(mut self, port: SerialPort, closing: &mut watch::Receiver<bool>) -> io::Result<()> {
        let (mut read, mut write) = tokio::io::split(port);
        self.say_hello(true);
        let mut bytes = [0; READ_BYTES];
        loop {
            let idle = self.written == self.out.len();
            tokio::select! {
                read = read.read(&mut bytes) => match read? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    len => self.take(&bytes[..len]),
                },
                written = write.write(&self.out[self.written..]), if !idle => self.written += written?,
                // Every reply waits for the one before it, so that what is to be written stays one frame.
                Some((id, outgoing)) = self.replies.recv(), if idle => self.answer(id, outgoing),
                _ = closing.wait_for(|closing| *closing) => break,
            }
        }
        let last = async {
            loop {
                write.write_all(&self.out[self.written..]).await?;
                self.written = self.out.len();
                let Ok((id, outgoing)) = self.replies.try_recv() else { return write.flush().await };
                self.answer(id, outgoing);
            }
        };
        timeout(FLUSH, last).await.unwrap_or(Ok(()))
    }

    /// Bytes from the line.
    fn take(&mut self, mut bytes: &[u8]) {
        while let Some(event) = self.receiver.read(&mut self.frame, &mut bytes) {
            match event {
                Event::Hello(hello) => self.greeted(hello),
                Event::Frame { len } => self.request(len),
                Event::TooLarge { header } if self.device.is_some() => {
                    let detail = format!(
                        "a frame of {} bytes; this line takes {}",
                        header.frame_len(),
                        self.config.frame_bytes_max
                    );
                    self.refuse(header.id, Reply::refusal(Status::TooLarge, "", detail));
                }
                Event::TooLarge { .. } => self.say_hello(true),
                Event::Damaged => drop(self.board.damaged.fetch_add(1, Relaxed)),
                // It hears ours and can say what it does not understand.
                Event::Version(version) => {
                    log::debug!(path:% = self.config.path.display(), version; "a device of another version");
                    self.say_hello(false);
                }
            }
        }
    }

    fn greeted(&mut self, hello: Hello) {
        if self.device.is_none_or(|device| device.session != hello.session) {
            self.board.sessions.fetch_add(1, Relaxed);
            // Nobody waits for these any more: dropping the channel cancels them.
            (self.outgoing, self.replies) = mpsc::unbounded_channel();
            self.under_way.clear();
            self.unanswered = 0;
        }
        self.device = Some(hello);
        if hello.answer {
            self.say_hello(false);
        }
    }

    fn say_hello(&mut self, answer: bool) {
        if self.hellos >= HELLOS_MAX && self.written < self.out.len() {
            return;
        }
        self.hellos = if self.written < self.out.len() { self.hellos + 1 } else { 1 };
        let hello = Hello {
            answer,
            payload_max: PAYLOAD_LEN_MAX as u8,
            frame_max: u32::try_from(self.config.frame_bytes_max.get()).unwrap_or(u32::MAX),
            session: self.session,
        };
        let mut packet = [0; PACKET_LEN_MAX];
        let len = hello.encode(&mut packet).expect("the largest packet is larger than a HELLO");
        self.queue(&packet[..len]);
    }

    /// A whole frame, the first bytes of the buffer.
    fn request(&mut self, len: usize) {
        if self.device.is_none() {
            // It takes us for the one that was here before us: our session tells it to ask again.
            return self.say_hello(true);
        }
        self.board.requests.fetch_add(1, Relaxed);
        let read = frame::read_request(
            &Bytes::copy_from_slice(&self.frame[..len]),
            self.desk.body_bytes_max,
            Origin::Serial,
        );
        let (id, request) = match read {
            Ok(read) => read,
            Err((id, refusal)) => return self.refuse(id, refusal),
        };
        if self.under_way.contains(&id) {
            self.board.repeated.fetch_add(1, Relaxed);
            return;
        }
        match self.admit(&request) {
            Ok(hold) => {
                self.under_way.insert(id);
                self.unanswered += 1;
                let line = Line { id, outgoing: self.outgoing.clone(), hold: Some(hold) };
                self.desk.intake.submit_to(request, line, Spare::Some);
            }
            Err(refusal) => self.refuse(id, refusal),
        }
    }

    fn admit(&self, request: &Request) -> Result<Hold, Reply> {
        if self.under_way.len() >= self.config.inflight_max.get() {
            let detail = format!("this line has {} requests unanswered", self.config.inflight_max);
            let retry_after_ms = self.desk.intake.retry_after_ms();
            return Err(Reply::refusal(Status::Busy, "", detail).retry_after(retry_after_ms));
        }
        let bytes = request.payload.bytes();
        Hold::take(&self.desk.held_bytes, bytes, self.desk.held_bytes_max).ok_or_else(|| {
            let detail = "the requests under way fill their memory budget";
            Reply::refusal(Status::Busy, "", detail).retry_after(BUDGET_RETRY_MS)
        })
    }

    /// Says no, unless refusals alone fill the line: then silence says it.
    fn refuse(&mut self, id: u64, reply: Reply) {
        self.desk.intake.count_refusal(reply.status);
        if self.unanswered < 2 * self.config.inflight_max.get() {
            self.unanswered += 1;
            drop(self.outgoing.send((id, Outgoing::Reply(reply))));
        }
    }

    fn answer(&mut self, id: u64, outgoing: Outgoing) {
        self.under_way.remove(&id);
        self.unanswered = self.unanswered.saturating_sub(1);
        // Queries are refused before they get here, so that there are no other answers.
        let Outgoing::Reply(reply) = outgoing else { return };
        let Some(device) = self.device else { return };
        let encoded = frame::write_reply(id, &reply);
        let len: usize = encoded.slices().map(<[u8]>::len).sum();
        if len as u64 > u64::from(device.frame_max) {
            let detail =
                format!("the reply has {len} bytes, the device takes {}; ask for less", device.frame_max);
            let refusal = Reply::refusal(Status::TooLarge, "", detail);
            return self.write(&frame::write_reply(id, &refusal), device.payload_max);
        }
        self.write(&encoded, device.payload_max);
    }

    fn write(&mut self, encoded: &frame::Encoded<'_>, payload_max: u8) {
        self.board.replies.fetch_add(1, Relaxed);
        let mut sender = Sender::new();
        let mut packet = [0; PACKET_LEN_MAX];
        // The iterator over a frame's parts cannot be begun anew.
        let slices: Vec<&[u8]> = encoded.slices().collect();
        while let Ok(len @ 1..) = sender.next(slices.iter().copied(), payload_max, &mut packet) {
            self.queue(&packet[..len]);
        }
    }

    /// Bytes to be written; those that are already make room. Never more than one reply and a few HELLOs.
    fn queue(&mut self, bytes: &[u8]) {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        self.out.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(toml: &str) -> Vec<Config> {
        #[derive(Deserialize)]
        struct File {
            gateway: Vec<Config>,
        }
        toml::from_str::<File>(toml).unwrap().gateway
    }

    #[test]
    fn a_path_is_enough() {
        let line = Config {
            path: "/dev/ttyUSB0".into(),
            baud: 115_200,
            frame_bytes_max: NonZeroUsize::new(65_536).unwrap(),
            inflight_max: NonZeroUsize::new(4).unwrap(),
        };
        assert_eq!(lines("[[gateway]]\npath = '/dev/ttyUSB0'"), [line]);
    }

    #[test]
    fn lines_that_cannot_work_are_refused() {
        for (toml, message) in [
            ("[[gateway]]\npath = 'a'\nbaud = 0", "gateway a: baud must be greater than 0"),
            (
                "[[gateway]]\npath = 'a'\nframe_bytes_max = 2001",
                "gateway a: frame_bytes_max must not exceed limits.max_body_bytes",
            ),
            (
                "[[gateway]]\npath = 'a'\nframe_bytes_max = 9\n[[gateway]]\npath = 'a'\nframe_bytes_max = 9",
                "gateway a: two gateways cannot share a line",
            ),
        ] {
            assert_eq!(check(&lines(toml), 2000), Err(message.to_owned()));
        }
    }
}
