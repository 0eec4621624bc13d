//! One request and its reply, whichever road they take: the same frame goes over the socket and through MQTT.

use serde_json::{Value, json};
use tractd_wire as wire;

use crate::tensor::Tensor;

/// What to ask of a model.
#[derive(Debug, Clone)]
pub struct Request {
    /// `digits`, `digits@7` or `digits@canary`.
    pub model: String,
    /// Milliseconds until the answer is worthless; 0 leaves it to the daemon.
    pub deadline_ms: u32,
    /// The input.
    pub input: Input,
    /// Whether output tensors, classes or both are wanted.
    pub want: wire::Want,
}

/// What a model is fed with.
#[derive(Debug, Clone)]
pub enum Input {
    /// Tensors, sent in this order.
    Tensors(Vec<Tensor>),
    /// One JPEG or PNG as it is.
    Media(Vec<u8>),
}

/// A reply, owned.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The request's number, given back.
    pub id: u64,
    /// How it went.
    pub status: wire::Status,
    /// The model that answered.
    pub model: String,
    /// Its version.
    pub version: u64,
    /// Digest of its files.
    pub digest: [u8; 32],
    /// Whether it came signed from a registry.
    pub signed: bool,
    /// Microseconds spent waiting, before, in and after the model.
    pub stages_us: Stages,
    /// When to try again after a refusal, 0 where that is not known.
    pub retry_after_ms: u32,
    /// What went wrong, in words.
    pub detail: String,
    /// Output tensors.
    pub tensors: Vec<Tensor>,
    /// Best classes first.
    pub classes: Vec<Class>,
}

/// Where the time went, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages {
    /// Waiting for a worker.
    pub queue: u32,
    /// Decoding and normalising the input.
    pub pre: u32,
    /// The model itself.
    pub infer: u32,
    /// Softmax, top-k, labels.
    pub post: u32,
}

/// One class of a classifier's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// Position in the output.
    pub index: u32,
    /// Its score as the model declares it (a probability after softmax).
    pub score: f32,
    /// Its label, empty where the model has none.
    pub label: String,
}

/// Why a frame could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The request breaks a limit of the protocol.
    #[error("the request does not fit the protocol: {0}")]
    Encode(String),
    /// What arrived is no frame of this protocol.
    #[error("the reply is not understood ({0}); are tractd and tractctl of the same version?")]
    Decode(String),
}

impl Request {
    /// The whole frame: header, head, body.
    pub fn frame(&self, id: u64) -> Result<Vec<u8>, FrameError> {
        let encode = |e: &dyn std::fmt::Display| FrameError::Encode(e.to_string());
        let mut tensors = wire::Tensors::new();
        let (content, body): (_, Vec<&[u8]>) = match &self.input {
            Input::Media(bytes) => (wire::Content::Media, vec![bytes]),
            Input::Tensors(list) => {
                for tensor in list {
                    let shape = tensor.shape.as_slice().try_into().map_err(|_| encode(&"too many axes"))?;
                    let desc = wire::TensorDesc { name: &tensor.name, dtype: tensor.dtype, shape };
                    tensors.push(desc).map_err(|_| encode(&"too many tensors"))?;
                }
                (wire::Content::Tensors, list.iter().map(|tensor| tensor.data.as_slice()).collect())
            }
        };
        let body_len = u32::try_from(body.iter().map(|part| part.len()).sum::<usize>())
            .map_err(|_| encode(&"more than 4 GiB"))?;
        let request = wire::Request {
            model: &self.model,
            deadline_ms: self.deadline_ms,
            priority: wire::Priority::Normal,
            content,
            want: self.want,
            stream: 0,
            sequence: 0,
            tensors,
        };
        let mut frame = vec![0; wire::FRAME_HEAD_MAX];
        let used = wire::encode_request(id, &request, body_len, &mut frame).map_err(|e| encode(&e))?;
        frame.truncate(used);
        body.iter().for_each(|part| frame.extend_from_slice(part));
        Ok(frame)
    }
}

impl Reply {
    /// Reads a whole frame, as MQTT carries it.
    pub fn from_frame(frame: &[u8]) -> Result<Self, FrameError> {
        let frame = wire::Frame::parse(frame, wire::BODY_LEN_MAX)
            .map_err(|error| FrameError::Decode(error.to_string()))?;
        Self::from_parts(&frame)
    }

    /// Reads a frame that was split already.
    pub fn from_parts(frame: &wire::Frame<'_>) -> Result<Self, FrameError> {
        let reply = frame.reply().map_err(|error| FrameError::Decode(error.to_string()))?;
        let tensors = wire::views(&reply.tensors, frame.body).map(|(desc, data)| Tensor {
            name: desc.name.to_owned(),
            dtype: desc.dtype,
            shape: desc.shape.to_vec(),
            data: data.to_vec(),
        });
        let class = |class: &wire::Class<'_>| Class {
            index: class.index,
            score: class.score,
            label: class.label.to_owned(),
        };
        Ok(Self {
            id: frame.header.id,
            status: reply.status,
            model: reply.model.to_owned(),
            version: reply.version,
            digest: reply.digest,
            signed: reply.signed,
            stages_us: Stages {
                queue: reply.queue_us,
                pre: reply.pre_us,
                infer: reply.infer_us,
                post: reply.post_us,
            },
            retry_after_ms: reply.retry_after_ms,
            detail: reply.detail.to_owned(),
            tensors: tensors.collect(),
            classes: reply.classes.iter().map(class).collect(),
        })
    }

    /// `sha256:…`, as logs and status print it.
    pub fn digest_text(&self) -> String {
        tractd_bundle::Digest(self.digest).to_string()
    }

    /// The same object that a JSON request over MQTT is answered with.
    pub fn to_json(&self) -> Value {
        let mut out = json!({
            "id": self.id, "status": self.status.code(), "model": self.model, "version": self.version,
            "digest": self.digest_text(), "signed": self.signed,
            "queue_us": self.stages_us.queue, "pre_us": self.stages_us.pre,
            "infer_us": self.stages_us.infer, "post_us": self.stages_us.post,
        });
        if self.status != wire::Status::Ok {
            out["code"] = self.status.code().into();
            out["name"] = self.status.name().into();
            out["detail"] = self.detail.as_str().into();
            out["retryable"] = self.status.retryable().into();
            out["retry_after_ms"] = self.retry_after_ms.into();
            return out;
        }
        out["outputs"] = self.tensors.iter().map(|t| (t.name.clone(), t.to_json())).collect();
        let class = |c: &Class| json!({ "index": c.index, "label": c.label, "score": c.score });
        out["classes"] = self.classes.iter().map(class).collect();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(input: Input) -> Request {
        Request { model: "digits@2".into(), deadline_ms: 250, input, want: wire::Want::default() }
    }

    #[test]
    fn a_request_frame_is_what_the_wire_reads_back() {
        let tensor =
            Tensor { name: "x".into(), dtype: wire::DType::U8, shape: vec![1, 3], data: vec![1, 2, 3] };
        let frame = request(Input::Tensors(vec![tensor])).frame(7).unwrap();
        let frame = wire::Frame::parse(&frame, 3).unwrap();
        let read = frame.request().unwrap();
        assert_eq!((frame.header.id, frame.body), (7, &[1u8, 2, 3][..]));
        assert_eq!((read.model, read.deadline_ms, read.tensors[0].name), ("digits@2", 250, "x"));
        assert_eq!(&read.tensors[0].shape[..], &[1, 3]);
    }

    #[test]
    fn too_many_axes_are_said_and_not_sent() {
        let tensor = Tensor { name: "x".into(), dtype: wire::DType::U8, shape: vec![1; 9], data: vec![0] };
        let error = request(Input::Tensors(vec![tensor])).frame(1).unwrap_err().to_string();
        assert_eq!(error, "the request does not fit the protocol: too many axes");
    }

    #[test]
    fn a_torn_reply_is_not_believed() {
        assert!(Reply::from_frame(b"td").unwrap_err().to_string().contains("2 bytes are no frame"));
        let frame = request(Input::Media(vec![1])).frame(1).unwrap();
        let torn = Reply::from_frame(&frame[..frame.len() - 1]).unwrap_err().to_string();
        assert!(torn.contains("its header announces"), "{torn}");
        let wrong = Reply::from_frame(&frame).unwrap_err().to_string();
        assert!(wrong.contains("the frame is a request, not a reply"), "{wrong}");
    }
}
