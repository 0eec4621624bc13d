//! Which ops run in which program, and what crosses between programs and tract.
//!
//! Ops and the nodes left to tract get levels: an op that reads what tract computes stands above it, a node of tract's that
//! reads an op stands no lower than it. All ops of one level are one region: they need nothing of tract that needs them.

use crate::fold::{Fact, Folded};
use crate::graph::{Graph, NodeId, ValueId};
use crate::ir::{Kind, OpId};
use tractd_kernels::BufferId;

/// The cut.
pub(crate) struct Regions {
    /// By op; sources and what nobody needs have one, too, but it means nothing.
    pub(crate) op_levels: Vec<usize>,
    /// By node; meaningless for those taken.
    pub(crate) node_levels: Vec<usize>,
    /// Tensors that tract or the caller reads from regions.
    pub(crate) exports: Vec<ValueId>,
    /// Buffers that a region reads from one below.
    pub(crate) crossings: Vec<BufferId>,
}

impl Regions {
    pub(crate) fn levels(&self) -> usize {
        self.op_levels.iter().chain(&self.node_levels).max().map_or(0, |level| level + 1)
    }
}

/// Gives back what is not worth a program: quantisations with nothing to compute between them.
pub(crate) fn drop_idle(graph: &Graph<'_>, folded: &mut Folded) {
    let ops = &folded.ir.ops;
    let mut parent: Vec<OpId> = (0..ops.len()).collect();
    for (id, op) in ops.iter().enumerate() {
        for buffer in op.kind.reads() {
            let (a, b) = (root(&mut parent, id), root(&mut parent, folded.ir.buffer(buffer).writer));
            parent[a] = b;
        }
    }
    let mut works = vec![false; ops.len()];
    for (id, op) in ops.iter().enumerate() {
        if !op.kind.is_source() {
            works[root(&mut parent, id)] = true;
        }
    }
    for id in 0..graph.nodes.len() {
        let idle = folded.homes[id].is_some_and(|op| !works[root(&mut parent, op)]);
        if idle {
            folded.homes[id] = None;
            folded.whys[id] = "nothing to compute in int8 around it".to_owned();
            for &output in graph.nodes[id].outputs.iter().flatten() {
                folded.facts[output] = None;
            }
        }
    }
}

fn root(parent: &mut [OpId], mut id: OpId) -> OpId {
    while parent[id] != id {
        parent[id] = parent[parent[id]];
        id = parent[id];
    }
    id
}

pub(crate) fn cut(graph: &Graph<'_>, folded: &Folded) -> Regions {
    let mut regions = Regions {
        op_levels: vec![0; folded.ir.ops.len()],
        node_levels: vec![0; graph.nodes.len()],
        exports: vec![],
        crossings: vec![],
    };
    let mut begin = 0;
    for (&id, &end) in graph.order.iter().zip(&folded.ops_after) {
        for op in begin..end {
            regions.op_levels[op] = op_level(graph, folded, &regions, op);
        }
        begin = end;
        if folded.homes[id].is_none() {
            regions.node_levels[id] = node_level(graph, folded, &regions, id);
        }
    }
    for value in 0..graph.values.len() {
        let outside = |&consumer: &NodeId| folded.homes[consumer].is_none();
        let wanted = graph.values[value].is_output || graph.values[value].consumers.iter().any(outside);
        if wanted && folded.facts[value].is_some() {
            regions.exports.push(value);
        }
    }
    for (id, op) in folded.ir.ops.iter().enumerate() {
        for buffer in op.kind.reads() {
            let writer = folded.ir.buffer(buffer).writer;
            // Sources are made anew in each region that reads them.
            let crosses = regions.op_levels[writer] != regions.op_levels[id];
            if crosses && !folded.ir.ops[writer].kind.is_source() && !regions.crossings.contains(&buffer) {
                regions.crossings.push(buffer);
            }
        }
    }
    regions
}

fn op_level(graph: &Graph<'_>, folded: &Folded, regions: &Regions, op: OpId) -> usize {
    match &folded.ir.ops[op].kind {
        Kind::Quantize { from, .. } | Kind::Load { from, .. } => match graph.values[*from].producer {
            Some(producer) => regions.node_levels[producer] + 1,
            None => 0,
        },
        kind => {
            let levels =
                kind.reads().into_iter().map(|buffer| regions.op_levels[folded.ir.buffer(buffer).writer]);
            levels.max().unwrap_or(0)
        }
    }
}

fn node_level(graph: &Graph<'_>, folded: &Folded, regions: &Regions, id: NodeId) -> usize {
    let level = |value: ValueId| match &folded.facts[value] {
        Some(fact) => regions.op_levels[fact.op(&folded.ir)],
        None => graph.values[value].producer.map_or(0, |producer| regions.node_levels[producer]),
    };
    graph.nodes[id].reads().map(level).max().unwrap_or(0)
}

impl Fact {
    /// The op that holds the tensor.
    pub(crate) fn op(&self, ir: &crate::ir::Ir) -> OpId {
        match self {
            Fact::Integer(tensor) | Fact::Real(tensor, _) => ir.buffer(tensor.buffer).writer,
            Fact::Written(op) => *op,
        }
    }
}
