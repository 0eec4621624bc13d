//! Malformed graphs are refused, and what a rewrite rule must not take stays with tract.

#![allow(clippy::unwrap_used, reason = "all of it is test code")]

use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use tractd_compiler::{CompileError, Form, Place};

#[allow(dead_code, reason = "each file of tests builds other graphs")]
mod build;

use build::{attribute, bytes, compiled, floats, graph, model, node, subgraph, value};

/// x → Q → DQ → Conv 1×1 → Relu → Q → DQ → y, on `[1, 2, 2, 2]`.
fn sound() -> ModelProto {
    let nodes = vec![
        node("QuantizeLinear", &["x", "s", "z"], "xq"),
        node("DequantizeLinear", &["xq", "s", "z"], "xd"),
        node("DequantizeLinear", &["w", "s", "wz"], "wd"),
        node("Conv", &["xd", "wd"], "c"),
        node("Relu", &["c"], "r"),
        node("QuantizeLinear", &["r", "s", "z"], "rq"),
        node("DequantizeLinear", &["rq", "s", "z"], "y"),
    ];
    let constants = vec![
        floats("s", &[], &[0.25]),
        bytes("z", DataType::Uint8, &[], &[128]),
        bytes("w", DataType::Int8, &[3, 2, 1, 1], &[1, 2, 3, 4, 5, 6]),
        bytes("wz", DataType::Int8, &[], &[0]),
    ];
    model(nodes, constants, &[1, 2, 2, 2], &[1, 3, 2, 2])
}

fn constant<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut TensorProto {
    graph(model).initializer.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

fn at<'m>(model: &'m mut ModelProto, output: &str) -> &'m mut NodeProto {
    graph(model).node.iter_mut().find(|node| node.output[0] == output).unwrap()
}

fn refusal(alter: impl FnOnce(&mut ModelProto)) -> CompileError {
    let mut model = sound();
    alter(&mut model);
    compiled(&model).unwrap_err()
}

/// The node `c` is left to tract, for this reason.
fn left(alter: impl FnOnce(&mut ModelProto), why: &str) {
    let mut model = sound();
    alter(&mut model);
    let report = compiled(&model).unwrap().report;
    let conv = report.nodes.iter().find(|node| node.name == "c").unwrap();
    assert_eq!((conv.place, conv.why.as_str()), (Place::Tract, why));
}

#[test]
fn the_sound_graph_is_taken_whole() {
    let compiled = compiled(&sound()).unwrap();
    assert!(matches!(compiled.form, Form::Whole(_)));
    assert_eq!((compiled.report.int8_macs, compiled.report.total_macs), (24, 24));
}

#[test]
fn malformed_graphs_are_refused() {
    assert_eq!(compiled(&ModelProto::default()).unwrap_err(), CompileError::NoGraph);
    let missing = CompileError::Missing { node: "c".into(), value: "nowhere".into() };
    assert_eq!(refusal(|model| at(model, "c").input[1] = "nowhere".into()), missing);
    assert_eq!(
        refusal(|model| graph(model).output[0].name = "nowhere".into()),
        CompileError::Missing { node: "output".into(), value: "nowhere".into() }
    );
    assert_eq!(
        refusal(|model| at(model, "r").output[0] = "c".into()),
        CompileError::Twice { value: "c".into() }
    );
    assert!(matches!(refusal(|model| at(model, "c").input[0] = "rq".into()), CompileError::Cycle { .. }));
    let reserved = CompileError::Reserved { node: "c".into() };
    assert_eq!(refusal(|model| at(model, "c").domain = "tractd".into()), reserved);
    let tensor = |tensor: &str, reason| CompileError::Tensor { tensor: tensor.into(), reason };
    let dims = "a negative or overflowing dimension";
    assert_eq!(refusal(|model| constant(model, "w").dims[0] = -3), tensor("w", dims));
    assert_eq!(refusal(|model| constant(model, "w").dims = vec![1 << 40, 1 << 40]), tensor("w", dims));
    let size = "its data has another size than its dimensions";
    assert_eq!(refusal(|model| constant(model, "w").dims[0] = 4), tensor("w", size));
    assert_eq!(refusal(|model| constant(model, "w").data_type = 6), tensor("w", size));
    assert_eq!(refusal(|model| constant(model, "w").data_type = 99), tensor("w", "an unknown element type"));
}

#[test]
fn scales_must_be_positive_and_finite() {
    let reason = "a scale that is zero, negative or not a number";
    for scale in [0.0, -0.25, f32::NAN, f32::INFINITY] {
        let error = refusal(|model| constant(model, "s").float_data[0] = scale);
        assert_eq!(error, CompileError::Quantisation { node: "xq".into(), reason });
    }
}

#[test]
fn what_is_not_for_the_kernels_stays_with_tract() {
    left(
        |model| constant(model, "w").data_location = Some(DataLocation::External as i32),
        "weights that are not in the file",
    );
    left(
        |model| graph(model).output.push(value("c", DataType::Float, &[1, 3, 2, 2])),
        "its float result is used elsewhere, too",
    );
    left(|model| at(model, "c").input[1] = "x".into(), "an operand that is not quantised");
    left(
        |model| {
            graph(model).initializer.push(floats("low", &[], &[0.0]));
            graph(model).input.push(value("high", DataType::Float, &[]));
            *at(model, "r") = node("Clip", &["c", "low", "high"], "r");
        },
        "bounds that are not constant",
    );
    let groups = AttributeProto { name: "group".into(), i: -1, ..AttributeProto::default() };
    left(|model| at(model, "c").attribute.push(groups), "a negative number of groups");
    let strides = AttributeProto { name: "strides".into(), ints: vec![0, 0], ..AttributeProto::default() };
    left(|model| at(model, "c").attribute.push(strides), "a shape that is not known at load");
    // Finite and positive, but beyond what the kernels compute exactly.
    let mut tiny = sound();
    constant(&mut tiny, "s").float_data[0] = 1e-30;
    assert!(matches!(compiled(&tiny).unwrap().form, Form::Tract));
}

#[test]
fn a_batch_is_left_alone() {
    let mut model = sound();
    graph(&mut model).input[0] = value("x", DataType::Float, &[2, 2, 2, 2]);
    graph(&mut model).output[0] = value("y", DataType::Float, &[2, 3, 2, 2]);
    let report = compiled(&model).unwrap().report;
    let conv = report.nodes.iter().find(|node| node.name == "c").unwrap();
    assert_eq!((conv.place, conv.why.as_str()), (Place::Tract, "a batch larger than 1"));
}

#[test]
fn huge_shapes_neither_panic_nor_allocate() {
    for dims in [[1, 2, i64::MAX, 2], [1, 2, 1 << 31, 1 << 31], [1, 2, 0, 2], [1, 2, -1, 2]] {
        let mut model = sound();
        graph(&mut model).input[0] = value("x", DataType::Float, &dims);
        assert!(matches!(compiled(&model).unwrap().form, Form::Tract), "{dims:?}");
    }
}

#[test]
fn a_function_that_doubles_at_every_step_takes_no_time() {
    let mut nodes = vec![
        node("QuantizeLinear", &["x", "s", "z"], "xq"),
        node("DequantizeLinear", &["xq", "s", "z"], "f0"),
    ];
    for step in 0..200 {
        let from = format!("f{step}");
        nodes.push(node("Add", &[&from, &from], &format!("f{}", step + 1)));
    }
    nodes.push(node("QuantizeLinear", &["f200", "s", "z"], "yq"));
    nodes.push(node("DequantizeLinear", &["yq", "s", "z"], "y"));
    let constants = vec![floats("s", &[], &[0.25]), bytes("z", DataType::Uint8, &[], &[128])];
    let report = compiled(&model(nodes, constants, &[1, 4], &[1, 4])).unwrap().report;
    assert_eq!(report.outside().filter(|node| node.op == "Add").count(), 200);
}

#[test]
fn an_addition_of_itself_is_a_table_and_one_that_others_read_is_not() {
    let form = |output: &str| {
        let nodes = vec![
            node("QuantizeLinear", &["x", "s", "z"], "xq"),
            node("DequantizeLinear", &["xq", "s", "z"], "xd"),
            node("Add", &["xd", "xd"], "c"),
            node("QuantizeLinear", &["c", "s", "z"], "rq"),
            node("DequantizeLinear", &["rq", "s", "z"], "y"),
        ];
        let constants = vec![floats("s", &[], &[0.25]), bytes("z", DataType::Uint8, &[], &[128])];
        let mut model = model(nodes, constants, &[1, 4], &[1, 4]);
        if !output.is_empty() {
            graph(&mut model).output.push(value(output, DataType::Float, &[1, 4]));
        }
        compiled(&model).unwrap()
    };
    let Form::Whole(whole) = form("").form else { panic!("not whole") };
    let kinds: Vec<_> = whole.region().program().steps().map(|step| step.kind).collect();
    assert_eq!(kinds, ["quantize", "table", "dequantize"]);
    assert!(matches!(form("c").form, Form::Tract));
}

#[test]
fn duplicates_of_any_kind_are_refused() {
    let twice = |value: &str| CompileError::Twice { value: value.into() };
    assert_eq!(refusal(|model| graph(model).initializer.push(floats("s", &[], &[1.0]))), twice("s"));
    assert_eq!(refusal(|model| graph(model).initializer.push(floats("c", &[], &[1.0]))), twice("c"));
    let again = |model: &mut ModelProto| graph(model).input.push(value("x", DataType::Float, &[1]));
    assert_eq!(refusal(again), twice("x"));
    // A node that makes one tensor twice.
    assert_eq!(refusal(|model| at(model, "c").output.push("c".into())), twice("c"));
}

#[test]
fn a_node_that_reads_itself_is_a_cycle() {
    assert_eq!(
        refusal(|model| at(model, "c").input[0] = "c".into()),
        CompileError::Cycle { node: "c".into() }
    );
}

#[test]
fn what_is_missing_is_named() {
    for name in ["s", "z", "w", "wz"] {
        let remove = |model: &mut ModelProto| graph(model).initializer.retain(|tensor| tensor.name != name);
        let error = refusal(remove);
        assert!(matches!(&error, CompileError::Missing { value, .. } if value == name), "{error}");
    }
}

#[test]
fn subgraphs_may_nest_only_so_deep() {
    let nested = |depth: usize| {
        let mut inner = GraphProto::default();
        for _ in 0..depth {
            let attribute = vec![subgraph("body", inner)];
            let node = NodeProto { op_type: "Loop".into(), attribute, ..NodeProto::default() };
            inner = GraphProto { node: vec![node], ..GraphProto::default() };
        }
        ModelProto { graph: Some(inner), ..ModelProto::default() }
    };
    assert!(compiled(&nested(64)).is_ok());
    assert_eq!(compiled(&nested(100)).unwrap_err(), CompileError::TooDeep { limit: 64 });
}

/// x → If → y, with `nodes` in its one branch, the last of which makes what the branch gives, and constants around it.
fn branching(nodes: Vec<NodeProto>, within: Vec<TensorProto>, around: Vec<TensorProto>) -> ModelProto {
    let given = value(&nodes.last().unwrap().output[0], DataType::Float, &[2]);
    let branch =
        GraphProto { node: nodes, initializer: within, output: vec![given], ..GraphProto::default() };
    let mut choice = node("If", &["yes"], "y");
    choice.attribute = vec![subgraph("then_branch", branch.clone()), subgraph("else_branch", branch)];
    let yes = bytes("yes", DataType::Bool, &[], &[1]);
    model(vec![choice], [vec![yes], around].concat(), &[2], &[2])
}

#[test]
fn what_tract_answers_wrongly_is_refused_in_subgraphs_too() {
    let clip = || vec![node("Clip", &["x", "low"], "inner")];
    let low = |dims: &[i64]| floats("low", dims, &vec![0.5; dims.iter().product::<i64>() as usize]);
    let refused = Err(CompileError::Operand { node: "inner".into(), reason: "bounds that are no scalars" });
    let compiled = |model| compiled(&model).map(|_| ());
    // Constants of the branch, and of the graph around it.
    assert_eq!(compiled(branching(clip(), vec![low(&[])], vec![])), Ok(()));
    assert_eq!(compiled(branching(clip(), vec![low(&[2])], vec![])), refused);
    assert_eq!(compiled(branching(clip(), vec![], vec![low(&[])])), Ok(()));
    assert_eq!(compiled(branching(clip(), vec![], vec![low(&[2])])), refused);
    // The branch's own goes before that around it.
    assert_eq!(compiled(branching(clip(), vec![low(&[])], vec![low(&[2])])), Ok(()));

    // Two deep, of a tensor that the outermost graph computes.
    let mut deep = branching(clip(), vec![], vec![]);
    let choice = graph(&mut deep).node[0].clone();
    let mut deeper = branching(vec![choice], vec![], vec![floats("two", &[2], &[0.5, 1.5])]);
    graph(&mut deeper).node.insert(0, node("Relu", &["two"], "low"));
    assert_eq!(compiled(deeper.clone()), refused);
    constant(&mut deeper, "two").dims = vec![1];
    constant(&mut deeper, "two").float_data.pop();
    assert_eq!(compiled(deeper), Ok(()));

    // The type of an input of the graph around it.
    let quantise = |wanted| {
        let mut quantise = node("QuantizeLinear", &["x", "s", "zero"], "q");
        quantise.attribute = vec![attribute("output_dtype", i64::from(wanted as i32))];
        let nodes = vec![quantise, node("DequantizeLinear", &["q", "s", "zero"], "inner")];
        let mut model = branching(nodes, vec![], vec![floats("s", &[], &[0.5])]);
        graph(&mut model).input.push(value("zero", DataType::Int8, &[1]));
        compiled(model)
    };
    assert_eq!(quantise(DataType::Int8), Ok(()));
    let reason = "an output type that is not its zero point's";
    assert_eq!(quantise(DataType::Uint8), Err(CompileError::Quantisation { node: "q".into(), reason }));
}

#[test]
fn what_a_subgraph_lacks_is_named() {
    let model = branching(vec![node("Clip", &["x", "nowhere"], "inner")], vec![], vec![]);
    let missing = CompileError::Missing { node: "inner".into(), value: "nowhere".into() };
    assert_eq!(compiled(&model).unwrap_err(), missing);
    let twice = vec![node("Neg", &["x"], "inner"), node("Neg", &["x"], "inner")];
    let error = compiled(&branching(twice, vec![], vec![])).unwrap_err();
    assert_eq!(error, CompileError::Twice { value: "inner".into() });
}

#[test]
fn more_nodes_than_the_limit_are_refused() {
    let nodes = (0..(1 << 15) + 1).map(|index| node("Neg", &["x"], &format!("n{index}"))).collect();
    let error = compiled(&model(nodes, vec![], &[1], &[1])).unwrap_err();
    assert_eq!(error, CompileError::TooLarge { what: "nodes", got: 32_769, limit: 32_768 });
}

#[test]
fn data_kept_elsewhere_is_never_looked_for() {
    for path in ["../../../../etc/passwd", "/etc/passwd", "weights.bin"] {
        let external = |tensor: &mut TensorProto| {
            tensor.data_location = Some(DataLocation::External as i32);
            tensor.raw_data.clear();
            let entry = tract_onnx::pb::StringStringEntryProto { key: "location".into(), value: path.into() };
            tensor.external_data = vec![entry];
        };
        left(|model| external(constant(model, "w")), "weights that are not in the file");
        let mut model = sound();
        external(constant(&mut model, "s"));
        assert!(matches!(compiled(&model).unwrap().form, Form::Tract));
    }
}

/// Every file that is `sound` up to some byte, or has one byte changed: an answer, never a panic.
#[test]
fn cut_and_changed_files_are_answered() {
    use prost::Message;
    let file = sound().encode_to_vec();
    for length in 0..file.len() {
        if let Ok(model) = ModelProto::decode(&file[..length]) {
            _ = compiled(&model);
        }
    }
    for at in 0..file.len() {
        for flip in [1, 0x10, 0x80, 0xff] {
            let mut changed = file.clone();
            changed[at] ^= flip;
            if let Ok(model) = ModelProto::decode(changed.as_slice()) {
                _ = compiled(&model);
            }
        }
    }
}
