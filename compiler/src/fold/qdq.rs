//! `QuantizeLinear` and `DequantizeLinear`, and the float operators between them.

use tract_onnx::pb::tensor_proto::DataType;
use tractd_kernels::Clamp;

use super::build::Pair;
use super::dense::{Layer, Weights};
use super::params::{Bias, Raw};
use super::{Fact, Fold, Skip, Taken, clamp, leave, table, views};
use crate::graph::{NodeId, ValueId};
use crate::ir::{Kind, Quant, Tensor};
use crate::shapes::permutation;

/// ReLUs and clips in a row that are looked through.
const BOUNDS_MAX: usize = 4;

/// A float operator and the bounds behind it, all the way to a quantisation that alone sees them.
struct Core {
    id: NodeId,
    /// The operator, its bounds and the quantisation.
    nodes: Vec<NodeId>,
    clamp: Clamp,
    /// What the operator makes.
    value: ValueId,
}

impl Fold<'_> {
    pub(super) fn dequantize(&mut self, id: NodeId) -> Taken<()> {
        let node = &self.graph.nodes[id];
        let (Some(input), output) = (node.input(0), self.output(id)?) else { return leave("no input") };
        if self.graph.values[input].constant.is_some() {
            return leave("a constant that something outside reads");
        }
        if node.int("block_size", 0) != 0 {
            return leave("quantised in blocks");
        }
        let quant = self.quant_at(id, 1, 2)?;
        let tensor = self.integer(input, quant)?;
        self.settle(&[id], tensor.buffer);
        self.take(output, Fact::Real(tensor, quant.scale));
        Ok(())
    }

    pub(super) fn quantize(&mut self, id: NodeId) -> Taken<()> {
        let node = &self.graph.nodes[id];
        let (Some(input), output) = (node.input(0), self.output(id)?) else { return leave("no input") };
        if self.graph.values[input].constant.is_some() {
            return leave("a constant that something outside reads");
        }
        if node.int("block_size", 0) != 0 || !matches!(node.int("output_dtype", 0), 0 | 2 | 3) {
            return leave("not a quantisation to 8 bits per tensor");
        }
        let quant = self.quant_at(id, 1, 2)?;
        let tensor = match self.facts[input].clone() {
            Some(Fact::Real(tensor, scale)) => self.requantised(id, tensor, scale, quant)?,
            Some(_) => return leave("its input is not float"),
            None => match self.operator(id, input, quant)? {
                Some(tensor) => tensor,
                None => self.source_of(id, input, quant)?,
            },
        };
        self.take(output, Fact::Integer(Tensor { signed: quant.signed, ..tensor }));
        Ok(())
    }

    fn requantised(&mut self, id: NodeId, tensor: Tensor, scale: f32, to: Quant) -> Taken<Tensor> {
        let from = Quant { scale, zero: self.ir.buffer(tensor.buffer).zero, signed: tensor.signed };
        let buffer = match (from.scale, from.zero) == (to.scale, to.zero) {
            true => tensor.buffer,
            false => self.push_table(&tensor, table::requantised(from, to), to.zero, vec![id]),
        };
        self.settle(&[id], buffer);
        Ok(Tensor { buffer, ..tensor })
    }

    /// A float tensor that tract or the caller gives. One that is transposed before is read in the other order instead:
    /// that is how graphs of frameworks with channels last begin.
    fn source_of(&mut self, id: NodeId, value: ValueId, quant: Quant) -> Taken<Tensor> {
        if let Some((producer, node)) = self.graph.producer(value)
            && node.op() == "Transpose"
            && !self.banned.contains_key(&producer)
            && let Some(from) = node.input(0)
            && let Some(perm) = permutation(node, self.shapes.get(from).map_or(0, <[usize]>::len))
        {
            let plain = self.plain_source(id, from, quant)?;
            if let Ok(tensor) = self.transposed(&plain, &perm) {
                let nodes = [producer, id];
                let taken = if self.graph.only_read_by(value, id) { &nodes[..] } else { &nodes[1..] };
                self.settle(taken, tensor.buffer);
                return Ok(tensor);
            }
        }
        self.plain_source(id, value, quant)
    }

    fn plain_source(&mut self, id: NodeId, value: ValueId, quant: Quant) -> Taken<Tensor> {
        let shape = self.shape(value)?.to_vec();
        self.check_input(value, DataType::Float)?;
        let (dims, order) = views::standard(&shape);
        let kind = Kind::Quantize { from: value, order, shape: shape.clone(), scale: quant.scale };
        let buffer = self.source(kind, value, dims, quant.zero, quant.scale);
        self.settle(&[id], buffer);
        Ok(Tensor { buffer, order, shape, signed: quant.signed })
    }

    /// The float operator whose result this quantises, taken together with it. `None` where there is none that can be; its
    /// own reason is noted then.
    fn operator(&mut self, id: NodeId, value: ValueId, quant: Quant) -> Taken<Option<Tensor>> {
        let attempt = match self.element_wise(id, value, quant) {
            Ok(None) => self.core_of(id, value, quant),
            done => done,
        };
        match attempt {
            Ok(found) => Ok(found),
            Err(Skip::Leave(why)) => {
                // The bounds behind an operator are left because it is.
                let mut value = Some(value);
                for _ in 0..=BOUNDS_MAX {
                    let Some((id, node)) = value.and_then(|value| self.graph.producer(value)) else { break };
                    self.whys[id].clone_from(&why);
                    value = if matches!(node.op(), "Relu" | "Clip") { node.input(0) } else { None };
                }
                Ok(None)
            }
            Err(bad) => Err(bad),
        }
    }

    fn core_of(&mut self, id: NodeId, value: ValueId, y: Quant) -> Taken<Option<Tensor>> {
        let Some(core) = self.core(id, value, y)? else { return Ok(None) };
        let Some(tensor) = self.fold_core(&core, y)? else { return Ok(None) };
        self.settle(&core.nodes, tensor.buffer);
        Ok(Some(tensor))
    }

    fn core(&self, id: NodeId, value: ValueId, y: Quant) -> Taken<Option<Core>> {
        let mut nodes = vec![id];
        let mut bounds = Clamp::default();
        let (mut value, mut reader) = (value, id);
        for _ in 0..=BOUNDS_MAX {
            let Some((producer, node)) = self.graph.producer(value) else { return Ok(None) };
            if !self.graph.only_read_by(value, reader) {
                return leave("its float result is used elsewhere, too");
            }
            if self.banned.contains_key(&producer) {
                return Ok(None);
            }
            nodes.insert(0, producer);
            let (low, high) = match node.op() {
                "Relu" => (0.0, f32::INFINITY),
                "Clip" => match self.bounds(node)? {
                    Some(bounds) => bounds,
                    None => return leave("bounds that are not constant"),
                },
                _ => return Ok(Some(Core { id: producer, nodes, clamp: bounds, value })),
            };
            let new = clamp(y, low, high);
            // Nearer the result, so these bounds hold last.
            bounds = Clamp {
                low: new.low.clamp(bounds.low, bounds.high),
                high: new.high.clamp(bounds.low, bounds.high),
            };
            let Some(input) = node.input(0) else { return Ok(None) };
            (value, reader) = (input, producer);
        }
        Ok(None)
    }

    fn fold_core(&mut self, core: &Core, y: Quant) -> Taken<Option<Tensor>> {
        let graph = self.graph;
        let node = &graph.nodes[core.id];
        let free = core.clamp == Clamp::default();
        let unclamped = || if free { Ok(()) } else { leave("bounds behind an operator that takes none") };
        let operand = |index: usize| node.input(index).map_or_else(|| leave("an operand is missing"), Ok);
        let shape = match node.op() {
            "Conv" | "Gemm" | "MatMul" | "Add" | "Mul" | "Concat" | "GlobalAveragePool" | "ReduceMean" => {
                self.shape(core.value)?
            }
            _ => &[],
        };
        let nodes = core.nodes.as_slice();
        let tensor = match node.op() {
            "Conv" => {
                let (x, weights) = (self.operand(operand(0)?)?, self.dequantised(operand(1)?)?);
                let bias = self.float_bias(node.input(2), unit(&x.1, &weights))?;
                self.convolution(core.id, Layer { nodes, x, weights, bias, y, clamp: core.clamp, shape })?
            }
            "Gemm" => {
                if node.int("transA", 0) != 0
                    || node.float("alpha", 1.0) != 1.0
                    || node.float("beta", 1.0) != 1.0
                {
                    return leave("factors or a transposed input");
                }
                let (x, weights) = (self.operand(operand(0)?)?, self.dequantised(operand(1)?)?);
                let bias = self.row_bias(node.input(2), &x.1, &weights)?;
                let lie = if node.int("transB", 0) != 0 { Weights::ByOutput } else { Weights::ByInput };
                self.dense(Layer { nodes, x, weights, bias, y, clamp: core.clamp, shape }, lie)?
            }
            "MatMul" => {
                let (x, weights) = (self.operand(operand(0)?)?, self.dequantised(operand(1)?)?);
                let layer = Layer { nodes, x, weights, bias: Bias::None, y, clamp: core.clamp, shape };
                self.dense(layer, Weights::ByInput)?
            }
            "Add" | "Mul" => {
                if let Some(tensor) = self.biased_product(core, y, shape)? {
                    return Ok(Some(tensor));
                }
                let pair = if node.op() == "Add" { Pair::Add } else { Pair::Mul };
                let (a, b) = (self.real(operand(0)?)?, self.real(operand(1)?)?);
                self.pair(pair, nodes, a, b, y, core.clamp, shape)?
            }
            "AveragePool" => {
                unclamped()?;
                let x = self.operand(operand(0)?)?;
                self.average_pool(core.id, nodes, x, y)?
            }
            "GlobalAveragePool" => {
                unclamped()?;
                let x = self.operand(operand(0)?)?;
                self.global_average(nodes, x, y, shape)?
            }
            "ReduceMean" => {
                unclamped()?;
                let x = self.operand(operand(0)?)?;
                self.check_spatial(core.id, &x.0, shape)?;
                self.global_average(nodes, x, y, shape)?
            }
            "Concat" => {
                unclamped()?;
                let parts = node.inputs.iter().map(|input| match *input {
                    Some(value) => self.real(value),
                    None => leave("an operand is missing"),
                });
                let parts = parts.collect::<Taken<Vec<_>>>()?;
                self.concatenation(core.id, nodes, parts, y, shape)?
            }
            "Softmax" => {
                unclamped()?;
                let x = self.operand(operand(0)?)?;
                let over = self.softmax_axis(core.id, graph.opset, &x.0.shape);
                self.softmax(nodes, x, y, over)?
            }
            _ => return Ok(None),
        };
        Ok(Some(tensor))
    }

    /// A dequantised tensor that is no constant.
    fn operand(&mut self, value: ValueId) -> Taken<(Tensor, Quant)> {
        match self.facts[value] {
            Some(_) => self.real(value),
            None => leave("its input is not quantised"),
        }
    }

    /// A bias `[N]` or `[1, N]`.
    fn row_bias(&self, value: Option<ValueId>, x: &Quant, weights: &Raw) -> Taken<Bias> {
        let Some(at) = value else { return Ok(Bias::None) };
        match self.shapes.get(at).or(self.dequantised_shape(at)) {
            Some([_] | [1, _]) => self.float_bias(value, unit(x, weights)),
            _ => leave("a bias that is no row"),
        }
    }

    fn dequantised_shape(&self, value: ValueId) -> Option<&[usize]> {
        let (_, node) = self.graph.producer(value)?;
        self.shapes.get(node.input(0)?)
    }

    /// `MatMul` and a bias that is added without a quantisation between.
    fn biased_product(&mut self, core: &Core, y: Quant, shape: &[usize]) -> Taken<Option<Tensor>> {
        let graph = self.graph;
        let node = &graph.nodes[core.id];
        if node.op() != "Add" {
            return Ok(None);
        }
        for (product, bias) in [(0, 1), (1, 0)] {
            let (Some(product), Some(bias)) = (node.input(product), node.input(bias)) else { continue };
            let Some((id, inner)) = graph.producer(product).filter(|(_, inner)| inner.op() == "MatMul")
            else {
                continue;
            };
            if !graph.only_read_by(product, core.id) || self.shapes.get(product) != Some(shape) {
                continue;
            }
            let (Some(x), Some(weights)) = (inner.input(0), inner.input(1)) else { continue };
            let (x, weights) = (self.operand(x)?, self.dequantised(weights)?);
            let bias = self.row_bias(Some(bias), &x.1, &weights)?;
            let nodes = [&[id], core.nodes.as_slice()].concat();
            let layer = Layer { nodes: &nodes, x, weights, bias, y, clamp: core.clamp, shape };
            let tensor = self.dense(layer, Weights::ByInput)?;
            self.settle(&nodes, tensor.buffer);
            return Ok(Some(tensor));
        }
        Ok(None)
    }

    /// A mean over height and width of a picture, and nothing else.
    fn check_spatial(&self, id: NodeId, x: &Tensor, shape: &[usize]) -> Taken<()> {
        let node = &self.graph.nodes[id];
        let given = node.input(1).map(|value| self.graph.constant(value)).transpose()?.flatten();
        let axes = given.and_then(|axes| axes.i64s()).or_else(|| node.ints("axes").map(<[i64]>::to_vec));
        let mut axes: Vec<_> = axes
            .unwrap_or_default()
            .into_iter()
            .filter_map(|axis| crate::shapes::axis(axis, x.shape.len()))
            .collect();
        axes.sort_unstable();
        let channels = x.shape.get(1).copied().unwrap_or(0);
        match x.shape.len() == 4 && axes == [2, 3] && shape.iter().product::<usize>() == channels {
            true => Ok(()),
            false => leave("a mean over other dimensions than height and width"),
        }
    }
}

/// What one unit of the sums stands for, by output channel.
fn unit(x: &Quant, weights: &Raw) -> impl Fn(usize) -> f64 {
    let (x, scales) = (f64::from(x.scale), weights.scales.clone());
    move |index| x * f64::from(scales.get(index).copied().unwrap_or(scales[0]))
}
