//! AVX-512 with VNNI: one instruction multiplies and adds four u8 by i8 in each of 16 lanes.
//!
//! # Safety of this module
//! Its kernels exist only behind [`KERNELS`], which is handed out after [`is_available`]. Lowered steps hold views that lie in the
//! arena with [`crate::layout::SLACK`] readable bytes behind the last; stores are masked to a pixel's stride.

mod conv;
mod depthwise;
mod elementwise;
mod external;
mod pool;

use std::arch::asm;
use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use crate::kernel::Kernels;
use crate::step::Requant;
use crate::{Clamp, portable};

pub(super) static KERNELS: Kernels = Kernels {
    conv: conv::pack,
    depthwise: depthwise::pack,
    add: elementwise::add,
    mul: elementwise::mul,
    table: elementwise::table,
    max_pool: pool::max_pool,
    average_pool: pool::average_pool,
    quantize: external::quantize,
    dequantize: external::dequantize,
    ..portable::KERNELS
};

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
}

/// The first `bytes` of 64.
#[inline(always)]
fn mask(bytes: usize) -> u64 {
    if bytes >= 64 { u64::MAX } else { (1 << bytes) - 1 }
}

/// Stores the bytes in `keep`. A masked store takes several times as long as a whole one on some processors.
///
/// # Safety
/// The bytes in `keep` are writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store(to: *mut u8, keep: u64, bytes: __m512i) {
    // SAFETY: the caller's contract.
    unsafe {
        if keep == u64::MAX {
            _mm512_storeu_si512(to.cast(), bytes);
        } else {
            _mm512_mask_storeu_epi8(to.cast(), keep, bytes);
        }
    }
}

/// Zero point and bounds, spread over vectors.
#[derive(Clone, Copy)]
struct Bounds {
    zero_point: __m512i,
    low: __m512i,
    high: __m512i,
}

impl Bounds {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(requant: &Requant) -> Bounds {
        Bounds {
            zero_point: _mm512_set1_epi16(i16::from(requant.zero_point)),
            low: _mm512_set1_epi8(requant.clamp.low as i8),
            high: _mm512_set1_epi8(requant.clamp.high as i8),
        }
    }

    /// As [`packed`], between the bounds. Packing saturates, so the order of adding and clamping does not show.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn pack(&self, rounded: [__m512i; 4]) -> __m512i {
        let bytes = packed(rounded, self.zero_point);
        _mm512_max_epu8(_mm512_min_epu8(bytes, self.high), self.low)
    }
}

/// Four vectors of whole f32 results, as i32, and the zero point, as i16, to 64 bytes: byte `4 * q + j` of 128-bit lane `l` is
/// element `4 * l + j` of vector `q`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn packed(rounded: [__m512i; 4], zero_point: __m512i) -> __m512i {
    let low = _mm512_adds_epi16(_mm512_packs_epi32(rounded[0], rounded[1]), zero_point);
    let high = _mm512_adds_epi16(_mm512_packs_epi32(rounded[2], rounded[3]), zero_point);
    _mm512_packus_epi16(low, high)
}

/// How the sums of a convolution become bytes.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// By [`crate::fused`], and packing does the rest.
    Fused,
    /// The same, between bounds.
    Bounded,
    /// By [`Requant::apply`].
    Plain,
}

impl How {
    fn new(requant: &Requant, fused: bool) -> How {
        match fused {
            true if requant.clamp == Clamp::default() => How::Fused,
            true => How::Bounded,
            false => How::Plain,
        }
    }
}

const FUSED: u8 = How::Fused as u8;
const BOUNDED: u8 = How::Bounded as u8;
const PLAIN: u8 = How::Plain as u8;

/// Zero point and bounds of sums that become bytes, spread over vectors.
#[derive(Clone, Copy)]
struct Finish {
    low: __m512i,
    high: __m512i,
    /// The bounds less the zero point, and the zero point.
    range: [__m512; 2],
    zero_point: __m512i,
}

impl Finish {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(requant: &Requant) -> Finish {
        let Requant { zero_point, clamp } = *requant;
        let bound = |bound: u8| _mm512_set1_ps(f32::from(bound) - f32::from(zero_point));
        Finish {
            low: _mm512_set1_epi8(clamp.low as i8),
            high: _mm512_set1_epi8(clamp.high as i8),
            range: [bound(clamp.low), bound(clamp.high)],
            zero_point: _mm512_set1_epi32(i32::from(zero_point)),
        }
    }

    /// The result of each sum, as i16 in its low half.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn words<const HOW: u8>(&self, sums: __m512i, multiplier: __m512, shift: __m512) -> __m512i {
        if HOW != PLAIN {
            return _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(sums), multiplier, shift));
        }
        let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), multiplier);
        let bounded = _mm512_min_ps(_mm512_max_ps(product, self.range[0]), self.range[1]);
        _mm512_add_epi32(_mm512_cvtps_epi32(bounded), self.zero_point)
    }

    /// Four vectors of such words to 64 bytes: in each 128-bit lane those of vectors 0 and 2 in turn, then those of 1 and 3.
    /// `odd` is [`odd_bytes`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn bytes<const HOW: u8>(&self, words: [__m512i; 4], odd: __mmask64) -> __m512i {
        let low = _mm512_packus_epi16(words[0], words[1]);
        let high = _mm512_packus_epi16(words[2], words[3]);
        // Every other byte is a high half's; of some results that are bounded already it is 0.
        let bytes = _mm512_mask_blend_epi8(odd, low, _mm512_slli_epi16::<8>(high));
        if HOW != BOUNDED {
            return bytes;
        }
        _mm512_max_epu8(_mm512_min_epu8(bytes, self.high), self.low)
    }
}

/// Puts the bytes of a 128-bit lane, as [`Finish::bytes`] leaves them, into the order of vectors 0 to 3.
#[inline]
#[target_feature(enable = "avx512f")]
fn natural() -> __m512i {
    _mm512_set4_epi32(0x0f0d_0b09, 0x0705_0301, 0x0e0c_0a08, 0x0604_0200)
}

/// In a register from here on, and of unknown value: the compiler neither loads a constant again and again, where loads are
/// what there is least of, nor takes a permutation to pieces.
#[inline]
#[target_feature(enable = "avx512f")]
fn held(mut value: __m512i) -> __m512i {
    // SAFETY: the assembly is empty.
    unsafe { asm!("/* {0} */", inout(zmm_reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}

/// Every other byte, in a register as [`held`] says.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn odd_bytes() -> __mmask64 {
    let mut odd = 0xaaaa_aaaa_aaaa_aaaa;
    // SAFETY: the assembly is empty.
    unsafe { asm!("/* {0} */", inout(kreg) odd, options(pure, nomem, nostack, preserves_flags)) };
    odd
}

/// Computed here, and not only where it is used.
#[inline]
#[target_feature(enable = "avx512f")]
fn pinned(mut value: __m512i) -> __m512i {
    // SAFETY: the assembly is empty.
    unsafe { asm!("/* {0} */", inout(zmm_reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `round_ties_even(acc * multiplier + shift)`, which the step's check keeps inside i32. Two operations: not contracted.
#[inline]
#[target_feature(enable = "avx512f")]
fn shifted(acc: __m512i, multiplier: __m512, shift: __m512) -> __m512i {
    _mm512_cvtps_epi32(_mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), multiplier), shift))
}

/// The indices that undo what packing does to the order within 128-bit lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn unpacked() -> __m512i {
    _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
}
