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
    /// Whether packing alone does it: a zero point of 0 and no bounds but those of u8.
    plain: bool,
}

impl Bounds {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(requant: &Requant) -> Bounds {
        Bounds {
            zero_point: _mm512_set1_epi16(i16::from(requant.zero_point)),
            low: _mm512_set1_epi8(requant.clamp.low as i8),
            high: _mm512_set1_epi8(requant.clamp.high as i8),
            plain: requant.zero_point == 0 && requant.clamp == Clamp::default(),
        }
    }

    /// Four vectors of whole f32 results, as i32, to 64 bytes: byte `4 * q + j` of 128-bit lane `l` is element `4 * l + j` of
    /// vector `q`. Packing saturates, so the order of adding and clamping does not show.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn pack<const PLAIN: bool>(&self, rounded: [__m512i; 4]) -> __m512i {
        if PLAIN {
            let low = _mm512_packs_epi32(rounded[0], rounded[1]);
            return _mm512_packus_epi16(low, _mm512_packs_epi32(rounded[2], rounded[3]));
        }
        let low = _mm512_adds_epi16(_mm512_packs_epi32(rounded[0], rounded[1]), self.zero_point);
        let high = _mm512_adds_epi16(_mm512_packs_epi32(rounded[2], rounded[3]), self.zero_point);
        let bytes = _mm512_packus_epi16(low, high);
        _mm512_max_epu8(_mm512_min_epu8(bytes, self.high), self.low)
    }
}

/// `round_ties_even(acc * multiplier)`, which the step's check keeps inside i32.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(acc: __m512i, multiplier: __m512) -> __m512i {
    _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), multiplier))
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
