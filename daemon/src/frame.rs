//! Wire frames to requests and replies to wire frames, for the socket and for MQTT's `postcard` payloads alike.
//!
//! A body is never copied here: a request takes over the buffer it was read into, and a reply is written as its head
//! followed by the engine's own tensors.

use crate::intake::{Origin, Payload, Reply, Request, TensorDesc};
use bytes::Bytes;
use std::time::Duration;
use tractd_bundle::DType as BundleDType;
use tractd_engine::Tensor;
use tractd_wire::{self as wire, Content, DType, Frame, Kind, Status};

/// Reads one whole request frame, as MQTT delivers it; the request shares its memory.
///
/// # Errors
/// The id as far as it could be read, and the refusal to answer with.
pub fn read_request(
    whole: &Bytes,
    body_len_max: u32,
    origin: Origin,
) -> Result<(u64, Request), (u64, Reply)> {
    let frame = Frame::parse(whole, body_len_max)
        .map_err(|error| (error.id().unwrap_or(0), Reply::refusal(error.status(), "", error.to_string())))?;
    let id = frame.header.id;
    if frame.header.kind != Kind::Request {
        return Err((id, Reply::refusal(Status::Malformed, "", "only requests are answered here")));
    }
    let head = RequestHead::decode(frame.head, frame.header.body_len).map_err(|reply| (id, reply))?;
    Ok((id, head.with_body(whole.slice_ref(frame.body), origin)))
}

/// A decoded request that still lacks its body, so that a bad head is refused before the body is read.
#[derive(Debug)]
pub struct RequestHead {
    model: String,
    deadline: Option<Duration>,
    priority: wire::Priority,
    want: wire::Want,
    descs: Option<Vec<TensorDesc>>,
}

impl RequestHead {
    /// Decodes the head of a request whose body has `body_len` bytes.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn decode(head: &[u8], body_len: u32) -> Result<RequestHead, Reply> {
        let request = wire::decode_request(head, body_len)
            .map_err(|error| Reply::refusal(error.status(), "", error.to_string()))?;
        let deadline = Duration::from_millis(request.deadline_ms.into());
        let descs = request.tensors.iter().map(|desc| TensorDesc {
            name: desc.name.to_owned(),
            dtype: desc.dtype,
            shape: desc.shape.to_vec(),
        });
        Ok(RequestHead {
            model: request.model.to_owned(),
            deadline: (!deadline.is_zero()).then_some(deadline),
            priority: request.priority,
            want: request.want,
            descs: (request.content == Content::Tensors).then(|| descs.collect()),
        })
    }

    /// The whole request.
    pub fn with_body(self, body: Bytes, origin: Origin) -> Request {
        Request {
            model: self.model,
            deadline: self.deadline,
            priority: self.priority,
            payload: match self.descs {
                Some(descs) => Payload::Tensors { descs, body },
                None => Payload::Media(body),
            },
            want: self.want,
            origin,
        }
    }
}

/// A reply ready to be written: `head`, then the bytes of each tensor of `body`.
#[derive(Debug)]
pub struct Encoded<'a> {
    /// Header and head.
    pub head: Vec<u8>,
    /// The tensors whose bytes are the frame's body, in order.
    pub body: &'a [Tensor],
}

impl Encoded<'_> {
    /// The parts of the frame in order, for a vectored write.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.head.as_slice()).chain(self.body.iter().map(|tensor| tensor.data.as_slice()))
    }

    /// The frame in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        self.slices().collect::<Vec<_>>().concat()
    }
}

/// Encodes a reply. One that does not fit a frame (more tensors or longer names than the wire allows) becomes
/// `Status::Internal` and says so.
pub fn write_reply(id: u64, reply: &Reply) -> Encoded<'_> {
    let encode = |reply| {
        // On the stack: from the heap, 4 KiB cost more than the encoding.
        let mut head = [0; wire::FRAME_HEAD_MAX];
        let (reply, body_len) = wire_reply(reply)?;
        let length =
            wire::encode_reply(id, &reply, body_len, &mut head).map_err(|error| error.to_string())?;
        Ok::<_, String>(head[..length].to_vec())
    };
    match encode(reply) {
        Ok(head) => Encoded { head, body: &reply.tensors },
        Err(reason) => {
            let reply =
                Reply::refusal(Status::Internal, "", format!("the reply does not fit a frame: {reason}"));
            Encoded { head: encode(&reply).expect("a refusal without a model fits a frame"), body: &[] }
        }
    }
}

/// Header and head of the answer to a query; `json` is the body that follows.
pub fn write_answer(id: u64, status: Status, detail: &str, json: &[u8]) -> Vec<u8> {
    let mut head = vec![0; wire::FRAME_HEAD_MAX];
    let answer = wire::Answer { status, detail: wire::truncate(detail, wire::DETAIL_LEN_MAX) };
    let body_len =
        u32::try_from(json.len()).expect("a status is far below 4 GiB: models and their names are bounded");
    let length = wire::encode_answer(id, &answer, body_len, &mut head).expect("a clipped detail fits a head");
    head.truncate(length);
    head
}

fn wire_reply(reply: &Reply) -> Result<(wire::Reply<'_>, u32), String> {
    let mut body_len = 0_u32;
    let mut tensors = wire::Tensors::new();
    for tensor in &reply.tensors {
        let length = u32::try_from(tensor.data.len()).ok().and_then(|length| body_len.checked_add(length));
        body_len = length.ok_or("its tensors are larger than 4 GiB")?;
        let shape = wire::Shape::from_slice(&tensor.shape)
            .map_err(|_| format!("output {:?} has more than {} axes", tensor.name, wire::RANK_MAX))?;
        tensors
            .push(wire::TensorDesc { name: &tensor.name, dtype: dtype_to_wire(tensor.dtype), shape })
            .map_err(|_| format!("it has more than {} tensors", wire::TENSORS_MAX))?;
    }
    let classes = reply
        .classes
        .iter()
        .take(wire::CLASSES_MAX)
        .map(|class| wire::Class {
            index: class.index,
            score: class.score,
            label: wire::truncate(&class.label, wire::LABEL_LEN_MAX),
        })
        .collect();
    let reply = wire::Reply {
        status: reply.status,
        model: &reply.model,
        version: reply.version,
        digest: reply.digest.0,
        signed: reply.signed,
        queue_us: reply.queue_us,
        pre_us: reply.timings.pre_us,
        infer_us: reply.timings.infer_us,
        post_us: reply.timings.post_us,
        retry_after_ms: reply.retry_after_ms,
        detail: wire::truncate(&reply.detail, wire::DETAIL_LEN_MAX),
        tensors,
        classes,
    };
    Ok((reply, body_len))
}

/// The bundle's name for a wire type.
pub fn dtype_from_wire(dtype: DType) -> BundleDType {
    match dtype {
        DType::U8 => BundleDType::U8,
        DType::I8 => BundleDType::I8,
        DType::U16 => BundleDType::U16,
        DType::I16 => BundleDType::I16,
        DType::U32 => BundleDType::U32,
        DType::I32 => BundleDType::I32,
        DType::U64 => BundleDType::U64,
        DType::I64 => BundleDType::I64,
        DType::F16 => BundleDType::F16,
        DType::F32 => BundleDType::F32,
        DType::F64 => BundleDType::F64,
        DType::Bool => BundleDType::Bool,
    }
}

/// The wire's name for a bundle type.
pub fn dtype_to_wire(dtype: BundleDType) -> DType {
    match dtype {
        BundleDType::U8 => DType::U8,
        BundleDType::I8 => DType::I8,
        BundleDType::U16 => DType::U16,
        BundleDType::I16 => DType::I16,
        BundleDType::U32 => DType::U32,
        BundleDType::I32 => DType::I32,
        BundleDType::U64 => DType::U64,
        BundleDType::I64 => DType::I64,
        BundleDType::F16 => DType::F16,
        BundleDType::F32 => DType::F32,
        BundleDType::F64 => DType::F64,
        BundleDType::Bool => DType::Bool,
    }
}
