//! Dense and grouped convolution: tiles of up to 12 pixels × 64 channels held in registers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Bounds, elementwise, mask, rounded, store};
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::pack::{Block, Packed, Shape, tiles};
use crate::portable;
use crate::step::{Conv, Requant, Residual};

/// Most pixels of a tile by its vectors: with the weights and one activation they fill the 32 registers.
const PIXELS: [usize; 9] = [0, 12, 12, 8, 6, 0, 0, 0, 1];
/// Weights that stay in L1 while all of a chunk's pixels pass.
const L1_WEIGHTS: usize = 32 << 10;
/// Pixels between which all blocks of channels are computed when the weights stay in L1.
const CHUNK: usize = 48;

struct Packed512 {
    packed: Packed,
    base: usize,
    step: [usize; 2],
    requant: Requant,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
}

pub(super) fn pack(conv: Conv) -> Kernel {
    if conv.saturates {
        return portable::packed(conv);
    }
    let pixels = conv.output.height * conv.output.width;
    // One pixel alone reads each weight once: eight independent sums hide the latency.
    let wide = if pixels == 1 && conv.groups == 1 { 8 } else { 0 };
    let shape = Shape { lanes: 16, vectors: 4, wide, lane };
    Box::new(Packed512 {
        packed: Packed::new(&conv, shape),
        base: conv.base,
        step: conv.step,
        requant: conv.requant,
        residual: conv.residual,
        table: conv.table,
        output: conv.output,
    })
}

/// The order in which [`Bounds::pack`] puts bytes back into the channels' own.
fn lane(vectors: usize, c: usize) -> usize {
    let (block, c, vectors) = if vectors > 4 { (c / 64 * 64, c % 64, 4) } else { (0, c, vectors) };
    let (l, q, j) = (c / (4 * vectors), c % (4 * vectors) / 4, c % 4);
    block + q * 16 + l * 4 + j
}

impl Run for Packed512 {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        let width = self.output.width;
        let (start, end) = (rows.start * width, rows.end * width);
        let all = self.packed.weights.bytes().len();
        let chunk = if all <= L1_WEIGHTS || self.packed.blocks.len() == 1 { CHUNK } else { end - start };
        let mut at = start;
        while at < end {
            let next = end.min(at + chunk);
            // SAFETY: the module's contract; `at..next` are pixels of the output.
            unsafe { self.pixels(memory.arena.as_mut_ptr(), at, next) };
            at = next;
        }
        // The sum and the table pass over what has just been written, while it is near.
        if let Some(Residual { view, sum }) = &self.residual {
            elementwise::add_rows(memory.arena, &self.output, view, &self.output, sum, rows.clone());
        }
        if let Some(table) = &self.table {
            elementwise::table_rows(memory.arena, &self.output, &self.output, table, rows);
        }
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

impl Packed512 {
    fn weights_of(&self, block: &Block) -> &[u8] {
        let bytes = self.packed.taps.len() * block.quads * block.vectors * 64;
        &self.packed.weights.bytes()[block.weights..][..bytes]
    }

    /// All channels of the pixels `start..end`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn pixels(&self, arena: *mut u8, start: usize, end: usize) {
        for block in &self.packed.blocks {
            let stored = (self.output.pixel - block.channel).min(block.vectors * 16);
            let tile = Tile {
                taps: &self.packed.taps,
                quads: block.quads,
                weights: self.weights_of(block).as_ptr(),
                bias: self.packed.bias[block.factors..].as_ptr(),
                multipliers: self.packed.multipliers[block.factors..].as_ptr(),
                bounds: Bounds::new(&self.requant),
                stored,
            };
            let (count, least, larger) = tiles(end - start, PIXELS[block.vectors]);
            let mut cursor = Cursor::new(self, block, start);
            for index in 0..count {
                let pixels = least + usize::from(index < larger);
                let mut reads = [std::ptr::null(); 12];
                let mut writes = [std::ptr::null_mut(); 12];
                for (read, write) in reads.iter_mut().zip(&mut writes).take(pixels) {
                    // SAFETY: the offsets are those of a pixel's window and of the pixel, inside the arena.
                    (*read, *write) =
                        unsafe { (arena.add(cursor.read).cast_const(), arena.add(cursor.write)) };
                    cursor.next(self);
                }
                // SAFETY: as many pointers are set as the tile has pixels; the block's weights and factors are packed
                // for its vectors.
                unsafe { KERNELS[block.vectors][pixels](&tile, &reads, &writes) };
            }
        }
    }
}

/// Offsets of one pixel after the other.
struct Cursor {
    x: usize,
    y: usize,
    read: usize,
    write: usize,
    base: [usize; 2],
}

impl Cursor {
    #[inline(always)]
    fn new(conv: &Packed512, block: &Block, pixel: usize) -> Cursor {
        let (y, x) = (pixel / conv.output.width, pixel % conv.output.width);
        let base = [conv.base + block.depth, conv.output.origin + block.channel];
        let mut cursor = Cursor { x, y, read: 0, write: 0, base };
        cursor.locate(conv);
        cursor
    }

    #[inline(always)]
    fn locate(&mut self, conv: &Packed512) {
        self.read = self.base[0] + self.y * conv.step[0] + self.x * conv.step[1];
        self.write = self.base[1] + self.y * conv.output.row + self.x * conv.output.pixel;
    }

    #[inline(always)]
    fn next(&mut self, conv: &Packed512) {
        self.x += 1;
        self.read += conv.step[1];
        self.write += conv.output.pixel;
        if self.x == conv.output.width {
            (self.x, self.y) = (0, self.y + 1);
            self.locate(conv);
        }
    }
}

/// What the tiles of one block share.
struct Tile<'a> {
    taps: &'a [usize],
    quads: usize,
    weights: *const u8,
    bias: *const i32,
    multipliers: *const f32,
    bounds: Bounds,
    /// Bytes written per pixel.
    stored: usize,
}

type Pointers<T> = [T; 12];
type TileKernel = unsafe fn(&Tile<'_>, &Pointers<*const u8>, &Pointers<*mut u8>);

/// `M` pixels by `N` vectors of channels.
///
/// # Safety
/// The tile's weights, bias and multipliers cover `N` vectors, the first `M` pointers a window and `stored` bytes each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn kernel<const M: usize, const N: usize>(
    tile: &Tile<'_>,
    reads: &Pointers<*const u8>,
    writes: &Pointers<*mut u8>,
) {
    let mut acc = [[_mm512_setzero_si512(); N]; M];
    for n in 0..N {
        // SAFETY: the bias covers N vectors.
        let bias = unsafe { _mm512_loadu_si512(tile.bias.add(n * 16).cast()) };
        for row in &mut acc {
            row[n] = bias;
        }
    }
    let mut weights = tile.weights;
    for &tap in tile.taps {
        let mut pixels = [std::ptr::null::<u8>(); M];
        for m in 0..M {
            // SAFETY: a tap of a pixel's window lies in the arena.
            pixels[m] = unsafe { reads[m].add(tap) };
        }
        for quad in 0..tile.quads {
            // SAFETY: the weights cover taps × quads × N vectors, 64-byte aligned; a window's last quad may reach over the
            // channels by 3 bytes, which the arena's slack covers and zero weights ignore.
            unsafe {
                let mut w = [_mm512_setzero_si512(); N];
                for n in 0..N {
                    w[n] = _mm512_load_si512(weights.add(n * 64).cast());
                }
                weights = weights.add(N * 64);
                for m in 0..M {
                    let x = _mm512_set1_epi32(pixels[m].add(quad * 4).cast::<i32>().read_unaligned());
                    for n in 0..N {
                        acc[m][n] = _mm512_dpbusd_epi32(acc[m][n], x, w[n]);
                    }
                }
            }
        }
    }
    let mut multipliers = [_mm512_setzero_ps(); N];
    for n in 0..N {
        // SAFETY: the multipliers cover N vectors.
        multipliers[n] = unsafe { _mm512_loadu_ps(tile.multipliers.add(n * 16)) };
    }
    // SAFETY: M pointers, each with `stored` writable bytes.
    unsafe { finish::<M, N>(&acc, &multipliers, tile, writes) };
}

/// Requantises and stores. One pixel fills a 64-byte vector with 4 vectors of channels; of narrower ones, 2 or 4 pixels share it.
///
/// # Safety
/// The first `M` pointers have `tile.stored` writable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn finish<const M: usize, const N: usize>(
    acc: &[[__m512i; N]; M],
    multipliers: &[__m512; N],
    tile: &Tile<'_>,
    writes: &Pointers<*mut u8>,
) {
    let share = if N >= 3 { 1 } else { 4 / N };
    let mut m = 0;
    while m < M {
        if N == 8 {
            for half in 0..2 {
                let at = |q: usize| rounded(acc[m][(half * 4 + q) % N], multipliers[(half * 4 + q) % N]);
                let bytes = tile.bounds.pack([at(0), at(1), at(2), at(3)]);
                let keep = mask(tile.stored.saturating_sub(half * 64));
                // SAFETY: masked to the stored bytes.
                unsafe { store(writes[m].wrapping_add(half * 64), keep, bytes) };
            }
        } else {
            // Vector `q` of the packed four is vector `q % N` of pixel `m + q / N`; what is beyond is never stored.
            let at = |q: usize| {
                let (pixel, n) = if N == 3 { (m, q.min(2)) } else { (m + q / N, q % N) };
                rounded(acc[if pixel < M { pixel } else { m }][n], multipliers[n])
            };
            let bytes = tile.bounds.pack([at(0), at(1), at(2), at(3)]);
            let order = match N {
                1 => _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                2 => _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15),
                _ => _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15),
            };
            let bytes = if N == 4 { bytes } else { _mm512_permutexvar_epi32(order, bytes) };
            let keep = mask(tile.stored);
            // SAFETY: each store is masked to the stored bytes of its pixel.
            unsafe {
                match N {
                    1 => {
                        let quarters = [
                            _mm512_castsi512_si128(bytes),
                            _mm512_extracti32x4_epi32::<1>(bytes),
                            _mm512_extracti32x4_epi32::<2>(bytes),
                            _mm512_extracti32x4_epi32::<3>(bytes),
                        ];
                        for (pixel, quarter) in (m..M).zip(quarters) {
                            if tile.stored == 16 {
                                _mm_storeu_si128(writes[pixel].cast(), quarter);
                            } else {
                                _mm_mask_storeu_epi8(writes[pixel].cast(), keep as __mmask16, quarter);
                            }
                        }
                    }
                    2 => {
                        let halves = [_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes)];
                        for (pixel, half) in (m..M).zip(halves) {
                            if tile.stored == 32 {
                                _mm256_storeu_si256(writes[pixel].cast(), half);
                            } else {
                                _mm256_mask_storeu_epi8(writes[pixel].cast(), keep as __mmask32, half);
                            }
                        }
                    }
                    3 if tile.stored == 48 => {
                        _mm256_storeu_si256(writes[m].cast(), _mm512_castsi512_si256(bytes));
                        let last = _mm512_extracti32x4_epi32::<2>(bytes);
                        _mm_storeu_si128(writes[m].add(32).cast(), last);
                    }
                    _ => store(writes[m], keep, bytes),
                }
            }
        }
        m += share;
    }
}

/// Never called: no block has such a shape.
unsafe fn none(_: &Tile<'_>, _: &Pointers<*const u8>, _: &Pointers<*mut u8>) {}

macro_rules! row {
    ($n:literal: $($m:literal)*) => {{
        let mut row: [TileKernel; 13] = [none; 13];
        $(row[$m] = kernel::<$m, $n>;)*
        row
    }};
}

/// By vectors, then by pixels.
static KERNELS: [[TileKernel; 13]; 9] = [
    [none; 13],
    row!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
    row!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
    row!(3: 1 2 3 4 5 6 7 8),
    row!(4: 1 2 3 4 5 6),
    [none; 13],
    [none; 13],
    [none; 13],
    row!(8: 1),
];
