//! The `json` payloads: a request body read into tensors or an image, a reply written without copying its numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use tractd_bundle::DType as BundleDType;
use tractd_engine::{Class, Tensor};
use tractd_wire::{DType, Priority, RANK_MAX, Status, TENSORS_MAX, Want};

use crate::intake::{Payload, Reply, TensorDesc};

/// Longest request id echoed, in bytes.
const ID_LEN_MAX: usize = 128;
/// The integers a JSON number can hold without loss in every language.
const INTEGER_MAX: u64 = 1 << 53;

/// Tells the element type a model wants for an input, where the model is known.
pub(super) type Types<'a> = &'a dyn Fn(&str, &str) -> Option<DType>;

/// A request body, as far as it says something about the request.
#[derive(Debug, PartialEq)]
pub(super) struct Body {
    pub(super) payload: Payload,
    pub(super) want: Want,
    pub(super) priority: Priority,
    pub(super) deadline: Option<Deadline>,
    pub(super) id: Option<Id>,
}

/// How long an answer is worth waiting for, for clients without MQTT 5's expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline {
    length: Duration,
    issued_at_ms: Option<u64>,
}

impl Deadline {
    /// What is left of it; zero when it has passed. A clock ahead of ours can't make it longer.
    pub(super) fn left(&self, unix_ms: u64) -> Duration {
        let waited = self.issued_at_ms.map_or(0, |issued| unix_ms.saturating_sub(issued));
        self.length.saturating_sub(Duration::from_millis(waited))
    }
}

/// The requester's own name for a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Id {
    Number(u64),
    Text(String),
}

impl Id {
    /// The bytes by which a repeated request is known.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Id::Number(number) => number.to_string().into_bytes(),
            Id::Text(text) => text.clone().into_bytes(),
        }
    }
}

/// Why a body is refused: the status and a sentence for people.
pub(super) type Refusal = (Status, String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    inputs: Option<BTreeMap<String, Input>>,
    #[serde(default)]
    image_base64: Option<String>,
    #[serde(default)]
    deadline_ms: Option<u32>,
    #[serde(default)]
    issued_at: Option<u64>,
    #[serde(default)]
    id: Option<Id>,
    #[serde(default)]
    priority: Option<String>,
    #[serde(default)]
    want: Option<Vec<String>>,
}

/// Reads a request to `model`.
///
/// # Errors
/// Malformed (400) for a body that is not of this shape, InvalidInput (422) for numbers its dtype can't hold.
pub(super) fn read(model: &str, payload: &[u8], types: Types<'_>) -> Result<Body, Refusal> {
    let malformed = |what: String| (Status::Malformed, what);
    let written: Written = serde_json::from_slice(payload).map_err(|error| malformed(error.to_string()))?;
    if matches!(&written.id, Some(Id::Text(text)) if text.len() > ID_LEN_MAX) {
        return Err(malformed(format!("id is longer than {ID_LEN_MAX} bytes")));
    }
    let payload = match (written.inputs, written.image_base64) {
        (Some(inputs), None) => tensors(model, inputs, types)?,
        (None, Some(image)) => {
            let image = STANDARD.decode(&image);
            Payload::Media(image.map_err(|error| malformed(format!("image_base64: {error}")))?.into())
        }
        _ => return Err(malformed("give either inputs or image_base64".to_owned())),
    };
    let length = written.deadline_ms.filter(|&ms| ms > 0).map(|ms| Duration::from_millis(ms.into()));
    Ok(Body {
        payload,
        want: want(written.want).map_err(malformed)?,
        priority: match written.priority {
            None => Priority::Normal,
            Some(word) => Priority::from_name(&word)
                .ok_or_else(|| malformed(format!("priority {word:?} is none of low, normal, high")))?,
        },
        deadline: length.map(|length| Deadline { length, issued_at_ms: written.issued_at }),
        id: written.id,
    })
}

fn want(words: Option<Vec<String>>) -> Result<Want, String> {
    let Some(words) = words else { return Ok(Want::ALL) };
    let mut want = Want { tensors: false, classes: false };
    for word in words {
        match word.as_str() {
            "outputs" => want.tensors = true,
            "classes" => want.classes = true,
            _ => return Err(format!("want names {word:?}, which is neither outputs nor classes")),
        }
    }
    Ok(want)
}

fn tensors(model: &str, inputs: BTreeMap<String, Input>, types: Types<'_>) -> Result<Payload, Refusal> {
    if inputs.len() > TENSORS_MAX {
        return Err((Status::Malformed, format!("more than {TENSORS_MAX} inputs")));
    }
    let mut descs = Vec::with_capacity(inputs.len());
    let mut body = Vec::new();
    for (name, input) in inputs {
        // An unknown model or input is refused behind the intake, with better words than any guess here.
        let dtype = input.dtype.or_else(|| types(model, &name)).unwrap_or(DType::F32);
        append(&mut body, dtype, &input.values)
            .map_err(|what| (Status::InvalidInput, format!("input {name:?}: {what}")))?;
        descs.push(TensorDesc { name, dtype, shape: input.shape });
    }
    Ok(Payload::Tensors { descs, body: body.into() })
}

fn append(body: &mut Vec<u8>, dtype: DType, values: &[f64]) -> Result<(), String> {
    body.reserve(values.len() * dtype.size());
    macro_rules! integers {
        ($type:ty) => {
            for &value in values {
                if value.fract() != 0.0 || value < <$type>::MIN as f64 || value > <$type>::MAX as f64 {
                    return Err(format!("{value} is no {}", dtype.name()));
                }
                body.extend_from_slice(&(value as $type).to_le_bytes());
            }
        };
    }
    match dtype {
        DType::U8 => integers!(u8),
        DType::I8 => integers!(i8),
        DType::U16 => integers!(u16),
        DType::I16 => integers!(i16),
        DType::U32 => integers!(u32),
        DType::I32 => integers!(i32),
        DType::U64 => integers!(u64),
        DType::I64 => integers!(i64),
        DType::F32 => values.iter().for_each(|&value| body.extend_from_slice(&(value as f32).to_le_bytes())),
        DType::F64 => values.iter().for_each(|value| body.extend_from_slice(&value.to_le_bytes())),
        DType::Bool => {
            for &value in values {
                if value != 0.0 && value != 1.0 {
                    return Err(format!("{value} is no bool"));
                }
                body.push((value == 1.0).into());
            }
        }
        DType::F16 => return Err("f16 tensors are not taken as JSON; use the postcard format".to_owned()),
    }
    Ok(())
}

/// One tensor: nested lists of numbers, or `{"shape": […], "data": […], "dtype": "…"}` with a flat list.
#[derive(Debug, PartialEq)]
struct Input {
    shape: Vec<u32>,
    dtype: Option<DType>,
    values: Vec<f64>,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Input, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nested lists of numbers, or an object with shape and data")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Input, A::Error> {
        let mut nest = Nest::default();
        nest.list(0, seq)?;
        Ok(Input { shape: nest.shape, dtype: None, values: nest.values })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Input, A::Error> {
        let (mut shape, mut dtype, mut values) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "shape" => shape = Some(map.next_value::<Vec<u32>>()?),
                "data" => values = Some(map.next_value::<Flat>()?.0),
                "dtype" => {
                    let word: String = map.next_value()?;
                    let found = DType::from_name(&word);
                    dtype =
                        Some(found.ok_or_else(|| A::Error::custom(format!("no dtype is called {word:?}")))?);
                }
                other => {
                    map.next_value::<IgnoredAny>()?;
                    return Err(A::Error::unknown_field(other, &["shape", "data", "dtype"]));
                }
            }
        }
        let shape = shape.ok_or_else(|| A::Error::missing_field("shape"))?;
        let values = values.ok_or_else(|| A::Error::missing_field("data"))?;
        let elements = shape.iter().try_fold(1_usize, |product, &axis| product.checked_mul(axis as usize));
        if shape.len() > RANK_MAX || elements != Some(values.len()) {
            return Err(A::Error::custom(format!("shape {shape:?} does not hold {} numbers", values.len())));
        }
        Ok(Input { shape, dtype, values })
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Input, E> {
        Ok(scalar(integer(value)?))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Input, E> {
        Ok(scalar(signed(value)?))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Input, E> {
        Ok(scalar(value))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Input, E> {
        Ok(scalar(value.into()))
    }
}

fn scalar(value: f64) -> Input {
    Input { shape: Vec::new(), dtype: None, values: vec![value] }
}

fn integer<E: serde::de::Error>(value: u64) -> Result<f64, E> {
    if value > INTEGER_MAX {
        return Err(E::custom(format!("{value} is beyond the integers JSON holds exactly; use postcard")));
    }
    Ok(value as f64)
}

fn signed<E: serde::de::Error>(value: i64) -> Result<f64, E> {
    integer(value.unsigned_abs()).map(|magnitude: f64| if value < 0 { -magnitude } else { magnitude })
}

/// A list of numbers without nesting.
struct Flat(Vec<f64>);

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Flat, D::Error> {
        let input = Input::deserialize(deserializer)?;
        match input.shape.len() {
            1 => Ok(Flat(input.values)),
            _ => Err(D::Error::custom("data must be one flat list of numbers")),
        }
    }
}

/// Collects nested lists: the shape from the first list of each depth, which every later one must repeat.
#[derive(Default)]
struct Nest {
    shape: Vec<u32>,
    /// The depth at which numbers stand, once one has been seen.
    leaf: Option<usize>,
    values: Vec<f64>,
}

impl Nest {
    fn list<'de, A: SeqAccess<'de>>(&mut self, depth: usize, mut seq: A) -> Result<(), A::Error> {
        if depth == RANK_MAX {
            return Err(A::Error::custom(format!("more than {RANK_MAX} nested lists")));
        }
        let known = self.shape.len() > depth;
        if !known {
            self.shape.push(0);
        }
        let mut length = 0_u32;
        while seq.next_element_seed(Element { nest: self, depth: depth + 1 })?.is_some() {
            length += 1;
        }
        if !known {
            self.shape[depth] = length;
        } else if self.shape[depth] != length {
            let expected = self.shape[depth];
            return Err(A::Error::custom(format!("a list of {length} beside one of {expected}")));
        }
        Ok(())
    }

    fn number<E: serde::de::Error>(&mut self, depth: usize, value: f64) -> Result<(), E> {
        if *self.leaf.get_or_insert(depth) != depth || self.shape.len() != depth {
            return Err(E::custom("numbers and lists side by side"));
        }
        self.values.push(value);
        Ok(())
    }
}

struct Element<'a> {
    nest: &'a mut Nest,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        if self.nest.leaf.is_some_and(|leaf| leaf <= self.depth) {
            return Err(A::Error::custom("numbers and lists side by side"));
        }
        self.nest.list(self.depth, seq)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.nest.number(self.depth, integer(value)?)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.nest.number(self.depth, signed(value)?)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.nest.number(self.depth, value)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.nest.number(self.depth, value.into())
    }
}

/// Writes a reply.
pub(super) fn write(id: Option<&Id>, reply: &Reply) -> Vec<u8> {
    serde_json::to_vec(&Answer { id, reply }).expect("text keys and numbers always have a JSON form")
}

struct Answer<'a> {
    id: Option<&'a Id>,
    reply: &'a Reply,
}

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Answer { id, reply } = self;
        let mut map = serializer.serialize_map(None)?;
        if let Some(id) = id {
            map.serialize_entry("id", id)?;
        }
        map.serialize_entry("status", &reply.status.code())?;
        if reply.status != Status::Ok {
            map.serialize_entry("code", &reply.status.code())?;
            map.serialize_entry("name", reply.status.name())?;
            map.serialize_entry("detail", &reply.detail)?;
            map.serialize_entry("retryable", &reply.status.retryable())?;
        }
        if reply.retry_after_ms > 0 {
            map.serialize_entry("retry_after_ms", &reply.retry_after_ms)?;
        }
        if !reply.model.is_empty() {
            map.serialize_entry("model", &*reply.model)?;
        }
        if reply.version > 0 {
            map.serialize_entry("version", &reply.version)?;
            map.serialize_entry("digest", &reply.digest.to_string())?;
            map.serialize_entry("signed", &reply.signed)?;
        }
        if reply.status == Status::Ok {
            map.serialize_entry("queue_us", &reply.queue_us)?;
            map.serialize_entry("pre_us", &reply.timings.pre_us)?;
            map.serialize_entry("infer_us", &reply.timings.infer_us)?;
            map.serialize_entry("post_us", &reply.timings.post_us)?;
            if !reply.tensors.is_empty() {
                map.serialize_entry("outputs", &Outputs(&reply.tensors))?;
            }
            if !reply.classes.is_empty() {
                map.serialize_entry("classes", &Classes(&reply.classes))?;
            }
        }
        map.end()
    }
}

struct Outputs<'a>(&'a [Tensor]);

impl Serialize for Outputs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|tensor| (&*tensor.name, Output(tensor))))
    }
}

struct Output<'a>(&'a Tensor);

impl Serialize for Output<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("shape", &self.0.shape)?;
        map.serialize_entry("dtype", crate::frame::dtype_to_wire(self.0.dtype).name())?;
        map.serialize_entry("data", &Numbers(self.0))?;
        map.end()
    }
}

/// The elements of a tensor; a float that is no number becomes null, for which JSON has no word.
struct Numbers<'a>(&'a Tensor);

impl Serialize for Numbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn all<S: Serializer, T: Serialize, const N: usize>(
            serializer: S,
            data: &[u8],
            element: fn([u8; N]) -> T,
        ) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(data.as_chunks().0.iter().map(|bytes| element(*bytes)))
        }
        let data = &self.0.data;
        match self.0.dtype {
            BundleDType::U8 => all(serializer, data, u8::from_le_bytes),
            BundleDType::I8 => all(serializer, data, i8::from_le_bytes),
            BundleDType::U16 => all(serializer, data, u16::from_le_bytes),
            BundleDType::I16 => all(serializer, data, i16::from_le_bytes),
            BundleDType::U32 => all(serializer, data, u32::from_le_bytes),
            BundleDType::I32 => all(serializer, data, i32::from_le_bytes),
            BundleDType::U64 => all(serializer, data, u64::from_le_bytes),
            BundleDType::I64 => all(serializer, data, i64::from_le_bytes),
            BundleDType::F16 => all(serializer, data, |bytes| f16_to_f32(u16::from_le_bytes(bytes))),
            BundleDType::F32 => all(serializer, data, f32::from_le_bytes),
            BundleDType::F64 => all(serializer, data, f64::from_le_bytes),
            BundleDType::Bool => all(serializer, data, |[byte]: [u8; 1]| byte != 0),
        }
    }
}

struct Classes<'a>(&'a [Class]);

impl Serialize for Classes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Row<'a> {
            index: u32,
            label: &'a str,
            score: f32,
        }
        serializer.collect_seq(self.0.iter().map(|class| Row {
            index: class.index,
            label: &class.label,
            score: class.score,
        }))
    }
}

/// IEEE 754 binary16 to binary32, exactly.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let fraction = f32::from(bits & 0x3ff);
    match (bits >> 10) & 0x1f {
        0 => sign * fraction * 2.0_f32.powi(-24),
        0x1f if fraction == 0.0 => sign * f32::INFINITY,
        0x1f => f32::NAN,
        exponent => sign * (1.0 + fraction / 1024.0) * 2.0_f32.powi(i32::from(exponent) - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_f32(payload: &str) -> Result<Body, Refusal> {
        read("m", payload.as_bytes(), &|_, _| Some(DType::F32))
    }

    fn one(name: &str, dtype: DType, shape: &[u32], body: &[u8]) -> Payload {
        let desc = TensorDesc { name: name.to_owned(), dtype, shape: shape.to_vec() };
        Payload::Tensors { descs: vec![desc], body: body.to_vec().into() }
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn nested_and_flat_lists_are_the_same_tensor() {
        let expected = one("x", DType::F32, &[2, 3], &bytes(&[1.0, 2.0, 3.0, 4.5, -5.0, 6.0]));
        let nested = read_f32(r#"{"inputs":{"x":[[1,2,3],[4.5,-5,6]]}}"#).unwrap();
        let flat = read_f32(r#"{"inputs":{"x":{"shape":[2,3],"data":[1,2,3,4.5,-5,6]}}}"#).unwrap();
        assert_eq!(nested.payload, expected);
        assert_eq!(flat.payload, expected);
    }

    #[test]
    fn numbers_take_the_type_of_the_model_unless_they_name_one() {
        let types = |model: &str, input: &str| {
            assert_eq!((model, input), ("digits@7", "image"));
            Some(DType::U8)
        };
        let body = read("digits@7", br#"{"inputs":{"image":[[0,16]]}}"#, &types).unwrap();
        assert_eq!(body.payload, one("image", DType::U8, &[1, 2], &[0, 16]));
        let named = br#"{"inputs":{"image":{"shape":[2],"data":[true,0],"dtype":"bool"}}}"#;
        assert_eq!(
            read("digits@7", named, &types).unwrap().payload,
            one("image", DType::Bool, &[2], &[1, 0])
        );
    }

    #[test]
    fn everything_beside_the_tensors_is_read() {
        let body = read_f32(
            r#"{"inputs":{"x":3},"deadline_ms":250,"issued_at":1000,"id":"a-1","priority":"high","want":["classes"]}"#,
        )
        .unwrap();
        let deadline = body.deadline.unwrap();
        assert_eq!(body.payload, one("x", DType::F32, &[], &bytes(&[3.0])));
        assert_eq!(
            (body.id, body.priority, body.want),
            (Some(Id::Text("a-1".to_owned())), Priority::High, Want::CLASSES)
        );
        assert_eq!(deadline.left(1100), Duration::from_millis(150));
        assert_eq!(deadline.left(1250), Duration::ZERO);
        assert_eq!(deadline.left(0), Duration::from_millis(250));
    }

    #[test]
    fn an_image_is_taken_as_base64() {
        let body = read_f32(r#"{"image_base64":"iVBORw==","id":7}"#).unwrap();
        assert_eq!(body.payload, Payload::Media(b"\x89PNG"[..].into()));
        assert_eq!(body.id, Some(Id::Number(7)));
    }

    #[test]
    fn what_is_no_request_says_why() {
        let refused = |payload: &str, status, detail: &str| {
            let (code, what) = read_f32(payload).unwrap_err();
            assert_eq!((code, what.as_str()), (status, detail), "{payload}");
        };
        use Status::{InvalidInput, Malformed};
        refused("{}", Malformed, "give either inputs or image_base64");
        refused(r#"{"inputs":{"x":1},"image_base64":""}"#, Malformed, "give either inputs or image_base64");
        refused("{", Malformed, "EOF while parsing an object at line 1 column 1");
        refused(
            r#"{"inputs":{"x":[[1,2],[3]]}}"#,
            Malformed,
            "a list of 1 beside one of 2 at line 1 column 25",
        );
        refused(
            r#"{"inputs":{"x":[[1],2]}}"#,
            Malformed,
            "numbers and lists side by side at line 1 column 21",
        );
        refused(
            r#"{"inputs":{"x":[1,[2]]}}"#,
            Malformed,
            "numbers and lists side by side at line 1 column 19",
        );
        refused(
            r#"{"inputs":{"x":{"shape":[3],"data":[1,2]}}}"#,
            Malformed,
            "shape [3] does not hold 2 numbers at line 1 column 41",
        );
        refused(
            r#"{"inputs":{"x":[[[[[[[[[1]]]]]]]]]}}"#,
            Malformed,
            "more than 8 nested lists at line 1 column 24",
        );
        refused(
            r#"{"inputs":{"x":{"shape":[1],"data":[300],"dtype":"u8"}}}"#,
            InvalidInput,
            "input \"x\": 300 is no u8",
        );
        refused(r#"{"image_base64":"%"}"#, Malformed, "image_base64: Invalid symbol 37, offset 0.");
        refused(
            r#"{"inputs":{"x":1},"priority":"now"}"#,
            Malformed,
            "priority \"now\" is none of low, normal, high",
        );
        let (_, unknown) = read_f32(r#"{"input":{"x":1}}"#).unwrap_err();
        assert!(unknown.starts_with("unknown field `input`"), "{unknown}");
    }

    #[test]
    fn half_floats_become_the_same_number() {
        let pairs = [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 2.0_f32.powi(-24)),
            (0x3555, 0.333_251_95),
        ];
        for (bits, expected) in pairs {
            assert_eq!(f16_to_f32(bits), expected, "{bits:#06x}");
        }
        assert_eq!(f16_to_f32(0xfc00), f32::NEG_INFINITY);
        assert!(f16_to_f32(0x7e00).is_nan());
    }
}
