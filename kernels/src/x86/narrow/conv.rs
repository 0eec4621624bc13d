//! Dense and grouped convolution: tiles of a few pixels × 16 channels.

use std::ops::Range;

use super::{Bounds, Vector, fits, lane, rows::Rows, store_16};
use crate::arena::Aligned;
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::pack::tiles;
use crate::portable;
use crate::step::{Conv, Requant, Residual};

/// Channels of a block.
const CHANNELS: usize = 16;
/// Weights that stay in L1 while all of a chunk's pixels pass.
const L1_WEIGHTS: usize = 24 << 10;
/// Pixels between which all blocks of channels are computed when the weights stay in L1.
const CHUNK: usize = 48;

/// A tile's kernel by its pixels.
pub(crate) type Tiles = [unsafe fn(&Tile<'_>, &[*const u8; 8], &[*mut u8; 8]); 9];

struct Packed {
    blocks: Vec<Block>,
    /// Offset of each four bytes from a window's first, in the order of the weights.
    quads: Vec<u32>,
    weights: Aligned,
    bias: Vec<i32>,
    multipliers: Vec<f32>,
    base: usize,
    step: [usize; 2],
    requant: Requant,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
    pixels: usize,
    tiles: &'static Tiles,
    rows: &'static Rows,
}

/// 16 output channels.
struct Block {
    channel: usize,
    /// Fours with i8 weights that the fast product takes, 64 bytes each.
    fast: Range<usize>,
    /// Fours with i16 weights, 128 bytes each.
    wide: Range<usize>,
    weights: usize,
}

pub(crate) fn pack<V: Vector>(conv: Conv, tiles: &'static Tiles, rows: &'static Rows) -> Kernel {
    if conv.saturates {
        return portable::packed(conv);
    }
    let outputs = conv.bias.len();
    let mut packed = Packed {
        blocks: vec![],
        quads: vec![],
        weights: Aligned::zeroed(0),
        bias: vec![0; outputs.next_multiple_of(CHANNELS)],
        multipliers: vec![0.0; outputs.next_multiple_of(CHANNELS)],
        base: conv.base,
        step: conv.step,
        requant: conv.requant,
        residual: None,
        table: None,
        output: conv.output,
        pixels: V::PIXELS,
        tiles,
        rows,
    };
    let mut bytes = vec![];
    for channel in (0..outputs).step_by(CHANNELS) {
        packed.block::<V>(&conv, channel, &mut bytes);
    }
    packed.weights = Aligned::zeroed(bytes.len());
    packed.weights.bytes_mut().copy_from_slice(&bytes);
    packed.residual = conv.residual;
    packed.table = conv.table;
    Box::new(packed)
}

impl Packed {
    /// Packs the block that starts at an output channel, leaving out fours whose weights are all zero.
    fn block<V: Vector>(&mut self, conv: &Conv, channel: usize, bytes: &mut Vec<u8>) {
        let outputs = conv.bias.len();
        let channels = CHANNELS.min(outputs - channel);
        let group = |c: usize| (channel + c) / (outputs / conv.groups);
        for c in 0..channels {
            self.bias[channel + lane(V::LANES, c)] = conv.bias[channel + c];
            self.multipliers[channel + lane(V::LANES, c)] = conv.multipliers[channel + c];
        }
        let first = group(0) * conv.depth;
        let depth = (group(channels - 1) + 1) * conv.depth - first;
        let weights = bytes.len();
        let mut wide = vec![];
        let mut wide_quads = vec![];
        let start = self.quads.len();
        for (tap, &offset) in conv.taps.iter().enumerate() {
            for k in (0..depth).step_by(4) {
                let mut four = [[0i16; 4]; CHANNELS];
                for (c, four) in four.iter_mut().enumerate().take(channels) {
                    let own = group(c) * conv.depth - first;
                    let row =
                        &conv.weights[((channel + c) * conv.taps.len() + tap) * conv.depth..][..conv.depth];
                    for (j, w) in four.iter_mut().enumerate() {
                        *w = (k + j).checked_sub(own).and_then(|k| row.get(k)).copied().unwrap_or(0);
                    }
                }
                if four == [[0; 4]; CHANNELS] {
                    continue;
                }
                let offset = (offset + first + k) as u32;
                let exact = |&[a, b, c, d]: &[i16; 4]| match V::EXACT {
                    true => [a, b, c, d].iter().all(|&w| i8::try_from(w).is_ok()),
                    false => fits(a, b) && fits(c, d),
                };
                if four.iter().all(exact) {
                    let mut packed = [0; 64];
                    for (c, four) in four.iter().enumerate() {
                        let to = lane(V::LANES, c) * 4;
                        (0..4).for_each(|j| packed[to + j] = four[j] as i8 as u8);
                    }
                    bytes.extend(packed);
                    self.quads.push(offset);
                } else {
                    let mut packed = [0; 128];
                    for (c, four) in four.iter().enumerate() {
                        for (j, w) in four.iter().enumerate() {
                            let to = j % 2 * 64 + lane(V::LANES, c) * 4 + j / 2 * 2;
                            packed[to..to + 2].copy_from_slice(&w.to_le_bytes());
                        }
                    }
                    wide.extend(packed);
                    wide_quads.push(offset);
                }
            }
        }
        let middle = self.quads.len();
        bytes.extend(wide);
        self.quads.extend(wide_quads);
        let (fast, wide) = (start..middle, middle..self.quads.len());
        self.blocks.push(Block { channel, fast, wide, weights });
    }

    /// All channels of the pixels `start..end`.
    ///
    /// # Safety
    /// The module's contract; the pixels are the output's.
    unsafe fn run_pixels(&self, arena: *mut u8, start: usize, end: usize) {
        for block in &self.blocks {
            let tile = Tile {
                fast: &self.quads[block.fast.clone()],
                wide: &self.quads[block.wide.clone()],
                weights: self.weights.bytes()[block.weights..].as_ptr(),
                bias: self.bias[block.channel..].as_ptr(),
                multipliers: self.multipliers[block.channel..].as_ptr(),
                bounds: Bounds::new(&self.requant),
                stored: (self.output.pixel - block.channel).min(CHANNELS),
            };
            let (count, least, larger) = tiles(end - start, self.pixels);
            let mut pixel = start;
            let (mut y, mut x) = (start / self.output.width, start % self.output.width);
            for index in 0..count {
                let pixels = least + usize::from(index < larger);
                let mut reads = [std::ptr::null(); 8];
                let mut writes = [std::ptr::null_mut(); 8];
                for (read, write) in reads.iter_mut().zip(&mut writes).take(pixels) {
                    // SAFETY: the offsets are those of a pixel's window and of the pixel, inside the arena.
                    unsafe {
                        *read = arena.add(self.base + y * self.step[0] + x * self.step[1]).cast_const();
                        *write = arena.add(self.output.offset(y, x) + block.channel);
                    }
                    x += 1;
                    if x == self.output.width {
                        (x, y) = (0, y + 1);
                    }
                }
                // SAFETY: as many pointers are set as the tile has pixels.
                unsafe { self.tiles[pixels](&tile, &reads, &writes) };
                pixel += pixels;
            }
            debug_assert_eq!(pixel, end);
        }
    }
}

impl Run for Packed {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let width = self.output.width;
        let (start, end) = (rows.start * width, rows.end * width);
        let chunk = if self.weights.bytes().len() <= L1_WEIGHTS { CHUNK } else { end - start };
        let mut at = start;
        while at < end {
            let next = end.min(at + chunk);
            // SAFETY: the module's contract; `at..next` are pixels of the output.
            unsafe { self.run_pixels(memory.arena.as_mut_ptr(), at, next) };
            at = next;
        }
        if let Some(Residual { view, sum }) = &self.residual {
            self.rows.add_rows(memory.arena, [&self.output, view, &self.output], sum, rows.clone());
        }
        if let Some(table) = &self.table {
            self.rows.table_rows(memory.arena, [&self.output, &self.output], table, rows);
        }
    }

    fn bytes(&self) -> usize {
        self.weights.bytes().len() + self.quads.len() * 4 + self.bias.len() * 8
    }
}

/// What the tiles of one block share.
pub(crate) struct Tile<'a> {
    fast: &'a [u32],
    wide: &'a [u32],
    weights: *const u8,
    bias: *const i32,
    multipliers: *const f32,
    bounds: Bounds,
    /// Bytes written per pixel.
    stored: usize,
}

/// `M` pixels by `N` vectors, which hold 16 channels.
///
/// # Safety
/// The tier's features are there; the tile's weights cover its fours, the first `M` pointers a window and `stored` bytes each.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, const M: usize, const N: usize>(
    tile: &Tile<'_>,
    reads: &[*const u8; 8],
    writes: &[*mut u8; 8],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let bytes = V::LANES * 4;
        let first = V::load(tile.bias.cast());
        let mut acc = [[first; N]; M];
        for n in 1..N {
            let bias = V::load(tile.bias.add(n * V::LANES).cast());
            for row in &mut acc {
                row[n] = bias;
            }
        }
        let mut weights = tile.weights;
        for &offset in tile.fast {
            let mut w = [first; N];
            for n in 0..N {
                w[n] = V::load(weights.add(n * bytes));
            }
            weights = weights.add(64);
            for m in 0..M {
                let x = V::broadcast(reads[m].add(offset as usize));
                for n in 0..N {
                    acc[m][n] = acc[m][n].dot(x, w[n]);
                }
            }
        }
        for &offset in tile.wide {
            for m in 0..M {
                let (even, odd) = V::broadcast(reads[m].add(offset as usize)).split();
                for n in 0..N {
                    let sum = acc[m][n].dot_words(even, V::load(weights.add(n * bytes)));
                    acc[m][n] = sum.dot_words(odd, V::load(weights.add(64 + n * bytes)));
                }
            }
            weights = weights.add(128);
        }
        for m in 0..M {
            let mut whole = [first; N];
            for n in 0..N {
                whole[n] = acc[m][n].rounded(tile.multipliers.add(n * V::LANES));
            }
            store_16(writes[m], tile.stored, V::pack_16(&whole, &tile.bounds));
        }
    }
}
