//! Pooling by rows of the output.

use std::ops::Range;

use super::{Vector, store_part};
use crate::kernel::{Kernel, Memory, Run};
use crate::portable;
use crate::step::{AveragePool, MaxPool, inside};

struct Packed<T> {
    step: T,
    row: unsafe fn(&T, *mut u8, usize),
}

pub(crate) fn max_pool(step: MaxPool, row: unsafe fn(&MaxPool, *mut u8, usize)) -> Kernel {
    if step.output.pixel < 16 { portable::packed(step) } else { Box::new(Packed { step, row }) }
}

pub(crate) fn average_pool(step: AveragePool, row: unsafe fn(&AveragePool, *mut u8, usize)) -> Kernel {
    // A sum is below 2^24, so a larger multiplier could leave i32.
    if step.output.pixel < 16 || step.multiplier > 64.0 {
        return portable::packed(step);
    }
    Box::new(Packed { step, row })
}

impl<T: Send + Sync> Run for Packed<T> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        for y in rows {
            // SAFETY: the module's contract; `y` is a row of the output.
            unsafe { (self.row)(&self.step, memory.arena.as_mut_ptr(), y) };
        }
    }
}

/// # Safety
/// The tier's features are there; `y` is a row of the output.
#[inline(always)]
pub(crate) unsafe fn maximum<V: Vector>(step: &MaxPool, arena: *mut u8, y: usize) {
    let MaxPool { input, window, output } = step;
    let steps = [window.dilation[0] * input.row, window.dilation[1] * input.pixel];
    let (top, height) = inside(window, 0, y, input.height);
    for x in 0..output.width {
        let (left, width) = inside(window, 1, x, input.width);
        for c in (0..output.pixel).step_by(V::LANES * 4) {
            // SAFETY: the clipped window lies in the input, what is read beyond a pixel in the arena's slack; the store
            // keeps to the pixel.
            unsafe {
                let from = arena.add(input.offset(top, left) + c).cast_const();
                let mut greatest = V::load(from);
                for ky in 0..height {
                    for kx in 0..width {
                        greatest = greatest.max(V::load(from.add(ky * steps[0] + kx * steps[1])));
                    }
                }
                store_part(arena.add(output.offset(y, x) + c), output.pixel - c, greatest);
            }
        }
    }
}

/// Channels summed together.
const CHANNELS: usize = 16;

/// # Safety
/// The tier's features are there; `y` is a row of the output.
#[inline(always)]
pub(crate) unsafe fn average(step: &AveragePool, arena: *mut u8, y: usize) {
    let AveragePool { input, window, output, requant, .. } = step;
    let steps = [window.dilation[0] * input.row, window.dilation[1] * input.pixel];
    let (top, height) = inside(window, 0, y, input.height);
    for x in 0..output.width {
        let (left, width) = inside(window, 1, x, input.width);
        let count = height * width;
        let multiplier = step.multiplier_of(count);
        for c in (0..output.pixel).step_by(CHANNELS) {
            let mut sums = [-(count as i32) * i32::from(input.zero_point); CHANNELS];
            // SAFETY: the clipped window lies in the input, 16 bytes of each pixel are its own.
            unsafe {
                let from = arena.add(input.offset(top, left) + c).cast_const();
                for ky in 0..height {
                    for kx in 0..width {
                        let bytes = from.add(ky * steps[0] + kx * steps[1]).cast::<[u8; CHANNELS]>().read();
                        for (sum, byte) in sums.iter_mut().zip(bytes) {
                            *sum += i32::from(byte);
                        }
                    }
                }
                let to = arena.add(output.offset(y, x) + c).cast::<[u8; CHANNELS]>();
                let mut bytes = [0; CHANNELS];
                for i in 0..CHANNELS {
                    bytes[i] = requant.apply_f32(sums[i] as f32 * multiplier + step.shift);
                }
                to.write(bytes);
            }
        }
    }
}
