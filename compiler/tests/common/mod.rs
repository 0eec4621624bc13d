//! Runs a compiled model, whatever form it took.

use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{ModelProto, type_proto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tractd_compiler::{Compiled, Form, Options, Port, compile};
use tractd_kernels::Tier;

#[path = "../models/part.rs"]
mod part;

use part::part;

/// A recorded graph.
pub(crate) struct Case<'a> {
    pub(crate) name: &'a str,
    pub(crate) model: ModelProto,
    pub(crate) input: Vec<u8>,
    pub(crate) expected: Vec<f32>,
    /// Of the last quantisation.
    pub(crate) step: f32,
}

/// Those of one of the files in `models`.
pub(crate) fn cases(mut file: &[u8]) -> Vec<Case<'_>> {
    let mut cases = vec![];
    while !file.is_empty() {
        let name = std::str::from_utf8(part(&mut file)).unwrap();
        let (model, input, expected) = (part(&mut file), part(&mut file), part(&mut file));
        let (step, rest) = file.split_first_chunk::<4>().unwrap();
        file = rest;
        let (model, expected) = (parse(model), floats(expected));
        cases.push(Case { name, model, input: input.to_vec(), expected, step: f32::from_le_bytes(*step) });
    }
    cases
}

pub(crate) fn parse(file: &[u8]) -> ModelProto {
    tract_onnx::onnx().proto_model_for_read(&mut &*file).unwrap()
}

pub(crate) fn compiled(model: &ModelProto) -> Compiled {
    compile(model, &[], &Options { tier: Tier::Portable }).unwrap()
}

/// The outputs' bytes, in the graph's order.
pub(crate) fn run(model: &ModelProto, compiled: &Compiled, inputs: &[Vec<u8>]) -> Vec<Vec<u8>> {
    match &compiled.form {
        Form::Whole(whole) => {
            let count = model.graph.as_ref().unwrap().output.len();
            let bytes = |port: &Port| port.shape.iter().product::<usize>() * port.element.size();
            let mut outputs: Vec<Vec<u8>> =
                (0..count).map(|index| vec![0xaa; bytes(whole.output(index).unwrap())]).collect();
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
            whole.run(&mut whole.region().program().session(), &inputs, &mut slices).unwrap();
            outputs
        }
        Form::Mixed { model, regions } => on_tract(model, regions, inputs),
        Form::Tract => on_tract(model, &[], inputs),
    }
}

fn on_tract(
    model: &ModelProto,
    regions: &[Arc<tractd_compiler::Region>],
    inputs: &[Vec<u8>],
) -> Vec<Vec<u8>> {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    tractd_compiler::register(&mut onnx.op_register);
    let mut read = onnx.model_for_proto_model(model).unwrap();
    tractd_compiler::attach(&mut read, regions).unwrap();
    let facts: Vec<_> = (0..inputs.len()).map(|index| read.input_fact(index).unwrap().clone()).collect();
    let plan = read.into_typed().unwrap().into_optimized().unwrap().into_runnable().unwrap();
    let tensor = |(bytes, fact): (&Vec<u8>, InferenceFact)| {
        let shape = fact.shape.as_concrete_finite().unwrap().unwrap();
        let mut tensor = Tensor::zero_dt(fact.datum_type.concretize().unwrap(), &shape).unwrap();
        tensor.as_bytes_mut().copy_from_slice(bytes);
        tensor.into_tvalue()
    };
    let outputs = plan.run(inputs.iter().zip(facts).map(tensor).collect()).unwrap();
    outputs.iter().map(|output| output.try_as_plain_ram().unwrap().as_bytes().to_vec()).collect()
}

/// Of the graph's first input, of floats.
pub(crate) fn input_bytes(model: &ModelProto) -> usize {
    let input = &model.graph.as_ref().unwrap().input[0];
    let type_proto::Value::TensorType(tensor) = input.r#type.as_ref().unwrap().value.as_ref().unwrap();
    let size = |dim: &Dimension| match dim.value {
        Some(dimension::Value::DimValue(size)) => size as usize,
        _ => panic!("a dimension without a size"),
    };
    4 * tensor.shape.as_ref().unwrap().dim.iter().map(size).product::<usize>()
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}
