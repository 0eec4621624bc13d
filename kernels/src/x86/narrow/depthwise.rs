//! Depthwise convolution over strips of two rows.

use std::ops::Range;

use super::{AllFactors, Bounds, Factors, Vector, fits, rows::Rows, store_part};
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::portable;
use crate::step::{Depthwise, Requant, Residual};
use crate::strip::{FLAT_WEIGHTS, Kept, Strips};

/// Computes the rows of a strip.
pub(crate) type Strip = unsafe fn(&Packed, *mut u8, usize, [bool; 2]);

pub(crate) struct Packed {
    strips: Strips,
    kept: Kept,
    base: usize,
    step_y: usize,
    factors: AllFactors,
    requant: Requant,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
    strip: Strip,
    rows: &'static Rows,
}

pub(crate) fn pack<V: Vector>(step: Depthwise, strip: Strip, rows: &'static Rows) -> Kernel {
    if step.saturates || step.output.pixel < 16 {
        return portable::packed(step);
    }
    let kept = if V::EXACT || neighbours_fit(&step) { Kept::Bytes } else { Kept::Words };
    let mut strips = Strips::new(&step, V::LANES * 4, 1, kept, FLAT_WEIGHTS);
    let multipliers = std::mem::take(&mut strips.multipliers);
    let shifts = std::mem::take(&mut strips.shifts);
    Box::new(Packed {
        strips,
        kept,
        base: step.base,
        step_y: step.step[0],
        factors: AllFactors::new::<V>(multipliers, shifts, !step.shifts.is_empty()),
        requant: step.requant,
        residual: step.residual,
        table: step.table,
        output: step.output,
        strip,
        rows,
    })
}

/// Whether taps that follow one another downwards, any two of which may share a product, always do so exactly.
fn neighbours_fit(step: &Depthwise) -> bool {
    let row = step.kernel[1] * step.output.channels;
    let pairs = step.weights.iter().zip(step.weights.get(row..).unwrap_or(&[]));
    step.weights.iter().all(|&w| fits(w, 0)) && pairs.into_iter().all(|(&a, &b)| fits(a, b))
}

impl Run for Packed {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let mut y = rows.start;
        while y < rows.end {
            let (first, keep) = self.strips.rows_at(y, rows.end);
            // SAFETY: the module's contract; `first` and, of two rows, the one after are rows of the output.
            unsafe { (self.strip)(self, memory.arena.as_mut_ptr(), first, keep) };
            y += self.strips.rows;
        }
        if let Some(Residual { view, sum }) = &self.residual {
            self.rows.add_rows(memory.arena, [&self.output, view, &self.output], sum, rows.clone());
        }
        if let Some(table) = &self.table {
            self.rows.table_rows(memory.arena, [&self.output, &self.output], table, rows);
        }
    }

    fn bytes(&self) -> usize {
        self.strips.bytes() + self.factors.bytes()
    }
}

/// # Safety
/// The tier's features are there; `y` and, of two rows, the one after are rows of the output.
#[inline(always)]
pub(crate) unsafe fn strip<V: Vector>(step: &Packed, arena: *mut u8, y: usize, keep: [bool; 2]) {
    // SAFETY: the caller's contract.
    unsafe {
        match (step.strips.rows, step.kept) {
            (2, Kept::Bytes) => rows_of::<V, 2, false>(step, arena, y, keep),
            (2, Kept::Words) => rows_of::<V, 2, true>(step, arena, y, keep),
            (_, Kept::Bytes) => rows_of::<V, 1, false>(step, arena, y, keep),
            (_, Kept::Words) => rows_of::<V, 1, true>(step, arena, y, keep),
        }
    }
}

/// # Safety
/// As for [`strip`].
#[inline(always)]
unsafe fn rows_of<V: Vector, const R: usize, const WORDS: bool>(
    step: &Packed,
    arena: *mut u8,
    y: usize,
    keep: [bool; 2],
) {
    let vector = V::LANES * 4;
    let bounds = Bounds::new(&step.requant, step.factors.fused);
    let strips = &step.strips;
    for (index, phase) in strips.phases.iter().enumerate() {
        let bias: *const u8 = strips.bias[index * vector..].as_ptr().cast();
        let factors = step.factors.from(index * vector);
        // SAFETY: positions of the row: their windows lie in the arena, a vector's rest in its slack; stores keep to the
        // row. Weights, bias and multipliers cover the phase.
        unsafe {
            let mut read = arena.add(step.base + y * step.step_y + phase.start).cast_const();
            let mut write = arena.add(step.output.offset(y, 0) + phase.start);
            for position in 0..phase.positions {
                let first = V::load(bias);
                let mut sums = [[first; 4]; R];
                for q in 1..4 {
                    let bias = V::load(bias.add(q * vector));
                    for row in &mut sums {
                        row[q] = bias;
                    }
                }
                let mut weights = strips.weights_of(index).as_ptr();
                for offsets in &strips.columns {
                    let [a, b, c, d] = *offsets;
                    let rows = [
                        V::load(read.add(a)),
                        V::load(read.add(b)),
                        V::load(read.add(c)),
                        V::load(read.add(d)),
                    ];
                    let column = V::interleave(rows);
                    for row in &mut sums {
                        for q in 0..4 {
                            if WORDS {
                                let (even, odd) = column[q].split();
                                let sum = row[q].dot_words(even, V::load(weights));
                                row[q] = sum.dot_words(odd, V::load(weights.add(vector)));
                                weights = weights.add(2 * vector);
                            } else {
                                row[q] = row[q].dot(column[q], V::load(weights));
                                weights = weights.add(vector);
                            }
                        }
                    }
                }
                let bytes = if position + 1 == phase.positions { phase.last } else { phase.others };
                for r in 0..R {
                    if keep[r] {
                        let whole = match step.factors.fused {
                            true => results::<V, true>(sums[r], factors),
                            false => results::<V, false>(sums[r], factors),
                        };
                        store_part(write.add(r * step.output.row), bytes, V::pack(whole, &bounds));
                    }
                }
                read = read.wrapping_add(strips.advance[0]);
                write = write.wrapping_add(strips.advance[1]);
            }
        }
    }
}

/// # Safety
/// The tier's features are there; the factors are those of four vectors.
#[inline(always)]
unsafe fn results<V: Vector, const FUSED: bool>(mut sums: [V; 4], factors: Factors) -> [V; 4] {
    for q in 0..4 {
        // SAFETY: the caller's contract.
        sums[q] = unsafe { factors.results::<V, FUSED>(sums[q], q) };
    }
    sums
}
