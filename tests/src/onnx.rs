//! ONNX files written by hand, byte by byte, for graphs that no exporter would write.

/// Element types, by ONNX's numbers.
const FLOAT: u64 = 1;
const INT64: u64 = 7;

/// `y = f(x) ` for one float input and output of `shape`, with nodes and int64 constants between.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    nodes: Vec<u8>,
    constants: Vec<u8>,
}

impl Graph {
    /// An empty graph from `x` to `y`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `output = Cast(input)` to floats, or to 64-bit integers.
    pub fn cast(self, input: &str, output: &str, to_integers: bool) -> Self {
        let mut to = Vec::new();
        bytes(&mut to, 1, b"to");
        number(&mut to, 3, if to_integers { INT64 } else { FLOAT });
        number(&mut to, 20, 2);
        self.node_with("Cast", &[input], output, &to)
    }

    /// Adds `output = operator(inputs)`.
    pub fn node(self, operator: &str, inputs: &[&str], output: &str) -> Self {
        self.node_with(operator, inputs, output, &[])
    }

    fn node_with(mut self, operator: &str, inputs: &[&str], output: &str, attribute: &[u8]) -> Self {
        let mut node = Vec::new();
        inputs.iter().for_each(|input| bytes(&mut node, 1, input.as_bytes()));
        bytes(&mut node, 2, output.as_bytes());
        bytes(&mut node, 4, operator.as_bytes());
        if !attribute.is_empty() {
            bytes(&mut node, 5, attribute);
        }
        bytes(&mut self.nodes, 1, &node);
        self
    }

    /// Adds a constant list of integers.
    pub fn constant(mut self, name: &str, values: &[i64]) -> Self {
        let mut tensor = Vec::new();
        number(&mut tensor, 1, values.len() as u64);
        number(&mut tensor, 2, INT64);
        bytes(&mut tensor, 8, name.as_bytes());
        bytes(&mut tensor, 9, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
        bytes(&mut self.constants, 5, &tensor);
        self
    }

    /// The file, for float tensors `x` and `y` of this shape.
    pub fn file(&self, shape: &[u64]) -> Vec<u8> {
        let mut graph = self.nodes.clone();
        bytes(&mut graph, 2, b"by hand");
        graph.extend_from_slice(&self.constants);
        bytes(&mut graph, 11, &value("x", shape));
        bytes(&mut graph, 12, &value("y", shape));
        let mut opset = Vec::new();
        number(&mut opset, 2, 13);
        let mut model = Vec::new();
        number(&mut model, 1, 8);
        bytes(&mut model, 7, &graph);
        bytes(&mut model, 8, &opset);
        model
    }
}

fn value(name: &str, shape: &[u64]) -> Vec<u8> {
    let mut dims = Vec::new();
    for &extent in shape {
        let mut dim = Vec::new();
        number(&mut dim, 1, extent);
        bytes(&mut dims, 1, &dim);
    }
    let mut tensor = Vec::new();
    number(&mut tensor, 1, FLOAT);
    bytes(&mut tensor, 2, &dims);
    let mut kind = Vec::new();
    bytes(&mut kind, 1, &tensor);
    let mut value = Vec::new();
    bytes(&mut value, 1, name.as_bytes());
    bytes(&mut value, 2, &kind);
    value
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
