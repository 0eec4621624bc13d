//! Whole frames out of a stream of bytes, in a buffer whose size is known when the firmware is built.

use tractd_wire::{Frame, HEADER_LEN, Header, HeaderError};

/// Collects frames of at most as many bytes as its buffer has, header included.
///
/// A frame that is larger is left out and said, so that its request can be settled; the frames behind it are read as
/// if nothing had been. After a wrong header nobody can say where the next frame starts: the reader says so on every
/// call until it is [reset](Self::reset).
#[derive(Debug)]
pub struct FrameReader<'b> {
    buffer: &'b mut [u8],
    /// Bytes in the buffer.
    len: usize,
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

impl<'b> FrameReader<'b> {
    /// An empty reader. A buffer that has no room for a header never yields a frame.
    pub const fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, len: 0, skip: 0, done: false }
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
        let Some(header) = self.held().first_chunk() else {
            if self.buffer.len() < HEADER_LEN {
                *input = &[];
            }
            return Ok(None);
        };
        let header = Header::parse(header).map_err(ReadError::Header)?;
        let len = header.frame_len();
        if len > self.buffer.len() as u64 {
            self.len = 0;
            self.skip = len - HEADER_LEN as u64;
            return Err(ReadError::TooLarge { id: header.id, len });
        }

        self.fill(len as usize, input);
        self.done = self.len as u64 == len;
        Ok(self.frame())
    }

    /// The frame that was last handed out, until the next [`read`](Self::read).
    pub fn frame(&self) -> Option<Frame<'_>> {
        if self.done { Frame::checked(self.held()) } else { None }
    }

    /// Forgets what is half read, for a new connection.
    pub fn reset(&mut self) {
        self.len = 0;
        self.skip = 0;
        self.done = false;
    }

    fn held(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    /// Moves bytes from the input until the buffer holds `len`.
    fn fill(&mut self, len: usize, input: &mut &[u8]) {
        let missing = len.saturating_sub(self.len).min(input.len());
        let space = self.buffer.get_mut(self.len..).and_then(|rest| rest.get_mut(..missing));
        if let (Some(space), Some((taken, rest))) = (space, input.split_at_checked(missing)) {
            space.copy_from_slice(taken);
            self.len += missing;
            *input = rest;
        }
    }
}
