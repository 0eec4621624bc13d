//! What `Program::new` refuses, and that what it accepts runs whatever the description says.

#[allow(dead_code, reason = "the other test binary uses all of it")]
mod generate;

use generate::{Case, Rng};
use tractd_kernels::*;

/// A valid program: 4×4×8 → 3×3 convolution → 4×4×8.
fn valid() -> ProgramSpec<'static> {
    let mut spec = ProgramSpec::default();
    let external = External { element: Element::U8, layout: Layout::Nhwc, height: 4, width: 4, channels: 8 };
    spec.inputs.push(external);
    spec.outputs.push(external);
    let (input, output) = (spec.buffer(4, 4, 8, 0), spec.buffer(4, 4, 8, 0));
    spec.steps.push(StepSpec::Load(LoadSpec { input: 0, output: input }));
    spec.steps.push(StepSpec::Conv(ConvSpec {
        input,
        output,
        window: Window { pad: [1, 1], ..Window::square(3, 1) },
        groups: 1,
        weights: vec![1; 8 * 8 * 9].into(),
        weight_zero_points: vec![],
        bias: vec![],
        multipliers: vec![0.1],
        zero_point: 0,
        clamp: Clamp::default(),
        residual: None,
        table: None,
    }));
    spec.steps.push(StepSpec::Store(StoreSpec { input: output, output: 0 }));
    spec
}

/// What a changed program is refused with.
fn refused(change: impl FnOnce(&mut ProgramSpec<'_>)) -> ProgramError {
    let mut spec = valid();
    change(&mut spec);
    Program::new(&spec, Tier::Portable).expect_err("the change makes it invalid")
}

/// As `refused`, with a change of the convolution.
fn conv(change: impl FnOnce(&mut ConvSpec<'_>)) -> ProgramError {
    refused(|spec| {
        let StepSpec::Conv(conv) = &mut spec.steps[1] else { unreachable!("step 1 is the convolution") };
        change(conv);
    })
}

fn step(step: usize, reason: &'static str) -> ProgramError {
    ProgramError::Step { step, reason }
}

#[test]
fn the_unchanged_program_is_accepted() {
    let program = Program::new(&valid(), Tier::Portable).unwrap();
    assert_eq!((program.macs(), program.steps().len(), program.tier()), (9216, 3, Tier::Portable));
}

#[test]
fn wrong_numbers_of_parameters() {
    assert_eq!(conv(|c| c.weights.to_mut().truncate(575)), step(1, "a wrong number of weights"));
    assert_eq!(conv(|c| c.bias = vec![0; 7]), step(1, "a wrong number of biases"));
    assert_eq!(conv(|c| c.multipliers = vec![]), step(1, "a wrong number of multipliers"));
    assert_eq!(conv(|c| c.weight_zero_points = vec![0; 3]), step(1, "a wrong number of weight zero points"));
    assert_eq!(conv(|c| c.groups = 3), step(1, "groups that do not divide the channels"));
    assert_eq!(conv(|c| c.groups = 0), step(1, "groups that do not divide the channels"));
}

#[test]
fn scales_that_are_none() {
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-30, 1e30] {
        let reason = "a scale that is not a positive number in range";
        assert_eq!(conv(|c| c.multipliers = vec![scale]), step(1, reason));
    }
}

#[test]
fn sums_that_could_overflow() {
    let reason = "sums that could overflow 32 bits";
    assert_eq!(conv(|c| c.bias = vec![i32::MAX - 255 * 72 + 1; 8]), step(1, reason));
    let mut spec = valid();
    let StepSpec::Conv(conv) = &mut spec.steps[1] else { unreachable!("step 1 is the convolution") };
    conv.bias = vec![i32::MAX - 255 * 72; 8];
    assert!(Program::new(&spec, Tier::Portable).is_ok());
}

#[test]
fn windows_that_do_not_fit() {
    assert_eq!(
        conv(|c| c.window.stride = [0, 1]),
        step(1, "a window with an extent of zero or above the limit")
    );
    assert_eq!(conv(|c| c.window.stride = [3, 1]), step(1, "windows beyond the input"));
    assert_eq!(conv(|c| c.window.pad = [3, 1]), step(1, "padding wider than the window"));
}

#[test]
fn zero_points_and_bounds_that_contradict() {
    assert_eq!(conv(|c| c.zero_point = 1), step(1, "a zero point that is not the output buffer's"));
    assert_eq!(conv(|c| c.clamp = Clamp { low: 2, high: 1 }), step(1, "bounds that exclude every value"));
}

#[test]
fn an_order_that_reads_before_it_writes() {
    assert_eq!(refused(|spec| spec.steps.swap(0, 1)), step(0, "reads a buffer that nothing has written"));
    let twice = refused(|spec| spec.steps.push(spec.steps[0].clone()));
    assert_eq!(twice, step(3, "writes a buffer a second time"));
    assert_eq!(conv(|c| c.input = c.output), step(1, "reads a buffer that nothing has written"));
    assert_eq!(conv(|c| c.output = BufferId(9)), step(1, "a buffer that does not exist"));
}

#[test]
fn outputs_written_never_or_twice() {
    assert_eq!(refused(|spec| drop(spec.steps.pop())), ProgramError::Output(0));
    assert_eq!(refused(|spec| spec.steps.push(spec.steps[2].clone())), ProgramError::Output(0));
}

#[test]
fn shapes_out_of_bounds() {
    assert_eq!(refused(|spec| spec.buffers[0].height = 0), ProgramError::Shape("a tensor without elements"));
    let reason = "a tensor with an extent above the limit";
    assert_eq!(refused(|spec| spec.buffers[0].width = usize::MAX), ProgramError::Shape(reason));
    assert_eq!(refused(|spec| spec.inputs[0].channels = 7), step(0, "an external tensor of another shape"));
}

#[test]
fn a_run_with_wrong_tensors() {
    let program = Program::new(&valid(), Tier::Portable).unwrap();
    let mut arena = program.session();
    let (input, mut output) = ([0; 128], [0; 128]);
    assert_eq!(program.run(&mut arena, &[&input[1..]], &mut [&mut output]), Err(RunError::Input(0)));
    assert_eq!(program.run(&mut arena, &[&input], &mut []), Err(RunError::Output(0)));
    let other = Program::new(&ProgramSpec::default(), Tier::Portable).unwrap();
    assert_eq!(program.run(&mut other.session(), &[&input], &mut [&mut output]), Err(RunError::Arena));
}

/// A number as a hostile model would have it.
fn hostile(rng: &mut Rng, value: usize) -> usize {
    let small = rng.range(0, 9);
    rng.pick(&[
        0,
        1,
        small,
        value.wrapping_add(1),
        value.wrapping_mul(2),
        value.saturating_sub(1),
        255,
        4096,
        65_536,
        1 << 20,
        usize::MAX,
    ])
}

fn mutate(case: &mut Case, rng: &mut Rng) {
    let spec = &mut case.spec;
    match rng.range(0, 3) {
        0 => {
            let at = rng.range(0, spec.buffers.len() - 1);
            let buffer = &mut spec.buffers[at];
            let field = [&mut buffer.height, &mut buffer.width, &mut buffer.channels];
            for field in field {
                if rng.chance(50) {
                    *field = hostile(rng, *field);
                }
            }
        }
        1 => {
            let (a, b) = (rng.range(0, spec.steps.len() - 1), rng.range(0, spec.steps.len() - 1));
            spec.steps.swap(a, b);
        }
        _ => {
            let buffers = spec.buffers.len();
            let at = rng.range(0, spec.steps.len() - 1);
            let ids = [BufferId(rng.range(0, buffers)), BufferId(rng.range(0, buffers))];
            match &mut spec.steps[at] {
                StepSpec::Conv(s) if rng.chance(70) => {
                    let Window { kernel, stride, dilation, pad } = &mut s.window;
                    for field in [kernel, stride, dilation, pad].into_iter().flatten() {
                        if rng.chance(30) {
                            *field = hostile(rng, *field);
                        }
                    }
                    if rng.chance(30) {
                        s.groups = hostile(rng, s.groups);
                    }
                }
                StepSpec::Conv(s) => (s.input, s.output) = (ids[0], ids[1]),
                StepSpec::MaxPool(s) => s.window.stride[0] = hostile(rng, s.window.stride[0]),
                StepSpec::AveragePool(s) => s.window.kernel[1] = hostile(rng, s.window.kernel[1]),
                StepSpec::Copy(s) => {
                    for field in [&mut s.from, &mut s.to, &mut s.size].into_iter().flatten() {
                        if rng.chance(30) {
                            *field = hostile(rng, *field);
                        }
                    }
                }
                StepSpec::Load(s) => s.output = ids[0],
                StepSpec::Store(s) => s.input = ids[0],
                StepSpec::Add(s) => (s.a, s.b) = (ids[0], ids[1]),
                StepSpec::Mul(s) => (s.a, s.output) = (ids[0], ids[1]),
                _ => {}
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of programs take hours there")]
fn hostile_descriptions_are_refused_or_run() {
    let makers = [
        generate::conv,
        generate::stem,
        generate::depthwise,
        generate::grouped,
        generate::max_pool,
        generate::average_pool,
        generate::add,
        generate::mul,
        generate::copy,
        generate::chain,
    ];
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..6000 {
        let mut rng = Rng::new(1 << 40 | seed);
        let mut case = rng.pick(&makers)(&mut rng);
        for _ in 0..rng.range(1, 3) {
            mutate(&mut case, &mut rng);
        }
        for tier in Tier::available() {
            let Ok(program) = Program::new(&case.spec, tier) else {
                refused += 1;
                continue;
            };
            if program.arena_bytes() > 1 << 24 || program.macs() > 1 << 26 {
                continue;
            }
            accepted += 1;
            let inputs: Vec<Vec<u8>> = program.inputs().iter().map(|i| vec![3; i.bytes()]).collect();
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            let mut outputs: Vec<Vec<u8>> = program.outputs().iter().map(|o| vec![0; o.bytes()]).collect();
            let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
            program.run(&mut program.session(), &inputs, &mut outputs).expect("the sizes are the program's");
        }
    }
    // Both happen often, or the mutations test nothing.
    assert!(accepted > 3000 && refused > 3000, "{accepted} accepted, {refused} refused");
}
