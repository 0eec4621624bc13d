//! Depthwise convolution: two taps of 16 channels at a time, for two neighbouring pixels.

use super::{FMA, Rounding, Work, tractd_v7_depthwise};
use crate::arm::depthwise::Block;

/// Pixels computed together.
pub(in crate::arm) const PIXELS: usize = 2;

impl Block<'_> {
    /// As many neighbouring pixels.
    ///
    /// # Safety
    /// From `read` and `write` on there are as many windows and pixels.
    pub(in crate::arm) unsafe fn pixels<const M: usize>(&self, read: *const u8, write: *mut u8) {
        // A single pixel is computed twice.
        let last = M - 1;
        let work = Work {
            reads: [read, read.wrapping_add(last * self.step[0])],
            writes: [write, write.wrapping_add(last * self.step[1])],
            offsets: self.pairs.as_ptr().cast(),
            long: self.pairs.len(),
            short: 0,
            weights: self.weights,
            bias: self.bias,
            multipliers: self.multipliers,
            rounding: Rounding::new(self.requant),
            shifts: if self.fused { self.shifts } else { std::ptr::null() },
            bounds: [self.requant.clamp.low, self.requant.clamp.high],
            fma: *FMA,
        };
        // SAFETY: the caller's contract; the tier was detected.
        unsafe { tractd_v7_depthwise(&work) };
    }
}
