//! Graphs one step away from what the compiler's rules take, whatever of them runs where: the answer is ONNX Runtime's, or
//! there is none. `scripts/make-compiler-models boundaries` recorded them, and what compiles to what is tested there.

#![allow(clippy::unwrap_used, reason = "all of it is test code")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use prost::Message;
use tract_onnx::pb::ModelProto;
use tractd_bundle::{Bundle, DType, Dim, Limits};
use tractd_engine::{Input, Plan, PlanOptions, Session, Tensor, TensorView, Want};

#[path = "../../compiler/tests/boundaries/recorded.rs"]
mod recorded;

use recorded::{Recorded, graphs};

/// Of a step: all there is room for is the rounding of the dequantised values. No result of these graphs is so near a half that
/// another order of operations would decide it.
const EQUAL: f32 = 0.01;

/// Of floats that are no quantised tensor's: a hundredth of it, in parts of the largest, is what another order of
/// additions makes.
const FLOAT_STEP: f32 = 1e-4;

/// What is refused though ONNX Runtime answers.
const REFUSED: [(&str, &str); 9] = [
    (
        "qoperator.a_dense_layer_takes_no_factor_no_transposed_input_and_no_float_result.1",
        "QGemm is not supported",
    ),
    (
        "qoperator.a_sum_whose_operands_both_repeat_and_parts_along_the_batch_are_left.1",
        "QLinearAdd is not supported",
    ),
    (
        "qoperator.a_sum_whose_operands_both_repeat_and_parts_along_the_batch_are_left.3",
        "QLinearConcat is not supported",
    ),
    ("qoperator.pooling_with_channels_last_is_left.1", "QLinearGlobalAveragePool is not supported"),
    ("qoperator.pooling_with_channels_last_is_left.3", "QLinearAveragePool is not supported"),
    ("quantisations_in_blocks_or_to_other_widths_are_left.1", "blocked quantization is not supported"),
    ("quantisations_in_blocks_or_to_other_widths_are_left.3", "an output type that is not its zero point's"),
    ("scales_must_be_constants_of_the_whole_tensor.2", "y_scale must be a const"),
    ("scales_must_be_constants_of_the_whole_tensor.3", "y_zero_point must be a const"),
];

/// A square root of negative numbers, quantised: ONNX does not say what integer stands for what is not a number.
const UNDEFINED: &str = "operators.a_function_is_a_table_only_of_one_tensor_and_scalars.5";

/// A float bias is rounded to the sums' units, which may move a result across a half, but no further.
const ROUNDED: &str = "operators.a_convolution_takes_only_a_bias_that_whole_numbers_stand_for.2";

#[test]
fn answers_are_onnx_runtimes_or_an_error() {
    let mut wrong = vec![];
    let mut refused = vec![];
    for graph in graphs() {
        let may_be_refused = REFUSED.iter().find(|(name, _)| *name == graph.name);
        match (answer(&graph), may_be_refused) {
            (Ok(_), None) if graph.outputs.is_empty() => {
                wrong.push(format!("{}: an answer where ONNX Runtime refuses", graph.name));
            }
            (Ok(tensors), None) => {
                let apart = apart(&graph, &tensors);
                let limit = match graph.name {
                    UNDEFINED => f32::INFINITY,
                    ROUNDED => 1.0 + EQUAL,
                    _ => EQUAL,
                };
                if apart > limit {
                    wrong.push(format!("{}: {apart} steps apart", graph.name));
                }
            }
            (Ok(_), Some(_)) => wrong.push(format!("{}: no longer refused", graph.name)),
            (Err(why), Some((name, reason))) if why.contains(reason) => refused.push(*name),
            (Err(why), _) if !graph.outputs.is_empty() => wrong.push(format!("{}: {why}", graph.name)),
            (Err(why), _) => assert_ne!(why, "", "{}", graph.name),
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(refused, REFUSED.map(|(name, _)| name));
}

/// The outputs, or why there are none. Where tract panics, as it does of some malformed graphs, the child that tries every
/// model first ends.
fn answer(graph: &Recorded<'_>) -> Result<Vec<Tensor>, String> {
    let run = AssertUnwindSafe(|| loaded_and_run(graph));
    catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default().to_owned())
    })
}

fn loaded_and_run(graph: &Recorded<'_>) -> Result<Vec<Tensor>, String> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("boundary/1");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("model.onnx"), graph.model).unwrap();
    let bundle = Bundle::open(&folder, &Limits::default()).map_err(|error| error.to_string())?;
    let plan = Arc::new(Plan::load(&bundle, &PlanOptions::default()).map_err(|error| error.to_string())?);
    let mut session = Session::new(plan.clone()).map_err(|error| error.to_string())?;
    let (mut rest, mut inputs) = (graph.inputs, vec![]);
    for input in plan.inputs() {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => *size,
            Dim::Free(_) => panic!("a free dimension"),
        };
        let shape: Vec<u32> = input.tensor.shape.iter().map(size).collect();
        let (data, more) = rest.split_at(shape.iter().product::<u32>() as usize * input.tensor.dtype.size());
        inputs.push((input.tensor.name.as_str(), input.tensor.dtype, shape, data));
        rest = more;
    }
    let views: Vec<_> = (inputs.iter())
        .map(|(name, dtype, shape, data)| TensorView { name, dtype: *dtype, shape, data })
        .collect();
    let output = session.run(Input::Tensors(&views), Want::ALL).map_err(|error| error.to_string())?;
    Ok(output.tensors)
}

/// The furthest an output is from the recorded one, in steps of its quantisation.
fn apart(graph: &Recorded<'_>, tensors: &[Tensor]) -> f32 {
    let mut rest = graph.outputs;
    let mut worst = 0f32;
    for tensor in tensors {
        let Some((expected, more)) = rest.split_at_checked(tensor.data.len()) else { return f32::INFINITY };
        rest = more;
        let (got, expected) = (reals(tensor.dtype, &tensor.data), reals(tensor.dtype, expected));
        let largest = expected.iter().fold(1f32, |largest, value| largest.max(value.abs()));
        let step = step(graph, tensor).unwrap_or(FLOAT_STEP * largest);
        let steps = got.iter().zip(&expected).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() / step });
        worst =
            steps.fold(worst, |worst, steps| if steps.is_nan() { f32::INFINITY } else { worst.max(steps) });
    }
    if rest.is_empty() { worst } else { f32::INFINITY }
}

/// What the integers of a tensor are apart: their scale where it is dequantised, `None` where it is of other floats.
fn step(graph: &Recorded<'_>, tensor: &Tensor) -> Option<f32> {
    if tensor.dtype != DType::F32 {
        return Some(1.0);
    }
    let graph = ModelProto::decode(graph.model).unwrap().graph.unwrap();
    let last = graph.node.iter().find(|node| node.output[0] == *tensor.name)?;
    let scale = graph.initializer.iter().find(|scale| last.input.get(1) == Some(&scale.name))?;
    (last.op_type == "DequantizeLinear" && scale.dims.is_empty()).then(|| scale.float_data[0])
}

fn reals(dtype: DType, data: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        DType::U8 => data.iter().map(|&byte| f32::from(byte)).collect(),
        DType::I8 => data.iter().map(|&byte| f32::from(byte as i8)).collect(),
        other => panic!("an output of {other}"),
    }
}
