//! Sums, products and tables over runs of bytes.

use std::arch::aarch64::*;
use std::ops::Range;

use super::{Bounds, floats, rounded};
use crate::arm::rows::{Packed, each_run, packs};
use crate::kernel::{Kernel, Memory, Run};
use crate::portable;
use crate::step::{Mul, Sum};

/// # Safety
/// `bytes` are readable at `a` and `b`, and writable at `to`, which may be `a`.
pub(in crate::arm) unsafe fn add_bytes(a: *const u8, b: *const u8, to: *mut u8, bytes: usize, sum: &Sum) {
    // SAFETY: the caller's contract.
    unsafe {
        let (ma, mb) = (vdupq_n_f32(sum.a), vdupq_n_f32(sum.b));
        let (za, zb, zero) = (vdupq_n_f32(sum.a_zero), vdupq_n_f32(sum.b_zero), vdupq_n_f32(sum.zero));
        let (low, high) = (vdupq_n_u8(sum.clamp.low), vdupq_n_u8(sum.clamp.high));
        let mut at = 0;
        while at + 16 <= bytes {
            let (a, b) = (floats(vld1q_u8(a.add(at))), floats(vld1q_u8(b.add(at))));
            let mut sums = [zero; 4];
            for n in 0..4 {
                // Each operation is rounded on its own: not `vfmaq_f32`.
                let (a, b) = (vmulq_f32(vsubq_f32(a[n], za), ma), vmulq_f32(vsubq_f32(b[n], zb), mb));
                sums[n] = vaddq_f32(vaddq_f32(a, b), zero);
            }
            vst1q_u8(to.add(at), vmaxq_u8(vminq_u8(rounded(sums), high), low));
            at += 16;
        }
        for at in at..bytes {
            *to.add(at) = sum.apply(*a.add(at), *b.add(at));
        }
    }
}

pub(super) fn mul(step: Mul) -> Kernel {
    if packs(&step.output) { Box::new(Packed(step)) } else { portable::packed(step) }
}

impl Run for Packed<Mul> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let Mul { a, b, output, .. } = &self.0;
        let arena = memory.arena.as_mut_ptr();
        each_run([a, b, output], rows, |[a, b, to], bytes| {
            // SAFETY: the module's contract: each run lies in its view.
            unsafe { mul_bytes(arena.add(a), arena.add(b), arena.add(to), bytes, &self.0) };
        });
    }
}

/// # Safety
/// `bytes` are readable at `a` and `b`, and writable at `to`.
unsafe fn mul_bytes(a: *const u8, b: *const u8, to: *mut u8, bytes: usize, step: &Mul) {
    // SAFETY: the caller's contract.
    unsafe {
        let (za, zb) = (vdup_n_u8(step.a.zero_point), vdup_n_u8(step.b.zero_point));
        let bounds = Bounds::new(&step.requant);
        // A difference of bytes fits i16, whose bits wrap to it.
        let less = |bytes: uint8x8_t, zero_point| vreinterpretq_s16_u16(vsubl_u8(bytes, zero_point));
        let mut at = 0;
        while at + 16 <= bytes {
            let (a, b) = (vld1q_u8(a.add(at)), vld1q_u8(b.add(at)));
            let low = (less(vget_low_u8(a), za), less(vget_low_u8(b), zb));
            let high = (less(vget_high_u8(a), za), less(vget_high_u8(b), zb));
            let products = [
                vmull_s16(vget_low_s16(low.0), vget_low_s16(low.1)),
                vmull_high_s16(low.0, low.1),
                vmull_s16(vget_low_s16(high.0), vget_low_s16(high.1)),
                vmull_high_s16(high.0, high.1),
            ];
            vst1q_u8(to.add(at), bounds.requantize_shifted(products, step.multiplier, step.shift));
            at += 16;
        }
        for at in at..bytes {
            let (a, b) = (i32::from(*a.add(at)), i32::from(*b.add(at)));
            let product = (a - i32::from(step.a.zero_point)) * (b - i32::from(step.b.zero_point));
            *to.add(at) = step.requant.apply_f32(product as f32 * step.multiplier + step.shift);
        }
    }
}

/// # Safety
/// `bytes` are readable at `from` and writable at `to`, which may be the same.
pub(in crate::arm) unsafe fn look_up(from: *const u8, to: *mut u8, bytes: usize, table: &[u8; 256]) {
    // SAFETY: the caller's contract; four times 64 bytes of 256.
    unsafe {
        let quarter = |n: usize| {
            let from = table.as_ptr().add(n * 64);
            let [a, b, c, d] = [from, from.add(16), from.add(32), from.add(48)];
            uint8x16x4_t(vld1q_u8(a), vld1q_u8(b), vld1q_u8(c), vld1q_u8(d))
        };
        let quarters = [quarter(0), quarter(1), quarter(2), quarter(3)];
        let mut at = 0;
        while at + 16 <= bytes {
            let mut index = vld1q_u8(from.add(at));
            // An index beyond a quarter finds nothing in it and leaves what was found.
            let mut found = vqtbl4q_u8(quarters[0], index);
            for quarter in &quarters[1..] {
                index = vsubq_u8(index, vdupq_n_u8(64));
                found = vqtbx4q_u8(found, *quarter, index);
            }
            vst1q_u8(to.add(at), found);
            at += 16;
        }
        for at in at..bytes {
            *to.add(at) = table[usize::from(*from.add(at))];
        }
    }
}
