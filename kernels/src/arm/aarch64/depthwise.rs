//! Depthwise convolution: two taps of 16 channels at a time, for a few neighbouring pixels.

use std::arch::aarch64::*;

use super::{Bounds, Factors, Sums, load_sums, store_16};
use crate::arm::CHANNELS;
use crate::arm::depthwise::Block;

/// Pixels computed together: their sums, two vectors of weights and of bytes stay in registers.
pub(in crate::arm) const PIXELS: usize = 4;

impl Block<'_> {
    /// As many neighbouring pixels.
    ///
    /// # Safety
    /// From `read` and `write` on there are as many windows and pixels.
    #[inline(always)]
    pub(in crate::arm) unsafe fn pixels<const M: usize>(&self, read: *const u8, write: *mut u8) {
        // SAFETY: the caller's contract; the block's weights and factors.
        unsafe {
            let mut sums: [Sums; M] = [load_sums(self.bias); M];
            let mut weights = self.weights;
            for &[first, second] in self.pairs {
                let (a, b) = (vld1q_s8(weights), vld1q_s8(weights.add(CHANNELS)));
                weights = weights.add(2 * CHANNELS);
                for m in 0..M {
                    let x = read.add(m * self.step[0]);
                    let (x, y) = (load(x.add(first)), load(x.add(second)));
                    let low = vmull_s8(vget_low_s8(x), vget_low_s8(a));
                    let low = vmlal_s8(low, vget_low_s8(y), vget_low_s8(b));
                    let high = vmlal_high_s8(vmull_high_s8(x, a), y, b);
                    let sums = &mut sums[m];
                    sums[0] = vaddw_s16(sums[0], vget_low_s16(low));
                    sums[1] = vaddw_high_s16(sums[1], low);
                    sums[2] = vaddw_s16(sums[2], vget_low_s16(high));
                    sums[3] = vaddw_high_s16(sums[3], high);
                }
            }
            let bounds = Bounds::new(self.requant);
            let factors = Factors::new(self.multipliers, self.shifts, self.fused);
            for m in 0..M {
                store_16(write.add(m * self.step[1]), CHANNELS, factors.results(sums[m], &bounds));
            }
        }
    }
}

/// Sixteen bytes less 128.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn load(from: *const u8) -> int8x16_t {
    // SAFETY: the caller's contract.
    unsafe { vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from), vdupq_n_u8(0x80))) }
}
