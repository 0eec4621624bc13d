//! Seeded random programs: an external input, the step in question, an external output.

use tractd_kernels::*;

/// SplitMix64: small, seeded, the same everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between `low` and `high`, both possible.
    pub(crate) fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.range(0, values.len() - 1)]
    }

    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn weights(&mut self, len: usize) -> Vec<i8> {
        let extreme = self.chance(10);
        (0..len).map(|_| if extreme { self.pick(&[-128, 127]) } else { self.next() as i8 }).collect()
    }

    fn clamp(&mut self) -> Clamp {
        if self.chance(60) {
            return Clamp::default();
        }
        let (a, b) = (self.next() as u8, self.next() as u8);
        Clamp { low: a.min(b), high: a.max(b) }
    }

    fn table(&mut self) -> Box<[u8; 256]> {
        Box::new(std::array::from_fn(|_| self.next() as u8))
    }
}

pub(crate) struct Case {
    pub(crate) spec: ProgramSpec<'static>,
    pub(crate) inputs: Vec<Vec<u8>>,
    pub(crate) describe: String,
}

/// A program under construction.
struct Builder<'a> {
    rng: &'a mut Rng,
    spec: ProgramSpec<'static>,
    inputs: Vec<Vec<u8>>,
}

impl Builder<'_> {
    fn new(rng: &mut Rng) -> Builder<'_> {
        Builder { rng, spec: ProgramSpec::default(), inputs: vec![] }
    }

    fn zero_point(&mut self) -> u8 {
        let any = self.rng.next() as u8;
        self.rng.pick(&[0, 128, 255, any])
    }

    fn buffer(&mut self, [h, w, c]: [usize; 3]) -> BufferId {
        let zero_point = self.zero_point();
        self.spec.buffer(h, w, c, zero_point)
    }

    fn shape(&self, id: BufferId) -> [usize; 3] {
        let b = self.spec.buffers[id.0];
        [b.height, b.width, b.channels]
    }

    /// A buffer filled from random bytes.
    fn loaded(&mut self, shape: [usize; 3]) -> BufferId {
        let output = self.buffer(shape);
        let [height, width, channels] = shape;
        let layout = self.rng.pick(&[Layout::Nhwc, Layout::Nchw]);
        let element = self.rng.pick(&[Element::U8, Element::I8]);
        self.spec.inputs.push(External { element, layout, height, width, channels });
        let mut bytes = self.rng.bytes(height * width * channels);
        if self.rng.chance(10) {
            bytes.fill(if element == Element::U8 { 255 } else { 127 });
        }
        self.inputs.push(bytes);
        self.spec.steps.push(StepSpec::Load(LoadSpec { input: self.spec.inputs.len() - 1, output }));
        output
    }

    fn stored(&mut self, input: BufferId) {
        let [height, width, channels] = self.shape(input);
        let layout = self.rng.pick(&[Layout::Nhwc, Layout::Nchw]);
        let element = self.rng.pick(&[Element::U8, Element::I8]);
        self.spec.outputs.push(External { element, layout, height, width, channels });
        self.spec.steps.push(StepSpec::Store(StoreSpec { input, output: self.spec.outputs.len() - 1 }));
    }

    fn done(self) -> Case {
        let describe = self.spec.steps.iter().map(|step| match step {
            StepSpec::Conv(s) => format!(
                "conv {:?} -> {:?}, groups {}, {:?}, residual {}, table {}, {:?}\n",
                self.spec.buffers[s.input.0],
                self.spec.buffers[s.output.0],
                s.groups,
                s.window,
                s.residual.is_some(),
                s.table.is_some(),
                s.clamp
            ),
            step => format!("{step:?}\n").chars().take(600).collect(),
        });
        Case { describe: describe.collect(), spec: self.spec, inputs: self.inputs }
    }

    fn window(&mut self, kernel_max: usize, stride_max: usize) -> Window {
        let rng = &mut *self.rng;
        let kernel = [rng.range(1, kernel_max), rng.range(1, kernel_max)];
        let stride = [rng.range(1, stride_max), rng.range(1, stride_max)];
        let dilation = if rng.chance(25) { [rng.range(1, 3), rng.range(1, 3)] } else { [1, 1] };
        let pad = [0, 1].map(|axis| rng.range(0, (kernel[axis] - 1) * dilation[axis]));
        Window { kernel, stride, dilation, pad }
    }

    /// Output extent with some padding at the end, or `None` when the window never fits.
    fn extent(&mut self, window: &Window, axis: usize, extent: usize, end: usize) -> Option<usize> {
        let span = (window.kernel[axis] - 1) * window.dilation[axis];
        let end = self.rng.range(0, span.min(end));
        let room = (extent + window.pad[axis] + end).checked_sub(span + 1)?;
        Some((room / window.stride[axis] + 1).min((extent + window.pad[axis] - 1) / window.stride[axis] + 1))
    }

    /// A convolution of the buffer, its results spread over the whole range.
    fn conv(&mut self, input: BufferId, window: Window, groups: usize, c_out: usize) -> Option<BufferId> {
        let [h, w, c] = self.shape(input);
        let (oh, ow) = (self.extent(&window, 0, h, 9)?, self.extent(&window, 1, w, 9)?);
        let output = self.buffer([oh, ow, c_out]);
        let depth = c / groups * window.kernel[0] * window.kernel[1];
        let weights = self.rng.weights(c_out * depth);
        let weight_zero_points = match self.rng.range(0, 5) {
            0 => vec![self.rng.next() as i8],
            1 => (0..c_out).map(|_| self.rng.next() as i8).collect(),
            2 => vec![self.rng.range(0, 3) as i8],
            3 if self.rng.chance(30) => vec![-128],
            _ => vec![],
        };
        let spread = (depth as f32).sqrt() * 74.0 * 120.0;
        let mut bias: Vec<i32> = match self.rng.chance(80) {
            true => (0..c_out).map(|_| ((self.rng.unit() - 0.5) * spread * 2.0) as i32).collect(),
            false => vec![],
        };
        let multiplier = 60.0 / spread;
        // One channel whose results are far out keeps a layer from being requantised in one operation.
        if let Some(bias) = bias.first_mut().filter(|_| self.rng.chance(40)) {
            *bias = (50_000.0 / multiplier) as i32;
        }
        let multipliers = match self.rng.chance(70) {
            true => (0..c_out).map(|_| multiplier * (0.2 + self.rng.unit())).collect(),
            false => vec![multiplier],
        };
        let mut zero_point = self.spec.buffers[output.0].zero_point;
        let residual = self.rng.chance(20).then(|| {
            let buffer = self.loaded([oh, ow, c_out]);
            let (a, b, clamp) = (0.3 + self.rng.unit(), 0.3 + self.rng.unit(), self.rng.clamp());
            let sum = zero_point;
            zero_point = self.rng.next() as u8;
            ResidualSpec { buffer, a_multiplier: a, b_multiplier: b, zero_point: sum, clamp }
        });
        let table = self.rng.chance(15).then(|| self.rng.table());
        let clamp = self.rng.clamp();
        self.spec.steps.push(StepSpec::Conv(ConvSpec {
            input,
            output,
            window,
            groups,
            weights: weights.into(),
            weight_zero_points,
            bias,
            multipliers,
            zero_point,
            clamp,
            residual,
            table,
        }));
        Some(output)
    }
}

/// Draws until a program comes out.
fn until(rng: &mut Rng, mut draw: impl FnMut(&mut Builder<'_>) -> Option<BufferId>) -> Case {
    loop {
        let mut builder = Builder::new(rng);
        if let Some(output) = draw(&mut builder) {
            builder.stored(output);
            return builder.done();
        }
    }
}

fn small(rng: &mut Rng, channels_max: usize) -> [usize; 3] {
    [rng.range(1, up_to(11)), rng.range(1, up_to(15)), rng.range(1, up_to(channels_max))]
}

/// The largest extent to draw. Miri takes a thousand times as long.
fn up_to(extent: usize) -> usize {
    if cfg!(miri) { extent.min(4) } else { extent }
}

pub(crate) fn conv(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let shape = small(b.rng, 40);
        let c_out = b.rng.range(1, up_to(90));
        let input = b.loaded(shape);
        let window = b.window(4, 3);
        b.conv(input, window, 1, c_out)
    })
}

pub(crate) fn wide_conv(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let shape = [b.rng.range(3, 9), b.rng.range(3, 9), b.rng.pick(&[16, 32, 64, 96, 100])];
        let c_out = b.rng.pick(&[16, 24, 48, 64, 128, 160, 200, 256, 300]);
        let kernel = b.rng.pick(&[1, 3]);
        let window = Window { pad: [kernel / 2; 2], ..Window::square(kernel, b.rng.range(1, 2)) };
        let input = b.loaded(shape);
        b.conv(input, window, 1, c_out)
    })
}

pub(crate) fn dense(rng: &mut Rng) -> Case {
    until(rng, |b| {
        if b.rng.chance(30) {
            let shape = small(b.rng, 40);
            let input = b.loaded(shape);
            let window = Window { kernel: [shape[0], shape[1]], ..Window::square(1, 1) };
            let c_out = b.rng.range(1, 70);
            return b.conv(input, window, 1, c_out);
        }
        let rows = if b.rng.chance(60) { 1 } else { b.rng.range(2, 30) };
        // Few outputs of many inputs are summed side by side, of whole numbers of fours.
        let (depth, c_out) = match b.rng.chance(30) {
            true => (b.rng.range(10, 20) * 16, b.rng.range(1, 80)),
            false => (b.rng.range(1, 300), b.rng.range(1, 300)),
        };
        let input = b.loaded([rows, 1, depth]);
        b.conv(input, Window::square(1, 1), 1, c_out)
    })
}

pub(crate) fn stem(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let shape = [b.rng.range(1, up_to(24)), b.rng.range(1, up_to(24)), b.rng.range(1, 4)];
        let c_out = b.rng.range(1, up_to(70));
        let input = b.loaded(shape);
        let window = b.window(up_to(7), 2);
        b.conv(input, window, 1, c_out)
    })
}

pub(crate) fn depthwise(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let mut shape = small(b.rng, 150);
        if b.rng.chance(40) {
            shape[2] = up_to(b.rng.pick(&[16, 32, 64, 96, 128, 144]));
        }
        let window = match b.rng.chance(50) {
            true => {
                let kernel = b.rng.pick(&[3, 5]);
                Window { pad: [kernel / 2; 2], ..Window::square(kernel, b.rng.range(1, 2)) }
            }
            false => b.window(5, 3),
        };
        let input = b.loaded(shape);
        b.conv(input, window, shape[2], shape[2])
    })
}

/// One row of wide pixels at the end of the arena: what computes two rows at once must not read those of a second.
pub(crate) fn single_row(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let kernel = [b.rng.range(1, 5), b.rng.range(3, 9)];
        let shape = [kernel[0], b.rng.range(9, 20), b.rng.range(145, 300)];
        let input = b.loaded(shape);
        let window = Window { kernel, ..Window::square(1, 1) };
        b.conv(input, window, shape[2], shape[2])
    })
}

pub(crate) fn grouped(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let (groups, depth, c_out) =
            (b.rng.range(1, up_to(12)), b.rng.range(1, up_to(10)), b.rng.range(1, up_to(20)));
        let input = {
            let [h, w, _] = small(b.rng, 1);
            b.loaded([h, w, groups * depth])
        };
        let window = b.window(3, 2);
        b.conv(input, window, groups, groups * c_out)
    })
}

/// Sums and multipliers at the ends of their ranges: conversions have to saturate, not wrap.
pub(crate) fn extreme(rng: &mut Rng) -> Case {
    let mut case = if rng.chance(50) { conv(rng) } else { depthwise(rng) };
    for step in &mut case.spec.steps {
        if let StepSpec::Conv(conv) = step {
            for multiplier in &mut conv.multipliers {
                *multiplier *= rng.pick(&[1e-12, 1.0, 1e3, 1e9, 1e17]);
            }
            for bias in &mut conv.bias {
                *bias = rng.pick(&[*bias, -1_900_000_000, 1_900_000_000]);
            }
            if let Some(residual) = &mut conv.residual {
                residual.b_multiplier *= rng.pick(&[1.0, 1e8, 1e17]);
            }
        }
    }
    case
}

/// Layers whose weights are all zero: nothing is left to multiply.
pub(crate) fn zeros(rng: &mut Rng) -> Case {
    let mut case = if rng.chance(50) { conv(rng) } else { depthwise(rng) };
    for step in &mut case.spec.steps {
        if let StepSpec::Conv(conv) = step {
            conv.weights.to_mut().fill(0);
            conv.weight_zero_points.clear();
        }
    }
    case
}

fn pooled(b: &mut Builder<'_>) -> Option<(BufferId, BufferId, Window)> {
    let shape = small(b.rng, 150);
    let window = match b.rng.chance(30) {
        true => Window { kernel: [shape[0], shape[1]], ..Window::square(1, 1) },
        false => b.window(4, 3),
    };
    let (oh, ow) = (b.extent(&window, 0, shape[0], 2)?, b.extent(&window, 1, shape[1], 2)?);
    let touches = |axis: usize, outputs: usize| {
        (0..outputs).all(|o| {
            let mut taps =
                (0..window.kernel[axis]).map(|k| o * window.stride[axis] + k * window.dilation[axis]);
            taps.any(|at| at >= window.pad[axis] && at < window.pad[axis] + shape[axis])
        })
    };
    if !touches(0, oh) || !touches(1, ow) {
        return None;
    }
    let input = b.loaded(shape);
    Some((input, b.buffer([oh, ow, shape[2]]), window))
}

pub(crate) fn max_pool(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let (input, output, window) = pooled(b)?;
        b.spec.steps.push(StepSpec::MaxPool(MaxPoolSpec { input, output, window }));
        Some(output)
    })
}

pub(crate) fn average_pool(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let (input, output, window) = pooled(b)?;
        let divisor = b.rng.pick(&[Divisor::Inside, Divisor::Window]);
        // One and two make halves of windows with an even number of taps.
        let any = 0.3 + b.rng.unit();
        let multiplier = b.rng.pick(&[any, 1.0, 2.0]) * b.rng.pick(&[1.0, 1.0, 1e15]);
        let rounding = b.rng.pick(&[Rounding::Before, Rounding::After]);
        b.spec.steps.push(StepSpec::AveragePool(AveragePoolSpec {
            input,
            output,
            window,
            divisor,
            multiplier,
            rounding,
        }));
        Some(output)
    })
}

fn operands(b: &mut Builder<'_>) -> (BufferId, BufferId, BufferId) {
    let shape = small(b.rng, 150);
    let second = if b.rng.chance(40) { [1, 1, shape[2]] } else { shape };
    (b.loaded(shape), b.loaded(second), b.buffer(shape))
}

pub(crate) fn add(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let (x, y, output) = operands(b);
        let any = b.rng.unit() + 0.01;
        let (a_multiplier, b_multiplier, clamp) =
            (b.rng.pick(&[any, 0.5]), b.rng.pick(&[0.5, 1.0, 0.37, 1e9]), b.rng.clamp());
        b.spec.steps.push(StepSpec::Add(AddSpec { a: x, b: y, output, a_multiplier, b_multiplier, clamp }));
        Some(output)
    })
}

pub(crate) fn mul(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let (x, y, output) = operands(b);
        let any = b.rng.unit() + 0.5;
        let (multiplier, clamp) =
            (b.rng.pick(&[0.004, 0.5, 1.0, 1e12]) * b.rng.pick(&[any, 1.0]), b.rng.clamp());
        b.spec.steps.push(StepSpec::Mul(MulSpec { a: x, b: y, output, multiplier, clamp }));
        Some(output)
    })
}

pub(crate) fn table(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let shape = small(b.rng, 150);
        let (input, output, table) = (b.loaded(shape), b.buffer(shape), b.rng.table());
        b.spec.steps.push(StepSpec::Table(TableSpec { input, output, table }));
        Some(output)
    })
}

/// A concatenation of two buffers along the channels, then a slice of it.
pub(crate) fn copy(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let [h, w, c] = small(b.rng, 60);
        let d = b.rng.range(1, 60);
        let (first, second, joined) = (b.loaded([h, w, c]), b.loaded([h, w, d]), b.buffer([h, w, c + d]));
        for (input, at, size) in [(first, 0, c), (second, c, d)] {
            let table = b.rng.chance(40).then(|| b.rng.table());
            let (to, size) = ([0, 0, at], [h, w, size]);
            b.spec.steps.push(StepSpec::Copy(CopySpec {
                input,
                output: joined,
                from: [0; 3],
                to,
                size,
                table,
            }));
        }
        let from = [b.rng.range(0, h - 1), b.rng.range(0, w - 1), b.rng.range(0, c + d - 1)];
        let size =
            [b.rng.range(1, h - from[0]), b.rng.range(1, w - from[1]), b.rng.range(1, c + d - from[2])];
        let output = b.buffer(size);
        b.spec.steps.push(StepSpec::Copy(CopySpec {
            input: joined,
            output,
            from,
            to: [0; 3],
            size,
            table: None,
        }));
        Some(output)
    })
}

pub(crate) fn softmax(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let (h, w) = if b.rng.chance(60) { (1, 1) } else { (b.rng.range(1, 4), b.rng.range(1, 4)) };
        let shape = [h, w, b.rng.range(1, 300)];
        let input = b.loaded(shape);
        let (input_scale, output_scale) = (b.rng.unit() + 0.001, 1.0 / 256.0);
        let output = b.buffer(shape);
        b.spec.steps.push(StepSpec::Softmax(SoftmaxSpec { input, output, input_scale, output_scale }));
        let [height, width, channels] = shape;
        b.spec.outputs.push(External {
            element: Element::F32,
            layout: Layout::Nhwc,
            height,
            width,
            channels,
        });
        b.spec.steps.push(StepSpec::SoftmaxF32(SoftmaxF32Spec { input, output: 0, input_scale }));
        Some(output)
    })
}

/// f32 in, quantised, out as u8 and as f32.
pub(crate) fn quantize(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let mut shape = small(b.rng, 40);
        if b.rng.chance(60) {
            shape = [b.rng.range(1, 9), b.rng.range(1, 70), b.rng.range(1, 4)];
        }
        let [height, width, channels] = shape;
        let layout = b.rng.pick(&[Layout::Nhwc, Layout::Nchw]);
        let scale = b.rng.pick(&[1.0, 0.1, 0.007_812_5, 0.018_658_5, 3.7e-9, 1e12]);
        let element = Element::F32;
        b.spec.inputs.push(External { element, layout, height, width, channels });
        let mut bytes = vec![];
        for _ in 0..height * width * channels {
            let half = b.rng.range(0, 1200) as f32 / 2.0 - 300.0;
            let value = match b.rng.range(0, 19) {
                0 => {
                    b.rng.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-40, -0.0])
                }
                1..=9 => half * scale,
                _ => (b.rng.unit() - 0.5) * 600.0 * scale,
            };
            bytes.extend(value.to_le_bytes());
        }
        b.inputs.push(bytes);
        let output = b.buffer(shape);
        b.spec.steps.push(StepSpec::Quantize(QuantizeSpec { input: 0, output, scale }));
        let layout = b.rng.pick(&[Layout::Nhwc, Layout::Nchw]);
        b.spec.outputs.push(External { element, layout, height, width, channels });
        b.spec.steps.push(StepSpec::Dequantize(DequantizeSpec { input: output, output: 0, scale }));
        Some(output)
    })
}

pub(crate) fn load(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let channels = b.rng.pick(&[1, 3, 4, 40]);
        let shape = [b.rng.range(1, 12), b.rng.range(1, 70), b.rng.range(1, channels)];
        Some(b.loaded(shape))
    })
}

/// Convolutions in a row, down to one pixel, with more weights than stay near a core: those of one layer are brought near
/// while another is computed.
pub(crate) fn heavy(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let shape = [b.rng.range(1, 8), b.rng.range(1, 8), b.rng.pick(&[64, 200, 512])];
        let mut at = b.loaded(shape);
        let mut weights = 0;
        while weights < 1 << 20 {
            let [h, w, c] = b.shape(at);
            let c_out = b.rng.pick(&[40, 128, 320, 640]);
            let (kernel, pad) = if h > 2 && w > 2 { b.rng.pick(&[(1, 0), (3, 1)]) } else { (1, 0) };
            at = b.conv(at, Window { pad: [pad; 2], ..Window::square(kernel, 1) }, 1, c_out)?;
            weights += kernel * kernel * c * c_out;
        }
        let [h, w, _] = b.shape(at);
        b.conv(at, Window { kernel: [h, w], ..Window::square(1, 1) }, 1, 500)
    })
}

/// Several convolutions in a row, with borders, buffers that share bytes, and a sum over a branch.
pub(crate) fn chain(rng: &mut Rng) -> Case {
    until(rng, |b| {
        let shape = [b.rng.range(4, 20), b.rng.range(4, 20), b.rng.range(1, 20)];
        let mut at = b.loaded(shape);
        for _ in 0..b.rng.range(2, 5) {
            let c = b.shape(at)[2];
            at = match b.rng.range(0, 2) {
                0 => {
                    let c_out = b.rng.range(1, 70);
                    b.conv(at, Window::square(1, 1), 1, c_out)?
                }
                1 => {
                    let window = Window { pad: [1, 1], ..Window::square(3, b.rng.range(1, 2)) };
                    b.conv(at, window, c, c)?
                }
                _ => {
                    let (window, c_out) = (b.window(3, 2), b.rng.range(1, 40));
                    b.conv(at, window, 1, c_out)?
                }
            };
        }
        let output = b.buffer(b.shape(at));
        let (a_multiplier, b_multiplier, clamp) = (0.5, 0.4, Clamp::default());
        b.spec.steps.push(StepSpec::Add(AddSpec { a: at, b: at, output, a_multiplier, b_multiplier, clamp }));
        Some(output)
    })
}
