//! Convolutions and dense layers: what all their forms come to.

use tractd_kernels::{BufferId, Clamp, ConvSpec, StepSpec, Window};

use super::params::{Bias, Raw};
use super::{Fold, Taken, leave};
use crate::graph::NodeId;
use crate::ir::{Kind, Order, Quant, Tensor};
use crate::window::Sliding;

/// A bias in reals is rounded to a whole number of the sums' units. Above this, that could be seen in the result.
const ROUNDED_BIAS_MULTIPLIER_MAX: f32 = 0.5;

/// What a convolution or dense layer is made of, whatever form it had.
pub(super) struct Layer<'r> {
    pub(super) nodes: &'r [NodeId],
    pub(super) x: (Tensor, Quant),
    pub(super) weights: Raw,
    pub(super) bias: Bias,
    pub(super) y: Quant,
    pub(super) clamp: Clamp,
    /// Of the result.
    pub(super) shape: &'r [usize],
}

/// How a dense layer's weights lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weights {
    /// `[outputs, inputs]`.
    ByOutput,
    /// `[inputs, outputs]`.
    ByInput,
}

impl Fold<'_> {
    pub(super) fn convolution(&mut self, id: NodeId, layer: Layer<'_>) -> Taken<Tensor> {
        let node = &self.graph.nodes[id];
        let x = self.picture(&layer.x.0)?;
        let rank = x.shape.len();
        if layer.weights.dims.len() != rank {
            return leave("weights of another rank than the input");
        }
        let Some(sliding) = Sliding::new(node, &x.shape[2..], Some(&layer.weights.dims[2..])) else {
            return leave("a window that fits nothing");
        };
        let groups = node.int("group", 1);
        let Ok(groups) = usize::try_from(groups) else { return leave("a negative number of groups") };
        let outputs = layer.weights.dims[0];
        if layer.weights.scales.len() > 1 && layer.weights.axis != 0 {
            return leave("weights quantised along another axis than the outputs");
        }
        let [h, w] = sliding.output;
        let result = [&[1, outputs], &sliding.output[4 - rank..]].concat();
        if result != layer.shape {
            return leave("a result of another shape than its window makes");
        }
        let buffer = self.multiply(layer, x.buffer, sliding.window, groups, [h, w, outputs])?;
        Ok(Tensor { buffer, order: Order::First, shape: result, signed: false })
    }

    pub(super) fn dense(&mut self, layer: Layer<'_>, lie: Weights) -> Taken<Tensor> {
        let mut layer = layer;
        let &[rows, columns] = layer.weights.dims.as_slice() else {
            return leave("weights that are no matrix");
        };
        let output_axis = if lie == Weights::ByOutput { 0 } else { 1 };
        if layer.weights.scales.len() > 1 && layer.weights.axis != output_axis {
            return leave("weights quantised along another axis than the outputs");
        }
        let (outputs, inputs) = if lie == Weights::ByOutput { (rows, columns) } else { (columns, rows) };
        if lie == Weights::ByInput {
            let data = &layer.weights.data;
            layer.weights.data =
                (0..rows * columns).map(|at| data[at % rows * columns + at / rows]).collect();
        }
        if layer.x.0.shape.last() != Some(&inputs) || layer.shape.last() != Some(&outputs) {
            return leave("a matrix that does not fit its weights");
        }
        let m = layer.shape.iter().product::<usize>() / outputs.max(1);
        let shape = layer.shape.to_vec();
        let (x, kernel) = match self.matrix(&layer.x.0) {
            Some(x) => (x.buffer, [1, 1]),
            // A picture flattened: the window is the whole picture, and weights are already in its order.
            None => {
                let [h, w, c] = self.ir.buffer(layer.x.0.buffer).dims;
                if m != 1 || layer.x.0.order != Order::First || h * w * c != inputs {
                    return leave("elements in another order in memory");
                }
                (layer.x.0.buffer, [h, w])
            }
        };
        let window = Window { kernel, ..Window::square(1, 1) };
        let buffer = self.multiply(layer, x, window, 1, [m, 1, outputs])?;
        Ok(Tensor { buffer, order: Order::Last, shape, signed: false })
    }

    fn multiply(
        &mut self,
        layer: Layer<'_>,
        input: BufferId,
        window: Window,
        groups: usize,
        dims: [usize; 3],
    ) -> Taken<BufferId> {
        let Layer { nodes, x: (_, x), weights, bias, y, clamp, .. } = layer;
        let outputs = dims[2];
        if weights.scales.len() != 1 && weights.scales.len() != outputs {
            return leave("a wrong number of weight scales");
        }
        // In this order, as ONNX Runtime does: the products differ in their last bit otherwise.
        let multipliers: Vec<f32> = weights.scales.iter().map(|scale| (x.scale * scale) / y.scale).collect();
        let scale = |index: usize| weights.scales[if weights.scales.len() == 1 { 0 } else { index }];
        let bias = match bias {
            Bias::None => vec![],
            Bias::Integers(values) => values,
            Bias::Reals(values) => {
                if multipliers.iter().any(|&multiplier| multiplier > ROUNDED_BIAS_MULTIPLIER_MAX) {
                    return leave("a float bias that is fine next to the result's scale");
                }
                let unit = |index| f64::from(x.scale) * f64::from(scale(index));
                let whole =
                    values.iter().enumerate().map(|(index, value)| (value / unit(index)).round_ties_even());
                let whole: Vec<f64> = whole.collect();
                if whole.iter().any(|value| value.abs() > f64::from(i32::MAX)) {
                    return leave("a bias that overflows 32 bits");
                }
                whole.into_iter().map(|value| value as i32).collect()
            }
        };
        if !bias.is_empty() && bias.len() != outputs {
            return leave("a bias of another size than the result's channels");
        }
        let conv = ConvSpec {
            input,
            output: self.ir.next(),
            window,
            groups,
            weights: weights.data.into(),
            weight_zero_points: if weights.zeros.iter().all(|&zero| zero == 0) {
                vec![]
            } else {
                weights.zeros
            },
            bias,
            multipliers,
            zero_point: y.zero,
            clamp,
            residual: None,
            table: None,
        };
        Ok(self.ir.push(Kind::Step(StepSpec::Conv(conv)), nodes.to_vec(), dims, y.zero))
    }
}
