//! Depthwise convolution. Bytes of four rows are interleaved, so that one instruction multiplies four vertical taps of 16
//! channels; two output rows and two positions along them share the interleaving and the weights.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{BOUNDED, FUSED, Finish, How, PLAIN, elementwise, held, mask, natural, odd_bytes, pinned, store};
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::pack::passes;
use crate::portable;
use crate::step::{Depthwise, Requant, Residual};
use crate::strip::{FLAT_WEIGHTS, Kept, Phase, QUAD, Strips};

/// Channels, or bytes along a row, of one vector.
const VECTOR: usize = 64;

struct Depthwise512 {
    strips: Strips,
    base: usize,
    step_y: usize,
    /// Bytes between taps along a row, and how many of them lie between positions, where windows of three overlap.
    slide: Option<(usize, usize)>,
    requant: Requant,
    how: How,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
}

pub(super) fn pack(step: Depthwise) -> Kernel {
    if step.saturates || step.output.pixel < 16 {
        return portable::packed(step);
    }
    let tap = step.tap_step[1];
    let slides = step.kernel == [3, 3] && passes(&step.weights) == 1;
    // Windows of neighbouring pixels then share columns, which vectors that run on over pixels do not.
    let flat = if slides && step.output.pixel > VECTOR { 0 } else { FLAT_WEIGHTS };
    let strips = Strips::new(&step, VECTOR, 4, Kept::Bytes, flat);
    let slide = (1..=2).find(|apart| slides && strips.advance[0] == apart * tap).map(|apart| (tap, apart));
    Box::new(Depthwise512 {
        strips,
        slide,
        base: step.base,
        step_y: step.step[0],
        requant: step.requant,
        how: How::new(&step.requant, !step.shifts.is_empty()),
        residual: step.residual,
        table: step.table,
        output: step.output,
    })
}

impl Run for Depthwise512 {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let arena = memory.arena.as_mut_ptr();
        let mut y = rows.start;
        while y < rows.end {
            let (first, keep) = self.strips.rows_at(y, rows.end);
            // SAFETY: the module's contract; `first` and, of two rows, the one after are rows of the output.
            unsafe {
                match (self.strips.rows, self.how) {
                    (2, How::Fused) => self.strip::<2, FUSED>(arena, first, keep),
                    (2, How::Bounded) => self.strip::<2, BOUNDED>(arena, first, keep),
                    (2, How::Plain) => self.strip::<2, PLAIN>(arena, first, keep),
                    (_, How::Fused) => self.strip::<1, FUSED>(arena, first, keep),
                    (_, How::Bounded) => self.strip::<1, BOUNDED>(arena, first, keep),
                    (_, How::Plain) => self.strip::<1, PLAIN>(arena, first, keep),
                }
            }
            y += self.strips.rows;
        }
        if let Some(Residual { view, sum }) = &self.residual {
            elementwise::add_rows(memory.arena, &self.output, view, &self.output, sum, rows.clone());
        }
        if let Some(table) = &self.table {
            elementwise::table_rows(memory.arena, &self.output, &self.output, table, rows);
        }
    }

    fn bytes(&self) -> usize {
        self.strips.bytes()
    }
}

impl Depthwise512 {
    /// `R` output rows from `y` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn strip<const R: usize, const HOW: u8>(&self, arena: *mut u8, y: usize, keep: [bool; 2]) {
        let finish = Finish::new(&self.requant);
        for (index, phase) in self.strips.phases.iter().enumerate() {
            let advance = self.strips.advance;
            let vector = Vector {
                columns: &self.strips.columns,
                weights: self.strips.weights_of(index).as_ptr(),
                bias: self.strips.bias[index * VECTOR..].as_ptr(),
                multipliers: self.strips.multipliers[index * VECTOR..].as_ptr(),
                shifts: self.strips.shifts[index * VECTOR..].as_ptr(),
                finish,
                advance,
                row: self.output.row,
                keep,
            };
            let mut read = self.base + y * self.step_y + phase.start;
            let mut write = self.output.offset(y, 0) + phase.start;
            let mut left = phase.positions;
            if phase.parts > 1 {
                // SAFETY: positions of the row; a last group that is not full starts earlier and repeats some.
                unsafe {
                    for first in (0..phase.positions).step_by(phase.parts) {
                        let first = first.min(phase.positions - phase.parts);
                        let read = arena.add(read + first * advance[0]);
                        let write = arena.add(write + first * advance[1]);
                        match phase.parts {
                            2 => vector.shared::<R, 2, HOW>(read, write),
                            _ => vector.shared::<R, 4, HOW>(read, write),
                        }
                    }
                }
                continue;
            }
            if let Some((tap, apart)) = self.slide {
                // SAFETY: as below.
                let pairs = unsafe {
                    let (read, write) = (arena.add(read), arena.add(write));
                    match apart {
                        1 => vector.slide::<R, 1, HOW>(read, write, tap, phase),
                        _ => vector.slide::<R, 2, HOW>(read, write, tap, phase),
                    }
                };
                read += 2 * pairs * advance[0];
                write += 2 * pairs * advance[1];
                left -= 2 * pairs;
                if left == 0 {
                    continue;
                }
            }
            // SAFETY: positions of the row: their windows lie in the arena, a vector's rest in its slack, and stores are
            // masked to the row.
            unsafe {
                while left > 2 {
                    let others = mask(phase.others);
                    vector.compute::<R, 2, HOW>(arena.add(read), arena.add(write), [others; 2]);
                    read += 2 * advance[0];
                    write += 2 * advance[1];
                    left -= 2;
                }
                let (read, write) = (arena.add(read), arena.add(write));
                match left {
                    2 => vector.compute::<R, 2, HOW>(read, write, [mask(phase.others), mask(phase.last)]),
                    _ => vector.compute::<R, 1, HOW>(read, write, [mask(phase.last), 0]),
                }
            }
        }
    }
}

/// Those of 64 channels.
struct Factors {
    multipliers: [__m512; 4],
    shifts: [__m512; 4],
}

/// What the positions of one phase share.
struct Vector<'a> {
    columns: &'a [[usize; QUAD]],
    weights: *const u8,
    bias: *const i32,
    multipliers: *const f32,
    shifts: *const f32,
    finish: Finish,
    advance: [usize; 2],
    row: usize,
    keep: [bool; 2],
}

impl Vector<'_> {
    /// `R` rows by `X` positions of 64 bytes.
    ///
    /// # Safety
    /// `read` plus each column's offsets plus 64 lies in the arena, as do the masked bytes of each row from `write` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn compute<const R: usize, const X: usize, const HOW: u8>(
        &self,
        read: *const u8,
        write: *mut u8,
        masks: [u64; 2],
    ) {
        // Plain loops: a closure handed to another function would not be compiled for these features in place.
        let mut acc = [[[_mm512_setzero_si512(); 4]; X]; R];
        for q in 0..4 {
            // SAFETY: the bias covers 64 channels.
            let bias = unsafe { _mm512_load_si512(self.bias.add(q * 16).cast()) };
            for row in &mut acc {
                for sums in row {
                    sums[q] = bias;
                }
            }
        }
        let mut weights = self.weights;
        for offsets in self.columns {
            let mut columns = [[_mm512_setzero_si512(); 4]; X];
            for x in 0..X {
                // SAFETY: the caller's contract.
                columns[x] = unsafe { interleave(read.add(x * self.advance[0]), offsets) };
            }
            for row in &mut acc {
                for q in 0..4 {
                    // SAFETY: the weights cover columns × R × 4 vectors, 64-byte aligned.
                    let w = unsafe { _mm512_load_si512(weights.cast()) };
                    weights = weights.wrapping_add(64);
                    for x in 0..X {
                        row[x][q] = _mm512_dpbusd_epi32(row[x][q], columns[x][q], w);
                    }
                }
            }
        }
        // SAFETY: the factors cover 64 channels.
        let factors = unsafe { self.factors::<HOW>() };
        let (odd, order) = (odd_bytes(), held(natural()));
        for r in 0..R {
            if !self.keep[r] {
                continue;
            }
            for x in 0..X {
                let bytes = self.bytes::<HOW>(acc[r][x], &factors, odd, order);
                // SAFETY: the caller's contract.
                unsafe {
                    store(write.add(r * self.row + x * self.advance[1]), masks[x], bytes);
                }
            }
        }
    }

    /// `R` rows by pairs of positions, whose windows are three columns wide and start `S` columns apart: those that they share
    /// with the pair before are interleaved already. Returns how many pairs there are.
    ///
    /// # Safety
    /// As for [`compute`](Self::compute), for the phase's positions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn slide<const R: usize, const S: usize, const HOW: u8>(
        &self,
        mut read: *const u8,
        mut write: *mut u8,
        tap: usize,
        phase: &Phase,
    ) -> usize {
        let pairs = phase.positions / 2;
        let offsets = &self.columns[0];
        let even = phase.positions == 2 * pairs;
        let (odd, order) = (odd_bytes(), held(natural()));
        // SAFETY: the caller's contract.
        unsafe {
            let mut first = interleave(read, offsets);
            let mut second = if S == 1 { interleave(read.add(tap), offsets) } else { first };
            for pair in 0..pairs {
                let mut acc = [[[_mm512_setzero_si512(); 4]; 2]; R];
                for q in 0..4 {
                    let bias = _mm512_load_si512(self.bias.add(q * 16).cast());
                    for r in 0..R {
                        acc[r][0][q] = bias;
                        acc[r][1][q] = bias;
                    }
                }
                if S == 1 {
                    self.add::<R>(&mut acc, 0, &first, &second);
                    let third = interleave(read.add(2 * tap), offsets);
                    self.add::<R>(&mut acc, 1, &second, &third);
                    let fourth = interleave(read.add(3 * tap), offsets);
                    self.add::<R>(&mut acc, 2, &third, &fourth);
                    (first, second) = (third, fourth);
                } else {
                    let third = interleave(read.add(2 * tap), offsets);
                    self.add::<R>(&mut acc, 0, &first, &third);
                    second = interleave(read.add(tap), offsets);
                    let fourth = interleave(read.add(3 * tap), offsets);
                    self.add::<R>(&mut acc, 1, &second, &fourth);
                    first = interleave(read.add(4 * tap), offsets);
                    self.add::<R>(&mut acc, 2, &third, &first);
                }
                let last = if even && pair + 1 == pairs { phase.last } else { phase.others };
                let masks = [mask(phase.others), mask(last)];
                let mut factors = self.factors::<HOW>();
                for r in 0..R {
                    for x in 0..2 {
                        if r * 2 + x == 1 {
                            // By now there are registers for them.
                            for q in 0..4 {
                                let shift = _mm512_castps_si512(factors.shifts[q]);
                                factors.shifts[q] = _mm512_castsi512_ps(held(shift));
                            }
                        }
                        let bytes = self.bytes::<HOW>(acc[r][x], &factors, odd, order);
                        if self.keep[r] {
                            store(write.add(r * self.row + x * self.advance[1]), masks[x], bytes);
                        }
                    }
                }
                read = read.add(2 * self.advance[0]);
                write = write.add(2 * self.advance[1]);
            }
        }
        pairs
    }

    /// # Safety
    /// Multipliers and, where requantisation is fused, shifts cover 64 channels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn factors<const HOW: u8>(&self) -> Factors {
        let (mut multipliers, mut shifts) = ([_mm512_setzero_ps(); 4], [_mm512_setzero_ps(); 4]);
        for q in 0..4 {
            // SAFETY: the caller's contract; 64-byte aligned.
            unsafe {
                multipliers[q] = _mm512_load_ps(self.multipliers.add(q * 16));
                if HOW != PLAIN {
                    shifts[q] = _mm512_load_ps(self.shifts.add(q * 16));
                }
            }
        }
        Factors { multipliers, shifts }
    }

    /// Sums as [`interleaved`] rows leave them to 64 bytes. `order` is [`natural`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn bytes<const HOW: u8>(
        &self,
        sums: [__m512i; 4],
        factors: &Factors,
        odd: __mmask64,
        order: __m512i,
    ) -> __m512i {
        let mut words = sums;
        for q in 0..4 {
            words[q] = self.finish.words::<HOW>(sums[q], factors.multipliers[q], factors.shifts[q]);
        }
        _mm512_shuffle_epi8(self.finish.bytes::<HOW>(words, odd), order)
    }

    /// Adds the products of column `kx` of two positions.
    ///
    /// # Safety
    /// The weights cover the column.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn add<const R: usize>(
        &self,
        acc: &mut [[[__m512i; 4]; 2]; R],
        kx: usize,
        first: &[__m512i; 4],
        second: &[__m512i; 4],
    ) {
        for q in 0..4 {
            // SAFETY: the caller's contract; 64-byte aligned.
            let w = unsafe { _mm512_load_si512(self.weights.add((kx * R * 4 + q) * 64).cast()) };
            acc[0][0][q] = _mm512_dpbusd_epi32(acc[0][0][q], first[q], w);
            acc[0][1][q] = _mm512_dpbusd_epi32(acc[0][1][q], second[q], w);
            if R == 2 {
                // The same taps, a row below: a shift costs less than a load.
                let w = _mm512_slli_epi32::<8>(w);
                acc[R - 1][0][q] = _mm512_dpbusd_epi32(acc[R - 1][0][q], first[q], w);
                acc[R - 1][1][q] = _mm512_dpbusd_epi32(acc[R - 1][1][q], second[q], w);
            }
        }
        // Column after column: weights are loaded once, and nothing is put off until it is stored.
        for row in acc {
            for sums in row {
                for sum in sums {
                    *sum = pinned(*sum);
                }
            }
        }
    }

    /// `R` rows by one vector that `P` positions share.
    ///
    /// # Safety
    /// At each position, `read` plus each column's offsets plus `64 / P` lies in the arena, as do `64 / P` bytes of each row
    /// from `write` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn shared<const R: usize, const P: usize, const HOW: u8>(&self, read: *const u8, write: *mut u8) {
        let mut acc = [[_mm512_setzero_si512(); 4]; R];
        for q in 0..4 {
            // SAFETY: the bias covers 64 channels.
            let bias = unsafe { _mm512_load_si512(self.bias.add(q * 16).cast()) };
            for row in &mut acc {
                row[q] = bias;
            }
        }
        let mut weights = self.weights;
        for offsets in self.columns {
            // SAFETY: the caller's contract.
            let column = unsafe {
                interleaved(
                    gather::<P>(read.add(offsets[0]), self.advance[0]),
                    gather::<P>(read.add(offsets[1]), self.advance[0]),
                    gather::<P>(read.add(offsets[2]), self.advance[0]),
                    gather::<P>(read.add(offsets[3]), self.advance[0]),
                )
            };
            for row in &mut acc {
                for q in 0..4 {
                    // SAFETY: the weights cover columns × R × 4 vectors, 64-byte aligned.
                    row[q] =
                        _mm512_dpbusd_epi32(row[q], column[q], unsafe { _mm512_load_si512(weights.cast()) });
                    weights = weights.wrapping_add(64);
                }
            }
        }
        // SAFETY: the factors cover 64 channels.
        let factors = unsafe { self.factors::<HOW>() };
        let (odd, order) = (odd_bytes(), held(natural()));
        for r in 0..R {
            if !self.keep[r] {
                continue;
            }
            let bytes = self.bytes::<HOW>(acc[r], &factors, odd, order);
            let write = write.wrapping_add(r * self.row);
            // SAFETY: the caller's contract.
            unsafe {
                if P == 2 {
                    _mm256_storeu_si256(write.cast(), _mm512_castsi512_si256(bytes));
                    let high = _mm512_extracti64x4_epi64::<1>(bytes);
                    _mm256_storeu_si256(write.add(self.advance[1]).cast(), high);
                } else {
                    _mm_storeu_si128(write.cast(), _mm512_castsi512_si128(bytes));
                    let second = _mm512_extracti32x4_epi32::<1>(bytes);
                    _mm_storeu_si128(write.add(self.advance[1]).cast(), second);
                    let third = _mm512_extracti32x4_epi32::<2>(bytes);
                    _mm_storeu_si128(write.add(2 * self.advance[1]).cast(), third);
                    let fourth = _mm512_extracti32x4_epi32::<3>(bytes);
                    _mm_storeu_si128(write.add(3 * self.advance[1]).cast(), fourth);
                }
            }
        }
    }
}

/// Parts of a vector from `P` positions.
///
/// # Safety
/// `64 / P` bytes are readable at each position.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn gather<const P: usize>(read: *const u8, advance: usize) -> __m512i {
    // SAFETY: the caller's contract.
    unsafe {
        if P == 2 {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(read.cast()));
            return _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(read.add(advance).cast()));
        }
        let vector = _mm512_castsi128_si512(_mm_loadu_si128(read.cast()));
        let vector = _mm512_inserti32x4::<1>(vector, _mm_loadu_si128(read.add(advance).cast()));
        let vector = _mm512_inserti32x4::<2>(vector, _mm_loadu_si128(read.add(2 * advance).cast()));
        _mm512_inserti32x4::<3>(vector, _mm_loadu_si128(read.add(3 * advance).cast()))
    }
}

/// 64 bytes of four rows, interleaved: four bytes of each channel side by side.
///
/// # Safety
/// 64 bytes are readable at each offset.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave(read: *const u8, offsets: &[usize; QUAD]) -> [__m512i; 4] {
    // SAFETY: the caller's contract.
    unsafe {
        let row = |j: usize| _mm512_loadu_si512(read.add(offsets[j]).cast());
        interleaved(row(0), row(1), row(2), row(3))
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleaved(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [__m512i; 4] {
    let (ab_low, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
    [
        _mm512_unpacklo_epi16(ab_low, cd_low),
        _mm512_unpackhi_epi16(ab_low, cd_low),
        _mm512_unpacklo_epi16(ab_high, cd_high),
        _mm512_unpackhi_epi16(ab_high, cd_high),
    ]
}
