//! 256-bit vectors: AVX2, where products of neighbouring bytes saturate and so are used only where they cannot, and the VEX form
//! of VNNI, which has no such limit. Both with FMA, which all of these processors have.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use super::narrow::{Bounds, Factors, Vector};
use crate::fused::ORIGIN_BITS;

/// Methods that do not depend on how four bytes are multiplied.
macro_rules! shared {
    () => {
        const LANES: usize = 8;
        const FMA: bool = true;

        #[inline(always)]
        unsafe fn load(from: *const u8) -> Self {
            // SAFETY: the trait's contract, as in all methods below.
            Self(unsafe { _mm256_loadu_si256(from.cast()) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: the trait's contract.
            unsafe { _mm256_storeu_si256(to.cast(), self.0) }
        }

        #[inline(always)]
        unsafe fn broadcast(from: *const u8) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) })
        }

        #[inline(always)]
        unsafe fn split(self) -> (Self, Self) {
            // SAFETY: the trait's contract.
            unsafe {
                (
                    Self(_mm256_and_si256(self.0, _mm256_set1_epi16(0xff))),
                    Self(_mm256_srli_epi16::<8>(self.0)),
                )
            }
        }

        #[inline(always)]
        unsafe fn dot_words(self, x: Self, w: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_add_epi32(self.0, _mm256_madd_epi16(x.0, w.0)) })
        }

        #[inline(always)]
        unsafe fn rounded(self, multipliers: *const f32) -> Self {
            // SAFETY: the trait's contract.
            unsafe {
                let product = _mm256_mul_ps(_mm256_cvtepi32_ps(self.0), _mm256_loadu_ps(multipliers));
                Self(_mm256_cvtps_epi32(product))
            }
        }

        #[inline(always)]
        unsafe fn fused(self, factors: Factors) -> Self {
            // SAFETY: the trait's contract.
            unsafe {
                let multipliers = _mm256_loadu_ps(factors.multipliers);
                let shifts = _mm256_loadu_ps(factors.shifts);
                let result = _mm256_fmadd_ps(_mm256_castsi256_ps(self.0), multipliers, shifts);
                Self(_mm256_sub_epi32(_mm256_castps_si256(result), _mm256_set1_epi32(ORIGIN_BITS)))
            }
        }

        #[inline(always)]
        unsafe fn pack(whole: [Self; 4], bounds: &Bounds) -> Self {
            // SAFETY: the trait's contract.
            unsafe {
                let zero_point = _mm256_set1_epi16(bounds.zero_point);
                let low = _mm256_adds_epi16(_mm256_packs_epi32(whole[0].0, whole[1].0), zero_point);
                let high = _mm256_adds_epi16(_mm256_packs_epi32(whole[2].0, whole[3].0), zero_point);
                let bytes =
                    _mm256_min_epu8(_mm256_packus_epi16(low, high), _mm256_set1_epi8(bounds.high as i8));
                Self(_mm256_max_epu8(bytes, _mm256_set1_epi8(bounds.low as i8)))
            }
        }

        #[inline(always)]
        unsafe fn pack_16(whole: &[Self], bounds: &Bounds) -> __m128i {
            // SAFETY: the trait's contract.
            unsafe {
                let words = _mm256_packs_epi32(whole[0].0, whole[1].0);
                let words = _mm256_adds_epi16(words, _mm256_set1_epi16(bounds.zero_point));
                let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                let bytes = _mm_min_epu8(_mm_packus_epi16(low, high), _mm_set1_epi8(bounds.high as i8));
                _mm_max_epu8(bytes, _mm_set1_epi8(bounds.low as i8))
            }
        }

        #[inline(always)]
        unsafe fn interleave(rows: [Self; 4]) -> [Self; 4] {
            // Not `map`: a function between would not be compiled for the tier's features.
            let (a, b, c, d) = (rows[0].0, rows[1].0, rows[2].0, rows[3].0);
            // SAFETY: the trait's contract.
            unsafe {
                let (ab_low, ab_high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                let (cd_low, cd_high) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
                [
                    Self(_mm256_unpacklo_epi16(ab_low, cd_low)),
                    Self(_mm256_unpackhi_epi16(ab_low, cd_low)),
                    Self(_mm256_unpacklo_epi16(ab_high, cd_high)),
                    Self(_mm256_unpackhi_epi16(ab_high, cd_high)),
                ]
            }
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_max_epu8(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn repeat_16(from: *const u8) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast())) })
        }

        #[inline(always)]
        unsafe fn shuffle(self, index: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_shuffle_epi8(self.0, index.0) })
        }

        #[inline(always)]
        unsafe fn xor(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_xor_si256(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn less_16(self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_subs_epi8(self.0, _mm256_set1_epi8(16)) })
        }
    };
}

pub(super) mod plain {
    use super::*;

    #[derive(Clone, Copy)]
    pub(in crate::x86) struct Avx2(__m256i);

    impl Vector for Avx2 {
        const PIXELS: usize = 4;
        const EXACT: bool = false;

        shared!();

        #[inline(always)]
        unsafe fn dot(self, x: Self, w: Self) -> Self {
            // SAFETY: the trait's contract.
            unsafe {
                let pairs = _mm256_maddubs_epi16(x.0, w.0);
                Self(_mm256_add_epi32(self.0, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))
            }
        }
    }

    crate::x86::narrow::tier!(Avx2, "avx2,fma", [1 2 3 4]);

    pub(in crate::x86) fn is_available() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }
}

pub(super) mod vnni {
    use super::*;

    #[derive(Clone, Copy)]
    pub(in crate::x86) struct AvxVnni(__m256i);

    impl Vector for AvxVnni {
        const PIXELS: usize = 6;
        const EXACT: bool = true;

        shared!();

        #[inline(always)]
        unsafe fn dot(self, x: Self, w: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_dpbusd_avx_epi32(self.0, x.0, w.0) })
        }
    }

    crate::x86::narrow::tier!(AvxVnni, "avx2,fma,avxvnni", [1 2 3 4 5 6]);

    pub(in crate::x86) fn is_available() -> bool {
        super::plain::is_available() && is_x86_feature_detected!("avxvnni")
    }
}
