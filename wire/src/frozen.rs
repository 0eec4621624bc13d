//! Version 1 as it lies on the wire. The structs here are frozen: postcard sends neither names nor lengths of
//! structs, so that a field added, moved or retyped would be misread silently. A change is a `…V2` and a new
//! [`VERSION`](crate::VERSION); `tests/golden` and the schema test below hold it to that.
//!
//! Lists are iterators on the way out and vectors of a fixed capacity on the way in. The two messages that
//! microcontrollers need have code of their own beside serde's, [`encode_request_from`] and
//! [`ReplyView`](crate::ReplyView); tests hold them to these structs.

use serde::{Deserialize, Serialize, Serializer, ser::SerializeSeq};

#[cfg(test)]
mod schema;

use crate::writer::Writer;

use crate::{
    Answer, CLASSES_MAX, Class, Content, DETAIL_LEN_MAX, DType, DecodeError, EncodeError, HEAD_LEN_MAX,
    HEADER_LEN, Header, Invalid, Kind, LABEL_LEN_MAX, Priority, Query, RANK_MAX, Reply, Request, Selector,
    Shape, Status, TENSOR_NAME_LEN_MAX, TENSORS_MAX, TensorDesc, TensorRef, Want, What,
};

/// Written by hand in [`encode_request_from`], which microcontrollers carry: by serde it takes twice the space.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct RequestV1<'a, T> {
    model: &'a str,
    deadline_ms: u32,
    priority: u8,
    content: u8,
    want: u8,
    stream: u32,
    sequence: u32,
    tensors: T,
}

#[derive(Serialize, Deserialize)]
struct TensorV1<'a, S> {
    name: &'a str,
    dtype: u8,
    shape: S,
}

#[derive(Serialize, Deserialize)]
struct ReplyV1<'a, T, C> {
    status: u16,
    model: &'a str,
    version: u64,
    digest: [u8; 32],
    signed: bool,
    queue_us: u32,
    pre_us: u32,
    infer_us: u32,
    post_us: u32,
    retry_after_ms: u32,
    detail: &'a str,
    tensors: T,
    classes: C,
}

#[derive(Serialize, Deserialize)]
struct ClassV1<'a> {
    index: u32,
    score: f32,
    label: &'a str,
}

#[derive(Serialize, Deserialize)]
struct QueryV1 {
    what: u8,
}

#[derive(Serialize, Deserialize)]
struct AnswerV1<'a> {
    status: u16,
    detail: &'a str,
}

type TensorsV1<'a> = heapless::Vec<TensorV1<'a, Shape>, TENSORS_MAX>;
type ClassesV1<'a> = heapless::Vec<ClassV1<'a>, CLASSES_MAX>;

/// Writes header and head of a request and says how many bytes they are; the `body_len` bytes of the body follow,
/// written by the caller.
///
/// # Errors
/// [`EncodeError::Invalid`] when no reader would take it, [`EncodeError::Buffer`] when `out` is too small.
pub fn encode_request(
    id: u64,
    request: &Request<'_>,
    body_len: u32,
    out: &mut [u8],
) -> Result<usize, EncodeError> {
    let tensors = request.tensors.iter().map(TensorDesc::as_ref);
    encode_request_from(id, &with_tensors(request, tensors), body_len, out)
}

/// The same for tensors whose descriptions lie elsewhere, in flash for example: they are gone over several times and
/// never copied.
///
/// # Errors
/// As [`encode_request`]; also [`Invalid::TooMany`] for more tensors or dimensions than a reader takes.
pub fn encode_request_from<'t>(
    id: u64,
    request: &Request<'_, impl Iterator<Item = TensorRef<'t>> + Clone>,
    body_len: u32,
    out: &mut [u8],
) -> Result<usize, EncodeError> {
    check_request(request, body_len)?;
    let (header, rest) = out.split_first_chunk_mut::<HEADER_LEN>().ok_or(EncodeError::Buffer)?;
    let mut head = Writer::new(rest);
    head.text(request.model);
    head.number(request.deadline_ms);
    head.bytes(&[request.priority.number(), request.content.number(), request.want.number()]);
    head.number(request.stream);
    head.number(request.sequence);
    head.number(request.tensors.clone().count() as u32);
    for tensor in request.tensors.clone() {
        head.text(tensor.name);
        head.bytes(&[tensor.dtype.number()]);
        head.number(tensor.shape.len() as u32);
        tensor.shape.iter().for_each(|&dim| head.number(dim));
    }
    let head_len = head.end().ok_or(EncodeError::Buffer)?;
    *header = Header { kind: Kind::Request, head_len, body_len, id }.to_bytes();
    Ok(HEADER_LEN + usize::from(head_len))
}

/// Writes header and head of a reply; the bytes of its tensors follow, written by the caller.
///
/// # Errors
/// [`EncodeError::Invalid`] when no reader would take it, [`EncodeError::Buffer`] when `out` is too small.
pub fn encode_reply(id: u64, reply: &Reply<'_>, body_len: u32, out: &mut [u8]) -> Result<usize, EncodeError> {
    check_reply(reply, body_len)?;
    let message = ReplyV1 {
        status: reply.status.number(),
        model: reply.model,
        version: reply.version,
        digest: reply.digest,
        signed: reply.signed,
        queue_us: reply.queue_us,
        pre_us: reply.pre_us,
        infer_us: reply.infer_us,
        post_us: reply.post_us,
        retry_after_ms: reply.retry_after_ms,
        detail: reply.detail,
        tensors: TensorList(reply.tensors.iter().map(TensorDesc::as_ref)),
        classes: ClassList(&reply.classes),
    };
    write(Kind::Reply, id, &message, body_len, out)
}

/// Writes a query, which has no body.
///
/// # Errors
/// [`EncodeError::Buffer`] when `out` is too small.
pub fn encode_query(id: u64, query: &Query, out: &mut [u8]) -> Result<usize, EncodeError> {
    write(Kind::Query, id, &QueryV1 { what: query.what.number() }, 0, out)
}

/// Writes header and head of an answer; the `body_len` bytes of JSON follow, written by the caller.
///
/// # Errors
/// [`EncodeError::Invalid`] when the detail is too long, [`EncodeError::Buffer`] when `out` is too small.
pub fn encode_answer(
    id: u64,
    answer: &Answer<'_>,
    body_len: u32,
    out: &mut [u8],
) -> Result<usize, EncodeError> {
    check_len("detail", answer.detail, DETAIL_LEN_MAX)?;
    let message = AnswerV1 { status: answer.status.number(), detail: answer.detail };
    write(Kind::Answer, id, &message, body_len, out)
}

/// Reads the head of a request whose frame has a body of `body_len` bytes.
///
/// # Errors
/// [`DecodeError`]; every one is answered with [`Status::Malformed`].
pub fn decode_request(head: &[u8], body_len: u32) -> Result<Request<'_>, DecodeError> {
    let message: RequestV1<'_, TensorsV1<'_>> = read(head)?;
    let request = Request {
        model: message.model,
        deadline_ms: message.deadline_ms,
        priority: known("priority", message.priority, Priority::from_number)?,
        content: known("content", message.content, Content::from_number)?,
        want: known("want", message.want, Want::from_number)?,
        stream: message.stream,
        sequence: message.sequence,
        tensors: list(&message.tensors, tensor)?,
    };
    check_request(&with_tensors(&request, request.tensors.iter().map(TensorDesc::as_ref)), body_len)?;
    Ok(request)
}

/// Reads the head of a reply whose frame has a body of `body_len` bytes.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_reply(head: &[u8], body_len: u32) -> Result<Reply<'_>, DecodeError> {
    let message: ReplyV1<'_, TensorsV1<'_>, ClassesV1<'_>> = read(head)?;
    let reply = Reply {
        status: known("status", message.status, Status::from_number)?,
        model: message.model,
        version: message.version,
        digest: message.digest,
        signed: message.signed,
        queue_us: message.queue_us,
        pre_us: message.pre_us,
        infer_us: message.infer_us,
        post_us: message.post_us,
        retry_after_ms: message.retry_after_ms,
        detail: message.detail,
        tensors: list(&message.tensors, tensor)?,
        classes: list(&message.classes, |class| {
            Ok(Class { index: class.index, score: class.score, label: class.label })
        })?,
    };
    check_reply(&reply, body_len)?;
    Ok(reply)
}

/// Reads the head of a query, whose frame must have no body.
///
/// # Errors
/// [`DecodeError`]; every one is answered with [`Status::Malformed`].
pub fn decode_query(head: &[u8], body_len: u32) -> Result<Query, DecodeError> {
    let message: QueryV1 = read(head)?;
    check_body(0, body_len)?;
    Ok(Query { what: known("what", message.what, What::from_number)? })
}

/// Reads the head of an answer; its body is JSON of any length.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_answer(head: &[u8]) -> Result<Answer<'_>, DecodeError> {
    let message: AnswerV1<'_> = read(head)?;
    check_len("detail", message.detail, DETAIL_LEN_MAX)?;
    Ok(Answer { status: known("status", message.status, Status::from_number)?, detail: message.detail })
}

fn write<M: Serialize>(
    kind: Kind,
    id: u64,
    message: &M,
    body_len: u32,
    out: &mut [u8],
) -> Result<usize, EncodeError> {
    let (header, rest) = out.split_first_chunk_mut::<HEADER_LEN>().ok_or(EncodeError::Buffer)?;
    let space = rest.len().min(HEAD_LEN_MAX);
    let head_len = match rest.get_mut(..space).map(|head| postcard::to_slice(message, head)) {
        Some(Ok(head)) => head.len(),
        _ => return Err(EncodeError::Buffer),
    };
    *header = Header { kind, head_len: head_len as u16, body_len, id }.to_bytes();
    Ok(HEADER_LEN + head_len)
}

fn read<'a, M: Deserialize<'a>>(head: &'a [u8]) -> Result<M, DecodeError> {
    match postcard::take_from_bytes(head) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(DecodeError::Rest { len: rest.len() }),
        Err(postcard::Error::DeserializeUnexpectedEnd) => Err(DecodeError::Truncated),
        Err(postcard::Error::DeserializeBadUtf8) => Err(DecodeError::Utf8),
        // The only custom error of our types is a full heapless vector.
        Err(postcard::Error::SerdeDeCustom) => Err(DecodeError::TooMany),
        Err(_) => Err(DecodeError::Overflow),
    }
}

fn known<N: Copy + Into<u16>, T>(
    field: &'static str,
    number: N,
    from_number: impl Fn(N) -> Option<T>,
) -> Result<T, DecodeError> {
    from_number(number).ok_or(DecodeError::Number { field, number: number.into() })
}

/// Not `into_iter` and `collect`: both link panics that equal capacities rule out.
fn list<A, B, const N: usize>(
    from: &heapless::Vec<A, N>,
    convert: impl Fn(&A) -> Result<B, DecodeError>,
) -> Result<heapless::Vec<B, N>, DecodeError> {
    let mut to = heapless::Vec::new();
    for item in from {
        to.push(convert(item)?).map_err(|_| DecodeError::TooMany)?;
    }
    Ok(to)
}

fn tensor<'a>(tensor: &TensorV1<'a, Shape>) -> Result<TensorDesc<'a>, DecodeError> {
    let dtype = known("dtype", tensor.dtype, DType::from_number)?;
    Ok(TensorDesc { name: tensor.name, dtype, shape: tensor.shape.clone() })
}

fn with_tensors<'a, T>(request: &Request<'a>, tensors: T) -> Request<'a, T> {
    let &Request { model, deadline_ms, priority, content, want, stream, sequence, .. } = request;
    Request { model, deadline_ms, priority, content, want, stream, sequence, tensors }
}

fn check_request<'t>(
    request: &Request<'_, impl Iterator<Item = TensorRef<'t>> + Clone>,
    body_len: u32,
) -> Result<(), Invalid> {
    Selector::parse(request.model)?;
    for (field, value) in [("stream", request.stream), ("sequence", request.sequence)] {
        if value != 0 {
            return Err(Invalid::Reserved { field });
        }
    }
    match request.content {
        Content::Tensors => check_tensors(request.tensors.clone(), body_len),
        Content::Media if request.tensors.clone().next().is_some() => Err(Invalid::MediaWithTensors),
        Content::Media if body_len == 0 => Err(Invalid::MediaMissing),
        Content::Media => Ok(()),
    }
}

fn check_reply(reply: &Reply<'_>, body_len: u32) -> Result<(), Invalid> {
    if !reply.model.is_empty() {
        Selector::parse(reply.model)?;
    }
    check_len("detail", reply.detail, DETAIL_LEN_MAX)?;
    for class in &reply.classes {
        check_len("label", class.label, LABEL_LEN_MAX)?;
    }
    check_tensors(reply.tensors.iter().map(TensorDesc::as_ref), body_len)
}

fn check_tensors<'t>(tensors: impl Iterator<Item = TensorRef<'t>>, body_len: u32) -> Result<(), Invalid> {
    let mut described = 0_u32;
    let mut count = 0;
    for tensor in tensors {
        count += 1;
        check_count("tensors", count, TENSORS_MAX)?;
        check_count("dimensions", tensor.shape.len(), RANK_MAX)?;
        check_len("tensor name", tensor.name, TENSOR_NAME_LEN_MAX)?;
        let sum = tensor.byte_len().and_then(|len| described.checked_add(len));
        described = sum.ok_or(Invalid::TensorsTooLarge)?;
    }
    check_body(described, body_len)
}

fn check_count(field: &'static str, len: usize, max: usize) -> Result<(), Invalid> {
    if len <= max { Ok(()) } else { Err(Invalid::TooMany { field, len, max }) }
}

fn check_body(described: u32, body: u32) -> Result<(), Invalid> {
    if described == body { Ok(()) } else { Err(Invalid::BodyLen { described, body }) }
}

fn check_len(field: &'static str, text: &str, max: usize) -> Result<(), Invalid> {
    if text.len() <= max { Ok(()) } else { Err(Invalid::TooLong { field, len: text.len(), max }) }
}

struct TensorList<T>(T);

impl<'t, T: Iterator<Item = TensorRef<'t>> + Clone> Serialize for TensorList<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Counted, because postcard writes the number first and an iterator's hint may be vague.
        let mut list = serializer.serialize_seq(Some(self.0.clone().count()))?;
        for TensorRef { name, dtype, shape } in self.0.clone() {
            list.serialize_element(&TensorV1 { name, dtype: dtype.number(), shape })?;
        }
        list.end()
    }
}

struct ClassList<'a>(&'a [Class<'a>]);

impl Serialize for ClassList<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|class| ClassV1 {
            index: class.index,
            score: class.score,
            label: class.label,
        }))
    }
}
