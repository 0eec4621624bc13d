//! AArch64 tiers: one set of kernels, generic over how bytes are multiplied ([`tile::Product`]).
//!
//! NEON is part of every AArch64, so its intrinsics need no detection. The dot products and the matrix extension are inline
//! assembly, as their intrinsics are not stable; their tables are handed out only where they were detected.

pub(super) mod depthwise;
mod dot;
pub(super) mod external;
mod i8mm;
mod neon;
mod pool;
pub(super) mod rows;
mod strips;
mod tile;

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use super::{CHANNELS, conv};
use crate::Tier;
use crate::kernel::{Kernel, Kernels};
use crate::portable;
use crate::step::{Depthwise, Requant};

static NEON: Kernels = table::<neon::Neon>(super::depthwise::pack);
static NEON_DOT: Kernels = table::<dot::Dot>(strips::pack::<dot::Dot>);
static NEON_I8MM: Kernels = table::<i8mm::I8mm>(strips::pack::<i8mm::I8mm>);

/// The kernels of a tier, where this machine can run them.
pub(crate) fn kernels(tier: Tier) -> Option<&'static Kernels> {
    match tier {
        Tier::NeonI8mm => is_aarch64_feature_detected!("i8mm").then_some(&NEON_I8MM),
        Tier::NeonDot => is_aarch64_feature_detected!("dotprod").then_some(&NEON_DOT),
        Tier::Neon => Some(&NEON),
        _ => None,
    }
}

const fn table<T: conv::Tiles>(depthwise: fn(Depthwise) -> Kernel) -> Kernels {
    Kernels {
        conv: |conv| conv::pack::<T>(conv.whole()),
        depthwise,
        max_pool: pool::max_pool,
        average_pool: pool::average_pool,
        add: super::rows::add,
        mul: rows::mul,
        table: super::rows::table,
        quantize: super::external::quantize,
        dequantize: external::dequantize,
        ..portable::KERNELS
    }
}

/// Sums of [`CHANNELS`] channels.
type Sums = [int32x4_t; 4];

/// Zero point and bounds of a requantisation.
#[derive(Clone, Copy)]
struct Bounds {
    zero_point: int16x8_t,
    low: uint8x16_t,
    high: uint8x16_t,
}

impl Bounds {
    #[inline(always)]
    fn new(requant: &Requant) -> Bounds {
        let Requant { zero_point, clamp } = *requant;
        // SAFETY: NEON is part of every AArch64.
        unsafe {
            Bounds {
                zero_point: vdupq_n_s16(i16::from(zero_point)),
                low: vdupq_n_u8(clamp.low),
                high: vdupq_n_u8(clamp.high),
            }
        }
    }

    /// As [`Requant::apply`]: conversions and narrowings saturate, so no product can leave their range.
    #[inline(always)]
    fn requantize(&self, sums: Sums, multipliers: [float32x4_t; 4]) -> uint8x16_t {
        let mut scaled = multipliers;
        for n in 0..4 {
            // SAFETY: NEON is there.
            scaled[n] = unsafe { vmulq_f32(vcvtq_f32_s32(sums[n]), multipliers[n]) };
        }
        self.round(scaled)
    }

    /// As [`crate::fused`] does. Narrowing saturates, and results fit what it narrows.
    #[inline(always)]
    fn requantize_fused(&self, sums: Sums, factors: &Factors) -> uint8x16_t {
        // SAFETY: NEON is there.
        unsafe {
            let mut words = [vdupq_n_s16(0); 4];
            for n in 0..4 {
                let sums = vreinterpretq_f32_s32(sums[n]);
                let result = vfmaq_f32(factors.shifts[n], sums, factors.multipliers[n]);
                words[n] = vreinterpretq_s16_f32(result);
            }
            // The low halves.
            let (low, high) = (vuzp1q_s16(words[0], words[1]), vuzp1q_s16(words[2], words[3]));
            let bytes = vqmovun_high_s16(vqmovun_s16(low), high);
            vmaxq_u8(vminq_u8(bytes, self.high), self.low)
        }
    }

    /// As [`requantize`](Self::requantize), with `shift` added before rounding. Two operations: not contracted.
    #[inline(always)]
    fn requantize_shifted(&self, sums: Sums, multiplier: f32, shift: f32) -> uint8x16_t {
        // SAFETY: NEON is there.
        let scaled = sums.map(|sums| unsafe {
            vaddq_f32(vmulq_f32(vcvtq_f32_s32(sums), vdupq_n_f32(multiplier)), vdupq_n_f32(shift))
        });
        self.round(scaled)
    }

    #[inline(always)]
    fn round(&self, scaled: [float32x4_t; 4]) -> uint8x16_t {
        // SAFETY: NEON is there.
        unsafe {
            let whole = scaled.map(|scaled| vcvtnq_s32_f32(scaled));
            let low = vqmovn_high_s32(vqmovn_s32(whole[0]), whole[1]);
            let high = vqmovn_high_s32(vqmovn_s32(whole[2]), whole[3]);
            let (low, high) = (vqaddq_s16(low, self.zero_point), vqaddq_s16(high, self.zero_point));
            let bytes = vqmovun_high_s16(vqmovun_s16(low), high);
            vmaxq_u8(vminq_u8(bytes, self.high), self.low)
        }
    }
}

/// Those of [`CHANNELS`] channels.
#[derive(Clone, Copy)]
struct Factors {
    multipliers: [float32x4_t; 4],
    /// Used where requantisation is fused.
    shifts: [float32x4_t; 4],
    fused: bool,
}

impl Factors {
    /// # Safety
    /// Sixteen multipliers and shifts are readable.
    #[inline(always)]
    unsafe fn new(multipliers: *const f32, shifts: *const f32, fused: bool) -> Factors {
        // SAFETY: the caller's contract.
        unsafe {
            let load = |from: *const f32| {
                [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))]
            };
            Factors { multipliers: load(multipliers), shifts: load(shifts), fused }
        }
    }

    /// The results of sums.
    #[inline(always)]
    fn results(&self, sums: Sums, bounds: &Bounds) -> uint8x16_t {
        match self.fused {
            true => bounds.requantize_fused(sums, self),
            false => bounds.requantize(sums, self.multipliers),
        }
    }
}

/// # Safety
/// Sixteen sums are readable.
#[inline(always)]
unsafe fn load_sums(from: *const i32) -> Sums {
    // SAFETY: the caller's contract.
    unsafe { [vld1q_s32(from), vld1q_s32(from.add(4)), vld1q_s32(from.add(8)), vld1q_s32(from.add(12))] }
}

/// Stores the first `bytes` of 16.
///
/// # Safety
/// `bytes` are writable at `to`.
#[inline(always)]
unsafe fn store_16(to: *mut u8, bytes: usize, value: uint8x16_t) {
    // SAFETY: the caller's contract; the vector is 16 bytes of its own.
    unsafe {
        if bytes >= 16 {
            vst1q_u8(to, value);
        } else {
            std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to, bytes);
        }
    }
}

/// Sixteen bytes to floats.
#[inline(always)]
fn floats(bytes: uint8x16_t) -> [float32x4_t; 4] {
    // SAFETY: NEON is there.
    unsafe {
        let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
        [
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
            vcvtq_f32_u32(vmovl_high_u16(low)),
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
            vcvtq_f32_u32(vmovl_high_u16(high)),
        ]
    }
}

/// Sixteen floats, which are rounded and then saturate, to bytes.
#[inline(always)]
fn rounded(values: [float32x4_t; 4]) -> uint8x16_t {
    // SAFETY: NEON is there.
    unsafe {
        let words = |a, b| vqmovn_high_u32(vqmovn_u32(vcvtnq_u32_f32(a)), vcvtnq_u32_f32(b));
        vqmovn_high_u16(vqmovn_u16(words(values[0], values[1])), words(values[2], values[3]))
    }
}
