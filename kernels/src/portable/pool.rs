//! Pooling: windows clipped to the input.

use std::ops::Range;

use super::Portable;
use crate::Divisor;
use crate::kernel::Memory;
use crate::step::{AveragePool, MaxPool, inside};

impl Portable for MaxPool {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let (input, output) = (&self.input, &self.output);
        let [dy, dx] = self.window.dilation;
        for y in rows {
            let (top, height) = inside(&self.window, 0, y, input.height);
            for x in 0..output.width {
                let (left, width) = inside(&self.window, 1, x, input.width);
                for c in 0..output.channels {
                    let column =
                        |ky: usize| (0..width).map(move |kx| input.offset(top + ky * dy, left + kx * dx) + c);
                    let taps = (0..height).flat_map(column).map(|from| memory.arena[from]);
                    memory.arena[output.offset(y, x) + c] = taps.fold(0, u8::max);
                }
            }
        }
    }
}

impl AveragePool {
    /// The multiplier of a window with this many elements inside the input.
    pub(crate) fn multiplier_of(&self, inside: usize) -> f32 {
        let count = match self.divisor {
            Divisor::Inside => inside,
            Divisor::Window => self.window.kernel[0] * self.window.kernel[1],
        };
        self.multiplier / count as f32
    }
}

impl Portable for AveragePool {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let (input, output) = (&self.input, &self.output);
        let [dy, dx] = self.window.dilation;
        for y in rows {
            let (top, height) = inside(&self.window, 0, y, input.height);
            for x in 0..output.width {
                let (left, width) = inside(&self.window, 1, x, input.width);
                let count = height * width;
                let multiplier = self.multiplier_of(count);
                for c in 0..output.channels {
                    let column =
                        |ky: usize| (0..width).map(move |kx| input.offset(top + ky * dy, left + kx * dx) + c);
                    let taps = (0..height).flat_map(column);
                    let sum: i32 = taps.map(|from| i32::from(memory.arena[from])).sum();
                    let acc = sum - count as i32 * i32::from(input.zero_point);
                    memory.arena[output.offset(y, x) + c] =
                        self.requant.apply_f32(acc as f32 * multiplier + self.shift);
                }
            }
        }
    }
}
