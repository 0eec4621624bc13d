//! Checks a description once and turns it into steps over placed buffers.

use std::ops::Range;

use crate::fused::fuse;
use crate::kernel::{Kernel, Kernels};
use crate::layout::{Border, SLACK, View};
use crate::plan::{Interval, place};
use crate::spec::*;
use crate::step::{self, Requant, Residual, SoftmaxOutput, Sum, Weights, inside};
use crate::{ProgramError, ProgramSpec};

/// Factors outside of this range are no quantisation a network was trained or calibrated with, and would leave the range in
/// which the kernels' f32 arithmetic is exact to the last bit.
const SCALES: Range<f32> = 1e-18..1e18;

type Reason = &'static str;

/// A checked and packed step.
pub(crate) struct Lowered {
    pub(crate) kernel: Kernel,
    /// Rows of the output, to run in one go or in bands.
    pub(crate) rows: usize,
    /// Filled before the step runs.
    pub(crate) border: Option<View>,
    pub(crate) kind: &'static str,
    pub(crate) macs: u64,
}

/// Bytes of the arena, and its steps.
pub(crate) fn lower(
    spec: &ProgramSpec<'_>,
    kernels: &Kernels,
) -> Result<(usize, Vec<Lowered>), ProgramError> {
    if spec.steps.len() > STEPS_MAX || spec.buffers.len() > STEPS_MAX {
        return Err(ProgramError::TooManySteps);
    }
    check_shapes(spec)?;
    let at = |step: usize| move |reason: Reason| ProgramError::Step { step, reason };
    let mut lives: Vec<Option<Interval>> = vec![None; spec.buffers.len()];
    let mut borders = vec![Border::default(); spec.buffers.len()];
    let mut first_writer = vec![usize::MAX; spec.buffers.len()];
    let mut written = vec![0; spec.outputs.len()];
    // Elements copied into buffers that only copies write: they have to add up before the buffer is read.
    let mut copied = vec![0usize; spec.buffers.len()];
    for (index, step) in spec.steps.iter().enumerate() {
        for id in step.reads() {
            let live = lives.get_mut(id.0).ok_or(at(index)("a buffer that does not exist"))?;
            live.as_mut().ok_or(at(index)("reads a buffer that nothing has written"))?.last = index;
            let buffer = spec.buffers[id.0];
            if copied[id.0] != 0 && copied[id.0] != buffer.height * buffer.width * buffer.channels {
                return Err(at(index)("reads a buffer that copies have not filled"));
            }
        }
        if let Some(id) = step.writes() {
            let live = lives.get_mut(id.0).ok_or(at(index)("a buffer that does not exist"))?;
            let copy = matches!(step, StepSpec::Copy(_));
            match live {
                None => {
                    *live = Some(Interval { bytes: 0, first: index, last: index });
                    first_writer[id.0] = index;
                }
                Some(live) if copy && copied[id.0] > 0 => live.last = index,
                Some(_) => return Err(at(index)("writes a buffer a second time")),
            }
            if let StepSpec::Copy(copy) = step {
                let area = copy.size.iter().fold(1, |area: usize, &extent| area.saturating_mul(extent));
                copied[id.0] = copied[id.0].saturating_add(area);
            }
        }
        if let Some(output) = step.output() {
            *written.get_mut(output).ok_or(at(index)("an output that does not exist"))? += 1;
        }
        if let StepSpec::Conv(conv) = step {
            let needed = conv_border(spec, conv).map_err(at(index))?;
            borders[conv.input.0] = borders[conv.input.0].union(needed);
        }
    }
    if let Some(output) = written.iter().position(|&count| count != 1) {
        return Err(ProgramError::Output(output));
    }
    let (views, total) = place_buffers(spec, &lives, &borders)?;
    let lower = Lower { spec, views: &views, kernels };
    let mut steps = Vec::with_capacity(spec.steps.len());
    for (index, step) in spec.steps.iter().enumerate() {
        let mut lowered = lower.step(step).map_err(at(index))?;
        lowered.border = step
            .writes()
            .filter(|id| first_writer[id.0] == index && borders[id.0] != Border::default())
            .map(|id| views[id.0]);
        steps.push(lowered);
    }
    Ok((total + SLACK, steps))
}

fn check_shapes(spec: &ProgramSpec<'_>) -> Result<(), ProgramError> {
    let buffers = spec.buffers.iter().map(|b| [b.height, b.width, b.channels]);
    let externals = spec.inputs.iter().chain(&spec.outputs).map(|e| [e.height, e.width, e.channels]);
    for shape in buffers.chain(externals) {
        if shape.contains(&0) {
            return Err(ProgramError::Shape("a tensor without elements"));
        }
        if shape[0].max(shape[1]) > EXTENT_MAX || shape[2] > CHANNELS_MAX {
            return Err(ProgramError::Shape("a tensor with an extent above the limit"));
        }
        let elements = shape.iter().try_fold(4usize, |product, &extent| product.checked_mul(extent));
        if elements.is_none_or(|bytes| bytes > 4 * ARENA_BYTES_MAX.min(usize::MAX / 8)) {
            return Err(ProgramError::Shape("a tensor larger than the limit"));
        }
    }
    Ok(())
}

/// Pixels around its input that a convolution reads.
fn conv_border(spec: &ProgramSpec<'_>, conv: &ConvSpec<'_>) -> Result<Border, Reason> {
    let input = spec.buffers[conv.input.0];
    let output = spec.buffers.get(conv.output.0).ok_or("a buffer that does not exist")?;
    check_window(&conv.window)?;
    let after = |axis: usize, outputs: usize, extent: usize| {
        let Window { kernel, stride, dilation, pad } = conv.window;
        let last = (outputs - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis];
        let after = last.saturating_sub(pad[axis] + extent - 1);
        // A window that lies in the padding altogether means that the sizes were computed wrongly.
        if (outputs - 1) * stride[axis] >= pad[axis] + extent {
            Err("windows beyond the input")
        } else {
            Ok(after)
        }
    };
    Ok(Border {
        top: conv.window.pad[0],
        left: conv.window.pad[1],
        bottom: after(0, output.height, input.height)?,
        right: after(1, output.width, input.width)?,
    })
}

fn check_window(window: &Window) -> Result<(), Reason> {
    let Window { kernel, stride, dilation, pad } = *window;
    let mut factors = kernel.into_iter().chain(stride).chain(dilation);
    if factors.any(|factor| factor == 0 || factor > FACTOR_MAX) || kernel[0] * kernel[1] > TAPS_MAX {
        return Err("a window with an extent of zero or above the limit");
    }
    if (0..2).any(|axis| pad[axis] > (kernel[axis] - 1) * dilation[axis]) {
        return Err("padding wider than the window");
    }
    Ok(())
}

fn place_buffers(
    spec: &ProgramSpec<'_>,
    lives: &[Option<Interval>],
    borders: &[Border],
) -> Result<(Vec<View>, usize), ProgramError> {
    let mut intervals = Vec::with_capacity(lives.len());
    for (id, live) in lives.iter().enumerate() {
        // A buffer that nothing writes takes no place; nothing reads it either.
        let live = live.unwrap_or(Interval { bytes: 0, first: 0, last: 0 });
        let bytes =
            if first_written(lives, id) { View::bytes(&spec.buffers[id], borders[id]) } else { Some(0) };
        let bytes = bytes.ok_or(ProgramError::ArenaTooLarge { bytes: usize::MAX })?;
        intervals.push(Interval { bytes, ..live });
    }
    let (offsets, total) = place(&intervals)?;
    let views = (0..lives.len()).map(|id| View::new(&spec.buffers[id], borders[id], offsets[id])).collect();
    Ok((views, total))
}

fn first_written(lives: &[Option<Interval>], id: usize) -> bool {
    lives[id].is_some()
}

struct Lower<'a> {
    spec: &'a ProgramSpec<'a>,
    views: &'a [View],
    kernels: &'a Kernels,
}

impl Lower<'_> {
    fn step(&self, step: &StepSpec<'_>) -> Result<Lowered, Reason> {
        let kernels = self.kernels;
        let (kind, kernel, rows, macs) = match step {
            StepSpec::Quantize(s) => {
                let output = self.views[s.output.0];
                let layout = self.external(&self.spec.inputs, s.input, &output, &[Element::F32])?.layout;
                let scale = factor(s.scale)?;
                let quantize = step::Quantize { input: s.input, layout, scale, output };
                ("quantize", (kernels.quantize)(quantize), output.height, 0)
            }
            StepSpec::Dequantize(s) => {
                let input = self.views[s.input.0];
                let layout = self.external(&self.spec.outputs, s.output, &input, &[Element::F32])?.layout;
                let dequantize =
                    step::Dequantize { input, output: s.output, layout, scale: factor(s.scale)? };
                ("dequantize", (kernels.dequantize)(dequantize), input.height, 0)
            }
            StepSpec::Load(s) => {
                let output = self.views[s.output.0];
                let bytes = [Element::U8, Element::I8];
                let External { element, layout, .. } =
                    self.external(&self.spec.inputs, s.input, &output, &bytes)?;
                let load = step::Load { input: s.input, layout, flip: flip(element), output };
                ("load", (kernels.load)(load), output.height, 0)
            }
            StepSpec::Store(s) => {
                let input = self.views[s.input.0];
                let bytes = [Element::U8, Element::I8];
                let External { element, layout, .. } =
                    self.external(&self.spec.outputs, s.output, &input, &bytes)?;
                let store = step::Store { input, output: s.output, layout, flip: flip(element) };
                ("store", (kernels.store)(store), input.height, 0)
            }
            StepSpec::Conv(s) => return self.conv(s),
            StepSpec::MaxPool(s) => {
                let (input, output) = self.pooled(s.input, s.output, &s.window)?;
                let pool = step::MaxPool { input, window: s.window, output };
                ("max-pool", (kernels.max_pool)(pool), output.height, 0)
            }
            StepSpec::AveragePool(s) => {
                let (input, output) = self.pooled(s.input, s.output, &s.window)?;
                let (shift, requant) = shifted(s.rounding, output.zero_point, Clamp::default())?;
                let multiplier = factor(s.multiplier)?;
                let pool = step::AveragePool {
                    input,
                    window: s.window,
                    divisor: s.divisor,
                    multiplier,
                    shift,
                    requant,
                    output,
                };
                ("average-pool", (kernels.average_pool)(pool), output.height, 0)
            }
            StepSpec::Add(s) => {
                let (a, b, output) = self.operands(s.a, s.b, s.output)?;
                let multipliers = [factor(s.a_multiplier)?, factor(s.b_multiplier)?];
                let clamp = check_clamp(s.clamp)?;
                let sum = Sum::new(multipliers, [a.zero_point, b.zero_point], output.zero_point, clamp);
                ("add", (kernels.add)(step::Add { a, b, sum, output }), output.height, 0)
            }
            StepSpec::Mul(s) => {
                let (a, b, output) = self.operands(s.a, s.b, s.output)?;
                let (shift, requant) = shifted(Rounding::After, output.zero_point, s.clamp)?;
                let mul = step::Mul { a, b, multiplier: factor(s.multiplier)?, shift, requant, output };
                ("mul", (kernels.mul)(mul), output.height, 0)
            }
            StepSpec::Table(s) => {
                let (input, output) = (self.views[s.input.0], self.views[s.output.0]);
                same_shape(&input, &output)?;
                let table = step::Table { input, table: s.table.clone(), output };
                ("table", (kernels.table)(table), output.height, 0)
            }
            StepSpec::Copy(s) => {
                let input = part(&self.views[s.input.0], s.from, s.size)?;
                let output = part(&self.views[s.output.0], s.to, s.size)?;
                let copy = step::Copy { input, table: s.table.clone(), output };
                ("copy", (kernels.copy)(copy), output.height, 0)
            }
            StepSpec::Softmax(s) => {
                let (input, view) = (self.views[s.input.0], self.views[s.output.0]);
                same_shape(&input, &view)?;
                let requant = requant(view.zero_point, Clamp::default())?;
                let output = SoftmaxOutput::Buffer { view, scale: factor(s.output_scale)?, requant };
                let softmax = step::Softmax { input, exp: exp_table(factor(s.input_scale)?), output };
                ("softmax", (kernels.softmax)(softmax), input.height, 0)
            }
            StepSpec::SoftmaxF32(s) => {
                let input = self.views[s.input.0];
                let external = self.external(&self.spec.outputs, s.output, &input, &[Element::F32])?;
                if external.layout == Layout::Nchw && input.height * input.width > 1 {
                    return Err("softmax writes NHWC only");
                }
                let output = SoftmaxOutput::External(s.output);
                let softmax = step::Softmax { input, exp: exp_table(factor(s.input_scale)?), output };
                ("softmax", (kernels.softmax)(softmax), input.height, 0)
            }
        };
        Ok(Lowered { kernel, rows, border: None, kind, macs })
    }

    /// An external tensor of the view's shape and one of these element types.
    fn external(
        &self,
        externals: &[External],
        index: usize,
        view: &View,
        elements: &[Element],
    ) -> Result<External, Reason> {
        let external = *externals.get(index).ok_or("an external tensor that does not exist")?;
        if !elements.contains(&external.element) {
            return Err("an external tensor of another element type");
        }
        if (external.height, external.width, external.channels) != (view.height, view.width, view.channels) {
            return Err("an external tensor of another shape");
        }
        Ok(external)
    }

    fn pooled(&self, input: BufferId, output: BufferId, window: &Window) -> Result<(View, View), Reason> {
        let (input, output) = (self.views[input.0], self.views[output.0]);
        check_window(window)?;
        if input.channels != output.channels {
            return Err("pooling that changes the number of channels");
        }
        for (axis, outputs, extent) in [(0, output.height, input.height), (1, output.width, input.width)] {
            // The first and the last window touch the input, and those between lie between them; dilated taps may still
            // step over a narrow input, so each window is looked at.
            if (0..outputs).any(|index| inside(window, axis, index, extent).1 == 0) {
                return Err("windows beyond the input");
            }
        }
        Ok((input, output))
    }

    fn operands(&self, a: BufferId, b: BufferId, output: BufferId) -> Result<(View, View, View), Reason> {
        let (a, b, output) = (self.views[a.0], self.views[b.0], self.views[output.0]);
        same_shape(&a, &output)?;
        if (b.height, b.width) == (1, 1) && b.channels == output.channels {
            return Ok((a, b, output));
        }
        same_shape(&b, &output).map(|()| (a, b, output))
    }

    fn conv(&self, s: &ConvSpec<'_>) -> Result<Lowered, Reason> {
        let (input, output) = (self.views[s.input.0], self.views[s.output.0]);
        let channels = Channels::new(s, input.channels, output.channels)?;
        let Folded { mut weights, mut bias, magnitudes, ranges } = channels.fold(s, input.zero_point)?;
        let mut multipliers =
            per_channel(&s.multipliers, output.channels).ok_or("a wrong number of multipliers")?;
        if multipliers.iter().any(|&multiplier| factor(multiplier).is_err()) {
            return Err("a scale that is not a positive number in range");
        }
        let saturates = saturates(&magnitudes, &multipliers);
        let requant = requant(s.zero_point, s.clamp)?;
        let shifts = fuse(&mut bias, &mut multipliers, &ranges, s.zero_point);
        let residual = s.residual.as_ref().map(|r| self.residual(r, s.zero_point, &output)).transpose()?;
        let saturates = saturates || residual.as_ref().is_some_and(|r| r.sum.saturates());
        let zero_point = s.residual.as_ref().map_or(s.zero_point, |r| r.zero_point);
        if s.table.is_none() && zero_point != output.zero_point {
            return Err("a zero point that is not the output buffer's");
        }
        let Window { kernel, stride, dilation, pad } = s.window;
        let base = input.origin - pad[0] * input.row - pad[1] * input.pixel;
        // A factor that is never used may be anything, even one whose product overflows.
        let bytes = |used: bool, factor: usize, bytes: usize| if used { factor * bytes } else { 0 };
        let step =
            [bytes(output.height > 1, stride[0], input.row), bytes(output.width > 1, stride[1], input.pixel)];
        let tap_step =
            [bytes(kernel[0] > 1, dilation[0], input.row), bytes(kernel[1] > 1, dilation[1], input.pixel)];
        let table = s.table.clone();
        let macs =
            (output.height * output.width * output.channels) as u64 * (channels.taps * channels.depth) as u64;
        if s.groups > 1 && channels.depth == 1 && input.channels == output.channels {
            let weights = by_tap(&weights.all(), output.channels);
            let depthwise = step::Depthwise {
                base,
                step,
                kernel,
                tap_step,
                weights,
                bias,
                multipliers,
                shifts,
                requant,
                saturates,
                residual,
                table,
                output,
            };
            let kernel = (self.kernels.depthwise)(depthwise);
            return Ok(Lowered { kernel, rows: output.height, border: None, kind: "depthwise", macs });
        }
        let taps = (0..kernel[0]).flat_map(|ky| (0..kernel[1]).map(move |kx| (ky, kx)));
        let taps: Vec<usize> = taps.map(|(ky, kx)| ky * tap_step[0] + kx * tap_step[1]).collect();
        let run = tap_run(&taps, channels.depth, s.groups, input.pixel);
        let (taps, depth) = match run {
            1 => (taps, channels.depth),
            _ => {
                weights.pixel = input.pixel;
                (taps.into_iter().step_by(run).collect(), run * input.pixel)
            }
        };
        let conv = step::Conv {
            base,
            step,
            taps,
            depth,
            groups: s.groups,
            weights,
            bias,
            multipliers,
            shifts,
            requant,
            saturates,
            residual,
            table,
            output,
        };
        Ok(Lowered {
            kernel: (self.kernels.conv)(conv),
            rows: output.height,
            border: None,
            kind: "conv",
            macs,
        })
    }

    fn residual(&self, r: &ResidualSpec, zero_point: u8, output: &View) -> Result<Residual, Reason> {
        let view = self.views[r.buffer.0];
        same_shape(&view, output)?;
        let multipliers = [factor(r.a_multiplier)?, factor(r.b_multiplier)?];
        let sum = Sum::new(multipliers, [zero_point, view.zero_point], r.zero_point, check_clamp(r.clamp)?);
        Ok(Residual { view, sum })
    }
}

/// The sizes of a convolution's weights.
struct Channels {
    outputs: usize,
    taps: usize,
    /// Input channels of one group.
    depth: usize,
}

impl Channels {
    fn new(s: &ConvSpec<'_>, inputs: usize, outputs: usize) -> Result<Channels, Reason> {
        if s.groups == 0 || !inputs.is_multiple_of(s.groups) || !outputs.is_multiple_of(s.groups) {
            return Err("groups that do not divide the channels");
        }
        let channels =
            Channels { outputs, taps: s.window.kernel[0] * s.window.kernel[1], depth: inputs / s.groups };
        let expected = outputs.checked_mul(channels.row()).ok_or("a wrong number of weights")?;
        if s.weights.len() != expected {
            return Err("a wrong number of weights");
        }
        Ok(channels)
    }

    /// Weights of one output channel.
    fn row(&self) -> usize {
        self.taps * self.depth
    }

    fn fold<'w>(&self, s: &'w ConvSpec<'_>, zero_point: u8) -> Result<Folded<'w>, Reason> {
        let zero_points = match s.weight_zero_points.is_empty() {
            true => vec![0; self.outputs],
            false => per_channel(&s.weight_zero_points, self.outputs)
                .ok_or("a wrong number of weight zero points")?,
        };
        let mut bias = match s.bias.is_empty() {
            true => vec![0; self.outputs],
            false => s.bias.clone(),
        };
        if bias.len() != self.outputs {
            return Err("a wrong number of biases");
        }
        let mut magnitudes = Vec::with_capacity(self.outputs);
        let mut ranges = Vec::with_capacity(self.outputs);
        let mut extremes = (0, 0);
        let rows = s.weights.chunks_exact(self.row());
        for (row, (bias, &zero)) in rows.zip(bias.iter_mut().zip(&zero_points)) {
            let Extent { sum, magnitude, least, greatest } = extent(row, i16::from(zero));
            extremes = (least.min(extremes.0), greatest.max(extremes.1));
            if i64::from(*bias).abs() + 255 * magnitude > i64::from(i32::MAX) {
                return Err("sums that could overflow 32 bits");
            }
            *bias = (i64::from(*bias) - i64::from(zero_point) * sum) as i32;
            magnitudes.push(i64::from(*bias).abs() + 255 * magnitude);
            let (down, up) = (255 * (magnitude - sum) / 2, 255 * (magnitude + sum) / 2);
            ranges.push((i64::from(*bias) - down, i64::from(*bias) + up));
        }
        let (taps, depth) = (self.taps, self.depth);
        let weights = Weights { values: &s.weights, zero_points, taps, depth, pixel: depth, extremes };
        Ok(Folded { weights, bias, magnitudes, ranges })
    }
}

/// The weights and biases of a convolution, its zero points folded in.
struct Folded<'w> {
    weights: Weights<'w>,
    /// By output channel.
    bias: Vec<i32>,
    /// What no sum exceeds, by output channel.
    magnitudes: Vec<i64>,
    /// The least and the greatest sum, by output channel.
    ranges: Vec<(i64, i64)>,
}

/// Whether a scaled sum may leave i32.
fn saturates(magnitudes: &[i64], multipliers: &[f32]) -> bool {
    const SAFE: f64 = (1 << 30) as f64;
    magnitudes.iter().zip(multipliers).any(|(&sum, &multiplier)| sum as f64 * f64::from(multiplier) > SAFE)
}

/// What a row of weights comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    sum: i64,
    /// The sum of magnitudes.
    magnitude: i64,
    least: i16,
    greatest: i16,
}

fn extent(row: &[i8], zero_point: i16) -> Extent {
    /// What one vector of some tier holds: this reads all of a model's weights at every load.
    const LANES: usize = 16;
    /// Sums of so many weights of at most 255 fit i16.
    const DEEP: usize = 128;
    let mut all = Extent { sum: 0, magnitude: 0, least: i16::MAX, greatest: i16::MIN };
    for part in row.chunks(LANES * DEEP) {
        let (mut sums, mut magnitudes) = ([0; LANES], [0; LANES]);
        let (mut least, mut greatest) = ([all.least; LANES], [all.greatest; LANES]);
        let mut add = |lane: usize, w: i8| {
            let w = i16::from(w) - zero_point;
            sums[lane] += w;
            magnitudes[lane] += w.abs();
            least[lane] = w.min(least[lane]);
            greatest[lane] = w.max(greatest[lane]);
        };
        let (whole, rest) = part.as_chunks::<LANES>();
        whole.iter().for_each(|whole| (0..LANES).for_each(|lane| add(lane, whole[lane])));
        rest.iter().enumerate().for_each(|(lane, &w)| add(lane, w));
        all.sum += sums.map(i64::from).iter().sum::<i64>();
        all.magnitude += magnitudes.map(i64::from).iter().sum::<i64>();
        all.least = least.into_iter().fold(all.least, i16::min);
        all.greatest = greatest.into_iter().fold(all.greatest, i16::max);
    }
    all
}

/// How many taps of a kernel row can be joined to one, where their bytes follow one another: it fills the multiplications of
/// a stem with few channels, and shortens loops. Bytes between pixels get zero weights, which pays only where they are few.
fn tap_run(taps: &[usize], depth: usize, groups: usize, pixel: usize) -> usize {
    if groups != 1 || (depth != pixel && pixel > 4) {
        return 1;
    }
    let mut run = 1;
    while run < taps.len() && taps[run] == taps[run - 1] + pixel {
        run += 1;
    }
    let regular = taps.len().is_multiple_of(run)
        && taps.chunks_exact(run).all(|row| row.windows(2).all(|pair| pair[1] == pair[0] + pixel));
    if regular { run } else { 1 }
}

/// `[channel][tap]` to `[tap][channel]`.
fn by_tap(weights: &[i16], channels: usize) -> Vec<i16> {
    let taps = weights.len() / channels;
    (0..weights.len()).map(|i| weights[(i % channels) * taps + i / channels]).collect()
}

fn per_channel<T: Copy>(values: &[T], channels: usize) -> Option<Vec<T>> {
    match values {
        [one] => Some(vec![*one; channels]),
        _ => (values.len() == channels).then(|| values.to_vec()),
    }
}

fn factor(value: f32) -> Result<f32, Reason> {
    if SCALES.contains(&value) { Ok(value) } else { Err("a scale that is not a positive number in range") }
}

fn check_clamp(clamp: Clamp) -> Result<Clamp, Reason> {
    if clamp.low <= clamp.high { Ok(clamp) } else { Err("bounds that exclude every value") }
}

fn requant(zero_point: u8, clamp: Clamp) -> Result<Requant, Reason> {
    check_clamp(clamp).map(|clamp| Requant { zero_point, clamp })
}

/// What is added before rounding, and what happens afterwards.
fn shifted(rounding: Rounding, zero_point: u8, clamp: Clamp) -> Result<(f32, Requant), Reason> {
    let (before, after) = match rounding {
        Rounding::Before => (0, zero_point),
        Rounding::After => (zero_point, 0),
    };
    Ok((f32::from(before), requant(after, clamp)?))
}

fn same_shape(a: &View, b: &View) -> Result<(), Reason> {
    let equal = (a.height, a.width, a.channels) == (b.height, b.width, b.channels);
    if equal { Ok(()) } else { Err("buffers of different shapes") }
}

/// The view of a box inside a buffer.
fn part(view: &View, from: [usize; 3], size: [usize; 3]) -> Result<View, Reason> {
    let extents = [view.height, view.width, view.channels];
    let fits = |axis: usize| {
        size[axis] > 0 && from[axis].checked_add(size[axis]).is_some_and(|e| e <= extents[axis])
    };
    if !(0..3).all(fits) {
        return Err("a box that is empty or leaves its buffer");
    }
    let origin = view.offset(from[0], from[1]) + from[2];
    Ok(View { origin, height: size[0], width: size[1], channels: size[2], ..*view })
}

fn flip(element: Element) -> u8 {
    if element == Element::I8 { 0x80 } else { 0 }
}

/// In f64, so that libraries of different platforms agree after rounding.
fn exp_table(scale: f32) -> Box<[f32; 256]> {
    Box::new(std::array::from_fn(|distance| (-(distance as f64) * f64::from(scale)).exp() as f32))
}

impl StepSpec<'_> {
    /// The buffers a step reads.
    fn reads(&self) -> impl Iterator<Item = BufferId> {
        let (one, two) = match self {
            StepSpec::Quantize(_) | StepSpec::Load(_) => (None, None),
            StepSpec::Dequantize(s) => (Some(s.input), None),
            StepSpec::Store(s) => (Some(s.input), None),
            StepSpec::Conv(s) => (Some(s.input), s.residual.as_ref().map(|r| r.buffer)),
            StepSpec::MaxPool(s) => (Some(s.input), None),
            StepSpec::AveragePool(s) => (Some(s.input), None),
            StepSpec::Add(s) => (Some(s.a), Some(s.b)),
            StepSpec::Mul(s) => (Some(s.a), Some(s.b)),
            StepSpec::Table(s) => (Some(s.input), None),
            StepSpec::Copy(s) => (Some(s.input), None),
            StepSpec::Softmax(s) => (Some(s.input), None),
            StepSpec::SoftmaxF32(s) => (Some(s.input), None),
        };
        one.into_iter().chain(two)
    }

    /// The buffer a step writes.
    fn writes(&self) -> Option<BufferId> {
        match self {
            StepSpec::Quantize(s) => Some(s.output),
            StepSpec::Load(s) => Some(s.output),
            StepSpec::Conv(s) => Some(s.output),
            StepSpec::MaxPool(s) => Some(s.output),
            StepSpec::AveragePool(s) => Some(s.output),
            StepSpec::Add(s) => Some(s.output),
            StepSpec::Mul(s) => Some(s.output),
            StepSpec::Table(s) => Some(s.output),
            StepSpec::Copy(s) => Some(s.output),
            StepSpec::Softmax(s) => Some(s.output),
            StepSpec::Dequantize(_) | StepSpec::Store(_) | StepSpec::SoftmaxF32(_) => None,
        }
    }

    /// The external output a step writes.
    fn output(&self) -> Option<usize> {
        match self {
            StepSpec::Dequantize(s) => Some(s.output),
            StepSpec::Store(s) => Some(s.output),
            StepSpec::SoftmaxF32(s) => Some(s.output),
            _ => None,
        }
    }
}
