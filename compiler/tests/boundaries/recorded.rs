//! Reads `models/boundaries.cases`.

#[path = "../models/part.rs"]
mod part;

use part::part;

/// One of the graphs and what ONNX Runtime makes of it.
pub(crate) struct Recorded<'f> {
    /// Of the test and the how manieth of its graphs.
    pub(crate) name: &'f str,
    pub(crate) model: &'f [u8],
    /// Tensors in the graph's order, one after the other.
    pub(crate) inputs: &'f [u8],
    /// As the inputs; none where ONNX Runtime refuses the graph.
    pub(crate) outputs: &'f [u8],
}

pub(crate) fn graphs() -> Vec<Recorded<'static>> {
    let mut file: &[u8] = include_bytes!("../models/boundaries.cases");
    let mut graphs = vec![];
    while !file.is_empty() {
        let name = std::str::from_utf8(part(&mut file)).unwrap();
        let [model, inputs, outputs] = std::array::from_fn(|_| part(&mut file));
        graphs.push(Recorded { name, model, inputs, outputs });
    }
    graphs
}
