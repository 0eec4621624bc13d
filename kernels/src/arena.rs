//! The working memory of a session.

/// Bytes of one cache line, and the alignment of arenas and packed weights.
const LINE: usize = 64;

/// One cache line: makes a `Vec` of them aligned without any unsafe allocation.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Zeroed bytes, 64-byte aligned.
pub(crate) struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    pub(crate) fn zeroed(len: usize) -> Aligned {
        Aligned { lines: vec![Line([0; LINE]); len.div_ceil(LINE)], len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `Line` is 64 bytes without padding, so the lines are as many initialised bytes; `len` is within them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow of self is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// The buffers of one session of one [`crate::Program`]; made by [`crate::Program::session`].
pub struct Arena {
    pub(crate) memory: Aligned,
}

impl Arena {
    /// Bytes held.
    pub fn len(&self) -> usize {
        self.memory.len
    }

    /// Whether no bytes are held, which no program's arena does.
    pub fn is_empty(&self) -> bool {
        self.memory.len == 0
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({} bytes)", self.len())
    }
}
