//! Results computed by hand, on the portable tier: what all others are compared with.

use tractd_kernels::*;

/// Runs a program of one u8 input and one u8 output, both NHWC.
fn run(spec: ProgramSpec<'_>, input: &[u8]) -> Vec<u8> {
    let program = Program::new(&spec, Tier::Portable).expect("a valid program");
    let mut output = vec![0; program.outputs()[0].bytes()];
    program.run(&mut program.session(), &[input], &mut [&mut output]).expect("the sizes are the program's");
    output
}

/// A program that loads `[h, w, c]`, does what `steps` adds, and stores the buffer that returns.
fn program(
    [height, width, channels]: [usize; 3],
    zero_point: u8,
    steps: impl FnOnce(&mut ProgramSpec<'static>, BufferId) -> BufferId,
) -> ProgramSpec<'static> {
    let mut spec = ProgramSpec::default();
    let (element, layout) = (Element::U8, Layout::Nhwc);
    spec.inputs.push(External { element, layout, height, width, channels });
    let input = spec.buffer(height, width, channels, zero_point);
    spec.steps.push(StepSpec::Load(LoadSpec { input: 0, output: input }));
    let output = steps(&mut spec, input);
    let BufferSpec { height, width, channels, .. } = spec.buffers[output.0];
    spec.outputs.push(External { element, layout, height, width, channels });
    spec.steps.push(StepSpec::Store(StoreSpec { input: output, output: 0 }));
    spec
}

fn plain(input: BufferId, output: BufferId, weights: Vec<i8>) -> ConvSpec<'static> {
    ConvSpec {
        input,
        output,
        window: Window::square(1, 1),
        groups: 1,
        weights: weights.into(),
        weight_zero_points: vec![],
        bias: vec![],
        multipliers: vec![1.0],
        zero_point: 0,
        clamp: Clamp::default(),
        residual: None,
        table: None,
    }
}

#[test]
fn a_padded_convolution() {
    // 2×2 pixels [11 12; 13 14] around zero point 10 are 1 2 3 4; the window sums itself with weights 1..=9.
    let spec = program([2, 2, 1], 10, |spec, input| {
        let output = spec.buffer(2, 2, 1, 100);
        let window = Window { pad: [1, 1], ..Window::square(3, 1) };
        let (bias, multipliers) = (vec![3], vec![0.5]);
        spec.steps.push(StepSpec::Conv(ConvSpec {
            window,
            bias,
            multipliers,
            zero_point: 100,
            ..plain(input, output, (1..=9).collect())
        }));
        output
    });
    // 1·5+2·6+3·8+4·9+3 = 80; 1·4+2·5+3·7+4·8+3 = 70; 1·2+2·3+3·5+4·6+3 = 50; 1·1+2·2+3·4+4·5+3 = 40.
    assert_eq!(run(spec, &[11, 12, 13, 14]), [140, 135, 125, 120]);
}

#[test]
fn halves_round_to_even_and_results_saturate() {
    let spec = program([1, 1, 1], 0, |spec, input| {
        let output = spec.buffer(1, 1, 6, 4);
        let weights = vec![1, 3, 5, -1, -128, 127];
        let conv = ConvSpec { multipliers: vec![0.5], zero_point: 4, ..plain(input, output, weights) };
        spec.steps.push(StepSpec::Conv(conv));
        output
    });
    // 0.5 → 0, 1.5 → 2, 2.5 → 2, −0.5 → 0, −64 → 0 after the zero point, 63.5 → 64.
    assert_eq!(run(spec, &[1]), [4, 6, 6, 4, 0, 68]);
}

#[test]
fn weight_zero_points_count() {
    let spec = program([1, 1, 2], 7, |spec, input| {
        let output = spec.buffer(1, 1, 2, 0);
        let weight_zero_points = vec![-128, 5];
        let conv = ConvSpec { weight_zero_points, ..plain(input, output, vec![127, -128, 6, 4]) };
        spec.steps.push(StepSpec::Conv(conv));
        output
    });
    // (8−7)·255 + (9−7)·0 = 255; 1·1 + 2·(−1) = −1.
    assert_eq!(run(spec, &[8, 9]), [255, 0]);
}

#[test]
fn a_residual_is_added_to_the_quantised_result_and_then_looked_up() {
    let spec = program([1, 1, 2], 0, |spec, input| {
        let output = spec.buffer(1, 1, 2, 9);
        let residual = ResidualSpec {
            buffer: input,
            a_multiplier: 2.0,
            b_multiplier: 0.5,
            zero_point: 10,
            clamp: Clamp { low: 0, high: 100 },
        };
        let table = Some(Box::new(std::array::from_fn(|i| 255 - i as u8)));
        let conv = ConvSpec { residual: Some(residual), table, ..plain(input, output, vec![1, 0, 0, 100]) };
        spec.steps.push(StepSpec::Conv(conv));
        output
    });
    // Channel 0: 3·2 + 3·0.5 + 10 = 17.5 → 18 → 237. Channel 1: 200·100 saturates at 255, 510 + … stops at 100 → 155.
    assert_eq!(run(spec, &[3, 200]), [237, 155]);
}

#[test]
fn sums_products_and_averages() {
    let spec = program([1, 2, 2], 10, |spec, input| {
        let mean = spec.buffer(1, 1, 2, 20);
        let window = Window { kernel: [1, 2], ..Window::square(1, 1) };
        let (divisor, multiplier, rounding) = (Divisor::Inside, 2.0, Rounding::Before);
        let pool = AveragePoolSpec { input, output: mean, window, divisor, multiplier, rounding };
        spec.steps.push(StepSpec::AveragePool(pool));
        let scaled = spec.buffer(1, 2, 2, 50);
        let (multiplier, clamp) = (0.5, Clamp::default());
        spec.steps.push(StepSpec::Mul(MulSpec { a: input, b: mean, output: scaled, multiplier, clamp }));
        let output = spec.buffer(1, 2, 2, 5);
        let (a_multiplier, b_multiplier) = (1.0, 3.0);
        spec.steps.push(StepSpec::Add(AddSpec {
            a: scaled,
            b: input,
            output,
            a_multiplier,
            b_multiplier,
            clamp,
        }));
        output
    });
    // Inputs less zero point: (1, −2) (4, 2). Means · 2: (5, 0). Products / 2: (2.5 → 2, 0) (10, 0). Sums: 2+3+5, 0−6+5, 10+12+5, 0+6+5.
    assert_eq!(run(spec, &[11, 8, 14, 12]), [10, 0, 27, 11]);
}

#[test]
fn halves_go_to_the_even_value_before_or_after_an_odd_zero_point() {
    let averaged = |rounding| {
        let spec = program([1, 2, 1], 10, |spec, input| {
            let output = spec.buffer(1, 1, 1, 21);
            let window = Window { kernel: [1, 2], ..Window::square(1, 1) };
            let (divisor, multiplier) = (Divisor::Inside, 1.0);
            let pool = AveragePoolSpec { input, output, window, divisor, multiplier, rounding };
            spec.steps.push(StepSpec::AveragePool(pool));
            output
        });
        run(spec, &[11, 12])
    };
    // 1.5: 2 + 21, or 22.5.
    assert_eq!(averaged(Rounding::Before), [23]);
    assert_eq!(averaged(Rounding::After), [22]);
    let spec = program([1, 1, 2], 10, |spec, input| {
        let output = spec.buffer(1, 1, 2, 51);
        let (multiplier, clamp) = (0.5, Clamp::default());
        spec.steps.push(StepSpec::Mul(MulSpec { a: input, b: input, output, multiplier, clamp }));
        output
    });
    // 0.5 + 51 and 4.5 + 51.
    assert_eq!(run(spec, &[11, 13]), [52, 56]);
}

#[test]
fn sums_are_those_of_the_same_values_with_any_zero_points() {
    let sum = |shift: u8| {
        let spec = program([1, 1, 2], shift, |spec, input| {
            let output = spec.buffer(1, 1, 2, shift);
            let (multiplier, clamp) = (0.1, Clamp::default());
            let add =
                AddSpec { a: input, b: input, output, a_multiplier: multiplier, b_multiplier: 4.9, clamp };
            spec.steps.push(StepSpec::Add(add));
            output
        });
        run(spec, &[shift + 1, shift + 3]).iter().map(|value| value - shift).collect::<Vec<u8>>()
    };
    // In f32, 0.1 + 4.9 is 5 and 0.3 + 14.7 is 15 when nothing else is added.
    for shift in [0, 1, 100, 128, 231] {
        assert_eq!(sum(shift), [5, 15]);
    }
}

#[test]
fn a_maximum_ignores_what_lies_outside() {
    let spec = program([2, 2, 1], 200, |spec, input| {
        let output = spec.buffer(2, 2, 1, 200);
        let window = Window { pad: [1, 1], ..Window::square(2, 1) };
        spec.steps.push(StepSpec::MaxPool(MaxPoolSpec { input, output, window }));
        output
    });
    assert_eq!(run(spec, &[1, 2, 3, 0]), [1, 2, 3, 3]);
}

#[test]
fn softmax_of_two_and_of_equals() {
    let spec = program([1, 2, 2], 0, |spec, input| {
        let output = spec.buffer(1, 2, 2, 0);
        let scale = std::f32::consts::LN_2;
        let softmax = SoftmaxSpec { input, output, input_scale: scale, output_scale: 1.0 / 256.0 };
        spec.steps.push(StepSpec::Softmax(softmax));
        output
    });
    // Distance 1 is a factor of 2: 85.3 and 170.7 of 256; equals share evenly.
    assert_eq!(run(spec, &[8, 9, 7, 7]), [85, 171, 128, 128]);
}
