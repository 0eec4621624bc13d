//! Any function of one quantised tensor, element by element, is a table of 256 values.

use super::unary::{function, is_unary};
use super::{Fact, Fold, Skip, Taken, leave};
use crate::graph::{Node, NodeId, ValueId};
use crate::ir::{Quant, Tensor};

/// Operators looked at behind one quantisation: more than any activation function is written with.
const OPERATORS_MAX: usize = 24;

type Values = Box<[f32; 256]>;
type Operator = Box<dyn Fn(f32, f32) -> f32>;

/// What an expression is so far.
struct Expression {
    leaf: Option<(Tensor, f32)>,
    nodes: Vec<NodeId>,
    /// Operators looked at; one that is reached twice counts twice, so that no graph makes this take long.
    visits: usize,
}

/// A part of an expression: its value for each value of the leaf.
enum Part {
    Scalar(f32),
    Each(Values),
}

impl Part {
    fn at(&self, index: usize) -> f32 {
        match self {
            Part::Scalar(value) => *value,
            Part::Each(values) => values[index],
        }
    }
}

impl Fold<'_> {
    /// The function of one quantised tensor whose quantised result `id` makes of `value`. `None` where there is no such
    /// tensor, or another node looks into the function.
    pub(super) fn element_wise(&mut self, id: NodeId, value: ValueId, y: Quant) -> Taken<Option<Tensor>> {
        let mut expression = Expression { leaf: None, nodes: vec![], visits: 0 };
        let Some(Part::Each(values)) = self.part(value, &mut expression)? else { return Ok(None) };
        let Some((leaf, _)) = expression.leaf else { return Ok(None) };
        if values.iter().any(|value| value.is_nan()) {
            return leave("a function that is not a number somewhere");
        }
        let mut nodes = expression.nodes;
        nodes.push(id);
        let inner = &nodes[..nodes.len() - 1];
        let private = |&node: &NodeId| {
            let value = self.graph.nodes[node].sole_output().map(|output| &self.graph.values[output]);
            value.is_some_and(|value| !value.is_output && value.consumers.iter().all(|at| nodes.contains(at)))
        };
        if !inner.iter().all(private) || inner.iter().any(|node| self.banned.contains_key(node)) {
            return leave("a step of the function is used elsewhere, too");
        }
        let table = Box::new(std::array::from_fn(|index| y.quantise(values[index])));
        let buffer = self.push_table(&leaf, table, y.zero, nodes.clone());
        self.settle(&nodes, buffer);
        Ok(Some(Tensor { buffer, signed: y.signed, ..leaf }))
    }

    fn part(&self, value: ValueId, expression: &mut Expression) -> Taken<Option<Part>> {
        if let Some(Fact::Real(tensor, scale)) = &self.facts[value] {
            let leaf = expression.leaf.get_or_insert_with(|| (tensor.clone(), *scale));
            if leaf.0 != *tensor || leaf.1 != *scale {
                return Ok(None);
            }
            let quant = Quant { scale: *scale, zero: self.ir.buffer(tensor.buffer).zero, signed: false };
            return Ok(Some(Part::Each(Box::new(std::array::from_fn(|index| quant.real(index as u8))))));
        }
        if let Some(scalar) = self.scalar(value)? {
            return Ok(Some(Part::Scalar(scalar)));
        }
        let Some((id, node)) = self.graph.producer(value) else { return Ok(None) };
        expression.visits += 1;
        if expression.visits > OPERATORS_MAX {
            return Ok(None);
        }
        expression.nodes.push(id);
        let operands = match node.op() {
            op if is_unary(op) => 1,
            "Add" | "Sub" | "Mul" | "Div" | "Min" | "Max" | "Pow" if node.inputs.len() == 2 => 2,
            _ => return Ok(None),
        };
        let mut parts = Vec::with_capacity(2);
        for index in 0..operands {
            let Some(input) = node.input(index) else { return Ok(None) };
            let Some(part) = self.part(input, expression)? else { return Ok(None) };
            parts.push(part);
        }
        let Some(apply) = self.applied(node)? else { return Ok(None) };
        if parts.iter().all(|part| matches!(part, Part::Scalar(_))) {
            return Ok(Some(Part::Scalar(apply(parts[0].at(0), parts.get(1).map_or(0.0, |b| b.at(0))))));
        }
        let each = |index| apply(parts[0].at(index), parts.get(1).map_or(0.0, |b| b.at(index)));
        // A node reached twice is there once.
        expression.nodes.sort_unstable();
        expression.nodes.dedup();
        Ok(Some(Part::Each(Box::new(std::array::from_fn(each)))))
    }

    fn applied(&self, node: &Node<'_>) -> Taken<Option<Operator>> {
        Ok(Some(match node.op() {
            "Add" => Box::new(|a, b| a + b),
            "Sub" => Box::new(|a, b| a - b),
            "Mul" => Box::new(|a, b| a * b),
            "Div" => Box::new(|a, b| a / b),
            "Min" => Box::new(f32::min),
            "Max" => Box::new(f32::max),
            "Pow" => Box::new(|a, b| f64::from(a).powf(f64::from(b)) as f32),
            "Clip" => match self.bounds(node)? {
                Some((low, high)) => Box::new(move |x, _| x.max(low).min(high)),
                None => return Ok(None),
            },
            _ => match function(node.op(), node) {
                Some(of) => Box::new(move |x, _| of(x)),
                None => return Ok(None),
            },
        }))
    }

    /// A constant of one element, plain or dequantised, that no shape depends on.
    pub(super) fn scalar(&self, value: ValueId) -> Taken<Option<f32>> {
        if let Some(constant) = self.graph.constant(value)? {
            let one = constant.count() == 1 && constant.dims().len() <= 1;
            return Ok(constant.f32s().filter(|_| one).map(|values| values[0]));
        }
        if self.graph.producer(value).is_none_or(|(_, node)| node.op() != "DequantizeLinear") {
            return Ok(None);
        }
        match self.dequantised(value) {
            Ok(raw) if raw.data.len() == 1 && raw.scales.len() == 1 && raw.dims.len() <= 1 => {
                let zero = f32::from(raw.zeros[0]);
                Ok(Some((f32::from(raw.data[0]) - zero) * raw.scales[0]))
            }
            Ok(_) | Err(Skip::Leave(_)) => Ok(None),
            Err(bad) => Err(bad),
        }
    }

    /// Bounds of a `Clip`, if they are constant.
    pub(super) fn bounds(&self, node: &Node<'_>) -> Taken<Option<(f32, f32)>> {
        let bound = |index: usize, name: &str, open: f32| match node.input(index) {
            Some(value) => self.scalar(value),
            None => Ok(Some(node.float(name, open))),
        };
        let low = bound(1, "min", f32::NEG_INFINITY)?;
        let high = bound(2, "max", f32::INFINITY)?;
        Ok(low.zip(high).filter(|(low, high)| low <= high))
    }

    /// ReLU keeps units: it is a maximum.
    pub(super) fn relu(&mut self, id: NodeId) -> Taken<()> {
        let Some(input) = self.graph.nodes[id].input(0) else { return leave("no input") };
        let output = self.output(id)?;
        let Some(Fact::Real(tensor, scale)) = self.facts[input].clone() else {
            return leave("its input and its result are not both quantised");
        };
        let zero = self.ir.buffer(tensor.buffer).zero;
        let table = Box::new(std::array::from_fn(|value| (value as u8).max(zero)));
        let buffer = self.push_table(&tensor, table, zero, vec![id]);
        self.settle(&[id], buffer);
        self.take(output, Fact::Real(Tensor { buffer, ..tensor }, scale));
        Ok(())
    }
}

/// From one quantisation to another, by way of the reals.
pub(super) fn requantised(from: Quant, to: Quant) -> Box<[u8; 256]> {
    Box::new(std::array::from_fn(|value| to.quantise(from.real(value as u8))))
}
