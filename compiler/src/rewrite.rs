//! The file as tract gets to see it: what is left of it, and a node per region.

use std::collections::HashSet;

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

use crate::graph::{Graph, NodeId};
use crate::op::{DOMAIN, INDEX, OPERATOR};
use crate::{Port, Region};

/// Nodes left to tract that anything still reads. `levels` are those of regions and of nodes, by node.
pub(crate) fn live_nodes(graph: &Graph<'_>, taken: &[bool], region_inputs: &[&Port]) -> Vec<bool> {
    let mut wanted: HashSet<&str> = region_inputs.iter().map(|port| port.name.as_str()).collect();
    let mut live = vec![false; graph.nodes.len()];
    for &id in graph.order.iter().rev() {
        let node = &graph.nodes[id];
        let read =
            |&value: &usize| graph.values[value].is_output || wanted.contains(graph.values[value].name);
        if !taken[id] && node.outputs.iter().flatten().any(read) {
            live[id] = true;
            wanted.extend(node.reads().map(|value| graph.values[value].name));
        }
    }
    live
}

/// `regions` with the level of each.
pub(crate) fn rewrite(
    model: &ModelProto,
    graph: &Graph<'_>,
    live: &[bool],
    node_levels: &[usize],
    regions: &[(usize, &Region)],
) -> ModelProto {
    let mut nodes: Vec<NodeProto> = Vec::new();
    let last = node_levels.iter().copied().chain(regions.iter().map(|(level, _)| *level)).max().unwrap_or(0);
    for level in 0..=last {
        let here = regions.iter().enumerate().filter(|(_, (of, _))| *of == level);
        nodes.extend(here.map(|(index, (_, region))| region_node(index, region)));
        let left = |&&id: &&NodeId| live[id] && node_levels[id] == level;
        nodes.extend(graph.order.iter().filter(left).map(|&id| graph.nodes[id].proto.clone()));
    }
    let mut read: HashSet<&str> = graph.proto.output.iter().map(|output| output.name.as_str()).collect();
    let kept = (0..graph.nodes.len()).filter(|&id| live[id]);
    read.extend(kept.flat_map(|id| graph.nodes[id].reads()).map(|value| graph.values[value].name));
    read.extend(regions.iter().flat_map(|(_, region)| region.inputs()).map(|port| port.name.as_str()));
    let initializer = graph.proto.initializer.iter().filter(|tensor| read.contains(tensor.name.as_str()));
    let graph = GraphProto {
        node: nodes,
        name: graph.proto.name.clone(),
        initializer: initializer.cloned().collect(),
        sparse_initializer: graph.proto.sparse_initializer.clone(),
        input: graph.proto.input.clone(),
        output: graph.proto.output.clone(),
        ..GraphProto::default()
    };
    let own = OperatorSetIdProto { domain: DOMAIN.to_owned(), version: 1 };
    ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opset_import.iter().cloned().chain([own]).collect(),
        functions: model.functions.clone(),
        graph: Some(graph),
        ..ModelProto::default()
    }
}

fn region_node(index: usize, region: &Region) -> NodeProto {
    let names = |ports: &[Port]| ports.iter().map(|port| port.name.clone()).collect();
    NodeProto {
        name: format!("tractd-region-{index}"),
        op_type: OPERATOR.to_owned(),
        domain: DOMAIN.to_owned(),
        input: names(region.inputs()),
        output: names(region.outputs()),
        attribute: vec![AttributeProto {
            name: INDEX.to_owned(),
            r#type: AttributeType::Int as i32,
            i: index as i64,
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    }
}
