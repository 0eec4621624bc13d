//! The ONNX formulas on plain tensors: no arena, no folding, no borders, sums in i64.

use tractd_kernels::*;

use crate::generate::Case;

struct Tensor {
    shape: [usize; 3],
    zero_point: u8,
    data: Vec<u8>,
}

impl Tensor {
    /// `None` outside.
    fn at(&self, y: isize, x: isize, c: usize) -> Option<u8> {
        let [h, w, channels] = self.shape;
        let inside = (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
        inside.then(|| self.data[(y as usize * w + x as usize) * channels + c])
    }
}

/// Sums of convolutions are off by `nudge` of their step before they are rounded.
pub(crate) fn run(case: &Case, nudge: f64) -> Vec<Vec<u8>> {
    let spec = &case.spec;
    let mut tensors: Vec<Tensor> = spec
        .buffers
        .iter()
        .map(|b| Tensor {
            shape: [b.height, b.width, b.channels],
            zero_point: b.zero_point,
            data: vec![0; b.height * b.width * b.channels],
        })
        .collect();
    let mut outputs: Vec<Vec<u8>> = spec.outputs.iter().map(|o| vec![0; o.bytes()]).collect();
    for step in &spec.steps {
        match step {
            StepSpec::Quantize(s) => {
                let (zero, external) = (f32::from(tensors[s.output.0].zero_point), spec.inputs[s.input]);
                let values = case.inputs[s.input].chunks_exact(4);
                let values =
                    values.map(|b| f32::from_le_bytes(b.try_into().expect("chunks of four")) / s.scale);
                let values = values
                    .map(|v| (f64::from(v).round_ties_even() + f64::from(zero)).clamp(0.0, 255.0) as u8);
                tensors[s.output.0].data = to_nhwc(&external, &values.collect::<Vec<_>>());
            }
            StepSpec::Dequantize(s) => {
                let (t, external) = (&tensors[s.input.0], spec.outputs[s.output]);
                let values = t.data.iter().map(|&q| (f32::from(q) - f32::from(t.zero_point)) * s.scale);
                let values = from_nhwc(&external, &values.collect::<Vec<_>>());
                outputs[s.output] = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            }
            StepSpec::Load(s) => {
                let external = spec.inputs[s.input];
                let mut data = to_nhwc(&external, &case.inputs[s.input]);
                if external.element == Element::I8 {
                    data.iter_mut().for_each(|byte| *byte = (i16::from(*byte as i8) + 128) as u8);
                }
                tensors[s.output.0].data = data;
            }
            StepSpec::Store(s) => {
                let external = spec.outputs[s.output];
                let mut data = from_nhwc(&external, &tensors[s.input.0].data);
                if external.element == Element::I8 {
                    data.iter_mut().for_each(|byte| *byte = (i16::from(*byte) - 128) as i8 as u8);
                }
                outputs[s.output] = data;
            }
            StepSpec::Conv(s) => {
                let data = conv(s, &tensors[s.input.0], tensors[s.output.0].shape, nudge);
                let data = match &s.residual {
                    None => data,
                    Some(r) => {
                        let other = &tensors[r.buffer.0];
                        let zeros = [s.zero_point, other.zero_point, r.zero_point];
                        let factors = [r.a_multiplier, r.b_multiplier];
                        data.iter()
                            .zip(&other.data)
                            .map(|(&a, &b)| sum(a, b, zeros, factors, r.clamp))
                            .collect()
                    }
                };
                tensors[s.output.0].data = match &s.table {
                    None => data,
                    Some(table) => data.iter().map(|&q| table[q as usize]).collect(),
                };
            }
            StepSpec::MaxPool(s) => {
                let pooled = each_window(&tensors[s.input.0], &s.window, tensors[s.output.0].shape, |taps| {
                    taps.iter().flatten().copied().max().expect("every window touches the input")
                });
                tensors[s.output.0].data = pooled;
            }
            StepSpec::AveragePool(s) => {
                let (input, output) = (&tensors[s.input.0], &tensors[s.output.0]);
                let clamp = Clamp::default();
                let pooled = each_window(input, &s.window, output.shape, |taps| {
                    let sum: i64 =
                        taps.iter().flatten().map(|&x| i64::from(x) - i64::from(input.zero_point)).sum();
                    let count = match s.divisor {
                        Divisor::Inside => taps.iter().flatten().count(),
                        Divisor::Window => taps.len(),
                    };
                    let requantize =
                        if s.rounding == Rounding::After { requantize_shifted } else { requantize };
                    requantize(sum, s.multiplier / count as f32, output.zero_point, clamp)
                });
                tensors[s.output.0].data = pooled;
            }
            StepSpec::Add(s) => {
                let (a, b, output) = (&tensors[s.a.0], &tensors[s.b.0], &tensors[s.output.0]);
                let zeros = [a.zero_point, b.zero_point, output.zero_point];
                let factors = [s.a_multiplier, s.b_multiplier];
                let values = (0..a.data.len())
                    .map(|i| sum(a.data[i], b.data[i % b.data.len()], zeros, factors, s.clamp));
                tensors[s.output.0].data = values.collect();
            }
            StepSpec::Mul(s) => {
                let (a, b, output) = (&tensors[s.a.0], &tensors[s.b.0], &tensors[s.output.0]);
                let values = (0..a.data.len()).map(|i| {
                    let a = i64::from(a.data[i]) - i64::from(a.zero_point);
                    let b = i64::from(b.data[i % b.data.len()]) - i64::from(b.zero_point);
                    requantize_shifted(a * b, s.multiplier, output.zero_point, s.clamp)
                });
                tensors[s.output.0].data = values.collect();
            }
            StepSpec::Table(s) => {
                tensors[s.output.0].data =
                    tensors[s.input.0].data.iter().map(|&q| s.table[q as usize]).collect();
            }
            StepSpec::Softmax(s) => {
                let zero_point = tensors[s.output.0].zero_point;
                let values = softmax(&tensors[s.input.0], s.input_scale);
                let values = values.iter().map(|p| {
                    ((p / s.output_scale).round_ties_even() + f32::from(zero_point)).clamp(0.0, 255.0) as u8
                });
                tensors[s.output.0].data = values.collect();
            }
            StepSpec::SoftmaxF32(s) => {
                let values = softmax(&tensors[s.input.0], s.input_scale);
                outputs[s.output] = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            }
            StepSpec::Copy(_) => unreachable!("copies are compared between tiers only"),
        }
    }
    outputs
}

fn conv(s: &ConvSpec<'_>, input: &Tensor, shape: [usize; 3], nudge: f64) -> Vec<u8> {
    let [oh, ow, oc] = shape;
    let depth = input.shape[2] / s.groups;
    let [kh, kw] = s.window.kernel;
    let mut data = vec![];
    for (y, x, c) in (0..oh).flat_map(|y| (0..ow).flat_map(move |x| (0..oc).map(move |c| (y, x, c)))) {
        let zero = match s.weight_zero_points.len() {
            0 => 0,
            1 => s.weight_zero_points[0],
            _ => s.weight_zero_points[c],
        };
        let mut acc = i64::from(s.bias.get(c).copied().unwrap_or(0));
        let group = c / (oc / s.groups);
        for (k, ky, kx) in
            (0..depth).flat_map(|k| (0..kh).flat_map(move |ky| (0..kw).map(move |kx| (k, ky, kx))))
        {
            let iy = (y * s.window.stride[0] + ky * s.window.dilation[0]) as isize - s.window.pad[0] as isize;
            let ix = (x * s.window.stride[1] + kx * s.window.dilation[1]) as isize - s.window.pad[1] as isize;
            if let Some(q) = input.at(iy, ix, group * depth + k) {
                let w = s.weights[((c * depth + k) * kh + ky) * kw + kx];
                acc += (i64::from(q) - i64::from(input.zero_point)) * (i64::from(w) - i64::from(zero));
            }
        }
        let multiplier = if s.multipliers.len() == 1 { s.multipliers[0] } else { s.multipliers[c] };
        data.push(match nudge {
            0.0 => requantize(acc, multiplier, s.zero_point, s.clamp),
            _ => requantize_nudged(acc as f64 + nudge, multiplier, s.zero_point, s.clamp),
        });
    }
    data
}

fn requantize(acc: i64, multiplier: f32, zero_point: u8, clamp: Clamp) -> u8 {
    let rounded = f64::from((acc as f32) * multiplier).round_ties_even() + f64::from(zero_point);
    rounded.clamp(f64::from(clamp.low), f64::from(clamp.high)) as u8
}

fn requantize_nudged(acc: f64, multiplier: f32, zero_point: u8, clamp: Clamp) -> u8 {
    let rounded = (acc * f64::from(multiplier)).round_ties_even() + f64::from(zero_point);
    rounded.clamp(f64::from(clamp.low), f64::from(clamp.high)) as u8
}

fn requantize_shifted(acc: i64, multiplier: f32, zero_point: u8, clamp: Clamp) -> u8 {
    let rounded = f64::from(acc as f32 * multiplier + f32::from(zero_point)).round_ties_even();
    rounded.clamp(f64::from(clamp.low), f64::from(clamp.high)) as u8
}

fn sum(a: u8, b: u8, zeros: [u8; 3], [ma, mb]: [f32; 2], clamp: Clamp) -> u8 {
    let [za, zb, zy] = zeros.map(i32::from);
    let value = ((i32::from(a) - za) as f32 * ma + (i32::from(b) - zb) as f32 * mb) + zy as f32;
    value.round_ties_even().clamp(f32::from(clamp.low), f32::from(clamp.high)) as u8
}

fn softmax(input: &Tensor, scale: f32) -> Vec<f32> {
    let pixels = input.data.chunks_exact(input.shape[2]);
    let softmax = |pixel: &[u8]| {
        let greatest = *pixel.iter().max().expect("a pixel has channels");
        let exp = |q: u8| (-f64::from(greatest - q) * f64::from(scale)).exp() as f32;
        let sum: f64 = pixel.iter().map(|&q| f64::from(exp(q))).sum();
        pixel.iter().map(|&q| exp(q) / sum as f32).collect::<Vec<_>>()
    };
    pixels.flat_map(softmax).collect()
}

fn each_window(
    input: &Tensor,
    window: &Window,
    [oh, ow, oc]: [usize; 3],
    reduce: impl Fn(&[Option<u8>]) -> u8,
) -> Vec<u8> {
    let mut data = vec![];
    for (y, x, c) in (0..oh).flat_map(|y| (0..ow).flat_map(move |x| (0..oc).map(move |c| (y, x, c)))) {
        let taps = (0..window.kernel[0]).flat_map(|ky| (0..window.kernel[1]).map(move |kx| (ky, kx)));
        let taps: Vec<Option<u8>> = taps
            .map(|(ky, kx)| {
                let iy = (y * window.stride[0] + ky * window.dilation[0]) as isize - window.pad[0] as isize;
                let ix = (x * window.stride[1] + kx * window.dilation[1]) as isize - window.pad[1] as isize;
                input.at(iy, ix, c)
            })
            .collect();
        data.push(reduce(&taps));
    }
    data
}

fn index(external: &External, i: usize) -> usize {
    let (h, w, c) = (external.height, external.width, external.channels);
    match external.layout {
        Layout::Nhwc => i,
        Layout::Nchw => (i % c * h + i / c / w) * w + i / c % w,
    }
}

fn to_nhwc<T: Copy>(external: &External, data: &[T]) -> Vec<T> {
    (0..data.len()).map(|i| data[index(external, i)]).collect()
}

fn from_nhwc<T: Copy + Default>(external: &External, data: &[T]) -> Vec<T> {
    let mut to = vec![T::default(); data.len()];
    (0..data.len()).for_each(|i| to[index(external, i)] = data[i]);
    to
}
