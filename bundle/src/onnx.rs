//! The one thing the bundle must know about ONNX: whether all of the model is in its file.
//!
//! A tensor may point at another file (`external_data`). That path is the model author's, and has led out of
//! the model's folder before (CVE-2026-55832); it also escapes the digest. So such models are refused whole.
//! The walk reads protobuf's wire format directly: field numbers are from `onnx.proto`.

/// Why a model file is refused before any engine sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelFileError {
    /// Not protobuf, or cut off.
    #[error("model.onnx is not an ONNX file, or is cut off")]
    NotOnnx,
    /// Weights in another file.
    #[error("model.onnx keeps tensor data in another file; save it again as one file (external data off)")]
    ExternalData,
    /// Subgraphs within subgraphs.
    #[error("model.onnx nests subgraphs deeper than {DEPTH_MAX} levels")]
    TooDeep,
}

/// Messages within messages. Each subgraph adds three; real models stay below ten; a stack overflow is what
/// this stops.
const DEPTH_MAX: usize = 64;

/// Checks that `model` holds all its data itself.
pub(crate) fn check_self_contained(model: &[u8]) -> Result<(), ModelFileError> {
    let mut has_graph = false;
    walk(model, Message::Model, 0, &mut has_graph)?;
    if has_graph { Ok(()) } else { Err(ModelFileError::NotOnnx) }
}

#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    Function,
    Training,
}

impl Message {
    /// The message a length-delimited field holds, if it can lead to a tensor.
    fn child(self, field: u64) -> Option<Message> {
        match (self, field) {
            (Message::Model, 7) => Some(Message::Graph),
            (Message::Model, 20) => Some(Message::Training),
            (Message::Model, 25) => Some(Message::Function),
            (Message::Training, 1 | 2) => Some(Message::Graph),
            (Message::Function, 7) => Some(Message::Node),
            (Message::Function, 11) => Some(Message::Attribute),
            (Message::Graph, 1) => Some(Message::Node),
            (Message::Graph, 5) => Some(Message::Tensor),
            (Message::Graph, 15) => Some(Message::SparseTensor),
            (Message::Node, 5) => Some(Message::Attribute),
            (Message::Attribute, 5 | 10) => Some(Message::Tensor),
            (Message::Attribute, 6 | 11) => Some(Message::Graph),
            (Message::Attribute, 22 | 23) => Some(Message::SparseTensor),
            (Message::SparseTensor, 1 | 2) => Some(Message::Tensor),
            _ => None,
        }
    }
}

const TENSOR_EXTERNAL_DATA: u64 = 13;
const TENSOR_DATA_LOCATION: u64 = 14;

fn walk(
    mut bytes: &[u8],
    message: Message,
    depth: usize,
    has_graph: &mut bool,
) -> Result<(), ModelFileError> {
    if depth > DEPTH_MAX {
        return Err(ModelFileError::TooDeep);
    }
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let (field, wire_type) = (tag >> 3, tag & 7);
        let is_tensor = matches!(message, Message::Tensor);
        match wire_type {
            0 => {
                let value = varint(&mut bytes)?;
                if is_tensor && field == TENSOR_DATA_LOCATION && value != 0 {
                    return Err(ModelFileError::ExternalData);
                }
            }
            1 => _ = take(&mut bytes, 8)?,
            2 => {
                let len = varint(&mut bytes)?;
                let inner = take(&mut bytes, len)?;
                if is_tensor && field == TENSOR_EXTERNAL_DATA {
                    return Err(ModelFileError::ExternalData);
                }
                if let Some(child) = message.child(field) {
                    *has_graph |= matches!(message, Message::Model) && matches!(child, Message::Graph);
                    walk(inner, child, depth + 1, has_graph)?;
                }
            }
            5 => _ = take(&mut bytes, 4)?,
            // Groups are long gone from protobuf and never were in ONNX.
            _ => return Err(ModelFileError::NotOnnx),
        }
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, ModelFileError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(ModelFileError::NotOnnx)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ModelFileError::NotOnnx)
}

fn take<'a>(bytes: &mut &'a [u8], len: u64) -> Result<&'a [u8], ModelFileError> {
    let len = usize::try_from(len).map_err(|_| ModelFileError::NotOnnx)?;
    let (taken, rest) = bytes.split_at_checked(len).ok_or(ModelFileError::NotOnnx)?;
    *bytes = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length-delimited field with a number below 16 and fewer than 128 bytes, which is all this needs.
    fn field(number: u8, inner: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, inner.len() as u8], inner].concat()
    }

    #[test]
    fn external_data_is_found_wherever_a_tensor_can_be() {
        let check = |model: Vec<u8>, expected| assert_eq!(check_self_contained(&model), expected);
        let plain = field(8, b"w");
        let external = field(13, b"x");
        let located = vec![14 << 3, 1];
        let graph = |tensor: &[u8]| field(7, &field(5, tensor));
        check(graph(&plain), Ok(()));
        check(graph(&[14 << 3, 0]), Ok(()));
        check(graph(&external), Err(ModelFileError::ExternalData));
        check(graph(&located), Err(ModelFileError::ExternalData));
        // In a Constant node's attribute, and in the branch of an If.
        check(field(7, &field(1, &field(5, &field(5, &external)))), Err(ModelFileError::ExternalData));
        check(
            field(7, &field(1, &field(5, &field(6, &field(5, &located))))),
            Err(ModelFileError::ExternalData),
        );
    }

    #[test]
    fn what_is_not_onnx() {
        let check = |model: &[u8], expected| assert_eq!(check_self_contained(model), Err(expected));
        check(b"", ModelFileError::NotOnnx);
        check(b"not a model", ModelFileError::NotOnnx);
        check(&[7 << 3 | 2, 100, 1], ModelFileError::NotOnnx);
        check(&[0xff; 11], ModelFileError::NotOnnx);
        // A length near 2^64 must not wrap.
        check(&[7 << 3 | 2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], ModelFileError::NotOnnx);
    }

    #[test]
    fn nesting_ends() {
        // graph > node > attribute > graph …, built inside out with two-byte lengths.
        let wrap = |number: u8, inner: Vec<u8>| {
            let (low, high) = ((inner.len() & 0x7f) as u8 | 0x80, (inner.len() >> 7) as u8);
            [vec![number << 3 | 2, low, high], inner].concat()
        };
        let mut model = Vec::new();
        for _ in 0..40 {
            model = wrap(1, wrap(5, wrap(6, model)));
        }
        assert_eq!(check_self_contained(&wrap(7, model)), Err(ModelFileError::TooDeep));
    }
}
