//! What runs where, for people.

use serde::{Deserialize, Serialize};

/// Where each node went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In the order of the file.
    pub nodes: Vec<NodeReport>,
    /// Multiply-accumulates of convolutions and dense layers in regions.
    pub int8_macs: u64,
    /// Of all convolutions and dense layers whose shapes are known.
    pub total_macs: u64,
}

/// Where one node went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name, or its first output's.
    pub name: String,
    /// Its operator, with the domain where that is not ONNX's own.
    pub op: String,
    /// What runs it.
    pub place: Place,
    /// Why it is there, where that is not plain.
    pub why: String,
}

/// What runs a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// A step of a region's program.
    Int8 {
        /// Index of the region.
        region: usize,
        /// Index of the step that holds the node's result.
        step: usize,
    },
    /// Folded away at load: a constant, or what only region nodes read.
    Folded,
    /// Tract.
    Tract,
}

impl Report {
    /// Nodes left to tract.
    pub fn outside(&self) -> impl Iterator<Item = &NodeReport> {
        self.nodes.iter().filter(|node| node.place == Place::Tract)
    }
}
