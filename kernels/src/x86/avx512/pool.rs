//! Pooling, 64 channels at a time.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Bounds, mask, shifted, store, unpacked};
use crate::kernel::{Kernel, Memory, Run};
use crate::portable;
use crate::step::{AveragePool, MaxPool, inside};

struct Packed<T>(T);

pub(super) fn max_pool(step: MaxPool) -> Kernel {
    if step.output.pixel < 16 { portable::packed(step) } else { Box::new(Packed(step)) }
}

pub(super) fn average_pool(step: AveragePool) -> Kernel {
    // A sum is below 2^24, so a larger multiplier could leave i32.
    if step.output.pixel < 16 || step.multiplier > 64.0 {
        return portable::packed(step);
    }
    Box::new(Packed(step))
}

impl Run for Packed<MaxPool> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let MaxPool { input, window, output } = &self.0;
        let steps = [window.dilation[0] * input.row, window.dilation[1] * input.pixel];
        for y in rows {
            let (top, height) = inside(window, 0, y, input.height);
            for x in 0..output.width {
                let (left, width) = inside(window, 1, x, input.width);
                let arena = memory.arena.as_mut_ptr();
                // SAFETY: the module's contract; the clipped window lies in the input.
                unsafe {
                    let (from, to) = (arena.add(input.offset(top, left)), arena.add(output.offset(y, x)));
                    maximum(from, to, output.pixel, [height, width], steps);
                }
            }
        }
    }
}

/// # Safety
/// A window of `[height, width]` pixels, `steps` apart, is readable at `from` and `pixel` bytes are writable at `to`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn maximum(
    from: *const u8,
    to: *mut u8,
    pixel: usize,
    [height, width]: [usize; 2],
    steps: [usize; 2],
) {
    for c in (0..pixel).step_by(64) {
        let mut greatest = _mm512_setzero_si512();
        for ky in 0..height {
            for kx in 0..width {
                // SAFETY: the caller's contract; what is read beyond the pixel lies in the arena's slack.
                let bytes = unsafe { _mm512_loadu_si512(from.add(ky * steps[0] + kx * steps[1] + c).cast()) };
                greatest = _mm512_max_epu8(greatest, bytes);
            }
        }
        // SAFETY: masked to the pixel.
        unsafe { store(to.add(c), mask(pixel - c), greatest) };
    }
}

impl Run for Packed<AveragePool> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let AveragePool { input, window, output, .. } = &self.0;
        for y in rows {
            let (top, height) = inside(window, 0, y, input.height);
            for x in 0..output.width {
                let (left, width) = inside(window, 1, x, input.width);
                let arena = memory.arena.as_mut_ptr();
                // SAFETY: the module's contract; the clipped window lies in the input.
                unsafe {
                    let (from, to) = (arena.add(input.offset(top, left)), arena.add(output.offset(y, x)));
                    self.average(from, to, [height, width]);
                }
            }
        }
    }
}

impl Packed<AveragePool> {
    /// # Safety
    /// A window of `[height, width]` pixels is readable at `from` and a pixel is writable at `to`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn average(&self, from: *const u8, to: *mut u8, [height, width]: [usize; 2]) {
        let AveragePool { input, window, output, requant, .. } = &self.0;
        let steps = [window.dilation[0] * input.row, window.dilation[1] * input.pixel];
        let count = height * width;
        let (multiplier, shift) = (_mm512_set1_ps(self.0.multiplier_of(count)), _mm512_set1_ps(self.0.shift));
        let zero = _mm512_set1_epi32(-(count as i32) * i32::from(input.zero_point));
        let bounds = Bounds::new(requant);
        for c in (0..output.pixel).step_by(64) {
            let mut sums = [zero; 4];
            // Sums of 16 bits hold 257 bytes; each row of up to 256 taps is widened before it could overflow.
            for ky in 0..height {
                for first in (0..width).step_by(256) {
                    let mut halves = [_mm512_setzero_si512(); 2];
                    for kx in first..width.min(first + 256) {
                        for (half, words) in halves.iter_mut().enumerate() {
                            let at = ky * steps[0] + kx * steps[1] + c + half * 32;
                            // SAFETY: the caller's contract; what is read beyond the pixel lies in the arena's slack.
                            let bytes = unsafe { _mm256_loadu_si256(from.add(at).cast()) };
                            *words = _mm512_add_epi16(*words, _mm512_cvtepu8_epi16(bytes));
                        }
                    }
                    for (half, words) in halves.into_iter().enumerate() {
                        let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words));
                        let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(words));
                        sums[half * 2] = _mm512_add_epi32(sums[half * 2], low);
                        sums[half * 2 + 1] = _mm512_add_epi32(sums[half * 2 + 1], high);
                    }
                }
            }
            for sum in &mut sums {
                *sum = shifted(*sum, multiplier, shift);
            }
            let packed = bounds.pack(sums);
            let packed = _mm512_permutexvar_epi32(unpacked(), packed);
            // SAFETY: masked to the pixel.
            unsafe { store(to.add(c), mask(output.pixel - c), packed) };
        }
    }
}
