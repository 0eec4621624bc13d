//! What happens to the sums of a tile: they become bytes, and are stored.

use std::arch::x86_64::*;

use super::Tile;
use crate::x86::avx512::{BOUNDED, FUSED, How, PLAIN, held, mask, natural, odd_bytes, store};

/// Requantises and stores.
///
/// # Safety
/// The pointers have `tile.stored` writable bytes each.
#[inline(always)]
pub(super) unsafe fn finish<const M: usize, const N: usize>(
    acc: &[[__m512i; N]; M],
    tile: &Tile<'_>,
    writes: &[*mut u8; M],
    dense: bool,
) {
    // SAFETY: passed on.
    unsafe {
        match tile.how {
            How::Fused => finish_as::<M, N, FUSED>(acc, tile, writes, dense),
            How::Bounded => finish_as::<M, N, BOUNDED>(acc, tile, writes, dense),
            How::Plain => finish_as::<M, N, PLAIN>(acc, tile, writes, dense),
        }
    }
}

/// One pixel fills a 64-byte vector with 4 vectors of channels; of narrower ones, 2 or 4 pixels share it.
///
/// # Safety
/// As for [`finish`].
#[inline(always)]
unsafe fn finish_as<const M: usize, const N: usize, const HOW: u8>(
    acc: &[[__m512i; N]; M],
    tile: &Tile<'_>,
    writes: &[*mut u8; M],
    dense: bool,
) {
    let share = if N >= 3 { 1 } else { 4 / N };
    let keep = mask(tile.stored);
    // SAFETY: the factors cover N vectors; each store is masked to the stored bytes of its pixel.
    unsafe {
        let (mut multipliers, mut shifts) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
        for n in 0..N {
            multipliers[n] = _mm512_load_ps(tile.multipliers.add(n * 16));
            if HOW != PLAIN {
                shifts[n] = _mm512_load_ps(tile.shifts.add(n * 16));
            }
        }
        let odd = odd_bytes();
        // Within each 128-bit lane, then across lanes: each pixel's bytes one after the other.
        let (within, across) = match N {
            1 => (natural(), _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)),
            2 => (
                _mm512_setzero_si512(),
                _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15),
            ),
            _ => (
                _mm512_set4_epi32(-1, 0x0e0c_0a08, 0x0706_0504, 0x0302_0100),
                _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15),
            ),
        };
        let (within, across) = (held(within), held(across));
        // One loop of a fixed length is laid out in full: sums stay in registers.
        let parts = N.div_ceil(4);
        for group in 0..M.div_ceil(share) * parts {
            let (m, part) = (group / parts * share, group % parts);
            if group == 1 && HOW != PLAIN {
                // By now there are registers for them.
                for n in 0..N {
                    shifts[n] = _mm512_castsi512_ps(held(_mm512_castps_si512(shifts[n])));
                }
            }
            let mut words = [_mm512_setzero_si512(); 4];
            for q in 0..4 {
                // The order that puts a pixel's bytes side by side: see `Finish::bytes`.
                let (pixel, n) = match N {
                    1 => (m + q, 0),
                    2 => (m + q % 2, q / 2),
                    3 => (m, q.min(2)),
                    _ => (m, part * 4 + q),
                };
                if pixel < M {
                    words[q] = tile.finish.words::<HOW>(acc[pixel][n], multipliers[n], shifts[n]);
                }
            }
            let bytes = tile.finish.bytes::<HOW>(words, odd);
            match N {
                1 => {
                    let bytes = _mm512_permutexvar_epi32(across, _mm512_shuffle_epi8(bytes, within));
                    if dense && m + share <= M {
                        _mm512_storeu_si512(writes[m].cast(), bytes);
                        continue;
                    }
                    let quarters = [
                        _mm512_castsi512_si128(bytes),
                        _mm512_extracti32x4_epi32::<1>(bytes),
                        _mm512_extracti32x4_epi32::<2>(bytes),
                        _mm512_extracti32x4_epi32::<3>(bytes),
                    ];
                    for q in 0..share.min(M - m) {
                        if tile.stored == 16 {
                            _mm_storeu_si128(writes[m + q].cast(), quarters[q]);
                        } else {
                            _mm_mask_storeu_epi8(writes[m + q].cast(), keep as __mmask16, quarters[q]);
                        }
                    }
                }
                2 => {
                    let bytes = _mm512_permutexvar_epi32(across, bytes);
                    if dense && m + share <= M {
                        _mm512_storeu_si512(writes[m].cast(), bytes);
                        continue;
                    }
                    let halves = [_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes)];
                    for q in 0..share.min(M - m) {
                        if tile.stored == 32 {
                            _mm256_storeu_si256(writes[m + q].cast(), halves[q]);
                        } else {
                            _mm256_mask_storeu_epi8(writes[m + q].cast(), keep as __mmask32, halves[q]);
                        }
                    }
                }
                3 => {
                    let bytes = _mm512_permutexvar_epi32(across, _mm512_shuffle_epi8(bytes, within));
                    if tile.stored == 48 {
                        _mm256_storeu_si256(writes[m].cast(), _mm512_castsi512_si256(bytes));
                        let last = _mm512_extracti32x4_epi32::<2>(bytes);
                        _mm_storeu_si128(writes[m].add(32).cast(), last);
                    } else {
                        store(writes[m], keep, bytes);
                    }
                }
                4 => store(writes[m], keep, bytes),
                _ => {
                    let keep = mask(tile.stored.saturating_sub(part * 64));
                    store(writes[m].wrapping_add(part * 64), keep, bytes);
                }
            }
        }
    }
}
