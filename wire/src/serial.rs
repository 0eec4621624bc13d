//! Frames over a serial line: a line has no packets of its own, loses bytes, and either end may start in the middle.
//!
//! A packet on the line is `00 COBS(content) 00`. [COBS] leaves no zero within, so that whoever was cut off finds the
//! next packet behind the next zero; empty packets mean nothing. The content ends with a CRC-16:
//!
//! ```text
//! kind u8 | flags u8 | payload, 1 to 250 bytes | CRC-16/IBM-3740 of all before it, big-endian
//!
//! 1  HELLO   flags: version of this protocol (1)
//!            payload: answer u8 (1: answer with your own) | payload_max u8 | reserved u16 (0)
//!                     | frame_max u32 | session u32, little-endian
//! 2  DATA    flags: 80 first part of a frame, 40 last part, 3f number of the part, modulo 64
//!            payload: the next bytes of the frame
//! ```
//!
//! Both ends say HELLO when they start and may say it at any time; a session that changed tells the other end that
//! what was under way is lost. Parts of one frame follow one another, with nothing between them. Nothing is
//! acknowledged and nothing repeated here: a part that was lost costs its frame, and the requester asks again under
//! the same id. Lost parts are noticed by their numbers, and, when 64 in a row are lost, by the frame's length.
//!
//! Deliberately not here: the line's speed, its pins, flow control, and when to send what.
//!
//! [COBS]: https://doi.org/10.1109/90.769765

use core::cmp::Ordering;

use cobs::{CobsEncoder, DecodeResult, DecoderState};
use crc::{CRC_16_IBM_3740, Crc, NoTable};

use crate::{EncodeError, Frame, HEADER_LEN, Header};

/// The version of this protocol.
pub const VERSION: u8 = 1;
/// Bytes of the largest payload: with the rest, the most that COBS encodes with one byte more.
pub const PAYLOAD_LEN_MAX: usize = 250;
/// Bytes on the line of the largest packet, both zeros included.
pub const PACKET_LEN_MAX: usize = PAYLOAD_LEN_MAX + OVERHEAD;
/// Bytes of a packet that are not its payload: two zeros, one byte of COBS, kind, flags and CRC.
pub const OVERHEAD: usize = 7;

const HELLO: u8 = 1;
const DATA: u8 = 2;
const FIRST: u8 = 0x80;
const LAST: u8 = 0x40;
const NUMBER: u8 = 0x3f;

/// Bytes of the payload of a HELLO.
const HELLO_LEN: usize = 12;
/// Kind, flags and CRC.
const FIXED_LEN: usize = 4;
const CONTENT_LEN_MAX: usize = PAYLOAD_LEN_MAX + FIXED_LEN;

/// Without a table: its 512 bytes are dearer to firmware than the time, and a line is slower than either.
const CRC: Crc<u16, NoTable> = Crc::<u16, NoTable>::new(&CRC_16_IBM_3740);
const CRC_START: u16 = 0xffff;

/// What one end tells the other about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Whether the other end should say its own.
    pub answer: bool,
    /// Bytes of the largest payload this end takes; at least 1.
    pub payload_max: u8,
    /// Bytes of the largest frame this end takes.
    pub frame_max: u32,
    /// Another number after every start, so that the other end notices one.
    pub session: u32,
}

impl Hello {
    /// Writes the packet into the caller's buffer and says how many bytes it has.
    ///
    /// # Errors
    /// [`EncodeError::Buffer`] when `out` has less than 19 bytes.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        let [f0, f1, f2, f3] = self.frame_max.to_le_bytes();
        let [s0, s1, s2, s3] = self.session.to_le_bytes();
        let payload = [self.answer.into(), self.payload_max, 0, 0, f0, f1, f2, f3, s0, s1, s2, s3];
        let mut packet = Packet::start(HELLO, VERSION, out);
        packet.push(&payload);
        close(packet.end(), out)
    }

    fn decode(payload: &[u8; HELLO_LEN]) -> Option<Self> {
        let &[answer, payload_max, 0, 0, f0, f1, f2, f3, s0, s1, s2, s3] = payload else { return None };
        (answer <= 1 && payload_max > 0).then_some(Self {
            answer: answer == 1,
            payload_max,
            frame_max: u32::from_le_bytes([f0, f1, f2, f3]),
            session: u32::from_le_bytes([s0, s1, s2, s3]),
        })
    }
}

/// Cuts frames into packets, one after another.
#[derive(Clone, Debug, Default)]
pub struct Sender {
    /// Bytes of the frame that are sent.
    sent: usize,
    number: u8,
}

impl Sender {
    /// A sender at the start of a frame.
    pub const fn new() -> Self {
        Self { sent: 0, number: 0 }
    }

    /// Goes back to the start of the frame, or on to another.
    pub fn rewind(&mut self) {
        *self = Self::new();
    }

    /// Writes the next packet of the frame whose bytes are `pieces` and says how many bytes it has; 0 when the whole
    /// frame was written. A payload is as large as `out` and the receiver's `payload_max` allow.
    ///
    /// # Errors
    /// [`EncodeError::Buffer`] when `out` has no room for a payload of one byte.
    pub fn next<'p>(
        &mut self,
        pieces: impl Iterator<Item = &'p [u8]> + Clone,
        payload_max: u8,
        out: &mut [u8],
    ) -> Result<usize, EncodeError> {
        let total = pieces.clone().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        let left = total.saturating_sub(self.sent);
        if left == 0 {
            return Ok(0);
        }
        let space = out.len().checked_sub(OVERHEAD).filter(|space| *space > 0).ok_or(EncodeError::Buffer)?;
        let len = left.min(space).min(payload_max.into()).clamp(1, PAYLOAD_LEN_MAX);
        let first = if self.sent == 0 { FIRST } else { 0 };
        let last = if len == left { LAST } else { 0 };

        let mut packet = Packet::start(DATA, first | last | self.number & NUMBER, out);
        let (mut skip, mut missing) = (self.sent, len);
        for piece in pieces {
            let start = skip.min(piece.len());
            skip -= start;
            let part = piece.get(start..).unwrap_or_default();
            let part = part.get(..missing).unwrap_or(part);
            missing -= part.len();
            packet.push(part);
        }
        let written = close(packet.end(), out)?;
        self.sent = self.sent.saturating_add(len);
        self.number = self.number.wrapping_add(1);
        Ok(written)
    }
}

/// A packet being written into the caller's buffer.
struct Packet<'o> {
    cobs: CobsEncoder<'o>,
    check: u16,
    /// Whether everything found room.
    fits: bool,
}

impl<'o> Packet<'o> {
    fn start(kind: u8, flags: u8, out: &'o mut [u8]) -> Self {
        let content = match out {
            [zero, content @ ..] => {
                *zero = 0;
                content
            }
            [] => &mut [],
        };
        let mut packet = Self { cobs: CobsEncoder::new(content), check: CRC_START, fits: true };
        packet.push(&[kind, flags]);
        packet
    }

    #[inline(never)]
    fn push(&mut self, bytes: &[u8]) {
        self.check = crc(self.check, bytes);
        self.fits &= self.cobs.push(bytes).is_ok();
    }

    /// Bytes before the closing zero; none when they found no room.
    fn end(mut self) -> Option<usize> {
        self.push(&self.check.to_be_bytes());
        let Self { cobs, fits, .. } = self;
        let len = 1 + cobs.finalize();
        fits.then_some(len)
    }
}

/// Writes the closing zero of a packet and says how many bytes it has.
fn close(len: Option<usize>, out: &mut [u8]) -> Result<usize, EncodeError> {
    let len = len.ok_or(EncodeError::Buffer)?;
    *out.get_mut(len).ok_or(EncodeError::Buffer)? = 0;
    Ok(len + 1)
}

/// What bytes from the line came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The other end said what it is.
    Hello(Hello),
    /// The other end speaks another version of this protocol.
    Version(u8),
    /// The first bytes of the buffer, this many, are one frame; the next call overwrites them.
    Frame {
        /// How many.
        len: usize,
    },
    /// A frame beyond the buffer was left out.
    TooLarge {
        /// Its header.
        header: Header,
    },
    /// A packet or a frame was left out because its bytes are not what was sent.
    Damaged,
}

/// Reads packets as their bytes come and puts frames together in the caller's buffer, which holds the parts between
/// two calls.
#[derive(Debug, Default)]
pub struct Receiver {
    cobs: DecoderState,
    crc: u16,
    /// Bytes of the packet's content so far, up to one more than there may be.
    content_len: usize,
    kind: u8,
    flags: u8,
    /// The last two bytes, kept back because they may be the CRC.
    late: [u8; 2],
    hello: [u8; HELLO_LEN],
    /// Bytes in the buffer of the frame being put together.
    frame_len: usize,
    /// The number of its next part; none while there is no such frame.
    next: Option<u8>,
}

impl Receiver {
    /// A receiver that has heard nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the start of `input` until they come to something; `None` when it is used up before.
    pub fn read(&mut self, buffer: &mut [u8], input: &mut &[u8]) -> Option<Event> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            let event = match self.cobs.feed(byte) {
                Ok(DecodeResult::NoData) => None,
                Ok(DecodeResult::DataStart) => {
                    (self.content_len, self.crc) = (0, CRC_START);
                    None
                }
                Ok(DecodeResult::DataContinue(byte)) => {
                    self.take(byte, buffer);
                    None
                }
                Ok(DecodeResult::DataComplete) => self.packet(buffer),
                Err(_) => Some(self.damaged()),
            };
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// Forgets the frame being put together.
    pub fn forget(&mut self) {
        self.next = None;
    }

    /// One byte of a packet's content.
    fn take(&mut self, byte: u8, buffer: &mut [u8]) {
        self.crc = crc(self.crc, &[byte]);
        let [due, late] = self.late;
        match self.content_len {
            0 => self.kind = byte,
            1 => self.flags = byte,
            2 | 3 => {}
            // Nothing is kept of what is too long already.
            CONTENT_LEN_MAX.. => {}
            len => {
                let at = len - FIXED_LEN;
                let place = match self.kind {
                    HELLO => self.hello.get_mut(at),
                    _ => buffer.get_mut(self.base().saturating_add(at)),
                };
                place.into_iter().for_each(|place| *place = due);
            }
        }
        self.late = [late, byte];
        self.content_len = (self.content_len + 1).min(CONTENT_LEN_MAX + 1);
    }

    /// Where in the buffer the payload goes.
    fn base(&self) -> usize {
        if self.flags & FIRST != 0 { 0 } else { self.frame_len }
    }

    fn packet(&mut self, buffer: &[u8]) -> Option<Event> {
        // The CRC over everything and itself leaves zero.
        let len = self.content_len;
        if self.crc != 0 || len <= FIXED_LEN || len > CONTENT_LEN_MAX {
            return Some(self.damaged());
        }
        match self.kind {
            HELLO if self.flags != VERSION => Some(Event::Version(self.flags)),
            HELLO if len == FIXED_LEN + HELLO_LEN => match Hello::decode(&self.hello) {
                Some(hello) => Some(Event::Hello(hello)),
                None => Some(Event::Damaged),
            },
            DATA => self.part(len - FIXED_LEN, buffer),
            _ => Some(self.damaged()),
        }
    }

    /// A part of a frame that arrived as it was sent.
    fn part(&mut self, len: usize, buffer: &[u8]) -> Option<Event> {
        let (first, number) = (self.flags & FIRST != 0, self.flags & NUMBER);
        if !first && self.next != Some(number) {
            // Its frame was given up with an earlier part.
            self.next = None;
            return None;
        }
        self.frame_len = self.base().saturating_add(len);
        self.next = Some(number.wrapping_add(1) & NUMBER);
        let last = self.flags & LAST != 0;
        let bytes = buffer.get(..self.frame_len).unwrap_or(buffer);
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return (last || self.frame_len > buffer.len()).then(|| self.damaged());
        };
        let Ok(header) = Header::parse(header) else { return Some(self.damaged()) };
        if header.frame_len() > buffer.len() as u64 {
            self.next = None;
            return Some(Event::TooLarge { header });
        }
        let len = self.frame_len;
        match (len as u64).cmp(&header.frame_len()) {
            Ordering::Less if !last => None,
            Ordering::Equal if last => {
                self.next = None;
                Some(Event::Frame { len })
            }
            _ => Some(self.damaged()),
        }
    }

    fn damaged(&mut self) -> Event {
        self.next = None;
        Event::Damaged
    }
}

/// The frame that [`Event::Frame`] told of.
pub fn frame(buffer: &[u8], len: usize) -> Option<Frame<'_>> {
    Frame::checked(buffer.get(..len)?)
}

#[inline(never)]
fn crc(start: u16, bytes: &[u8]) -> u16 {
    let mut digest = CRC.digest_with_initial(start);
    digest.update(bytes);
    digest.finalize()
}
