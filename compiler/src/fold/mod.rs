//! Both kinds of quantised graph, folded into one: the kernels' steps.
//!
//! Nodes are visited in order. What is known of a tensor afterwards is its [`Fact`]: that it lies in a buffer of the IR, as
//! integers or as the real numbers they stand for. A float operator between dequantised inputs and a quantisation is taken
//! when the quantisation is reached, because only that says in what units its result is wanted; operators that keep
//! units (views, maxima, ReLU) are taken where they stand.

mod build;
mod dense;
mod params;
mod qdq;
mod qoperator;
mod table;
mod unary;
mod views;

use std::collections::HashMap;

use tractd_kernels::{BufferId, Clamp, StepSpec, TableSpec};

use crate::CompileError;
use crate::graph::{Graph, NodeId, ValueId};
use crate::ir::{Ir, Kind, OpId, Order, Quant, Tensor};
use crate::shapes::Shapes;
use tract_onnx::pb::tensor_proto::DataType;

pub(crate) use unary::is_unary;

/// Why a node is not taken.
pub(crate) enum Skip {
    /// It is left to tract, for this reason.
    Leave(String),
    /// The file is wrong.
    Bad(CompileError),
}

impl From<CompileError> for Skip {
    fn from(error: CompileError) -> Skip {
        Skip::Bad(error)
    }
}

pub(crate) type Taken<T> = Result<T, Skip>;

fn leave<T>(why: &str) -> Taken<T> {
    Err(Skip::Leave(why.to_owned()))
}

/// What is known of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fact {
    /// Integers in a buffer.
    Integer(Tensor),
    /// The real numbers that integers in a buffer stand for at this scale.
    Real(Tensor, f32),
    /// Float, written by this op itself.
    Written(OpId),
}

/// What became of the nodes.
pub(crate) struct Folded {
    pub(crate) ir: Ir,
    /// By tensor.
    pub(crate) facts: Vec<Option<Fact>>,
    /// By node, the op that does its work or holds what it looks at.
    pub(crate) homes: Vec<Option<OpId>>,
    /// By node, why it is left.
    pub(crate) whys: Vec<String>,
    /// By position in the graph's order, how many ops there were after the node.
    pub(crate) ops_after: Vec<usize>,
}

/// `banned` nodes are not taken, for the reasons given.
pub(crate) fn fold(
    graph: &Graph<'_>,
    shapes: &Shapes,
    banned: &HashMap<NodeId, String>,
) -> Result<Folded, CompileError> {
    let mut fold = Fold {
        graph,
        shapes,
        banned,
        ir: Ir::default(),
        facts: vec![None; graph.values.len()],
        homes: vec![None; graph.nodes.len()],
        whys: vec![String::new(); graph.nodes.len()],
        sources: HashMap::new(),
    };
    let mut ops_after = Vec::with_capacity(graph.order.len());
    for &id in &graph.order {
        match fold.visit(id) {
            Ok(()) => {}
            Err(Skip::Leave(why)) => fold.whys[id] = why,
            Err(Skip::Bad(error)) => return Err(error),
        }
        ops_after.push(fold.ir.ops.len());
    }
    let Fold { ir, facts, homes, whys, .. } = fold;
    Ok(Folded { ir, facts, homes, whys, ops_after })
}

struct Fold<'g> {
    graph: &'g Graph<'g>,
    shapes: &'g Shapes,
    banned: &'g HashMap<NodeId, String>,
    ir: Ir,
    facts: Vec<Option<Fact>>,
    homes: Vec<Option<OpId>>,
    whys: Vec<String>,
    /// Sources already made, so that two readers share one.
    sources: HashMap<Source, BufferId>,
}

/// What tells two sources apart; the scale by its bits.
#[derive(PartialEq, Eq, Hash)]
struct Source {
    from: ValueId,
    zero: u8,
    order: Order,
    dims: [usize; 3],
    scale: u32,
}

impl<'g> Fold<'g> {
    fn visit(&mut self, id: NodeId) -> Taken<()> {
        if let Some(why) = self.banned.get(&id) {
            return Err(Skip::Leave(why.clone()));
        }
        let node = &self.graph.nodes[id];
        match node.op() {
            "QuantizeLinear" => self.quantize(id),
            "DequantizeLinear" => self.dequantize(id),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" | "Dropout" | "Transpose" => {
                self.view(id)
            }
            "MaxPool" => self.max_pool(id),
            "Relu" => self.relu(id),
            "Softmax" => self.softmax_f32(id),
            op if op.starts_with('Q') => self.qoperator(id),
            _ => leave(self.default_reason(id)),
        }
    }

    fn default_reason(&self, id: NodeId) -> &'static str {
        let node = &self.graph.nodes[id];
        match node.op() {
            "Conv" | "Gemm" | "MatMul" | "Add" | "Mul" | "AveragePool" | "GlobalAveragePool" | "Concat"
            | "ReduceMean" => "its inputs and its result are not all quantised",
            op if is_unary(op) => "not between a dequantisation and a quantisation",
            _ => "no int8 form of this operator is known",
        }
    }

    /// A result, and the nodes it took.
    fn take(&mut self, value: ValueId, fact: Fact) {
        self.facts[value] = Some(fact);
    }

    fn settle(&mut self, nodes: &[NodeId], buffer: BufferId) {
        let op = self.ir.buffer(buffer).writer;
        for &node in nodes {
            self.homes[node] = Some(op);
        }
    }

    /// The value's shape, which everything taken needs.
    fn shape(&self, value: ValueId) -> Taken<&'g [usize]> {
        self.shapes.get(value).ok_or_else(|| Skip::Leave("a shape that is not known at load".to_owned()))
    }

    fn output(&self, id: NodeId) -> Taken<ValueId> {
        self.graph.nodes[id].sole_output().map_or_else(|| leave("more than one result"), Ok)
    }

    /// An integer operand that stands for reals as `quant` says.
    fn integer(&mut self, value: ValueId, quant: Quant) -> Taken<Tensor> {
        match self.facts[value].clone() {
            Some(Fact::Integer(tensor)) if tensor.signed == quant.signed => {
                self.with_zero(tensor, quant.zero)
            }
            Some(_) => leave("an operand of another type than its zero point"),
            None => match self.graph.constant(value)? {
                Some(constant) => {
                    let signed = constant.dtype == DataType::Int8;
                    match constant.bytes() {
                        Some(bytes) if signed == quant.signed => {
                            Ok(self.constant(bytes.to_vec(), constant.dims(), quant))
                        }
                        _ => leave("an operand of another type than its zero point"),
                    }
                }
                None => self.load(value, quant),
            },
        }
    }

    fn load(&mut self, value: ValueId, quant: Quant) -> Taken<Tensor> {
        let shape = self.shape(value)?.to_vec();
        self.check_input(value, if quant.signed { DataType::Int8 } else { DataType::Uint8 })?;
        let (dims, order) = views::standard(&shape);
        let signed = quant.signed;
        let kind = Kind::Load { from: value, order, shape: shape.clone(), signed };
        let buffer = self.source(kind, value, dims, quant.zero, 0.0);
        Ok(Tensor { buffer, order, shape, signed })
    }

    /// Where the graph's caller gives a tensor, its declared type has to be the expected one.
    fn check_input(&self, value: ValueId, expected: DataType) -> Taken<()> {
        let input = self.graph.inputs.iter().find(|(id, _)| *id == value);
        let dtype = input.and_then(|(_, info)| {
            let tract_onnx::pb::type_proto::Value::TensorType(t) = info.r#type.as_ref()?.value.as_ref()?;
            Some(t.elem_type)
        });
        match dtype {
            Some(dtype) if dtype != expected as i32 => leave("an input of another type"),
            _ => Ok(()),
        }
    }

    fn source(&mut self, kind: Kind, from: ValueId, dims: [usize; 3], zero: u8, scale: f32) -> BufferId {
        let order = match &kind {
            Kind::Quantize { order, .. } | Kind::Load { order, .. } => *order,
            _ => Order::Last,
        };
        let key = Source { from, zero, order, dims, scale: scale.to_bits() };
        if let Some(&buffer) = self.sources.get(&key) {
            return buffer;
        }
        let buffer = self.ir.push(kind, vec![], dims, zero);
        self.sources.insert(key, buffer);
        buffer
    }

    /// A constant operand, its bytes as ONNX has them.
    fn constant(&mut self, mut bytes: Vec<u8>, shape: Vec<usize>, quant: Quant) -> Tensor {
        if quant.signed {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x80);
        }
        let (dims, order) = views::standard(&shape);
        let buffer = self.ir.push(Kind::Constant { order, bytes }, vec![], dims, quant.zero);
        Tensor { buffer, order, shape, signed: quant.signed }
    }

    /// The same integers in a buffer whose zero point is `zero`.
    fn with_zero(&mut self, tensor: Tensor, zero: u8) -> Taken<Tensor> {
        let buffer = self.ir.buffer(tensor.buffer);
        if buffer.zero == zero {
            return Ok(tensor);
        }
        let dims = buffer.dims;
        let buffer = match &self.ir.writer(tensor.buffer).kind {
            // An integer tensor from outside has no zero point of its own.
            Kind::Load { from, order, shape, signed } => {
                let (from, order, shape, signed) = (*from, *order, shape.clone(), *signed);
                self.source(Kind::Load { from, order, shape, signed }, from, dims, zero, 0.0)
            }
            _ => {
                let table = Box::new(std::array::from_fn(|value| value as u8));
                self.push_table(&tensor, table, zero, vec![])
            }
        };
        Ok(Tensor { buffer, ..tensor })
    }

    fn push_table(
        &mut self,
        input: &Tensor,
        table: Box<[u8; 256]>,
        zero: u8,
        nodes: Vec<NodeId>,
    ) -> BufferId {
        let step = TableSpec { input: input.buffer, output: self.ir.next(), table };
        let dims = self.ir.buffer(input.buffer).dims;
        self.ir.push(Kind::Step(StepSpec::Table(step)), nodes, dims, zero)
    }

    /// A dequantised operand and its quantisation; constants become sources.
    fn real(&mut self, value: ValueId) -> Taken<(Tensor, Quant)> {
        match self.facts[value].clone() {
            Some(Fact::Real(tensor, scale)) => {
                let zero = self.ir.buffer(tensor.buffer).zero;
                let quant = Quant { scale, zero, signed: tensor.signed };
                Ok((tensor, quant))
            }
            Some(_) => leave("an operand that is not dequantised"),
            None => {
                let raw = self.dequantised(value)?;
                let (&[scale], &[zero]) = (raw.scales.as_slice(), raw.zeros.as_slice()) else {
                    return leave("a constant operand quantised per axis");
                };
                let quant = Quant { scale, zero: (zero as u8) ^ 0x80, signed: true };
                let bytes = raw.data.iter().map(|&value| value as u8).collect();
                Ok((self.constant(bytes, raw.dims, quant), quant))
            }
        }
    }
}

/// Bounds of a float result as integers.
fn clamp(quant: Quant, low: f32, high: f32) -> Clamp {
    Clamp { low: quant.quantise(low), high: quant.quantise(high) }
}
