//! The graph of the file, checked: every tensor has one source, and nodes can be put in order.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use tract_onnx::pb::{tensor_shape_proto::dimension, type_proto};

use crate::CompileError;
use crate::constant::Constant;

/// Most nodes: more than any network for an edge device has, and few enough for work that grows with their square.
const NODES_MAX: usize = 1 << 15;
/// Most inputs and outputs of all nodes together.
const EDGES_MAX: usize = 1 << 19;
/// Subgraphs within subgraphs that are looked into.
const DEPTH_MAX: usize = 64;

/// Index into [`Graph::nodes`].
pub(crate) type NodeId = usize;
/// Index of a tensor.
pub(crate) type ValueId = usize;

/// Nodes and tensors by index.
pub(crate) struct Graph<'a> {
    pub(crate) proto: &'a GraphProto,
    pub(crate) nodes: Vec<Node<'a>>,
    /// Every node after those it reads from.
    pub(crate) order: Vec<NodeId>,
    /// Without those that are initialised.
    pub(crate) inputs: Vec<(ValueId, &'a ValueInfoProto)>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) values: Vec<Value<'a>>,
    /// Of ONNX's own operators; 1 where the file has none.
    pub(crate) opset: i64,
    /// Of a subgraph: tensors that it reads of the graph around it, and what they are there.
    pub(crate) captured: Vec<(ValueId, ValueId)>,
    names: HashMap<&'a str, ValueId>,
}

/// A tensor.
pub(crate) struct Value<'a> {
    pub(crate) name: &'a str,
    pub(crate) producer: Option<NodeId>,
    /// A node that reads it twice is in here twice.
    pub(crate) consumers: Vec<NodeId>,
    pub(crate) is_output: bool,
    /// Initialisers, and what constant nodes hold.
    pub(crate) constant: Option<Cow<'a, TensorProto>>,
}

/// A node.
pub(crate) struct Node<'a> {
    pub(crate) proto: &'a NodeProto,
    /// `None` for an optional input left out.
    pub(crate) inputs: Vec<Option<ValueId>>,
    pub(crate) outputs: Vec<Option<ValueId>>,
    /// Tensors its subgraphs read.
    captured: Vec<ValueId>,
}

impl<'a> Value<'a> {
    fn named(name: &'a str, producer: Option<NodeId>) -> Value<'a> {
        Value { name, producer, consumers: Vec::new(), is_output: false, constant: None }
    }
}

impl<'a> Node<'a> {
    /// The operator, if it is one of ONNX's own or of ONNX Runtime's.
    pub(crate) fn op(&self) -> &'a str {
        match self.proto.domain.as_str() {
            "" | "ai.onnx" | "com.microsoft" => &self.proto.op_type,
            _ => "",
        }
    }

    /// The operator as people write it.
    pub(crate) fn operator(&self) -> String {
        match self.proto.domain.as_str() {
            "" => self.proto.op_type.clone(),
            domain => format!("{domain}.{}", self.proto.op_type),
        }
    }

    pub(crate) fn name(&self) -> String {
        let first = || self.proto.output.first().cloned().unwrap_or_default();
        if self.proto.name.is_empty() { first() } else { self.proto.name.clone() }
    }

    pub(crate) fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    /// Everything read, subgraphs included.
    pub(crate) fn reads(&self) -> impl Iterator<Item = ValueId> {
        self.inputs.iter().copied().flatten().chain(self.captured.iter().copied())
    }

    /// Its result, if it has just one.
    pub(crate) fn sole_output(&self) -> Option<ValueId> {
        let mut outputs = self.outputs.iter().copied().flatten();
        let first = outputs.next();
        if outputs.next().is_none() { first } else { None }
    }

    fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.proto.attribute.iter().find(|attribute| attribute.name == name)
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |attribute| attribute.i)
    }

    pub(crate) fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).map_or(default, |attribute| attribute.f)
    }

    pub(crate) fn text(&self, name: &str) -> &'a [u8] {
        self.attribute(name).map_or(b"", |attribute| &attribute.s)
    }

    pub(crate) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attribute(name).map(|attribute| attribute.ints.as_slice()).filter(|ints| !ints.is_empty())
    }
}

impl<'a> Graph<'a> {
    pub(crate) fn new(model: &'a ModelProto) -> Result<Graph<'a>, CompileError> {
        let proto = model.graph.as_ref().ok_or(CompileError::NoGraph)?;
        let own = model.opset_import.iter().find(|set| set.domain.is_empty() || set.domain == "ai.onnx");
        Graph::within(None, proto, own.map_or(1, |set| set.version))
    }

    /// The graphs that are attributes of a node of this one, as those of `If` and `Loop` are.
    pub(crate) fn subgraphs(&self, node: &Node<'a>) -> impl Iterator<Item = Result<Graph<'a>, CompileError>> {
        let protos = node.proto.attribute.iter().flat_map(|each| each.g.iter().chain(&each.graphs));
        protos.map(|proto| Graph::within(Some(self), proto, self.opset))
    }

    fn within(
        around: Option<&Graph<'a>>,
        proto: &'a GraphProto,
        opset: i64,
    ) -> Result<Graph<'a>, CompileError> {
        let limit = |what, got, limit| match got > limit {
            true => Err(CompileError::TooLarge { what, got, limit }),
            false => Ok(()),
        };
        limit("nodes", proto.node.len(), NODES_MAX)?;
        let edges = proto.node.iter().map(|node| node.input.len() + node.output.len()).sum();
        limit("inputs and outputs of nodes", edges, EDGES_MAX)?;

        let mut names = Names { around, ..Names::default() };
        for tensor in &proto.initializer {
            names.produce(&tensor.name, None)?;
            names.value(&tensor.name).constant = Some(Cow::Borrowed(tensor));
        }
        let mut inputs = Vec::new();
        for input in &proto.input {
            if names.known(&input.name).is_none_or(|id| names.values[id].constant.is_none()) {
                inputs.push((names.produce(&input.name, None)?, input));
            }
        }
        let mut nodes = Vec::with_capacity(proto.node.len());
        for (id, node) in proto.node.iter().enumerate() {
            if node.domain == crate::op::DOMAIN {
                return Err(CompileError::Reserved { node: node.name.clone() });
            }
            let outputs = node.output.iter().map(|name| match name.as_str() {
                "" => Ok(None),
                name => names.produce(name, Some(id)).map(Some),
            });
            let outputs = outputs.collect::<Result<_, _>>()?;
            nodes.push(Node { proto: node, inputs: Vec::new(), outputs, captured: Vec::new() });
        }
        for (id, node) in nodes.iter_mut().enumerate() {
            for name in &node.proto.input {
                node.inputs.push(names.read(name, id, node.proto)?);
            }
            for attribute in &node.proto.attribute {
                for inner in attribute.g.iter().chain(&attribute.graphs) {
                    names.capture(inner, id, &mut node.captured, &mut Vec::new())?;
                }
            }
            if let (Some(tensor), Some(Some(output))) = (constant_node(node), node.outputs.first()) {
                names.values[*output].constant = Some(tensor);
            }
        }
        let missing =
            |name: &str| CompileError::Missing { node: "output".to_owned(), value: name.to_owned() };
        let outputs = proto.output.iter().map(|output| names.find(&output.name).ok_or(missing(&output.name)));
        let outputs: Vec<ValueId> = outputs.collect::<Result<_, _>>()?;
        let Names { ids: names, mut values, captured, .. } = names;
        for (own, outer) in &captured {
            let inputs_around = around.map_or(&[][..], |around| &around.inputs);
            let input = inputs_around.iter().find(|(value, _)| value == outer);
            inputs.extend(input.map(|(_, info)| (*own, *info)));
        }
        for &output in &outputs {
            values[output].is_output = true;
        }
        let order = order(&nodes, &values)?;
        Ok(Graph { proto, nodes, order, inputs, outputs, values, opset, captured, names })
    }

    /// The constant a tensor is; `None` where it is computed, kept elsewhere or of an unusual type.
    pub(crate) fn constant(&self, value: ValueId) -> Result<Option<Constant<'_>>, CompileError> {
        self.values[value].constant.as_deref().map_or(Ok(None), Constant::new)
    }

    /// The node that computes a tensor.
    pub(crate) fn producer(&self, value: ValueId) -> Option<(NodeId, &Node<'a>)> {
        self.values[value].producer.map(|id| (id, &self.nodes[id]))
    }

    /// Whether `node` alone reads the tensor.
    pub(crate) fn only_read_by(&self, value: ValueId, node: NodeId) -> bool {
        let value = &self.values[value];
        !value.is_output && value.consumers.iter().all(|&consumer| consumer == node)
    }
}

/// Element type and dimensions as declared; `None` where either is open.
pub(crate) fn declared(info: &ValueInfoProto) -> Option<(DataType, Vec<usize>)> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()?;
    let dims = tensor.shape.as_ref()?.dim.iter().map(|dim| match dim.value.as_ref()? {
        dimension::Value::DimValue(size) => usize::try_from(*size).ok().filter(|&size| size > 0),
        dimension::Value::DimParam(_) => None,
    });
    Some((DataType::try_from(tensor.elem_type).ok()?, dims.collect::<Option<_>>()?))
}

/// Tensors by name while the graph is read.
#[derive(Default)]
struct Names<'g, 'a> {
    around: Option<&'g Graph<'a>>,
    ids: HashMap<&'a str, ValueId>,
    values: Vec<Value<'a>>,
    captured: Vec<(ValueId, ValueId)>,
}

impl<'a> Names<'_, 'a> {
    /// Here, or in the graph around this one.
    fn find(&mut self, name: &'a str) -> Option<ValueId> {
        self.known(name).or_else(|| {
            let around = self.around?;
            let outer = *around.names.get(name)?;
            let constant = around.values[outer].constant.clone();
            let own = self.add(Value { constant, ..Value::named(name, None) });
            self.captured.push((own, outer));
            Some(own)
        })
    }

    fn known(&self, name: &str) -> Option<ValueId> {
        self.ids.get(name).copied()
    }

    fn value(&mut self, name: &str) -> &mut Value<'a> {
        let id = self.ids[name];
        &mut self.values[id]
    }

    fn produce(&mut self, name: &'a str, producer: Option<NodeId>) -> Result<ValueId, CompileError> {
        match self.ids.contains_key(name) {
            true => Err(CompileError::Twice { value: name.to_owned() }),
            false => Ok(self.add(Value::named(name, producer))),
        }
    }

    fn add(&mut self, value: Value<'a>) -> ValueId {
        let id = self.values.len();
        self.ids.insert(value.name, id);
        self.values.push(value);
        id
    }

    fn read(
        &mut self,
        name: &'a str,
        node: NodeId,
        proto: &NodeProto,
    ) -> Result<Option<ValueId>, CompileError> {
        if name.is_empty() {
            return Ok(None);
        }
        let missing = || CompileError::Missing { node: proto.name.clone(), value: name.to_owned() };
        let id = self.find(name).ok_or_else(missing)?;
        self.values[id].consumers.push(node);
        Ok(Some(id))
    }

    /// What a subgraph reads of the graph around it. `scopes` are the names that the subgraphs around it define.
    fn capture(
        &mut self,
        graph: &'a GraphProto,
        node: NodeId,
        captured: &mut Vec<ValueId>,
        scopes: &mut Vec<HashSet<&'a str>>,
    ) -> Result<(), CompileError> {
        if scopes.len() > DEPTH_MAX {
            return Err(CompileError::TooDeep { limit: DEPTH_MAX });
        }
        let inputs = graph.input.iter().map(|input| &input.name);
        let initialised = graph.initializer.iter().map(|tensor| &tensor.name);
        let made = graph.node.iter().flat_map(|node| &node.output);
        scopes.push(inputs.chain(initialised).chain(made).map(String::as_str).collect());
        let outputs = graph.output.iter().map(|output| &output.name);
        for name in graph.node.iter().flat_map(|node| &node.input).chain(outputs) {
            if !scopes.iter().any(|scope| scope.contains(name.as_str()))
                && let Some(id) = self.find(name)
            {
                self.values[id].consumers.push(node);
                captured.push(id);
            }
        }
        let attributes = graph.node.iter().flat_map(|node| &node.attribute);
        for inner in attributes.flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
            self.capture(inner, node, captured, scopes)?;
        }
        scopes.pop();
        Ok(())
    }
}

/// What a `Constant` node holds, if it is numbers.
fn constant_node<'a>(node: &Node<'a>) -> Option<Cow<'a, TensorProto>> {
    let [attribute] = node.proto.attribute.as_slice() else { return None };
    if node.op() != "Constant" {
        return None;
    }
    let kind = AttributeType::try_from(attribute.r#type).ok()?;
    let mut tensor = TensorProto { name: attribute.name.clone(), ..TensorProto::default() };
    match (attribute.name.as_str(), kind) {
        ("value", _) => return attribute.t.as_ref().map(Cow::Borrowed),
        ("value_float", AttributeType::Float) => tensor.float_data = vec![attribute.f],
        ("value_floats", AttributeType::Floats) => tensor.float_data = attribute.floats.clone(),
        ("value_int", AttributeType::Int) => tensor.int64_data = vec![attribute.i],
        ("value_ints", AttributeType::Ints) => tensor.int64_data = attribute.ints.clone(),
        _ => return None,
    }
    let floats = tensor.float_data.len();
    tensor.data_type = if floats > 0 { DataType::Float } else { DataType::Int64 } as i32;
    if attribute.name.ends_with('s') {
        tensor.dims = vec![(floats + tensor.int64_data.len()) as i64];
    }
    Some(Cow::Owned(tensor))
}

/// Kahn's algorithm, in the file's order where that is one.
fn order(nodes: &[Node<'_>], values: &[Value<'_>]) -> Result<Vec<NodeId>, CompileError> {
    let sources = |node: &Node<'_>| node.reads().filter(|&value| values[value].producer.is_some()).count();
    let mut waiting: Vec<usize> = nodes.iter().map(sources).collect();
    let mut order = Vec::with_capacity(nodes.len());
    let mut ready: std::collections::BTreeSet<NodeId> =
        (0..nodes.len()).filter(|&id| waiting[id] == 0).collect();
    while let Some(id) = ready.pop_first() {
        order.push(id);
        for &output in nodes[id].outputs.iter().flatten() {
            for &consumer in &values[output].consumers {
                waiting[consumer] -= 1;
                if waiting[consumer] == 0 {
                    ready.insert(consumer);
                }
            }
        }
    }
    match waiting.iter().position(|&count| count > 0) {
        Some(id) => Err(CompileError::Cycle { node: nodes[id].name() }),
        None => Ok(order),
    }
}
