//! The one thing the bundle must know about ONNX: whether all of the model is in its file.
//!
//! A tensor may point at another file (`external_data`). That path is the model author's, and has led out of
//! the model's folder before (CVE-2026-55832); it also escapes the digest. So such models are refused whole.
//! The walk reads protobuf's wire format directly, and in pieces, so that a model needs not be in memory to be checked:
//! field numbers are from `onnx.proto`.

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

/// Messages within messages. Each subgraph adds three; real models stay below ten. Those that read the whole file later
/// go into each by a call.
const DEPTH_MAX: usize = 64;

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

/// Checks that a model holds all its data itself, while it is read.
pub(crate) struct SelfContained {
    /// The messages around what comes next, and where each ends, in bytes from the file's first.
    open: Vec<(Message, u64)>,
    /// Bytes seen.
    at: u64,
    next: Next,
    has_graph: bool,
    /// What was found first ends the check.
    found: Result<(), ModelFileError>,
}

#[derive(Clone, Copy)]
enum Next {
    /// A number, as far as it was read: its bits, and how many.
    Varint(Meaning, u64, u32),
    /// So many bytes that are not looked at.
    Skipped(u64),
}

/// What a number says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Which field follows, and of which kind.
    Tag,
    /// This field's value.
    Value(u64),
    /// This field's length.
    Length(u64),
}

impl Next {
    const TAG: Next = Next::Varint(Meaning::Tag, 0, 0);
}

impl SelfContained {
    /// For a file of `size` bytes.
    pub(crate) fn new(size: u64) -> SelfContained {
        let open = vec![(Message::Model, size)];
        SelfContained { open, at: 0, next: Next::TAG, has_graph: false, found: Ok(()) }
    }

    /// Takes the file's next bytes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while self.found.is_ok() && !bytes.is_empty() {
            self.found = self.step(&mut bytes);
        }
    }

    /// What is wrong with the file, all of which was fed.
    pub(crate) fn finish(mut self) -> Result<(), ModelFileError> {
        std::mem::replace(&mut self.found, Ok(()))?;
        self.leave();
        let ended = self.open.len() == 1
            && self.at == self.open[0].1
            && matches!(self.next, Next::Varint(Meaning::Tag, _, 0));
        if ended && self.has_graph { Ok(()) } else { Err(ModelFileError::NotOnnx) }
    }

    /// Out of the messages that end here.
    fn leave(&mut self) {
        while self.open.len() > 1 && self.open.last().is_some_and(|&(_, end)| end == self.at) {
            self.open.pop();
        }
    }

    fn step(&mut self, bytes: &mut &[u8]) -> Result<(), ModelFileError> {
        match self.next {
            Next::Skipped(left) => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                *bytes = &bytes[here..];
                self.at += here as u64;
                self.skip(left - here as u64);
                Ok(())
            }
            Next::Varint(meaning, value, shift) => {
                if meaning == Meaning::Tag && shift == 0 {
                    self.leave();
                }
                // Also a number that its message's end cuts off.
                self.left(1)?;
                let (&byte, rest) = bytes.split_first().ok_or(ModelFileError::NotOnnx)?;
                *bytes = rest;
                self.at += 1;
                let value = value | u64::from(byte & 0x7f) << shift;
                self.next = match (byte & 0x80, shift + 7) {
                    (0, _) => return self.read(meaning, value),
                    (_, shift @ ..64) => Next::Varint(meaning, value, shift),
                    _ => return Err(ModelFileError::NotOnnx),
                };
                Ok(())
            }
        }
    }

    /// Goes on behind a number.
    fn read(&mut self, meaning: Meaning, value: u64) -> Result<(), ModelFileError> {
        self.next = Next::TAG;
        let (message, _) = self.here();
        let is_tensor = matches!(message, Message::Tensor);
        match meaning {
            Meaning::Tag => match (value >> 3, value & 7) {
                (field, 0) => self.next = Next::Varint(Meaning::Value(field), 0, 0),
                (_, 1) => self.left(8).map(|()| self.skip(8))?,
                (field, 2) => self.next = Next::Varint(Meaning::Length(field), 0, 0),
                (_, 5) => self.left(4).map(|()| self.skip(4))?,
                // Groups are long gone from protobuf and never were in ONNX.
                _ => return Err(ModelFileError::NotOnnx),
            },
            Meaning::Value(TENSOR_DATA_LOCATION) if is_tensor && value != 0 => {
                return Err(ModelFileError::ExternalData);
            }
            Meaning::Value(_) => {}
            Meaning::Length(field) => {
                self.left(value)?;
                if is_tensor && field == TENSOR_EXTERNAL_DATA {
                    return Err(ModelFileError::ExternalData);
                }
                let Some(child) = message.child(field) else {
                    self.skip(value);
                    return Ok(());
                };
                self.has_graph |= matches!((message, child), (Message::Model, Message::Graph));
                if self.open.len() > DEPTH_MAX {
                    return Err(ModelFileError::TooDeep);
                }
                self.open.push((child, self.at + value));
            }
        }
        Ok(())
    }

    fn here(&self) -> (Message, u64) {
        *self.open.last().expect("the model itself is never left")
    }

    /// Whether the message goes on for so many bytes.
    fn left(&self, bytes: u64) -> Result<(), ModelFileError> {
        let (_, end) = self.here();
        if bytes <= end - self.at { Ok(()) } else { Err(ModelFileError::NotOnnx) }
    }

    fn skip(&mut self, bytes: u64) {
        self.next = if bytes == 0 { Next::TAG } else { Next::Skipped(bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// In one piece.
    fn check_self_contained(model: &[u8]) -> Result<(), ModelFileError> {
        in_pieces(model, model.len().max(1))
    }

    fn in_pieces(model: &[u8], len: usize) -> Result<(), ModelFileError> {
        let mut check = SelfContained::new(model.len() as u64);
        model.chunks(len).for_each(|piece| check.feed(piece));
        check.finish()
    }

    /// The same over a model in memory, message by message: what the check in pieces is held to.
    fn whole(model: &[u8]) -> Result<(), ModelFileError> {
        let mut has_graph = false;
        walk(model, Message::Model, 0, &mut has_graph)?;
        if has_graph { Ok(()) } else { Err(ModelFileError::NotOnnx) }
    }

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

    /// Messages within messages that are ONNX's, with fields of every kind, and mistakes.
    fn message(kind: Message, depth: u32) -> BoxedStrategy<Vec<u8>> {
        let fields: Vec<u8> = (1..26).filter(|&field| kind.child(field.into()).is_some()).collect();
        let number = prop_oneof![1u8..32, Just(13), Just(14)];
        let varint = proptest::collection::vec(0x80u8.., 0..10).prop_flat_map(|high| {
            (Just(high), 0u8..0x80).prop_map(|(mut all, last)| {
                all.push(last);
                all
            })
        });
        let tag = |number: u8, kind: u8| {
            let tag = u16::from(number) << 3 | u16::from(kind);
            if tag < 128 { vec![tag as u8] } else { vec![tag as u8 | 0x80, (tag >> 7) as u8] }
        };
        let plain = (
            number,
            prop_oneof![20 => Just(0u8), 5 => Just(1), 20 => Just(2), 5 => Just(5), 1 => 3u8..8],
            varint,
        )
            .prop_map(move |(number, kind, value)| match kind {
                0 => [tag(number, 0), value].concat(),
                1 => [tag(number, 1), vec![7; 8]].concat(),
                // A length that is mostly right.
                2 => [tag(number, 2), vec![value.len() as u8], value].concat(),
                5 => [tag(number, 5), vec![7; 4]].concat(),
                other => tag(number, other),
            })
            .boxed();
        let one = if depth == 0 || fields.is_empty() {
            plain
        } else {
            let inner = proptest::sample::select(fields).prop_flat_map(move |field| {
                let child = kind.child(field.into()).expect("chosen so");
                (Just(field), message(child, depth - 1), prop_oneof![20 => Just(0i8), 1 => -2i8..3])
            });
            let inner = inner.prop_map(move |(field, inner, wrong)| {
                let len = inner.len().saturating_add_signed(wrong.into()).min(16_000);
                let len = vec![len as u8 | 0x80, (len >> 7) as u8];
                [tag(field, 2), len, inner].concat()
            });
            prop_oneof![3 => inner, 1 => plain].boxed()
        };
        proptest::collection::vec(one, 0..4).prop_map(|fields| fields.concat()).boxed()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]
        #[test]
        fn pieces_and_the_whole_say_the_same(model in message(Message::Model, 6), len in 1usize..40) {
            let expected = whole(&model);
            prop_assert_eq!(in_pieces(&model, len), expected.clone());
            prop_assert_eq!(check_self_contained(&model), expected);
        }
    }

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
        let mut shrunk = SelfContained::new(5);
        shrunk.feed(&field(7, &[]));
        assert_eq!(shrunk.finish(), Err(ModelFileError::NotOnnx));
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
