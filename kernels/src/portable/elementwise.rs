//! Sums, products, tables and copies.

use std::ops::Range;

use super::Portable;
use crate::kernel::Memory;
use crate::layout::View;
use crate::step::{Add, Copy, Mul, Table};

/// Offset of an operand's pixel; a single pixel repeats.
fn operand(view: &View, output: &View, y: usize, x: usize) -> usize {
    if (view.height, view.width) == (output.height, output.width) { view.offset(y, x) } else { view.origin }
}

impl Portable for Add {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let arena = &mut *memory.arena;
        for y in rows {
            for x in 0..self.output.width {
                let (a, b) = (self.a.offset(y, x), operand(&self.b, &self.output, y, x));
                let to = self.output.offset(y, x);
                for c in 0..self.output.channels {
                    arena[to + c] = self.sum.apply(arena[a + c], arena[b + c]);
                }
            }
        }
    }
}

impl Portable for Mul {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let arena = &mut *memory.arena;
        let (za, zb) = (i32::from(self.a.zero_point), i32::from(self.b.zero_point));
        for y in rows {
            for x in 0..self.output.width {
                let (a, b) = (self.a.offset(y, x), operand(&self.b, &self.output, y, x));
                let to = self.output.offset(y, x);
                for c in 0..self.output.channels {
                    let product = (i32::from(arena[a + c]) - za) * (i32::from(arena[b + c]) - zb);
                    arena[to + c] = self.requant.apply_f32(product as f32 * self.multiplier + self.shift);
                }
            }
        }
    }
}

impl Portable for Table {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let arena = &mut *memory.arena;
        for y in rows {
            for x in 0..self.output.width {
                let (from, to) = (self.input.offset(y, x), self.output.offset(y, x));
                for c in 0..self.output.channels {
                    arena[to + c] = self.table[usize::from(arena[from + c])];
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        256
    }
}

impl Portable for Copy {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let arena = &mut *memory.arena;
        let channels = self.output.channels;
        for y in rows {
            for x in 0..self.output.width {
                let (from, to) = (self.input.offset(y, x), self.output.offset(y, x));
                arena.copy_within(from..from + channels, to);
                if let Some(table) = &self.table {
                    for byte in &mut arena[to..to + channels] {
                        *byte = table[usize::from(*byte)];
                    }
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        self.table.as_ref().map_or(0, |_| 256)
    }
}
