//! Tiles of convolutions: a few pixels × 16 channels.

use std::arch::aarch64::*;

use super::{Bounds, Factors, Sums, load_sums, store_16};
use crate::arm::CHANNELS;
use crate::arm::conv::{Tile, Tiles};

/// How a tier multiplies activations by the weights of 16 channels.
pub(super) trait Product: Tiles {
    /// What sums start from.
    #[inline(always)]
    fn start<const M: usize>(bias: Sums) -> [Sums; M] {
        [bias; M]
    }

    /// Adds the products of a long chunk.
    ///
    /// # Safety
    /// The tier was detected; [`Tiles::LONG`] bytes are readable at `offset` from each pixel, and 16 times as many weights.
    unsafe fn long<const M: usize>(
        sums: &mut [Sums; M],
        reads: &[*const u8; M],
        offset: usize,
        weights: *const i8,
    );

    /// Adds the products of a short chunk.
    ///
    /// # Safety
    /// As for [`Product::long`], with [`Tiles::SHORT`] bytes.
    unsafe fn short<const M: usize>(
        sums: &mut [Sums; M],
        reads: &[*const u8; M],
        offset: usize,
        weights: *const i8,
    );

    /// Sums in the order of pixels and channels.
    #[inline(always)]
    fn finish<const M: usize>(sums: [Sums; M]) -> [Sums; M] {
        sums
    }
}

/// # Safety
/// As for [`Tiles::pixels`].
#[inline(always)]
pub(super) unsafe fn pixels<P: Product, const M: usize>(
    tile: &Tile<'_>,
    reads: &[*const u8; M],
    writes: &[*mut u8; M],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums: [Sums; M] = P::start(load_sums(tile.bias));
        let mut weights = tile.weights;
        let (long, short) = tile.offsets.split_at(tile.long);
        for &offset in long {
            P::long(&mut sums, reads, offset as usize, weights);
            weights = weights.add(CHANNELS * P::LONG);
        }
        for &offset in short {
            P::short(&mut sums, reads, offset as usize, weights);
            weights = weights.add(CHANNELS * P::SHORT);
        }
        let sums = P::finish(sums);
        let bounds = Bounds::new(tile.requant);
        let factors = Factors::new(tile.multipliers, tile.shifts, tile.fused);
        for m in 0..M {
            store_16(writes[m], tile.stored, factors.results(sums[m], &bounds));
        }
    }
}

/// The same four bytes, less 128 where a tier reads them so, four times.
///
/// # Safety
/// Four bytes are readable.
#[inline(always)]
pub(super) unsafe fn load_4<P: Product>(from: *const u8) -> int8x16_t {
    // SAFETY: the caller's contract.
    let bytes = unsafe { vreinterpretq_u8_u32(vdupq_n_u32(from.cast::<u32>().read_unaligned())) };
    signed::<P>(bytes)
}

/// Sixteen bytes, less 128 where a tier reads them so.
///
/// # Safety
/// Sixteen bytes are readable.
#[inline(always)]
pub(super) unsafe fn load_16<P: Product>(from: *const u8) -> int8x16_t {
    // SAFETY: the caller's contract.
    signed::<P>(unsafe { vld1q_u8(from) })
}

#[inline(always)]
fn signed<P: Product>(bytes: uint8x16_t) -> int8x16_t {
    // SAFETY: NEON is there.
    unsafe { vreinterpretq_s8_u8(if P::SIGNED { veorq_u8(bytes, vdupq_n_u8(0x80)) } else { bytes }) }
}
