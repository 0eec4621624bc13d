//! Convolutions, straight from their definition.

use std::ops::Range;

use super::Portable;
use crate::kernel::Memory;
use crate::layout::View;
use crate::step::{Conv, Depthwise, Requant, Residual};

/// Channels of a depthwise convolution summed together.
const TOGETHER: usize = 64;

impl Portable for Conv {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let finish = Finish {
            multipliers: &self.multipliers,
            shifts: &self.shifts,
            requant: self.requant,
            residual: self.residual.as_ref(),
            table: self.table.as_deref(),
            output: &self.output,
        };
        let outputs = self.output.channels;
        let row = self.taps.len() * self.depth;
        for y in rows {
            for x in 0..self.output.width {
                let base = self.base + y * self.step[0] + x * self.step[1];
                for channel in 0..outputs {
                    let group = channel / (outputs / self.groups);
                    let weights = self.weights[channel * row..][..row].chunks_exact(self.depth);
                    let mut acc = self.bias[channel];
                    for (&tap, weights) in self.taps.iter().zip(weights) {
                        let bytes = &memory.arena[base + tap + group * self.depth..][..self.depth];
                        acc = acc.wrapping_add(dot(bytes, weights));
                    }
                    finish.store(memory.arena, [y, x, channel], acc);
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        self.weights.len() * 2 + self.bias.len() * 8
    }
}

/// Only the whole sum is known to fit: a part of it may wrap, and wraps back.
fn dot(bytes: &[u8], weights: &[i16]) -> i32 {
    let products = bytes.iter().zip(weights).map(|(&x, &w)| i32::from(x) * i32::from(w));
    products.fold(0, i32::wrapping_add)
}

impl Portable for Depthwise {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let finish = Finish {
            multipliers: &self.multipliers,
            shifts: &self.shifts,
            requant: self.requant,
            residual: self.residual.as_ref(),
            table: self.table.as_deref(),
            output: &self.output,
        };
        let channels = self.output.channels;
        for y in rows {
            for x in 0..self.output.width {
                let base = self.base + y * self.step[0] + x * self.step[1];
                for first in (0..channels).step_by(TOGETHER) {
                    let count = TOGETHER.min(channels - first);
                    let mut sums = [0; TOGETHER];
                    sums[..count].copy_from_slice(&self.bias[first..first + count]);
                    for (tap, weights) in self.weights.chunks_exact(channels).enumerate() {
                        let [ky, kx] = [tap / self.kernel[1], tap % self.kernel[1]];
                        let from = base + ky * self.tap_step[0] + kx * self.tap_step[1] + first;
                        let (bytes, weights) =
                            (&memory.arena[from..from + count], &weights[first..first + count]);
                        for ((sum, &x), &w) in sums.iter_mut().zip(bytes).zip(weights) {
                            *sum = sum.wrapping_add(i32::from(x) * i32::from(w));
                        }
                    }
                    for (channel, &acc) in (first..).zip(&sums[..count]) {
                        finish.store(memory.arena, [y, x, channel], acc);
                    }
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        self.weights.len() * 2 + self.bias.len() * 8
    }
}

/// What happens to a sum on its way into the output.
struct Finish<'a> {
    multipliers: &'a [f32],
    /// Empty where requantisation is not fused.
    shifts: &'a [f32],
    requant: Requant,
    residual: Option<&'a Residual>,
    table: Option<&'a [u8; 256]>,
    output: &'a View,
}

impl Finish<'_> {
    #[inline(always)]
    fn store(&self, arena: &mut [u8], [y, x, channel]: [usize; 3], acc: i32) {
        let multiplier = self.multipliers[channel];
        let mut q = match self.shifts.get(channel) {
            None => self.requant.apply(acc, multiplier),
            Some(&shift) => self.requant.apply_fused(acc, multiplier, shift),
        };
        if let Some(Residual { view, sum }) = self.residual {
            q = sum.apply(q, arena[view.offset(y, x) + channel]);
        }
        if let Some(table) = self.table {
            q = table[usize::from(q)];
        }
        arena[self.output.offset(y, x) + channel] = q;
    }
}
