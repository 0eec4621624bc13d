//! Small graphs, node by node.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};
use tractd_compiler::{CompileError, Compiled, Options, compile};
use tractd_kernels::Tier;

pub(crate) fn value(name: &str, dtype: DataType, dims: &[i64]) -> ValueInfoProto {
    let dim =
        |&size: &i64| Dimension { value: Some(dimension::Value::DimValue(size)), ..Dimension::default() };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: dtype as i32, shape };
    let value = Some(type_proto::Value::TensorType(tensor));
    let r#type = Some(TypeProto { value, ..TypeProto::default() });
    ValueInfoProto { name: name.to_owned(), r#type, ..ValueInfoProto::default() }
}

pub(crate) fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    NodeProto {
        op_type: op.to_owned(),
        name: output.to_owned(),
        input: names(inputs),
        output: names(&[output]),
        ..NodeProto::default()
    }
}

pub(crate) fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        float_data: values.to_vec(),
        ..TensorProto::default()
    }
}

pub(crate) fn bytes(name: &str, dtype: DataType, dims: &[i64], values: &[u8]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: dtype as i32,
        raw_data: values.to_vec(),
        ..TensorProto::default()
    }
}

pub(crate) fn model(
    node: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    input: &[i64],
    output: &[i64],
) -> ModelProto {
    let graph = GraphProto {
        node,
        initializer,
        input: vec![value("x", DataType::Float, input)],
        output: vec![value("y", DataType::Float, output)],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { domain: String::new(), version: 17 };
    ModelProto { graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() }
}

pub(crate) fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

pub(crate) fn compiled(model: &ModelProto) -> Result<Compiled, CompileError> {
    compile(model, &[], &Options { tier: Tier::Portable })
}

pub(crate) fn attribute(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i, ..AttributeProto::default() }
}

pub(crate) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.to_owned(), ints: ints.to_vec(), ..AttributeProto::default() }
}
