//! The tiers with 128- and 256-bit vectors: one set of kernels over [`Vector`], compiled once for each tier's features.
//!
//! # Safety of this module
//! A tier's kernels exist only behind its table, which is handed out after its features were detected. Lowered steps hold views
//! that lie in the arena with [`crate::layout::SLACK`] readable bytes behind the last; stores keep to a pixel's stride.
//!
//! Methods of [`Vector`] and functions generic over it are always inlined into functions compiled for the tier's features.

pub(super) mod conv;
pub(super) mod depthwise;
pub(super) mod pool;
pub(super) mod rows;

use std::arch::x86_64::__m128i;

use crate::arena::Aligned;
use crate::fused::whole;
use crate::step::Requant;

/// Zero point and bounds of a requantisation, as the packing of a tier wants them.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(super) zero_point: i16,
    pub(super) low: u8,
    pub(super) high: u8,
}

impl Bounds {
    /// Results of [`fused`](crate::fused) requantisation have the zero point in them.
    pub(super) fn new(requant: &Requant, fused: bool) -> Bounds {
        let Requant { zero_point, clamp } = *requant;
        let zero_point = if fused { 0 } else { i16::from(zero_point) };
        Bounds { zero_point, low: clamp.low, high: clamp.high }
    }
}

/// Where the factors of a vector of sums are.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    pub(super) multipliers: *const f32,
    pub(super) shifts: *const f32,
    /// Of tiers without fused operations: a vector's multipliers and then its shifts, both as f64.
    pub(super) exact: *const f64,
}

/// All factors of a step, in the order of the lanes.
pub(super) struct AllFactors {
    multipliers: Aligned<f32>,
    shifts: Aligned<f32>,
    exact: Aligned<f64>,
    pub(super) fused: bool,
}

impl AllFactors {
    pub(super) fn new<V: Vector>(multipliers: Aligned<f32>, shifts: Aligned<f32>, fused: bool) -> AllFactors {
        let mut exact = Aligned::zeroed(if fused && !V::FMA { 2 * shifts.len() } else { 0 });
        for (at, to) in exact.chunks_exact_mut(2 * V::LANES).enumerate() {
            for lane in 0..V::LANES {
                to[lane] = f64::from(multipliers[at * V::LANES + lane]);
                to[V::LANES + lane] = whole(shifts[at * V::LANES + lane]);
            }
        }
        AllFactors { multipliers, shifts, exact, fused }
    }

    /// Those from a lane on.
    pub(super) fn from(&self, lane: usize) -> Factors {
        Factors {
            multipliers: self.multipliers[lane..].as_ptr(),
            shifts: self.shifts[lane..].as_ptr(),
            exact: self.exact.get(2 * lane..).unwrap_or(&[]).as_ptr(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.multipliers.len() * 8 + self.exact.len() * 8
    }
}

impl Factors {
    /// The results of a vector of sums, as i32: the first's, or those of `vectors` further on.
    ///
    /// # Safety
    /// The tier's features are there, and factors for so many vectors.
    #[inline(always)]
    pub(super) unsafe fn results<V: Vector, const FUSED: bool>(self, sums: V, vectors: usize) -> V {
        let lanes = vectors * V::LANES;
        // SAFETY: the caller's contract.
        unsafe {
            if !FUSED {
                return sums.rounded(self.multipliers.add(lanes));
            }
            sums.fused(Factors {
                multipliers: self.multipliers.add(lanes),
                shifts: self.shifts.add(lanes),
                exact: self.exact.wrapping_add(2 * lanes),
            })
        }
    }
}

/// A vector of `LANES` i32, or of four times as many bytes.
///
/// # Safety
/// All methods need the tier's features; those that take pointers need the bytes of a vector there.
pub(crate) trait Vector: Copy + Send + Sync + 'static {
    /// i32 lanes.
    const LANES: usize;
    /// Most pixels of a tile of 16 channels.
    const PIXELS: usize;
    /// Whether [`Vector::dot`] is exact for all i8; otherwise only where [`fits`] says so of the pairs of neighbours.
    const EXACT: bool;
    /// Whether multiplying and adding is one operation; otherwise [`Vector::fused`] reads [`Factors::exact`].
    const FMA: bool;

    unsafe fn load(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut u8);
    /// The same four bytes in each lane.
    unsafe fn broadcast(from: *const u8) -> Self;
    /// `self + Σ x·w` of four u8 by i8 in each lane.
    unsafe fn dot(self, x: Self, w: Self) -> Self;
    /// Bytes 0 and 2, and bytes 1 and 3, of each lane as u16.
    unsafe fn split(self) -> (Self, Self);
    /// `self + Σ x·w` of two u16 (of u8 range) by i16 in each lane.
    unsafe fn dot_words(self, x: Self, w: Self) -> Self;
    /// `round_ties_even(self as f32 * multiplier)`, within i32.
    unsafe fn rounded(self, multipliers: *const f32) -> Self;
    /// The results of sums as [`crate::fused`] requantises them.
    unsafe fn fused(self, factors: Factors) -> Self;
    /// Four vectors of i32 to one of u8: byte `4 * q + j` of 128-bit lane `l` is element `4 * l + j` of vector `q`.
    unsafe fn pack(whole: [Self; 4], bounds: &Bounds) -> Self;
    /// Vectors of 16 i32 together to 16 u8, channels ordered as [`lane`] says.
    unsafe fn pack_16(whole: &[Self], bounds: &Bounds) -> __m128i;
    /// Bytes of four rows side by side, in the order that [`Vector::pack`] undoes.
    unsafe fn interleave(rows: [Self; 4]) -> [Self; 4];
    /// The greater bytes.
    unsafe fn max(self, other: Self) -> Self;
    /// The same 16 bytes in each 128-bit lane.
    unsafe fn repeat_16(from: *const u8) -> Self;
    /// Of each lane's 16 bytes the one that the low four bits of an index name, or 0 where the index is negative.
    unsafe fn shuffle(self, index: Self) -> Self;
    unsafe fn xor(self, other: Self) -> Self;
    /// Bytes less 16, not below −128.
    unsafe fn less_16(self) -> Self;
}

/// Whether two neighbouring products of u8 by i8 always fit 16 bits.
pub(super) fn fits(first: i16, second: i16) -> bool {
    let byte = -128..=127;
    // Products of different signs do not add up; 255 · 128 fits, 255 · 129 does not.
    let opposite = (first < 0) != (second < 0);
    byte.contains(&first) && byte.contains(&second) && (opposite || (first + second).abs() <= 128)
}

/// Where channel `c` of 16 goes among the lanes of `16 / lanes` vectors.
pub(super) fn lane(lanes: usize, c: usize) -> usize {
    let vectors = 16 / lanes;
    let (l, q, j) = (c / (4 * vectors), c % (4 * vectors) / 4, c % 4);
    q * lanes + l * 4 + j
}

/// Stores the first `bytes` of 16.
///
/// # Safety
/// `bytes` are writable at `to`.
#[inline(always)]
pub(super) unsafe fn store_16(to: *mut u8, bytes: usize, value: __m128i) {
    // SAFETY: the caller's contract; the vector is 16 bytes of its own.
    unsafe {
        if bytes >= 16 {
            to.cast::<__m128i>().write_unaligned(value);
        } else {
            std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to, bytes);
        }
    }
}

/// Stores the first `bytes` of a vector.
///
/// # Safety
/// `bytes` are writable at `to`, and the tier's features are there.
#[inline(always)]
pub(super) unsafe fn store_part<V: Vector>(to: *mut u8, bytes: usize, value: V) {
    // SAFETY: the caller's contract; the vector is as many bytes of its own.
    unsafe {
        if bytes >= V::LANES * 4 {
            value.store(to);
        } else {
            std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to, bytes);
        }
    }
}

/// Defines a tier's table: each kernel compiled for its features, for one vector type.
macro_rules! tier {
    ($vector:ty, $features:literal, [$($pixels:literal)*]) => {
        mod compiled {
            use super::*;
            use crate::kernel::{Kernel, Kernels};
            use crate::portable;
            use crate::step::{
                Add, AveragePool, Conv, Depthwise, Dequantize, MaxPool, Mul, Quantize, Table, Weights,
            };
            use crate::x86::narrow::conv::{self, Cursor, Tile};
            use crate::x86::narrow::{depthwise, pool, rows};

            pub(in crate::x86) static KERNELS: Kernels = Kernels {
                conv: |step: Conv<Weights<'_>>| conv::pack::<$vector>(step.whole(), &TILES, &ROWS),
                depthwise: |step: Depthwise| depthwise::pack::<$vector>(step, strip, &ROWS),
                add: |step: Add| -> Kernel { rows::add(step, &ROWS) },
                mul: |step: Mul| -> Kernel { rows::mul(step, &ROWS) },
                table: |step: Table| -> Kernel { rows::table(step, &ROWS) },
                max_pool: |step: MaxPool| pool::max_pool(step, maximum),
                average_pool: |step: AveragePool| pool::average_pool(step, average),
                quantize: |step: Quantize| -> Kernel { rows::quantize(step, &ROWS) },
                dequantize: |step: Dequantize| -> Kernel { rows::dequantize(step, &ROWS) },
                ..portable::KERNELS
            };

            static ROWS: rows::Rows = rows::Rows { add, mul, look_up, quantize, planes, dequantize };

            #[target_feature(enable = $features)]
            unsafe fn tile<const M: usize, const N: usize>(tile: &Tile<'_>, cursor: &mut Cursor, count: usize) {
                // SAFETY: passed on.
                unsafe { conv::tiles_of::<$vector, M, N>(tile, cursor, count) }
            }

            /// Never called: no tile has so many pixels.
            unsafe fn none(_: &Tile<'_>, _: &mut Cursor, _: usize) {}

            static TILES: conv::Tiles = {
                let mut tiles: conv::Tiles = [none; 9];
                $(tiles[$pixels] = tile::<$pixels, { 16 / <$vector as crate::x86::narrow::Vector>::LANES }>;)*
                tiles
            };

            #[target_feature(enable = $features)]
            unsafe fn strip(step: &depthwise::Packed, arena: *mut u8, y: usize, keep: [bool; 2]) {
                // SAFETY: passed on.
                unsafe { depthwise::strip::<$vector>(step, arena, y, keep) }
            }

            #[target_feature(enable = $features)]
            unsafe fn maximum(step: &MaxPool, arena: *mut u8, y: usize) {
                // SAFETY: passed on.
                unsafe { pool::maximum::<$vector>(step, arena, y) }
            }

            #[target_feature(enable = $features)]
            unsafe fn average(step: &AveragePool, arena: *mut u8, y: usize) {
                // SAFETY: passed on.
                unsafe { pool::average(step, arena, y) }
            }

            #[target_feature(enable = $features)]
            unsafe fn add(a: *const u8, b: *const u8, to: *mut u8, bytes: usize, sum: &crate::step::Sum) {
                // SAFETY: passed on.
                unsafe { rows::add_bytes(a, b, to, bytes, sum) }
            }

            #[target_feature(enable = $features)]
            unsafe fn mul(a: *const u8, b: *const u8, to: *mut u8, bytes: usize, step: &Mul) {
                // SAFETY: passed on.
                unsafe { rows::mul_bytes(a, b, to, bytes, step) }
            }

            #[target_feature(enable = $features)]
            unsafe fn look_up(from: *const u8, to: *mut u8, bytes: usize, table: &[u8; 256]) {
                // SAFETY: passed on.
                unsafe { rows::look_up::<$vector>(from, to, bytes, table) }
            }

            #[target_feature(enable = $features)]
            unsafe fn quantize(from: *const u8, to: *mut u8, elements: usize, stride: usize, step: &Quantize) {
                // SAFETY: passed on.
                unsafe { rows::quantize_floats(from, to, elements, stride, step) }
            }

            #[target_feature(enable = $features)]
            unsafe fn planes(from: *const u8, to: *mut u8, step: &Quantize) {
                // SAFETY: passed on.
                unsafe { rows::quantize_planes(from, to, step) }
            }

            #[target_feature(enable = $features)]
            unsafe fn dequantize(from: *const u8, to: *mut u8, elements: usize, step: &Dequantize) {
                // SAFETY: passed on.
                unsafe { rows::dequantize_bytes(from, to, elements, step) }
            }
        }

        pub(in crate::x86) use compiled::KERNELS;
    };
}

pub(super) use tier;
