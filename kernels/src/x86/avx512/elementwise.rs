//! Sums, products and tables over rows of bytes.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;
use std::ops::Range;

use super::{Bounds, mask, shifted, store, unpacked};
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::portable;
use crate::step::{Add, Mul, Sum, Table};

/// Narrower pixels have gaps that stores must not fill.
fn packs(view: &View) -> bool {
    view.pixel >= 16 || view.pixel == view.channels
}

/// Whether an operand is one pixel that repeats over a larger output.
fn repeats(operand: &View, output: &View) -> bool {
    (operand.height, operand.width) != (output.height, output.width)
}

struct Packed<T>(T);

pub(super) fn add(step: Add) -> Kernel {
    if step.sum.saturates() || repeats(&step.b, &step.output) || !packs(&step.output) {
        return portable::packed(step);
    }
    Box::new(Packed(step))
}

impl Run for Packed<Add> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Add { a, b, sum, output } = &self.0;
        add_rows(memory.arena, a, b, output, sum, rows);
    }
}

/// `output = a + b` over these rows; `a` may be the output.
pub(super) fn add_rows(arena: &mut [u8], a: &View, b: &View, output: &View, sum: &Sum, rows: Range<usize>) {
    let arena = arena.as_mut_ptr();
    for y in rows {
        let bytes = output.width * output.pixel;
        // SAFETY: the module's contract; the three views have the same sizes, so each row has as many bytes.
        unsafe {
            let (a, b, to) =
                (arena.add(a.offset(y, 0)), arena.add(b.offset(y, 0)), arena.add(output.offset(y, 0)));
            add_bytes(a, b, to, bytes, sum);
        }
    }
}

/// # Safety
/// `bytes` are readable (and 63 more) at `a` and `b`, and writable at `to`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn add_bytes(a: *const u8, b: *const u8, to: *mut u8, bytes: usize, sum: &Sum) {
    let (ma, mb, zero) = (_mm512_set1_ps(sum.a), _mm512_set1_ps(sum.b), _mm512_set1_ps(sum.zero));
    let (za, zb) = (_mm512_set1_ps(sum.a_zero), _mm512_set1_ps(sum.b_zero));
    let (low, high) = (_mm512_set1_epi8(sum.clamp.low as i8), _mm512_set1_epi8(sum.clamp.high as i8));
    for at in (0..bytes).step_by(64) {
        let quarter = |q: usize| {
            // SAFETY: the caller's contract.
            let (x, y) = unsafe { (floats(a.add(at + q * 16)), floats(b.add(at + q * 16))) };
            let (x, y) = (_mm512_sub_ps(x, za), _mm512_sub_ps(y, zb));
            _mm512_cvtps_epi32(_mm512_add_ps(_mm512_add_ps(_mm512_mul_ps(x, ma), _mm512_mul_ps(y, mb)), zero))
        };
        let words = [_mm512_packs_epi32(quarter(0), quarter(1)), _mm512_packs_epi32(quarter(2), quarter(3))];
        let packed = _mm512_permutexvar_epi32(unpacked(), _mm512_packus_epi16(words[0], words[1]));
        let packed = _mm512_max_epu8(_mm512_min_epu8(packed, high), low);
        // SAFETY: masked to the row.
        unsafe { store(to.add(at), mask(bytes - at), packed) };
    }
}

/// # Safety
/// 16 bytes are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn floats(from: *const u8) -> __m512 {
    // SAFETY: the caller's contract.
    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(from.cast()) }))
}

pub(super) fn mul(step: Mul) -> Kernel {
    // Products are at most 255², so a larger multiplier could leave i32.
    if !packs(&step.output)
        || step.multiplier > 1e4
        || (repeats(&step.b, &step.output) && step.output.pixel < 16)
    {
        return portable::packed(step);
    }
    Box::new(Packed(step))
}

impl Run for Packed<Mul> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Mul { a, b, output, .. } = &self.0;
        let arena = memory.arena.as_mut_ptr();
        for y in rows {
            // SAFETY: the module's contract; rows of views of the same sizes, or pixels of one that repeats.
            unsafe {
                if repeats(b, output) && 64 % output.pixel == 0 {
                    // Narrow pixels side by side fill a vector.
                    let mut pattern = [0; 64];
                    for at in (0..64).step_by(output.pixel) {
                        arena
                            .add(b.origin)
                            .copy_to_nonoverlapping(pattern.as_mut_ptr().add(at), output.pixel);
                    }
                    let (a, to) = (arena.add(a.offset(y, 0)), arena.add(output.offset(y, 0)));
                    for at in (0..output.width * output.pixel).step_by(64) {
                        let bytes = (output.width * output.pixel - at).min(64);
                        self.bytes_of(a.add(at), pattern.as_ptr(), to.add(at), bytes);
                    }
                } else if repeats(b, output) {
                    for x in 0..output.width {
                        let (a, to) = (arena.add(a.offset(y, x)), arena.add(output.offset(y, x)));
                        self.bytes_of(a, arena.add(b.origin), to, output.pixel);
                    }
                } else {
                    let (a, b) = (arena.add(a.offset(y, 0)), arena.add(b.offset(y, 0)));
                    self.bytes_of(a, b, arena.add(output.offset(y, 0)), output.width * output.pixel);
                }
            }
        }
    }
}

impl Packed<Mul> {
    /// # Safety
    /// `bytes` are readable (and 63 more) at `a` and `b`, and writable at `to`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn bytes_of(&self, a: *const u8, b: *const u8, to: *mut u8, bytes: usize) {
        let step = &self.0;
        let bounds = Bounds::new(&step.requant);
        let (multiplier, shift) = (_mm512_set1_ps(step.multiplier), _mm512_set1_ps(step.shift));
        let za = _mm512_set1_epi32(i32::from(step.a.zero_point));
        let zb = _mm512_set1_epi32(i32::from(step.b.zero_point));
        for at in (0..bytes).step_by(64) {
            let quarter = |q: usize| {
                // SAFETY: the caller's contract.
                let (x, y) = unsafe {
                    let x = _mm512_cvtepu8_epi32(_mm_loadu_si128(a.add(at + q * 16).cast()));
                    (x, _mm512_cvtepu8_epi32(_mm_loadu_si128(b.add(at + q * 16).cast())))
                };
                // Both factors fit 16 bits, where the instruction multiplies faster than on 32; the upper halves are
                // signs, whose product must not count, so one of them is cleared.
                let x = _mm512_and_si512(_mm512_sub_epi32(x, za), _mm512_set1_epi32(0xffff));
                shifted(_mm512_madd_epi16(x, _mm512_sub_epi32(y, zb)), multiplier, shift)
            };
            let packed = bounds.pack([quarter(0), quarter(1), quarter(2), quarter(3)]);
            let packed = _mm512_permutexvar_epi32(unpacked(), packed);
            // SAFETY: masked to the bytes.
            unsafe { store(to.add(at), mask(bytes - at), packed) };
        }
    }
}

pub(super) fn table(step: Table) -> Kernel {
    if packs(&step.output) { Box::new(Packed(step)) } else { portable::packed(step) }
}

impl Run for Packed<Table> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        table_rows(memory.arena, &self.0.input, &self.0.output, &self.0.table, rows);
    }

    fn bytes(&self) -> usize {
        256
    }
}

/// `output = table[input]` over these rows; both may be the same.
pub(super) fn table_rows(
    arena: &mut [u8],
    input: &View,
    output: &View,
    table: &[u8; 256],
    rows: Range<usize>,
) {
    let permutes = is_x86_feature_detected!("avx512vbmi");
    for y in rows {
        let (from, to, bytes) = (input.offset(y, 0), output.offset(y, 0), output.width * output.pixel);
        if permutes {
            let arena = arena.as_mut_ptr();
            // SAFETY: VBMI is there; rows of views of the same sizes.
            unsafe { look_up(arena.add(from), arena.add(to), bytes, table) };
        } else {
            for at in 0..bytes {
                arena[to + at] = table[usize::from(arena[from + at])];
            }
        }
    }
}

/// # Safety
/// `bytes` are readable (and 63 more) at `from`, and writable at `to`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn look_up(from: *const u8, to: *mut u8, bytes: usize, table: &[u8; 256]) {
    // SAFETY: four times 64 bytes of 256.
    let part = |q: usize| unsafe { _mm512_loadu_si512(table.as_ptr().add(q * 64).cast()) };
    let parts = [part(0), part(1), part(2), part(3)];
    for at in (0..bytes).step_by(64) {
        // SAFETY: the caller's contract.
        let index = unsafe { _mm512_loadu_si512(from.add(at).cast()) };
        let lower = _mm512_permutex2var_epi8(parts[0], index, parts[1]);
        let upper = _mm512_permutex2var_epi8(parts[2], index, parts[3]);
        let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), lower, upper);
        // SAFETY: masked to the row.
        unsafe { store(to.add(at), mask(bytes - at), found) };
    }
}
