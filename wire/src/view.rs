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
    #[inline(always)]
    pub fn parse(head: &'a [u8], body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(head);
        let mut described = Some(0_u32);
        let view = Self {
            status: cursor.status(),
            model: cursor.text(),
            version: cursor.varint(u64::BITS),
            digest: cursor.array(&[0; 32]),
            signed: cursor.bool(),
            queue_us: cursor.u32(),
            pre_us: cursor.u32(),
            infer_us: cursor.u32(),
            post_us: cursor.u32(),
            retry_after_ms: cursor.u32(),
            detail: cursor.limited("detail", DETAIL_LEN_MAX),
            tensors: cursor.list(TENSORS_MAX, |cursor| {
                let tensor = cursor.tensor();
                described = described.and_then(|sum| sum.checked_add(tensor.byte_len?));
            }),
            classes: cursor.list(CLASSES_MAX, |cursor| {
                cursor.class();
            }),
            body,
        };
        cursor.end()?;
        if !view.model.is_empty() {
            Selector::parse(view.model).map_err(Invalid::from)?;
        }
        let described = described.ok_or(Invalid::TensorsTooLarge)?;
        if described as usize != body.len() {
            let body = u32::try_from(body.len()).unwrap_or(u32::MAX);
            return Err(Invalid::BodyLen { described, body }.into());
        }
        Ok(view)
    }

    /// The output tensors with their bytes, in their order; at most [`TENSORS_MAX`].
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'a>> + use<'a> {
        let mut body = self.body;
        self.tensors.items(Cursor::tensor).map_while(move |Tensor { name, dtype, shape, byte_len }| {
            let (data, rest) = body.split_at_checked(byte_len? as usize)?;
            body = rest;
            Some(TensorView { name, dtype, shape, data })
        })
    }

    /// The best classes, best first; at most [`CLASSES_MAX`].
    pub fn classes(&self) -> impl Iterator<Item = Class<'a>> + use<'a> {
        self.classes.items(Cursor::class)
    }
}

impl<'a> ShapeView<'a> {
    /// The dimensions, outermost first; at most [`RANK_MAX`].
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.0.items(Cursor::u32)
    }
}

impl<'a> List<'a> {
    /// The items; all of them are right, because the list was checked when it was read.
    fn items<T>(self, read: fn(&mut Cursor<'a>) -> T) -> impl Iterator<Item = T> + use<'a, T> {
        let mut cursor = Cursor::new(self.bytes);
        (0..self.len).map(move |_| read(&mut cursor))
    }
}

/// What a reply says of a tensor.
struct Tensor<'a> {
    name: &'a str,
    dtype: DType,
    shape: ShapeView<'a>,
    /// None when no body could hold it.
    byte_len: Option<u32>,
}

/// What is left of a head, and the first thing wrong with it: a wrong field reads as zero or empty and ends the head,
/// so that a look at the error once, at the end, is enough. Firmware pays for every early return.
struct Cursor<'a> {
    rest: &'a [u8],
    error: Option<DecodeError>,
}

impl<'a> Cursor<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest, error: None }
    }

    fn fail(&mut self, error: DecodeError) {
        self.rest = &[];
        self.error.get_or_insert(error);
    }

    fn end(self) -> Result<(), DecodeError> {
        match (self.error, self.rest.len()) {
            (Some(error), _) => Err(error),
            (None, 0) => Ok(()),
            (None, len) => Err(DecodeError::Rest { len }),
        }
    }

    #[inline(never)]
    fn take(&mut self, len: usize) -> &'a [u8] {
        match self.rest.split_at_checked(len) {
            Some((taken, rest)) => {
                self.rest = rest;
                taken
            }
            None => {
                self.fail(DecodeError::Truncated);
                &[]
            }
        }
    }

    fn array<const N: usize>(&mut self, absent: &'a [u8; N]) -> &'a [u8; N] {
        self.take(N).first_chunk().unwrap_or(absent)
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn bool(&mut self) -> bool {
        let byte = self.byte();
        if byte > 1 {
            self.fail(DecodeError::Overflow);
        }
        byte == 1
    }

    /// A number of at most `bits` bits, 7 to a byte, lowest first.
    #[inline(never)]
    fn varint(&mut self, bits: u32) -> u64 {
        let mut value = 0;
        for shift in (0..bits).step_by(7) {
            let byte = self.byte();
            let low = u64::from(byte & 0x7f);
            if bits - shift < 7 && low >> (bits - shift) != 0 {
                break;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        self.fail(DecodeError::Overflow);
        0
    }

    #[inline(never)]
    fn u32(&mut self) -> u32 {
        self.varint(u32::BITS) as u32
    }

    fn len(&mut self) -> usize {
        self.varint(usize::BITS) as usize
    }

    fn status(&mut self) -> Status {
        let number = self.varint(u16::BITS) as u16;
        Status::from_number(number).unwrap_or_else(|| {
            self.fail(DecodeError::Number { field: "status", number });
            Status::Internal
        })
    }

    fn text(&mut self) -> &'a str {
        self.limited("", usize::MAX)
    }

    #[inline(never)]
    fn limited(&mut self, field: &'static str, max: usize) -> &'a str {
        let len = self.len();
        let bytes = self.take(len);
        if bytes.len() > max {
            self.fail(Invalid::TooLong { field, len, max }.into());
        }
        core::str::from_utf8(bytes).unwrap_or_else(|_| {
            self.fail(DecodeError::Utf8);
            ""
        })
    }

    /// Reads over a list, every item of it, and keeps where it stands.
    fn list(&mut self, max: usize, mut item: impl FnMut(&mut Self)) -> List<'a> {
        let len = self.len();
        if len > max {
            self.fail(DecodeError::TooMany);
        }
        let bytes = self.rest;
        for _ in 0..len.min(max) {
            item(self);
        }
        List { len: len as u8, bytes }
    }

    #[inline(never)]
    fn tensor(&mut self) -> Tensor<'a> {
        let name = self.limited("tensor name", TENSOR_NAME_LEN_MAX);
        let number = self.byte();
        let dtype = DType::from_number(number).unwrap_or_else(|| {
            self.fail(DecodeError::Number { field: "dtype", number: number.into() });
            DType::U8
        });
        // A dimension of 0 makes a tensor of 0 bytes, however large the others are.
        let (mut byte_len, mut empty) = (Some(dtype.size() as u32), false);
        let shape = self.list(RANK_MAX, |cursor| {
            let dim = cursor.u32();
            empty |= dim == 0;
            byte_len = byte_len.and_then(|len| len.checked_mul(dim));
        });
        Tensor { name, dtype, shape: ShapeView(shape), byte_len: if empty { Some(0) } else { byte_len } }
    }

    #[inline(never)]
    fn class(&mut self) -> Class<'a> {
        let index = self.u32();
        let score = f32::from_le_bytes(*self.array(&[0; 4]));
        let label = self.limited("label", LABEL_LEN_MAX);
        Class { index, score, label }
    }
}
