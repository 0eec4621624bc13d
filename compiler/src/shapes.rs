//! Shapes of tensors, as far as they can be told without running tract's analysis.

use std::collections::HashMap;

use crate::CompileError;
use crate::graph::{Graph, Node, ValueId, declared};
use crate::window::Sliding;

/// Most elements of one tensor: what the kernels' largest arena holds.
const ELEMENTS_MAX: usize = 1 << 30;

/// Most dimensions of one tensor, and most axes an operator names: work grows with their square.
const RANK_MAX: usize = 32;

/// Per tensor; `None` where it is not known.
pub(crate) struct Shapes(Vec<Option<Vec<usize>>>);

impl Shapes {
    /// `given` are the inputs' shapes where the file leaves them open, by name.
    pub(crate) fn new(graph: &Graph<'_>, given: &[(&str, &[usize])]) -> Result<Shapes, CompileError> {
        Shapes::of(graph, given, Shapes(vec![None; graph.values.len()]))
    }

    /// Those of a subgraph of the graph that these are of.
    pub(crate) fn within(&self, graph: &Graph<'_>) -> Result<Shapes, CompileError> {
        let mut shapes = Shapes(vec![None; graph.values.len()]);
        for &(own, outer) in &graph.captured {
            shapes.0[own].clone_from(&self.0[outer]);
        }
        Shapes::of(graph, &[], shapes)
    }

    fn of(graph: &Graph<'_>, given: &[(&str, &[usize])], mut shapes: Shapes) -> Result<Shapes, CompileError> {
        for (value, info) in &graph.inputs {
            let given = given.iter().find(|(name, _)| *name == info.name).map(|(_, shape)| shape.to_vec());
            if shapes.0[*value].is_none() {
                shapes.set(*value, given.or_else(|| declared(info).map(|(_, shape)| shape)));
            }
        }
        for value in 0..graph.values.len() {
            if let Some(constant) = graph.constant(value)? {
                shapes.set(value, Some(constant.dims()));
            } else if let Some(elsewhere) = &graph.values[value].constant {
                let dims = elsewhere.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
                shapes.set(value, dims);
            }
        }
        // Claims of the file about its inner tensors are only asked where nothing better is known: they may be stale.
        let claims: HashMap<&str, _> =
            graph.proto.value_info.iter().map(|info| (info.name.as_str(), info)).collect();
        for &id in &graph.order {
            let node = &graph.nodes[id];
            for (index, output) in node.outputs.iter().enumerate() {
                let Some(output) = *output else { continue };
                let derived = if index == 0 { shapes.derive(graph, node)? } else { None };
                let claimed = || Some(declared(claims.get(graph.values[output].name)?)?.1);
                if shapes.0[output].is_none() {
                    shapes.set(output, derived.or_else(claimed));
                }
            }
        }
        Ok(shapes)
    }

    pub(crate) fn get(&self, value: ValueId) -> Option<&[usize]> {
        self.0[value].as_deref()
    }

    fn set(&mut self, value: ValueId, shape: Option<Vec<usize>>) {
        let fits = |shape: &Vec<usize>| {
            let product = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
            shape.len() <= RANK_MAX && product.is_some_and(|count| (1..=ELEMENTS_MAX).contains(&count))
        };
        self.0[value] = shape.filter(fits);
    }

    fn derive(&self, graph: &Graph<'_>, node: &Node<'_>) -> Result<Option<Vec<usize>>, CompileError> {
        let input = |index| node.input(index).and_then(|value| self.get(value));
        Ok(match node.op() {
            "Reshape" => match node.input(1).map(|value| graph.constant(value)).transpose()?.flatten() {
                Some(target) => target.i64s().and_then(|target| reshaped(node, input(0)?, &target)),
                None => None,
            },
            "Squeeze" | "Unsqueeze" => {
                let given = node.input(1).map(|value| graph.constant(value)).transpose()?.flatten();
                let axes =
                    given.and_then(|axes| axes.i64s()).or_else(|| node.ints("axes").map(<[i64]>::to_vec));
                match node.op() {
                    "Squeeze" => input(0).and_then(|shape| squeezed(shape, axes.as_deref())),
                    _ => input(0).zip(axes).and_then(|(shape, axes)| unsqueezed(shape, &axes)),
                }
            }
            "ReduceMean" => {
                let given = node.input(1).map(|value| graph.constant(value)).transpose()?.flatten();
                let axes =
                    given.and_then(|axes| axes.i64s()).or_else(|| node.ints("axes").map(<[i64]>::to_vec));
                input(0)
                    .zip(axes)
                    .and_then(|(shape, axes)| reduced(shape, &axes, node.int("keepdims", 1) != 0))
            }
            _ => self.plain(node),
        })
    }

    /// Operators whose result's shape follows from shapes and attributes.
    fn plain(&self, node: &Node<'_>) -> Option<Vec<usize>> {
        let input = |index| node.input(index).and_then(|value| self.get(value));
        match node.op() {
            "Conv" => convolved(node, input(0)?, input(1)?),
            "QLinearConv" => convolved(node, input(0)?, input(3)?),
            "MaxPool" | "AveragePool" => pooled(node, input(0)?),
            "QLinearAveragePool" if node.int("channels_last", 0) == 0 => pooled(node, input(0)?),
            "GlobalAveragePool" => global(input(0)?),
            "QLinearGlobalAveragePool" if node.int("channels_last", 0) == 0 => global(input(0)?),
            "Gemm" => gemm(node, input(0)?, input(1)?),
            "QGemm" => gemm(node, input(0)?, input(3)?),
            "MatMul" => product(input(0)?, input(1)?),
            "QLinearMatMul" => product(input(0)?, input(3)?),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "PRelu" => broadcast(input(0)?, input(1)?),
            "QLinearAdd" | "QLinearMul" => broadcast(input(0)?, input(3)?),
            "Max" | "Min" | "Sum" => {
                let mut inputs = (0..node.inputs.len()).map(input);
                let first = inputs.next()??.to_vec();
                inputs.try_fold(first, |shape, next| broadcast(&shape, next?))
            }
            "Concat" => {
                let inputs = (0..node.inputs.len()).map(input).collect::<Option<Vec<_>>>()?;
                concatenated(&inputs, node.int("axis", 0))
            }
            "QLinearConcat" => {
                let inputs = (2..node.inputs.len()).step_by(3).map(input).collect::<Option<Vec<_>>>()?;
                concatenated(&inputs, node.int("axis", 0))
            }
            "Flatten" => {
                let shape = input(0)?;
                let at = split_at(node.int("axis", 1), shape.len())?;
                Some(vec![shape[..at].iter().product(), shape[at..].iter().product()])
            }
            "Transpose" => permutation(node, input(0)?.len()).map(|perm| {
                let shape = input(0).unwrap_or_default();
                perm.into_iter().map(|axis| shape[axis]).collect()
            }),
            "QuantizeLinear"
            | "DequantizeLinear"
            | "Identity"
            | "Dropout"
            | "Softmax"
            | "LogSoftmax"
            | "QLinearSoftmax"
            | "QLinearSigmoid"
            | "QLinearLeakyRelu"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "LayerNormalization"
            | "LRN" => input(0).map(<[usize]>::to_vec),
            op if crate::fold::is_unary(op) => input(0).map(<[usize]>::to_vec),
            _ => None,
        }
    }
}

/// An axis counted from the end where negative.
pub(crate) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let at = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(at).ok().filter(|&at| at < rank)
}

/// The permutation of a `Transpose`, checked to be one.
pub(crate) fn permutation(node: &Node<'_>, rank: usize) -> Option<Vec<usize>> {
    let Some(perm) = node.ints("perm") else { return Some((0..rank).rev().collect()) };
    let perm: Vec<usize> = perm.iter().map(|&at| axis(at, rank)).collect::<Option<_>>()?;
    let mut seen = vec![false; rank];
    perm.iter().for_each(|&at| seen[at] = true);
    (perm.len() == rank && seen.into_iter().all(|seen| seen)).then_some(perm)
}

/// Numpy's rule.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[usize], at: usize| (at + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    let join = |at| match (dim(a, at), dim(b, at)) {
        (a, b) if a == b => Some(a),
        (1, other) | (other, 1) => Some(other),
        _ => None,
    };
    (0..rank).map(join).collect()
}

fn split_at(axis: i64, rank: usize) -> Option<usize> {
    let at = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(at).ok().filter(|&at| at <= rank)
}

fn convolved(node: &Node<'_>, input: &[usize], weights: &[usize]) -> Option<Vec<usize>> {
    if input.len() < 3 || weights.len() != input.len() {
        return None;
    }
    let sliding = Sliding::new(node, &input[2..], Some(&weights[2..]))?;
    Some([&[input[0], weights[0]], &sliding.output[4 - input.len()..]].concat())
}

fn pooled(node: &Node<'_>, input: &[usize]) -> Option<Vec<usize>> {
    if input.len() < 3 {
        return None;
    }
    let sliding = Sliding::new(node, &input[2..], None)?;
    Some([&input[..2], &sliding.output[4 - input.len()..]].concat())
}

fn global(input: &[usize]) -> Option<Vec<usize>> {
    let ones = input.len().checked_sub(2)?;
    Some([&input[..2], &vec![1; ones]].concat())
}

fn gemm(node: &Node<'_>, a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let (&[a0, a1], &[b0, b1]) = (a, b) else { return None };
    let (m, k) = if node.int("transA", 0) != 0 { (a1, a0) } else { (a0, a1) };
    let (other, n) = if node.int("transB", 0) != 0 { (b1, b0) } else { (b0, b1) };
    (k == other).then(|| vec![m, n])
}

fn product(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    if a.len() < 2 || b.len() < 2 || a[a.len() - 1] != b[b.len() - 2] {
        return None;
    }
    let mut shape = broadcast(&a[..a.len() - 2], &b[..b.len() - 2])?;
    shape.extend([a[a.len() - 2], b[b.len() - 1]]);
    Some(shape)
}

fn concatenated(inputs: &[&[usize]], along: i64) -> Option<Vec<usize>> {
    let mut shape = inputs.first()?.to_vec();
    let along = axis(along, shape.len())?;
    for next in &inputs[1..] {
        let same = |at: usize| at == along || next[at] == shape[at];
        if next.len() != shape.len() || !(0..shape.len()).all(same) {
            return None;
        }
        shape[along] = shape[along].checked_add(next[along])?;
    }
    Some(shape)
}

fn reshaped(node: &Node<'_>, input: &[usize], target: &[i64]) -> Option<Vec<usize>> {
    let keep_zero = node.int("allowzero", 0) != 0;
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (at, &dim) in target.iter().enumerate() {
        shape.push(match dim {
            -1 if open.is_none() => {
                open = Some(at);
                1
            }
            0 if !keep_zero => *input.get(at)?,
            dim => usize::try_from(dim).ok().filter(|&dim| dim > 0)?,
        });
    }
    let count: usize = input.iter().product();
    let known = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    if let Some(at) = open {
        shape[at] = count / known;
    }
    let exact = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    (exact == Some(count)).then_some(shape)
}

fn squeezed(input: &[usize], axes: Option<&[i64]>) -> Option<Vec<usize>> {
    if axes.is_some_and(|axes| axes.len() > RANK_MAX) {
        return None;
    }
    let gone: Vec<usize> = match axes {
        Some(axes) => axes.iter().map(|&at| axis(at, input.len())).collect::<Option<_>>()?,
        None => (0..input.len()).filter(|&at| input[at] == 1).collect(),
    };
    let ones = gone.iter().all(|&at| input[at] == 1);
    ones.then(|| (0..input.len()).filter(|at| !gone.contains(at)).map(|at| input[at]).collect())
}

fn unsqueezed(input: &[usize], axes: &[i64]) -> Option<Vec<usize>> {
    if axes.len() > RANK_MAX {
        return None;
    }
    let rank = input.len() + axes.len();
    let new: Vec<usize> = axes.iter().map(|&at| axis(at, rank)).collect::<Option<_>>()?;
    let mut rest = input.iter();
    let shape = (0..rank).map(|at| if new.contains(&at) { Some(1) } else { rest.next().copied() });
    let shape = shape.collect::<Option<Vec<_>>>()?;
    rest.next().is_none().then_some(shape)
}

fn reduced(input: &[usize], axes: &[i64], keep: bool) -> Option<Vec<usize>> {
    if axes.len() > RANK_MAX {
        return None;
    }
    let gone: Vec<usize> = axes.iter().map(|&at| axis(at, input.len())).collect::<Option<_>>()?;
    let dim = |at| match gone.contains(&at) {
        true => keep.then_some(1),
        false => Some(input[at]),
    };
    Some((0..input.len()).filter_map(dim).collect())
}
