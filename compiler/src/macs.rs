//! Multiply-accumulates of nodes.

use crate::graph::Node;
use crate::shapes::Shapes;

/// Of a convolution or dense layer; 0 for anything else, and where a shape is not known.
pub(crate) fn of(node: &Node<'_>, shapes: &Shapes) -> u64 {
    let product = |dims: &[usize]| dims.iter().fold(1u64, |product, &dim| product.saturating_mul(dim as u64));
    let shape = |index: usize| node.input(index).and_then(|value| shapes.get(value));
    let Some(result) = node.sole_output().and_then(|value| shapes.get(value)).map(product) else { return 0 };
    let each = match node.op() {
        // Each result is a sum over a window of the input channels of its group.
        "Conv" => shape(1).map(|weights| product(weights.get(1..).unwrap_or_default())),
        "QLinearConv" => shape(3).map(|weights| product(weights.get(1..).unwrap_or_default())),
        "Gemm" | "QGemm" => {
            shape(0).and_then(|x| x.get(usize::from(node.int("transA", 0) == 0))).map(|&k| k as u64)
        }
        "MatMul" | "QLinearMatMul" => shape(0).and_then(|x| x.last()).map(|&k| k as u64),
        _ => None,
    };
    each.map_or(0, |each| result.saturating_mul(each))
}
