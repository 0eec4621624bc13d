//! Sums and tables over runs of bytes: what goes round each architecture's loops.

use std::ops::Range;

use super::arch::rows::{add_bytes, look_up};
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::portable;
use crate::step::{Add, Sum, Table};

pub(super) struct Packed<T>(pub(super) T);

/// Views narrower than their pixels have gaps that stores must not fill.
pub(super) fn packs(view: &View) -> bool {
    view.pixel >= 16 || view.pixel == view.channels
}

/// Whether an operand is one pixel that repeats over a larger output.
fn repeats(operand: &View, output: &View) -> bool {
    (operand.height, operand.width) != (output.height, output.width)
}

/// Visits the runs of bytes of these rows: where they start in `a`, in `b`, of which a single pixel repeats, and in the
/// output, and how many they are.
pub(super) fn each_run(
    [a, b, output]: [&View; 3],
    rows: Range<usize>,
    mut visit: impl FnMut([usize; 3], usize),
) {
    for y in rows {
        if repeats(b, output) {
            for x in 0..output.width {
                visit([a.offset(y, x), b.origin, output.offset(y, x)], output.pixel);
            }
        } else {
            let starts = [a.offset(y, 0), b.offset(y, 0), output.offset(y, 0)];
            visit(starts, output.width * output.pixel);
        }
    }
}

pub(super) fn add(step: Add) -> Kernel {
    if packs(&step.output) { Box::new(Packed(step)) } else { portable::packed(step) }
}

impl Run for Packed<Add> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Add { a, b, sum, output } = &self.0;
        add_rows(memory.arena, [a, b, output], sum, rows);
    }
}

/// `output = a + b`; `a` may be the output.
pub(super) fn add_rows(arena: &mut [u8], views: [&View; 3], sum: &Sum, rows: Range<usize>) {
    let arena = arena.as_mut_ptr();
    each_run(views, rows, |[a, b, to], bytes| {
        // SAFETY: the module's contract: each run lies in its view.
        unsafe { add_bytes(arena.add(a), arena.add(b), arena.add(to), bytes, sum) };
    });
}

pub(super) fn table(step: Table) -> Kernel {
    if packs(&step.output) { Box::new(Packed(step)) } else { portable::packed(step) }
}

impl Run for Packed<Table> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Table { input, table, output } = &self.0;
        table_rows(memory.arena, [input, output], table, rows);
    }

    fn bytes(&self) -> usize {
        256
    }
}

/// `output = table[input]`; the two may be one.
pub(super) fn table_rows(
    arena: &mut [u8],
    [input, output]: [&View; 2],
    table: &[u8; 256],
    rows: Range<usize>,
) {
    let arena = arena.as_mut_ptr();
    each_run([input, input, output], rows, |[from, _, to], bytes| {
        // SAFETY: the module's contract: each run lies in its view.
        unsafe { look_up(arena.add(from), arena.add(to), bytes, table) };
    });
}
