//! One connection: frames in, replies out as they come, in any order.
//!
//! Reading and writing are one task. A frame that is wrong gets its own answer; the stream goes on after it wherever
//! its end is known, and is closed, after the answer, where it is not.

use crate::{
    frame::{self, RequestHead},
    intake::{Hold, Intake, Line, Origin, Outgoing, Reply, Spare},
    observe::Observer,
    updates,
};
use std::{
    io::{self, IoSlice},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc as std_mpsc,
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tractd_wire::{self as wire, HEADER_LEN, Header, Kind, Status, What};

/// Bytes read at once; a small request's header, head and body come in one go.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// How long a connection closed by us is read on, so that a peer still writing gets our answer and not a reset.
const LINGER: Duration = Duration::from_secs(1);

/// How often a half-closed connection is looked at for having gone altogether.
const HANG_UP_POLL: Duration = Duration::from_millis(20);

/// What a client is told to wait when request bodies fill their budget, in milliseconds.
const BUDGET_RETRY_MS: u32 = 100;

/// A request this long after another connection's, in microseconds, does not compete with it.
const APART_US: u64 = 1_000;

/// What every connection shares.
pub(crate) struct Desk {
    pub(crate) intake: Intake,
    pub(crate) observer: Observer,
    pub(crate) updates: std_mpsc::Sender<updates::Command>,
    /// Bytes of request bodies held by connections, and their limit.
    pub(crate) held_bytes: Arc<AtomicU64>,
    pub(crate) held_bytes_max: u64,
    pub(crate) body_bytes_max: u32,
    pub(crate) turns: Turns,
}

/// Whether connections take turns, or one is alone. Who and when are not read together: a mistake costs a wake-up or the
/// wait for a short run.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    connections: AtomicU64,
    last: AtomicU64,
    last_us: AtomicU64,
}

impl Turns {
    /// A number for a new connection.
    fn join(&self) -> u64 {
        self.connections.fetch_add(1, Relaxed)
    }

    /// Notes a request; whether those just before were of the same connection.
    fn is_alone(&self, connection: u64, now_us: u64) -> bool {
        let last = self.last.swap(connection, Relaxed);
        let last_us = self.last_us.swap(now_us, Relaxed);
        last == connection || now_us.saturating_sub(last_us) > APART_US
    }
}

/// What this connection may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) uid: u32,
    /// Whether it may ask for more than inference and status.
    pub(crate) privileged: bool,
    pub(crate) inflight_max: usize,
    pub(crate) frame_timeout: Duration,
    pub(crate) idle_timeout: Duration,
}

/// Serves a connection until either side ends it. `closing` turns true when every request has been answered and
/// the daemon ends.
pub(crate) async fn serve(stream: UnixStream, desk: Arc<Desk>, terms: Terms, closing: watch::Receiver<bool>) {
    let (read, write) = stream.into_split();
    let (outgoing, replies) = mpsc::unbounded_channel();
    let traffic = Traffic { unanswered: AtomicUsize::new(0), room: Notify::new() };
    let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, read);
    let mut writer = pin!(write_all(replies, write, terms.frame_timeout, &traffic));
    let number = desk.turns.join();
    let mut inbox = Inbox { desk: &desk, terms, number, traffic: &traffic, outgoing, owed: None };
    let end = tokio::select! {
        end = inbox.read_all(&mut reader, closing) => end,
        // The peer no longer takes replies. Dropping the channel cancels what it still waits for.
        () = &mut writer => return,
    };
    // The writer ends when every request in flight has been answered.
    drop(inbox);
    tokio::select! {
        () = &mut writer => {}
        () = hung_up(reader.get_ref()) => return,
    }
    if end == End::Refused {
        let mut sink = [0; 4096];
        let drained = async { while reader.read(&mut sink).await.is_ok_and(|bytes| bytes > 0) {} };
        drop(timeout(LINGER, drained).await);
    }
}

/// Frames read and not yet answered.
struct Traffic {
    unanswered: AtomicUsize,
    /// Told whenever a reply was written.
    room: Notify,
}

/// Why reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The peer has nothing more to say, or nothing that can be understood any more.
    Finished,
    /// We closed after an answer; the peer may still be writing.
    Refused,
}

struct Inbox<'a> {
    desk: &'a Desk,
    terms: Terms,
    /// Among all connections.
    number: u64,
    traffic: &'a Traffic,
    outgoing: mpsc::UnboundedSender<(u64, Outgoing)>,
    /// Id of the frame being read, as far as it is known, until its answer is under way.
    owed: Option<u64>,
}

type Reader = BufReader<OwnedReadHalf>;

impl Inbox<'_> {
    async fn read_all(&mut self, reader: &mut Reader, mut closing: watch::Receiver<bool>) -> End {
        loop {
            // A client that does not take its replies is not read from either.
            while self.traffic.unanswered.load(Relaxed) >= 2 * self.terms.inflight_max {
                self.traffic.room.notified().await;
            }
            let first = tokio::select! {
                first = timeout(self.terms.idle_timeout, reader.fill_buf()) => first,
                _ = closing.wait_for(|closing| *closing) => return End::Finished,
            };
            match first {
                Err(_) if self.traffic.unanswered.load(Relaxed) > 0 => continue,
                Err(_) | Ok(Err(_) | Ok([])) => return End::Finished,
                Ok(Ok(_)) => {}
            }
            self.owed = Some(0);
            match timeout(self.terms.frame_timeout, self.read_frame(reader)).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(end))) => return end,
                Ok(Err(error)) => {
                    if error.kind() == io::ErrorKind::UnexpectedEof {
                        self.refuse_owed("the stream ends within a frame".into());
                    }
                    return End::Finished;
                }
                Err(_) => {
                    self.refuse_owed(format!("the frame took longer than {:?}", self.terms.frame_timeout));
                    return End::Refused;
                }
            }
        }
    }

    /// Reads one frame and sees to its answer.
    async fn read_frame(&mut self, reader: &mut Reader) -> io::Result<Option<End>> {
        let mut header = [0; HEADER_LEN];
        reader.read_exact(&mut header).await?;
        let header = match Header::parse(&header) {
            Ok(header) => header,
            Err(error) => {
                let reply = Reply::refusal(error.status(), "", error.to_string());
                self.refuse(error.id().unwrap_or(0), reply);
                return Ok(Some(End::Refused));
            }
        };
        self.owed = Some(header.id);
        if let Err(error) = header.limit_body(self.desk.body_bytes_max) {
            self.refuse(header.id, Reply::refusal(error.status(), "", error.to_string()));
            skip(reader, u64::from(header.head_len) + u64::from(header.body_len)).await?;
            return Ok(None);
        }
        let mut head = [0; wire::HEAD_LEN_MAX];
        let head = &mut head[..header.head_len.into()];
        reader.read_exact(head).await?;
        match header.kind {
            Kind::Request => self.request(reader, header, head).await?,
            Kind::Query => {
                self.query(header, head);
                skip(reader, header.body_len.into()).await?;
            }
            Kind::Reply | Kind::Answer => {
                let detail = "only requests and queries are answered here";
                self.refuse(header.id, Reply::refusal(Status::Malformed, "", detail));
                skip(reader, header.body_len.into()).await?;
            }
        }
        Ok(None)
    }

    async fn request(&mut self, reader: &mut Reader, header: Header, head: &[u8]) -> io::Result<()> {
        let admitted = RequestHead::decode(head, header.body_len).and_then(|head| {
            let (hold, body) = self.admit(header.body_len)?;
            Ok((head, hold, body))
        });
        let (head, hold, mut body) = match admitted {
            Ok(admitted) => admitted,
            Err(reply) => {
                self.refuse(header.id, reply);
                return skip(reader, header.body_len.into()).await;
            }
        };
        let mut limited = reader.take(header.body_len.into());
        while limited.limit() > 0 {
            if limited.read_buf(&mut body).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let line = Line { hold: Some(hold), ..self.line(header.id) };
        let request = head.with_body(body.into(), Origin::Socket { uid: self.terms.uid });
        let alone = self.desk.turns.is_alone(self.number, self.desk.intake.now_us());
        let spare = if alone && reader.buffer().is_empty() { Spare::Plenty } else { Spare::Some };
        self.desk.intake.submit_to(request, line, spare);
        Ok(())
    }

    /// Room for a body, without touching the memory before its bytes are there.
    fn admit(&self, body_len: u32) -> Result<(Hold, Vec<u8>), Reply> {
        if self.traffic.unanswered.load(Relaxed) >= self.terms.inflight_max {
            let detail = format!("this connection has {} requests unanswered", self.terms.inflight_max);
            return Err(
                Reply::refusal(Status::Busy, "", detail).retry_after(self.desk.intake.retry_after_ms())
            );
        }
        let hold = Hold::take(&self.desk.held_bytes, body_len.into(), self.desk.held_bytes_max).ok_or_else(
            || {
                let detail = "the requests under way fill their memory budget";
                Reply::refusal(Status::Busy, "", detail).retry_after(BUDGET_RETRY_MS)
            },
        )?;
        let mut body = Vec::new();
        body.try_reserve_exact(body_len as usize).map_err(|_| {
            Reply::refusal(Status::InsufficientMemory, "", "no memory for the body")
                .retry_after(BUDGET_RETRY_MS)
        })?;
        Ok((hold, body))
    }

    fn query(&mut self, header: Header, head: &[u8]) {
        let line = self.line(header.id);
        let what = match wire::decode_query(head, header.body_len) {
            Ok(query) => query.what,
            Err(error) => {
                let (status, detail) = (error.status(), error.to_string());
                return line.send(Outgoing::Answer { status, detail, json: Vec::new() });
            }
        };
        match what {
            What::Models => line.send(answer(&self.desk.observer.models())),
            What::Status => line.send(answer(&self.desk.observer.status())),
            What::CheckUpdates if self.terms.privileged => {
                let asker = Box::new(move |report| line.send(answer(&report)));
                // The thread outlives the connections; should it be gone, the dropped line answers nobody.
                drop(self.desk.updates.send(updates::Command::Check(Some(asker))));
            }
            What::CheckUpdates => {
                let detail = "only root and the daemon's own user may ask for updates".to_owned();
                line.send(Outgoing::Answer { status: Status::Forbidden, detail, json: Vec::new() });
            }
        }
    }

    fn refuse(&mut self, id: u64, reply: Reply) {
        self.desk.intake.count_refusal(reply.status);
        self.line(id).send(Outgoing::Reply(reply));
    }

    /// Answers the frame being read, unless that is done: what is left of it was only skipped.
    fn refuse_owed(&mut self, detail: String) {
        if let Some(id) = self.owed {
            self.refuse(id, Reply::refusal(Status::Malformed, "", detail));
        }
    }

    /// A line for the answer to one frame, counted until it is written.
    fn line(&mut self, id: u64) -> Line {
        self.owed = None;
        self.traffic.unanswered.fetch_add(1, Relaxed);
        Line { id, outgoing: self.outgoing.clone(), hold: None }
    }
}

fn answer(content: &impl serde::Serialize) -> Outgoing {
    match serde_json::to_vec(content) {
        Ok(json) => Outgoing::Answer { status: Status::Ok, detail: String::new(), json },
        Err(error) => {
            Outgoing::Answer { status: Status::Internal, detail: error.to_string(), json: Vec::new() }
        }
    }
}

/// Reads and forgets `bytes` bytes.
async fn skip(reader: &mut Reader, bytes: u64) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut reader.take(bytes), &mut tokio::io::sink()).await?;
    if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Returns once the peer has closed both directions, not only the one it sends on.
async fn hung_up(read: &OwnedReadHalf) {
    let stream: &UnixStream = read.as_ref();
    while !stream.ready(Interest::WRITABLE).await.is_ok_and(|ready| ready.is_write_closed()) {
        tokio::time::sleep(HANG_UP_POLL).await;
    }
}

/// Writes replies until every sender is gone, or the peer no longer takes them.
async fn write_all(
    mut replies: mpsc::UnboundedReceiver<(u64, Outgoing)>,
    mut write: OwnedWriteHalf,
    patience: Duration,
    traffic: &Traffic,
) {
    while let Some((id, outgoing)) = replies.recv().await {
        match timeout(patience, write_one(&mut write, id, &outgoing)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
        traffic.unanswered.fetch_sub(1, Relaxed);
        traffic.room.notify_one();
    }
    drop(write.shutdown().await);
}

/// Writes one frame.
pub(crate) async fn write_one(write: &mut OwnedWriteHalf, id: u64, outgoing: &Outgoing) -> io::Result<()> {
    match outgoing {
        Outgoing::Reply(reply) => {
            let encoded = frame::write_reply(id, reply);
            let mut slices: Vec<IoSlice<'_>> = encoded.slices().map(IoSlice::new).collect();
            write_slices(write, &mut slices).await
        }
        Outgoing::Answer { status, detail, json } => {
            let head = frame::write_answer(id, *status, detail, json);
            write_slices(write, &mut [IoSlice::new(&head), IoSlice::new(json)]).await
        }
    }
}

async fn write_slices(write: &mut OwnedWriteHalf, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let written = write.write_vectored(slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_alone_until_another_asks_within_a_millisecond() {
        let turns = Turns::default();
        let (a, b) = (turns.join(), turns.join());
        assert!(turns.is_alone(a, 10_000));
        assert!(turns.is_alone(a, 10_001));
        assert!(!turns.is_alone(b, 11_001));
        assert!(!turns.is_alone(a, 12_001));
        assert!(turns.is_alone(a, 12_002));
        assert!(turns.is_alone(b, 13_003));
    }
}
