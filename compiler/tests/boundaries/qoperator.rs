//! Operators that have their quantisation in their own inputs.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, ModelProto, NodeProto, TensorProto};

use super::build::{attribute, bytes, float, graph, ints, node, whole};
use super::{net, with};

/// `operator`, whose result is `rq`, dequantised.
fn ended(operator: NodeProto, output: &[i64], constants: &[TensorProto]) -> ModelProto {
    let mut model = net(vec![operator, node("DequantizeLinear", &["rq", "s2", "z2"], "y")], output);
    graph(&mut model).initializer.extend_from_slice(constants);
    model
}

fn check(model: &ModelProto, step: Option<&str>) {
    match step {
        Some(step) => super::check(model, "rq", &["quantize", step, "dequantize"], false),
        None => super::check(model, "rq", &[], true),
    };
}

#[test]
fn a_convolution_takes_scales_of_whole_tensors_and_integer_biases() {
    let net = |x: &str, y: &str, bias: &str| {
        let inputs = ["a", x, "z", "w", "s", "zs", y, "z2", bias];
        ended(node("QLinearConv", &inputs, "rq"), &[1, 2, 4, 4], &[whole("bi", &[3i32, 4])])
    };
    check(&net("s", "s2", "bi"), Some("conv"));
    let per_axis = "node `rq`: activations quantised per axis";
    super::refused(&net("many", "s2", "bi"), per_axis);
    super::refused(&net("s", "many", "bi"), per_axis);
    super::refused(&net("s", "s2", "many"), "node `rq`: a bias that is not i32");
}

#[test]
fn zero_points_are_of_their_tensors_types() {
    let net = |x: &str, w: &str| {
        ended(node("QLinearConv", &["a", "s", x, "w", "s", w, "s2", "z2"], "rq"), &[1, 2, 4, 4], &[])
    };
    check(&net("z", "zs"), Some("conv"));
    check(&net("zs", "zs"), None);
    check(&net("z", "z"), None);
}

#[test]
fn a_dense_layer_takes_no_factor_no_transposed_input_and_no_float_result() {
    let gemm = |attributes: &[AttributeProto], y: &str| {
        let k = bytes("kt", DataType::Int8, &[1, 2], &[5, 6]);
        let mut inputs = vec!["aq", "s", "z", "kt", "s", "zs", ""];
        inputs.extend(if y.is_empty() { vec![] } else { vec![y, "z2"] });
        let mut model = ended(with(node("QGemm", &inputs, "rq"), attributes), &[32, 2], &[k]);
        graph(&mut model).initializer.push(whole("shape", &[32i64, 1]));
        graph(&mut model).node.insert(2, node("Reshape", &["a", "shape"], "aq"));
        graph(&mut model).node.iter_mut().for_each(|node| {
            if node.op_type == "QGemm" {
                node.domain = "com.microsoft".into();
            }
        });
        model
    };
    let alpha = float("alpha", 0.5);
    check(&gemm(&[], "s2"), Some("conv"));
    check(&gemm(&[alpha], "s2"), None);
    check(&gemm(&[attribute("transA", 1)], "s2"), None);
    check(&gemm(&[], ""), None);
}

#[test]
fn pooling_with_channels_last_is_left() {
    let net = |attributes: &[AttributeProto], op: &str, output: &[i64]| {
        let mut node = with(node(op, &["a", "s", "z", "s2", "z2"], "rq"), attributes);
        node.domain = "com.microsoft".into();
        ended(node, output, &[])
    };
    let last = attribute("channels_last", 1);
    check(&net(&[], "QLinearGlobalAveragePool", &[1, 2, 1, 1]), Some("average-pool"));
    check(&net(std::slice::from_ref(&last), "QLinearGlobalAveragePool", &[1, 1, 1, 4]), None);
    let kernel = ints("kernel_shape", &[2, 2]);
    check(&net(std::slice::from_ref(&kernel), "QLinearAveragePool", &[1, 2, 3, 3]), Some("average-pool"));
    check(&net(&[kernel, last], "QLinearAveragePool", &[1, 1, 3, 4]), None);
}

#[test]
fn functions_and_operators_that_are_not_known_are_left() {
    let net = |op: &str| {
        let mut node = node(op, &["a", "s", "z", "s2", "z2"], "rq");
        node.domain = "com.microsoft".into();
        ended(node, &[1, 2, 4, 4], &[])
    };
    check(&net("QLinearSigmoid"), Some("table"));
    check(&net("QLinearReduceMean"), None);
    check(&net("QLinearWhere"), None);
}

#[test]
fn a_sum_whose_operands_both_repeat_and_parts_along_the_batch_are_left() {
    let one = bytes("p", DataType::Uint8, &[2, 2, 4, 4], &[9; 64]);
    let add = |other: &str, output: &[i64]| {
        let mut node = node("QLinearAdd", &["a", "s", "z", other, "s", "z", "s2", "z2"], "rq");
        node.domain = "com.microsoft".into();
        ended(node, output, std::slice::from_ref(&one))
    };
    check(&add("a", &[1, 2, 4, 4]), Some("table"));
    check(&add("p", &[2, 2, 4, 4]), None);
    let concat = |axis: i64, output: &[i64]| {
        let inputs = ["s2", "z2", "a", "s", "z"];
        let mut node = with(node("QLinearConcat", &inputs, "rq"), &[attribute("axis", axis)]);
        node.domain = "com.microsoft".into();
        ended(node, output, &[])
    };
    check(&concat(1, &[1, 2, 4, 4]), Some("copy"));
    check(&concat(0, &[1, 2, 4, 4]), None);
}
