//! Where each rewrite rule must not fire: graphs one step away from what it takes. Here it counts what the programs are made
//! of and what stays with tract. That the answers are right all the same is for whatever runs a model: `answers.rs` of the
//! engine holds each of these graphs to what ONNX Runtime answered.

#![allow(clippy::unwrap_used, reason = "all of it is test code")]

use std::cell::Cell;
use std::path::Path;

use prost::Message;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, ModelProto};
use tractd_compiler::{Compiled, Form, Place};

#[allow(dead_code, reason = "each file of tests builds other graphs")]
#[path = "../build/mod.rs"]
mod build;
mod joins;
mod operators;
mod qoperator;
#[allow(dead_code, reason = "only the graphs are asked for here")]
mod recorded;

use build::{attribute, bytes, compiled, float, floats, graph, ints, model, node, value, whole};

/// A quantised picture `[1, 2, 4, 4]` as `a`, its reals as `ad`, then these nodes; constants to choose from.
fn net(then: Vec<tract_onnx::pb::NodeProto>, output: &[i64]) -> ModelProto {
    let mut nodes =
        vec![node("QuantizeLinear", &["x", "s", "z"], "a"), node("DequantizeLinear", &["a", "s", "z"], "ad")];
    nodes.extend(then);
    let constants = vec![
        floats("s", &[], &[0.25]),
        floats("s2", &[], &[0.5]),
        floats("many", &[2], &[0.25, 0.5]),
        bytes("z", DataType::Uint8, &[], &[128]),
        bytes("zmany", DataType::Uint8, &[2], &[128, 100]),
        bytes("z2", DataType::Uint8, &[], &[100]),
        bytes("zs", DataType::Int8, &[], &[0]),
        bytes("zs1", DataType::Int8, &[], &[1]),
        bytes("w", DataType::Int8, &[2, 2, 1, 1], &[1, 2, 3, 4]),
        bytes("k", DataType::Int8, &[32, 3], &[1; 96]),
    ];
    model(nodes, constants, &[1, 2, 4, 4], output)
}

/// `r`, quantised, as the graph's output.
fn end() -> [tract_onnx::pb::NodeProto; 2] {
    [node("QuantizeLinear", &["r", "s2", "z2"], "rq"), node("DequantizeLinear", &["rq", "s2", "z2"], "y")]
}

fn convolution() -> [tract_onnx::pb::NodeProto; 2] {
    [node("DequantizeLinear", &["w", "s", "zs"], "wd"), node("Conv", &["ad", "wd"], "c")]
}

fn steps(compiled: &Compiled) -> Vec<&'static str> {
    let kinds =
        |region: &tractd_compiler::Region| region.program().steps().map(|step| step.kind).collect::<Vec<_>>();
    match &compiled.form {
        Form::Whole(whole) => kinds(whole.region()),
        Form::Mixed { regions, .. } => regions.iter().flat_map(|region| kinds(region)).collect(),
        Form::Tract => vec![],
    }
}

/// The steps, and whether `name` is left to tract; and that the graph's answers are recorded.
fn check(model: &ModelProto, name: &str, expected: &[&str], left: bool) {
    check_recorded(&model.encode_to_vec());
    let compiled = compiled(model).unwrap();
    let place = compiled.report.nodes.iter().find(|node| node.name == name).unwrap().place;
    assert_eq!((steps(&compiled).as_slice(), place == Place::Tract), (expected, left), "{name}");
}

/// No answer at all, for this reason.
fn refused(model: &ModelProto, reason: &str) {
    check_recorded(&model.encode_to_vec());
    assert_eq!(compiled(model).unwrap_err().to_string(), reason);
}

/// Folder the graphs are written to instead, for `scripts/make-compiler-models` to record.
const WRITE_TO: &str = "TRACTD_BOUNDARIES";

thread_local! {
    /// Graphs of this test so far.
    static GRAPHS: Cell<usize> = const { Cell::new(0) };
}

fn check_recorded(graph: &[u8]) {
    let test = std::thread::current().name().unwrap_or_default().replace("::", ".");
    let Some(folder) = std::env::var_os(WRITE_TO) else {
        let known = recorded::graphs().iter().any(|known| known.model == graph);
        assert!(
            known,
            "{test}: run `scripts/make-compiler-models boundaries` after a change of these graphs"
        );
        return;
    };
    let number = GRAPHS.replace(GRAPHS.get() + 1);
    std::fs::write(Path::new(&folder).join(format!("{test}.{number}")), graph).unwrap();
}

fn also_output(model: &mut ModelProto, name: &str, dtype: DataType, dims: &[i64]) {
    graph(model).output.push(value(name, dtype, dims));
}

fn with(mut node: tract_onnx::pb::NodeProto, attributes: &[AttributeProto]) -> tract_onnx::pb::NodeProto {
    node.attribute.extend_from_slice(attributes);
    node
}

const ALL: [&str; 3] = ["quantize", "conv", "dequantize"];

#[test]
fn a_relu_behind_a_convolution_is_its_bound_unless_someone_else_reads_the_sums() {
    let net = |last: &str| {
        let mut nodes = convolution().to_vec();
        nodes.push(node("Relu", &[last], "r"));
        nodes.extend(end());
        net(nodes, &[1, 2, 4, 4])
    };
    check(&net("c"), "r", &ALL, false);
    let mut shared = net("c");
    also_output(&mut shared, "c", DataType::Float, &[1, 2, 4, 4]);
    check(&shared, "r", &[], true);
    let mut read = net("c");
    graph(&mut read).node.push(node("Neg", &["c"], "n"));
    also_output(&mut read, "n", DataType::Float, &[1, 2, 4, 4]);
    check(&read, "r", &[], true);
}

#[test]
fn bounds_are_taken_only_where_they_are_constant_and_in_order() {
    let net = |low: f32, high: f32, name: &str| {
        let mut nodes = convolution().to_vec();
        nodes.push(node("Clip", &["c", "low", name], "r"));
        nodes.extend(end());
        let mut model = net(nodes, &[1, 2, 4, 4]);
        graph(&mut model).initializer.extend([floats("low", &[], &[low]), floats("high", &[], &[high])]);
        model
    };
    check(&net(0.0, 6.0, "high"), "r", &ALL, false);
    check(&net(6.0, 0.0, "high"), "r", &[], true);
    check(&net(f32::NAN, 6.0, "high"), "r", &[], true);
    let mut given = net(0.0, 6.0, "given");
    graph(&mut given).input.push(value("given", DataType::Float, &[]));
    check(&given, "r", &[], true);
    refused(&net(0.0, 6.0, "ad"), "node `r`: bounds that are no scalars");
}

#[test]
fn a_table_joins_a_convolution_only_where_it_alone_reads_it() {
    let net = |then: &str| {
        let mut nodes = convolution().to_vec();
        nodes.push(node("QuantizeLinear", &["c", "s2", "z"], "cq"));
        nodes.push(node("DequantizeLinear", &["cq", "s2", "z"], "cd"));
        nodes.push(node(then, &["cd"], "r"));
        nodes.extend(end());
        net(nodes, &[1, 2, 4, 4])
    };
    check(&net("Sigmoid"), "r", &ALL, false);
    let mut shared = net("Sigmoid");
    also_output(&mut shared, "cq", DataType::Uint8, &[1, 2, 4, 4]);
    check(&shared, "r", &["quantize", "conv", "table", "store", "dequantize"], false);
    // Along an axis: no function of each element alone.
    check(&net("LogSoftmax"), "r", &["quantize", "conv", "dequantize"], true);
}

#[test]
fn a_sum_joins_a_convolution_only_where_it_alone_reads_it_and_shapes_agree() {
    let net = |other: &str| {
        let mut nodes = convolution().to_vec();
        nodes.push(node("QuantizeLinear", &["c", "s2", "z"], "cq"));
        nodes.push(node("DequantizeLinear", &["cq", "s2", "z"], "cd"));
        nodes.push(node("Add", &["cd", other], "r"));
        nodes.extend(end());
        net(nodes, &[1, 2, 4, 4])
    };
    check(&net("ad"), "r", &ALL, false);
    let mut shared = net("ad");
    also_output(&mut shared, "cq", DataType::Uint8, &[1, 2, 4, 4]);
    check(&shared, "r", &["quantize", "conv", "add", "store", "dequantize"], false);
    check(&net("x"), "r", &["quantize", "conv", "dequantize"], true);
    // One value per channel repeats over the picture; one per column does not.
    for (dims, left) in [([1, 2, 1, 1], false), ([1, 1, 1, 2], true)] {
        let mut repeated = net("pd");
        graph(&mut repeated).initializer.push(bytes("p", DataType::Uint8, &dims, &[7, 9]));
        graph(&mut repeated).node.insert(0, node("DequantizeLinear", &["p", "s", "z"], "pd"));
        let expected: &[&str] = if left {
            &["quantize", "conv", "dequantize"]
        } else {
            &["quantize", "conv", "load", "add", "dequantize"]
        };
        check(&repeated, "r", expected, left);
    }
}

#[test]
fn scales_must_be_constants_of_the_whole_tensor() {
    let nodes = |scale: &str, zero: &str| {
        let mut nodes = convolution().to_vec();
        nodes.push(node("QuantizeLinear", &["c", scale, zero], "rq"));
        nodes.push(node("DequantizeLinear", &["rq", "s2", "z"], "y"));
        net(nodes, &[1, 2, 4, 4])
    };
    check(&nodes("s2", "z"), "c", &ALL, false);
    check(&nodes("many", "zmany"), "c", &[], true);
    // Given by the caller.
    let mut given = nodes("given", "z");
    graph(&mut given).input.push(value("given", DataType::Float, &[]));
    check(&given, "c", &[], true);
    let mut given = nodes("s2", "given");
    graph(&mut given).input.push(value("given", DataType::Uint8, &[]));
    check(&given, "c", &[], true);
}

#[test]
fn weights_are_taken_only_with_scales_along_their_outputs() {
    let net = |axis: i64, scales: &str| {
        let mut nodes = convolution().to_vec();
        nodes[0] = with(node("DequantizeLinear", &["w", scales], "wd"), &[attribute("axis", axis)]);
        nodes[1].output[0] = "r".into();
        nodes[1].name = "r".into();
        nodes.extend(end());
        net(nodes, &[1, 2, 4, 4])
    };
    check(&net(0, "many"), "r", &ALL, false);
    check(&net(1, "many"), "r", &[], true);
    check(&net(1, "s"), "r", &ALL, false);
}

#[test]
fn weights_and_their_zero_points_are_of_one_type() {
    let net = |zero: &str| {
        let mut nodes = convolution().to_vec();
        nodes[0] = node("DequantizeLinear", &["w", "s", zero], "wd");
        nodes[1].output[0] = "r".into();
        nodes[1].name = "r".into();
        nodes.extend(end());
        net(nodes, &[1, 2, 4, 4])
    };
    check(&net("zs1"), "r", &ALL, false);
    check(&net("z"), "r", &[], true);
}

#[test]
fn a_flattened_picture_meets_a_dense_layer_only_in_its_own_order() {
    let net = |perm: &[i64]| {
        let nodes = vec![
            with(node("Transpose", &["ad"], "t"), &[ints("perm", perm)]),
            node("Flatten", &["t"], "f"),
            node("DequantizeLinear", &["k", "s", "zs"], "kd"),
            node("MatMul", &["f", "kd"], "r"),
            end()[0].clone(),
            end()[1].clone(),
        ];
        net(nodes, &[1, 3])
    };
    check(&net(&[0, 1, 2, 3]), "r", &ALL, false);
    // Channels last: another order than the weights'.
    check(&net(&[0, 2, 3, 1]), "r", &[], true);
    check(&net(&[0, 1, 3, 2]), "r", &[], true);
}

#[test]
fn factors_of_a_dense_layer_are_left() {
    let net = |attributes: &[AttributeProto]| {
        let nodes = vec![
            node("Flatten", &["ad"], "f"),
            node("DequantizeLinear", &["k", "s", "zs"], "kd"),
            with(node("Gemm", &["f", "kd"], "r"), attributes),
            end()[0].clone(),
            end()[1].clone(),
        ];
        net(nodes, &[1, 3])
    };
    check(&net(&[]), "r", &ALL, false);
    check(&net(&[float("alpha", 0.5)]), "r", &[], true);
    check(&net(&[float("beta", 0.5)]), "r", &[], true);
    check(&net(&[attribute("transB", 1)]), "r", &[], true);
}

#[test]
fn softmax_is_taken_over_channels_only() {
    let net = |axis: i64, shape: &[i64]| {
        let nodes = vec![
            node("Reshape", &["ad", "shape"], "v"),
            with(node("Softmax", &["v"], "r"), &[attribute("axis", axis)]),
            end()[0].clone(),
            end()[1].clone(),
        ];
        let mut model = net(nodes, shape);
        graph(&mut model).initializer.push(whole("shape", shape));
        model
    };
    let taken = ["quantize", "softmax", "dequantize"];
    check(&net(-1, &[1, 32]), "r", &taken, false);
    check(&net(0, &[1, 32]), "r", &[], true);
    check(&net(1, &[1, 4, 8]), "r", &[], true);
}

#[test]
fn a_mean_is_a_global_average_only_over_height_and_width() {
    let net = |axes: &[i64], output: &[i64]| {
        let mean = with(node("ReduceMean", &["ad"], "r"), &[ints("axes", axes)]);
        let nodes = vec![mean, end()[0].clone(), end()[1].clone()];
        net(nodes, output)
    };
    let taken = ["quantize", "average-pool", "dequantize"];
    check(&net(&[2, 3], &[1, 2, 1, 1]), "r", &taken, false);
    check(&net(&[-1, -2], &[1, 2, 1, 1]), "r", &taken, false);
    check(&net(&[1, 2], &[1, 1, 1, 4]), "r", &[], true);
    check(&net(&[3], &[1, 2, 4, 1]), "r", &[], true);
}

#[test]
fn parts_are_joined_only_along_an_axis_that_is_the_buffers() {
    let net = |axis: i64, output: &[i64]| {
        let concat = with(node("Concat", &["ad", "ad"], "r"), &[attribute("axis", axis)]);
        net(vec![concat, end()[0].clone(), end()[1].clone()], output)
    };
    let taken = ["quantize", "copy", "copy", "dequantize"];
    check(&net(1, &[1, 4, 4, 4]), "r", &taken, false);
    check(&net(3, &[1, 2, 4, 8]), "r", &taken, false);
    check(&net(0, &[2, 2, 4, 4]), "r", &[], true);
    check(&net(7, &[1, 4, 4, 4]), "r", &[], true);
}

#[test]
fn quantisations_in_blocks_or_to_other_widths_are_left() {
    let net = |name: &str, value: i64| {
        let mut nodes = convolution().to_vec();
        nodes[1].output[0] = "r".into();
        nodes[1].name = "r".into();
        let [mut quantise, dequantise] = end();
        quantise.attribute.push(attribute(name, value));
        nodes.extend([quantise, dequantise]);
        let mut model = net(nodes, &[1, 2, 4, 4]);
        // The first that has both.
        (model.ir_version, model.opset_import[0].version) = (10, 21);
        model
    };
    check(&net("output_dtype", 2), "rq", &ALL, false);
    check(&net("block_size", 4), "r", &[], true);
    // u16
    let other = "node `rq`: an output type that is not its zero point's";
    refused(&net("output_dtype", 4), other);
    // i8, where without a zero point u8 is what tract makes.
    let mut without = net("output_dtype", 3);
    let quantise = graph(&mut without).node.iter_mut().find(|node| node.name == "rq").unwrap();
    quantise.input.pop();
    graph(&mut without).node.last_mut().unwrap().input[2] = "zs".into();
    refused(&without, other);
}

#[test]
fn a_convolution_of_three_dimensions_or_of_pixels_beyond_its_padding_is_left() {
    let net = |attributes: &[AttributeProto], output: &[i64]| {
        let mut nodes = convolution().to_vec();
        nodes[1] = with(node("Conv", &["ad", "wd"], "r"), attributes);
        nodes.extend(end());
        net(nodes, output)
    };
    let same = [1, 2, 4, 4];
    check(&net(&[], &same), "r", &ALL, false);
    check(&net(&[attribute("group", 3)], &same), "r", &[], true);
    check(&net(&[ints("strides", &[1])], &same), "r", &[], true);
    check(&net(&[ints("kernel_shape", &[3, 3])], &same), "r", &[], true);
    // The result would have pixels of padding alone.
    check(&net(&[ints("pads", &[1, 1, 1, 1])], &[1, 2, 6, 6]), "r", &[], true);
}
