//! Depthwise convolution: two taps of 16 channels at a time, for a few neighbouring pixels.

use std::ops::Range;

use super::CHANNELS;
use super::arch::depthwise::PIXELS;
use super::rows;
use crate::arena::Aligned;
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::portable;
use crate::step::{Depthwise, Requant, Residual};

/// Two products of i8 fit i16 where neither weight is −128.
const WEIGHT_MAX: i16 = 127;

struct Packed {
    /// Offsets of two taps from a window's first byte. Taps repeat where weights are more than one product takes.
    pairs: Vec<[usize; 2]>,
    /// `[channel / 16][pair][2][16]`
    weights: Aligned,
    bias: Vec<i32>,
    multipliers: Vec<f32>,
    /// 0 where requantisation is not fused.
    shifts: Vec<f32>,
    fused: bool,
    base: usize,
    step: [usize; 2],
    requant: Requant,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
}

pub(super) fn pack(step: Depthwise) -> Kernel {
    if step.output.pixel < CHANNELS {
        return portable::packed(step);
    }
    let channels = step.output.channels;
    let mut taps = parts(&step);
    // Pairs have to be whole, and there has to be one even where all weights are zero.
    while taps.is_empty() || !taps.len().is_multiple_of(2) {
        let offset = taps.last().map_or(0, |(offset, _)| *offset);
        taps.push((offset, vec![0; channels]));
    }
    let padded = channels.next_multiple_of(CHANNELS);
    let mut packed = Packed {
        pairs: taps.chunks_exact(2).map(|pair| [pair[0].0, pair[1].0]).collect(),
        weights: Aligned::zeroed(padded * taps.len()),
        bias: biases(&step),
        multipliers: step.multipliers,
        fused: !step.shifts.is_empty(),
        shifts: step.shifts,
        base: step.base,
        step: step.step,
        requant: step.requant,
        residual: step.residual,
        table: step.table,
        output: step.output,
    };
    packed.bias.resize(padded, 0);
    packed.multipliers.resize(padded, 0.0);
    packed.shifts.resize(padded, 0.0);
    let blocks = packed.weights.chunks_exact_mut(CHANNELS * taps.len());
    for (block, to) in blocks.enumerate() {
        for (to, (_, from)) in to.chunks_exact_mut(CHANNELS).zip(&taps) {
            to.iter_mut().zip(&from[block * CHANNELS..]).for_each(|(to, &w)| *to = w as u8);
        }
    }
    Box::new(packed)
}

/// Activations are read less 128, for which the bias makes up.
pub(super) fn biases(step: &Depthwise) -> Vec<i32> {
    let mut bias = step.bias.clone();
    for row in step.weights.chunks_exact(bias.len()) {
        bias.iter_mut().zip(row).for_each(|(bias, &w)| *bias = bias.wrapping_add(128 * i32::from(w)));
    }
    bias
}

/// Each tap's offset and weights by channel, once for each product that its weights need.
fn parts(step: &Depthwise) -> Vec<(usize, Vec<i8>)> {
    let mut parts = vec![];
    for (tap, row) in step.weights.chunks_exact(step.output.channels).enumerate() {
        let [y, x] = [tap / step.kernel[1], tap % step.kernel[1]];
        let offset = y * step.tap_step[0] + x * step.tap_step[1];
        let mut left = row.to_vec();
        while left.iter().any(|&w| w != 0) {
            let part = |w: &mut i16| {
                let part = (*w).clamp(-WEIGHT_MAX, WEIGHT_MAX);
                *w -= part;
                part as i8
            };
            parts.push((offset, left.iter_mut().map(part).collect()));
        }
    }
    parts
}

impl Run for Packed {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        for y in rows.clone() {
            self.row(memory.arena.as_mut_ptr(), y);
        }
        if let Some(Residual { view, sum }) = &self.residual {
            rows::add_rows(memory.arena, [&self.output, view, &self.output], sum, rows.clone());
        }
        if let Some(table) = &self.table {
            rows::table_rows(memory.arena, [&self.output, &self.output], table, rows);
        }
    }

    fn bytes(&self) -> usize {
        self.weights.len() + self.pairs.len() * 16 + self.bias.len() * 12
    }
}

impl Packed {
    fn row(&self, arena: *mut u8, y: usize) {
        let width = self.output.width;
        for channel in (0..self.output.pixel).step_by(CHANNELS) {
            let block = Block {
                pairs: &self.pairs,
                weights: self.weights[channel * 2 * self.pairs.len()..].as_ptr().cast(),
                bias: self.bias[channel..].as_ptr(),
                multipliers: self.multipliers[channel..].as_ptr(),
                shifts: self.shifts[channel..].as_ptr(),
                fused: self.fused,
                requant: &self.requant,
                step: [self.step[1], self.output.pixel],
            };
            // SAFETY: windows and pixels of a row of the output; weights and factors are packed for whole blocks.
            unsafe {
                let mut read = arena.add(self.base + y * self.step[0] + channel).cast_const();
                let mut write = arena.add(self.output.offset(y, 0) + channel);
                let mut x = 0;
                while x + PIXELS <= width {
                    block.pixels::<PIXELS>(read, write);
                    read = read.wrapping_add(PIXELS * block.step[0]);
                    write = write.wrapping_add(PIXELS * block.step[1]);
                    x += PIXELS;
                }
                for _ in x..width {
                    block.pixels::<1>(read, write);
                    read = read.wrapping_add(block.step[0]);
                    write = write.wrapping_add(block.step[1]);
                }
            }
        }
    }
}

/// 16 channels of a row.
pub(super) struct Block<'a> {
    pub(super) pairs: &'a [[usize; 2]],
    pub(super) weights: *const i8,
    pub(super) bias: *const i32,
    pub(super) multipliers: *const f32,
    pub(super) shifts: *const f32,
    pub(super) fused: bool,
    pub(super) requant: &'a Requant,
    /// Bytes to the next pixel, read and written.
    pub(super) step: [usize; 2],
}
