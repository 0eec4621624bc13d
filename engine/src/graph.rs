//! The ONNX file read, checked and parsed; not yet made for any shapes.

use prost::Message;
use tract_onnx::Onnx;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto};
use tract_onnx::prelude::*;
use tractd_bundle::{Manifest, OutputSpec};
use tractd_compiler::{CompileError, Compiled, Form, Options, Region, Report, Tier, Whole};

use crate::LoadError;
use crate::cache::{Cache, Entry};
use crate::convert::to_tract;
use crate::exec::Executable;
use crate::guard;
use crate::interface::{self, Interface};

/// Subgraphs within subgraphs that are looked into; the bundle refuses deeper ones before.
const DEPTH_MAX: usize = 64;

/// Characters of tract's own words in an error.
const MESSAGE_LEN_MAX: usize = 400;

/// ONNX Runtime's own operators that tract implements with the meaning they have there. Its register goes by
/// name alone, so an operator of another domain that shares a name would be computed as something else:
/// `com.microsoft.Attention` has other inputs than ONNX's.
const MICROSOFT: [&str; 12] = [
    "BiasGelu",
    "DequantizeLinear",
    "FastGelu",
    "GatherBlockQuantized",
    "Gelu",
    "GroupQueryAttention",
    "MatMulNBits",
    "MultiHeadAttention",
    "QuantizeLinear",
    "QuickGelu",
    "RotaryEmbedding",
    "SkipLayerNormalization",
];

/// A model ready to be made for given shapes.
pub(crate) struct Graph {
    proto: ModelProto,
    interface: Interface,
    /// `None` where tract is to run it all.
    tier: Option<Tier>,
    pub(crate) weight_bytes: u64,
}

impl Graph {
    /// Reads `model.onnx`; with a manifest, its word on the interface holds and must fit the graph.
    pub(crate) fn read(
        file: &[u8],
        manifest: Option<&Manifest>,
        labels: usize,
        tier: Option<Tier>,
    ) -> Result<(Graph, Interface), LoadError> {
        let onnx = onnx();
        let proto = onnx
            .proto_model_for_read(&mut &*file)
            .map_err(|error| LoadError::NotOnnx(error.root_cause().to_string()))?;
        let graph = proto.graph.as_ref().ok_or_else(|| LoadError::NotOnnx("it has no graph".to_owned()))?;
        let weight_bytes = graph.initializer.iter().map(tensor_bytes).sum();
        let interface = interface_of(graph, manifest, labels)?;
        Ok((Graph { interface: interface.clone(), tier, weight_bytes, proto }, interface))
    }

    /// What [`Graph::prepare_and_store`] kept, if all of it is sound.
    pub(crate) fn restore(
        entry: &Entry<'_>,
        manifest: Option<&Manifest>,
        labels: usize,
        tier: Tier,
    ) -> Option<(Graph, Interface, Executable)> {
        let proto = ModelProto::decode(entry.interface).ok()?;
        let interface = interface_of(proto.graph.as_ref()?, manifest, labels).ok()?;
        let compiled = tractd_compiler::restore(entry.compiled, tier)?;
        let Form::Whole(whole) = compiled.form else { return None };
        let (tier, weight_bytes) = (Some(tier), entry.weight_bytes);
        let graph = Graph { interface: interface.clone(), tier, weight_bytes, proto };
        let executable = graph.whole(whole, compiled.report).ok()?;
        Some((graph, interface, executable))
    }

    /// Makes the graph for inputs of `shapes`, in the order of the specs. Slow: this is where all the
    /// optimising happens.
    pub(crate) fn prepare(&self, shapes: &[Vec<u32>]) -> Result<Executable, LoadError> {
        let sizes = sizes(shapes);
        let compiled = match self.tier {
            Some(tier) => tractd_compiler::compile(&self.proto, &self.named(&sizes), &Options { tier }),
            None => tractd_compiler::without_kernels(&self.proto, &self.named(&sizes)),
        };
        self.executable(compiled.map_err(refused)?, &sizes)
    }

    /// As [`Graph::prepare`], and keeps in `cache` what [`Graph::restore`] makes the same of, where that is possible.
    pub(crate) fn prepare_and_store(
        &self,
        shapes: &[Vec<u32>],
        cache: &Cache<'_>,
    ) -> Result<Executable, LoadError> {
        let sizes = sizes(shapes);
        let options = Options { tier: cache.tier() };
        let (compiled, stored) =
            tractd_compiler::compile_and_store(&self.proto, &self.named(&sizes), &options)
                .map_err(refused)?;
        if let Some(stored) = stored {
            let interface = self.declarations()?.encode_to_vec();
            let entry = Entry { interface: &interface, weight_bytes: self.weight_bytes, compiled: &stored };
            // A cache that cannot be written is none.
            _ = cache.write(&entry);
        }
        self.executable(compiled, &sizes)
    }

    /// The file without what computes.
    fn declarations(&self) -> Result<ModelProto, LoadError> {
        let graph = self.proto.graph.as_ref().ok_or_else(lost)?;
        let input = interface::graph_inputs(graph).cloned().collect();
        let graph = GraphProto { input, output: graph.output.clone(), ..GraphProto::default() };
        Ok(ModelProto { graph: Some(graph), ..ModelProto::default() })
    }

    fn named<'a>(&'a self, sizes: &'a [Vec<usize>]) -> Vec<(&'a str, &'a [usize])> {
        let names = self.interface.inputs.iter().map(|input| input.tensor.name.as_str());
        names.zip(sizes.iter().map(Vec::as_slice)).collect()
    }

    fn executable(&self, compiled: Compiled, sizes: &[Vec<usize>]) -> Result<Executable, LoadError> {
        match compiled.form {
            Form::Whole(whole) => self.whole(whole, compiled.report),
            Form::Mixed { model, regions } => self.on_tract(&model, &regions, sizes, compiled.report),
            Form::Tract => self.on_tract(&self.proto, &[], sizes, compiled.report),
        }
    }

    fn whole(&self, whole: Whole, report: Report) -> Result<Executable, LoadError> {
        let graph = self.proto.graph.as_ref().ok_or_else(lost)?;
        let inputs = &self.interface.inputs;
        let given = interface::graph_inputs(graph)
            .map(|input| inputs.iter().position(|spec| spec.tensor.name == input.name))
            .collect::<Option<Vec<_>>>();
        let made = (self.interface.outputs.iter())
            .map(|spec| graph.output.iter().position(|output| output.name == spec.tensor.name))
            .collect::<Option<Vec<_>>>();
        Executable::int8(whole, given.ok_or_else(lost)?, made.ok_or_else(lost)?, report).map_err(not_sound)
    }

    fn on_tract(
        &self,
        proto: &ModelProto,
        regions: &[Arc<Region>],
        shapes: &[Vec<usize>],
        report: Report,
    ) -> Result<Executable, LoadError> {
        let onnx = onnx();
        let graph = proto.graph.as_ref().ok_or_else(lost)?;
        check_operators(&onnx, graph, 0)?;
        let mut model = parse(&onnx, proto, graph, &self.interface)?;
        tractd_compiler::attach(&mut model, regions).map_err(not_sound)?;
        for (index, (input, shape)) in self.interface.inputs.iter().zip(shapes).enumerate() {
            let shape: TVec<usize> = shape.iter().copied().collect();
            let fact = InferenceFact::dt_shape(to_tract(input.tensor.dtype), shape);
            model.set_input_fact(index, fact).map_err(not_sound)?;
        }
        Executable::on_tract(model, report).map_err(not_sound)
    }
}

fn interface_of(
    graph: &GraphProto,
    manifest: Option<&Manifest>,
    labels: usize,
) -> Result<Interface, LoadError> {
    match manifest {
        Some(manifest) => interface::from_manifest(manifest, graph),
        None => interface::from_graph(graph, labels),
    }
}

fn sizes(shapes: &[Vec<u32>]) -> Vec<Vec<usize>> {
    shapes.iter().map(|shape| shape.iter().map(|&dim| dim as usize).collect()).collect()
}

fn refused(error: CompileError) -> LoadError {
    LoadError::Graph(error.to_string())
}

fn lost() -> LoadError {
    LoadError::Graph("an input or output of the graph got lost while reading it".to_owned())
}

/// Tract's reader, guarded, and deaf to what a graph claims of its own intermediate tensors: claims made for
/// other shapes than ours fail the analysis, and an i64 input among them loses its type.
fn onnx() -> Onnx {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    guard::install(&mut onnx.op_register);
    tractd_compiler::register(&mut onnx.op_register);
    onnx
}

fn parse(
    onnx: &Onnx,
    proto: &ModelProto,
    graph: &GraphProto,
    interface: &Interface,
) -> Result<InferenceModel, LoadError> {
    let mut model = onnx.model_for_proto_model(proto).map_err(not_sound)?;
    // Random operators without a seed get one: the same input gives the same bytes.
    Onnx::determinize(&mut model).map_err(not_sound)?;
    let outlets = |all: &[OutletId], names: Vec<&str>, wanted: Vec<&str>| -> Option<Vec<OutletId>> {
        wanted.iter().map(|want| all.get(names.iter().position(|name| name == want)?).copied()).collect()
    };

    let wanted = interface.inputs.iter().map(|input| input.tensor.name.as_str()).collect();
    let names = interface::graph_inputs(graph).map(|input| input.name.as_str()).collect();
    let inputs = outlets(model.input_outlets().map_err(not_sound)?, names, wanted).ok_or_else(lost)?;
    model.set_input_outlets(&inputs).map_err(not_sound)?;

    let wanted = interface.outputs.iter().map(|output: &OutputSpec| output.tensor.name.as_str()).collect();
    let names = graph.output.iter().map(|output| output.name.as_str()).collect();
    let outputs = outlets(model.output_outlets().map_err(not_sound)?, names, wanted).ok_or_else(lost)?;
    model.select_output_outlets(&outputs).map_err(not_sound)?;
    Ok(model)
}

fn check_operators(onnx: &Onnx, graph: &GraphProto, depth: usize) -> Result<(), LoadError> {
    if depth > DEPTH_MAX {
        return Err(LoadError::Graph(format!("subgraphs are nested deeper than {DEPTH_MAX} levels")));
    }
    for node in &graph.node {
        if !is_supported(onnx, node) {
            return Err(unsupported(node));
        }
        for attribute in &node.attribute {
            for inner in attribute.g.iter().chain(&attribute.graphs) {
                check_operators(onnx, inner, depth + 1)?;
            }
        }
    }
    Ok(())
}

fn is_supported(onnx: &Onnx, node: &NodeProto) -> bool {
    let meant = match node.domain.as_str() {
        "" | "ai.onnx" | "ai.onnx.ml" => true,
        "com.microsoft" => MICROSOFT.contains(&node.op_type.as_str()),
        tractd_compiler::DOMAIN => node.op_type == tractd_compiler::OPERATOR,
        _ => false,
    };
    meant && onnx.op_register.0.contains_key(&node.op_type)
}

fn unsupported(node: &NodeProto) -> LoadError {
    let operator = match node.domain.as_str() {
        "" => node.op_type.clone(),
        domain => format!("{domain}.{}", node.op_type),
    };
    let hint = if node.domain == "com.microsoft" && node.op_type.starts_with("QLinear") {
        ": quantise the model in QDQ form instead (quant_format=QuantFormat.QDQ)"
    } else {
        ""
    };
    let node = if node.name.is_empty() { node.output.first().cloned() } else { Some(node.name.clone()) };
    LoadError::UnsupportedOperator { operator, node: node.unwrap_or_default(), hint }
}

/// As the file has it: elements times their size, whatever field they are kept in.
fn tensor_bytes(tensor: &TensorProto) -> u64 {
    let size = interface::dtype(tensor.data_type).map_or(0, |dtype| dtype.size() as u64);
    tensor.dims.iter().fold(size, |bytes, &dim| bytes.saturating_mul(u64::try_from(dim).unwrap_or(0)))
}

fn not_sound(error: TractError) -> LoadError {
    // The whole chain: tract's outermost context alone only says which pass it was in. Cut, because some of
    // its messages hold whole nodes.
    LoadError::Graph(format!("{error:#}").chars().take(MESSAGE_LEN_MAX).collect())
}
