//! Sums, products, tables and conversions over runs of bytes: plain loops, which the compiler turns into the tier's vectors.

use std::ops::Range;

use super::Vector;
use crate::Layout;
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::portable;
use crate::step::{Add, Dequantize, Mul, Quantize, Sum, Table};

/// A tier's kernels over runs of bytes. None needs more than the tier's features and the bytes it is given.
#[allow(clippy::type_complexity, reason = "a table of functions, each with its own arguments")]
pub(crate) struct Rows {
    pub(crate) add: unsafe fn(*const u8, *const u8, *mut u8, usize, &Sum),
    pub(crate) mul: unsafe fn(*const u8, *const u8, *mut u8, usize, &Mul),
    pub(crate) look_up: unsafe fn(*const u8, *mut u8, usize, &[u8; 256]),
    pub(crate) quantize: unsafe fn(*const u8, *mut u8, usize, usize, &Quantize),
    pub(crate) planes: unsafe fn(*const u8, *mut u8, &Quantize),
    pub(crate) dequantize: unsafe fn(*const u8, *mut u8, usize, &Dequantize),
}

impl Rows {
    /// `output = a + b` of three views of the same sizes; `a` may be the output.
    pub(crate) fn add_rows(
        &self,
        arena: &mut [u8],
        [a, b, output]: [&View; 3],
        sum: &Sum,
        rows: Range<usize>,
    ) {
        let arena = arena.as_mut_ptr();
        for y in rows {
            // SAFETY: the module's contract; each row has as many bytes.
            unsafe {
                let (a, b) = (arena.add(a.offset(y, 0)), arena.add(b.offset(y, 0)));
                (self.add)(a, b, arena.add(output.offset(y, 0)), output.width * output.pixel, sum);
            }
        }
    }

    /// `output = table[input]` of two views of the same sizes; they may be one.
    pub(crate) fn table_rows(
        &self,
        arena: &mut [u8],
        [input, output]: [&View; 2],
        table: &[u8; 256],
        rows: Range<usize>,
    ) {
        let arena = arena.as_mut_ptr();
        for y in rows {
            let bytes = output.width * output.pixel;
            // SAFETY: the module's contract; each row has as many bytes.
            unsafe {
                (self.look_up)(arena.add(input.offset(y, 0)), arena.add(output.offset(y, 0)), bytes, table)
            };
        }
    }
}

/// Narrower pixels have gaps that stores must not fill.
fn packs(view: &View) -> bool {
    view.pixel >= 16 || view.pixel == view.channels
}

/// Whether an operand is one pixel that repeats over a larger output.
fn repeats(operand: &View, output: &View) -> bool {
    (operand.height, operand.width) != (output.height, output.width)
}

struct Packed<T> {
    step: T,
    rows: &'static Rows,
}

pub(crate) fn add(step: Add, rows: &'static Rows) -> Kernel {
    if step.sum.saturates() || repeats(&step.b, &step.output) || !packs(&step.output) {
        return portable::packed(step);
    }
    Box::new(Packed { step, rows })
}

impl Run for Packed<Add> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Add { a, b, sum, output } = &self.step;
        self.rows.add_rows(memory.arena, [a, b, output], sum, rows);
    }
}

/// # Safety
/// `bytes` are readable at `a` and `b`, and writable at `to`, which may be `a`; a sum fits i32.
#[inline(always)]
pub(crate) unsafe fn add_bytes(a: *const u8, b: *const u8, to: *mut u8, bytes: usize, sum: &Sum) {
    let (low, high) = (f32::from(sum.clamp.low), f32::from(sum.clamp.high));
    let one = |a: u8, b: u8| {
        let (a, b) = (f32::from(a) - sum.a_zero, f32::from(b) - sum.b_zero);
        let value = (a * sum.a + b * sum.b) + sum.zero;
        // SAFETY: clamped to u8.
        unsafe { value.max(low).min(high).round_ties_even().to_int_unchecked::<i32>() as u8 }
    };
    // SAFETY: the caller's contract. A block is read whole before it is written.
    unsafe {
        let mut at = 0;
        while at + 16 <= bytes {
            let (a, b) = (a.add(at).cast::<[u8; 16]>().read(), b.add(at).cast::<[u8; 16]>().read());
            let mut sums = [0; 16];
            for i in 0..16 {
                sums[i] = one(a[i], b[i]);
            }
            to.add(at).cast::<[u8; 16]>().write(sums);
            at += 16;
        }
        for at in at..bytes {
            *to.add(at) = one(*a.add(at), *b.add(at));
        }
    }
}

pub(crate) fn mul(step: Mul, rows: &'static Rows) -> Kernel {
    // Products are at most 255², so a larger multiplier could leave i32.
    if !packs(&step.output) || step.multiplier > 1e4 {
        return portable::packed(step);
    }
    Box::new(Packed { step, rows })
}

impl Run for Packed<Mul> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Mul { a, b, output, .. } = &self.step;
        let arena = memory.arena.as_mut_ptr();
        let (pixels, bytes) = match repeats(b, output) {
            true => (output.width, output.pixel),
            false => (1, output.width * output.pixel),
        };
        for y in rows {
            for x in 0..pixels {
                let b = if repeats(b, output) { b.origin } else { b.offset(y, x) };
                // SAFETY: the module's contract; rows or pixels of as many bytes.
                unsafe {
                    let (a, to) = (arena.add(a.offset(y, x)), arena.add(output.offset(y, x)));
                    (self.rows.mul)(a, arena.add(b), to, bytes, &self.step);
                }
            }
        }
    }
}

/// # Safety
/// `bytes` are readable at `a` and `b`, and writable at `to`; a product times the multiplier fits i32.
#[inline(always)]
pub(crate) unsafe fn mul_bytes(a: *const u8, b: *const u8, to: *mut u8, bytes: usize, step: &Mul) {
    let zero_point = f32::from(step.requant.zero_point);
    let clamp = step.requant.clamp;
    let (low, high) = (f32::from(clamp.low) - zero_point, f32::from(clamp.high) - zero_point);
    let (za, zb) = (i32::from(step.a.zero_point), i32::from(step.b.zero_point));
    let zero_point = i32::from(step.requant.zero_point);
    let one = |a: u8, b: u8| {
        let value = ((i32::from(a) - za) * (i32::from(b) - zb)) as f32 * step.multiplier + step.shift;
        // SAFETY: clamped to the range of u8 less the zero point.
        unsafe { (value.max(low).min(high).round_ties_even().to_int_unchecked::<i32>() + zero_point) as u8 }
    };
    // SAFETY: the caller's contract.
    unsafe {
        let mut at = 0;
        while at + 16 <= bytes {
            let (a, b) = (a.add(at).cast::<[u8; 16]>().read(), b.add(at).cast::<[u8; 16]>().read());
            let mut products = [0; 16];
            for i in 0..16 {
                products[i] = one(a[i], b[i]);
            }
            to.add(at).cast::<[u8; 16]>().write(products);
            at += 16;
        }
        for at in at..bytes {
            *to.add(at) = one(*a.add(at), *b.add(at));
        }
    }
}

pub(crate) fn table(step: Table, rows: &'static Rows) -> Kernel {
    if packs(&step.output) { Box::new(Packed { step, rows }) } else { portable::packed(step) }
}

impl Run for Packed<Table> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Table { input, table, output } = &self.step;
        self.rows.table_rows(memory.arena, [input, output], table, rows);
    }

    fn bytes(&self) -> usize {
        256
    }
}

/// # Safety
/// The tier's features are there; `bytes` are readable at `from` and writable at `to`, which may be the same.
#[inline(always)]
pub(crate) unsafe fn look_up<V: Vector>(from: *const u8, to: *mut u8, bytes: usize, table: &[u8; 256]) {
    let vector = V::LANES * 4;
    // SAFETY: the caller's contract; sixteen bytes at sixteen places of 256.
    unsafe {
        // A negative index finds 0. Going down by 16, an index turns negative after its own sixteenth, and the differences
        // found until then have led to that sixteenth's value.
        let mut halves = [[V::repeat_16(table.as_ptr()); 8]; 2];
        for (half, parts) in halves.iter_mut().enumerate() {
            parts[0] = V::repeat_16(table.as_ptr().add(half * 128));
            for part in 1..8 {
                let own = table.as_ptr().add(half * 128 + part * 16);
                parts[part] = V::repeat_16(own).xor(V::repeat_16(own.sub(16)));
            }
        }
        let upper = V::repeat_16([0x80; 16].as_ptr());
        let mut at = 0;
        while at + vector <= bytes {
            let mut low = V::load(from.add(at));
            let mut high = low.xor(upper);
            let mut found = halves[0][0].shuffle(low).xor(halves[1][0].shuffle(high));
            for part in 1..8 {
                (low, high) = (low.less_16(), high.less_16());
                found = found.xor(halves[0][part].shuffle(low)).xor(halves[1][part].shuffle(high));
            }
            found.store(to.add(at));
            at += vector;
        }
        for at in at..bytes {
            *to.add(at) = table[usize::from(*from.add(at))];
        }
    }
}

pub(crate) fn quantize(step: Quantize, rows: &'static Rows) -> Kernel {
    Box::new(Packed { step, rows })
}

impl Run for Packed<Quantize> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let output = &self.step.output;
        let input = memory.inputs[self.step.input];
        let (width, channels) = (output.width, output.channels);
        for y in rows {
            let to = memory.arena[output.offset(y, 0)..].as_mut_ptr();
            // SAFETY: the module's contract; the input was checked to have as many floats as the view has elements, and
            // the offsets stay within the row of each pixel, channel or plane.
            unsafe {
                if self.step.layout == Layout::Nchw && matches!(output.pixel, 3 | 4) {
                    (self.rows.planes)(input.as_ptr().add(y * width * 4), to, &self.step);
                } else if self.step.layout == Layout::Nchw && output.height * width > 1 {
                    for c in 0..channels {
                        let plane = (c * output.height + y) * width * 4;
                        (self.rows.quantize)(
                            input.as_ptr().add(plane),
                            to.add(c),
                            width,
                            output.pixel,
                            &self.step,
                        );
                    }
                } else if channels == output.pixel {
                    let from = input.as_ptr().add(y * width * channels * 4);
                    (self.rows.quantize)(from, to, width * channels, 1, &self.step);
                } else {
                    for x in 0..width {
                        let from = input.as_ptr().add((y * width + x) * channels * 4);
                        (self.rows.quantize)(from, to.add(x * output.pixel), channels, 1, &self.step);
                    }
                }
            }
        }
    }
}

/// A quantised value. The step's bounds are those of [`portable`]'s.
///
/// [`portable`]: crate::portable
#[derive(Clone, Copy)]
struct Quantizer {
    scale: f32,
    zero_point: f32,
}

impl Quantizer {
    fn new(step: &Quantize) -> Quantizer {
        Quantizer { scale: step.scale, zero_point: f32::from(step.output.zero_point) }
    }

    #[inline(always)]
    fn apply(self, value: f32) -> u32 {
        let steps = (value / self.scale).max(-self.zero_point).min(255.0 - self.zero_point);
        // SAFETY: clamped to u8; a NaN has become the lower bound.
        unsafe { (steps.round_ties_even() + self.zero_point).to_int_unchecked::<i32>() as u32 }
    }
}

/// # Safety
/// `elements` floats are readable at `from`, and each `stride`-th byte is writable as often at `to`.
#[inline(always)]
pub(crate) unsafe fn quantize_floats(
    from: *const u8,
    to: *mut u8,
    elements: usize,
    stride: usize,
    step: &Quantize,
) {
    let quantizer = Quantizer::new(step);
    // SAFETY: the caller's contract.
    unsafe {
        let mut at = 0;
        while at + 16 <= elements {
            let values = from.add(at * 4).cast::<[f32; 16]>().read_unaligned();
            let mut bytes = [0; 16];
            for i in 0..16 {
                bytes[i] = quantizer.apply(values[i]) as u8;
            }
            if stride == 1 {
                to.add(at).cast::<[u8; 16]>().write(bytes);
            } else {
                for (i, byte) in bytes.into_iter().enumerate() {
                    *to.add((at + i) * stride) = byte;
                }
            }
            at += 16;
        }
        for at in at..elements {
            *to.add(at * stride) = quantizer.apply(from.add(at * 4).cast::<f32>().read_unaligned()) as u8;
        }
    }
}

/// One row of three or four planes to pixels of as many bytes.
///
/// # Safety
/// A row of floats is readable at `from` and at each further plane, and a row of pixels writable at `to`.
#[inline(always)]
pub(crate) unsafe fn quantize_planes(from: *const u8, to: *mut u8, step: &Quantize) {
    let quantizer = Quantizer::new(step);
    let View { height, width, channels, pixel, .. } = step.output;
    let plane = height * width * 4;
    // SAFETY: the caller's contract.
    unsafe {
        let mut x = 0;
        // One pixel stays for the loop below: of three bytes, four are written, and the fourth must be the next pixel's.
        while x + 16 < width {
            let mut pixels = [0; 16];
            for c in 0..channels {
                let values = from.add(c * plane + x * 4).cast::<[f32; 16]>().read_unaligned();
                for i in 0..16 {
                    pixels[i] |= quantizer.apply(values[i]) << (8 * c);
                }
            }
            if pixel == 4 {
                to.add(x * 4).cast::<[u32; 16]>().write_unaligned(pixels);
            } else {
                for (i, &pixel) in pixels.iter().enumerate() {
                    to.add((x + i) * 3).cast::<u32>().write_unaligned(pixel);
                }
            }
            x += 16;
        }
        for x in x..width {
            for c in 0..channels {
                let value = from.add(c * plane + x * 4).cast::<f32>().read_unaligned();
                *to.add(x * pixel + c) = quantizer.apply(value) as u8;
            }
        }
    }
}

pub(crate) fn dequantize(step: Dequantize, rows: &'static Rows) -> Kernel {
    let input = &step.input;
    if step.layout == Layout::Nhwc || input.channels == 1 || input.height * input.width == 1 {
        return Box::new(Packed { step, rows });
    }
    portable::packed(step)
}

impl Run for Packed<Dequantize> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Dequantize { input, output, .. } = &self.step;
        let output = &mut *memory.outputs[*output];
        let channels = input.channels;
        for y in rows {
            for x in 0..input.width {
                let from = memory.arena[input.offset(y, x)..][..channels].as_ptr();
                let to = output[(y * input.width + x) * channels * 4..][..channels * 4].as_mut_ptr();
                // SAFETY: a pixel's channels each.
                unsafe { (self.rows.dequantize)(from, to, channels, &self.step) };
            }
        }
    }
}

/// # Safety
/// `elements` bytes are readable at `from`, as many floats writable at `to`.
#[inline(always)]
pub(crate) unsafe fn dequantize_bytes(from: *const u8, to: *mut u8, elements: usize, step: &Dequantize) {
    let zero_point = i32::from(step.input.zero_point);
    for at in 0..elements {
        // SAFETY: the caller's contract.
        unsafe {
            let value = (i32::from(*from.add(at)) - zero_point) as f32 * step.scale;
            to.add(at * 4).cast::<f32>().write_unaligned(value);
        }
    }
}
