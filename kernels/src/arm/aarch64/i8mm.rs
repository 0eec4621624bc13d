//! Products of two pixels by two channels of eight bytes at once: `USMMLA`, which takes u8 as they are.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Sums;
use super::tile::{self, Product};
use crate::arm::conv::{Tile, Tiles};

pub(super) struct I8mm;

impl Tiles for I8mm {
    const LONG: usize = 16;
    const SHORT: usize = 8;
    const PIXELS: usize = 4;
    const GRAIN: usize = 2;
    const SIGNED: bool = false;
    const LEAST: i16 = -128;

    /// `[eight][channel][8]`
    fn place(c: usize, k: usize) -> usize {
        k / 8 * 128 + c * 8 + k % 8
    }

    #[inline(always)]
    unsafe fn pixels<const M: usize>(tile: &Tile<'_>, reads: &[*const u8; M], writes: &[*mut u8; M]) {
        // SAFETY: passed on.
        unsafe { tile::pixels::<I8mm, M>(tile, reads, writes) }
    }
}

/// While they are summed, pixels `2p` and `2p + 1` share their eight vectors: each holds two channels of both.
impl Product for I8mm {
    #[inline(always)]
    fn start<const M: usize>(bias: Sums) -> [Sums; M] {
        let mut sums = [bias; M];
        for m in 0..M {
            for n in 0..4 {
                // SAFETY: NEON is there.
                unsafe {
                    let two = vreinterpretq_s64_s32(bias[m % 2 * 2 + n / 2]);
                    let two = if n % 2 == 0 { vdupq_laneq_s64::<0>(two) } else { vdupq_laneq_s64::<1>(two) };
                    sums[m][n] = vreinterpretq_s32_s64(two);
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn long<const M: usize>(
        sums: &mut [Sums; M],
        reads: &[*const u8; M],
        offset: usize,
        weights: *const i8,
    ) {
        // SAFETY: the trait's contract.
        unsafe {
            Self::short(sums, reads, offset, weights);
            Self::short(sums, reads, offset + 8, weights.add(128));
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
            let mut x = [vdupq_n_u8(0); M];
            for m in (0..M - 1).step_by(2) {
                x[m] = vcombine_u8(vld1_u8(reads[m].add(offset)), vld1_u8(reads[m + 1].add(offset)));
            }
            for n in 0..8 {
                let w = vld1q_s8(weights.add(n * 16));
                for m in (0..M - 1).step_by(2) {
                    let sum = &mut sums[m + n / 4][n % 4];
                    *sum = usmmla(*sum, x[m], w);
                }
            }
        }
    }

    #[inline(always)]
    fn finish<const M: usize>(sums: [Sums; M]) -> [Sums; M] {
        let mut rows = sums;
        for m in (0..M - 1).step_by(2) {
            for n in 0..4 {
                let pair = &sums[m + n / 2];
                let (a, b) = (pair[n % 2 * 2], pair[n % 2 * 2 + 1]);
                // SAFETY: NEON is there.
                unsafe {
                    let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
                    rows[m][n] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
                    rows[m + 1][n] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
                }
            }
        }
        rows
    }
}

/// `sum + x·wᵀ` for two rows of eight u8 and two of eight i8.
///
/// # Safety
/// The tier was detected.
#[inline(always)]
unsafe fn usmmla(mut sum: int32x4_t, x: uint8x16_t, w: int8x16_t) -> int32x4_t {
    // SAFETY: registers only.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "usmmla {sum:v}.4s, {x:v}.16b, {w:v}.16b",
            sum = inout(vreg) sum, x = in(vreg) x, w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
