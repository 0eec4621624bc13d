//! Dense and grouped convolution: tiles of up to 12 pixels × 64 channels held in registers.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::{Bounds, elementwise, mask, rounded, store};
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::pack::{Block, Packed, Shape, tiles};
use crate::portable;
use crate::step::{Conv, Requant, Residual, Weights};

/// Most pixels of a tile by its vectors: with the weights and one activation they fill the 32 registers.
const PIXELS: [usize; 9] = [0, 12, 12, 8, 6, 0, 0, 0, 1];
/// Weights that stay in L1 while all of a band's pixels pass.
const L1_WEIGHTS: usize = 32 << 10;
/// Weights of a layer that stay in L2 from one run to the next, or else come fast enough by themselves.
const L2_WEIGHTS: usize = 96 << 10;
/// What one step brings near at most, in bytes: a cache line.
const LINE: usize = 64;
/// Weights in L2 at once, at most: a block's, and the first of the next layer. The smallest L2 of these processors has room
/// for activations, too.
const NEAR: usize = 640 << 10;
/// Pixels, at least, of the rows between which all blocks of channels are computed when the weights stay in L1.
const BAND: usize = 96;

struct Packed512 {
    packed: Packed,
    base: usize,
    step: [usize; 2],
    requant: Requant,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
    /// Rows between which all blocks of channels are computed.
    band: usize,
}

pub(super) fn pack(conv: Conv<Weights<'_>>) -> Kernel {
    if conv.saturates {
        return portable::packed(conv.whole());
    }
    let pixels = conv.output.height * conv.output.width;
    // One pixel alone reads each weight once: eight independent sums hide the latency.
    let wide = if pixels == 1 && conv.groups == 1 { 8 } else { 0 };
    let packed = Packed::new(&conv, Shape { lanes: 16, vectors: 4, wide, lane });
    let near = packed.weights.len() <= L1_WEIGHTS || packed.blocks.len() == 1;
    Box::new(Packed512 {
        band: if near { BAND.div_ceil(conv.output.width) } else { conv.output.height },
        packed,
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
        for y in rows.clone().step_by(self.band) {
            let band = y..rows.end.min(y + self.band);
            let ahead = if band.end == rows.end { memory.ahead } else { &[] };
            let rows = band;
            // SAFETY: the module's contract; these are rows of the output.
            unsafe {
                let arena = memory.arena.as_mut_ptr();
                match ahead {
                    [] => self.pixels::<false>(arena, rows.clone(), ahead),
                    _ => self.pixels::<true>(arena, rows.clone(), ahead),
                }
            }
            // The sum and the table pass over what has just been written, while it is near.
            if let Some(Residual { view, sum }) = &self.residual {
                elementwise::add_rows(memory.arena, &self.output, view, &self.output, sum, rows.clone());
            }
            if let Some(table) = &self.table {
                elementwise::table_rows(memory.arena, &self.output, &self.output, table, rows);
            }
        }
    }

    fn first_weights(&self) -> &[u8] {
        let pixels = self.output.height * self.output.width;
        match self.packed.blocks.first() {
            // There is time to bring each next block near, and it does.
            Some(block) if pixels > PIXELS[4] && self.packed.weights.len() > L2_WEIGHTS => {
                self.weights_of(block)
            }
            _ => &self.packed.weights,
        }
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

impl Packed512 {
    fn weights_of(&self, block: &Block) -> &[u8] {
        let bytes = self.steps(block) * block.vectors * 64;
        &self.packed.weights[block.weights..][..bytes]
    }

    /// Fours of input values that go into each sum.
    fn steps(&self, block: &Block) -> usize {
        self.packed.taps.len() * block.quads
    }

    /// All channels of these rows. Towards the end, the beginning of `ahead` is brought near, if there is any: where there is
    /// little to compute, even asking costs.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn pixels<const AHEAD: bool>(&self, arena: *mut u8, rows: Range<usize>, ahead: &[u8]) {
        let width = self.output.width;
        let step = [self.step[1], self.output.pixel];
        let turn = [
            self.step[0] as isize - (width * step[0]) as isize,
            (self.output.row - width * step[1]) as isize,
        ];
        // Rows that follow one another without a gap, read and written, are one long row.
        let width = if turn == [0, 0] { usize::MAX } else { width };
        let pixels = rows.len() * self.output.width;
        let (first, mut ahead) = if AHEAD { self.share(pixels, ahead) } else { (usize::MAX, ahead) };
        for (at, block) in self.packed.blocks.iter().enumerate() {
            let stored = (self.output.pixel - block.channel).min(block.vectors * 16);
            let mut tile = Tile {
                taps: &self.packed.taps,
                quads: block.quads,
                weights: self.weights_of(block).as_ptr(),
                bias: self.packed.bias[block.factors..].as_ptr(),
                multipliers: self.packed.multipliers[block.factors..].as_ptr(),
                bounds: Bounds::new(&self.requant),
                stored,
                dense: stored == block.vectors * 16 && stored == step[1],
                width,
                step,
                turn,
                fetch_step: 0,
            };
            let read = self.base + block.depth + rows.start * self.step[0];
            let write = self.output.offset(rows.start, 0) + block.channel;
            // SAFETY: the offsets are those of a pixel's window and of the pixel, inside the arena.
            let (read, write) = unsafe { (arena.add(read), arena.add(write)) };
            let mut cursor = Cursor { x: 0, read, write, fetch: tile.weights };
            let (count, least, mut larger) = tiles(pixels, PIXELS[block.vectors]);
            // The next tiles, and what is brought near meanwhile.
            let mut compute = |tiles: usize, fetched: &[u8]| {
                tile.fetch_step = 0;
                // Divisions count where there is little to compute.
                if !fetched.is_empty() {
                    let steps = tiles * self.steps(block);
                    tile.fetch_step = fetched.len().min(steps * LINE).div_ceil(steps);
                    cursor.fetch = fetched.as_ptr();
                }
                let kernels = &KERNELS[usize::from(tile.fetch_step > 0)][block.vectors];
                let of_larger = larger.min(tiles);
                larger -= of_larger;
                // SAFETY: all tiles together cover the pixels of the rows; the block's weights and factors are packed for its
                // vectors.
                unsafe {
                    if of_larger > 0 {
                        kernels[least + 1](&tile, &mut cursor, of_larger);
                    }
                    if tiles > of_larger {
                        kernels[least](&tile, &mut cursor, tiles - of_larger);
                    }
                }
            };
            if !AHEAD || at < first {
                compute(count, self.next(at));
                continue;
            }
            let busy = self.busy(at, count);
            if busy > 0 {
                compute(busy, self.next(at));
            }
            if busy < count {
                compute(count - busy, ahead);
            }
            ahead = &ahead[ahead.len().min(self.room(at, count - busy))..];
        }
    }

    /// The weights that a block brings near while it is computed: the next block's, unless they are near already.
    fn next(&self, block: usize) -> &[u8] {
        match self.packed.blocks.get(block + 1) {
            Some(next) if self.packed.weights.len() > L2_WEIGHTS => self.weights_of(next),
            _ => &[],
        }
    }

    /// Bytes that so many of a block's tiles can bring near.
    fn room(&self, block: usize, tiles: usize) -> usize {
        tiles * self.steps(&self.packed.blocks[block]) * LINE
    }

    /// With how many of `tiles` a block brings near the next one, at a line a step.
    fn busy(&self, block: usize, tiles: usize) -> usize {
        self.next(block).len().div_ceil(self.room(block, 1)).min(tiles)
    }

    /// The first of the blocks, the last ones of the layer, that have room for `ahead`; and what of it they have room for.
    fn share<'a>(&self, pixels: usize, ahead: &'a [u8]) -> (usize, &'a [u8]) {
        let own = self.packed.blocks.first().map_or(0, |block| self.weights_of(block).len());
        let ahead = &ahead[..ahead.len().min(NEAR.saturating_sub(own))];
        let (mut first, mut room) = (self.packed.blocks.len(), 0);
        while room < ahead.len() && first > 0 {
            first -= 1;
            let (count, ..) = tiles(pixels, PIXELS[self.packed.blocks[first].vectors]);
            room += self.room(first, count - self.busy(first, count));
        }
        (first, &ahead[..ahead.len().min(room)])
    }
}

/// Where the next pixel is read and written.
struct Cursor {
    x: usize,
    read: *const u8,
    write: *mut u8,
    /// What to bring into L2 while multiplying: the next block's weights, so that its first tile need not wait for them.
    fetch: *const u8,
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
    /// Whether pixels are written one right after the other.
    dense: bool,
    /// Pixels of a row.
    width: usize,
    /// Bytes to the next pixel, read and written.
    step: [usize; 2],
    /// Bytes to add at the end of a row, read and written.
    turn: [isize; 2],
    /// Bytes fetched ahead for each four of input values.
    fetch_step: usize,
}

type TileKernel = unsafe fn(&Tile<'_>, &mut Cursor, usize);

/// `count` tiles of `M` pixels by `N` vectors of channels; `FETCH`es the next block's weights ahead or not.
///
/// # Safety
/// The tile's weights, bias and multipliers cover `N` vectors; from the cursor on there are as many pixels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn kernel<const M: usize, const N: usize, const FETCH: bool>(
    tile: &Tile<'_>,
    cursor: &mut Cursor,
    count: usize,
) {
    let Cursor { mut x, mut read, mut write, mut fetch } = *cursor;
    for _ in 0..count {
        // Plain loops: calls of iterators would not be compiled for these features in place.
        let mut writes = [write; M];
        if M <= tile.width - x {
            // SAFETY: passed on; the pointers are those of M pixels.
            let acc = unsafe { even_sums::<M, N, FETCH>(tile, read, fetch) };
            for m in 0..M {
                writes[m] = write.wrapping_add(m * tile.step[1]);
            }
            x += M;
            read = read.wrapping_add(M * tile.step[0]);
            write = write.wrapping_add(M * tile.step[1]);
            if x == tile.width {
                x = 0;
                read = read.wrapping_offset(tile.turn[0]);
                write = write.wrapping_offset(tile.turn[1]);
            }
            // SAFETY: M pointers, each with `stored` writable bytes.
            unsafe {
                finish(&acc, tile, &writes, tile.dense);
            }
        } else {
            let mut reads = [read; M];
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
            // SAFETY: passed on; M pointers, each with `stored` writable bytes.
            unsafe {
                let acc = sums::<M, N, FETCH>(tile, &reads, fetch);
                finish(&acc, tile, &writes, false);
            }
        }
        if FETCH {
            fetch = fetch.wrapping_add(tile.fetch_step * tile.quads * tile.taps.len());
        }
    }
    *cursor = Cursor { x, read, write, fetch };
}

/// The sums of a tile while they grow, and what is read next. Fetches the next block's weights ahead or not.
struct Sums<const M: usize, const N: usize, const FETCH: bool> {
    acc: [[__m512i; N]; M],
    weights: *const u8,
    fetch: *const u8,
    fetch_step: usize,
}

impl<const M: usize, const N: usize, const FETCH: bool> Sums<M, N, FETCH> {
    /// The biases.
    ///
    /// # Safety
    /// The tile's bias covers `N` vectors.
    #[inline(always)]
    unsafe fn new(tile: &Tile<'_>, fetch: *const u8) -> Self {
        // SAFETY: the caller's contract.
        unsafe {
            let mut acc = [[_mm512_setzero_si512(); N]; M];
            for n in 0..N {
                let bias = _mm512_load_si512(tile.bias.add(n * 16).cast());
                for row in &mut acc {
                    row[n] = bias;
                }
            }
            Sums { acc, weights: tile.weights, fetch, fetch_step: tile.fetch_step }
        }
    }

    /// Adds four input values of each pixel, times their weights.
    ///
    /// # Safety
    /// Fewer fours have been added than there are weights, taps × quads × `N` vectors, 64-byte aligned. Each pointer is to a
    /// four of a window; the last may reach over the channels by 3 bytes, which the arena's slack covers and zero weights ignore.
    #[inline(always)]
    unsafe fn add(&mut self, pixels: &[*const u8; M]) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut w = [_mm512_setzero_si512(); N];
            for n in 0..N {
                w[n] = _mm512_load_si512(self.weights.add(n * 64).cast());
            }
            self.weights = self.weights.add(N * 64);
            if FETCH {
                _mm_prefetch::<_MM_HINT_T1>(self.fetch.cast());
                self.fetch = self.fetch.wrapping_add(self.fetch_step);
            }
            for m in 0..M {
                let x = _mm512_set1_epi32(pixels[m].cast::<i32>().read_unaligned());
                for n in 0..N {
                    self.acc[m][n] = _mm512_dpbusd_epi32(self.acc[m][n], x, w[n]);
                }
            }
        }
    }
}

/// Sums of pixels that lie `step` apart.
///
/// # Safety
/// The tile's weights and bias cover `N` vectors; `read` and every `step` after it is a window.
#[inline(always)]
unsafe fn even_sums<const M: usize, const N: usize, const FETCH: bool>(
    tile: &Tile<'_>,
    read: *const u8,
    fetch: *const u8,
) -> [[__m512i; N]; M] {
    // SAFETY: passed on.
    let mut sums = unsafe { Sums::<M, N, FETCH>::new(tile, fetch) };
    let (mut one, mut three, mut five) = (tile.step[0], 3 * tile.step[0], 5 * tile.step[0]);
    for &tap in tile.taps {
        // SAFETY: a tap of a pixel's window lies in the arena.
        let mut first = unsafe { read.add(tap) };
        for _ in 0..tile.quads {
            // SAFETY: the assembly is empty. It keeps the compiler from making a pointer of each pixel before the loop, for
            // which there are too few registers: the processor adds these steps itself as it loads.
            unsafe {
                asm!("/* {0} {1} {2} */", inout(reg) one, inout(reg) three, inout(reg) five, options(nomem, nostack, preserves_flags));
            }
            let seventh = first.wrapping_add(2 * three);
            let mut pixels = [first; M];
            for m in 0..M {
                let from = if m < 6 { first } else { seventh };
                pixels[m] = match m % 6 {
                    0 => from,
                    1 => from.wrapping_add(one),
                    2 => from.wrapping_add(2 * one),
                    3 => from.wrapping_add(three),
                    4 => from.wrapping_add(4 * one),
                    _ => from.wrapping_add(five),
                };
            }
            // SAFETY: the four of each pixel's window, once for each of taps × quads.
            unsafe { sums.add(&pixels) };
            first = first.wrapping_add(4);
        }
    }
    sums.acc
}

/// Sums of pixels anywhere.
///
/// # Safety
/// The tile's weights and bias cover `N` vectors; each pointer a window.
#[inline(always)]
unsafe fn sums<const M: usize, const N: usize, const FETCH: bool>(
    tile: &Tile<'_>,
    reads: &[*const u8; M],
    fetch: *const u8,
) -> [[__m512i; N]; M] {
    // SAFETY: passed on.
    let mut sums = unsafe { Sums::<M, N, FETCH>::new(tile, fetch) };
    for &tap in tile.taps {
        for quad in 0..tile.quads {
            let mut pixels = *reads;
            for pixel in &mut pixels {
                *pixel = pixel.wrapping_add(tap + quad * 4);
            }
            // SAFETY: the four of each pixel's window, once for each of taps × quads.
            unsafe { sums.add(&pixels) };
        }
    }
    sums.acc
}

/// Requantises and stores.
///
/// # Safety
/// The pointers have `tile.stored` writable bytes each.
#[inline(always)]
unsafe fn finish<const M: usize, const N: usize>(
    acc: &[[__m512i; N]; M],
    tile: &Tile<'_>,
    writes: &[*mut u8; M],
    dense: bool,
) {
    // SAFETY: passed on.
    unsafe {
        match tile.bounds.plain {
            true => store_as::<M, N, true>(acc, tile, writes, dense),
            false => store_as::<M, N, false>(acc, tile, writes, dense),
        }
    }
}

/// The same, with or without zero point and bounds. One pixel fills a 64-byte vector with 4 vectors of channels; of narrower ones, 2 or 4 pixels share it.
///
/// # Safety
/// The pointers have `tile.stored` writable bytes each.
#[inline(always)]
unsafe fn store_as<const M: usize, const N: usize, const PLAIN: bool>(
    acc: &[[__m512i; N]; M],
    tile: &Tile<'_>,
    writes: &[*mut u8; M],
    dense: bool,
) {
    let share = if N >= 3 { 1 } else { 4 / N };
    // SAFETY: the multipliers cover N vectors; each store is masked to the stored bytes of its pixel.
    unsafe {
        let mut multipliers = [_mm512_setzero_ps(); N];
        for n in 0..N {
            multipliers[n] = _mm512_load_ps(tile.multipliers.add(n * 16));
        }
        let mut m = 0;
        while m < M {
            if N == 8 {
                for half in 0..2 {
                    let mut whole = [_mm512_setzero_si512(); 4];
                    for q in 0..4 {
                        whole[q] = rounded(acc[m][(half * 4 + q) % N], multipliers[(half * 4 + q) % N]);
                    }
                    let keep = mask(tile.stored.saturating_sub(half * 64));
                    store(writes[m].wrapping_add(half * 64), keep, tile.bounds.pack::<PLAIN>(whole));
                }
                m += share;
                continue;
            }
            // Vector `q` of the packed four is vector `q % N` of pixel `m + q / N`; what is beyond is never stored.
            let mut whole = [_mm512_setzero_si512(); 4];
            for q in 0..4 {
                let (pixel, n) = if N == 3 { (m, q.min(2)) } else { (m + q / N, q % N) };
                if N != 3 && pixel < M || q < N {
                    whole[q] = rounded(acc[if pixel < M { pixel } else { m }][n], multipliers[n]);
                }
            }
            let bytes = tile.bounds.pack::<PLAIN>(whole);
            let order = match N {
                1 => _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                2 => _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15),
                _ => _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15),
            };
            let bytes = if N == 4 { bytes } else { _mm512_permutexvar_epi32(order, bytes) };
            let keep = mask(tile.stored);
            match N {
                1 | 2 if dense && m + share <= M => _mm512_storeu_si512(writes[m].cast(), bytes),
                1 => {
                    let quarters = [
                        _mm512_castsi512_si128(bytes),
                        _mm512_extracti32x4_epi32::<1>(bytes),
                        _mm512_extracti32x4_epi32::<2>(bytes),
                        _mm512_extracti32x4_epi32::<3>(bytes),
                    ];
                    for q in 0..4.min(M - m) {
                        let (pixel, quarter) = (m + q, quarters[q]);
                        if tile.stored == 16 {
                            _mm_storeu_si128(writes[pixel].cast(), quarter);
                        } else {
                            _mm_mask_storeu_epi8(writes[pixel].cast(), keep as __mmask16, quarter);
                        }
                    }
                }
                2 => {
                    let halves = [_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes)];
                    for q in 0..2.min(M - m) {
                        let (pixel, half) = (m + q, halves[q]);
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
            m += share;
        }
    }
}

/// Never called: no block has such a shape.
unsafe fn none(_: &Tile<'_>, _: &mut Cursor, _: usize) {}

macro_rules! row {
    ($n:literal, $fetch:literal: $($m:literal)*) => {{
        let mut row: [TileKernel; 13] = [none; 13];
        $(row[$m] = kernel::<$m, $n, $fetch>;)*
        row
    }};
}

macro_rules! kernels {
    ($fetch:literal) => {
        [
            [none; 13],
            row!(1, $fetch: 1 2 3 4 5 6 7 8 9 10 11 12),
            row!(2, $fetch: 1 2 3 4 5 6 7 8 9 10 11 12),
            row!(3, $fetch: 1 2 3 4 5 6 7 8),
            row!(4, $fetch: 1 2 3 4 5 6),
            [none; 13],
            [none; 13],
            [none; 13],
            row!(8, $fetch: 1),
        ]
    };
}

/// Without fetching ahead and with it; by vectors, then by pixels.
static KERNELS: [[[TileKernel; 13]; 9]; 2] = [kernels!(false), kernels!(true)];
