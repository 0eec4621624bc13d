//! The working memory of a session.

use std::ops::Range;

/// Bytes of one cache line, and the alignment of arenas and packed weights.
const LINE: usize = 64;

/// Zeroed bytes, 64-byte aligned.
pub(crate) struct Aligned {
    /// Never grown, so that it stays where it is. Of bytes: the allocator has zeroed ones, which need not be written.
    memory: Vec<u8>,
    used: Range<usize>,
}

impl Aligned {
    pub(crate) fn zeroed(len: usize) -> Aligned {
        let memory = vec![0; len + LINE - 1];
        let start = memory.as_ptr().addr().wrapping_neg() % LINE;
        Aligned { memory, used: start..start + len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.used.clone()]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.used.clone()]
    }
}

/// The buffers of one session of one [`crate::Program`]; made by [`crate::Program::session`].
pub struct Arena {
    pub(crate) memory: Aligned,
}

impl Arena {
    /// Bytes held.
    pub fn len(&self) -> usize {
        self.memory.used.len()
    }

    /// Whether no bytes are held, which no program's arena does.
    pub fn is_empty(&self) -> bool {
        self.memory.used.is_empty()
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({} bytes)", self.len())
    }
}
