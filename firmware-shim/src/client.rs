//! One request at a time, from its start to its reply: sent again when nothing comes, later when the daemon is busy,
//! given up when its time is over. No clock, no transport: the caller brings the time and moves the bytes.

use tractd_wire::{EncodeError, Frame, Kind, ReplyView};

use crate::{Call, Link, encode_head, link::Received};

/// Asks a daemon over a [`Link`].
///
/// Milliseconds are a `u32` that wraps around after 49 days, as firmware's tick counters do; while a request runs,
/// [`Exchange::poll`] must be called at least every 24 days.
#[derive(Debug)]
pub struct Client<'b, L> {
    link: L,
    /// The encoded header and head of the request under way.
    head: &'b mut [u8],
    head_len: usize,
    id: u64,
    state: State,
    patience: Patience,
    started_ms: u32,
    /// How long the next silence may last; doubled every time.
    silence_ms: u32,
}

/// How long a client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Milliseconds from the start of a request until it is given up; at most 2³¹−1.
    pub timeout_ms: u32,
    /// Milliseconds of silence after which it is sent again, twice as many every further time.
    pub resend_ms: u32,
}

impl Default for Patience {
    /// 10 s, the daemon's own default deadline; and 1 s, a hundred times what a small model takes.
    fn default() -> Self {
        Self { timeout_ms: 10_000, resend_ms: 1_000 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Sending,
    /// Everything is sent.
    Waiting {
        since_ms: u32,
    },
    /// The daemon asked to be left alone for a while.
    Resting {
        since_ms: u32,
        for_ms: u32,
    },
    /// The link holds a reply.
    Replied,
    TooLarge {
        len: u64,
    },
    Broken,
}

/// A request under way. Dropping it forgets nothing: see [`Client::resume`].
#[derive(Debug)]
pub struct Exchange<'c, 'b, 'a, L> {
    client: &'c mut Client<'b, L>,
    call: Call<'a>,
}

/// What is to be done.
#[derive(Debug)]
pub enum Step<'s> {
    /// Write these bytes to the transport, then poll again.
    Send(&'s [u8]),
    /// The reply: an answer, or a refusal that another try would not change in the time there is.
    Done(ReplyView<'s>),
    /// Nothing came in time.
    TimedOut,
    /// The reply, of this many bytes, is larger than the link's buffer.
    TooLarge(u64),
    /// What came is no frame: connect anew and [reset](Client::reset) the client. A serial line finds itself again
    /// and never says this.
    Broken,
    /// Nothing before bytes come, or this many milliseconds have passed; `None`: nothing is under way.
    Sleep(Option<u32>),
}

impl<'b, L: Link> Client<'b, L> {
    /// A client that sends over `link`. `head` takes the encoded start of a request: 20 bytes, the model's name and
    /// about 40 more. `boot` makes ids unlike those of the last start, whose replies may still be on their way.
    pub const fn new(link: L, head: &'b mut [u8], patience: Patience, boot: u32) -> Self {
        Self {
            link,
            head,
            head_len: 0,
            id: (boot as u64) << 32,
            state: State::Idle,
            patience,
            started_ms: 0,
            silence_ms: 0,
        }
    }

    /// Starts a request; one that is under way is given up.
    ///
    /// # Errors
    /// [`EncodeError`] when no daemon would take it, or `head` is too small for it.
    #[inline(never)]
    pub fn start<'c, 'a>(
        &'c mut self,
        now_ms: u32,
        call: &Call<'a>,
    ) -> Result<Exchange<'c, 'b, 'a, L>, EncodeError> {
        self.state = State::Idle;
        self.id = self.id.wrapping_add(1);
        self.head_len = encode_head(self.id, call, self.head)?;
        self.started_ms = now_ms;
        self.silence_ms = self.patience.resend_ms.max(1);
        self.send();
        Ok(self.resume(call))
    }

    /// Goes on with the request that was [started](Self::start) with this same call, where a main loop cannot keep
    /// the exchange.
    pub fn resume<'c, 'a>(&'c mut self, call: &Call<'a>) -> Exchange<'c, 'b, 'a, L> {
        Exchange { client: self, call: *call }
    }

    /// The transport was connected anew: what was half sent is sent again.
    pub fn reset(&mut self) {
        self.link.reset();
        if !matches!(self.state, State::Idle | State::Replied | State::TooLarge { .. }) {
            self.state = State::Sending;
        }
    }

    /// Takes bytes from the transport and says how many; fewer than all when a reply is there that has to be polled
    /// first. Without a request under way everything is taken and forgotten.
    #[inline(never)]
    pub fn on_bytes(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_over() {
            match self.link.receive(&mut rest) {
                Received::Nothing => {}
                // Late replies to other requests are passed over.
                Received::Frame => {
                    let wanted =
                        |frame: Frame<'_>| frame.header.id == self.id && frame.header.kind == Kind::Reply;
                    if self.is_under_way() && self.link.frame().is_some_and(wanted) {
                        self.state = State::Replied;
                    }
                }
                Received::TooLarge { id, len } => {
                    if self.is_under_way() && id == self.id {
                        self.state = State::TooLarge { len };
                    }
                }
                Received::Again => {
                    if self.is_under_way() {
                        self.send();
                    }
                }
                Received::Broken => self.state = State::Broken,
            }
        }
        bytes.len() - rest.len()
    }

    /// The reply that [`Step::Done`] gave, until more bytes are taken: where a main loop cannot keep the step.
    pub fn reply(&self) -> Option<ReplyView<'_>> {
        let frame =
            self.link.frame().filter(|frame| frame.header.id == self.id && self.state == State::Idle)?;
        frame.reply_view().ok()
    }

    fn send(&mut self) {
        self.link.rewind();
        self.state = State::Sending;
    }

    fn is_under_way(&self) -> bool {
        matches!(self.state, State::Sending | State::Waiting { .. } | State::Resting { .. })
    }

    /// Whether there is something to be polled before more bytes are taken.
    fn is_over(&self) -> bool {
        matches!(self.state, State::Replied | State::TooLarge { .. } | State::Broken)
    }
}

impl<L: Link> Exchange<'_, '_, '_, L> {
    /// Takes bytes from the transport, as [`Client::on_bytes`].
    pub fn on_bytes(&mut self, bytes: &[u8]) -> usize {
        self.client.on_bytes(bytes)
    }

    /// The id that request and reply carry.
    pub fn id(&self) -> u64 {
        self.client.id
    }

    /// What is to be done now. `out` takes bytes to be sent, as many as fit at a time; over a serial line at least
    /// 19, and 257 for packets of the largest size.
    #[inline(never)]
    pub fn poll<'s>(&'s mut self, now_ms: u32, out: &'s mut [u8]) -> Step<'s> {
        let left_ms =
            self.client.patience.timeout_ms.saturating_sub(now_ms.wrapping_sub(self.client.started_ms));
        match self.client.state {
            State::Idle => return Step::Sleep(None),
            State::Broken => return Step::Broken,
            State::Replied => return self.client.settle(now_ms, left_ms),
            State::TooLarge { len } => {
                self.client.state = State::Idle;
                return Step::TooLarge(len);
            }
            _ if left_ms == 0 => {
                self.client.state = State::Idle;
                return Step::TimedOut;
            }
            _ => {}
        }
        if let Some(wait_ms) = self.client.wait(now_ms) {
            return Step::Sleep(Some(wait_ms.min(left_ms)));
        }
        match self.write(now_ms, out) {
            0 => Step::Sleep(Some(self.client.silence_ms.min(left_ms))),
            len => Step::Send(out.get(..len).unwrap_or_default()),
        }
    }

    /// The next bytes to be sent; 0 when all of them are, and the waiting begins.
    #[inline(never)]
    fn write(&mut self, now_ms: u32, out: &mut [u8]) -> usize {
        let Client { link, head, head_len, state, .. } = &mut *self.client;
        let head = head.get(..*head_len).unwrap_or_default();
        let len = link.next(core::iter::once(head).chain(self.call.body()), out);
        if len == 0 {
            *state = State::Waiting { since_ms: now_ms };
        }
        len
    }
}

impl<L: Link> Client<'_, L> {
    /// What a reply means: the end, or a rest before another try.
    #[inline(never)]
    fn settle(&mut self, now_ms: u32, left_ms: u32) -> Step<'_> {
        match self.link.frame().map(|frame| ReplyView::parse(frame.head, frame.body)) {
            Some(Ok(reply)) => {
                let asked_ms = if reply.retry_after_ms > 0 { reply.retry_after_ms } else { self.silence_ms };
                if reply.status.retryable() && asked_ms < left_ms {
                    self.state = State::Resting { since_ms: now_ms, for_ms: asked_ms };
                    return Step::Sleep(Some(asked_ms));
                }
                self.state = State::Idle;
                Step::Done(reply)
            }
            // Not what a daemon of this version writes: the one that was asked may still answer.
            _ if left_ms > 0 => {
                self.state = State::Waiting { since_ms: now_ms };
                Step::Sleep(Some(self.silence_ms.min(left_ms)))
            }
            _ => {
                self.state = State::Idle;
                Step::TimedOut
            }
        }
    }

    /// Milliseconds of the wait under way; none when it is over, with the request about to be sent again, or when
    /// there is none.
    fn wait(&mut self, now_ms: u32) -> Option<u32> {
        let (since_ms, for_ms) = match self.state {
            State::Waiting { since_ms } => (since_ms, self.silence_ms),
            State::Resting { since_ms, for_ms } => (since_ms, for_ms),
            _ => return None,
        };
        let left_ms = for_ms.saturating_sub(now_ms.wrapping_sub(since_ms));
        if left_ms > 0 {
            return Some(left_ms);
        }
        if matches!(self.state, State::Waiting { .. }) {
            self.silence_ms = self.silence_ms.saturating_mul(2);
        }
        self.send();
        None
    }
}
