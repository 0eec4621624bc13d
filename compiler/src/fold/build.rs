//! Pooling, element-wise pairs, concatenation and softmax: what both their forms come to.

use tractd_kernels::{
    AddSpec, AveragePoolSpec, Clamp, CopySpec, Divisor, MaxPoolSpec, MulSpec, Rounding, SoftmaxSpec,
    StepSpec, Window,
};

use super::{Fact, Fold, Taken, leave};
use crate::graph::NodeId;
use crate::ir::{Kind, Order, Quant, Tensor};
use crate::window::Sliding;

/// Which element-wise pair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pair {
    Add,
    Mul,
}

impl Fold<'_> {
    /// Maxima keep units, so it needs no quantisation behind it.
    pub(super) fn max_pool(&mut self, id: NodeId) -> Taken<()> {
        let node = &self.graph.nodes[id];
        let Some(input) = node.input(0) else { return leave("no input") };
        let output = self.output(id)?;
        let (tensor, scale) = match self.facts[input].clone() {
            Some(Fact::Integer(tensor)) => (tensor, None),
            Some(Fact::Real(tensor, scale)) => (tensor, Some(scale)),
            _ => return leave("its input is not quantised"),
        };
        let x = self.picture(&tensor)?;
        let Some(sliding) = Sliding::new(node, &x.shape[2..], None) else {
            return leave("a window that fits nothing");
        };
        let shape = self.shape(output)?.to_vec();
        let dims = [sliding.output[0], sliding.output[1], x.shape[1]];
        let step = MaxPoolSpec { input: x.buffer, output: self.ir.next(), window: sliding.window };
        let zero = self.ir.buffer(x.buffer).zero;
        let buffer = self.ir.push(Kind::Step(StepSpec::MaxPool(step)), vec![id], dims, zero);
        self.settle(&[id], buffer);
        let tensor = Tensor { buffer, order: Order::First, shape, signed: x.signed };
        self.take(output, scale.map_or(Fact::Integer(tensor.clone()), |scale| Fact::Real(tensor, scale)));
        Ok(())
    }

    pub(super) fn average_pool(
        &mut self,
        id: NodeId,
        nodes: &[NodeId],
        (x, x_quant): (Tensor, Quant),
        y: Quant,
    ) -> Taken<Tensor> {
        let node = &self.graph.nodes[id];
        let x = self.picture(&x)?;
        let Some(sliding) = Sliding::new(node, &x.shape[2..], None) else {
            return leave("a window that fits nothing");
        };
        let whole = node.int("count_include_pad", 0) != 0;
        if whole && sliding.ceil {
            return leave("padding counted in windows that leave it");
        }
        let divisor = if whole { Divisor::Window } else { Divisor::Inside };
        let [h, w] = sliding.output;
        let shape = [&x.shape[..2], &sliding.output[4 - x.shape.len()..]].concat();
        self.average(
            nodes,
            &x,
            x_quant,
            y,
            sliding.window,
            (divisor, Rounding::After),
            ([h, w, x.shape[1]], shape),
        )
    }

    /// Over everything but batch and channels; the result's shape is the node's own.
    pub(super) fn global_average(
        &mut self,
        nodes: &[NodeId],
        (x, x_quant): (Tensor, Quant),
        y: Quant,
        shape: &[usize],
    ) -> Taken<Tensor> {
        let x = self.picture(&x)?;
        let [h, w, c] = self.ir.buffer(x.buffer).dims;
        let window = Window { kernel: [h, w], ..Window::square(1, 1) };
        self.average(
            nodes,
            &x,
            x_quant,
            y,
            window,
            (Divisor::Inside, Rounding::Before),
            ([1, 1, c], shape.to_vec()),
        )
    }

    #[allow(clippy::too_many_arguments, reason = "they are the step's own fields")]
    fn average(
        &mut self,
        nodes: &[NodeId],
        x: &Tensor,
        x_quant: Quant,
        y: Quant,
        window: Window,
        (divisor, rounding): (Divisor, Rounding),
        (dims, shape): ([usize; 3], Vec<usize>),
    ) -> Taken<Tensor> {
        let multiplier = x_quant.scale / y.scale;
        let (input, output) = (x.buffer, self.ir.next());
        let step = AveragePoolSpec { input, output, window, divisor, multiplier, rounding };
        let buffer = self.ir.push(Kind::Step(StepSpec::AveragePool(step)), nodes.to_vec(), dims, y.zero);
        Ok(Tensor { buffer, order: Order::First, shape, signed: y.signed })
    }

    #[allow(clippy::too_many_arguments, reason = "two operands, the result, and who they are")]
    pub(super) fn pair(
        &mut self,
        pair: Pair,
        nodes: &[NodeId],
        a: (Tensor, Quant),
        b: (Tensor, Quant),
        y: Quant,
        clamp: Clamp,
        shape: &[usize],
    ) -> Taken<Tensor> {
        // Only the second may be smaller than the result.
        let (a, b) = if a.0.shape == shape { (a, b) } else { (b, a) };
        if a.0.shape != shape {
            return leave("operands that both repeat");
        }
        let (x, other) = match a.0.shape == b.0.shape {
            true => match self.alike(&a.0, &b.0) {
                Some(pair) => pair,
                None => return leave("operands whose elements lie in different orders"),
            },
            false => {
                let other = self.per_channel(&a.0, &b.0)?;
                (a.0.clone(), other)
            }
        };
        let (a_quant, b_quant) = (a.1, b.1);
        let output = self.ir.next();
        let step = match pair {
            Pair::Add => StepSpec::Add(AddSpec {
                a: x.buffer,
                b: other.buffer,
                output,
                a_multiplier: a_quant.scale / y.scale,
                b_multiplier: b_quant.scale / y.scale,
                clamp,
            }),
            Pair::Mul => StepSpec::Mul(MulSpec {
                a: x.buffer,
                b: other.buffer,
                output,
                multiplier: a_quant.scale * b_quant.scale / y.scale,
                clamp,
            }),
        };
        let dims = self.ir.buffer(x.buffer).dims;
        let buffer = self.ir.push(Kind::Step(step), nodes.to_vec(), dims, y.zero);
        Ok(Tensor { buffer, order: x.order, shape: shape.to_vec(), signed: y.signed })
    }

    /// Two tensors of one shape in buffers of one layout.
    fn alike(&mut self, a: &Tensor, b: &Tensor) -> Option<(Tensor, Tensor)> {
        let dims = self.ir.buffer(a.buffer).dims;
        if let Some(b) = self.arranged(b, dims, a.order) {
            return Some((a.clone(), b));
        }
        let dims = self.ir.buffer(b.buffer).dims;
        Some((self.arranged(a, dims, b.order)?, b.clone()))
    }

    /// `b` as one value per channel of `a`.
    fn per_channel(&mut self, a: &Tensor, b: &Tensor) -> Taken<Tensor> {
        let why = "an operand that repeats along channels";
        let channels = self.ir.buffer(a.buffer).dims[2];
        let Some(axis) = self.axes(a).and_then(|axes| axes.iter().position(|&axis| axis == Some(2))) else {
            return leave("elements in another order in memory");
        };
        let Some(missing) = a.shape.len().checked_sub(b.shape.len()) else { return leave(why) };
        let fits = |(at, &dim): (usize, &usize)| dim == if at + missing == axis { channels } else { 1 };
        if axis < missing || !b.shape.iter().enumerate().all(fits) {
            return leave(why);
        }
        self.arranged(b, [1, 1, channels], Order::Last).map_or_else(|| leave(why), Ok)
    }

    pub(super) fn concatenation(
        &mut self,
        id: NodeId,
        nodes: &[NodeId],
        parts: Vec<(Tensor, Quant)>,
        y: Quant,
        shape: &[usize],
    ) -> Taken<Tensor> {
        let Some((first, _)) = parts.first() else { return leave("nothing to join") };
        let along = crate::shapes::axis(self.graph.nodes[id].int("axis", 0), shape.len());
        let Some(axes) = self.axes(first) else { return leave("elements in another order in memory") };
        let Some(axis) = along.and_then(|along| axes[along]) else { return leave("joined along the batch") };
        let (order, output) = (first.order, self.ir.next());
        let mut dims = self.ir.buffer(first.buffer).dims;
        dims[axis] = 0;
        let mut copies = Vec::with_capacity(parts.len());
        for (part, quant) in parts {
            let Some(axes) = self.axes(&part) else { return leave("elements in another order in memory") };
            let size = self.ir.buffer(part.buffer).dims;
            let others_fit = (0..3).all(|at| at == axis || size[at] == dims[at]);
            // A tensor with one element in several axes can be read either way.
            if along.and_then(|along| axes[along]) != Some(axis) || !others_fit || part.order != order {
                return leave("parts whose elements lie in different orders");
            }
            let mut to = [0; 3];
            to[axis] = dims[axis];
            dims[axis] += size[axis];
            let same = (quant.scale, quant.zero) == (y.scale, y.zero);
            let table = (!same).then(|| super::table::requantised(quant, y));
            copies.push(CopySpec { input: part.buffer, output, from: [0; 3], to, size, table });
        }
        let buffer = self.ir.push(Kind::Concat(copies), nodes.to_vec(), dims, y.zero);
        // Sources made for the parts would have been numbered before.
        debug_assert_eq!(buffer, output);
        Ok(Tensor { buffer, order, shape: shape.to_vec(), signed: y.signed })
    }

    pub(super) fn softmax(
        &mut self,
        nodes: &[NodeId],
        x: (Tensor, Quant),
        y: Quant,
        over: Option<usize>,
    ) -> Taken<Tensor> {
        let tensor = self.softmax_input(x.0, over)?;
        let step = SoftmaxSpec {
            input: tensor.buffer,
            output: self.ir.next(),
            input_scale: x.1.scale,
            output_scale: y.scale,
        };
        let dims = self.ir.buffer(tensor.buffer).dims;
        let buffer = self.ir.push(Kind::Step(StepSpec::Softmax(step)), nodes.to_vec(), dims, y.zero);
        Ok(Tensor { buffer, signed: y.signed, ..tensor })
    }

    /// The dimension a softmax runs over. `None` where it runs over several at once.
    pub(super) fn softmax_axis(&self, id: NodeId, opset: i64, shape: &[usize]) -> Option<usize> {
        let node = &self.graph.nodes[id];
        let axis = crate::shapes::axis(node.int("axis", if opset < 13 { 1 } else { -1 }), shape.len())?;
        // Before opset 13, over everything from the axis on.
        (opset >= 13 || shape[axis + 1..].iter().all(|&dim| dim == 1)).then_some(axis)
    }

    fn softmax_input(&mut self, tensor: Tensor, over: Option<usize>) -> Taken<Tensor> {
        let Some(over) = over else { return leave("softmax over several dimensions") };
        let mut candidates = vec![tensor.clone()];
        candidates.extend(self.matrix(&tensor));
        for candidate in candidates {
            if self.axes(&candidate).is_some_and(|axes| axes[over] == Some(2)) {
                return Ok(candidate);
            }
        }
        leave("softmax over another dimension than the channels")
    }

    /// A softmax whose float result is wanted as such.
    pub(super) fn softmax_f32(&mut self, id: NodeId) -> Taken<()> {
        let node = &self.graph.nodes[id];
        let (Some(input), output) = (node.input(0), self.output(id)?) else { return leave("no input") };
        let quantised = |&consumer: &NodeId| self.graph.nodes[consumer].op() == "QuantizeLinear";
        let value = &self.graph.values[output];
        if !value.is_output && value.consumers.iter().all(quantised) && value.consumers.len() == 1 {
            return leave("its result is quantised in a way that is not taken");
        }
        let Some(Fact::Real(tensor, scale)) = self.facts[input].clone() else {
            return leave("its input is not quantised");
        };
        let over = self.softmax_axis(id, self.graph.opset, &tensor.shape);
        let tensor = self.softmax_input(tensor, over)?;
        let [h, w, _] = self.ir.buffer(tensor.buffer).dims;
        if tensor.order == Order::First && h * w > 1 {
            return leave("softmax over the channels of a picture");
        }
        let op = self.ir.ops.len();
        let kind = Kind::SoftmaxF32 { input: tensor.buffer, scale, to: output, shape: tensor.shape };
        self.ir.ops.push(crate::ir::Op { kind, nodes: vec![id] });
        self.homes[id] = Some(op);
        self.take(output, Fact::Written(op));
        Ok(())
    }
}
