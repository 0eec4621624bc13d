//! Operators that have their quantisation in their own inputs: ONNX Runtime's QOperator form.

use tractd_kernels::Clamp;

use super::build::Pair;
use super::dense::{Layer, Weights};
use super::params::{Bias, Raw};
use super::unary::function;
use super::{Fact, Fold, Taken, leave};
use crate::graph::{NodeId, ValueId};
use crate::ir::{Quant, Tensor};

impl Fold<'_> {
    pub(super) fn qoperator(&mut self, id: NodeId) -> Taken<()> {
        let node = &self.graph.nodes[id];
        let output = self.output(id)?;
        let nodes = &[id];
        let all = Clamp::default();
        let (tensor, y) = match node.op() {
            "QLinearConv" => {
                let (x, y) = (self.operand_at(id, 0)?, self.quant_at(id, 6, 7)?);
                let weights = self.weights_at(id, 0)?;
                let bias = self.integer_bias(node.input(8))?;
                let shape = self.shape(output)?;
                (self.convolution(id, Layer { nodes, x, weights, bias, y, clamp: all, shape })?, y)
            }
            "QLinearMatMul" => {
                let (x, y) = (self.operand_at(id, 0)?, self.quant_at(id, 6, 7)?);
                let weights = self.weights_at(id, 1)?;
                let shape = self.shape(output)?;
                let layer = Layer { nodes, x, weights, bias: Bias::None, y, clamp: all, shape };
                (self.dense(layer, Weights::ByInput)?, y)
            }
            "QGemm" => {
                if node.input(7).is_none() {
                    return leave("a float result");
                }
                if node.int("transA", 0) != 0 || node.float("alpha", 1.0) != 1.0 {
                    return leave("a factor or a transposed input");
                }
                let (x, y) = (self.operand_at(id, 0)?, self.quant_at(id, 7, 8)?);
                let lie = if node.int("transB", 0) != 0 { Weights::ByOutput } else { Weights::ByInput };
                let weights = self.weights_at(id, if lie == Weights::ByOutput { 0 } else { 1 })?;
                let bias = self.integer_bias(node.input(6))?;
                let shape = self.shape(output)?;
                (self.dense(Layer { nodes, x, weights, bias, y, clamp: all, shape }, lie)?, y)
            }
            "QLinearAdd" | "QLinearMul" => {
                let y = self.quant_at(id, 6, 7)?;
                let pair = if node.op() == "QLinearAdd" { Pair::Add } else { Pair::Mul };
                let (a, b) = (self.operand_at(id, 0)?, self.operand_at(id, 3)?);
                let shape = self.shape(output)?;
                (self.pair(pair, nodes, a, b, y, all, shape)?, y)
            }
            "QLinearSigmoid" | "QLinearLeakyRelu" => {
                let (x, y) = (self.operand_at(id, 0)?, self.quant_at(id, 3, 4)?);
                (self.unary(id, x, y)?, y)
            }
            "QLinearSoftmax" => {
                let (x, y) = (self.operand_at(id, 0)?, self.quant_at(id, 3, 4)?);
                let over = self.softmax_axis(id, node.int("opset", 0), &x.0.shape);
                (self.softmax(nodes, x, y, over)?, y)
            }
            "QLinearConcat" => {
                let y = self.quant_at(id, 0, 1)?;
                let parts = (2..node.inputs.len()).step_by(3).map(|at| self.operand_at(id, at));
                let parts = parts.collect::<Taken<Vec<_>>>()?;
                let shape = self.shape(output)?;
                (self.concatenation(id, nodes, parts, y, shape)?, y)
            }
            "QLinearAveragePool" | "QLinearGlobalAveragePool" => {
                if node.int("channels_last", 0) != 0 {
                    return leave("pooling with channels last");
                }
                let (x, y) = (self.operand_at(id, 0)?, self.quant_at(id, 3, 4)?);
                let tensor = match node.op() {
                    "QLinearAveragePool" => self.average_pool(id, nodes, x, y)?,
                    _ => {
                        let shape = self.shape(output)?;
                        self.global_average(nodes, x, y, shape)?
                    }
                };
                (tensor, y)
            }
            _ => return leave("no int8 form of this operator is known"),
        };
        self.settle(nodes, tensor.buffer);
        self.take(output, Fact::Integer(Tensor { signed: y.signed, ..tensor }));
        Ok(())
    }

    /// An operand, its scale and its zero point, at three inputs in a row.
    fn operand_at(&mut self, id: NodeId, at: usize) -> Taken<(Tensor, Quant)> {
        let quant = self.quant_at(id, at + 1, at + 2)?;
        let Some(value) = self.graph.nodes[id].input(at) else { return leave("an operand is missing") };
        Ok((self.integer(value, quant)?, quant))
    }

    /// Weights at inputs 3 to 5; scales run along `axis`.
    fn weights_at(&self, id: NodeId, axis: i64) -> Taken<Raw> {
        let node = &self.graph.nodes[id];
        let Some(value) = node.input(3) else { return leave("an operand is missing") };
        self.raw(id, value, node.input(4), node.input(5), axis)
    }

    fn integer_bias(&self, value: Option<ValueId>) -> Taken<Bias> {
        let Some(value) = value else { return Ok(Bias::None) };
        let Some(constant) = self.graph.constant(value)? else {
            return leave("a bias that is not a constant");
        };
        match (constant.dims().as_slice(), constant.i32s()) {
            ([_] | [1, _], Some(values)) => Ok(Bias::Integers(values)),
            _ => leave("a bias that is no row of i32"),
        }
    }

    fn unary(&mut self, id: NodeId, (x, x_quant): (Tensor, Quant), y: Quant) -> Taken<Tensor> {
        let plain = self.graph.nodes[id].op().trim_start_matches("QLinear");
        let Some(of) = function(plain, &self.graph.nodes[id]) else {
            return leave("a function that is not known");
        };
        let table = Box::new(std::array::from_fn(|value| y.quantise(of(x_quant.real(value as u8)))));
        let buffer = self.push_table(&x, table, y.zero, vec![id]);
        Ok(Tensor { buffer, ..x })
    }
}
