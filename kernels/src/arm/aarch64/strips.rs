//! Depthwise convolution where bytes are multiplied four at a time: two rows of the output, from interleaved rows of the input.

use std::arch::aarch64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::{Bounds, Factors, Sums, load_sums, store_16};
use crate::arm::conv::Tiles;
use crate::arm::{CHANNELS, depthwise, rows};
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::step::{Depthwise, Requant, Residual};
use crate::strip::{FLAT_WEIGHTS, Kept, Strips};

/// How a tier multiplies four bytes of each channel.
pub(super) trait Four: Tiles {
    /// `sum + Σ x·w` of four bytes in each lane; activations are signed as [`Tiles::SIGNED`] says.
    ///
    /// # Safety
    /// The tier was detected.
    unsafe fn four(sum: int32x4_t, x: uint8x16_t, w: int8x16_t) -> int32x4_t;
}

struct Packed<T> {
    strips: Strips,
    base: usize,
    step_y: usize,
    requant: Requant,
    fused: bool,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
    tier: PhantomData<fn() -> T>,
}

pub(super) fn pack<T: Four>(step: Depthwise) -> Kernel {
    if step.output.pixel < CHANNELS {
        return depthwise::pack(step);
    }
    let bias = if T::SIGNED { depthwise::biases(&step) } else { step.bias.clone() };
    let strips = Strips::new(&Depthwise { bias, ..step.clone() }, CHANNELS, 1, Kept::Bytes, FLAT_WEIGHTS);
    // A single row uses too little of what it interleaves.
    if strips.rows != 2 {
        return depthwise::pack(step);
    }
    Box::new(Packed::<T> {
        strips,
        base: step.base,
        step_y: step.step[0],
        requant: step.requant,
        fused: !step.shifts.is_empty(),
        residual: step.residual,
        table: step.table,
        output: step.output,
        tier: PhantomData,
    })
}

impl<T: Four> Run for Packed<T> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let mut y = rows.start;
        while y < rows.end {
            let (first, keep) = self.strips.rows_at(y, rows.end);
            // SAFETY: `first` and the one after are rows of the output, or the latter is not kept; the tier was detected.
            unsafe { self.two_rows(memory.arena.as_mut_ptr(), first, keep) };
            y += 2;
        }
        if let Some(Residual { view, sum }) = &self.residual {
            rows::add_rows(memory.arena, [&self.output, view, &self.output], sum, rows.clone());
        }
        if let Some(table) = &self.table {
            rows::table_rows(memory.arena, [&self.output, &self.output], table, rows);
        }
    }

    fn bytes(&self) -> usize {
        self.strips.bytes()
    }
}

impl<T: Four> Packed<T> {
    /// # Safety
    /// The tier was detected; the windows of row `y` and of the one after lie in the arena, and so do the rows that are kept.
    unsafe fn two_rows(&self, arena: *mut u8, y: usize, keep: [bool; 2]) {
        let bounds = Bounds::new(&self.requant);
        for (index, phase) in self.strips.phases.iter().enumerate() {
            let weights: *const i8 = self.strips.weights_of(index).as_ptr().cast();
            let first = index * CHANNELS;
            // SAFETY: positions of the row: a vector's rest lies in the arena's slack; stores keep to the row. Weights, bias
            // and multipliers cover the phase.
            unsafe {
                let bias = load_sums(self.strips.bias[first..].as_ptr());
                let multipliers = self.strips.multipliers[first..].as_ptr();
                let factors = Factors::new(multipliers, self.strips.shifts[first..].as_ptr(), self.fused);
                let mut read = arena.add(self.base + y * self.step_y + phase.start).cast_const();
                let mut write = arena.add(self.output.offset(y, 0) + phase.start);
                for position in 0..phase.positions {
                    let sums = self.position(read, weights, bias);
                    let bytes = if position + 1 == phase.positions { phase.last } else { phase.others };
                    for r in 0..2 {
                        if keep[r] {
                            let to = write.add(r * self.output.row);
                            store_16(to, bytes, factors.results(sums[r], &bounds));
                        }
                    }
                    read = read.wrapping_add(self.strips.advance[0]);
                    write = write.wrapping_add(self.strips.advance[1]);
                }
            }
        }
    }

    /// # Safety
    /// The tier was detected; the offsets of the columns are readable from `read` on, and the weights cover them.
    #[inline(always)]
    unsafe fn position(&self, read: *const u8, mut weights: *const i8, bias: Sums) -> [Sums; 2] {
        let mut sums = [bias; 2];
        for &[a, b, c, d] in &self.strips.columns {
            // SAFETY: the caller's contract.
            unsafe {
                let [a, b] = [load::<T>(read.add(a)), load::<T>(read.add(b))];
                let [c, d] = [load::<T>(read.add(c)), load::<T>(read.add(d))];
                let column = interleave([a, b, c, d]);
                for r in 0..2 {
                    for q in 0..4 {
                        sums[r][q] = T::four(sums[r][q], column[q], vld1q_s8(weights.add((r * 4 + q) * 16)));
                    }
                }
                weights = weights.add(128);
            }
        }
        sums
    }
}

/// Sixteen bytes, less 128 where a tier reads them so.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn load<T: Tiles>(from: *const u8) -> uint8x16_t {
    // SAFETY: the caller's contract.
    unsafe {
        let bytes = vld1q_u8(from);
        if T::SIGNED { veorq_u8(bytes, vdupq_n_u8(0x80)) } else { bytes }
    }
}

/// Bytes of four rows side by side: vector `q` holds those of channels `4 * q..4 * q + 4`.
#[inline(always)]
fn interleave([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    // SAFETY: NEON is there.
    unsafe {
        let pairs = |a, b| (vreinterpretq_u16_u8(vzip1q_u8(a, b)), vreinterpretq_u16_u8(vzip2q_u8(a, b)));
        let ((ab, ab_high), (cd, cd_high)) = (pairs(a, b), pairs(c, d));
        [
            vreinterpretq_u8_u16(vzip1q_u16(ab, cd)),
            vreinterpretq_u8_u16(vzip2q_u16(ab, cd)),
            vreinterpretq_u8_u16(vzip1q_u16(ab_high, cd_high)),
            vreinterpretq_u8_u16(vzip2q_u16(ab_high, cd_high)),
        ]
    }
}
