//! 128-bit vectors, for processors without any AVX.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use super::narrow::{Bounds, Factors, Vector};
use crate::fused::BITS;

#[derive(Clone, Copy)]
pub(super) struct Sse41(__m128i);

impl Vector for Sse41 {
    const LANES: usize = 4;
    const PIXELS: usize = 2;
    const EXACT: bool = false;
    const FMA: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the trait's contract, as in all methods below.
        Self(unsafe { _mm_loadu_si128(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the trait's contract.
        unsafe { _mm_storeu_si128(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm_set1_epi32(from.cast::<i32>().read_unaligned()) })
    }

    #[inline(always)]
    unsafe fn dot(self, x: Self, w: Self) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            let pairs = _mm_maddubs_epi16(x.0, w.0);
            Self(_mm_add_epi32(self.0, _mm_madd_epi16(pairs, _mm_set1_epi16(1))))
        }
    }

    #[inline(always)]
    unsafe fn split(self) -> (Self, Self) {
        // SAFETY: the trait's contract.
        unsafe { (Self(_mm_and_si128(self.0, _mm_set1_epi16(0xff))), Self(_mm_srli_epi16::<8>(self.0))) }
    }

    #[inline(always)]
    unsafe fn dot_words(self, x: Self, w: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm_add_epi32(self.0, _mm_madd_epi16(x.0, w.0)) })
    }

    #[inline(always)]
    unsafe fn rounded(self, multipliers: *const f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(_mm_cvtps_epi32(_mm_mul_ps(_mm_cvtepi32_ps(self.0), _mm_loadu_ps(multipliers)))) }
    }

    /// Without a fused operation: in f64, where products are exact, and their sums have the results in their low bits.
    #[inline(always)]
    unsafe fn fused(self, factors: Factors) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            // The bits of a whole number below those of 2^52 are an f64 that is so much greater.
            let above = _mm_set1_epi32(0x4330_0000);
            let below = _mm_set1_pd((1u64 << 52) as f64 + f64::from(BITS));
            let low = _mm_sub_pd(_mm_castsi128_pd(_mm_unpacklo_epi32(self.0, above)), below);
            let high = _mm_sub_pd(_mm_castsi128_pd(_mm_unpackhi_epi32(self.0, above)), below);
            let low = _mm_mul_pd(low, _mm_loadu_pd(factors.exact));
            let high = _mm_mul_pd(high, _mm_loadu_pd(factors.exact.add(2)));
            let low = _mm_add_pd(low, _mm_loadu_pd(factors.exact.add(4)));
            let high = _mm_add_pd(high, _mm_loadu_pd(factors.exact.add(6)));
            let (low, high) = (_mm_castpd_ps(low), _mm_castpd_ps(high));
            Self(_mm_castps_si128(_mm_shuffle_ps::<0x88>(low, high)))
        }
    }

    #[inline(always)]
    unsafe fn pack(whole: [Self; 4], bounds: &Bounds) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            let zero_point = _mm_set1_epi16(bounds.zero_point);
            let low = _mm_adds_epi16(_mm_packs_epi32(whole[0].0, whole[1].0), zero_point);
            let high = _mm_adds_epi16(_mm_packs_epi32(whole[2].0, whole[3].0), zero_point);
            let bytes = _mm_min_epu8(_mm_packus_epi16(low, high), _mm_set1_epi8(bounds.high as i8));
            Self(_mm_max_epu8(bytes, _mm_set1_epi8(bounds.low as i8)))
        }
    }

    #[inline(always)]
    unsafe fn pack_16(whole: &[Self], bounds: &Bounds) -> __m128i {
        // SAFETY: the trait's contract.
        unsafe { Self::pack([whole[0], whole[1], whole[2], whole[3]], bounds).0 }
    }

    #[inline(always)]
    unsafe fn interleave(rows: [Self; 4]) -> [Self; 4] {
        // Not `map`: a function between would not be compiled for the tier's features.
        let (a, b, c, d) = (rows[0].0, rows[1].0, rows[2].0, rows[3].0);
        // SAFETY: the trait's contract.
        unsafe {
            let (ab_low, ab_high) = (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b));
            let (cd_low, cd_high) = (_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d));
            [
                Self(_mm_unpacklo_epi16(ab_low, cd_low)),
                Self(_mm_unpackhi_epi16(ab_low, cd_low)),
                Self(_mm_unpacklo_epi16(ab_high, cd_high)),
                Self(_mm_unpackhi_epi16(ab_high, cd_high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm_max_epu8(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn repeat_16(from: *const u8) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm_loadu_si128(from.cast()) })
    }

    #[inline(always)]
    unsafe fn shuffle(self, index: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm_shuffle_epi8(self.0, index.0) })
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm_xor_si128(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn less_16(self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm_subs_epi8(self.0, _mm_set1_epi8(16)) })
    }
}

super::narrow::tier!(Sse41, "sse4.1,ssse3", [1 2]);

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3")
}
