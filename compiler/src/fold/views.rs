//! Where the elements of a tensor lie, and operators that only look at them differently.

use super::{Fact, Fold, Taken, leave};
use crate::graph::NodeId;
use crate::ir::{Kind, Order, Tensor};
use crate::shapes::permutation;

/// How a tensor of this shape is laid out where nothing else is asked for: pictures with channels first, anything else as a
/// matrix whose columns are the last dimension.
pub(super) fn standard(shape: &[usize]) -> ([usize; 3], Order) {
    match *shape {
        [1, c, h, w] => ([h, w, c], Order::First),
        [ref rows @ .., columns] => ([rows.iter().product(), 1, columns], Order::Last),
        [] => ([1, 1, 1], Order::Last),
    }
}

/// Whether both orders are the same.
fn trivial(dims: [usize; 3]) -> bool {
    dims[0] * dims[1] == 1 || dims[2] == 1
}

impl Fold<'_> {
    /// The tensor in a buffer of these dimensions, if it lies so or can be made to.
    pub(super) fn arranged(&mut self, tensor: &Tensor, dims: [usize; 3], order: Order) -> Option<Tensor> {
        let buffer = self.ir.buffer(tensor.buffer);
        if dims.iter().product::<usize>() != buffer.dims.iter().product::<usize>() {
            return None;
        }
        if buffer.dims == dims && (trivial(dims) || tensor.order == order) {
            return Some(Tensor { order, ..tensor.clone() });
        }
        // What comes from outside can be read in any layout.
        let zero = buffer.zero;
        let same = |source: Order| source == tensor.order || trivial(buffer.dims);
        let buffer = match &self.ir.writer(tensor.buffer).kind {
            Kind::Quantize { from, order: source, shape, scale } if same(*source) => {
                let (from, scale) = (*from, *scale);
                let kind = Kind::Quantize { from, order, shape: shape.clone(), scale };
                self.source(kind, from, dims, zero, scale)
            }
            Kind::Load { from, order: source, shape, signed } if same(*source) => {
                let from = *from;
                let kind = Kind::Load { from, order, shape: shape.clone(), signed: *signed };
                self.source(kind, from, dims, zero, 0.0)
            }
            Kind::Constant { order: source, bytes } if same(*source) => {
                let kind = Kind::Constant { order, bytes: bytes.clone() };
                self.ir.push(kind, vec![], dims, zero)
            }
            _ => return None,
        };
        Some(Tensor { buffer, order, ..tensor.clone() })
    }

    /// `[1, C, H, W]` or `[1, C, W]` with a buffer to match.
    pub(super) fn picture(&mut self, tensor: &Tensor) -> Taken<Tensor> {
        let dims = match *tensor.shape {
            [1, c, h, w] => [h, w, c],
            [1, c, w] => [1, w, c],
            [_, _, _] | [_, _, _, _] => return leave("a batch larger than 1"),
            _ => return leave("not a picture of one or two dimensions"),
        };
        self.arranged(tensor, dims, Order::First)
            .map_or_else(|| leave("elements in another order in memory"), Ok)
    }

    /// `[.., K]` with K in the channels.
    pub(super) fn matrix(&mut self, tensor: &Tensor) -> Option<Tensor> {
        let (&columns, rows) = tensor.shape.split_last()?;
        self.arranged(tensor, [rows.iter().product(), 1, columns], Order::Last)
    }

    /// By dimension of the tensor, the buffer's axis it is; `None` for a batch of 1.
    pub(super) fn axes(&self, tensor: &Tensor) -> Option<Vec<Option<usize>>> {
        let dims = self.ir.buffer(tensor.buffer).dims;
        let first = tensor.order == Order::First || trivial(dims);
        let last = tensor.order == Order::Last || trivial(dims);
        let (h, w, c) = (Some(0), Some(1), Some(2));
        Some(match *tensor.shape {
            [1, a, b, d] if first && dims == [b, d, a] => vec![None, c, h, w],
            [1, a, b, d] if last && dims == [a, b, d] => vec![None, h, w, c],
            [1, a, b] if last && dims == [a, 1, b] => vec![None, h, c],
            [1, a, b] if first && dims == [1, b, a] => vec![None, c, w],
            [a, b] if last && dims == [a, 1, b] => vec![h, c],
            [a] if dims == [1, 1, a] => vec![c],
            _ => return None,
        })
    }

    /// Operators whose result is the input seen differently.
    pub(super) fn view(&mut self, id: NodeId) -> Taken<()> {
        let node = &self.graph.nodes[id];
        let Some(input) = node.input(0) else { return leave("no input") };
        let output = self.output(id)?;
        let fact = match self.facts[input].clone() {
            Some(Fact::Integer(tensor)) => Fact::Integer(self.seen(id, tensor)?),
            Some(Fact::Real(tensor, scale)) => Fact::Real(self.seen(id, tensor)?, scale),
            _ => return leave("its input is not quantised"),
        };
        if let Fact::Integer(tensor) | Fact::Real(tensor, _) = &fact {
            self.settle(&[id], tensor.buffer);
        }
        self.take(output, fact);
        Ok(())
    }

    fn seen(&mut self, id: NodeId, tensor: Tensor) -> Taken<Tensor> {
        let node = &self.graph.nodes[id];
        if node.op() == "Transpose" {
            let Some(perm) = permutation(node, tensor.shape.len()) else { return leave("not a permutation") };
            return self.transposed(&tensor, &perm);
        }
        if node.op() == "Dropout" && self.trains(id)? {
            return leave("dropout in training mode");
        }
        let shape = self.shape(self.output(id)?)?.to_vec();
        Ok(Tensor { shape, ..tensor })
    }

    fn trains(&self, id: NodeId) -> Taken<bool> {
        Ok(self.graph.nodes[id].input(2).is_some())
    }

    /// A transposition costs nothing if what it makes is one of the two orders again.
    pub(super) fn transposed(&mut self, tensor: &Tensor, perm: &[usize]) -> Taken<Tensor> {
        let mut candidates = vec![tensor.clone()];
        if let [1, a, b, c] = *tensor.shape {
            candidates.extend(self.arranged(tensor, [a, b, c], Order::Last));
            candidates.extend(self.arranged(tensor, [b, c, a], Order::First));
        }
        for candidate in candidates {
            let Some(axes) = self.axes(&candidate) else { continue };
            let dims = self.ir.buffer(candidate.buffer).dims;
            let sequence: Vec<usize> =
                perm.iter().filter_map(|&at| axes[at]).filter(|&axis| dims[axis] > 1).collect();
            let is = |order: [usize; 3]| {
                order.into_iter().filter(|&axis| dims[axis] > 1).eq(sequence.iter().copied())
            };
            let shape = perm.iter().map(|&at| tensor.shape[at]).collect();
            if is([2, 0, 1]) {
                return Ok(Tensor { order: Order::First, shape, ..candidate });
            }
            if is([0, 1, 2]) {
                return Ok(Tensor { order: Order::Last, shape, ..candidate });
            }
        }
        leave("a transposition that moves data")
    }
}
