//! Quantising and dequantising whole rows.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{mask, packed, store, unpacked};
use crate::Layout;
use crate::kernel::{Kernel, Memory, Run};
use crate::portable;
use crate::step::{Dequantize, Quantize};

/// Bytes ahead in each plane that are brought near: rows of planes are too short for the processor to see the pattern.
const AHEAD: usize = 2048;

/// Quotients beyond this are the same to a byte as one that is this far from zero, whatever the zero point.
const FAR: f32 = 1024.0;

struct Packed<T>(T);

pub(super) fn quantize(step: Quantize) -> Kernel {
    let output = &step.output;
    let dense = step.layout == Layout::Nhwc || output.channels == 1 || output.height * output.width == 1;
    if dense && (output.channels == output.pixel || output.width == 1) || planar(&step) {
        return Box::new(Packed(step));
    }
    portable::packed(step)
}

/// Whether planes of channels become pixels of three or four bytes.
fn planar(step: &Quantize) -> bool {
    step.layout == Layout::Nchw
        && matches!(step.output.pixel, 3 | 4)
        && step.output.height * step.output.width > 1
}

impl Run for Packed<Quantize> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let output = &self.0.output;
        let input = memory.inputs[self.0.input].as_ptr();
        let arena = memory.arena.as_mut_ptr();
        for y in rows {
            // SAFETY: the module's contract; the input was checked to have as many floats as the view has elements.
            unsafe {
                let to = arena.add(output.offset(y, 0));
                if planar(&self.0) {
                    let plane = output.height * output.width * 4;
                    self.planes(input.add(y * output.width * 4), plane, to);
                } else {
                    let elements = output.width * output.channels;
                    self.dense(input.add(y * elements * 4), to, elements);
                }
            }
        }
    }
}

impl Quantize {
    /// `round(x / scale)`, of far quotients only the side, as i32 that [`Quantize::bytes`] takes; a NaN is far below. The quotient
    /// is the correctly rounded one: a product with the reciprocal, corrected once by the exact remainder.
    ///
    /// # Safety
    /// Those of 16 floats whose bits are in `keep` are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,fma")]
    unsafe fn sixteen(&self, from: *const u8, keep: __mmask16) -> __m512i {
        let (scale, inverse) = (_mm512_set1_ps(self.scale), _mm512_set1_ps(1.0 / self.scale));
        let far = self.scale * FAR;
        // SAFETY: the caller's contract.
        let x = unsafe { _mm512_maskz_loadu_ps(keep, from.cast()) };
        // The second operand comes out where the first is no number.
        let x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-far)), _mm512_set1_ps(far));
        let estimate = _mm512_mul_ps(x, inverse);
        let remainder = _mm512_fnmadd_ps(estimate, scale, x);
        _mm512_cvtps_epi32(_mm512_fmadd_ps(remainder, inverse, estimate))
    }

    /// As [`packed`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn bytes(&self, rounded: [__m512i; 4]) -> __m512i {
        packed(rounded, _mm512_set1_epi16(i16::from(self.output.zero_point)))
    }
}

impl Packed<Quantize> {
    /// Channels that follow one another as they do in the buffer.
    ///
    /// # Safety
    /// `elements` floats are readable at `from` and as many bytes writable at `to`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn dense(&self, from: *const u8, to: *mut u8, elements: usize) {
        let whole = elements / 64 * 64;
        // SAFETY: these are elements.
        unsafe {
            for at in (0..whole).step_by(64) {
                self.sixty_four(from.add(at * 4), to.add(at), [__mmask16::MAX; 4], u64::MAX);
            }
            let rest = elements - whole;
            if rest > 0 {
                let keep = [0, 16, 32, 48].map(|q| mask(rest.saturating_sub(q).min(16)) as __mmask16);
                self.sixty_four(from.add(whole * 4), to.add(whole), keep, mask(rest));
            }
        }
    }

    /// # Safety
    /// Those of 64 floats whose bits are in `keep` are readable, and as many bytes, whose bits are in `stored`, writable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn sixty_four(&self, from: *const u8, to: *mut u8, keep: [__mmask16; 4], stored: u64) {
        // SAFETY: the caller's contract; of a vector that is left out, no byte is read.
        unsafe {
            let quarter = |q: usize| self.0.sixteen(from.wrapping_add(q * 64), keep[q]);
            let bytes = self.0.bytes([quarter(0), quarter(1), quarter(2), quarter(3)]);
            store(to, stored, _mm512_permutexvar_epi32(unpacked(), bytes));
        }
    }

    /// One row of three or four planes to pixels of as many bytes.
    ///
    /// # Safety
    /// A row is readable at `from` and at each further plane, and writable at `to`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn planes(&self, from: *const u8, plane: usize, to: *mut u8) {
        let output = &self.0.output;
        // Of each pixel of a 128-bit lane one byte from each of its four words.
        let (four, three) = (
            _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
            _mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1),
        );
        let within = _mm512_broadcast_i32x4(if output.pixel == 3 { three } else { four });
        let order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
        for x in (0..output.width).step_by(16) {
            let pixels = (output.width - x).min(16);
            let keep = mask(pixels) as __mmask16;
            let mut channels = [_mm512_setzero_si512(); 4];
            for c in 0..4 {
                if c < output.channels {
                    let from = from.wrapping_add(c * plane + x * 4);
                    // SAFETY: masked to the row; a hint touches nothing.
                    channels[c] = unsafe {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
                        self.0.sixteen(from, keep)
                    };
                }
            }
            let mut bytes = _mm512_shuffle_epi8(self.0.bytes(channels), within);
            if output.pixel == 3 {
                bytes = _mm512_permutexvar_epi32(order, bytes);
            }
            // SAFETY: masked to the row.
            unsafe { store(to.add(x * output.pixel), mask(pixels * output.pixel), bytes) };
        }
    }
}

pub(super) fn dequantize(step: Dequantize) -> Kernel {
    let input = &step.input;
    let dense = step.layout == Layout::Nhwc || input.channels == 1 || input.height * input.width == 1;
    if dense && (input.channels == input.pixel || input.width == 1) {
        return Box::new(Packed(step));
    }
    portable::packed(step)
}

impl Run for Packed<Dequantize> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Dequantize { input, output, scale, .. } = &self.0;
        let elements = input.width * input.channels;
        let output = &mut *memory.outputs[*output];
        for y in rows {
            let to = output[y * elements * 4..][..elements * 4].as_mut_ptr();
            let from = memory.arena[input.offset(y, 0)..][..elements].as_ptr();
            // SAFETY: a row of elements each; the arena's slack covers what is read beyond.
            unsafe { widen(from, to, elements, input.zero_point, *scale) };
        }
    }
}

/// # Safety
/// `elements` bytes (and 15 more) are readable at `from`, as many floats writable at `to`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widen(from: *const u8, to: *mut u8, elements: usize, zero_point: u8, scale: f32) {
    let (zero_point, scale) = (_mm512_set1_epi32(i32::from(zero_point)), _mm512_set1_ps(scale));
    // SAFETY: the caller's contract; the last store is masked to the elements.
    unsafe {
        let value = |at: usize| {
            let q = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.add(at).cast()));
            _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(q, zero_point)), scale)
        };
        let whole = elements / 16 * 16;
        for at in (0..whole).step_by(16) {
            _mm512_storeu_ps(to.add(at * 4).cast(), value(at));
        }
        if whole < elements {
            let keep = mask(elements - whole) as __mmask16;
            _mm512_mask_storeu_ps(to.add(whole * 4).cast(), keep, value(whole));
        }
    }
}
