//! Between the caller's tensors and buffers: layout, sign and quantisation.

use std::ops::Range;

use super::Portable;
use crate::Layout;
use crate::kernel::Memory;
use crate::layout::View;
use crate::step::{Dequantize, Load, Quantize, Store};

/// Index of an element of a dense tensor of the view's shape.
#[inline(always)]
fn index(layout: Layout, view: &View, y: usize, x: usize, c: usize) -> usize {
    match layout {
        Layout::Nchw => (c * view.height + y) * view.width + x,
        Layout::Nhwc => (y * view.width + x) * view.channels + c,
    }
}

/// Visits each element of these rows: offset in the arena, index in the dense tensor.
#[inline(always)]
fn each(view: &View, layout: Layout, rows: Range<usize>, mut visit: impl FnMut(usize, usize)) {
    for y in rows {
        for x in 0..view.width {
            let pixel = view.offset(y, x);
            for c in 0..view.channels {
                visit(pixel + c, index(layout, view, y, x, c));
            }
        }
    }
}

/// `clamp(round_ties_even(x / scale) + zero_point, 0, 255)`; NaN becomes 0.
pub(crate) fn quantize(value: f32, scale: f32, zero_point: u8) -> u8 {
    let zero_point = f32::from(zero_point);
    let shifted = (value / scale).max(-zero_point).min(255.0 - zero_point).round_ties_even() + zero_point;
    shifted as u8
}

impl Portable for Quantize {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let input = memory.inputs[self.input];
        each(&self.output, self.layout, rows, |to, from| {
            let bytes = [0, 1, 2, 3].map(|i| input[from * 4 + i]);
            memory.arena[to] = quantize(f32::from_le_bytes(bytes), self.scale, self.output.zero_point);
        });
    }
}

impl Portable for Dequantize {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let zero_point = i32::from(self.input.zero_point);
        let output = &mut *memory.outputs[self.output];
        each(&self.input, self.layout, rows, |from, to| {
            let value = (i32::from(memory.arena[from]) - zero_point) as f32 * self.scale;
            output[to * 4..to * 4 + 4].copy_from_slice(&value.to_le_bytes());
        });
    }
}

/// Runs of bytes that follow one another in the view and in a dense NHWC tensor: offset of each in both, and its length.
fn runs(view: &View, rows: Range<usize>) -> impl Iterator<Item = (usize, usize, usize)> {
    let whole = view.pixel == view.channels;
    let (count, len) = if whole { (1, view.width * view.channels) } else { (view.width, view.channels) };
    let view = *view;
    rows.flat_map(move |y| {
        (0..count).map(move |x| (view.offset(y, x), (y * view.width + x) * view.channels, len))
    })
}

impl Portable for Load {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let input = memory.inputs[self.input];
        if self.layout == Layout::Nchw {
            return each(&self.output, self.layout, rows, |to, from| {
                memory.arena[to] = input[from] ^ self.flip
            });
        }
        for (to, from, len) in runs(&self.output, rows) {
            let (to, from) = (&mut memory.arena[to..to + len], &input[from..from + len]);
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from ^ self.flip);
        }
    }
}

impl Portable for Store {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let output = &mut *memory.outputs[self.output];
        if self.layout == Layout::Nchw {
            return each(&self.input, self.layout, rows, |from, to| {
                output[to] = memory.arena[from] ^ self.flip
            });
        }
        for (from, to, len) in runs(&self.input, rows) {
            let (to, from) = (&mut output[to..to + len], &memory.arena[from..from + len]);
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from ^ self.flip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::quantize;

    #[test]
    fn quantisation_rounds_ties_to_even_and_saturates() {
        let values =
            [-1e30, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let expected = [0, 8, 8, 10, 10, 12, 12, 255, 255, 0, 0];
        assert_eq!(values.map(|value| quantize(value, 1.0, 10)), expected);
        assert_eq!(quantize(0.3, 0.1, 0), 3);
    }
}
