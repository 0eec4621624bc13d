//! Dense and grouped convolution: tiles of a few pixels × 16 channels.

use std::marker::PhantomData;
use std::ops::Range;

use super::CHANNELS;
use super::rows;
use crate::arena::Aligned;
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::pack::tiles;
use crate::step::{Conv, Requant, Residual};

/// Weights that stay in L1 while all of a band's pixels pass.
const L1_WEIGHTS: usize = 16 << 10;
/// Pixels, at least, of the rows between which all blocks of channels are computed when the weights stay in L1.
const BAND: usize = 64;

/// Most input bytes of a chunk, whatever the tier.
const LONG_MAX: usize = 16;

/// How a tier computes tiles.
pub(super) trait Tiles: 'static {
    /// Input bytes of one pixel that a long chunk multiplies.
    const LONG: usize;
    /// Input bytes of a short chunk, where a long one would mostly multiply with zeros.
    const SHORT: usize;
    /// Most pixels of a tile: as many as stay in registers.
    const PIXELS: usize;
    /// Tiles have a multiple of this many pixels.
    const GRAIN: usize;
    /// Whether activations are read as i8, less 128; the bias makes up for it.
    const SIGNED: bool;
    /// The smallest weight: a chunk with others is multiplied again by what is left of them.
    const LEAST: i16;

    /// Where the weight of channel `c` for input byte `k` lies in a chunk of `16 * bytes` weights.
    fn place(c: usize, k: usize) -> usize;

    /// Computes a tile.
    ///
    /// # Safety
    /// The tier was detected; the tile's weights cover its chunks; each pointer is a window's, or that of `stored` writable
    /// bytes.
    unsafe fn pixels<const M: usize>(tile: &Tile<'_>, reads: &[*const u8; M], writes: &[*mut u8; M]);
}

struct Packed<T> {
    blocks: Vec<Block>,
    /// Offset of each chunk from a window's first byte, in the order of the weights.
    offsets: Vec<u32>,
    weights: Aligned,
    bias: Vec<i32>,
    multipliers: Vec<f32>,
    /// 0 where requantisation is not fused.
    shifts: Vec<f32>,
    fused: bool,
    base: usize,
    step: [usize; 2],
    requant: Requant,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
    tier: PhantomData<fn() -> T>,
}

/// 16 output channels.
struct Block {
    channel: usize,
    offsets: Range<usize>,
    /// How many chunks are long. They come first.
    long: usize,
    weights: usize,
}

pub(super) fn pack<T: Tiles>(conv: Conv) -> Kernel {
    let outputs = conv.bias.len();
    let mut packed = Packed::<T> {
        blocks: vec![],
        offsets: vec![],
        weights: Aligned::zeroed(0),
        bias: biases::<T>(&conv),
        multipliers: conv.multipliers.clone(),
        shifts: conv.shifts.clone(),
        fused: !conv.shifts.is_empty(),
        base: conv.base,
        step: conv.step,
        requant: conv.requant,
        residual: None,
        table: None,
        output: conv.output,
        tier: PhantomData,
    };
    packed.bias.resize(outputs.next_multiple_of(CHANNELS), 0);
    packed.multipliers.resize(outputs.next_multiple_of(CHANNELS), 0.0);
    packed.shifts.resize(outputs.next_multiple_of(CHANNELS), 0.0);
    let mut bytes = vec![];
    for channel in (0..outputs).step_by(CHANNELS) {
        packed.block(&conv, channel, &mut bytes);
    }
    packed.weights = Aligned::zeroed(bytes.len());
    packed.weights.copy_from_slice(&bytes);
    packed.residual = conv.residual;
    packed.table = conv.table;
    Box::new(packed)
}

/// Only whole sums are known to fit i32: a part of one may wrap, and wraps back.
fn biases<T: Tiles>(conv: &Conv) -> Vec<i32> {
    let rows = conv.weights.chunks_exact(conv.taps.len() * conv.depth);
    let sums = rows.map(|row| row.iter().map(|&w| i32::from(w)).fold(0, i32::wrapping_add));
    let shift = if T::SIGNED { 128 } else { 0 };
    conv.bias.iter().zip(sums).map(|(bias, sum)| bias.wrapping_add(sum.wrapping_mul(shift))).collect()
}

/// Chunks under construction.
#[derive(Default)]
struct Chunks {
    offsets: Vec<u32>,
    weights: Vec<u8>,
}

impl Chunks {
    /// Adds a chunk as often as its weights need to add up from what one multiplication takes: never where all are zero.
    fn push<T: Tiles>(&mut self, offset: usize, mut left: [[i16; LONG_MAX]; CHANNELS], bytes: usize) {
        while left != [[0; LONG_MAX]; CHANNELS] {
            let start = self.weights.len();
            self.weights.resize(start + CHANNELS * bytes, 0);
            for (c, row) in left.iter_mut().enumerate() {
                for (k, w) in row[..bytes].iter_mut().enumerate() {
                    let part = (*w).clamp(T::LEAST, 127);
                    self.weights[start + T::place(c, k)] = part as i8 as u8;
                    *w -= part;
                }
            }
            self.offsets.push(offset as u32);
        }
    }
}

impl<T: Tiles> Packed<T> {
    /// Packs the block that starts at an output channel.
    fn block(&mut self, conv: &Conv, channel: usize, bytes: &mut Vec<u8>) {
        let outputs = conv.bias.len();
        let channels = CHANNELS.min(outputs - channel);
        // Groups that share a block have zeros for the input channels of the others.
        let group = |c: usize| (channel + c) / (outputs / conv.groups);
        let first = group(0) * conv.depth;
        let depth = (group(channels - 1) + 1) * conv.depth - first;
        let (mut long, mut short) = (Chunks::default(), Chunks::default());
        for (tap, &offset) in conv.taps.iter().enumerate() {
            let mut k = 0;
            while k < depth {
                let bytes = if depth - k > T::LONG - T::SHORT { T::LONG } else { T::SHORT };
                let mut weights = [[0; LONG_MAX]; CHANNELS];
                for (c, to) in weights.iter_mut().enumerate().take(channels) {
                    let row =
                        &conv.weights[((channel + c) * conv.taps.len() + tap) * conv.depth..][..conv.depth];
                    copy_from(to, row, k as isize - (group(c) * conv.depth - first) as isize, bytes);
                }
                let chunks = if bytes == T::LONG { &mut long } else { &mut short };
                chunks.push::<T>(offset + first + k, weights, bytes);
                k += bytes;
            }
        }
        let start = self.offsets.len();
        let (weights, count) = (bytes.len(), long.offsets.len());
        for chunks in [long, short] {
            self.offsets.extend(chunks.offsets);
            bytes.extend(chunks.weights);
        }
        self.blocks.push(Block { channel, offsets: start..self.offsets.len(), long: count, weights });
    }

    /// All channels of these rows.
    fn run_rows(&self, arena: *mut u8, rows: Range<usize>) {
        let width = self.output.width;
        let step = [self.step[1], self.output.pixel];
        let turn = [
            self.step[0] as isize - (width * step[0]) as isize,
            (self.output.row - width * step[1]) as isize,
        ];
        let pixels = rows.len() * width;
        let (count, least, larger) = tiles(pixels.div_ceil(T::GRAIN), T::PIXELS / T::GRAIN);
        for block in &self.blocks {
            let tile = Tile {
                offsets: &self.offsets[block.offsets.clone()],
                long: block.long,
                weights: self.weights[block.weights..].as_ptr().cast(),
                bias: self.bias[block.channel..].as_ptr(),
                multipliers: self.multipliers[block.channel..].as_ptr(),
                shifts: self.shifts[block.channel..].as_ptr(),
                fused: self.fused,
                requant: &self.requant,
                stored: (self.output.pixel - block.channel).min(CHANNELS),
                width,
                step,
                turn,
            };
            // SAFETY: the offsets are those of a pixel's window and of the pixel, inside the arena, and the cursor covers
            // the pixels of the rows; the block's weights and factors are packed for 16 channels.
            unsafe {
                let read = arena.add(self.base + rows.start * self.step[0]).cast_const();
                let write = arena.add(self.output.offset(rows.start, 0) + block.channel);
                let mut cursor = Cursor { left: pixels, x: 0, read, write };
                run_tiles::<T>(&tile, &mut cursor, (least + 1) * T::GRAIN, larger);
                run_tiles::<T>(&tile, &mut cursor, least * T::GRAIN, count - larger);
            }
        }
    }
}

/// Copies the weights of input channels `from..from + bytes`, of which some may lie outside of the row.
fn copy_from(to: &mut [i16; LONG_MAX], row: &[i16], from: isize, bytes: usize) {
    let (start, skipped) = (from.max(0) as usize, (-from).max(0) as usize);
    if skipped < bytes && start < row.len() {
        let count = (bytes - skipped).min(row.len() - start);
        to[skipped..skipped + count].copy_from_slice(&row[start..start + count]);
    }
}

impl<T: Tiles> Run for Packed<T> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let near = self.weights.len() <= L1_WEIGHTS;
        let band = if near { BAND.div_ceil(self.output.width) } else { rows.len() };
        for y in rows.clone().step_by(band.max(1)) {
            let rows = y..rows.end.min(y + band);
            self.run_rows(memory.arena.as_mut_ptr(), rows.clone());
            // The sum and the table pass over what has just been written, while it is near.
            if let Some(Residual { view, sum }) = &self.residual {
                rows::add_rows(memory.arena, [&self.output, view, &self.output], sum, rows.clone());
            }
            if let Some(table) = &self.table {
                rows::table_rows(memory.arena, [&self.output, &self.output], table, rows);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.weights.len() + self.offsets.len() * 4 + self.bias.len() * 12
    }
}

/// What the tiles of one block share.
pub(super) struct Tile<'a> {
    /// Of chunks, from a window's first byte.
    pub(super) offsets: &'a [u32],
    /// How many chunks are long. They come first.
    pub(super) long: usize,
    pub(super) weights: *const i8,
    pub(super) bias: *const i32,
    pub(super) multipliers: *const f32,
    pub(super) shifts: *const f32,
    pub(super) fused: bool,
    pub(super) requant: &'a Requant,
    /// Bytes written per pixel.
    pub(super) stored: usize,
    /// Pixels of a row.
    width: usize,
    /// Bytes to the next pixel, read and written.
    step: [usize; 2],
    /// Bytes to add at the end of a row, read and written.
    turn: [isize; 2],
}

/// Where the next pixel is read and written.
struct Cursor {
    /// Pixels from here on, this one included.
    left: usize,
    x: usize,
    read: *const u8,
    write: *mut u8,
}

impl Cursor {
    /// Goes to the next pixel, but stays at the last: computing it again fills a tile.
    #[inline(always)]
    fn advance(&mut self, tile: &Tile<'_>) {
        if self.left == 1 {
            return;
        }
        self.left -= 1;
        self.x += 1;
        self.read = self.read.wrapping_add(tile.step[0]);
        self.write = self.write.wrapping_add(tile.step[1]);
        if self.x == tile.width {
            self.x = 0;
            self.read = self.read.wrapping_offset(tile.turn[0]);
            self.write = self.write.wrapping_offset(tile.turn[1]);
        }
    }
}

/// `count` tiles of as many pixels.
///
/// # Safety
/// The tier was detected; the tile's weights cover its chunks; the cursor's pixels are windows and outputs.
unsafe fn run_tiles<T: Tiles>(tile: &Tile<'_>, cursor: &mut Cursor, pixels: usize, count: usize) {
    if count == 0 {
        return;
    }
    // SAFETY: passed on.
    unsafe {
        match pixels {
            1 => tiles_of::<T, 1>(tile, cursor, count),
            2 => tiles_of::<T, 2>(tile, cursor, count),
            3 => tiles_of::<T, 3>(tile, cursor, count),
            4 => tiles_of::<T, 4>(tile, cursor, count),
            5 => tiles_of::<T, 5>(tile, cursor, count),
            _ => unreachable!("no tier's tiles have more pixels"),
        }
    }
}

/// # Safety
/// As for [`run_tiles`].
#[inline(never)]
unsafe fn tiles_of<T: Tiles, const M: usize>(tile: &Tile<'_>, cursor: &mut Cursor, count: usize) {
    for _ in 0..count {
        let mut reads = [cursor.read; M];
        let mut writes = [cursor.write; M];
        for m in 0..M {
            (reads[m], writes[m]) = (cursor.read, cursor.write);
            cursor.advance(tile);
        }
        // SAFETY: passed on; the pointers are those of M pixels.
        unsafe { T::pixels(tile, &reads, &writes) };
    }
}
