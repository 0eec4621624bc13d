//! Steps that are joined to others, and those that stay their own.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{ModelProto, NodeProto};

use super::build::{graph, node, value};
use super::{ALL, check, convolution, end, net};

fn quantised(name: &str) -> [NodeProto; 2] {
    let (q, d) = (format!("{name}q"), format!("{name}d"));
    [node("QuantizeLinear", &[name, "s2", "z"], &q), node("DequantizeLinear", &[&q, "s2", "z"], &d)]
}

/// A convolution, quantised; then these, each quantised but the last, `r`.
fn chain(then: &[NodeProto]) -> ModelProto {
    let mut nodes = convolution().to_vec();
    nodes.extend(quantised("c"));
    for node in then {
        nodes.push(node.clone());
        if node.name != "r" {
            nodes.extend(quantised(&node.name));
        }
    }
    nodes.extend(end());
    net(nodes, &[1, 2, 4, 4])
}

#[test]
fn a_convolution_takes_one_sum_and_then_one_function() {
    check(&chain(&[node("Add", &["cd", "ad"], "r")]), "r", &ALL, false);
    let twice = [node("Add", &["cd", "ad"], "t"), node("Add", &["td", "ad"], "r")];
    check(&chain(&twice), "r", &["quantize", "conv", "add", "dequantize"], false);
    let then = [node("Add", &["cd", "ad"], "t"), node("Sigmoid", &["td"], "r")];
    check(&chain(&then), "r", &ALL, false);
    // The other way round the function comes first, and the sum cannot be in front of it.
    let before = [node("Sigmoid", &["cd"], "t"), node("Add", &["td", "ad"], "r")];
    check(&chain(&before), "r", &["quantize", "conv", "add", "dequantize"], false);
}

#[test]
fn a_product_never_joins_a_convolution() {
    check(&chain(&[node("Mul", &["cd", "ad"], "r")]), "r", &["quantize", "conv", "mul", "dequantize"], false);
}

#[test]
fn a_sum_of_a_convolution_with_itself_is_a_function_of_it() {
    check(&chain(&[node("Add", &["cd", "cd"], "r")]), "r", &ALL, false);
    check(&chain(&[node("Mul", &["cd", "cd"], "r")]), "r", &ALL, false);
    // With a maximum over neighbours it is not.
    let pool = NodeProto {
        attribute: vec![super::ints("kernel_shape", &[3, 3]), super::ints("pads", &[1, 1, 1, 1])],
        ..node("MaxPool", &["cd"], "p")
    };
    let sum = [pool, node("Add", &["cd", "pd"], "r")];
    check(&chain(&sum), "r", &["quantize", "conv", "max-pool", "add", "dequantize"], false);
}

#[test]
fn functions_of_one_tensor_are_one_table_and_of_two_are_not() {
    let both = |first: &str, second: &str| {
        let mut nodes = vec![node("Sigmoid", &[first], "m"), node("Tanh", &[second], "n")];
        nodes.extend(quantised("m").into_iter().chain(quantised("n")));
        nodes.push(node("Mul", &["md", "nd"], "r"));
        nodes.extend(end());
        nodes.splice(
            0..0,
            [
                node("QuantizeLinear", &["x", "s2", "z"], "b"),
                node("DequantizeLinear", &["b", "s2", "z"], "bd"),
            ],
        );
        net(nodes, &[1, 2, 4, 4])
    };
    check(&both("ad", "ad"), "r", &["quantize", "table", "dequantize"], false);
    let apart = ["quantize", "table", "quantize", "table", "mul", "dequantize"];
    check(&both("ad", "bd"), "r", &apart, false);
}

#[test]
fn a_sum_with_what_tract_makes_of_the_convolution_is_in_a_region_of_its_own() {
    // Along an axis: tract computes it of the convolution's result, so the sum stands above.
    let mut nodes = convolution().to_vec();
    nodes.extend(quantised("c"));
    nodes.push(node("LogSoftmax", &["cd"], "l"));
    nodes.extend(quantised("l"));
    nodes.push(node("Add", &["cd", "ld"], "r"));
    nodes.extend(end());
    let model = net(nodes, &[1, 2, 4, 4]);
    let expected = ["quantize", "conv", "dequantize", "store", "load", "quantize", "add", "dequantize"];
    check(&model, "r", &expected, false);
}

#[test]
fn a_result_that_is_wanted_as_it_is_stays() {
    let mut model = chain(&[node("Add", &["cd", "ad"], "t"), node("Sigmoid", &["td"], "r")]);
    graph(&mut model).output.push(value("tq", DataType::Uint8, &[1, 2, 4, 4]));
    check(&model, "r", &["quantize", "conv", "table", "store", "dequantize"], false);
}
