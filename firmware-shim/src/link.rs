//! How a [`Client`](crate::Client)'s frames travel: as they are, or in the packets of a serial line.

use tractd_wire::{
    Frame, Kind,
    serial::{self, Event, Hello, PAYLOAD_LEN_MAX},
};

use crate::{FrameReader, ReadError};

/// What carries a client's frames: [`Stream`] or [`Serial`].
pub trait Link: sealed::Link {}

/// A transport that loses nothing and keeps the order: a socket, a USB endpoint, MQTT payloads.
#[derive(Debug)]
pub struct Stream<'b> {
    reader: FrameReader<'b>,
    sent: usize,
}

/// A serial line to a gateway, see [`tractd_wire::serial`].
#[derive(Debug)]
pub struct Serial<'b> {
    buffer: &'b mut [u8],
    receiver: serial::Receiver,
    /// Bytes of the buffer that are a frame.
    frame_len: usize,
    sender: serial::Sender,
    session: u32,
    /// The gateway, once it said what it is.
    gateway: Option<Hello>,
    /// A HELLO is to be sent, and whether it asks for the gateway's.
    hello: Option<bool>,
}

impl<'b> Stream<'b> {
    /// A stream whose replies are put together in `buffer`: as large as the largest reply that is wanted.
    pub const fn new(buffer: &'b mut [u8]) -> Self {
        Self { reader: FrameReader::new(buffer), sent: 0 }
    }
}

impl<'b> Serial<'b> {
    /// A line whose replies are put together in `buffer`: as large as the largest reply that is wanted, header
    /// included. `session` should differ from that of the last start, a counter in flash or the noise of an ADC, so
    /// that the gateway notices a restart.
    pub fn new(buffer: &'b mut [u8], session: u32) -> Self {
        Self {
            buffer,
            receiver: serial::Receiver::new(),
            frame_len: 0,
            sender: serial::Sender::new(),
            session,
            gateway: None,
            hello: Some(true),
        }
    }

    fn greeted(&mut self, hello: Hello) -> Received {
        let restarted = self.gateway.is_none_or(|gateway| gateway.session != hello.session);
        self.gateway = Some(hello);
        self.hello = hello.answer.then_some(false);
        if restarted {
            // What the gateway had heard of a request, and had said of its reply, is lost with it.
            self.receiver.forget();
            return Received::Again;
        }
        Received::Nothing
    }

    fn say_hello(&mut self, answer: bool, out: &mut [u8]) -> usize {
        let hello = Hello {
            answer,
            payload_max: PAYLOAD_LEN_MAX as u8,
            frame_max: self.buffer.len().try_into().unwrap_or(u32::MAX),
            session: self.session,
        };
        let written = hello.encode(out).unwrap_or(0);
        if written > 0 {
            self.hello = None;
        }
        written
    }
}

impl Link for Stream<'_> {}
impl Link for Serial<'_> {}

/// What came in.
#[derive(Debug)]
pub enum Received {
    /// Nothing that is whole.
    Nothing,
    /// A frame; [`sealed::Link::frame`] gives it.
    Frame,
    /// A frame beyond the buffer.
    TooLarge { id: u64, len: u64 },
    /// The other end is there, or there again: what was sent to it before is lost.
    Again,
    /// The stream is no longer one of frames.
    Broken,
}

pub(crate) mod sealed {
    use super::{Frame, Received};

    pub trait Link {
        /// Back to the start of the frame to be sent.
        fn rewind(&mut self);

        /// Writes the next bytes for the transport; 0 when there is nothing to write now.
        fn next<'p>(&mut self, pieces: impl Iterator<Item = &'p [u8]> + Clone, out: &mut [u8]) -> usize;

        /// Takes bytes that came from the start of `input`, up to the end of a frame.
        fn receive(&mut self, input: &mut &[u8]) -> Received;

        /// The frame received last.
        fn frame(&self) -> Option<Frame<'_>>;

        /// Forgets what was half sent and half received.
        fn reset(&mut self);
    }
}

impl sealed::Link for Stream<'_> {
    fn rewind(&mut self) {
        self.sent = 0;
    }

    fn next<'p>(&mut self, pieces: impl Iterator<Item = &'p [u8]> + Clone, out: &mut [u8]) -> usize {
        let mut skip = self.sent;
        let mut written = 0;
        for piece in pieces {
            let start = skip.min(piece.len());
            skip -= start;
            let (from, to) =
                (piece.get(start..).unwrap_or_default(), out.get_mut(written..).unwrap_or_default());
            let len = from.len().min(to.len());
            if let (Some(from), Some(to)) = (from.get(..len), to.get_mut(..len)) {
                to.copy_from_slice(from);
            }
            written += len;
        }
        self.sent += written;
        written
    }

    fn receive(&mut self, input: &mut &[u8]) -> Received {
        match self.reader.read(input) {
            Ok(Some(_)) => Received::Frame,
            Ok(None) => Received::Nothing,
            Err(ReadError::TooLarge { id, len }) => Received::TooLarge { id, len },
            Err(ReadError::Header(_)) => Received::Broken,
        }
    }

    fn frame(&self) -> Option<Frame<'_>> {
        self.reader.frame()
    }

    fn reset(&mut self) {
        self.reader.reset();
        self.rewind();
    }
}

impl sealed::Link for Serial<'_> {
    fn rewind(&mut self) {
        self.sender.rewind();
        if self.gateway.is_none() {
            self.hello = Some(true);
        }
    }

    fn next<'p>(&mut self, pieces: impl Iterator<Item = &'p [u8]> + Clone, out: &mut [u8]) -> usize {
        match (self.hello, &self.gateway) {
            (Some(answer), _) => self.say_hello(answer, out),
            (None, Some(gateway)) => self.sender.next(pieces, gateway.payload_max, out).unwrap_or(0),
            (None, None) => 0,
        }
    }

    fn receive(&mut self, input: &mut &[u8]) -> Received {
        match self.receiver.read(self.buffer, input) {
            Some(Event::Frame { len }) => {
                self.frame_len = len;
                Received::Frame
            }
            Some(Event::Hello(hello)) => self.greeted(hello),
            Some(Event::TooLarge { header }) if header.kind == Kind::Reply => {
                Received::TooLarge { id: header.id, len: header.frame_len() }
            }
            // What is damaged is sent again when its time is up.
            Some(Event::TooLarge { .. } | Event::Damaged | Event::Version(_)) | None => Received::Nothing,
        }
    }

    fn frame(&self) -> Option<Frame<'_>> {
        serial::frame(self.buffer, self.frame_len)
    }

    fn reset(&mut self) {
        self.receiver.forget();
        self.gateway = None;
        self.rewind();
    }
}
