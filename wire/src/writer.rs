//! Postcard by hand, for what microcontrollers write.

use crate::HEAD_LEN_MAX;

/// Writes a head into the caller's buffer. What finds no room is remembered and said at the end: firmware pays for
/// every early return.
pub(crate) struct Writer<'o> {
    out: &'o mut [u8],
    len: usize,
}

impl<'o> Writer<'o> {
    pub(crate) fn new(out: &'o mut [u8]) -> Self {
        Self { out, len: 0 }
    }

    #[inline(never)]
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let space = self.out.get_mut(self.len..).and_then(|rest| rest.get_mut(..bytes.len()));
        if let Some(space) = space {
            space.copy_from_slice(bytes);
        }
        self.len = self.len.saturating_add(bytes.len());
    }

    /// A varint: 7 bits to a byte, lowest first.
    #[inline(never)]
    pub(crate) fn number(&mut self, mut number: u32) {
        while number > 0x7f {
            self.bytes(&[number as u8 | 0x80]);
            number >>= 7;
        }
        self.bytes(&[number as u8]);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u32);
        self.bytes(text.as_bytes());
    }

    /// Bytes written; none when they found no room.
    pub(crate) fn end(self) -> Option<u16> {
        (self.len <= self.out.len().min(HEAD_LEN_MAX)).then_some(self.len as u16)
    }
}
