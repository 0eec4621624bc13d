//! Reads `models/boundaries.cases`.

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
    let mut part = || {
        let (length, rest) = file.split_first_chunk::<4>()?;
        let (part, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        file = rest;
        Some(part)
    };
    let mut graphs = vec![];
    while let Some(name) = part() {
        let name = std::str::from_utf8(name).unwrap();
        let [model, inputs, outputs] = std::array::from_fn(|_| part().unwrap());
        graphs.push(Recorded { name, model, inputs, outputs });
    }
    graphs
}
