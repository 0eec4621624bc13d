//! Small quantised graphs of every kind, held to what ONNX Runtime answered (`scripts/make-compiler-models`).

#![allow(clippy::unwrap_used, reason = "all of it is test code")]

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{ModelProto, TensorProto};
use tractd_compiler::{CompileError, Form, Options, compile};
use tractd_kernels::Tier;

mod common;

/// Results may be one step of the last quantisation apart; rounding of the dequantised values is added.
const STEPS_MAX: f32 = 1.01;

struct Case<'a> {
    name: &'a str,
    model: ModelProto,
    input: Vec<u8>,
    expected: Vec<f32>,
    /// Of the last quantisation.
    step: f32,
}

fn cases(mut file: &[u8]) -> Vec<Case<'_>> {
    fn part<'a>(file: &mut &'a [u8]) -> &'a [u8] {
        let (length, rest) = file.split_first_chunk::<4>().unwrap();
        let (part, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        *file = rest;
        part
    }
    let mut cases = vec![];
    while !file.is_empty() {
        let name = std::str::from_utf8(part(&mut file)).unwrap();
        let (model, input, expected) = (part(&mut file), part(&mut file), part(&mut file));
        let (step, rest) = file.split_first_chunk::<4>().unwrap();
        file = rest;
        let (model, expected) = (common::parse(model), common::floats(expected));
        cases.push(Case { name, model, input: input.to_vec(), expected, step: f32::from_le_bytes(*step) });
    }
    cases
}

/// The furthest an output is from the expected one, in steps.
fn distance(case: &Case<'_>, got: &[f32]) -> f32 {
    assert_eq!(got.len(), case.expected.len(), "{}", case.name);
    let apart = got.iter().zip(&case.expected).map(|(a, b)| (a - b).abs() / case.step);
    apart.fold(0.0, |worst, apart| if apart.is_nan() { f32::INFINITY } else { worst.max(apart) })
}

/// Compiles, runs and compares; how many outputs differ at all, and how many there are.
fn check(case: &Case<'_>) -> (usize, usize) {
    let compiled = common::compiled(&case.model);
    let report = &compiled.report;
    assert_eq!(report.int8_macs, report.total_macs, "{}: {:#?}", case.name, report);
    let outputs = common::run(&case.model, &compiled, std::slice::from_ref(&case.input));
    let got = common::floats(&outputs[0]);
    let worst = distance(case, &got);
    assert!(worst <= STEPS_MAX, "{}: {worst} steps apart\n{got:?}\n{:?}", case.name, case.expected);
    let differing = got.iter().zip(&case.expected).filter(|(a, b)| (**a - **b).abs() > case.step / 2.0);
    (differing.count(), got.len())
}

fn check_all(file: &[u8]) -> (usize, usize, usize) {
    let cases = cases(file);
    let sums = cases.iter().map(check).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    (cases.len(), sums.0, sums.1)
}

#[test]
fn every_operator_agrees_with_onnx_runtime_in_every_form() {
    let (cases, differing, outputs) = check_all(include_bytes!("models/ops.cases"));
    println!("{cases} cases, {differing} of {outputs} outputs one step apart");
    assert_eq!(cases, 145);
    // Nearly all are equal.
    assert!(differing * 1000 < outputs, "{differing} of {outputs}");
}

#[test]
fn halves_go_where_onnx_runtime_takes_them() {
    let mut wrong = vec![];
    let cases = cases(include_bytes!("models/halves.cases"));
    assert_eq!(cases.len(), 72);
    for case in &cases {
        let (differing, outputs) = check(case);
        // On x86 ONNX Runtime computes these in float, whose noise decides; elsewhere and in its own form it does not.
        let pair = case.name.starts_with("add") || case.name.starts_with("mul");
        let in_float = pair && case.name.ends_with("qdq-int8");
        if differing > 0 && !in_float {
            wrong.push(format!("{}: {differing} of {outputs}", case.name));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_operator_runs_without_tract() {
    for case in cases(include_bytes!("models/ops.cases")) {
        let compiled = common::compiled(&case.model);
        let outside: Vec<_> = compiled.report.outside().collect();
        assert!(matches!(compiled.form, Form::Whole(_)), "{}: {outside:#?}", case.name);
    }
}

#[test]
fn random_networks_agree_with_onnx_runtime() {
    let (cases, differing, outputs) = check_all(include_bytes!("models/random.cases"));
    println!("{cases} cases, {differing} of {outputs} outputs one step apart");
    assert_eq!(cases, 500);
    assert!(differing * 1000 < outputs, "{differing} of {outputs}");
}

/// Whether the comparison fails, or the file is refused.
fn fails(case: &Case<'_>, model: &ModelProto) -> bool {
    match compile(model, &[], &Options { tier: Tier::Portable }) {
        Err(_) => true,
        Ok(compiled) => {
            let outputs = common::run(model, &compiled, std::slice::from_ref(&case.input));
            distance(case, &common::floats(&outputs[0])) > STEPS_MAX
        }
    }
}

/// Changes one element for good: a weight by half its range, a scale fourfold down, a zero point by a quarter.
fn corrupt(tensor: &mut TensorProto, index: usize) {
    let size = match DataType::try_from(tensor.data_type).unwrap() {
        DataType::Uint8 | DataType::Int8 => 1,
        _ => 4,
    };
    if tensor.raw_data.is_empty() {
        match size {
            1 => tensor.int32_data[index] ^= 0x40,
            _ if !tensor.float_data.is_empty() => tensor.float_data[index] /= 4.0,
            _ => tensor.int32_data[index] = tensor.int32_data[index].wrapping_add(1 << 20),
        }
        return;
    }
    let bytes = &mut tensor.raw_data[index * size..(index + 1) * size];
    match DataType::try_from(tensor.data_type).unwrap() {
        DataType::Uint8 => bytes[0] = bytes[0].wrapping_add(0x60),
        DataType::Int8 => bytes[0] = bytes[0].wrapping_add(0x60),
        DataType::Float => {
            let value = f32::from_le_bytes(bytes.try_into().unwrap());
            bytes.copy_from_slice(&(value / 4.0).to_le_bytes());
        }
        _ => bytes.copy_from_slice(&(1i32 << 20).to_le_bytes()),
    }
}

#[test]
fn any_corrupted_weight_scale_or_zero_point_is_noticed() {
    let cases = cases(include_bytes!("models/ops.cases"));
    let mut tried = 0;
    let mut missed = vec![];
    for case in cases.iter().filter(|case| MUTATED.iter().any(|name| case.name.starts_with(name))) {
        let constants = &case.model.graph.as_ref().unwrap().initializer;
        for (at, tensor) in constants.iter().enumerate() {
            if tensor.data_type == DataType::Int64 as i32 {
                continue;
            }
            let count = tensor.dims.iter().product::<i64>() as usize;
            for index in 0..count {
                let mut model = case.model.clone();
                corrupt(&mut model.graph.as_mut().unwrap().initializer[at], index);
                tried += 1;
                if !fails(case, &model) {
                    missed.push(format!("{} {}[{index}]", case.name, tensor.name));
                }
            }
        }
    }
    println!("{tried} corruptions");
    assert_eq!(tried, 980);
    assert_eq!(missed, Vec::<String>::new());
}

/// Graphs all of whose constants matter to some output by more than a step.
const MUTATED: [&str; 4] = ["conv qdq", "conv qop", "matmul qdq", "matmul qop"];

#[test]
fn broken_scales_are_refused() {
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        for mut case in cases(include_bytes!("models/ops.cases")) {
            let graph = case.model.graph.as_mut().unwrap();
            let float = |tensor: &&mut TensorProto| tensor.data_type == DataType::Float as i32;
            let tensor = graph.initializer.iter_mut().find(float).unwrap();
            let count = tensor.dims.iter().product::<i64>() as usize;
            (tensor.raw_data, tensor.float_data) = (vec![], vec![scale; count]);
            let error = compile(&case.model, &[], &Options { tier: Tier::Portable }).unwrap_err();
            assert!(matches!(error, CompileError::Quantisation { .. }), "{}: {error}", case.name);
        }
    }
}
