//! Small quantised graphs of every kind, held to what ONNX Runtime answered (`scripts/make-compiler-models`).

#![allow(clippy::unwrap_used, reason = "all of it is test code")]

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{ModelProto, NodeProto, TensorProto, ValueInfoProto};
use tractd_compiler::{CompileError, Compiled, Form, Options, compile};
use tractd_kernels::Tier;

mod common;

use common::{Case, cases};

/// Results may be one step of the last quantisation apart; rounding of the dequantised values is added.
const STEPS_MAX: f32 = 1.01;

/// What counts as one step where the last operator is float, a softmax always: exponentials are computed otherwise there.
const FLOAT_STEP: f32 = 1e-6;

/// The furthest an output is from the expected one, in steps.
fn distance(case: &Case<'_>, got: &[f32]) -> f32 {
    assert_eq!(got.len(), case.expected.len(), "{}", case.name);
    let apart = got.iter().zip(&case.expected).map(|(a, b)| (a - b).abs() / step(case));
    apart.fold(0.0, |worst, apart| if apart.is_nan() { f32::INFINITY } else { worst.max(apart) })
}

fn step(case: &Case<'_>) -> f32 {
    if case.step > 0.0 { case.step } else { FLOAT_STEP }
}

/// The first output for each of the recorded inputs, one after the other.
fn answers(case: &Case<'_>, model: &ModelProto, compiled: &Compiled) -> Vec<f32> {
    let inputs = case.input.chunks_exact(common::input_bytes(model));
    inputs.flat_map(|input| common::floats(&common::run(model, compiled, &[input.to_vec()])[0])).collect()
}

/// Compiles, runs and compares; how many outputs differ at all, and how many there are.
fn check(case: &Case<'_>) -> (usize, usize) {
    let compiled = common::compiled(&case.model);
    let report = &compiled.report;
    assert_eq!(report.int8_macs, report.total_macs, "{}: {:#?}", case.name, report);
    let got = answers(case, &case.model, &compiled);
    let worst = distance(case, &got);
    assert!(worst <= STEPS_MAX, "{}: {worst} steps apart\n{got:?}\n{:?}", case.name, case.expected);
    let differing = got.iter().zip(&case.expected).filter(|(a, b)| (**a - **b).abs() > step(case) / 2.0);
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

#[test]
fn small_networks_agree_with_onnx_runtime_in_every_form() {
    let file = include_bytes!("models/nets.cases");
    let (cases, differing, outputs) = check_all(file);
    println!("{cases} cases, {differing} of {outputs} outputs differ");
    assert_eq!(cases, 32);
    assert!(differing * 100 < outputs, "{differing} of {outputs}");
}

#[test]
fn few_values_within_the_small_networks_are_clamped() {
    for case in cases(include_bytes!("models/nets.cases")) {
        let mut model = case.model.clone();
        let graph = model.graph.as_mut().unwrap();
        let quantised = graph.node.iter().filter(|node| node.op_type.starts_with('Q'));
        let names: Vec<String> = quantised.map(|node| node.output[0].clone()).collect();
        graph.output =
            names.iter().map(|name| ValueInfoProto { name: name.clone(), ..Default::default() }).collect();
        let compiled = common::compiled(&model);
        let mut counts = [0usize; 256];
        for input in case.input.chunks_exact(common::input_bytes(&model)) {
            for tensor in common::run(&model, &compiled, &[input.to_vec()]) {
                tensor.iter().for_each(|&value| counts[usize::from(value)] += 1);
            }
        }
        let all: usize = counts.iter().sum();
        let [low, high] = [counts[0], counts[255]].map(|count| count as f64 / all as f64);
        println!("{}: of {all} values {:.1} % at 0, {:.1} % at 255", case.name, low * 100.0, high * 100.0);
        // What ReLUs and ReLU6 clamp is there, too.
        assert!(low < 0.4 && high < 0.08, "{}: {low} {high}", case.name);
    }
}

/// Whether the comparison fails, or the file is refused.
fn fails(case: &Case<'_>, model: &ModelProto, steps_max: f32) -> bool {
    match compile(model, &[], &Options { tier: Tier::Portable }) {
        Err(_) => true,
        Ok(compiled) => distance(case, &answers(case, model, &compiled)) > steps_max,
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
                if !fails(case, &model, STEPS_MAX) {
                    missed.push(format!("{} {}[{index}]", case.name, tensor.name));
                }
            }
        }
    }
    println!("{tried} corruptions");
    assert_eq!(tried, 980);
    assert_eq!(missed, Vec::<String>::new());
}

#[test]
fn a_corrupted_constant_of_a_small_network_is_noticed_wherever_onnx_runtime_answers_otherwise() {
    let mut records =
        include_bytes!("models/nets.corruptions").as_chunks::<16>().0.iter().map(Corruption::read);
    let (mut loud, mut soft, mut missed) = (0, 0, vec![]);
    for case in cases(include_bytes!("models/nets.cases")) {
        let graph = case.model.graph.as_ref().unwrap();
        let quantises =
            |node: &&NodeProto| node.op_type.starts_with('Q') || node.op_type == "DequantizeLinear";
        let read: Vec<&String> = graph.node.iter().filter(quantises).flat_map(|node| &node.input).collect();
        let sound = common::compiled(&case.model);
        let sound = answers(&case, &case.model, &sound);
        for (at, tensor) in graph.initializer.iter().enumerate() {
            if !read.contains(&&tensor.name) {
                continue;
            }
            let corruption = records.next().unwrap();
            assert_eq!(corruption.constant, at, "{}", case.name);
            assert!(corruption.steps > 0.5, "{} {}: does not matter", case.name, tensor.name);
            let mut model = case.model.clone();
            corruption.apply(&mut model.graph.as_mut().unwrap().initializer[at]);
            // One or two steps may be what ours are off in the first place: then only a comparison with our own answers tells.
            let noticed = if corruption.steps > 2.5 {
                loud += 1;
                fails(&case, &model, STEPS_MAX)
            } else {
                soft += 1;
                compile(&model, &[], &Options { tier: Tier::Portable })
                    .map_or(true, |compiled| answers(&case, &model, &compiled) != sound)
            };
            if !noticed {
                missed.push(format!("{} {}{:?}: {corruption:?}", case.name, tensor.name, tensor.dims));
            }
        }
    }
    assert!(records.next().is_none());
    println!("{loud} constants by three steps or more, {soft} by one or two");
    assert_eq!((loud, soft), (2870, 224));
    assert_eq!(missed, Vec::<String>::new());
}

/// One of `nets.corruptions`.
#[derive(Debug)]
struct Corruption {
    /// Index among the graph's constants.
    constant: usize,
    element: usize,
    /// As many as an element has.
    bytes: [u8; 4],
    /// How far ONNX Runtime's answers move, in steps of the output.
    steps: f32,
}

impl Corruption {
    fn read(record: &[u8; 16]) -> Corruption {
        let word = |at: usize| [record[at], record[at + 1], record[at + 2], record[at + 3]];
        let index = |at| u32::from_le_bytes(word(at)) as usize;
        let steps = f32::from_le_bytes(word(12));
        Corruption { constant: index(0), element: index(4), bytes: word(8), steps }
    }

    fn apply(&self, tensor: &mut TensorProto) {
        let word = self.bytes;
        if tensor.raw_data.is_empty() {
            match DataType::try_from(tensor.data_type).unwrap() {
                DataType::Float => tensor.float_data[self.element] = f32::from_le_bytes(word),
                DataType::Int8 => tensor.int32_data[self.element] = i32::from(word[0] as i8),
                DataType::Uint8 => tensor.int32_data[self.element] = i32::from(word[0]),
                _ => tensor.int32_data[self.element] = i32::from_le_bytes(word),
            }
            return;
        }
        let size = match DataType::try_from(tensor.data_type).unwrap() {
            DataType::Uint8 | DataType::Int8 => 1,
            _ => 4,
        };
        tensor.raw_data[self.element * size..][..size].copy_from_slice(&word[..size]);
    }
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
