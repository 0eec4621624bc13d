//! Tiles of convolutions: two pixels × 16 channels.

use super::{FMA, Rounding, Work, tractd_v7_tile};
use crate::arm::CHANNELS;
use crate::arm::conv::{Tile, Tiles};

pub(super) struct ArmV7;

impl Tiles for ArmV7 {
    const LONG: usize = 8;
    const SHORT: usize = 4;
    const PIXELS: usize = 2;
    const GRAIN: usize = 2;
    const SIGNED: bool = true;
    /// Two products of i8 then fit i16.
    const LEAST: i16 = -127;

    /// `[four][pair][channel][2]`
    fn place(c: usize, k: usize) -> usize {
        k / 4 * 64 + k % 4 / 2 * 32 + c * 2 + k % 2
    }

    unsafe fn pixels<const M: usize>(tile: &Tile<'_>, reads: &[*const u8; M], writes: &[*mut u8; M]) {
        let mut parts = [[0; CHANNELS]; 2];
        let whole = tile.stored == CHANNELS;
        let [a, b] = &mut parts;
        let to = if whole { [writes[0], writes[M - 1]] } else { [a.as_mut_ptr(), b.as_mut_ptr()] };
        let work = Work {
            reads: [reads[0], reads[M - 1]],
            writes: to,
            offsets: tile.offsets.as_ptr().cast(),
            long: tile.long,
            short: tile.offsets.len() - tile.long,
            weights: tile.weights,
            bias: tile.bias,
            multipliers: tile.multipliers,
            rounding: Rounding::new(tile.requant),
            shifts: if tile.fused { tile.shifts } else { std::ptr::null() },
            bounds: [tile.requant.clamp.low, tile.requant.clamp.high],
            fma: *FMA,
        };
        // SAFETY: the trait's contract; the tier was detected.
        unsafe {
            tractd_v7_tile(&work);
            if !whole {
                std::ptr::copy_nonoverlapping(parts[0].as_ptr(), writes[0], tile.stored);
                std::ptr::copy_nonoverlapping(parts[1].as_ptr(), writes[M - 1], tile.stored);
            }
        }
    }
}
