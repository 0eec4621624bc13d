//! The 20 bytes before every head, and frames that are wholly in memory.

use crate::{
    Answer, DecodeError, FrameError, HEAD_LEN_MAX, HEADER_LEN, HeaderError, Kind, MAGIC, Query, Reply,
    ReplyView, Request, VERSION, decode_answer, decode_query, decode_reply, decode_request,
};

/// The first 20 bytes of a frame, little-endian:
/// magic `td`, version u8, kind u8, head length u16, reserved u16 (0), body length u32, id u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame carries.
    pub kind: Kind,
    /// Bytes of the head.
    pub head_len: u16,
    /// Bytes of the body.
    pub body_len: u32,
    /// The sender's number for the request; the reply carries it back unchanged.
    pub id: u64,
}

impl Header {
    /// Reads a header. The body's length is the caller's to judge: see [`limit_body`](Self::limit_body).
    ///
    /// # Errors
    /// [`HeaderError`], from the most general to the most particular: a foreign magic, another version (with the
    /// id, so that it can be answered), an unknown kind, reserved bytes, a head that is too long.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let [m0, m1, version, kind, h0, h1, r0, r1, b0, b1, b2, b3, id @ ..] = *bytes;
        if [m0, m1] != MAGIC {
            return Err(HeaderError::Magic { found: [m0, m1] });
        }
        let id = u64::from_le_bytes(id);
        if version != VERSION {
            return Err(HeaderError::Version { found: version, id });
        }
        let kind = Kind::from_number(kind).ok_or(HeaderError::Kind { found: kind, id })?;
        let reserved = u16::from_le_bytes([r0, r1]);
        if reserved != 0 {
            return Err(HeaderError::Reserved { found: reserved, id });
        }
        let head_len = u16::from_le_bytes([h0, h1]);
        if usize::from(head_len) > HEAD_LEN_MAX {
            return Err(HeaderError::HeadLen { len: head_len, id });
        }
        Ok(Self { kind, head_len, body_len: u32::from_le_bytes([b0, b1, b2, b3]), id })
    }

    /// The header, unless its body has more than `max` bytes.
    ///
    /// # Errors
    /// [`HeaderError::BodyLen`].
    pub const fn limit_body(self, max: u32) -> Result<Self, HeaderError> {
        if self.body_len > max {
            return Err(HeaderError::BodyLen { len: self.body_len, max, id: self.id });
        }
        Ok(self)
    }

    /// The 20 bytes.
    pub const fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [m0, m1] = MAGIC;
        let [h0, h1] = self.head_len.to_le_bytes();
        let [b0, b1, b2, b3] = self.body_len.to_le_bytes();
        let [i0, i1, i2, i3, i4, i5, i6, i7] = self.id.to_le_bytes();
        let kind = self.kind.number();
        [m0, m1, VERSION, kind, h0, h1, 0, 0, b0, b1, b2, b3, i0, i1, i2, i3, i4, i5, i6, i7]
    }

    /// Bytes of the whole frame.
    pub const fn frame_len(self) -> u64 {
        HEADER_LEN as u64 + self.head_len as u64 + self.body_len as u64
    }
}

/// A frame that is wholly in memory, such as an MQTT payload: its lengths hold, its head is not yet read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// The encoded message.
    pub head: &'a [u8],
    /// The raw bytes after it.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Splits bytes that are exactly one frame with a body of at most `body_len_max` bytes.
    ///
    /// # Errors
    /// [`FrameError`] when the header is wrong, or bytes are missing or left.
    pub fn parse(bytes: &'a [u8], body_len_max: u32) -> Result<Self, FrameError> {
        let (header, rest) = bytes.split_first_chunk().ok_or(FrameError::Short { len: bytes.len() })?;
        let header = Header::parse(header)?.limit_body(body_len_max)?;
        rest.split_at_checked(header.head_len.into())
            .filter(|(_, body)| body.len() as u64 == u64::from(header.body_len))
            .map(|(head, body)| Self { header, head, body })
            .ok_or(FrameError::Length { found: bytes.len(), announced: header.frame_len(), id: header.id })
    }

    /// The same for bytes of which it is known that they are one frame, and so without a reason where they are not.
    pub fn checked(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk()?;
        let header = Header::parse(header).ok()?;
        let (head, body) = rest.split_at_checked(header.head_len.into())?;
        (body.len() as u64 == u64::from(header.body_len)).then_some(Self { header, head, body })
    }

    /// Reads the head as a request.
    ///
    /// # Errors
    /// [`DecodeError`], also when the frame is of another kind.
    pub fn request(&self) -> Result<Request<'a>, DecodeError> {
        self.want(Kind::Request)?;
        decode_request(self.head, self.header.body_len)
    }

    /// Reads the head as a reply.
    ///
    /// # Errors
    /// [`DecodeError`], also when the frame is of another kind.
    pub fn reply(&self) -> Result<Reply<'a>, DecodeError> {
        self.want(Kind::Reply)?;
        decode_reply(self.head, self.header.body_len)
    }

    /// Reads the head as a reply, in place.
    ///
    /// # Errors
    /// [`DecodeError`], also when the frame is of another kind.
    pub fn reply_view(&self) -> Result<ReplyView<'a>, DecodeError> {
        self.want(Kind::Reply)?;
        ReplyView::parse(self.head, self.body)
    }

    /// Reads the head as a query.
    ///
    /// # Errors
    /// [`DecodeError`], also when the frame is of another kind.
    pub fn query(&self) -> Result<Query, DecodeError> {
        self.want(Kind::Query)?;
        decode_query(self.head, self.header.body_len)
    }

    /// Reads the head as an answer; the body is JSON.
    ///
    /// # Errors
    /// [`DecodeError`], also when the frame is of another kind.
    pub fn answer(&self) -> Result<Answer<'a>, DecodeError> {
        self.want(Kind::Answer)?;
        decode_answer(self.head)
    }

    fn want(&self, wanted: Kind) -> Result<(), DecodeError> {
        let found = self.header.kind;
        if found == wanted { Ok(()) } else { Err(DecodeError::Kind { wanted, found }) }
    }
}
