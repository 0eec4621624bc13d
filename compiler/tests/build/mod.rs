//! Small graphs, node by node.

use tract_onnx::pb::attribute_proto::AttributeType;
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
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    let opset_import = vec![opset("", 17), opset("com.microsoft", 1)];
    ModelProto { ir_version: 8, graph: Some(graph), opset_import, ..ModelProto::default() }
}

pub(crate) fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

pub(crate) fn compiled(model: &ModelProto) -> Result<Compiled, CompileError> {
    compile(model, &[], &Options { tier: Tier::Portable })
}

pub(crate) fn attribute(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..typed(name, AttributeType::Int) }
}

pub(crate) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f, ..typed(name, AttributeType::Float) }
}

pub(crate) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.to_vec(), ..typed(name, AttributeType::Ints) }
}

pub(crate) fn subgraph(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(graph), ..typed(name, AttributeType::Graph) }
}

fn typed(name: &str, r#type: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: r#type as i32, ..AttributeProto::default() }
}

/// A constant vector of `i32` or `i64`.
pub(crate) fn whole<T: Whole>(name: &str, values: &[T]) -> TensorProto {
    let vector = TensorProto {
        name: name.to_owned(),
        dims: vec![values.len() as i64],
        data_type: T::DTYPE as i32,
        ..TensorProto::default()
    };
    T::hold(values.to_vec(), vector)
}

/// An integer that a tensor has a field for.
pub(crate) trait Whole: Clone {
    const DTYPE: DataType;

    fn hold(values: Vec<Self>, tensor: TensorProto) -> TensorProto;
}

impl Whole for i32 {
    const DTYPE: DataType = DataType::Int32;

    fn hold(int32_data: Vec<i32>, tensor: TensorProto) -> TensorProto {
        TensorProto { int32_data, ..tensor }
    }
}

impl Whole for i64 {
    const DTYPE: DataType = DataType::Int64;

    fn hold(int64_data: Vec<i64>, tensor: TensorProto) -> TensorProto {
        TensorProto { int64_data, ..tensor }
    }
}
