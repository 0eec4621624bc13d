//! From a file to programs.

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::pb::ModelProto;
use tractd_kernels::{Program, ProgramError, ProgramSpec, Tier};

use crate::fold::{Folded, fold};
use crate::graph::{Graph, NodeId};
use crate::lower::{Lowered, lower, names_are_free};
use crate::regions::{Regions, cut, drop_idle};
use crate::rewrite::{live_nodes, rewrite};
use crate::shapes::Shapes;
use crate::{CompileError, NodeReport, Place, Region, Report, Whole, fuse, macs, sound};

/// How often a graph is cut anew after the kernels refused a step. Each time at least one node goes to tract.
const ATTEMPTS_MAX: usize = 32;

/// How to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The kernels to pack for.
    pub tier: Tier,
}

impl Default for Options {
    fn default() -> Options {
        Options { tier: Tier::detect() }
    }
}

/// A compiled graph.
#[derive(Debug)]
pub struct Compiled {
    /// What is to be run.
    pub form: Form,
    /// What runs where.
    pub report: Report,
}

/// What is to be run.
#[derive(Debug)]
pub enum Form {
    /// The graph is one region: tract is not needed.
    Whole(Whole),
    /// A file for tract in which each region is one operator: read it with [`crate::register`] and [`crate::attach`].
    Mixed {
        /// The file.
        model: Box<ModelProto>,
        /// By index.
        regions: Vec<Arc<Region>>,
    },
    /// Nothing is for the kernels; tract runs the file as it is.
    Tract,
}

/// Takes the int8 regions off a graph and packs them. `shapes` are those of inputs the file leaves open, by name.
///
/// # Errors
/// [`CompileError`] when the file is wrong. What is merely beyond the kernels is left to tract, and the report says why.
pub fn compile(
    model: &ModelProto,
    shapes: &[(&str, &[usize])],
    options: &Options,
) -> Result<Compiled, CompileError> {
    compile_with_specs(model, shapes, options).map(|(compiled, _)| compiled)
}

/// And the descriptions of the regions' programs.
pub(crate) fn compile_with_specs(
    model: &ModelProto,
    shapes: &[(&str, &[usize])],
    options: &Options,
) -> Result<(Compiled, Vec<ProgramSpec<'static>>), CompileError> {
    let graph = Graph::new(model)?;
    let shapes = Shapes::new(&graph, shapes)?;
    sound::check(&graph, &shapes)?;
    let mut banned = HashMap::new();
    for _ in 0..ATTEMPTS_MAX {
        let cut = Cut::new(&graph, &shapes, &banned)?;
        match cut.pack(options.tier) {
            Ok(regions) => return Ok(cut.finish(model, &graph, &shapes, regions)),
            Err(refused) => banned.extend(refused),
        }
    }
    left_to_tract(model, &graph, &shapes, "the kernels refuse too much of this graph")
}

/// What [`compile`] gives where there are no kernels at all: for comparison.
///
/// # Errors
/// As [`compile`].
pub fn without_kernels(model: &ModelProto, shapes: &[(&str, &[usize])]) -> Result<Compiled, CompileError> {
    let graph = Graph::new(model)?;
    let shapes = Shapes::new(&graph, shapes)?;
    sound::check(&graph, &shapes)?;
    left_to_tract(model, &graph, &shapes, "the kernels are not to be used").map(|(compiled, _)| compiled)
}

fn left_to_tract(
    model: &ModelProto,
    graph: &Graph<'_>,
    shapes: &Shapes,
    why: &str,
) -> Result<(Compiled, Vec<ProgramSpec<'static>>), CompileError> {
    let all = (0..graph.nodes.len()).map(|id| (id, why.to_owned()));
    let cut = Cut::new(graph, shapes, &all.collect())?;
    Ok(cut.finish(model, graph, shapes, vec![]))
}

/// A graph cut into regions.
struct Cut {
    folded: Folded,
    regions: Regions,
    /// Where ops went in fusion.
    moved: Vec<usize>,
    lowered: Vec<(usize, Lowered)>,
}

impl Cut {
    fn new(
        graph: &Graph<'_>,
        shapes: &Shapes,
        banned: &HashMap<NodeId, String>,
    ) -> Result<Cut, CompileError> {
        let mut folded = fold(graph, shapes, banned)?;
        drop_idle(graph, &mut folded);
        let regions = cut(graph, &folded);
        let mut wanted = vec![false; folded.ir.buffers.len()];
        for fact in regions.exports.iter().filter_map(|&value| folded.facts[value].as_ref()) {
            if let crate::fold::Fact::Integer(tensor) | crate::fold::Fact::Real(tensor, _) = fact {
                wanted[tensor.buffer.0] = true;
            }
        }
        regions.crossings.iter().for_each(|buffer| wanted[buffer.0] = true);
        let moved = fuse::fuse(&mut folded.ir, &regions.op_levels, &wanted);
        let lower =
            |level| lower(graph, &folded.ir, &folded.facts, &regions, level).map(|region| (level, region));
        let lowered =
            if names_are_free(graph) { (0..regions.levels()).filter_map(lower).collect() } else { vec![] };
        Ok(Cut { folded, regions, moved, lowered })
    }

    /// The nodes not to take next time, if the kernels refuse anything.
    fn pack(&self, tier: Tier) -> Result<Vec<Program>, HashMap<NodeId, String>> {
        let mut programs = Vec::with_capacity(self.lowered.len());
        let mut refused = HashMap::new();
        for (_, region) in &self.lowered {
            match Program::new(&region.spec, tier) {
                Ok(program) => programs.push(program),
                Err(error) => refused.extend(self.refused(region, &error)),
            }
        }
        if refused.is_empty() { Ok(programs) } else { Err(refused) }
    }

    fn refused(&self, region: &Lowered, error: &ProgramError) -> HashMap<NodeId, String> {
        let why = match error {
            ProgramError::Step { reason, .. } => format!("the kernels refuse it: {reason}"),
            other => format!("the kernels refuse its region: {other}"),
        };
        let of = |ops: &[usize]| -> HashMap<NodeId, String> {
            let here = |home: &Option<usize>| home.is_some_and(|op| ops.contains(&self.moved[op]));
            let nodes = self.folded.homes.iter().enumerate().filter(|(_, home)| here(home)).map(|(id, _)| id);
            let own = ops.iter().flat_map(|&op| self.folded.ir.ops[op].nodes.iter().copied());
            nodes.chain(own).map(|id| (id, why.clone())).collect()
        };
        let step = match error {
            ProgramError::Step { step, .. } => region.ops.get(*step).copied(),
            _ => None,
        };
        let nodes = step.map(|op| of(&[op])).unwrap_or_default();
        if nodes.is_empty() { of(&region.ops) } else { nodes }
    }

    fn finish(
        self,
        model: &ModelProto,
        graph: &Graph<'_>,
        shapes: &Shapes,
        programs: Vec<Program>,
    ) -> (Compiled, Vec<ProgramSpec<'static>>) {
        let Cut { folded, regions, moved, lowered } = self;
        let mut steps: HashMap<usize, Place> = HashMap::new();
        let mut packed = Vec::with_capacity(lowered.len());
        let mut specs = Vec::with_capacity(lowered.len());
        for (index, ((level, region), program)) in lowered.into_iter().zip(programs).enumerate() {
            for (step, &op) in region.ops.iter().enumerate() {
                steps.entry(op).or_insert(Place::Int8 { region: index, step });
            }
            packed.push((level, Arc::new(Region::new(program, region.feeds, region.outputs))));
            specs.push(region.spec);
        }
        // Without any region, nothing is taken.
        let taken: Vec<bool> = folded.homes.iter().map(|home| home.is_some() && !packed.is_empty()).collect();
        let inputs: Vec<_> = packed.iter().flat_map(|(_, region)| region.inputs()).collect();
        let live = live_nodes(graph, &taken, &inputs);
        let place = |id: NodeId| match folded.homes[id] {
            _ if live[id] || packed.is_empty() => Place::Tract,
            Some(op) => steps.get(&moved[op]).copied().unwrap_or(Place::Folded),
            None => Place::Folded,
        };
        let report = report(graph, shapes, place, &folded.whys);
        let form = match packed.as_slice() {
            [] => Form::Tract,
            [(_, region)] if !live.contains(&true) && whole(graph, region).is_some() => {
                whole(graph, region).map_or(Form::Tract, Form::Whole)
            }
            _ => {
                let parts: Vec<_> = packed.iter().map(|(level, region)| (*level, &**region)).collect();
                let model = rewrite(model, graph, &live, &regions.node_levels, &parts);
                Form::Mixed {
                    model: Box::new(model),
                    regions: packed.into_iter().map(|(_, region)| region).collect(),
                }
            }
        };
        (Compiled { form, report }, specs)
    }
}

fn whole(graph: &Graph<'_>, region: &Arc<Region>) -> Option<Whole> {
    let inputs: Vec<&str> = graph.inputs.iter().map(|(value, _)| graph.values[*value].name).collect();
    let outputs: Vec<&str> = graph.outputs.iter().map(|&value| graph.values[value].name).collect();
    Whole::new(region, &inputs, &outputs)
}

fn report(graph: &Graph<'_>, shapes: &Shapes, place: impl Fn(NodeId) -> Place, whys: &[String]) -> Report {
    let mut report = Report::default();
    for (id, node) in graph.nodes.iter().enumerate() {
        let place = place(id);
        let macs = macs::of(node, shapes);
        report.total_macs = report.total_macs.saturating_add(macs);
        if place != Place::Tract {
            report.int8_macs = report.int8_macs.saturating_add(macs);
        }
        let why = if place == Place::Tract { whys[id].clone() } else { String::new() };
        report.nodes.push(NodeReport { name: node.name(), op: node.operator(), place, why });
    }
    report
}
