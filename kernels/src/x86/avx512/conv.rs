//! Dense and grouped convolution: tiles of up to 12 pixels × 64 channels held in registers.

mod finish;

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use self::finish::finish;
use super::{Finish, How, elementwise};
use crate::kernel::{Kernel, Memory, Run};
use crate::layout::View;
use crate::pack::{Block, Packed, Shape, tiles};
use crate::portable;
use crate::step::{Conv, Requant, Residual, Weights};

/// Most pixels of a tile by its [`kind`]: with the weights and one activation they fill the 32 registers.
const PIXELS: [usize; 9] = [0, 12, 12, 8, 6, 4, 6, 0, 1];
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
    how: How,
    residual: Option<Residual>,
    table: Option<Box<[u8; 256]>>,
    output: View,
    /// Rows between which all blocks of channels are computed.
    band: usize,
    /// Whether there is one pixel, and no block needs to bring the next one near.
    lone: bool,
}

pub(super) fn pack(conv: Conv<Weights<'_>>) -> Kernel {
    if conv.saturates {
        return portable::packed(conv.whole());
    }
    let pixels = conv.output.height * conv.output.width;
    // One pixel alone reads each weight once: eight independent sums hide the latency.
    let wide = if pixels == 1 && conv.groups == 1 { 8 } else { 0 };
    let packed = Packed::new(&conv, Shape { lanes: 16, vectors: 4, wide, lane, phases, apart });
    let near = packed.weights.len() <= L1_WEIGHTS || packed.blocks.len() == 1;
    Box::new(Packed512 {
        band: if near { BAND.div_ceil(conv.output.width) } else { conv.output.height },
        lone: pixels == 1 && packed.weights.len() <= L2_WEIGHTS,
        packed,
        base: conv.base,
        step: conv.step,
        requant: conv.requant,
        how: How::new(&conv.requant, !conv.shifts.is_empty()),
        residual: conv.residual,
        table: conv.table,
        output: conv.output,
    })
}

/// Of one or two vectors, several fours at once: fewer loads, of which there is one a cycle.
fn phases(vectors: usize, fours: usize) -> usize {
    match vectors {
        1 if fours >= 12 => 4,
        2 if fours >= 40 => 2,
        _ => 1,
    }
}

/// As [`joined`] adds them up.
fn apart(vectors: usize, lane: usize, phase: usize) -> usize {
    let (q, l, j) = (lane / 16, lane % 16 / 4, lane % 4);
    match vectors {
        1 => j * 16 + l * 4 + phase,
        _ => (2 * q + j / 2) * 16 + l * 4 + j % 2 * 2 + phase,
    }
}

/// Where channel `c` goes among the lanes of a block, so that [`finish`] stores them in order.
fn lane(vectors: usize, c: usize) -> usize {
    let (block, c, vectors) = if vectors > 4 { (c / 64 * 64, c % 64, 4) } else { (0, c, vectors) };
    // The byte within a 128-bit lane.
    let (l, p) = (c / (4 * vectors), c % (4 * vectors));
    let (q, j) = match vectors {
        1 => (0, p),
        2 => (p % 2, p / 2),
        3 if p >= 8 => (1, p - 8),
        3 => (p % 2 * 2, p / 2),
        _ => (p % 2 * 2 + p / 8, p % 8 / 2),
    };
    block + q * 16 + l * 4 + j
}

impl Run for Packed512 {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        // No range's step_by, which divides.
        let mut next = rows.start;
        while next < rows.end {
            let end = rows.end.min(next + self.band);
            let ahead = if end == rows.end { memory.ahead } else { &[] };
            let rows = std::mem::replace(&mut next, end)..end;
            // SAFETY: the module's contract; these are rows of the output.
            unsafe {
                let arena = memory.arena.as_mut_ptr();
                match ahead {
                    [] if self.lone => self.pixel(arena),
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
        let bytes = self.packed.taps.len() * block.quads * block.vectors * 64;
        &self.packed.weights[block.weights..][..bytes]
    }

    /// Fours of input values that go into each sum.
    fn steps(&self, block: &Block) -> usize {
        self.packed.taps.len() * block.quads / block.phases
    }

    /// All channels of the only pixel: where there is so little to compute, what [`Self::pixels`] does before it costs as much.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn pixel(&self, arena: *mut u8) {
        let finish = Finish::new(&self.requant);
        for block in &self.packed.blocks {
            let tile = self.tile(block, &finish, usize::MAX, [0, 0]);
            // SAFETY: there is one pixel; the block's weights and factors are packed for its vectors.
            unsafe {
                let Cursor { read, write, .. } = self.cursor(arena, block, 0);
                match kind(block) {
                    1 => lone::<1, 1, 1>(&tile, read, write),
                    2 => lone::<2, 2, 1>(&tile, read, write),
                    3 => lone::<3, 3, 1>(&tile, read, write),
                    4 => lone::<4, 4, 1>(&tile, read, write),
                    5 => lone::<1, 4, 4>(&tile, read, write),
                    6 => lone::<2, 4, 2>(&tile, read, write),
                    _ => lone::<8, 8, 1>(&tile, read, write),
                }
            }
        }
    }

    /// What the tiles of a block share, in rows of `width` pixels.
    #[inline(always)]
    fn tile<'a>(&'a self, block: &Block, finish: &'a Finish, width: usize, turn: [isize; 2]) -> Tile<'a> {
        let step = [self.step[1], self.output.pixel];
        let stored = (self.output.pixel - block.channel).min(block.vectors * 16);
        Tile {
            taps: &self.packed.taps,
            steps: block.quads / block.phases,
            weights: self.packed.weights[block.weights..].as_ptr(),
            bias: self.packed.bias[block.bias..].as_ptr(),
            multipliers: self.packed.multipliers[block.factors..].as_ptr(),
            shifts: self.packed.shifts[block.factors..].as_ptr(),
            finish,
            how: self.how,
            stored,
            dense: stored == block.vectors * 16 && stored == step[1],
            width,
            step,
            turn,
            fetch_step: 0,
        }
    }

    /// # Safety
    /// The arena holds what the layer reads and writes, and the row is one of the output's.
    #[inline(always)]
    unsafe fn cursor(&self, arena: *mut u8, block: &Block, row: usize) -> Cursor {
        let read = self.base + block.depth + row * self.step[0];
        let write = self.output.offset(row, 0) + block.channel;
        // SAFETY: the offsets are those of a pixel's window and of the pixel, inside the arena.
        let (read, write) = unsafe { (arena.add(read), arena.add(write)) };
        Cursor { x: 0, read, write, fetch: read }
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
        let finish = Finish::new(&self.requant);
        for (at, block) in self.packed.blocks.iter().enumerate() {
            let mut tile = self.tile(block, &finish, width, turn);
            // SAFETY: the pixels are there.
            let mut cursor = unsafe { self.cursor(arena, block, rows.start) };
            let mut cut = cut(pixels, kind(block));
            let count = count(&cut);
            // The next tiles, and what is brought near meanwhile.
            let mut compute = |tiles: usize, fetched: &[u8]| {
                tile.fetch_step = 0;
                // Divisions count where there is little to compute.
                if !fetched.is_empty() {
                    let steps = tiles * self.steps(block);
                    tile.fetch_step = fetched.len().min(steps * LINE).div_ceil(steps);
                    cursor.fetch = fetched.as_ptr();
                }
                let kernels = &KERNELS[usize::from(tile.fetch_step > 0)][kind(block)];
                let mut left = tiles;
                for (pixels, count) in &mut cut {
                    let some = left.min(*count);
                    if some > 0 {
                        // SAFETY: all tiles together cover the pixels of the rows; the block's weights and factors are packed
                        // for its vectors.
                        unsafe { kernels[*pixels](&tile, &mut cursor, some) };
                        *count -= some;
                        left -= some;
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
            let count = count(&cut(pixels, kind(&self.packed.blocks[first])));
            room += self.room(first, count - self.busy(first, count));
        }
        (first, &ahead[..ahead.len().min(room)])
    }
}

/// Tiles of as many pixels, and how many of them.
type Cut = [(usize, usize); 3];

/// Which kernels compute a block: by its vectors, and of several fours at once.
fn kind(block: &Block) -> usize {
    if block.phases > 1 { block.vectors + 4 } else { block.vectors }
}

/// Pixels as tiles of a block of this kind: about equal ones, whose pixels fill the vectors that are stored, and one of the rest.
fn cut(pixels: usize, kind: usize) -> Cut {
    let grain = grain(kind);
    if pixels <= grain {
        return [(pixels, 1), (0, 0), (0, 0)];
    }
    let (count, least, larger) = tiles(pixels / grain, PIXELS[kind] / grain);
    let rest = pixels % grain;
    [((least + 1) * grain, larger), (least * grain, count - larger), (rest, usize::from(rest > 0))]
}

/// Pixels whose results share a vector.
const fn grain(kind: usize) -> usize {
    match kind {
        1 | 5 => 4,
        2 | 6 => 2,
        _ => 1,
    }
}

fn count(cut: &Cut) -> usize {
    cut.iter().map(|(_, count)| count).sum()
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
    steps: usize,
    weights: *const u8,
    bias: *const i32,
    multipliers: *const f32,
    shifts: *const f32,
    finish: &'a Finish,
    how: How,
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
unsafe fn kernel<const M: usize, const N: usize, const V: usize, const P: usize, const FETCH: bool>(
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
            let acc = unsafe { joined::<M, N, V>(even_sums::<M, V, P, FETCH>(tile, read, fetch)) };
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
                let acc = joined::<M, N, V>(sums::<M, V, P, FETCH>(tile, &reads, fetch));
                finish(&acc, tile, &writes, false);
            }
        }
        if FETCH {
            fetch = fetch.wrapping_add(tile.fetch_step * tile.steps * tile.taps.len());
        }
    }
    *cursor = Cursor { x, read, write, fetch };
}

/// A tile of one pixel.
///
/// # Safety
/// As for [`kernel`].
#[inline(always)]
unsafe fn lone<const N: usize, const V: usize, const P: usize>(
    tile: &Tile<'_>,
    read: *const u8,
    write: *mut u8,
) {
    // SAFETY: passed on.
    unsafe {
        let acc = joined::<1, N, V>(sums::<1, V, P, false>(tile, &[read], read));
        finish(&acc, tile, &[write], false);
    }
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

    /// Adds `P` fours of input values of each pixel, times their weights.
    ///
    /// # Safety
    /// Fewer steps have been added than there are weights, taps × steps × `N` vectors, 64-byte aligned. Each pointer is to the
    /// fours of a window; the last may reach over the channels by 3 bytes, which the arena's slack covers and zero weights ignore.
    #[inline(always)]
    unsafe fn add<const P: usize>(&mut self, pixels: &[*const u8; M]) {
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
                let x = match P {
                    1 => _mm512_set1_epi32(pixels[m].cast::<i32>().read_unaligned()),
                    2 => _mm512_set1_epi64(pixels[m].cast::<i64>().read_unaligned()),
                    _ => _mm512_broadcast_i32x4(_mm_loadu_si128(pixels[m].cast())),
                };
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
unsafe fn even_sums<const M: usize, const N: usize, const P: usize, const FETCH: bool>(
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
        for _ in 0..tile.steps {
            // SAFETY: the assembly is empty. It keeps the compiler from making a pointer of each pixel before the loop, for
            // which there are too few registers, or within it: the processor adds these steps itself as it loads.
            unsafe {
                asm!("/* {0} {1} {2} */", inout(reg) one, inout(reg) three, inout(reg) five, options(nomem, nostack, preserves_flags));
            }
            let mut seventh = first;
            if M > 6 {
                seventh = first.wrapping_add(2 * three);
                // SAFETY: as before; the pointer is not read from.
                #[expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read or written")]
                unsafe {
                    asm!("/* {0} */", inout(reg) seventh, options(nomem, nostack, preserves_flags));
                }
            }
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
            unsafe { sums.add::<P>(&pixels) };
            first = first.wrapping_add(4 * P);
        }
    }
    sums.acc
}

/// Sums of pixels anywhere.
///
/// # Safety
/// The tile's weights and bias cover `N` vectors; each pointer a window.
#[inline(always)]
unsafe fn sums<const M: usize, const N: usize, const P: usize, const FETCH: bool>(
    tile: &Tile<'_>,
    reads: &[*const u8; M],
    fetch: *const u8,
) -> [[__m512i; N]; M] {
    // SAFETY: passed on.
    let mut sums = unsafe { Sums::<M, N, FETCH>::new(tile, fetch) };
    for &tap in tile.taps {
        for step in 0..tile.steps {
            let mut pixels = *reads;
            for pixel in &mut pixels {
                *pixel = pixel.wrapping_add(tap + step * 4 * P);
            }
            // SAFETY: the four of each pixel's window, once for each of taps × quads.
            unsafe { sums.add::<P>(&pixels) };
        }
    }
    sums.acc
}

/// Adds up what was summed apart, `V / N` fours of each sum side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined<const M: usize, const N: usize, const V: usize>(acc: [[__m512i; V]; M]) -> [[__m512i; N]; M] {
    let mut sums = [[_mm512_setzero_si512(); N]; M];
    for m in 0..M {
        for n in 0..N {
            sums[m][n] = match V / N {
                1 => acc[m][n],
                2 => pairs(acc[m][2 * n], acc[m][2 * n + 1]),
                _ => pairs(pairs(acc[m][0], acc[m][1]), pairs(acc[m][2], acc[m][3])),
            };
        }
    }
    sums
}

/// Sums of neighbours: in each 128-bit lane the two of `a`, then those of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(a: __m512i, b: __m512i) -> __m512i {
    let (a, b) = (_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
    let (even, odd) = (_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
    _mm512_add_epi32(_mm512_castps_si512(even), _mm512_castps_si512(odd))
}

/// Never called: no block has such a shape.
unsafe fn none(_: &Tile<'_>, _: &mut Cursor, _: usize) {}

macro_rules! row {
    ($n:literal, $v:literal, $p:literal, $fetch:literal: $($m:literal)*) => {{
        let mut row: [TileKernel; 13] = [none; 13];
        $(row[$m] = kernel::<$m, $n, $v, $p, $fetch>;)*
        row
    }};
}

macro_rules! kernels {
    ($fetch:literal) => {
        [
            [none; 13],
            row!(1, 1, 1, $fetch: 1 2 3 4 8 12),
            row!(2, 2, 1, $fetch: 1 2 4 6 8 10 12),
            row!(3, 3, 1, $fetch: 1 2 3 4 5 6 7 8),
            row!(4, 4, 1, $fetch: 1 2 3 4 5 6),
            row!(1, 4, 4, $fetch: 1 2 3 4),
            row!(2, 4, 2, $fetch: 1 2 4 6),
            [none; 13],
            row!(8, 8, 1, $fetch: 1),
        ]
    };
}

/// Without fetching ahead and with it; by vectors, then by pixels.
static KERNELS: [[[TileKernel; 13]; 9]; 2] = [kernels!(false), kernels!(true)];
