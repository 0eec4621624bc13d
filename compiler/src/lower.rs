//! A region's ops to the description of a program, and what it exchanges with the outside.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tractd_kernels::{
    BufferId, DequantizeSpec, Element, External, Layout, LoadSpec, ProgramSpec, QuantizeSpec, SoftmaxF32Spec,
    StepSpec, StoreSpec,
};

use crate::fold::Fact;
use crate::graph::{Graph, ValueId};
use crate::ir::{Ir, Kind, OpId, Order, Tensor, renumber};
use crate::regions::Regions;

/// A tensor a region exchanges with tract or the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// ONNX's name of it.
    pub name: String,
    /// Its element type.
    pub element: Element,
    /// ONNX's shape of it.
    pub shape: Vec<usize>,
}

/// Where an input of a program comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Feed {
    /// The next of the region's input tensors.
    Port(Port),
    /// The file.
    Constant(Vec<u8>),
}

/// A region, not yet packed.
pub(crate) struct Lowered {
    pub(crate) spec: ProgramSpec<'static>,
    /// As the spec's inputs.
    pub(crate) feeds: Vec<Feed>,
    /// As the spec's outputs.
    pub(crate) outputs: Vec<Port>,
    /// By step, the op it is made of.
    pub(crate) ops: Vec<OpId>,
}

/// The region of this level; `None` if nothing reads any of it.
pub(crate) fn lower(
    graph: &Graph<'_>,
    ir: &Ir,
    facts: &[Option<Fact>],
    regions: &Regions,
    level: usize,
) -> Option<Lowered> {
    let region = Lowered { spec: ProgramSpec::default(), feeds: vec![], outputs: vec![], ops: vec![] };
    let mut lower =
        Lower { graph, ir, regions, level, buffers: HashMap::new(), known: HashMap::new(), region };
    for (id, op) in ir.ops.iter().enumerate() {
        if regions.op_levels[id] == level && !op.kind.is_source() {
            lower.op(id);
        }
    }
    for &value in &regions.exports {
        if let Some(fact) = facts[value].as_ref().filter(|fact| regions.op_levels[fact.op(ir)] == level) {
            lower.export(value, fact);
        }
    }
    for &buffer in &regions.crossings {
        if regions.op_levels[ir.buffer(buffer).writer] == level {
            lower.send(buffer);
        }
    }
    let region = lower.region;
    (!region.outputs.is_empty()).then_some(region)
}

/// Begins names under which buffers go from one region to another.
const CROSSING: &str = "tractd#";

/// Whether no tensor of the file has a name as regions use among themselves.
pub(crate) fn names_are_free(graph: &Graph<'_>) -> bool {
    graph.values.iter().all(|value| !value.name.starts_with(CROSSING))
}

struct Lower<'a> {
    graph: &'a Graph<'a>,
    ir: &'a Ir,
    regions: &'a Regions,
    level: usize,
    /// Of the IR, to the program's.
    buffers: HashMap<BufferId, BufferId>,
    /// A tensor read twice in one layout is one external.
    known: HashMap<(ValueId, [usize; 3], bool), usize>,
    region: Lowered,
}

impl Lower<'_> {
    fn op(&mut self, id: OpId) {
        let kind = &self.ir.ops[id].kind;
        // What is read comes first: sources are steps, too.
        for buffer in kind.reads() {
            self.buffer(buffer);
        }
        match kind {
            Kind::Step(step) => {
                let mut step = step.clone();
                renumber(&mut step, &mut |buffer| self.buffer(buffer));
                self.push(step, id);
            }
            Kind::Concat(copies) => {
                for copy in copies {
                    let mut step = StepSpec::Copy(copy.clone());
                    renumber(&mut step, &mut |buffer| self.buffer(buffer));
                    self.push(step, id);
                }
            }
            Kind::SoftmaxF32 { input, scale, to, shape } => {
                let output =
                    self.output(self.graph.values[*to].name, Element::F32, *input, Order::Last, shape);
                let input = self.buffer(*input);
                self.push(StepSpec::SoftmaxF32(SoftmaxF32Spec { input, output, input_scale: *scale }), id);
            }
            Kind::Quantize { .. } | Kind::Load { .. } | Kind::Constant { .. } | Kind::Gone => {}
        }
    }

    fn push(&mut self, step: StepSpec<'static>, op: OpId) {
        self.region.spec.steps.push(step);
        self.region.ops.push(op);
    }

    /// The program's buffer; sources and what other regions wrote get their steps here.
    fn buffer(&mut self, id: BufferId) -> BufferId {
        if let Some(&known) = self.buffers.get(&id) {
            return known;
        }
        let buffer = self.ir.buffer(id);
        let [height, width, channels] = buffer.dims;
        let output = self.region.spec.buffer(height, width, channels, buffer.zero);
        self.buffers.insert(id, output);
        let element = |signed: bool| if signed { Element::I8 } else { Element::U8 };
        let step = match &self.ir.ops[buffer.writer].kind {
            Kind::Quantize { from, order, shape, scale } => {
                let input = self.tensor(*from, Element::F32, id, *order, shape);
                StepSpec::Quantize(QuantizeSpec { input, output, scale: *scale })
            }
            Kind::Load { from, order, shape, signed } => {
                let input = self.tensor(*from, element(*signed), id, *order, shape);
                StepSpec::Load(LoadSpec { input, output })
            }
            Kind::Constant { order, bytes } => {
                let input = self.feed(Feed::Constant(bytes.clone()), self.external(Element::U8, id, *order));
                StepSpec::Load(LoadSpec { input, output })
            }
            _ if self.regions.op_levels[buffer.writer] != self.level => {
                let name = format!("{CROSSING}{}", id.0);
                let port = Port { name, element: Element::U8, shape: buffer.dims.to_vec() };
                let input = self.feed(Feed::Port(port), self.external(Element::U8, id, Order::Last));
                StepSpec::Load(LoadSpec { input, output })
            }
            _ => return output,
        };
        self.push(step, buffer.writer);
        output
    }

    fn external(&self, element: Element, buffer: BufferId, order: Order) -> External {
        let [height, width, channels] = self.ir.buffer(buffer).dims;
        let layout = if order == Order::First { Layout::Nchw } else { Layout::Nhwc };
        External { element, layout, height, width, channels }
    }

    fn tensor(
        &mut self,
        from: ValueId,
        element: Element,
        buffer: BufferId,
        order: Order,
        shape: &[usize],
    ) -> usize {
        let key = (from, self.ir.buffer(buffer).dims, order == Order::First);
        if let Some(&known) = self.known.get(&key) {
            return known;
        }
        let port = Port { name: self.graph.values[from].name.to_owned(), element, shape: shape.to_vec() };
        let input = self.feed(Feed::Port(port), self.external(element, buffer, order));
        self.known.insert(key, input);
        input
    }

    fn feed(&mut self, feed: Feed, external: External) -> usize {
        self.region.feeds.push(feed);
        self.region.spec.inputs.push(external);
        self.region.feeds.len() - 1
    }

    fn output(&mut self, name: &str, element: Element, of: BufferId, order: Order, shape: &[usize]) -> usize {
        self.region.spec.outputs.push(self.external(element, of, order));
        self.region.outputs.push(Port { name: name.to_owned(), element, shape: shape.to_vec() });
        self.region.outputs.len() - 1
    }

    fn export(&mut self, value: ValueId, fact: &Fact) {
        let name = self.graph.values[value].name;
        match fact {
            Fact::Integer(Tensor { buffer, order, shape, signed }) => {
                let element = if *signed { Element::I8 } else { Element::U8 };
                let output = self.output(name, element, *buffer, *order, shape);
                let input = self.buffer(*buffer);
                self.push(StepSpec::Store(StoreSpec { input, output }), self.ir.buffer(*buffer).writer);
            }
            Fact::Real(Tensor { buffer, order, shape, .. }, scale) => {
                let output = self.output(name, Element::F32, *buffer, *order, shape);
                let input = self.buffer(*buffer);
                let step = DequantizeSpec { input, output, scale: *scale };
                self.push(StepSpec::Dequantize(step), self.ir.buffer(*buffer).writer);
            }
            // Its own step writes it.
            Fact::Written(_) => {}
        }
    }

    /// To a region above.
    fn send(&mut self, buffer: BufferId) {
        let shape = self.ir.buffer(buffer).dims;
        let output =
            self.output(&format!("{CROSSING}{}", buffer.0), Element::U8, buffer, Order::Last, &shape);
        let input = self.buffer(buffer);
        self.push(StepSpec::Store(StoreSpec { input, output }), self.ir.buffer(buffer).writer);
    }
}
