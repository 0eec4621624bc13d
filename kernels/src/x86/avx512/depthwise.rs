//! Depthwise convolution. Bytes of four rows are interleaved, so that one instruction multiplies four vertical taps of 16
//! channels; two output rows and two positions along them share the interleaving and the weights.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Bounds, elementwise, mask, rounded, store};
use crate::arena::Aligned;
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::pack::{part, passes};
use crate::portable;
use crate::step::{Depthwise, Requant, Residual};

/// Rows that one interleaving joins.
const QUAD: usize = 4;
/// Channels, or bytes along a row, of one vector.
const VECTOR: usize = 64;
/// Weights up to which repeating them for each way in which vectors meet channels beats leaving vectors half empty: a third
/// of L1.
const FLAT_WEIGHTS: usize = 16 << 10;

struct Depthwise512 {
    base: usize,
    step_y: usize,
    /// Output rows computed together.
    rows: usize,
    /// For each column of four taps, where its four bytes lie.
    columns: Vec<[usize; QUAD]>,
    /// `[phase][column][row][64 channels][4]`, in the order of the interleaving.
    weights: Aligned,
    /// `[phase][64]`, in the order of the interleaving.
    bias: Vec<i32>,
    multipliers: Vec<f32>,
    phases: Vec<Phase>,
    /// Bytes between positions, read and written.
    advance: [usize; 2],
    requant: Requant,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
}

/// The vectors along a row that meet the same channels.
struct Phase {
    /// First byte, read and written, relative to the row.
    start: usize,
    positions: usize,
    /// Bytes written at the last position.
    last: usize,
    /// Bytes written at the others.
    others: usize,
}

pub(super) fn pack(step: Depthwise) -> Kernel {
    if step.saturates || step.output.pixel < 16 {
        return portable::packed(step);
    }
    let pixel = step.output.pixel;
    let rows = rows(&step);
    let passes = passes(&step.weights);
    let columns = columns(&step, rows, passes);
    let per_phase = columns.len() * rows * VECTOR * QUAD;
    // At stride 1 a row is one run of bytes, whatever the channels; the pattern of channels repeats after `period`.
    let period = pixel * VECTOR / gcd(pixel, VECTOR);
    let flat = step.step[1] == pixel && (period == pixel || period / VECTOR * per_phase <= FLAT_WEIGHTS);
    let period = if flat { period } else { pixel.next_multiple_of(VECTOR) };
    let run = if flat { step.output.width * pixel } else { pixel };
    let advance = if flat { [period; 2] } else { [step.step[1], pixel] };
    let phases = (0..period.min(run.next_multiple_of(VECTOR))).step_by(VECTOR).map(|start| {
        let positions = if flat { (run - start).div_ceil(period) } else { step.output.width };
        let end = if flat { run - start - (positions - 1) * period } else { run - start };
        let others = if flat { VECTOR } else { end.min(VECTOR) };
        Phase { start, positions, last: end.min(VECTOR), others }
    });
    let phases: Vec<Phase> = phases.collect();
    let mut packed = Depthwise512 {
        base: step.base,
        step_y: step.step[0],
        rows,
        weights: Aligned::zeroed(phases.len() * per_phase),
        bias: vec![0; phases.len() * VECTOR],
        multipliers: vec![0.0; phases.len() * VECTOR],
        columns: columns.iter().map(|column| column.offsets).collect(),
        phases,
        advance,
        requant: step.requant,
        residual: step.residual.clone(),
        table: step.table.clone(),
        output: step.output,
    };
    packed.fill(&step, &columns);
    Box::new(packed)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Input rows from one output row to the next, where taps are rows that follow one another.
fn stride(step: &Depthwise) -> Option<usize> {
    let (stride, tap) = (step.step[0], step.tap_step[0]);
    (stride > 0 && tap > 0 && stride.is_multiple_of(tap)).then(|| stride / tap)
}

/// Two output rows at once where the second fits into the four-row groups that the first needs anyway.
fn rows(step: &Depthwise) -> usize {
    let groups = |height: usize| height.div_ceil(QUAD);
    match stride(step) {
        Some(stride) if groups(step.kernel[0] + stride) == groups(step.kernel[0]) => 2,
        _ => 1,
    }
}

/// Four vertical taps at one horizontal position.
struct Column {
    /// First vertical tap.
    top: usize,
    kx: usize,
    pass: usize,
    offsets: [usize; QUAD],
}

fn columns(step: &Depthwise, rows: usize, passes: usize) -> Vec<Column> {
    let height = step.kernel[0] + if rows == 2 { stride(step).unwrap_or(0) } else { 0 };
    let tops = (0..step.kernel[0]).step_by(QUAD);
    let column = |pass, top, kx| {
        // Rows that no tap needs may lie outside of the arena; their weights are zero, so any other row will do.
        let row = |j: usize| if top + j < height { top + j } else { top };
        let offset = |j: usize| row(j) * step.tap_step[0] + kx * step.tap_step[1];
        Column { top, kx, pass, offsets: std::array::from_fn(offset) }
    };
    let all = (0..passes).flat_map(|pass| tops.clone().map(move |top| (pass, top)));
    all.flat_map(|(pass, top)| (0..step.kernel[1]).map(move |kx| (pass, top, kx)))
        .map(|(pass, top, kx)| column(pass, top, kx))
        .collect()
}

/// Where channel `c` of 64 goes: the order that interleaving by bytes and then by pairs leaves, and that packing undoes.
fn lane(c: usize) -> usize {
    c % 16 / 4 * 16 + c / 16 * 4 + c % 4
}

impl Depthwise512 {
    fn fill(&mut self, step: &Depthwise, columns: &[Column]) {
        let (channels, pixel, rows) = (step.output.channels, step.output.pixel, self.rows);
        let stride = stride(step).unwrap_or(0);
        let weights = self.weights.bytes_mut();
        for (index, phase) in self.phases.iter().enumerate() {
            for c in 0..VECTOR {
                let channel = (phase.start + c) % pixel;
                if channel >= channels {
                    continue;
                }
                let lane = lane(c);
                self.bias[index * VECTOR + lane] = step.bias[channel];
                self.multipliers[index * VECTOR + lane] = step.multipliers[channel];
                for (at, column) in columns.iter().enumerate() {
                    for row in 0..rows {
                        for j in 0..QUAD {
                            let Some(ky) = (column.top + j).checked_sub(row * stride) else { continue };
                            if ky < step.kernel[0] {
                                let w = step.weights[(ky * step.kernel[1] + column.kx) * channels + channel];
                                let to = ((index * columns.len() + at) * rows + row) * VECTOR * QUAD + lane * QUAD + j;
                                weights[to] = part(w, column.pass) as u8;
                            }
                        }
                    }
                }
            }
        }
    }

}

impl Run for Depthwise512 {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let arena = memory.arena.as_mut_ptr();
        let mut y = rows.start;
        while y < rows.end {
            // A last single row computes a second one as well and drops it: it reads rows the border may lack, so it moves up.
            let (first, keep) = match (self.rows, rows.end - y) {
                (2, 1) if y > 0 => (y - 1, [false, true]),
                (2, 1) => (y, [true, false]),
                _ => (y, [true, true]),
            };
            // SAFETY: the module's contract; `first` and, of two rows, the one after are rows of the output.
            unsafe {
                match self.rows {
                    2 => self.strip::<2>(arena, first, keep),
                    _ => self.strip::<1>(arena, first, keep),
                }
            }
            y += self.rows;
        }
        if let Some(Residual { view, sum }) = &self.residual {
            elementwise::add_rows(memory.arena, &self.output, view, &self.output, sum, rows.clone());
        }
        if let Some(table) = &self.table {
            elementwise::table_rows(memory.arena, &self.output, &self.output, table, rows);
        }
    }

    fn bytes(&self) -> usize {
        self.weights.bytes().len() + self.bias.len() * 8
    }
}

impl Depthwise512 {
    /// `R` output rows from `y` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn strip<const R: usize>(&self, arena: *mut u8, y: usize, keep: [bool; 2]) {
        let bounds = Bounds::new(&self.requant);
        for (index, phase) in self.phases.iter().enumerate() {
            let per_phase = self.columns.len() * R * VECTOR * QUAD;
            let vector = Vector {
                columns: &self.columns,
                weights: self.weights.bytes()[index * per_phase..].as_ptr(),
                bias: self.bias[index * VECTOR..].as_ptr(),
                multipliers: self.multipliers[index * VECTOR..].as_ptr(),
                bounds,
                advance: self.advance,
                row: self.output.row,
                keep,
            };
            let mut read = self.base + y * self.step_y + phase.start;
            let mut write = self.output.offset(y, 0) + phase.start;
            let mut left = phase.positions;
            // SAFETY: positions of the row: their windows lie in the arena, a vector's rest in its slack, and stores are
            // masked to the row.
            unsafe {
                while left > 2 {
                    let others = mask(phase.others);
                    vector.compute::<R, 2>(arena.add(read), arena.add(write), [others; 2]);
                    read += 2 * self.advance[0];
                    write += 2 * self.advance[1];
                    left -= 2;
                }
                let (read, write) = (arena.add(read), arena.add(write));
                match left {
                    2 => vector.compute::<R, 2>(read, write, [mask(phase.others), mask(phase.last)]),
                    _ => vector.compute::<R, 1>(read, write, [mask(phase.last), 0]),
                }
            }
        }
    }
}

/// What the positions of one phase share.
struct Vector<'a> {
    columns: &'a [[usize; QUAD]],
    weights: *const u8,
    bias: *const i32,
    multipliers: *const f32,
    bounds: Bounds,
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
    unsafe fn compute<const R: usize, const X: usize>(&self, read: *const u8, write: *mut u8, masks: [u64; 2]) {
        // Plain loops: a closure handed to another function would not be compiled for these features in place.
        let mut acc = [[[_mm512_setzero_si512(); 4]; X]; R];
        for q in 0..4 {
            // SAFETY: the bias covers 64 channels.
            let bias = unsafe { _mm512_loadu_si512(self.bias.add(q * 16).cast()) };
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
        let mut multipliers = [_mm512_setzero_ps(); 4];
        for q in 0..4 {
            // SAFETY: the multipliers cover 64 channels.
            multipliers[q] = unsafe { _mm512_loadu_ps(self.multipliers.add(q * 16)) };
        }
        for r in 0..R {
            if !self.keep[r] {
                continue;
            }
            for x in 0..X {
                let mut whole = [_mm512_setzero_si512(); 4];
                for q in 0..4 {
                    whole[q] = rounded(acc[r][x][q], multipliers[q]);
                }
                let bytes = self.bounds.pack(whole);
                // SAFETY: the caller's contract.
                unsafe {
                    store(write.add(r * self.row + x * self.advance[1]), masks[x], bytes);
                }
            }
        }
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
    let (a, b, c, d) = unsafe {
        let row = |j: usize| _mm512_loadu_si512(read.add(offsets[j]).cast());
        (row(0), row(1), row(2), row(3))
    };
    let (ab_low, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
    [
        _mm512_unpacklo_epi16(ab_low, cd_low),
        _mm512_unpackhi_epi16(ab_low, cd_low),
        _mm512_unpacklo_epi16(ab_high, cd_high),
        _mm512_unpackhi_epi16(ab_high, cd_high),
    ]
}
