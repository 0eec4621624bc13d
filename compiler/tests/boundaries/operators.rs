//! Operators between a dequantisation and a quantisation.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, ModelProto, NodeProto, TensorProto};

use super::build::{attribute, bytes, floats, graph, ints, node, value, whole};
use super::{ALL, check, convolution, end, net, with};

/// `then`, whose result is `r`, quantised.
fn ended(then: Vec<NodeProto>, output: &[i64]) -> ModelProto {
    net(then.into_iter().chain(end()).collect(), output)
}

fn and(mut model: ModelProto, constant: TensorProto) -> ModelProto {
    graph(&mut model).initializer.push(constant);
    model
}

#[test]
fn quantisations_with_nothing_between_are_given_back_and_another_zero_point_is_work() {
    let net = |zero: &str| {
        let nodes = vec![
            node("QuantizeLinear", &["ad", "s", zero], "r"),
            node("DequantizeLinear", &["r", "s", zero], "y"),
        ];
        net(nodes, &[1, 2, 4, 4])
    };
    check(&net("z"), "r", &[], true);
    check(&net("z2"), "r", &["quantize", "table", "dequantize"], false);
}

#[test]
fn a_tensor_that_is_dequantised_as_another_type_is_left() {
    let mut model = ended(
        convolution()
            .map(|mut node| {
                if node.op_type == "Conv" {
                    node.output[0] = "r".into();
                    node.name = "r".into();
                }
                node
            })
            .to_vec(),
        &[1, 2, 4, 4],
    );
    check(&model, "r", &ALL, false);
    // `a` is u8, its zero point here i8.
    graph(&mut model).node[1].input[2] = "zs".into();
    check(&model, "r", &[], true);
}

#[test]
fn an_input_of_another_type_than_its_quantisation_is_left() {
    let net = |dtype| {
        let nodes = [
            vec![node("DequantizeLinear", &["given", "s", "z"], "gd"), node("Add", &["ad", "gd"], "r")],
            end().to_vec(),
        ];
        let mut model = super::net(nodes.concat(), &[1, 2, 4, 4]);
        graph(&mut model).input.push(value("given", dtype, &[1, 2, 4, 4]));
        model
    };
    check(&net(DataType::Uint8), "r", &["quantize", "load", "add", "dequantize"], false);
    check(&net(DataType::Int8), "r", &[], true);
    check(&net(DataType::Float), "r", &[], true);
}

#[test]
fn a_dequantised_constant_that_something_else_reads_is_tracts_too() {
    let net = |reader: Option<NodeProto>| {
        let mut nodes = convolution().to_vec();
        nodes[1].output[0] = "r".into();
        nodes[1].name = "r".into();
        let read = reader.is_some();
        nodes.extend(reader);
        let mut model = ended(nodes, &[1, 2, 4, 4]);
        if read {
            graph(&mut model).output.push(value("n", DataType::Float, &[2, 2, 1, 1]));
        }
        model
    };
    check(&net(None), "wd", &ALL, false);
    check(&net(Some(node("Neg", &["wd"], "n"))), "wd", &ALL, true);
}

#[test]
fn a_transposed_input_is_read_in_the_other_order_only_where_that_is_one() {
    let net = |perm: &[i64], output: &[i64]| {
        let constants = super::net(vec![], &[]).graph.unwrap().initializer;
        let nodes = vec![
            with(node("Transpose", &["x"], "t"), &[ints("perm", perm)]),
            node("QuantizeLinear", &["t", "s", "z"], "tq"),
            node("DequantizeLinear", &["tq", "s", "z"], "td"),
            node("Sigmoid", &["td"], "r"),
        ];
        let nodes = nodes.into_iter().chain(end()).collect();
        super::build::model(nodes, constants, &[1, 2, 4, 4], output)
    };
    let taken = ["quantize", "table", "dequantize"];
    check(&net(&[0, 2, 3, 1], &[1, 4, 4, 2]), "t", &taken, false);
    check(&net(&[0, 1, 3, 2], &[1, 2, 4, 4]), "t", &taken, true);
    // Someone else reads the transposed picture.
    let mut shared = net(&[0, 2, 3, 1], &[1, 4, 4, 2]);
    graph(&mut shared).output.push(value("t", DataType::Float, &[1, 4, 4, 2]));
    check(&shared, "t", &taken, true);
}

#[test]
fn bounds_are_looked_through_only_so_far() {
    let net = |count: usize| {
        let mut nodes = convolution().to_vec();
        let mut last = "c".to_owned();
        for at in 0..count {
            let name = if at + 1 == count { "r".to_owned() } else { format!("b{at}") };
            nodes.push(node("Relu", &[&last], &name));
            last = name;
        }
        ended(nodes, &[1, 2, 4, 4])
    };
    check(&net(4), "c", &ALL, false);
    check(&net(5), "c", &[], true);
}

#[test]
fn bounds_behind_an_operator_that_takes_none_are_left_with_it() {
    let net =
        |first: NodeProto, last: &str, dims: &[i64]| ended(vec![first, node("Relu", &["p"], last)], dims);
    let average = || with(node("AveragePool", &["ad"], "p"), &[ints("kernel_shape", &[2, 2])]);
    let mut plain = average();
    plain.output[0] = "r".into();
    check(&ended(vec![plain], &[1, 2, 3, 3]), "p", &["quantize", "average-pool", "dequantize"], false);
    check(&net(average(), "r", &[1, 2, 3, 3]), "p", &[], true);
    let concat = with(node("Concat", &["ad", "ad"], "p"), &[attribute("axis", 1)]);
    check(&net(concat, "r", &[1, 4, 4, 4]), "p", &[], true);
    check(&net(node("GlobalAveragePool", &["ad"], "p"), "r", &[1, 2, 1, 1]), "p", &[], true);
}

#[test]
fn padding_is_counted_only_in_windows_that_stay_within_it() {
    let net = |ceil: i64, dims: &[i64]| {
        let attributes = [
            ints("kernel_shape", &[3, 3]),
            ints("strides", &[2, 2]),
            attribute("count_include_pad", 1),
            attribute("ceil_mode", ceil),
        ];
        ended(vec![with(node("AveragePool", &["ad"], "r"), &attributes)], dims)
    };
    check(&net(0, &[1, 2, 1, 1]), "r", &["quantize", "average-pool", "dequantize"], false);
    check(&net(1, &[1, 2, 2, 2]), "r", &[], true);
}

#[test]
fn a_maximum_whose_place_is_wanted_or_of_floats_is_left() {
    let net = |from: &str, outputs: &[&str]| {
        let mut pool = with(node("MaxPool", &[from], "r"), &[ints("kernel_shape", &[2, 2])]);
        pool.output = outputs.iter().map(|&name| name.into()).collect();
        ended(vec![pool], &[1, 2, 3, 3])
    };
    check(&net("ad", &["r"]), "r", &["quantize", "max-pool", "table", "dequantize"], false);
    check(&net("ad", &["r", "places"]), "r", &[], true);
    check(&net("x", &["r"]), "r", &[], true);
}

#[test]
fn a_convolution_takes_only_a_bias_that_whole_numbers_stand_for() {
    let net = |bias: &str, scale: &str| {
        let mut nodes = convolution().to_vec();
        nodes[1] = node("Conv", &["ad", "wd", bias], "r");
        match bias {
            "bd" => nodes.push(node("DequantizeLinear", &["bi", scale], "bd")),
            "bz" => nodes.push(node("DequantizeLinear", &["bi", scale, "one"], "bz")),
            _ => {}
        }
        nodes.extend(end());
        let mut model = super::net(nodes, &[1, 2, 4, 4]);
        // x and w are of 0.25 each.
        let (unit, other) = (floats("unit", &[], &[0.0625]), floats("other", &[], &[0.1]));
        let constants = [
            unit,
            other,
            whole("bi", &[8, -5i32]),
            whole("one", &[1i32, 1]),
            whole("three", &[1i32, 1, 1]),
            floats("bf", &[2], &[0.5, -0.3]),
        ];
        graph(&mut model).initializer.extend(constants);
        model
    };
    check(&net("bd", "unit"), "r", &ALL, false);
    // Rounded to the sums' units, far below a step of the result.
    check(&net("bd", "other"), "r", &ALL, false);
    check(&net("bf", "unit"), "r", &ALL, false);
    check(&net("bz", "unit"), "r", &[], true);
    check(&net("three", "unit"), "r", &[], true);
    let mut computed = net("sum", "unit");
    graph(&mut computed).node.insert(0, node("Add", &["bf", "bf"], "sum"));
    check(&computed, "r", &[], true);
    // A step of the result is as fine as the sums' unit: rounding the bias could show.
    let mut fine = net("bf", "unit");
    let scale = graph(&mut fine).initializer.iter_mut().find(|tensor| tensor.name == "s2").unwrap();
    scale.float_data = vec![0.0625];
    check(&fine, "r", &[], true);
}

#[test]
fn a_dense_layer_takes_no_transposed_input_and_no_bias_that_is_a_matrix() {
    let net = |attributes: &[AttributeProto], bias: &[i64]| {
        let nodes = vec![
            with(node("Reshape", &["ad", "shape"], "f"), &[]),
            node("DequantizeLinear", &["k", "s", "zs"], "kd"),
            with(node("Gemm", &["f", "kd", "b"], "r"), attributes),
        ];
        let count = bias.iter().product::<i64>() as usize;
        let model = and(ended(nodes, &[1, 3]), whole("shape", &[1i64, 32]));
        and(model, floats("b", bias, &vec![0.5; count]))
    };
    check(&net(&[], &[3]), "r", &ALL, false);
    check(&net(&[], &[1, 3]), "r", &ALL, false);
    check(&net(&[], &[1, 1]), "r", &[], true);
    let mut transposed = net(&[attribute("transA", 1)], &[3]);
    graph(&mut transposed).initializer.iter_mut().find(|tensor| tensor.name == "shape").unwrap().int64_data =
        vec![32, 1];
    check(&transposed, "r", &[], true);
}

#[test]
fn a_product_and_its_bias_are_one_layer_only_where_it_is_a_row_and_no_one_reads_between() {
    let net = |bias: &[i64]| {
        let nodes = vec![
            node("Reshape", &["ad", "shape"], "f"),
            node("DequantizeLinear", &["k8", "s", "zs"], "kd"),
            node("MatMul", &["f", "kd"], "p"),
            node("Add", &["p", "b"], "r"),
        ];
        let count = bias.iter().product::<i64>() as usize;
        let model = and(ended(nodes, &[4, 3]), whole("shape", &[4i64, 8]));
        let model = and(model, bytes("k8", DataType::Int8, &[8, 3], &[1; 24]));
        and(model, floats("b", bias, &(0..count).map(|at| at as f32).collect::<Vec<f32>>()))
    };
    check(&net(&[3]), "r", &ALL, false);
    check(&net(&[4, 3]), "r", &[], true);
    check(&net(&[4, 1]), "r", &[], true);
    let mut read = net(&[3]);
    graph(&mut read).output.push(value("p", DataType::Float, &[4, 3]));
    check(&read, "r", &[], true);
}

#[test]
fn weights_of_a_dense_layer_are_one_matrix_in_the_file() {
    let net = |weights: TensorProto, name: &str| {
        let nodes = vec![
            node("Reshape", &["ad", "shape"], "f"),
            node("DequantizeLinear", &[name, "s", "zs"], "kd"),
            node("MatMul", &["f", "kd"], "r"),
        ];
        and(and(ended(nodes, &[1, 4, 3]), whole("shape", &[1i64, 4, 8])), weights)
    };
    check(&net(bytes("k8", DataType::Int8, &[8, 3], &[1; 24]), "k8"), "r", &ALL, false);
    check(&net(bytes("k8", DataType::Int8, &[1, 8, 3], &[1; 24]), "k8"), "r", &[], true);
    let mut given = net(bytes("unused", DataType::Int8, &[8, 3], &[1; 24]), "given");
    graph(&mut given).input.push(value("given", DataType::Int8, &[8, 3]));
    check(&given, "r", &[], true);
}

#[test]
fn a_constant_quantised_per_axis_is_no_operand_of_a_sum() {
    let net = |scale: &str| {
        let nodes = vec![
            with(node("DequantizeLinear", &["p", scale], "pd"), &[attribute("axis", 1)]),
            node("Add", &["ad", "pd"], "r"),
        ];
        and(ended(nodes, &[1, 2, 4, 4]), bytes("p", DataType::Int8, &[1, 2, 1, 1], &[7, 9]))
    };
    check(&net("s"), "r", &["quantize", "load", "add", "dequantize"], false);
    check(&net("many"), "r", &[], true);
}

#[test]
fn a_function_is_a_table_only_of_one_tensor_and_scalars() {
    let sum = |other: &str| {
        ended(vec![node("Mul", &["ad", other], "m"), node("Add", &["m", "ad"], "r")], &[1, 2, 4, 4])
    };
    let taken = ["quantize", "table", "dequantize"];
    check(&and(sum("two"), floats("two", &[], &[2.0])), "r", &taken, false);
    check(&and(sum("row"), floats("row", &[4], &[2.0, 1.0, 0.5, 3.0])), "r", &[], true);
    check(&sum("x"), "r", &[], true);
    // Another quantisation of the same picture is another tensor.
    let mut other = sum("bd");
    graph(&mut other).node.insert(0, node("QuantizeLinear", &["x", "s2", "z"], "b"));
    graph(&mut other).node.insert(1, node("DequantizeLinear", &["b", "s2", "z"], "bd"));
    check(&other, "r", &[], true);
    // Not a number for half of the values.
    check(
        &ended(vec![node("Exp", &["ad"], "e"), node("Sqrt", &["e"], "r")], &[1, 2, 4, 4]),
        "r",
        &taken,
        false,
    );
    check(&ended(vec![node("Sqrt", &["ad"], "r")], &[1, 2, 4, 4]), "r", &[], true);
}

#[test]
fn dropout_that_could_train_is_left() {
    let net = |inputs: &[&str]| {
        let nodes = vec![node("Dropout", inputs, "d"), node("Sigmoid", &["d"], "r")];
        let mut model = and(ended(nodes, &[1, 2, 4, 4]), floats("ratio", &[], &[0.5]));
        let mut off = bytes("off", DataType::Bool, &[], &[0]);
        off.int32_data = vec![0];
        off.raw_data = vec![];
        graph(&mut model).initializer.push(off);
        model
    };
    check(&net(&["ad"]), "d", &["quantize", "table", "dequantize"], false);
    check(&net(&["ad", "ratio", "off"]), "d", &[], true);
}

#[test]
fn an_old_softmax_is_over_everything_behind_its_axis() {
    let net = |opset: i64, shape: &[i64]| {
        let softmax = with(node("Softmax", &["v"], "r"), &[attribute("axis", 1)]);
        let model = ended(vec![node("Reshape", &["ad", "shape"], "v"), softmax], shape);
        let mut model = and(model, whole("shape", shape));
        model.opset_import[0].version = opset;
        model
    };
    let taken = ["quantize", "softmax", "dequantize"];
    check(&net(11, &[1, 32]), "r", &taken, false);
    check(&net(11, &[1, 4, 8]), "r", &[], true);
    check(&net(13, &[4, 8]), "r", &taken, false);
}

#[test]
fn a_softmax_writes_floats_only_where_they_are_wanted() {
    let net = |scale: &str| {
        let nodes = vec![
            node("Flatten", &["ad"], "f"),
            node("Softmax", &["f"], "r"),
            node("QuantizeLinear", &["r", scale, "z"], "rq"),
            node("DequantizeLinear", &["rq", "s2", "z"], "y"),
        ];
        super::net(nodes, &[1, 32])
    };
    check(&net("s2"), "r", &["quantize", "softmax", "dequantize"], false);
    // Quantised per axis, which is left: then its float result need not be made here.
    check(&net("many"), "r", &[], true);
    let mut float = super::net(vec![node("Flatten", &["ad"], "f"), node("Softmax", &["f"], "y")], &[1, 32]);
    check(&float, "y", &["quantize", "softmax"], false);
    // Over the channels of a picture, first in memory.
    graph(&mut float).node[3] = with(node("Softmax", &["ad"], "y"), &[attribute("axis", 1)]);
    graph(&mut float).output[0] = value("y", DataType::Float, &[1, 2, 4, 4]);
    check(&float, "y", &[], true);
}

#[test]
fn a_graph_that_uses_the_names_of_regions_is_left_whole() {
    let mut nodes = convolution().to_vec();
    nodes[1].output[0] = "r".into();
    let mut model = ended(nodes, &[1, 2, 4, 4]);
    check(&model, "c", &ALL, false);
    for node in &mut graph(&mut model).node {
        for name in node.input.iter_mut().chain(&mut node.output).filter(|name| *name == "wd") {
            *name = "tractd#0".into();
        }
    }
    check(&model, "c", &[], true);
}
