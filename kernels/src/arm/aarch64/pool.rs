//! Pooling: windows clipped to the input, 16 channels at a time.

use std::arch::aarch64::*;
use std::ops::Range;

use super::{Bounds, CHANNELS, Sums};
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::portable;
use crate::spec::Window;
use crate::step::{AveragePool, MaxPool, inside};

struct Packed<T>(T);

pub(super) fn max_pool(step: MaxPool) -> Kernel {
    if step.output.pixel < CHANNELS { portable::packed(step) } else { Box::new(Packed(step)) }
}

pub(super) fn average_pool(step: AveragePool) -> Kernel {
    if step.output.pixel < CHANNELS { portable::packed(step) } else { Box::new(Packed(step)) }
}

/// The part of a window that lies in the input, 16 channels of it.
struct Taps {
    from: *const u8,
    /// Taps down and across.
    count: [usize; 2],
    /// Bytes between them.
    step: [usize; 2],
}

impl Taps {
    /// # Safety
    /// They lie in the input.
    #[inline(always)]
    unsafe fn for_each(&self, mut visit: impl FnMut(uint8x16_t)) {
        for y in 0..self.count[0] {
            for x in 0..self.count[1] {
                // SAFETY: the caller's contract.
                visit(unsafe { vld1q_u8(self.from.add(y * self.step[0] + x * self.step[1])) });
            }
        }
    }
}

/// Computes each pixel of these rows from its taps, of which there are as many as the window has in the input.
fn each_pixel(
    arena: &mut [u8],
    [input, output]: [&View; 2],
    window: &Window,
    rows: Range<usize>,
    pool: impl Fn(&Taps) -> uint8x16_t,
) {
    let arena = arena.as_mut_ptr();
    let step = [window.dilation[0] * input.row, window.dilation[1] * input.pixel];
    for y in rows {
        let (top, height) = inside(window, 0, y, input.height);
        for x in 0..output.width {
            let (left, width) = inside(window, 1, x, input.width);
            for c in (0..output.pixel).step_by(CHANNELS) {
                // SAFETY: the module's contract: the clipped window lies in the input, the pixel in the output.
                unsafe {
                    let from = arena.add(input.offset(top, left) + c).cast_const();
                    let pooled = pool(&Taps { from, count: [height, width], step });
                    vst1q_u8(arena.add(output.offset(y, x) + c), pooled);
                }
            }
        }
    }
}

impl Run for Packed<MaxPool> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let MaxPool { input, window, output } = &self.0;
        each_pixel(memory.arena, [input, output], window, rows, |taps| {
            // SAFETY: clipped to the input.
            unsafe {
                let mut greatest = vdupq_n_u8(0);
                taps.for_each(|bytes| greatest = vmaxq_u8(greatest, bytes));
                greatest
            }
        });
    }
}

impl Run for Packed<AveragePool> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let AveragePool { input, window, output, requant, .. } = &self.0;
        let bounds = Bounds::new(requant);
        let zero_point = i32::from(input.zero_point);
        each_pixel(memory.arena, [input, output], window, rows, |taps| {
            let count = taps.count[0] * taps.count[1];
            // Fewer than 2^16 bytes: their sum stays far inside i32.
            let start = -(count as i32) * zero_point;
            // SAFETY: clipped to the input.
            unsafe {
                let mut sums: Sums = [vdupq_n_s32(start); 4];
                taps.for_each(|bytes| add(&mut sums, bytes));
                bounds.requantize_shifted(sums, self.0.multiplier_of(count), self.0.shift)
            }
        });
    }
}

#[inline(always)]
fn add(sums: &mut Sums, bytes: uint8x16_t) {
    // SAFETY: NEON is there.
    unsafe {
        let low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
        let high = vreinterpretq_s16_u16(vmovl_high_u8(bytes));
        sums[0] = vaddw_s16(sums[0], vget_low_s16(low));
        sums[1] = vaddw_high_s16(sums[1], low);
        sums[2] = vaddw_s16(sums[2], vget_low_s16(high));
        sums[3] = vaddw_high_s16(sums[3], high);
    }
}
