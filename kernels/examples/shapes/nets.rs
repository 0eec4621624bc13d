//! The shapes of known networks with random weights: speed does not depend on them.

use tractd_kernels::*;

/// Describes a network.
pub(crate) type Make = fn() -> ProgramSpec<'static>;

/// Every network by name.
pub(crate) const ALL: [(&str, Make); 7] = [
    ("mlp", mlp),
    ("autoencoder", autoencoder),
    ("ds-cnn", ds_cnn),
    ("resnet-8", resnet_8),
    ("mobilenet-v3s", mobilenet_v3_small),
    ("mobilenet-v2", mobilenet_v2),
    ("resnet-18", resnet_18),
];

const ZERO: u8 = 128;

/// Deterministic input bytes that read as small floats.
pub(crate) fn image(bytes: usize) -> Vec<u8> {
    let values = (0..bytes / 4).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0);
    values.flat_map(f32::to_le_bytes).collect()
}

/// Shape of a step's output.
pub(crate) fn label(spec: &ProgramSpec<'_>, step: usize) -> String {
    let id = match &spec.steps[step] {
        StepSpec::Conv(s) => s.output,
        StepSpec::Quantize(s) => s.output,
        StepSpec::Add(s) => s.output,
        StepSpec::Mul(s) => s.output,
        StepSpec::MaxPool(s) => s.output,
        StepSpec::AveragePool(s) => s.output,
        _ => return String::new(),
    };
    let b = spec.buffers[id.0];
    format!("{}x{}", b.width, b.channels)
}

struct Net {
    spec: ProgramSpec<'static>,
    seed: u64,
    at: BufferId,
}

#[derive(Clone, Copy, PartialEq)]
enum Act {
    None,
    Relu,
    Relu6,
    Swish,
}

impl Net {
    fn new(h: usize, w: usize, c: usize) -> Net {
        let mut spec = ProgramSpec::default();
        let layout = Layout::Nchw;
        spec.inputs.push(External { element: Element::F32, layout, height: h, width: w, channels: c });
        let at = spec.buffer(h, w, c, ZERO);
        spec.steps.push(StepSpec::Quantize(QuantizeSpec { input: 0, output: at, scale: 0.0186 }));
        Net { spec, seed: 1, at }
    }

    fn shape(&self, id: BufferId) -> [usize; 3] {
        let b = self.spec.buffers[id.0];
        [b.height, b.width, b.channels]
    }

    fn weights(&mut self, len: usize) -> Vec<i8> {
        let mut next = || {
            self.seed =
                self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.seed >> 58) as i32 - 32
        };
        // About normal, as trained weights are.
        (0..len).map(|_| (next() + next() + next()).clamp(-127, 127) as i8).collect()
    }

    fn conv(&mut self, c_out: usize, kernel: [usize; 2], stride: usize, groups: usize, act: Act) {
        let pad = kernel.map(|k| (k - 1) / 2);
        self.conv_padded(c_out, kernel, stride, groups, act, pad, pad);
    }

    #[allow(clippy::too_many_arguments, reason = "one call for each of a convolution's parameters")]
    fn conv_padded(
        &mut self,
        c_out: usize,
        kernel: [usize; 2],
        stride: usize,
        groups: usize,
        act: Act,
        pad: [usize; 2],
        end: [usize; 2],
    ) {
        let [h, w, c] = self.shape(self.at);
        let [oh, ow] =
            [(h, 0), (w, 1)].map(|(n, axis)| (n + pad[axis] + end[axis] - kernel[axis]) / stride + 1);
        // As quantisers choose it: what has no negative values begins at 0.
        let zero_point = if matches!(act, Act::Relu | Act::Relu6) { 0 } else { ZERO };
        let output = self.spec.buffer(oh, ow, c_out, zero_point);
        let depth = c / groups * kernel[0] * kernel[1];
        let table = (act == Act::Swish).then(|| Box::new(std::array::from_fn(|i| i as u8)));
        let weights = self.weights(c_out * depth);
        // By channel, as calibration leaves them: round numbers are requantised in another way.
        let multiplier =
            |c: usize| (0.01 / (depth as f64).sqrt() * (1.0 + (c as f64 * 0.618_034).fract())) as f32;
        self.spec.steps.push(StepSpec::Conv(ConvSpec {
            input: self.at,
            output,
            window: Window { kernel, stride: [stride; 2], dilation: [1; 2], pad },
            groups,
            weights: weights.into(),
            weight_zero_points: vec![],
            bias: vec![100; c_out],
            multipliers: (0..c_out).map(multiplier).collect(),
            zero_point,
            clamp: Clamp::default(),
            residual: None,
            table,
        }));
        self.at = output;
    }

    /// Adds a buffer to the convolution just made.
    fn plus(&mut self, buffer: BufferId, act: Act) {
        let Some(StepSpec::Conv(conv)) = self.spec.steps.last_mut() else {
            unreachable!("follows a convolution")
        };
        let low = if act == Act::Relu { ZERO } else { 0 };
        let clamp = Clamp { low, high: 255 };
        let residual = ResidualSpec { buffer, a_multiplier: 0.7, b_multiplier: 0.6, zero_point: ZERO, clamp };
        conv.residual = Some(residual);
    }

    fn dense(&mut self, outputs: usize, act: Act) {
        self.conv(outputs, [1, 1], 1, 1, act);
    }

    fn average(&mut self) {
        let [h, w, c] = self.shape(self.at);
        let output = self.spec.buffer(1, 1, c, ZERO);
        let window = Window { kernel: [h, w], ..Window::square(1, 1) };
        let (divisor, multiplier) = (Divisor::Inside, 1.0);
        let pool = AveragePoolSpec {
            input: self.at,
            output,
            window,
            divisor,
            multiplier,
            rounding: Rounding::Before,
        };
        self.spec.steps.push(StepSpec::AveragePool(pool));
        self.at = output;
    }

    fn softmax(&mut self) {
        let [_, _, c] = self.shape(self.at);
        let output = self.spec.buffer(1, 1, c, 0);
        let softmax = SoftmaxSpec { input: self.at, output, input_scale: 0.1, output_scale: 1.0 / 256.0 };
        self.spec.steps.push(StepSpec::Softmax(softmax));
        self.at = output;
    }

    fn done(mut self) -> ProgramSpec<'static> {
        let [height, width, channels] = self.shape(self.at);
        let element = Element::F32;
        self.spec.outputs.push(External { element, layout: Layout::Nchw, height, width, channels });
        self.spec.steps.push(StepSpec::Dequantize(DequantizeSpec { input: self.at, output: 0, scale: 0.1 }));
        self.spec
    }
}

fn mlp() -> ProgramSpec<'static> {
    let mut net = Net::new(1, 1, 30);
    net.dense(64, Act::Relu);
    net.dense(32, Act::Relu);
    net.dense(1, Act::Swish);
    net.done()
}

fn autoencoder() -> ProgramSpec<'static> {
    let mut net = Net::new(1, 1, 640);
    for outputs in [128, 128, 128, 128, 8, 128, 128, 128, 128] {
        net.dense(outputs, Act::Relu);
    }
    net.dense(640, Act::None);
    net.done()
}

fn ds_cnn() -> ProgramSpec<'static> {
    let mut net = Net::new(49, 10, 1);
    net.conv_padded(64, [10, 4], 2, 1, Act::Relu, [4, 1], [5, 1]);
    for _ in 0..4 {
        net.conv(64, [3, 3], 1, 64, Act::Relu);
        net.conv(64, [1, 1], 1, 1, Act::Relu);
    }
    net.average();
    net.dense(12, Act::None);
    net.softmax();
    net.done()
}

fn residual(net: &mut Net, c_out: usize, stride: usize) {
    let [_, _, c] = net.shape(net.at);
    let input = net.at;
    let shortcut = if stride != 1 || c != c_out {
        net.conv(c_out, [1, 1], stride, 1, Act::None);
        net.at
    } else {
        input
    };
    net.at = input;
    net.conv(c_out, [3, 3], stride, 1, Act::Relu);
    net.conv(c_out, [3, 3], 1, 1, Act::None);
    net.plus(shortcut, Act::Relu);
}

fn resnet_8() -> ProgramSpec<'static> {
    let mut net = Net::new(32, 32, 3);
    net.conv(16, [3, 3], 1, 1, Act::Relu);
    for (c_out, stride) in [(16, 1), (32, 2), (64, 2)] {
        residual(&mut net, c_out, stride);
    }
    net.average();
    net.dense(10, Act::None);
    net.softmax();
    net.done()
}

fn resnet_18() -> ProgramSpec<'static> {
    let mut net = Net::new(224, 224, 3);
    net.conv(64, [7, 7], 2, 1, Act::Relu);
    let output = net.spec.buffer(56, 56, 64, ZERO);
    let window = Window { pad: [1, 1], ..Window::square(3, 2) };
    net.spec.steps.push(StepSpec::MaxPool(MaxPoolSpec { input: net.at, output, window }));
    net.at = output;
    for (layer, c_out) in [64, 128, 256, 512].into_iter().enumerate() {
        residual(&mut net, c_out, if layer > 0 { 2 } else { 1 });
        residual(&mut net, c_out, 1);
    }
    net.average();
    net.dense(1000, Act::None);
    net.done()
}

fn mobilenet_v2() -> ProgramSpec<'static> {
    let mut net = Net::new(224, 224, 3);
    net.conv(32, [3, 3], 2, 1, Act::Relu6);
    let blocks = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    for (expand, c_out, count, stride) in blocks {
        for index in 0..count {
            let stride = if index == 0 { stride } else { 1 };
            let (input, [_, _, c]) = (net.at, net.shape(net.at));
            if expand > 1 {
                net.conv(c * expand, [1, 1], 1, 1, Act::Relu6);
            }
            net.conv(c * expand, [3, 3], stride, c * expand, Act::Relu6);
            net.conv(c_out, [1, 1], 1, 1, Act::None);
            if stride == 1 && c == c_out {
                net.plus(input, Act::None);
            }
        }
    }
    net.conv(1280, [1, 1], 1, 1, Act::Relu6);
    net.average();
    net.dense(1000, Act::None);
    net.done()
}

fn mobilenet_v3_small() -> ProgramSpec<'static> {
    use Act::{Relu, Swish};
    let mut net = Net::new(224, 224, 3);
    net.conv(16, [3, 3], 2, 1, Swish);
    let blocks = [
        (3, 16, 16, true, Relu, 2),
        (3, 72, 24, false, Relu, 2),
        (3, 88, 24, false, Relu, 1),
        (5, 96, 40, true, Swish, 2),
        (5, 240, 40, true, Swish, 1),
        (5, 240, 40, true, Swish, 1),
        (5, 120, 48, true, Swish, 1),
        (5, 144, 48, true, Swish, 1),
        (5, 288, 96, true, Swish, 2),
        (5, 576, 96, true, Swish, 1),
        (5, 576, 96, true, Swish, 1),
    ];
    for (kernel, expand, c_out, squeeze, act, stride) in blocks {
        let (input, [_, _, c]) = (net.at, net.shape(net.at));
        if expand != c {
            net.conv(expand, [1, 1], 1, 1, act);
        }
        net.conv(expand, [kernel, kernel], stride, expand, act);
        if squeeze {
            let a = net.at;
            net.average();
            net.conv((expand / 4).next_multiple_of(8), [1, 1], 1, 1, Relu);
            net.conv(expand, [1, 1], 1, 1, Swish);
            let [h, w, c] = net.shape(a);
            let (b, output) = (net.at, net.spec.buffer(h, w, c, ZERO));
            let (multiplier, clamp) = (0.01, Clamp::default());
            net.spec.steps.push(StepSpec::Mul(MulSpec { a, b, output, multiplier, clamp }));
            net.at = output;
        }
        net.conv(c_out, [1, 1], 1, 1, Act::None);
        if stride == 1 && c == c_out {
            net.plus(input, Act::None);
        }
    }
    net.conv(576, [1, 1], 1, 1, Swish);
    net.average();
    net.dense(1024, Swish);
    net.dense(1000, Act::None);
    net.done()
}
