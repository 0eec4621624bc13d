//! Small ONNX models written by hand, for behaviour no trained model has: slow on demand, or crashing.

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, field: u64, value: u64) -> Message {
        self.raw_varint(field << 3);
        self.raw_varint(value);
        self
    }

    fn bytes(mut self, field: u64, bytes: impl AsRef<[u8]>) -> Message {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(bytes.as_ref().len() as u64);
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    fn message(self, field: u64, message: Message) -> Message {
        self.bytes(field, message.0)
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

const FLOAT: u64 = 1;
const INT64: u64 = 7;

fn value(name: &str, dtype: u64, shape: &[u64]) -> Message {
    let dims = shape
        .iter()
        .fold(Message::default(), |dims, dim| dims.message(1, Message::default().varint(1, *dim)));
    let tensor = Message::default().varint(1, dtype).message(2, dims);
    Message::default().bytes(1, name).message(2, Message::default().message(1, tensor))
}

fn node(operator: &str, inputs: &[&str], output: &str) -> Message {
    let inputs = inputs.iter().fold(Message::default(), |node, input| node.bytes(1, input));
    inputs.bytes(2, output).bytes(3, output).bytes(4, operator)
}

fn constant(name: &str, dtype: u64, shape: &[u64], raw: &[u8]) -> Message {
    let dims = shape.iter().fold(Message::default(), |tensor, dim| tensor.varint(1, *dim));
    dims.varint(2, dtype).bytes(8, name).bytes(9, raw)
}

fn model(nodes: Vec<Message>, constants: Vec<Message>, input: Message, output: Message) -> Vec<u8> {
    let graph =
        nodes.into_iter().fold(Message::default(), |graph, node| graph.message(1, node)).bytes(2, "g");
    let graph = constants.into_iter().fold(graph, |graph, constant| graph.message(5, constant));
    let graph = graph.message(11, input).message(12, output);
    let opset = Message::default().bytes(1, "").varint(2, 13);
    Message::default().varint(1, 8).message(7, graph).message(8, opset).0
}

/// `x: f32[n, n]` → x to the power of `2^multiplications`, by squaring: `2 n³` floating-point operations each.
pub(crate) fn squares(n: u64, multiplications: usize) -> Vec<u8> {
    let names: Vec<String> =
        (0..=multiplications).map(|i| if i == 0 { "x".into() } else { format!("y{i}") }).collect();
    let nodes = names.windows(2).map(|pair| node("MatMul", &[&pair[0], &pair[0]], &pair[1])).collect();
    model(nodes, vec![], value("x", FLOAT, &[n, n]), value(&names[multiplications], FLOAT, &[n, n]))
}

/// `index: i64[1]` → `table[index]` of four floats; an index beyond them is the request's crime and the model's end.
pub(crate) fn lookup() -> Vec<u8> {
    let table: Vec<u8> = [10_f32, 11., 12., 13.].iter().flat_map(|value| value.to_le_bytes()).collect();
    model(
        vec![node("Gather", &["table", "index"], "value")],
        vec![constant("table", FLOAT, &[4], &table)],
        value("index", INT64, &[1]),
        value("value", FLOAT, &[1]),
    )
}
