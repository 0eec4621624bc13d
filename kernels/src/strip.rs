//! Depthwise convolution laid out for four-byte dot products: bytes of four rows interleaved, so that one instruction multiplies
//! four vertical taps of each channel. Tiers differ in the width of a vector and in how weights are kept.

use crate::arena::Aligned;
use crate::pack::{part, passes};
use crate::step::Depthwise;

/// Rows that one interleaving joins.
pub(crate) const QUAD: usize = 4;
/// Weights up to which repeating them for each way in which vectors meet channels beats leaving vectors half empty: a third
/// of L1.
pub(crate) const FLAT_WEIGHTS: usize = 16 << 10;

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Four i8 per channel; columns repeat where weights do not fit.
    Bytes,
    /// Taps 0 and 2 as i16 per channel, then a vector of taps 1 and 3: for products of words.
    Words,
}

/// A packed depthwise convolution.
pub(crate) struct Strips {
    /// Output rows computed together.
    pub(crate) rows: usize,
    /// For each column of four taps, where its four bytes lie.
    pub(crate) columns: Vec<[usize; QUAD]>,
    /// `[phase][column][row][channel][4]`, in the order of the interleaving.
    pub(crate) weights: Aligned,
    /// `[phase][channel]`, in the order of the interleaving.
    pub(crate) bias: Aligned<i32>,
    pub(crate) multipliers: Aligned<f32>,
    /// 0 where requantisation is not fused.
    pub(crate) shifts: Aligned<f32>,
    pub(crate) phases: Vec<Phase>,
    /// Bytes between positions, read and written.
    pub(crate) advance: [usize; 2],
}

/// The vectors along a row that meet the same channels.
pub(crate) struct Phase {
    /// First byte, read and written, relative to the row.
    pub(crate) start: usize,
    pub(crate) positions: usize,
    /// Bytes written at the last position.
    pub(crate) last: usize,
    /// Bytes written at the others.
    pub(crate) others: usize,
    /// Positions that share a vector, each with an equal part of it.
    pub(crate) parts: usize,
}

impl Strips {
    /// For vectors of `vector` bytes, of which up to `parts` positions may share one where pixels do not fill it. Vectors run on
    /// over pixels where that takes no more than `flat_weights` bytes, usually [`FLAT_WEIGHTS`].
    pub(crate) fn new(
        step: &Depthwise,
        vector: usize,
        parts: usize,
        kept: Kept,
        flat_weights: usize,
    ) -> Strips {
        let pixel = step.output.pixel;
        let rows = rows(step);
        let passes = if kept == Kept::Bytes { passes(&step.weights) } else { 1 };
        let columns = columns(step, rows, passes);
        let per_vector = vector * if kept == Kept::Bytes { QUAD } else { 2 * QUAD };
        let per_phase = columns.len() * rows * per_vector;
        // At stride 1 a row is one run of bytes, whatever the channels; the pattern of channels repeats after `period`.
        let period = pixel * vector / gcd(pixel, vector);
        let flat = step.step[1] == pixel && (period == pixel || period / vector * per_phase <= flat_weights);
        let period = if flat { period } else { pixel.next_multiple_of(vector) };
        let run = if flat { step.output.width * pixel } else { pixel };
        let phases = (0..period.min(run.next_multiple_of(vector))).step_by(vector).map(|start| {
            let positions = if flat { (run - start).div_ceil(period) } else { step.output.width };
            let end = if flat { run - start - (positions - 1) * period } else { run - start };
            let others = if flat { vector } else { end.min(vector) };
            let fills = |&parts: &usize| !flat && end * parts == vector && parts <= positions;
            let parts = (1..=parts).rev().find(fills).unwrap_or(1);
            Phase { start, positions, last: end.min(vector), others, parts }
        });
        let phases: Vec<Phase> = phases.collect();
        let mut strips = Strips {
            rows,
            weights: Aligned::zeroed(phases.len() * per_phase),
            bias: Aligned::zeroed(phases.len() * vector),
            multipliers: Aligned::zeroed(phases.len() * vector),
            shifts: Aligned::zeroed(phases.len() * vector),
            columns: columns.iter().map(|column| column.offsets).collect(),
            phases,
            advance: if flat { [period; 2] } else { [step.step[1], pixel] },
        };
        strips.fill(step, &columns, vector, kept);
        strips
    }

    fn fill(&mut self, step: &Depthwise, columns: &[Column], vector: usize, kept: Kept) {
        let (channels, pixel, rows) = (step.output.channels, step.output.pixel, self.rows);
        let (stride, lanes) = (stride(step).unwrap_or(0), vector / QUAD);
        let per_vector = self.weights.len() / (self.phases.len() * columns.len() * rows);
        let weights = &mut self.weights;
        for (index, phase) in self.phases.iter().enumerate() {
            for c in 0..vector {
                let channel = (phase.start + c % (vector / phase.parts)) % pixel;
                if channel >= channels {
                    continue;
                }
                // The order that interleaving by bytes and then by pairs leaves, and that packing undoes.
                let (q, lane) = (c % 16 / 4, c / 16 * 4 + c % 4);
                self.bias[index * vector + q * lanes + lane] = step.bias[channel];
                self.multipliers[index * vector + q * lanes + lane] = step.multipliers[channel];
                if let Some(&shift) = step.shifts.get(channel) {
                    self.shifts[index * vector + q * lanes + lane] = shift;
                }
                for (at, column) in columns.iter().enumerate() {
                    for row in 0..rows {
                        let to = &mut weights[((index * columns.len() + at) * rows + row) * per_vector..];
                        for j in 0..QUAD {
                            let Some(ky) = (column.top + j).checked_sub(row * stride) else { continue };
                            if ky >= step.kernel[0] {
                                continue;
                            }
                            let w = step.weights[(ky * step.kernel[1] + column.kx) * channels + channel];
                            match kept {
                                Kept::Bytes => to[(q * lanes + lane) * QUAD + j] = part(w, column.pass) as u8,
                                Kept::Words => {
                                    let to =
                                        &mut to[(q * 2 + j % 2) * vector + lane * QUAD + j / 2 * 2..][..2];
                                    to.copy_from_slice(&w.to_le_bytes());
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Weights of a phase.
    pub(crate) fn weights_of(&self, phase: usize) -> &[u8] {
        let per_phase = self.weights.len() / self.phases.len();
        &self.weights[phase * per_phase..][..per_phase]
    }

    /// The rows to compute together at `y`: the first, and which of them to keep. A last single row computes a second one as
    /// well and drops it: below it rows are missing, so it is the row above that is computed again.
    pub(crate) fn rows_at(&self, y: usize, end: usize) -> (usize, [bool; 2]) {
        match (self.rows, end - y) {
            (2, 1) if y > 0 => (y - 1, [false, true]),
            (2, 1) => (y, [true, false]),
            _ => (y, [true, true]),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weights.len() + self.bias.len() * 4 + self.multipliers.len() * 8
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Taps from one output row to the next, where taps are rows that follow one another.
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
