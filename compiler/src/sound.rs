//! What ONNX forbids, or means otherwise, and tract computes all the same.

use tract_onnx::pb::tensor_proto::DataType;

use crate::CompileError;
use crate::graph::{Graph, Node, ValueId, declared};
use crate::shapes::Shapes;

/// Subgraphs, too.
///
/// # Errors
/// The first node whose answer could be a wrong one.
pub(crate) fn check(graph: &Graph<'_>, shapes: &Shapes) -> Result<(), CompileError> {
    for node in &graph.nodes {
        match node.op() {
            "QuantizeLinear" => check_output_type(graph, node)?,
            "QLinearConv" => check_convolution(graph, node)?,
            "Clip" => check_bounds(shapes, node)?,
            _ => {}
        }
        for inner in graph.subgraphs(node) {
            let inner = inner?;
            check(&inner, &shapes.within(&inner)?)?;
        }
    }
    Ok(())
}

/// Tract goes by the zero point alone, and without one takes u8.
fn check_output_type(graph: &Graph<'_>, node: &Node<'_>) -> Result<(), CompileError> {
    let made = match node.input(2) {
        Some(zero) => dtype(graph, zero),
        None => Some(DataType::Uint8 as i32),
    };
    let wanted = node.int("output_dtype", 0);
    match made {
        Some(made) if wanted != 0 && wanted != i64::from(made) => {
            Err(quantisation(node, "an output type that is not its zero point's"))
        }
        _ => Ok(()),
    }
}

fn check_convolution(graph: &Graph<'_>, node: &Node<'_>) -> Result<(), CompileError> {
    for scale in [1, 6].into_iter().filter_map(|index| node.input(index)) {
        if graph.constant(scale)?.is_some_and(|scale| scale.count() > 1) {
            return Err(quantisation(node, "activations quantised per axis"));
        }
    }
    match node.input(8).and_then(|bias| dtype(graph, bias)) {
        Some(bias) if bias != DataType::Int32 as i32 => Err(operand(node, "a bias that is not i32")),
        _ => Ok(()),
    }
}

/// Tract takes bounds for each element, too.
fn check_bounds(shapes: &Shapes, node: &Node<'_>) -> Result<(), CompileError> {
    let bounds = [1, 2].into_iter().filter_map(|index| shapes.get(node.input(index)?));
    match bounds.into_iter().any(|shape| shape.iter().product::<usize>() != 1) {
        true => Err(operand(node, "bounds that are no scalars")),
        false => Ok(()),
    }
}

/// Of a constant or an input.
fn dtype(graph: &Graph<'_>, value: ValueId) -> Option<i32> {
    if let Some(constant) = graph.values[value].constant.as_deref() {
        return Some(constant.data_type);
    }
    let (_, input) = graph.inputs.iter().find(|(id, _)| *id == value)?;
    declared(input).map(|(dtype, _)| dtype as i32)
}

fn quantisation(node: &Node<'_>, reason: &'static str) -> CompileError {
    CompileError::Quantisation { node: node.name(), reason }
}

fn operand(node: &Node<'_>, reason: &'static str) -> CompileError {
    CompileError::Operand { node: node.name(), reason }
}
