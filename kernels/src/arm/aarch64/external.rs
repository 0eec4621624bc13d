//! Between the caller's floats and buffers.

use std::arch::aarch64::*;
use std::ops::Range;

use super::{floats, rounded};
use crate::Layout;
use crate::arm::rows::Packed;
use crate::kernel::{Kernel, Memory, Run};
use crate::portable;
use crate::step::{Dequantize, Quantize};

/// How a step turns floats into bytes.
pub(in crate::arm) struct Quantizer {
    scale: f32,
    zero_point: u8,
}

impl Quantizer {
    pub(in crate::arm) fn new(step: &Quantize) -> Quantizer {
        Quantizer { scale: step.scale, zero_point: step.output.zero_point }
    }

    /// `clamp(round_ties_even(x / scale) + zero_point, 0, 255)`; the greater of NaN and a number is the number.
    ///
    /// # Safety
    /// Sixteen floats are readable.
    #[inline(always)]
    unsafe fn sixteen(&self, from: *const u8) -> uint8x16_t {
        let zero_point = f32::from(self.zero_point);
        // SAFETY: the caller's contract.
        unsafe {
            let scale = vdupq_n_f32(self.scale);
            let (low, high) = (vdupq_n_f32(-zero_point), vdupq_n_f32(255.0 - zero_point));
            let mut whole = [scale; 4];
            for n in 0..4 {
                let values = vreinterpretq_f32_u8(vld1q_u8(from.add(n * 16)));
                let steps = vminnmq_f32(vmaxnmq_f32(vdivq_f32(values, scale), low), high);
                whole[n] = vaddq_f32(vrndnq_f32(steps), vdupq_n_f32(zero_point));
            }
            rounded(whole)
        }
    }

    /// # Safety
    /// As many floats, fewer than sixteen, are readable.
    unsafe fn rest(&self, from: *const u8, elements: usize) -> [u8; 16] {
        let (mut values, mut bytes) = ([0; 64], [0; 16]);
        // SAFETY: the caller's contract; arrays of 64 and 16 bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), elements * 4);
            vst1q_u8(bytes.as_mut_ptr(), self.sixteen(values.as_ptr()));
        }
        bytes
    }

    /// # Safety
    /// `elements` floats are readable and as many bytes writable.
    pub(in crate::arm) unsafe fn run(&self, from: *const u8, to: *mut u8, elements: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut at = 0;
            while at + 16 <= elements {
                vst1q_u8(to.add(at), self.sixteen(from.add(at * 4)));
                at += 16;
            }
            let rest = self.rest(from.add(at * 4), elements - at);
            std::ptr::copy_nonoverlapping(rest.as_ptr(), to.add(at), elements - at);
        }
    }

    /// A row of `C` planes to pixels of `C` bytes.
    ///
    /// # Safety
    /// `width` floats are readable at each plane, and as many pixels writable.
    pub(in crate::arm) unsafe fn planes<const C: usize>(
        &self,
        from: *const u8,
        plane: usize,
        to: *mut u8,
        width: usize,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut x = 0;
            while x + 16 <= width {
                let mut bytes = [vdupq_n_u8(0); 4];
                for c in 0..C {
                    bytes[c] = self.sixteen(from.add(c * plane + x * 4));
                }
                let [a, b, c, d] = bytes;
                match C {
                    2 => vst2q_u8(to.add(x * 2), uint8x16x2_t(a, b)),
                    3 => vst3q_u8(to.add(x * 3), uint8x16x3_t(a, b, c)),
                    _ => vst4q_u8(to.add(x * 4), uint8x16x4_t(a, b, c, d)),
                }
                x += 16;
            }
            for c in 0..C {
                let rest = self.rest(from.add(c * plane + x * 4), width - x);
                for (i, &byte) in rest[..width - x].iter().enumerate() {
                    *to.add((x + i) * C + c) = byte;
                }
            }
        }
    }
}

pub(super) fn dequantize(step: Dequantize) -> Kernel {
    let input = &step.input;
    if step.layout == Layout::Nhwc || input.channels == 1 || input.height * input.width == 1 {
        return Box::new(Packed(step));
    }
    portable::packed(step)
}

impl Run for Packed<Dequantize> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Dequantize { input, output, scale, .. } = &self.0;
        let output = &mut *memory.outputs[*output];
        let channels = input.channels;
        for y in rows {
            for x in 0..input.width {
                let from = &memory.arena[input.offset(y, x)..][..channels];
                let to = &mut output[(y * input.width + x) * channels * 4..][..channels * 4];
                dequantize_bytes(from, to, *scale, input.zero_point);
            }
        }
    }
}

fn dequantize_bytes(from: &[u8], to: &mut [u8], scale: f32, zero_point: u8) {
    let (blocks, rest) = from.as_chunks::<16>();
    let (to_blocks, to_rest) = to.split_at_mut(blocks.len() * 64);
    for (from, to) in blocks.iter().zip(to_blocks.chunks_exact_mut(64)) {
        // SAFETY: 16 bytes, and as many floats. Small whole numbers: their difference is exact in f32.
        unsafe {
            let values = floats(vld1q_u8(from.as_ptr()));
            for n in 0..4 {
                let value = vsubq_f32(values[n], vdupq_n_f32(f32::from(zero_point)));
                let value = vmulq_f32(value, vdupq_n_f32(scale));
                vst1q_u8(to[n * 16..].as_mut_ptr(), vreinterpretq_u8_f32(value));
            }
        }
    }
    for (&byte, to) in rest.iter().zip(to_rest.chunks_exact_mut(4)) {
        let value = (i32::from(byte) - i32::from(zero_point)) as f32 * scale;
        to.copy_from_slice(&value.to_le_bytes());
    }
}
