//! Dense and grouped convolution: tiles of a few pixels × 16 channels.

use std::ops::Range;

use super::{AllFactors, Bounds, Factors, Vector, fits, lane, rows::Rows, store_16};
use crate::arena::Aligned;
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::pack::tiles;
use crate::portable;
use crate::step::{Conv, Requant, Residual};

/// Channels of a block.
const CHANNELS: usize = 16;
/// Weights that stay in L1 while all of a band's pixels pass.
const L1_WEIGHTS: usize = 24 << 10;
/// Pixels, at least, of the rows between which all blocks of channels are computed when the weights stay in L1.
const BAND: usize = 96;

/// Computes tiles one after the other; by a tile's pixels.
pub(crate) type Tiles = [unsafe fn(&Tile<'_>, &mut Cursor, usize); 9];

/// Where the next pixel is read and written.
pub(crate) struct Cursor {
    x: usize,
    read: *const u8,
    write: *mut u8,
}

struct Packed {
    blocks: Vec<Block>,
    /// Offset of each four bytes from a window's first, in the order of the weights.
    quads: Vec<u32>,
    weights: Aligned,
    bias: Aligned<i32>,
    factors: AllFactors,
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
    let channels = outputs.next_multiple_of(CHANNELS);
    let in_lanes = |factors: &[f32]| {
        let mut lanes = Aligned::zeroed(channels);
        for (c, &factor) in factors.iter().enumerate() {
            lanes[c / CHANNELS * CHANNELS + lane(V::LANES, c % CHANNELS)] = factor;
        }
        lanes
    };
    let (multipliers, shifts) = (in_lanes(&conv.multipliers), in_lanes(&conv.shifts));
    let mut packed = Packed {
        blocks: vec![],
        quads: vec![],
        weights: Aligned::zeroed(0),
        bias: Aligned::zeroed(channels),
        factors: AllFactors::new::<V>(multipliers, shifts, !conv.shifts.is_empty()),
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
    packed.weights.copy_from_slice(&bytes);
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

    /// All channels of these rows.
    ///
    /// # Safety
    /// The module's contract; the rows are the output's.
    unsafe fn run_rows(&self, arena: *mut u8, rows: Range<usize>) {
        let width = self.output.width;
        let step = [self.step[1], self.output.pixel];
        let turn = [
            self.step[0] as isize - (width * step[0]) as isize,
            (self.output.row - width * step[1]) as isize,
        ];
        for block in &self.blocks {
            let tile = Tile {
                fast: &self.quads[block.fast.clone()],
                wide: &self.quads[block.wide.clone()],
                weights: self.weights[block.weights..].as_ptr(),
                bias: self.bias[block.channel..].as_ptr(),
                factors: self.factors.from(block.channel),
                fused: self.factors.fused,
                bounds: Bounds::new(&self.requant, self.factors.fused),
                stored: (self.output.pixel - block.channel).min(CHANNELS),
                width,
                step,
                turn,
            };
            let (count, least, larger) = tiles(rows.len() * width, self.pixels);
            // SAFETY: the offsets are those of a pixel's window and of the pixel, inside the arena, and the tiles cover
            // the pixels of the rows; the block's weights and factors are packed for 16 channels.
            unsafe {
                let read = arena.add(self.base + rows.start * self.step[0]).cast_const();
                let write = arena.add(self.output.offset(rows.start, 0) + block.channel);
                let mut cursor = Cursor { x: 0, read, write };
                if larger > 0 {
                    self.tiles[least + 1](&tile, &mut cursor, larger);
                }
                self.tiles[least](&tile, &mut cursor, count - larger);
            }
        }
    }
}

impl Run for Packed {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let near = self.weights.len() <= L1_WEIGHTS;
        let band = if near { BAND.div_ceil(self.output.width) } else { rows.len() };
        for y in rows.clone().step_by(band.max(1)) {
            let rows = y..rows.end.min(y + band);
            // SAFETY: the module's contract; these are rows of the output.
            unsafe { self.run_rows(memory.arena.as_mut_ptr(), rows.clone()) };
            // The sum and the table pass over what has just been written, while it is near.
            if let Some(Residual { view, sum }) = &self.residual {
                self.rows.add_rows(memory.arena, [&self.output, view, &self.output], sum, rows.clone());
            }
            if let Some(table) = &self.table {
                self.rows.table_rows(memory.arena, [&self.output, &self.output], table, rows);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.weights.len() + self.quads.len() * 4 + self.bias.len() * 4 + self.factors.bytes()
    }
}

/// What the tiles of one block share.
pub(crate) struct Tile<'a> {
    fast: &'a [u32],
    wide: &'a [u32],
    weights: *const u8,
    bias: *const i32,
    factors: Factors,
    fused: bool,
    bounds: Bounds,
    /// Bytes written per pixel.
    stored: usize,
    /// Pixels of a row.
    width: usize,
    /// Bytes to the next pixel, read and written.
    step: [usize; 2],
    /// Bytes to add at the end of a row, read and written.
    turn: [isize; 2],
}

/// `count` tiles of `M` pixels by `N` vectors, which hold 16 channels.
///
/// # Safety
/// The tier's features are there; the tile's weights cover its fours; from the cursor on there are as many pixels.
#[inline(always)]
pub(crate) unsafe fn tiles_of<V: Vector, const M: usize, const N: usize>(
    tile: &Tile<'_>,
    cursor: &mut Cursor,
    count: usize,
) {
    let Cursor { mut x, mut read, mut write } = *cursor;
    for _ in 0..count {
        let mut reads = [read; M];
        let mut writes = [write; M];
        for m in 0..M {
            (reads[m], writes[m]) = (read, write);
            x += 1;
            read = read.wrapping_add(tile.step[0]);
            write = write.wrapping_add(tile.step[1]);
            if x == tile.width {
                x = 0;
                read = read.wrapping_offset(tile.turn[0]);
                write = write.wrapping_offset(tile.turn[1]);
            }
        }
        // SAFETY: passed on; the pointers are those of M pixels.
        unsafe { pixels::<V, M, N>(tile, &reads, &writes) };
    }
    *cursor = Cursor { x, read, write };
}

/// # Safety
/// The tier's features are there; the tile's weights cover its fours; each pointer a window, or `stored` writable bytes.
#[inline(always)]
unsafe fn pixels<V: Vector, const M: usize, const N: usize>(
    tile: &Tile<'_>,
    reads: &[*const u8; M],
    writes: &[*mut u8; M],
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
        match tile.fused {
            true => finish::<V, M, N, true>(&acc, tile, writes),
            false => finish::<V, M, N, false>(&acc, tile, writes),
        }
    }
}

/// # Safety
/// The tier's features are there; each pointer has `stored` writable bytes.
#[inline(always)]
unsafe fn finish<V: Vector, const M: usize, const N: usize, const FUSED: bool>(
    acc: &[[V; N]; M],
    tile: &Tile<'_>,
    writes: &[*mut u8; M],
) {
    for m in 0..M {
        let mut whole = acc[m];
        // SAFETY: the caller's contract; the factors are those of N vectors.
        unsafe {
            for n in 0..N {
                whole[n] = tile.factors.results::<V, FUSED>(acc[m][n], n);
            }
            store_16(writes[m], tile.stored, V::pack_16(&whole, &tile.bounds));
        }
    }
}
