//! What goes in and out: the manifest's word held against the graph's, or the graph's alone.

use std::collections::HashSet;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value;
use tract_onnx::pb::{GraphProto, ValueInfoProto, type_proto};
use tractd_bundle::{
    DType, Dim, InputSpec, Manifest, OutputSpec, Post, RANK_MAX, TENSORS_MAX, TOP_K_MAX, TensorSpec,
};

use crate::LoadError;

/// Classes a bare model with labels names, since nothing says how many.
const BARE_TOP_K: usize = 5;
/// What a frame on the wire holds of a name.
const TENSOR_NAME_LEN_MAX: usize = 127;

/// Inputs and outputs, in the manifest's order or else in the graph's.
#[derive(Clone)]
pub(crate) struct Interface {
    pub(crate) inputs: Vec<InputSpec>,
    pub(crate) outputs: Vec<OutputSpec>,
}

/// The manifest's tensors, each of which must be in the graph with the same type and a shape that fits.
pub(crate) fn from_manifest(manifest: &Manifest, graph: &GraphProto) -> Result<Interface, LoadError> {
    let inputs: Vec<&ValueInfoProto> = graph_inputs(graph).collect();
    for input in &manifest.inputs {
        check_tensor("input", &input.tensor, &inputs)?;
    }
    if let Some(more) = inputs.iter().find(|i| manifest.inputs.iter().all(|spec| spec.tensor.name != i.name))
    {
        return Err(refuse(format!("the graph has an input `{}` the manifest does not name", more.name)));
    }
    let outputs: Vec<&ValueInfoProto> = graph.output.iter().collect();
    for output in &manifest.outputs {
        check_tensor("output", &output.tensor, &outputs)?;
    }
    Ok(Interface { inputs: manifest.inputs.clone(), outputs: manifest.outputs.clone() })
}

/// Names, types and shapes as the graph declares them; `labels` is how many there are.
pub(crate) fn from_graph(graph: &GraphProto, labels: usize) -> Result<Interface, LoadError> {
    let inputs: Vec<InputSpec> = graph_inputs(graph)
        .map(|value| Ok(InputSpec { tensor: tensor_spec("input", value)?, image: None, allow_nan: false }))
        .collect::<Result<_, LoadError>>()?;
    let mut outputs: Vec<OutputSpec> = (graph.output.iter())
        .map(|value| Ok(OutputSpec { tensor: tensor_spec("output", value)?, post: Post::default() }))
        .collect::<Result<_, LoadError>>()?;
    for (kind, count) in [("inputs", inputs.len()), ("outputs", outputs.len())] {
        if !(1..=TENSORS_MAX).contains(&count) {
            return Err(refuse(format!(
                "the graph has {count} {kind} where 1 to {TENSORS_MAX} can be served"
            )));
        }
    }
    if let [only] = outputs.as_mut_slice()
        && labels > 0
        && only.tensor.dtype != DType::Bool
    {
        only.post.top_k = Some(BARE_TOP_K.min(TOP_K_MAX).min(labels));
    }
    Ok(Interface { inputs, outputs })
}

/// The graph's inputs proper: older files list the weights among them.
pub(crate) fn graph_inputs(graph: &GraphProto) -> impl Iterator<Item = &ValueInfoProto> {
    let weights: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    graph.input.iter().filter(move |input| !weights.contains(input.name.as_str()))
}

/// ONNX's number for an element type; `None` for those no frame carries.
pub(crate) fn dtype(number: i32) -> Option<DType> {
    Some(match DataType::try_from(number).ok()? {
        DataType::Uint8 => DType::U8,
        DataType::Int8 => DType::I8,
        DataType::Uint16 => DType::U16,
        DataType::Int16 => DType::I16,
        DataType::Uint32 => DType::U32,
        DataType::Int32 => DType::I32,
        DataType::Uint64 => DType::U64,
        DataType::Int64 => DType::I64,
        DataType::Float16 => DType::F16,
        DataType::Float => DType::F32,
        DataType::Double => DType::F64,
        DataType::Bool => DType::Bool,
        _ => return None,
    })
}

fn check_tensor(kind: &str, spec: &TensorSpec, graph: &[&ValueInfoProto]) -> Result<(), LoadError> {
    let name = &spec.name;
    let Some(value) = graph.iter().find(|value| &value.name == name) else {
        let known: Vec<&str> = graph.iter().map(|value| value.name.as_str()).collect();
        return Err(refuse(format!(
            "the graph has no {kind} `{name}`, which the manifest names; it has {}",
            known.join(", ")
        )));
    };
    let Some(declared) = tensor_type(value) else { return Ok(()) };
    match dtype(declared.elem_type) {
        Some(dtype) if dtype == spec.dtype => {}
        Some(dtype) => {
            return Err(refuse(format!(
                "{kind} `{name}` is {} by the manifest, {dtype} in the graph",
                spec.dtype
            )));
        }
        None => return Err(refuse(format!("{kind} `{name}` has a type in the graph that cannot be served"))),
    }
    let Some(shape) = &declared.shape else { return Ok(()) };
    let fits = |(dim, declared): (&Dim, _)| match (dim, fixed(declared)) {
        (Dim::Fixed(size), Some(declared)) => i64::from(*size) == declared,
        // An output's free dimension may turn out to be one size; an input's would be a false promise.
        (Dim::Free(_), Some(_)) => kind == "output",
        (_, None) => true,
    };
    if shape.dim.len() != spec.shape.len() || !spec.shape.iter().zip(&shape.dim).all(fits) {
        return Err(refuse(format!(
            "{kind} `{name}` has shape [{}] by the manifest, which does not fit the graph's",
            shape_text(&spec.shape)
        )));
    }
    Ok(())
}

fn tensor_spec(kind: &str, value: &ValueInfoProto) -> Result<TensorSpec, LoadError> {
    let name = &value.name;
    if !(1..=TENSOR_NAME_LEN_MAX).contains(&name.len()) || !name.bytes().all(|c| c.is_ascii_graphic()) {
        return Err(refuse(format!(
            "{kind} `{}` has a name no frame carries: 1 to {TENSOR_NAME_LEN_MAX} printable ASCII characters",
            name.escape_debug()
        )));
    }
    let missing =
        || refuse(format!("the graph does not say type and shape of {kind} `{name}`: add a manifest.toml"));
    let declared = tensor_type(value).ok_or_else(missing)?;
    let dtype = dtype(declared.elem_type)
        .ok_or_else(|| refuse(format!("{kind} `{name}` has a type that cannot be served")))?;
    let shape = declared.shape.as_ref().ok_or_else(missing)?;
    if shape.dim.len() > RANK_MAX {
        return Err(refuse(format!("{kind} `{name}` has more than {RANK_MAX} dimensions")));
    }
    let dims = shape.dim.iter().enumerate().map(|(axis, dim)| match &dim.value {
        Some(Value::DimValue(size)) if *size >= 0 => match u32::try_from(*size) {
            Ok(size) if size > 0 => Ok(Dim::Fixed(size)),
            _ => Err(refuse(format!("{kind} `{name}` has a dimension of {size}"))),
        },
        Some(Value::DimParam(param)) if is_identifier(param) => Ok(Dim::Free(param.clone())),
        _ => Ok(Dim::Free(format!("{}_{axis}", identifier(name)))),
    });
    Ok(TensorSpec { name: name.clone(), dtype, shape: dims.collect::<Result<_, _>>()? })
}

fn tensor_type(value: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    let type_proto::Value::TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()?;
    Some(tensor)
}

fn fixed(dim: &tract_onnx::pb::tensor_shape_proto::Dimension) -> Option<i64> {
    match dim.value {
        Some(Value::DimValue(size)) if size >= 0 => Some(size),
        _ => None,
    }
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && !text.as_bytes()[0].is_ascii_digit()
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

fn identifier(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// As people write it: `1, n, 4`.
pub(crate) fn shape_text(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Free(name) => name.clone(),
        })
        .collect();
    dims.join(", ")
}

fn refuse(problem: String) -> LoadError {
    LoadError::Interface(problem)
}
