//! Products for any AArch64: two of i8 fit i16 wherever no weight is −128, and are then added to i32 in pairs.

use std::arch::aarch64::*;

use super::Sums;
use super::tile::{self, Product, load_4, load_16};
use crate::arm::conv::{Tile, Tiles};

pub(super) struct Neon;

impl Tiles for Neon {
    const LONG: usize = 16;
    const SHORT: usize = 4;
    const PIXELS: usize = 3;
    const GRAIN: usize = 1;
    const SIGNED: bool = true;
    const LEAST: i16 = -127;

    /// `[four][pair][channel][2]`
    fn place(c: usize, k: usize) -> usize {
        k / 4 * 64 + k % 4 / 2 * 32 + c * 2 + k % 2
    }

    #[inline(always)]
    unsafe fn pixels<const M: usize>(tile: &Tile<'_>, reads: &[*const u8; M], writes: &[*mut u8; M]) {
        // SAFETY: passed on.
        unsafe { tile::pixels::<Neon, M>(tile, reads, writes) }
    }
}

impl Product for Neon {
    #[inline(always)]
    unsafe fn long<const M: usize>(
        sums: &mut [Sums; M],
        reads: &[*const u8; M],
        offset: usize,
        weights: *const i8,
    ) {
        // SAFETY: the trait's contract.
        unsafe {
            let mut x = [vdupq_n_s8(0); M];
            for m in 0..M {
                x[m] = load_16::<Neon>(reads[m].add(offset));
            }
            four::<M, 0, 1>(sums, &x, weights);
            four::<M, 2, 3>(sums, &x, weights.add(64));
            four::<M, 4, 5>(sums, &x, weights.add(128));
            four::<M, 6, 7>(sums, &x, weights.add(192));
        }
    }

    #[inline(always)]
    unsafe fn short<const M: usize>(
        sums: &mut [Sums; M],
        reads: &[*const u8; M],
        offset: usize,
        weights: *const i8,
    ) {
        // SAFETY: the trait's contract.
        unsafe {
            let mut x = [vdupq_n_s8(0); M];
            for m in 0..M {
                x[m] = load_4::<Neon>(reads[m].add(offset));
            }
            four::<M, 0, 1>(sums, &x, weights);
        }
    }
}

/// Four input bytes, of which `A` and `B` name the pairs, by 16 channels.
///
/// # Safety
/// 64 weights are readable.
#[inline(always)]
unsafe fn four<const M: usize, const A: i32, const B: i32>(
    sums: &mut [Sums; M],
    x: &[int8x16_t; M],
    weights: *const i8,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let a = [vld1q_s8(weights), vld1q_s8(weights.add(16))];
        let b = [vld1q_s8(weights.add(32)), vld1q_s8(weights.add(48))];
        for m in 0..M {
            let words = vreinterpretq_s16_s8(x[m]);
            let first = vreinterpretq_s8_s16(vdupq_laneq_s16::<A>(words));
            let second = vreinterpretq_s8_s16(vdupq_laneq_s16::<B>(words));
            for half in 0..2 {
                let low = vmull_s8(vget_low_s8(first), vget_low_s8(a[half]));
                let low = vmlal_s8(low, vget_low_s8(second), vget_low_s8(b[half]));
                let high = vmlal_high_s8(vmull_high_s8(first, a[half]), second, b[half]);
                sums[m][2 * half] = vpadalq_s16(sums[m][2 * half], low);
                sums[m][2 * half + 1] = vpadalq_s16(sums[m][2 * half + 1], high);
            }
        }
    }
}
