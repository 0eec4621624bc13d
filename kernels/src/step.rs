//! Checked steps, before a tier packs them. Every view lies in the arena; every size agrees; every factor is finite.

use crate::layout::View;
use crate::{Clamp, Divisor, Layout, Window, fused};

/// How sums become u8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Requant {
    pub(crate) zero_point: u8,
    pub(crate) clamp: Clamp,
}

impl Requant {
    /// `clamp(round_ties_even(acc * multiplier) + zero_point)`. Clamping first gives the same, as the bounds are whole, and
    /// keeps the conversion in range.
    #[inline(always)]
    pub(crate) fn apply(self, acc: i32, multiplier: f32) -> u8 {
        self.apply_f32(acc as f32 * multiplier)
    }

    /// As [`apply`](Self::apply), of a sum as the bits of an f32: see [`fused`].
    #[inline(always)]
    pub(crate) fn apply_fused(self, acc: i32, multiplier: f32, shift: f32) -> u8 {
        let result = fused::apply(acc, multiplier, shift);
        result.clamp(i32::from(self.clamp.low), i32::from(self.clamp.high)) as u8
    }

    #[inline(always)]
    pub(crate) fn apply_f32(self, value: f32) -> u8 {
        let zero_point = f32::from(self.zero_point);
        let (low, high) = (f32::from(self.clamp.low) - zero_point, f32::from(self.clamp.high) - zero_point);
        (value.max(low).min(high).round_ties_even() as i32 + i32::from(self.zero_point)) as u8
    }
}

/// The factors of an addition, and the zero points of the operands and of the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sum {
    pub(crate) a: f32,
    pub(crate) b: f32,
    pub(crate) a_zero: f32,
    pub(crate) b_zero: f32,
    pub(crate) zero: f32,
    pub(crate) clamp: Clamp,
}

impl Sum {
    pub(crate) fn new(multipliers: [f32; 2], zero_points: [u8; 2], result: u8, clamp: Clamp) -> Sum {
        let [a, b] = multipliers;
        let [a_zero, b_zero] = zero_points.map(f32::from);
        Sum { a, b, a_zero, b_zero, zero: f32::from(result), clamp }
    }

    /// Whether a sum may leave the range of i32, so that the conversion itself must saturate.
    pub(crate) fn saturates(&self) -> bool {
        self.a.max(self.b) > 1e5
    }

    #[inline(always)]
    pub(crate) fn apply(&self, a: u8, b: u8) -> u8 {
        let (a, b) = (f32::from(a) - self.a_zero, f32::from(b) - self.b_zero);
        let value = (a * self.a + b * self.b) + self.zero;
        value.max(f32::from(self.clamp.low)).min(f32::from(self.clamp.high)).round_ties_even() as u8
    }
}

/// The addition fused into a convolution.
#[derive(Clone, Debug)]
pub(crate) struct Residual {
    pub(crate) view: View,
    pub(crate) sum: Sum,
}

/// Output pixel `(y, x)` reads, for each tap `t`, the `depth` bytes from `base + y * step[0] + x * step[1] + taps[t]`, in
/// group `g` from `g * depth` on.
#[derive(Clone, Debug)]
pub(crate) struct Conv<W = Vec<i16>> {
    pub(crate) base: usize,
    pub(crate) step: [usize; 2],
    pub(crate) taps: Vec<usize>,
    pub(crate) depth: usize,
    pub(crate) groups: usize,
    /// `[c_out][tap][depth]`, weight zero point taken off: −255..=255.
    pub(crate) weights: W,
    /// Per output channel, with `−zx·Σw` folded in.
    pub(crate) bias: Vec<i32>,
    /// Per output channel.
    pub(crate) multipliers: Vec<f32>,
    /// Per output channel, where requantisation is [`fused`]; empty where it is not.
    pub(crate) shifts: Vec<f32>,
    pub(crate) requant: Requant,
    /// Whether some `acc * multiplier` or fused sum may leave the range of i32, so that the conversion itself must saturate.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "conversions of other machines saturate")
    )]
    pub(crate) saturates: bool,
    pub(crate) residual: Option<Residual>,
    pub(crate) table: Option<Box<[u8; 256]>>,
    pub(crate) output: View,
}

impl Conv<Weights<'_>> {
    /// With weights of its own.
    pub(crate) fn whole(self) -> Conv {
        Conv {
            weights: self.weights.all(),
            base: self.base,
            step: self.step,
            taps: self.taps,
            depth: self.depth,
            groups: self.groups,
            bias: self.bias,
            multipliers: self.multipliers,
            shifts: self.shifts,
            requant: self.requant,
            saturates: self.saturates,
            residual: self.residual,
            table: self.table,
            output: self.output,
        }
    }
}

/// The weights of a convolution where the description has them. All of a model's pass here at every load, so a tier that can
/// takes a few rows at a time, and no memory is filled with them in between.
#[derive(Clone, Debug)]
pub(crate) struct Weights<'w> {
    /// `[c_out][depth][tap]`
    pub(crate) values: &'w [i8],
    /// By output channel.
    pub(crate) zero_points: Vec<i8>,
    pub(crate) taps: usize,
    pub(crate) depth: usize,
    /// Elements from one tap of a row to the next: more than `depth` where zeros stand between pixels.
    pub(crate) pixel: usize,
    /// The least and the greatest weight, zero points taken off, or 0.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "the tier that packs by rows is x86-64's")
    )]
    pub(crate) extremes: (i16, i16),
}

impl Weights<'_> {
    /// Elements of a row, `[tap][pixel]`.
    pub(crate) fn row_len(&self) -> usize {
        self.taps * self.pixel
    }

    /// Output channel `c`'s row, its elements made by `of`.
    #[inline(always)]
    pub(crate) fn row<T: Default + std::marker::Copy>(&self, c: usize, row: &mut [T], of: impl Fn(i16) -> T) {
        let values = &self.values[c * self.taps * self.depth..][..self.taps * self.depth];
        let zero_point = i16::from(self.zero_points[c]);
        let element = |(to, &w): (&mut T, &i8)| *to = of(i16::from(w) - zero_point);
        if self.taps == 1 {
            // A plain loop becomes vectors.
            return row.iter_mut().zip(values).for_each(element);
        }
        for (tap, to) in row.chunks_exact_mut(self.pixel).enumerate() {
            to.iter_mut().zip(values[tap..].iter().step_by(self.taps)).for_each(element);
            to[self.depth..].fill(T::default());
        }
    }

    /// `[c_out][tap][pixel]`
    pub(crate) fn all(&self) -> Vec<i16> {
        let mut all = vec![0; self.zero_points.len() * self.row_len()];
        all.chunks_exact_mut(self.row_len()).enumerate().for_each(|(c, row)| self.row(c, row, |w| w));
        all
    }
}

/// As [`Conv`], with one input channel per output channel.
#[derive(Clone, Debug)]
pub(crate) struct Depthwise {
    pub(crate) base: usize,
    pub(crate) step: [usize; 2],
    /// Kernel height and width.
    pub(crate) kernel: [usize; 2],
    /// Bytes between taps, down and across.
    pub(crate) tap_step: [usize; 2],
    /// `[tap][channel]`, weight zero point taken off: −255..=255.
    pub(crate) weights: Vec<i16>,
    pub(crate) bias: Vec<i32>,
    pub(crate) multipliers: Vec<f32>,
    pub(crate) shifts: Vec<f32>,
    pub(crate) requant: Requant,
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "conversions of other machines saturate")
    )]
    pub(crate) saturates: bool,
    pub(crate) residual: Option<Residual>,
    pub(crate) table: Option<Box<[u8; 256]>>,
    pub(crate) output: View,
}

#[derive(Clone, Debug)]
pub(crate) struct Quantize {
    pub(crate) input: usize,
    pub(crate) layout: Layout,
    pub(crate) scale: f32,
    pub(crate) output: View,
}

#[derive(Clone, Debug)]
pub(crate) struct Dequantize {
    pub(crate) input: View,
    pub(crate) output: usize,
    pub(crate) layout: Layout,
    pub(crate) scale: f32,
}

/// `flip` is xored onto each byte: 0x80 turns i8 into u8 and back.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) input: usize,
    pub(crate) layout: Layout,
    pub(crate) flip: u8,
    pub(crate) output: View,
}

#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) input: View,
    pub(crate) output: usize,
    pub(crate) layout: Layout,
    pub(crate) flip: u8,
}

/// Every window touches the input.
#[derive(Clone, Debug)]
pub(crate) struct MaxPool {
    pub(crate) input: View,
    pub(crate) window: Window,
    pub(crate) output: View,
}

/// Every window touches the input; a window has fewer than 2^16 elements.
#[derive(Clone, Debug)]
pub(crate) struct AveragePool {
    pub(crate) input: View,
    pub(crate) window: Window,
    pub(crate) divisor: Divisor,
    pub(crate) multiplier: f32,
    /// Added to the scaled sum, before it is rounded; what is added afterwards is in `requant`.
    pub(crate) shift: f32,
    pub(crate) requant: Requant,
    pub(crate) output: View,
}

/// `b` is a pixel that repeats when it is smaller than the output.
#[derive(Clone, Debug)]
pub(crate) struct Add {
    pub(crate) a: View,
    pub(crate) b: View,
    pub(crate) sum: Sum,
    pub(crate) output: View,
}

/// `b` is a pixel that repeats when it is smaller than the output.
#[derive(Clone, Debug)]
pub(crate) struct Mul {
    pub(crate) a: View,
    pub(crate) b: View,
    pub(crate) multiplier: f32,
    /// As that of [`AveragePool`].
    pub(crate) shift: f32,
    pub(crate) requant: Requant,
    pub(crate) output: View,
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) input: View,
    pub(crate) table: Box<[u8; 256]>,
    pub(crate) output: View,
}

/// The views are the boxes copied: of one height, width and number of channels.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) input: View,
    pub(crate) table: Option<Box<[u8; 256]>>,
    pub(crate) output: View,
}

#[derive(Clone, Debug)]
pub(crate) struct Softmax {
    pub(crate) input: View,
    /// `exp(−d · scale)` by distance `d` from the greatest.
    pub(crate) exp: Box<[f32; 256]>,
    pub(crate) output: SoftmaxOutput,
}

#[derive(Clone, Debug)]
pub(crate) enum SoftmaxOutput {
    Buffer { view: View, scale: f32, requant: Requant },
    External(usize),
}

/// The part of a window that lies inside the input along one axis: first index, and how many taps are left.
#[inline]
pub(crate) fn inside(window: &Window, axis: usize, output: usize, extent: usize) -> (usize, usize) {
    let (stride, dilation, pad) = (window.stride[axis], window.dilation[axis], window.pad[axis]);
    // Asked for every pixel, so without a division where there is nothing to divide.
    let taps = |distance: usize| if dilation == 1 { distance } else { distance.div_ceil(dilation) };
    let start = output * stride;
    let skipped = taps(pad.saturating_sub(start));
    let first = start + skipped * dilation - pad;
    let left = taps(extent.saturating_sub(first));
    (first, left.min(window.kernel[axis].saturating_sub(skipped)))
}
