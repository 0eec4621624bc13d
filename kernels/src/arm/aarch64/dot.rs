//! Products of four i8 at once: `SDOT`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Sums;
use super::tile::{self, Product, load_4, load_16};
use crate::arm::conv::{Tile, Tiles};

pub(super) struct Dot;

impl Tiles for Dot {
    const LONG: usize = 16;
    const SHORT: usize = 4;
    const PIXELS: usize = 5;
    const GRAIN: usize = 1;
    const SIGNED: bool = true;
    const LEAST: i16 = -128;

    /// `[four][channel][4]`
    fn place(c: usize, k: usize) -> usize {
        k / 4 * 64 + c * 4 + k % 4
    }

    #[inline(always)]
    unsafe fn pixels<const M: usize>(tile: &Tile<'_>, reads: &[*const u8; M], writes: &[*mut u8; M]) {
        // SAFETY: passed on.
        unsafe { tile::pixels::<Dot, M>(tile, reads, writes) }
    }
}

impl Product for Dot {
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
                x[m] = load_16::<Dot>(reads[m].add(offset));
            }
            four::<M, 0>(sums, &x, weights);
            four::<M, 1>(sums, &x, weights.add(64));
            four::<M, 2>(sums, &x, weights.add(128));
            four::<M, 3>(sums, &x, weights.add(192));
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
                x[m] = load_4::<Dot>(reads[m].add(offset));
            }
            four::<M, 0>(sums, &x, weights);
        }
    }
}

/// Four input bytes, the `FOUR`-th, by 16 channels.
///
/// # Safety
/// The tier was detected; 64 weights are readable.
#[inline(always)]
unsafe fn four<const M: usize, const FOUR: usize>(
    sums: &mut [Sums; M],
    x: &[int8x16_t; M],
    weights: *const i8,
) {
    for n in 0..4 {
        // SAFETY: the caller's contract.
        unsafe {
            let w = vld1q_s8(weights.add(n * 16));
            for m in 0..M {
                sums[m][n] = sdot::<FOUR>(sums[m][n], w, x[m]);
            }
        }
    }
}

/// `sum + Σ w·x` of four i8 in each lane, where `x` is the same four for all.
///
/// # Safety
/// The tier was detected.
#[inline(always)]
unsafe fn sdot<const FOUR: usize>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    macro_rules! sdot {
        ($four:literal) => {
            // SAFETY: registers only.
            unsafe {
                asm!(
                    ".arch_extension dotprod",
                    concat!("sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[", $four, "]"),
                    sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags)
                )
            }
        };
    }
    match FOUR {
        0 => sdot!("0"),
        1 => sdot!("1"),
        2 => sdot!("2"),
        _ => sdot!("3"),
    }
    sum
}
