//! The working memory of a session.

use std::ops::Range;

/// Bytes of one cache line, and the alignment of arenas and packed weights.
const LINE: usize = 64;

/// Zeroed elements, 64-byte aligned: a vector read across two cache lines is two loads.
pub(crate) struct Aligned<T = u8> {
    /// Never grown, so that it stays where it is. Of a type whose zeros the allocator has: they need not be written.
    memory: Vec<T>,
    used: Range<usize>,
}

impl<T: Copy + Default> Aligned<T> {
    pub(crate) fn zeroed(len: usize) -> Aligned<T> {
        let size = size_of::<T>();
        let memory = vec![T::default(); len + LINE / size - 1];
        let start = memory.as_ptr().addr().wrapping_neg() % LINE / size;
        Aligned { memory, used: start..start + len }
    }
}

impl<T: Copy + Default> Default for Aligned<T> {
    fn default() -> Aligned<T> {
        Aligned::zeroed(0)
    }
}

impl<T> std::ops::Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.used.clone()]
    }
}

impl<T> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
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
