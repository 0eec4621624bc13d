//! The most multiply-accumulates per second that this core does with a tier's instruction, in a loop that does nothing else.

use tractd_kernels::Tier;

/// GMAC/s now, from a loop of about 20 µs.
pub(crate) fn gmacs(tier: Tier) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::time::Instant;
        let (kernel, macs): (unsafe fn(usize) -> i32, f64) = match tier {
            Tier::Avx512Vnni => (x86::vnni_512, 16.0 * 64.0),
            Tier::AvxVnni => (x86::vnni_256, 12.0 * 32.0),
            Tier::Avx2 => (x86::maddubs_256, 12.0 * 32.0),
            Tier::Sse41 => (x86::maddubs_128, 12.0 * 16.0),
            _ => return f64::NAN,
        };
        const ROUNDS: usize = 8_000;
        let started = Instant::now();
        // SAFETY: the tier was made available by the machine.
        std::hint::black_box(unsafe { kernel(ROUNDS) });
        return macs * ROUNDS as f64 / started.elapsed().as_secs_f64() / 1e9;
    }
    #[allow(unreachable_code, reason = "other architectures have no peak loop yet")]
    {
        let _ = tier;
        f64::NAN
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    macro_rules! spin {
        ($name:ident, $features:literal, $n:literal, $vector:ty, $zero:ident, $set:ident, |$c:ident, $a:ident, $b:ident| $step:expr, $add:ident, $low:ident) => {
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(rounds: usize) -> i32 {
                let ($a, $b) = ($set(black_box(3)), $set(black_box(2)));
                let mut sums: [$vector; $n] = [$zero(); $n];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        let $c = *sum;
                        *sum = $step;
                    }
                    // SAFETY: does nothing; keeps the loop from being folded.
                    unsafe { asm!("", options(nomem, nostack, preserves_flags)) };
                }
                let all = sums.into_iter().fold($zero(), |a, b| $add(a, b));
                $low(all)
            }
        };
    }

    #[target_feature(enable = "avx512f")]
    fn low_512(v: __m512i) -> i32 {
        _mm512_reduce_add_epi32(v)
    }

    #[target_feature(enable = "avx2")]
    fn low_256(v: __m256i) -> i32 {
        _mm256_extract_epi32::<0>(v)
    }

    #[target_feature(enable = "sse4.1")]
    fn low_128(v: __m128i) -> i32 {
        _mm_extract_epi32::<0>(v)
    }

    #[target_feature(enable = "avx2")]
    fn step_256(c: __m256i, a: __m256i, b: __m256i) -> __m256i {
        let mut a = a;
        // SAFETY: does nothing; keeps the products, which are always the same, inside the loop.
        unsafe { asm!("/* {0} */", inout(ymm_reg) a, options(nomem, nostack, preserves_flags)) };
        _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
    }

    #[target_feature(enable = "sse4.1")]
    fn step_128(c: __m128i, a: __m128i, b: __m128i) -> __m128i {
        let mut a = a;
        // SAFETY: does nothing; keeps the products, which are always the same, inside the loop.
        unsafe { asm!("/* {0} */", inout(xmm_reg) a, options(nomem, nostack, preserves_flags)) };
        _mm_add_epi32(c, _mm_madd_epi16(_mm_maddubs_epi16(a, b), _mm_set1_epi16(1)))
    }

    spin!(
        vnni_512,
        "avx512f,avx512vnni",
        16,
        __m512i,
        _mm512_setzero_si512,
        _mm512_set1_epi8,
        |c, a, b| _mm512_dpbusd_epi32(c, a, b),
        _mm512_add_epi32,
        low_512
    );
    spin!(
        vnni_256,
        "avx2,avxvnni",
        12,
        __m256i,
        _mm256_setzero_si256,
        _mm256_set1_epi8,
        |c, a, b| _mm256_dpbusd_avx_epi32(c, a, b),
        _mm256_add_epi32,
        low_256
    );
    spin!(
        maddubs_256,
        "avx2",
        12,
        __m256i,
        _mm256_setzero_si256,
        _mm256_set1_epi8,
        |c, a, b| step_256(c, a, b),
        _mm256_add_epi32,
        low_256
    );
    spin!(
        maddubs_128,
        "sse4.1",
        12,
        __m128i,
        _mm_setzero_si128,
        _mm_set1_epi8,
        |c, a, b| step_128(c, a, b),
        _mm_add_epi32,
        low_128
    );
}
