//! Whole frames out of a stream of bytes, in a buffer whose size is known when the firmware is built.

use tractd_wire::{Frame, HEADER_LEN, Header, HeaderError, heapless};

/// Collects frames of at most `N` bytes, header included.
///
/// A frame that is larger is left out and said, so that its request can be settled; the frames behind it are read as
/// if nothing had been. After a wrong header nobody can say where the next frame starts: the reader says so on every
/// call until it is [reset](Self::reset).
#[derive(Debug, Default)]
pub struct FrameReader<const N: usize> {
    buffer: heapless::Vec<u8, N>,
    /// Bytes still to come of a frame that is left out.
    skip: u64,
    /// The buffer holds a frame that was handed out.
    done: bool,
}

/// Why bytes did not become a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The stream is not, or no longer, a row of frames: close it, or reset both sides.
    #[error(transparent)]
    Header(HeaderError),
    /// A frame beyond the buffer was left out; reading goes on behind it.
    #[error("frame {id} of {len} bytes is larger than the buffer")]
    TooLarge {
        /// The frame's id.
        id: u64,
        /// Its bytes.
        len: u64,
    },
}

impl<const N: usize> FrameReader<N> {
    /// An empty reader.
    pub const fn new() -> Self {
        const { assert!(N >= HEADER_LEN, "a frame has at least a header") };
        Self { buffer: heapless::Vec::new(), skip: 0, done: false }
    }

    /// Takes bytes from the start of `input` until they make a frame, and hands it out; `None` when `input` is used
    /// up before. Call it until then: one read of a transport may bring several frames.
    ///
    /// # Errors
    /// [`ReadError`]; after [`ReadError::TooLarge`] the same `input` goes on.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Frame<'_>>, ReadError> {
        if self.done {
            self.reset();
        }
        let skipped = self.skip.min(input.len() as u64);
        *input = input.get(skipped as usize..).unwrap_or_default();
        self.skip -= skipped;

        self.fill(HEADER_LEN, input);
        let Some(bytes) = self.buffer.first_chunk() else { return Ok(None) };
        let header = Header::parse(bytes).map_err(ReadError::Header)?;
        let len = header.frame_len();
        if len > N as u64 {
            self.buffer.clear();
            self.skip = len - HEADER_LEN as u64;
            return Err(ReadError::TooLarge { id: header.id, len });
        }

        self.fill(len as usize, input);
        self.done = self.buffer.len() as u64 == len;
        if !self.done {
            return Ok(None);
        }
        let rest = self.buffer.get(HEADER_LEN..).unwrap_or_default();
        Ok(rest.split_at_checked(header.head_len.into()).map(|(head, body)| Frame { header, head, body }))
    }

    /// Forgets what is half read, for a new connection.
    pub fn reset(&mut self) {
        self.buffer.clear();
        self.skip = 0;
        self.done = false;
    }

    /// Moves bytes from the input until the buffer holds `len`.
    fn fill(&mut self, len: usize, input: &mut &[u8]) {
        let missing = len.saturating_sub(self.buffer.len()).min(input.len());
        if let Some((taken, rest)) = input.split_at_checked(missing)
            && self.buffer.extend_from_slice(taken).is_ok()
        {
            *input = rest;
        }
    }
}
