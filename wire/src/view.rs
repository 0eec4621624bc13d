//! A reply read in place: for a microcontroller, whose stack does not hold a [`Reply`](crate::Reply) with room for
//! all the tensors and classes there may be.
//!
//! [`ReplyView`] takes exactly the heads that [`decode_reply`](crate::decode_reply) takes; a property test holds the
//! two to each other. It is read by hand and not by serde, whose visitors return every list by value.

use crate::{
    CLASSES_MAX, Class, DETAIL_LEN_MAX, DType, DecodeError, Invalid, LABEL_LEN_MAX, RANK_MAX, Selector,
    Status, TENSOR_NAME_LEN_MAX, TENSORS_MAX,
};

/// What became of a request, borrowed from the frame: about 100 bytes, whatever the reply holds.
///
/// The fields are those of [`Reply`](crate::Reply). Tensors and classes are read as they are asked for.
#[derive(Clone, Copy, Debug)]
pub struct ReplyView<'a> {
    /// How it ended.
    pub status: Status,
    /// The model that answered, or the selector that was asked for; empty where neither is known.
    pub model: &'a str,
    /// The version that answered; 0 where none did.
    pub version: u64,
    /// The digest of the bundle that answered; zeros where none did.
    pub digest: &'a [u8; 32],
    /// Whether that bundle came signed from the registry.
    pub signed: bool,
    /// Microseconds in the queue.
    pub queue_us: u32,
    /// Microseconds of pre-processing.
    pub pre_us: u32,
    /// Microseconds of inference.
    pub infer_us: u32,
    /// Microseconds of post-processing.
    pub post_us: u32,
    /// Milliseconds after which a retryable refusal is worth another try; 0 says nothing.
    pub retry_after_ms: u32,
    /// For people: what was wrong and what to do; empty when all is well.
    pub detail: &'a str,
    tensors: List<'a>,
    classes: List<'a>,
    body: &'a [u8],
}

/// One tensor of a reply with its bytes.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// As in the model's graph.
    pub name: &'a str,
    /// The element type.
    pub dtype: DType,
    /// The dimensions, outermost first.
    pub shape: ShapeView<'a>,
    /// The elements: little-endian, row-major.
    pub data: &'a [u8],
}

/// The dimensions of a tensor, still encoded.
#[derive(Clone, Copy, Debug)]
pub struct ShapeView<'a>(List<'a>);

/// A list, still encoded: how many, and the bytes they start at.
#[derive(Clone, Copy, Debug)]
struct List<'a> {
    len: u8,
    bytes: &'a [u8],
}

impl<'a> ReplyView<'a> {
    /// Reads the head of a reply whose frame has this body, and checks all of it.
    ///
    /// # Errors
    /// [`DecodeError`], in the same cases as [`decode_reply`](crate::decode_reply).
    pub fn parse(head: &'a [u8], body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor(head);
        let status = cursor.varint(u16::BITS)? as u16;
        let status =
            Status::from_number(status).ok_or(DecodeError::Number { field: "status", number: status })?;
        let view = Self {
            status,
            model: cursor.text()?,
            version: cursor.varint(u64::BITS)?,
            digest: cursor.array()?,
            signed: cursor.bool()?,
            queue_us: cursor.u32()?,
            pre_us: cursor.u32()?,
            infer_us: cursor.u32()?,
            post_us: cursor.u32()?,
            retry_after_ms: cursor.u32()?,
            detail: cursor.limited("detail", DETAIL_LEN_MAX)?,
            tensors: cursor.list(TENSORS_MAX, |cursor| cursor.tensor().map(drop))?,
            classes: cursor.list(CLASSES_MAX, |cursor| cursor.class().map(drop))?,
            body,
        };
        if !cursor.0.is_empty() {
            return Err(DecodeError::Rest { len: cursor.0.len() });
        }
        if !view.model.is_empty() {
            Selector::parse(view.model).map_err(Invalid::from)?;
        }
        view.check_body()?;
        Ok(view)
    }

    /// The output tensors with their bytes, in their order; at most [`TENSORS_MAX`].
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'a>> + use<'a> {
        let mut body = self.body;
        self.tensors.items(Cursor::tensor).map_while(move |(name, dtype, shape)| {
            let (data, rest) = body.split_at_checked(byte_len(dtype, shape)? as usize)?;
            body = rest;
            Some(TensorView { name, dtype, shape, data })
        })
    }

    /// The best classes, best first; at most [`CLASSES_MAX`].
    pub fn classes(&self) -> impl Iterator<Item = Class<'a>> + use<'a> {
        self.classes.items(Cursor::class)
    }

    fn check_body(&self) -> Result<(), Invalid> {
        let lengths = self.tensors.items(Cursor::tensor).map(|(_, dtype, shape)| byte_len(dtype, shape));
        let mut described = 0_u32;
        for len in lengths {
            let sum = len.and_then(|len| described.checked_add(len));
            described = sum.ok_or(Invalid::TensorsTooLarge)?;
        }
        let body = u32::try_from(self.body.len()).unwrap_or(u32::MAX);
        if described == body { Ok(()) } else { Err(Invalid::BodyLen { described, body }) }
    }
}

impl<'a> ShapeView<'a> {
    /// The dimensions, outermost first; at most [`RANK_MAX`].
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.0.items(Cursor::u32)
    }
}

/// Bytes of a tensor; none when no body could hold it. A dimension of 0 makes it 0 bytes, however large the others.
fn byte_len(dtype: DType, shape: ShapeView<'_>) -> Option<u32> {
    let mut len = Some(dtype.size() as u32);
    for dim in shape.iter() {
        if dim == 0 {
            return Some(0);
        }
        len = len.and_then(|len| len.checked_mul(dim));
    }
    len
}

impl<'a> List<'a> {
    /// The items; all of them, because the list was checked when it was read.
    fn items<T>(
        self,
        read: fn(&mut Cursor<'a>) -> Result<T, DecodeError>,
    ) -> impl Iterator<Item = T> + use<'a, T> {
        let mut cursor = Cursor(self.bytes);
        (0..self.len).map_while(move |_| read(&mut cursor).ok())
    }
}

/// What is left of a head.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|&[byte]| byte)
    }

    fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Overflow),
        }
    }

    /// A number of at most `bits` bits, 7 to a byte, lowest first.
    #[inline(never)]
    fn varint(&mut self, bits: u32) -> Result<u64, DecodeError> {
        let mut value = 0;
        let mut shift = 0;
        while shift < bits {
            let byte = self.byte()?;
            let low = u64::from(byte & 0x7f);
            if bits - shift < 7 && low >> (bits - shift) != 0 {
                return Err(DecodeError::Overflow);
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
            shift += 7;
        }
        Err(DecodeError::Overflow)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.varint(u32::BITS).map(|value| value as u32)
    }

    fn len(&mut self) -> Result<usize, DecodeError> {
        self.varint(usize::BITS).map(|value| value as usize)
    }

    #[inline(never)]
    fn text(&mut self) -> Result<&'a str, DecodeError> {
        let len = self.len()?;
        core::str::from_utf8(self.take(len)?).map_err(|_| DecodeError::Utf8)
    }

    fn limited(&mut self, field: &'static str, max: usize) -> Result<&'a str, DecodeError> {
        let text = self.text()?;
        if text.len() > max {
            return Err(Invalid::TooLong { field, len: text.len(), max }.into());
        }
        Ok(text)
    }

    /// Reads over a list, every item of it, and keeps where it stands.
    fn list(
        &mut self,
        max: usize,
        item: impl Fn(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<List<'a>, DecodeError> {
        let len = self.len()?;
        if len > max {
            return Err(DecodeError::TooMany);
        }
        let bytes = self.0;
        for _ in 0..len {
            item(self)?;
        }
        Ok(List { len: len as u8, bytes })
    }

    fn tensor(&mut self) -> Result<(&'a str, DType, ShapeView<'a>), DecodeError> {
        let name = self.limited("tensor name", TENSOR_NAME_LEN_MAX)?;
        let dtype = self.byte()?;
        let unknown = DecodeError::Number { field: "dtype", number: dtype.into() };
        let dtype = DType::from_number(dtype).ok_or(unknown)?;
        let shape = self.list(RANK_MAX, |cursor| cursor.u32().map(drop))?;
        Ok((name, dtype, ShapeView(shape)))
    }

    fn class(&mut self) -> Result<Class<'a>, DecodeError> {
        let index = self.u32()?;
        let score = f32::from_le_bytes(*self.array()?);
        let label = self.limited("label", LABEL_LEN_MAX)?;
        Ok(Class { index, score, label })
    }
}
