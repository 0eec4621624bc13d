//! Requantisation by one fused multiplication and addition.
//!
//! Where the sums of a layer span less than 2^23, a whole number is added to each channel's bias so that every sum `x` lies in
//! 2^23..2^24. Then the bits of the f32 `x` are `x` plus a constant: sums are accumulated as such bits, and need no conversion.
//! And the sum of `x * multiplier` and a number near 1.5 · 2^23, rounded once, has the result in its low 16 bits: that needs
//! no conversion either. (Adding 1.5 · 2^23 to round: known as magic-number rounding; Warren, Hacker's Delight, chapter 17.)
//!
//! The numbers added before and after have to cancel. Of all pairs that fit, one is looked for that does so within [`EXACT`]:
//! `before` times the multiplier is nearly a whole number, so a continued fraction finds it.
//!
//! Ties are what fused f32, f64 and whole numbers could round differently. Where sums meet them often, as with powers of two, the
//! layer is left alone; where they might, the last bit of a multiplier is set, which leaves none.

use std::array::from_fn;

/// Least of the sums as whole numbers.
const LEAST: i64 = 1 << 23;
/// Greatest of them.
const MOST: i64 = (1 << 24) - 1;
/// The bits of an f32 in 2^23..2^24 less its value.
pub(crate) const BITS: i32 = 0x4b00_0000 - LEAST as i32;
/// Where results lie: their low bits count from here.
const ORIGIN: f64 = 1.5 * LEAST as f64;
/// [`ORIGIN`] as the bits of an f32.
pub(crate) const ORIGIN_BITS: i32 = 0x4b40_0000;
/// Results fit i16, one more or less included.
const RESULTS: std::ops::Range<f64> = -32_000.0..32_000.0;
/// Multipliers for which the added numbers are whole, and products fit 64 bits.
const MULTIPLIERS: std::ops::Range<f32> = 1.0 / (1 << 24) as f32..0.25;
/// By how much of a result the numbers before and after may fail to cancel: less than rounding a product to f32 does.
const EXACT: f64 = 1.0 / (1 << 18) as f64;
/// Ties at every so many sums do not count.
const RARE: i64 = 1 << 18;
/// Channels looked at side by side: a search waits for one division after the other.
const ABREAST: usize = 4;
/// A continued fraction's denominators grow like Fibonacci's: more terms than this leave every range.
const TERMS: usize = 40;

/// Moves the biases and multipliers and returns what is added to the products, where that is possible for all
/// channels: otherwise nothing changes and the result is empty. `ranges` are those of the channels' sums, bias included.
pub(crate) fn fuse(
    bias: &mut [i32],
    multipliers: &mut [f32],
    ranges: &[(i64, i64)],
    zero_point: u8,
) -> Vec<f32> {
    let mut found = Vec::with_capacity(multipliers.len());
    for (multipliers, ranges) in multipliers.chunks(ABREAST).zip(ranges.chunks(ABREAST)) {
        // The last ones are joined by the first of them once more.
        let at = |lane: usize| if lane < ranges.len() { lane } else { 0 };
        let several = added(from_fn(|lane| multipliers[at(lane)]), from_fn(|lane| ranges[at(lane)]));
        for one in several.into_iter().take(ranges.len()) {
            let Some(one) = one else { return vec![] };
            found.push(one);
        }
    }
    let mut shifts = Vec::with_capacity(found.len());
    for (c, (multiplier, before, after)) in found.into_iter().enumerate() {
        // Only the whole sum is known to fit.
        bias[c] = bias[c].wrapping_add(before as i32).wrapping_add(BITS);
        multipliers[c] = multiplier;
        shifts.push((ORIGIN + f64::from(zero_point) - after) as f32);
    }
    shifts
}

/// The result of a sum, as a whole number: not yet within bounds.
#[inline(always)]
pub(crate) fn apply(acc: i32, multiplier: f32, shift: f32) -> i32 {
    // The product is exact; adding rounds it to a whole number.
    let product = f64::from(acc.wrapping_sub(BITS)) * f64::from(multiplier);
    (product + whole(shift)).to_bits() as i32
}

/// A shift for f64: added to a product, it leaves the result in the low bits.
#[inline(always)]
pub(crate) fn whole(shift: f32) -> f64 {
    WHOLE + f64::from((shift.to_bits() as i32).wrapping_sub(ORIGIN_BITS))
}

/// Added to a small f64 it rounds that to a whole number.
const WHOLE: f64 = 1.5 * (1u64 << 52) as f64;

/// To a whole number, without a call.
fn rounded(value: f64) -> f64 {
    (value + WHOLE) - WHOLE
}

/// The multiplier, and those next to it in the order in which they are tried, none of which has ties: odd numbers of 24 bits times
/// less than 2^24 have none. A few units in the last place show in few results, and nearly all channels do without.
fn multipliers(multiplier: f32) -> [f32; 5] {
    let bits = multiplier.to_bits();
    let own = if period_of_ties(multiplier) > MOST { bits } else { bits | 1 };
    [own, bits | 1, (bits | 1) + 2, (bits | 1) - 2, (bits | 1) + 4].map(f32::from_bits)
}

/// Products of the multiplier that lie half way between two whole numbers are those of multiples of this, and of no others.
fn period_of_ties(multiplier: f32) -> i64 {
    let mantissa = multiplier.to_bits() & 0x7f_ffff | 0x80_0000;
    // The multiplier is the mantissa, an odd number times a power of two, by 2^exponent.
    let exponent = 150 - (multiplier.to_bits() >> 23);
    1 << (exponent - 1 - mantissa.trailing_zeros())
}

/// The multiplier to use, what to add to the sums of a channel before it, and what to take from their products.
type Added = (f32, f64, f64);

/// [`Added`] for each of several channels.
fn added(of: [f32; ABREAST], ranges: [(i64, i64); ABREAST]) -> [Option<Added>; ABREAST] {
    let fits = |multiplier| MULTIPLIERS.contains(&multiplier) && period_of_ties(multiplier) >= RARE;
    if !of.into_iter().all(fits) {
        // One that is none is enough to leave the layer alone.
        return [None; ABREAST];
    }
    let of = of.map(multipliers);
    let first = cancelling(of.map(|[first, ..]| first), ranges);
    from_fn(|lane| {
        first[lane].or_else(|| {
            of[lane][1..].iter().find_map(|&multiplier| cancelling([multiplier], [ranges[lane]])[0])
        })
    })
}

/// Multipliers, and whole numbers of which the one times the multiplier is the other, within [`EXACT`].
fn cancelling<const N: usize>(multipliers: [f32; N], ranges: [(i64, i64); N]) -> [Option<Added>; N] {
    let factors = multipliers.map(f64::from);
    let least = ranges.map(|(low, _)| (LEAST - low) as f64);
    let most = ranges.map(|(_, high)| (MOST - high) as f64);
    // `after` is whole; `before`, that many times the inverse, is to be nearly so.
    let inverses = factors.map(|factor| 1.0 / factor);
    let middles: [f64; N] = from_fn(|lane| rounded((least[lane] + most[lane]) / 2.0 * factors[lane]));
    let reach = from_fn(|lane| (most[lane] - least[lane]) / 2.0 * factors[lane] - 1.0);
    let gone = nearest_whole(inverses, middles, reach, inverses.map(|inverse| EXACT / 4.0 * inverse));
    from_fn(|lane| {
        let ((low, high), factor) = (ranges[lane], factors[lane]);
        let after = middles[lane] + gone[lane];
        let before = rounded(after * inverses[lane]);
        let exact = (before * factor - after).abs() <= EXACT;
        let fit = [low, high].iter().all(|&sum| RESULTS.contains(&(sum as f64 * factor)));
        // Nothing lies in a range whose ends are the wrong way round.
        let inside = (least[lane]..=most[lane]).contains(&before);
        (exact && fit && inside).then_some((multipliers[lane], before, after))
    })
}

/// Whole numbers, of at most `reach` either way, by which to go on from `from` so that it times `factor` is nearly whole: by
/// denominators of the factor's convergents, of which each brings it nearer, until it is near enough.
fn nearest_whole<const N: usize>(
    factor: [f64; N],
    from: [f64; N],
    reach: [f64; N],
    enough: [f64; N],
) -> [f64; N] {
    let mut off: [f64; N] = from_fn(|lane| from[lane] * factor[lane]);
    off = off.map(|off| off - rounded(off));
    let mut gone = [0.0f64; N];
    let (mut before, mut before_off) = ([0.0; N], [-1.0f64; N]);
    let (mut step, mut step_off) = ([1.0; N], factor.map(|factor| factor - whole_part(factor)));
    for _ in 0..TERMS {
        let mut over = true;
        for lane in 0..N {
            if step[lane] > reach[lane] || step_off[lane] == 0.0 || off[lane].abs() < enough[lane] {
                continue;
            }
            over = false;
            let inverse = 1.0 / step_off[lane];
            let left = reach[lane] - gone[lane].abs();
            let mut times = rounded(-off[lane] * inverse);
            if times.abs() * step[lane] > left {
                times = whole_part(left / step[lane]).copysign(times);
            }
            off[lane] += times * step_off[lane];
            gone[lane] += times * step[lane];
            let term = whole_part(-before_off[lane] * inverse);
            (before[lane], step[lane]) = (step[lane], term * step[lane] + before[lane]);
            (before_off[lane], step_off[lane]) = (step_off[lane], term * step_off[lane] + before_off[lane]);
        }
        if over {
            break;
        }
    }
    gone
}

/// Of a positive number. A call of `floor` takes as long as all the rest.
fn whole_part(value: f64) -> f64 {
    value as i64 as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drawn by each test. Miri takes minutes for a thousand, and arithmetic is not what it is for.
    const CHANNELS: usize = if cfg!(miri) { 20 } else { 20_000 };

    /// A channel's bias, multiplier and shift; what they were made from; and some sums of its range, the bias left out.
    struct Channel {
        factors: (i32, f32, f32),
        multiplier: f32,
        zero_point: u8,
        sums: Vec<i64>,
    }

    fn channels(count: usize) -> impl Iterator<Item = Channel> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut below = move |end: i64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % end as u64) as i64
        };
        let one = move || {
            let multiplier = f32::exp2(-2.5 - below(18_000_000) as f32 / 1e6);
            let span = (1 + below((1 << 23) - 1)).min((60_000.0 / multiplier) as i64);
            let low = -below(span + 1);
            let zero_point = below(256) as u8;
            let (mut bias, mut multipliers) = ([0], [multiplier]);
            let shifts = fuse(&mut bias, &mut multipliers, &[(low, low + span)], zero_point);
            let mut within = || ((below(256) - i64::from(zero_point)) as f32 / multiplier) as i64;
            let mut sums: Vec<i64> = (0..20).map(|_| within().clamp(low, low + span)).collect();
            sums.extend([low, low + span, low + below(span + 1)]);
            let shift = *shifts.first()?;
            Some(Channel { factors: (bias[0], multipliers[0], shift), multiplier, zero_point, sums })
        };
        std::iter::repeat_with(one).flatten().take(count)
    }

    #[test]
    fn f64_f32_and_whole_numbers_agree() {
        for Channel { factors: (bias, multiplier, shift), sums, .. } in channels(CHANNELS) {
            for acc in sums.into_iter().map(|sum| (i64::from(bias) + sum) as i32) {
                let result = apply(acc, multiplier, shift);
                let fused = f32::from_bits(acc as u32).mul_add(multiplier, shift);
                assert_eq!((fused.to_bits() as i32) - ORIGIN_BITS, result);
                // x · mantissa / 2^exponent, rounded half up.
                let x = i128::from(acc - BITS);
                let mantissa = i128::from(multiplier.to_bits() & 0x7f_ffff | 0x80_0000);
                let exponent = 150 - (multiplier.to_bits() >> 23);
                let whole = (x * mantissa + (1 << (exponent - 1))) >> exponent;
                assert_eq!(whole + i128::from(shift as i32) - (3 << 22), i128::from(result));
            }
        }
    }

    #[test]
    fn results_are_those_of_the_definition_but_for_rare_ones() {
        let (mut checked, mut other) = (0, 0);
        for Channel { factors: (bias, used, shift), multiplier, zero_point, sums } in channels(CHANNELS) {
            assert!(multiplier.to_bits().abs_diff(used.to_bits()) <= 5, "{multiplier}: {used}");
            for sum in sums {
                let result = apply((i64::from(bias) + sum) as i32, used, shift);
                let value = sum as f64 * f64::from(multiplier) + f64::from(zero_point);
                let near = 0.5 + f64::from(multiplier) / 2.0 + 1e-9;
                assert!(
                    (f64::from(result) - value).abs() <= near,
                    "{sum} · {multiplier}: {result}, not {value}"
                );
                checked += 1;
                // Beyond bounds it does not show.
                let inside = (0.0..=255.0).contains(&value);
                other += usize::from(inside && f64::from(result) != value.round_ties_even());
            }
        }
        assert!(other * 50_000 < checked, "{other} of {checked} differ");
    }

    #[test]
    fn nearly_every_layer_is_fused() {
        let changed = |c: &Channel| c.factors.1.to_bits().abs_diff(c.multiplier.to_bits());
        let near = channels(CHANNELS).filter(|channel| changed(channel) <= 1).count();
        assert!(
            near * 40 > CHANNELS * 39,
            "of {CHANNELS} channels only {near} keep their multiplier but for its last bit"
        );
        // Round numbers, whose inverses' multiples are far from whole for long.
        for multiplier in [0.001, 0.002, 0.0025, 0.005, 0.01 / 3.0, 1.0 / 300.0] {
            let found = added([multiplier; ABREAST], [(-200_000, 200_000); ABREAST]);
            assert!(found.iter().all(Option::is_some), "{multiplier}");
        }
    }

    #[test]
    fn what_does_not_fit_is_left_alone() {
        let refused = |multiplier, range| {
            let (mut bias, mut multipliers) = ([7], [multiplier]);
            let shifts = fuse(&mut bias, &mut multipliers, &[range], 3);
            (shifts, bias, multipliers) == (vec![], [7], [multiplier])
        };
        assert!(!refused(0.001_234, (-4_000_000, 4_000_000)));
        // More than 2^23 sums.
        assert!(refused(0.001_234, (-4_200_000, 4_200_000)));
        // Results beyond i16.
        assert!(refused(0.021_234, (-2_000_000, 2_000_000)));
        assert!(refused(0.3, (-10, 10)));
        assert!(refused(1e-9, (-10, 10)));
        // Ties: of a power of two at every 512th sum.
        assert!(refused(1.0 / 1024.0, (-1000, 1000)));
        assert!(refused(3.0 / 1024.0, (-1000, 1000)));
        // One channel of two.
        let (mut bias, mut multipliers) = ([1, 2], [0.001_234, 0.5]);
        assert!(fuse(&mut bias, &mut multipliers, &[(-9, 9), (-9, 9)], 0).is_empty());
        assert_eq!((bias, multipliers), ([1, 2], [0.001_234, 0.5]));
    }
}
