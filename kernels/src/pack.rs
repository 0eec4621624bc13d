//! Weights of convolutions in the order in which tiles of four-byte dot products read them.

use crate::arena::Aligned;
use crate::step::{Conv, Weights};

/// Output channels that one tile computes together, and the input channels they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// First output channel.
    pub(crate) channel: usize,
    /// Vectors of output channels.
    pub(crate) vectors: usize,
    /// First input channel.
    pub(crate) depth: usize,
    /// Input channels of one tap, in fours.
    pub(crate) quads: usize,
    /// First byte of the weights: `[tap][quad][vectors * lanes][4]`.
    pub(crate) weights: usize,
    /// First entry of multipliers and shifts.
    pub(crate) factors: usize,
    /// First entry of bias.
    pub(crate) bias: usize,
    /// Fours of input channels whose products with one output channel are summed apart, side by side.
    pub(crate) phases: usize,
}

impl Block {
    /// Where a lane's sums of four `phase` of several lie.
    fn apart(&self, shape: Shape, lane: usize, phase: usize) -> usize {
        if self.phases == 1 { lane } else { (shape.apart)(self.vectors, lane, phase) }
    }
}

/// How a tier's tiles are shaped.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// i32 lanes of a vector.
    pub(crate) lanes: usize,
    /// Most vectors of a block.
    pub(crate) vectors: usize,
    /// Vectors of the widest blocks, used as often as they fit before the rest is split evenly; 0 for none.
    pub(crate) wide: usize,
    /// Where channel `c` of a block of `vectors` goes among its `vectors * lanes` lanes.
    pub(crate) lane: fn(vectors: usize, c: usize) -> usize,
    /// How many fours a block of these vectors multiplies at once, of the `fours` that go into each sum.
    pub(crate) phases: fn(vectors: usize, fours: usize) -> usize,
    /// Where the sums of a lane for four `phase` of those lie: to be added up.
    pub(crate) apart: fn(vectors: usize, lane: usize, phase: usize) -> usize,
}

/// Packed weights and factors.
pub(crate) struct Packed {
    pub(crate) blocks: Vec<Block>,
    /// Repeated when weights do not fit i8: then each tap is read again, with weights that add up.
    pub(crate) taps: Vec<usize>,
    pub(crate) weights: Aligned,
    pub(crate) bias: Aligned<i32>,
    pub(crate) multipliers: Aligned<f32>,
    /// 0 where requantisation is not fused.
    pub(crate) shifts: Aligned<f32>,
}

impl Packed {
    pub(crate) fn new(conv: &Conv<Weights<'_>>, shape: Shape) -> Packed {
        let passes = passes_within(conv.weights.extremes);
        let (blocks, bytes) = blocks(conv, shape, passes);
        let lanes = blocks.iter().map(|block| block.vectors * shape.lanes).sum();
        let sums = blocks.iter().map(|block| block.vectors * block.phases * shape.lanes).sum();
        let mut packed = Packed {
            blocks,
            taps: conv.taps.repeat(passes),
            weights: Aligned::zeroed(bytes),
            bias: Aligned::zeroed(sums),
            multipliers: Aligned::zeroed(lanes),
            shifts: Aligned::zeroed(lanes),
        };
        for index in 0..packed.blocks.len() {
            let block = packed.blocks[index];
            match (conv.groups, passes) {
                (1, 1) => packed.fill_dense(conv, shape, block),
                _ => packed.fill(conv, shape, block, passes),
            }
        }
        packed
    }

    /// The usual case, in the order of the packed bytes: all weights pass here at every load.
    fn fill_dense(&mut self, conv: &Conv<Weights<'_>>, shape: Shape, block: Block) {
        let width = block.vectors * shape.lanes;
        let channels = width.min(conv.bias.len() - block.channel);
        let row = conv.taps.len() * conv.depth;
        let lanes: Vec<usize> = (0..channels).map(|c| (shape.lane)(block.vectors, c)).collect();
        let apart = |phase| lanes.iter().map(move |&lane| block.apart(shape, lane, phase)).collect();
        let phases: Vec<Vec<usize>> = (0..block.phases).map(apart).collect();
        let (weights, _) = self.weights[block.weights..].as_chunks_mut();
        let quads = conv.depth.div_ceil(4);
        let pitch = conv.taps.len() * quads;
        let mut together = vec![[0; 4]; TOGETHER.min(channels) * pitch];
        let mut odd = vec![0; if conv.depth.is_multiple_of(4) { 0 } else { row }];
        // A few rows at a time: they may be a multiple of the cache's sets apart.
        for start in (0..channels).step_by(TOGETHER) {
            let end = channels.min(start + TOGETHER);
            let rows = &mut together[..(end - start) * pitch];
            for (c, to) in (block.channel + start..).zip(rows.chunks_exact_mut(pitch)) {
                // They fit u8.
                if odd.is_empty() {
                    conv.weights.row(c, to.as_flattened_mut(), |w| w as u8);
                    continue;
                }
                conv.weights.row(c, &mut odd, |w| w as u8);
                for (from, to) in odd.chunks_exact(conv.depth).zip(to.chunks_exact_mut(quads)) {
                    to.as_flattened_mut()[..conv.depth].copy_from_slice(from);
                }
            }
            let mut steps = weights.chunks_exact_mut(width * block.phases);
            for tap in 0..conv.taps.len() {
                for (first, to) in (0..quads).step_by(block.phases).zip(&mut steps) {
                    for (quad, lanes) in (tap * quads + first..).zip(&phases) {
                        for (row, &lane) in rows.chunks_exact(pitch).zip(&lanes[start..end]) {
                            to[lane] = row[quad];
                        }
                    }
                }
            }
        }
        for (c, (&lane, &sum)) in (block.channel..).zip(lanes.iter().zip(&phases[0])) {
            self.bias[block.bias + sum] = conv.bias[c];
            self.set_factors(conv, c, block.factors + lane);
        }
    }

    fn set_factors(&mut self, conv: &Conv<Weights<'_>>, channel: usize, lane: usize) {
        self.multipliers[lane] = conv.multipliers[channel];
        self.shifts[lane] = conv.shifts.get(channel).copied().unwrap_or_default();
    }

    fn fill(&mut self, conv: &Conv<Weights<'_>>, shape: Shape, block: Block, passes: usize) {
        let outputs = conv.bias.len();
        let (group, taps) = (outputs / conv.groups, conv.taps.len());
        let width = block.vectors * shape.lanes;
        let mut row = vec![0; taps * conv.depth];
        for c in 0..width.min(outputs - block.channel) {
            let channel = block.channel + c;
            let lane = (shape.lane)(block.vectors, c);
            self.bias[block.bias + lane] = conv.bias[channel];
            self.set_factors(conv, channel, block.factors + lane);
            let weights = &mut self.weights[block.weights..];
            // Input channels of this group, relative to the block's first.
            let depth = channel / group * conv.depth - block.depth;
            conv.weights.row(channel, &mut row, |w| w);
            for pass in 0..passes {
                for (tap, from) in row.chunks_exact(conv.depth).enumerate() {
                    let tap = (pass * taps + tap) * block.quads;
                    for (k, &w) in from.iter().enumerate() {
                        let k = depth + k;
                        weights[((tap + k / 4) * width + lane) * 4 + k % 4] = part(w, pass) as u8;
                    }
                }
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weights.len() + self.bias.len() * 4 + self.multipliers.len() * 8
    }
}

/// Channels packed together.
const TOGETHER: usize = 16;

/// How many i8 weights add up to the greatest: 1 unless zero points widen them.
pub(crate) fn passes(weights: &[i16]) -> usize {
    passes_within(weights.iter().fold((0, 0), |(low, high), &w| (w.min(low), w.max(high))))
}

/// The same by the extremes alone, which are to hold 0.
fn passes_within(extremes: (i16, i16)) -> usize {
    match extremes {
        (_, 255..) => 3,
        (-128.., ..=127) => 1,
        _ => 2,
    }
}

/// The share of a weight that a pass multiplies with.
pub(crate) fn part(weight: i16, pass: usize) -> i8 {
    let before = (0..pass).map(|pass| i16::from(part(weight, pass))).sum::<i16>();
    (weight - before).clamp(-128, 127) as i8
}

/// Blocks of about equal width, and the bytes of their weights.
fn blocks<W>(conv: &Conv<W>, shape: Shape, passes: usize) -> (Vec<Block>, usize) {
    let outputs = conv.bias.len();
    let vectors = outputs.div_ceil(shape.lanes);
    let split = |most: usize| {
        let wide = vectors.checked_div(shape.wide).unwrap_or(0);
        let rest = vectors - wide * shape.wide;
        // Full ones first, but none of a single vector, whose tiles load as much as they multiply.
        let parts = rest.div_ceil(most);
        let lend = usize::from(parts > 1 && most > 2 && rest % most == 1);
        let even = (0..parts).map(|part| match parts - part {
            1 => rest - (parts - 1) * most + lend,
            2 => most - lend,
            _ => most,
        });
        let (mut channel, mut weights, mut factors, mut bias) = (0, 0, 0, 0);
        let blocks = std::iter::repeat_n(shape.wide, wide).chain(even).map(|vectors| {
            let last = (channel + vectors * shape.lanes).min(outputs) - 1;
            let group = outputs / conv.groups;
            let depth = channel / group * conv.depth;
            let quads = ((last / group + 1) * conv.depth - depth).div_ceil(4);
            let phases = (shape.phases)(vectors, conv.taps.len() * quads);
            let phases =
                if conv.groups == 1 && passes == 1 && quads.is_multiple_of(phases) { phases } else { 1 };
            let block = Block { channel, vectors, depth, quads, weights, factors, bias, phases };
            bias += vectors * phases * shape.lanes;
            channel += vectors * shape.lanes;
            factors += vectors * shape.lanes;
            weights += conv.taps.len() * passes * quads * vectors * shape.lanes * 4;
            block
        });
        let blocks: Vec<Block> = blocks.collect();
        (blocks, weights)
    };
    if conv.groups == 1 {
        return split(shape.vectors);
    }
    // A wide block spans more groups, whose input channels it multiplies with zeros; a narrow one makes worse tiles.
    let cost = |most: &usize| {
        let (blocks, _) = split(*most);
        blocks.iter().map(|block| block.quads * (2 * block.vectors + 1)).sum::<usize>()
    };
    let best = (1..=shape.vectors).min_by_key(cost).unwrap_or(1);
    split(best)
}

/// Splits `count` rows into tiles of at most `most`, as even as possible: `(tiles, rows of the smaller ones, how many are one
/// larger)`.
pub(crate) fn tiles(count: usize, most: usize) -> (usize, usize, usize) {
    // Divisions count where there is one pixel to compute.
    if count <= most {
        return (1, count, 0);
    }
    let tiles = count.div_ceil(most);
    (tiles, count / tiles, count % tiles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_the_sum_of_its_parts() {
        for weight in -255..=255 {
            let parts = (0..passes(&[weight])).map(|pass| i16::from(part(weight, pass)));
            assert_eq!(parts.sum::<i16>(), weight);
        }
        let all = [passes(&[-128, 127]), passes(&[0, 254]), passes(&[-255]), passes(&[255])];
        assert_eq!(all, [1, 2, 2, 3]);
    }

    #[test]
    fn tiles_are_even() {
        assert_eq!(tiles(49, 6), (9, 5, 4));
        assert_eq!(tiles(3, 6), (1, 3, 0));
    }
}
