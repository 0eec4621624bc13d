//! The form both kinds of quantised graph come to: the kernels' own steps, over the tensors of the whole graph.

use tractd_kernels::{BufferId, CopySpec, StepSpec};

use crate::graph::{NodeId, ValueId};

/// Index into [`Ir::ops`].
pub(crate) type OpId = usize;

/// Steps in the order they were found; each reads what earlier ones write.
#[derive(Default)]
pub(crate) struct Ir {
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) ops: Vec<Op>,
}

/// A u8 tensor; signed ones are shifted by 128.
pub(crate) struct Buffer {
    /// Height, width, channels.
    pub(crate) dims: [usize; 3],
    pub(crate) zero: u8,
    pub(crate) writer: OpId,
}

/// What writes one buffer.
pub(crate) struct Op {
    pub(crate) kind: Kind,
    /// Nodes whose work it does; the last one's result is the buffer.
    pub(crate) nodes: Vec<NodeId>,
}

pub(crate) enum Kind {
    /// A float tensor of tract's or the caller's, quantised.
    Quantize { from: ValueId, order: Order, shape: Vec<usize>, scale: f32 },
    /// An integer tensor of tract's or the caller's.
    Load { from: ValueId, order: Order, shape: Vec<usize>, signed: bool },
    /// A constant operand, in the order ONNX has it.
    Constant { order: Order, bytes: Vec<u8> },
    /// A step of the kernels between buffers; the ids are [`Ir::buffers`]'.
    Step(StepSpec<'static>),
    /// Several copies into one buffer.
    Concat(Vec<CopySpec>),
    /// Softmax to a float tensor of tract's or the caller's; it writes no buffer.
    SoftmaxF32 { input: BufferId, scale: f32, to: ValueId, shape: Vec<usize> },
    /// Taken into another step by fusion.
    Gone,
}

/// How ONNX's order of elements maps to a buffer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Order {
    /// Channels outermost, as pictures are in ONNX.
    First,
    /// Channels innermost, as in matrices.
    Last,
}

/// A tensor of the graph that lies in a buffer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) buffer: BufferId,
    pub(crate) order: Order,
    /// ONNX's.
    pub(crate) shape: Vec<usize>,
    /// Whether ONNX's values are i8.
    pub(crate) signed: bool,
}

/// How u8 (or shifted i8) values stand for real ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quant {
    pub(crate) scale: f32,
    /// Shifted by 128 where signed.
    pub(crate) zero: u8,
    pub(crate) signed: bool,
}

impl Quant {
    /// As the kernels' quantising step does it.
    pub(crate) fn quantise(self, real: f32) -> u8 {
        ((real / self.scale).round_ties_even() + f32::from(self.zero)).clamp(0.0, 255.0) as u8
    }

    pub(crate) fn real(self, value: u8) -> f32 {
        (f32::from(value) - f32::from(self.zero)) * self.scale
    }
}

impl Ir {
    pub(crate) fn push(&mut self, kind: Kind, nodes: Vec<NodeId>, dims: [usize; 3], zero: u8) -> BufferId {
        let buffer = BufferId(self.buffers.len());
        self.buffers.push(Buffer { dims, zero, writer: self.ops.len() });
        self.ops.push(Op { kind, nodes });
        buffer
    }

    /// The id the next pushed buffer gets: steps name their own output.
    pub(crate) fn next(&self) -> BufferId {
        BufferId(self.buffers.len())
    }

    pub(crate) fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0]
    }

    pub(crate) fn writer(&self, id: BufferId) -> &Op {
        &self.ops[self.buffers[id.0].writer]
    }
}

impl Kind {
    pub(crate) fn is_source(&self) -> bool {
        matches!(self, Kind::Quantize { .. } | Kind::Load { .. } | Kind::Constant { .. })
    }

    pub(crate) fn reads(&self) -> Vec<BufferId> {
        match self {
            Kind::Quantize { .. } | Kind::Load { .. } | Kind::Constant { .. } | Kind::Gone => vec![],
            Kind::Step(step) => step_reads(step),
            Kind::Concat(copies) => copies.iter().map(|copy| copy.input).collect(),
            Kind::SoftmaxF32 { input, .. } => vec![*input],
        }
    }
}

fn step_reads(step: &StepSpec<'_>) -> Vec<BufferId> {
    match step {
        StepSpec::Conv(s) => {
            [s.input].into_iter().chain(s.residual.as_ref().map(|residual| residual.buffer)).collect()
        }
        StepSpec::MaxPool(s) => vec![s.input],
        StepSpec::AveragePool(s) => vec![s.input],
        StepSpec::Add(s) => vec![s.a, s.b],
        StepSpec::Mul(s) => vec![s.a, s.b],
        StepSpec::Table(s) => vec![s.input],
        StepSpec::Softmax(s) => vec![s.input],
        StepSpec::Copy(s) => vec![s.input],
        // Steps at the border are not in the IR; lowering makes them.
        StepSpec::Quantize(_) | StepSpec::Dequantize(_) | StepSpec::Load(_) | StepSpec::Store(_) => vec![],
        StepSpec::SoftmaxF32(_) => vec![],
    }
}

/// Renumbers all buffers of a step.
pub(crate) fn renumber(step: &mut StepSpec<'_>, to: &mut impl FnMut(BufferId) -> BufferId) {
    let mut each = |ids: &mut [&mut BufferId]| ids.iter_mut().for_each(|id| **id = to(**id));
    match step {
        StepSpec::Conv(s) => {
            each(&mut [&mut s.input, &mut s.output]);
            if let Some(residual) = &mut s.residual {
                each(&mut [&mut residual.buffer]);
            }
        }
        StepSpec::MaxPool(s) => each(&mut [&mut s.input, &mut s.output]),
        StepSpec::AveragePool(s) => each(&mut [&mut s.input, &mut s.output]),
        StepSpec::Add(s) => each(&mut [&mut s.a, &mut s.b, &mut s.output]),
        StepSpec::Mul(s) => each(&mut [&mut s.a, &mut s.b, &mut s.output]),
        StepSpec::Table(s) => each(&mut [&mut s.input, &mut s.output]),
        StepSpec::Softmax(s) => each(&mut [&mut s.input, &mut s.output]),
        StepSpec::Copy(s) => each(&mut [&mut s.input, &mut s.output]),
        StepSpec::Quantize(_) | StepSpec::Dequantize(_) | StepSpec::Load(_) | StepSpec::Store(_) => {}
        StepSpec::SoftmaxF32(_) => {}
    }
}
