//! Publishes to requests and replies to publishes: the contract of `docs/mqtt.md`, without time or connection.

use std::time::Duration;

use bytes::Bytes;
use tractd_wire::topic::{Format, Prefix, Topic, Word};
use tractd_wire::{HEADER_LEN, Header, Priority, Selector, Status, Want};

use super::json;
use super::message::{Arrival, Message, Properties, Qos};
use crate::frame;
use crate::intake::{Origin, Payload, Reply, Request};

/// Longest correlation data kept and echoed, in bytes; 16 are usual.
const CORRELATION_LEN_MAX: usize = 256;
/// Longest reply topic published to, in bytes: AWS IoT's limit, far above what `_res/<client>/<id>` needs.
const REPLY_TOPIC_LEN_MAX: usize = 256;

/// What a publish turns out to be.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A request to hand in.
    Request(Box<Ask>),
    /// A request that gets its refusal at once.
    Refuse(Address, Box<Reply>),
    /// Nobody could be answered, or nobody should be.
    Drop(Dropped),
}

/// A request with the way back.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) request: Request,
    pub(super) address: Address,
    /// By what a repetition of this request would be known.
    pub(super) correlation: Option<Bytes>,
}

/// Why a publish was dropped without a word; each one is a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// A leftover of the broker's, perhaps a year old.
    Retained,
    /// Not a request topic of ours, so there is no requester to answer.
    Topic,
}

/// Where and how a reply goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    topic: String,
    correlation: Option<Bytes>,
    qos: Qos,
    encoding: Encoding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Encoding {
    Json { id: Option<json::Id> },
    Frame { id: u64 },
}

/// The rules of one node under one prefix.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) prefix: String,
    pub(super) node: String,
    pub(super) request_bytes_max: usize,
}

impl Exchange {
    /// Reads a publish that arrived at `unix_ms`.
    pub(super) fn incoming(&self, unix_ms: u64, arrival: &Arrival, types: json::Types<'_>) -> Incoming {
        if arrival.retain {
            return Incoming::Drop(Dropped::Retained);
        }
        let prefix = self.prefix();
        let topic = match Topic::parse(prefix, &arrival.topic) {
            Ok(Topic::Request(topic)) => topic,
            Ok(_) => return Incoming::Drop(Dropped::Topic),
            Err(error) => return self.misnamed(arrival, &error),
        };
        let mut address = Address {
            topic: topic.reply().under(prefix).to_string(),
            correlation: arrival.properties.correlation.clone(),
            qos: arrival.qos,
            encoding: match topic.format {
                Format::Postcard => Encoding::Frame { id: frame_id(&arrival.payload) },
                Format::Json | Format::Raw => {
                    Encoding::Json { id: topic.id.map(|id| json::Id::Text(id.as_str().to_owned())) }
                }
            },
        };
        let refuse = |address: Address, status, detail: String| {
            let reply = Reply::refusal(status, &topic.model.to_string(), detail);
            Incoming::Refuse(address, Box::new(reply))
        };
        if address.correlation.as_ref().is_some_and(|data| data.len() > CORRELATION_LEN_MAX) {
            address.correlation = None;
            let detail = format!("correlation data is longer than {CORRELATION_LEN_MAX} bytes");
            return refuse(address, Status::Malformed, detail);
        }
        if let Some(wanted) = &arrival.properties.response_topic {
            let own_mailbox = Topic::Reply { client: topic.client, id: None }.under(prefix).to_string();
            if !lies_under(&own_mailbox, wanted) {
                // The topic names the requester as the broker authenticated it; the property is only a wish.
                return refuse(
                    address,
                    Status::Forbidden,
                    format!("the response topic must lie under {own_mailbox}"),
                );
            }
            address.topic.clone_from(wanted);
        }
        if arrival.payload.len() > self.request_bytes_max {
            let (length, max) = (arrival.payload.len(), self.request_bytes_max);
            return refuse(address, Status::TooLarge, format!("{length} bytes; at most {max} are answered"));
        }
        let life = arrival.properties.expiry_s.map(|seconds| Duration::from_secs(seconds.into()));
        match self.request(unix_ms, arrival, topic.format, topic.model, &mut address, types) {
            Ok((request, body_id)) => {
                let deadline = shorter(request.deadline, life);
                if deadline.is_some_and(|left| left.is_zero()) {
                    return refuse(
                        address,
                        Status::DeadlineExceeded,
                        "the deadline passed on the way".to_owned(),
                    );
                }
                let correlation = arrival
                    .properties
                    .correlation
                    .clone()
                    .or_else(|| topic.id.map(|id| Bytes::copy_from_slice(id.as_str().as_bytes())))
                    .or(body_id);
                let request = Request { deadline, ..request };
                Incoming::Request(Box::new(Ask { request, address, correlation }))
            }
            Err((status, detail)) => refuse(address, status, detail),
        }
    }

    fn request(
        &self,
        unix_ms: u64,
        arrival: &Arrival,
        format: Format,
        model: Selector<'_>,
        address: &mut Address,
        types: json::Types<'_>,
    ) -> Result<(Request, Option<Bytes>), json::Refusal> {
        let name = model.to_string();
        let bare = |payload| Request {
            model: name.clone(),
            deadline: None,
            priority: Priority::Normal,
            payload,
            want: Want::ALL,
            origin: Origin::Mqtt,
        };
        match format {
            Format::Raw => {
                let media = media(&arrival.payload, arrival.properties.content_type.as_deref())?;
                Ok((bare(media), None))
            }
            Format::Json => {
                let body = json::read(&name, &arrival.payload, types)?;
                let deadline = body.deadline.map(|deadline| deadline.left(unix_ms));
                let body_id = body.id.as_ref().map(|id| Bytes::from(id.to_bytes()));
                if body.id.is_some() {
                    address.encoding = Encoding::Json { id: body.id };
                }
                let Request { model, origin, .. } = bare(Payload::Media(Bytes::new()));
                let (priority, payload, want) = (body.priority, body.payload, body.want);
                Ok((Request { model, deadline, priority, payload, want, origin }, body_id))
            }
            Format::Postcard => {
                let (id, request) =
                    frame::read_request(&arrival.payload, self.request_bytes_max as u32, Origin::Mqtt)
                        .map_err(|(_, reply)| (reply.status, reply.detail))?;
                // The broker's access list speaks of the topic, so the frame may not ask another model.
                if request.model != name {
                    let detail = format!("the frame asks {:?}, its topic {name:?}", request.model);
                    return Err((Status::Malformed, detail));
                }
                let body_id = (id != 0).then(|| Bytes::copy_from_slice(&id.to_le_bytes()));
                Ok((Request { model: name, ..request }, body_id))
            }
        }
    }

    /// A request topic with a level that is no name: the requester is told, if the topic at least names one.
    fn misnamed(&self, arrival: &Arrival, error: &tractd_wire::topic::TopicError) -> Incoming {
        let levels = arrival.topic.strip_prefix(&self.prefix).unwrap_or_default();
        let levels: Vec<&str> = levels.split('/').skip(1).collect();
        let client = match levels[..] {
            [node, "req", _, _, client] | [node, "req", _, _, client, _] if node == self.node => {
                Word::parse(client).ok()
            }
            _ => None,
        };
        let Some(client) = client else { return Incoming::Drop(Dropped::Topic) };
        let address = Address {
            topic: Topic::Reply { client, id: None }.under(self.prefix()).to_string(),
            correlation: arrival
                .properties
                .correlation
                .clone()
                .filter(|data| data.len() <= CORRELATION_LEN_MAX),
            qos: arrival.qos,
            encoding: Encoding::Json { id: None },
        };
        let status = match error {
            tractd_wire::topic::TopicError::Format => Status::UnsupportedType,
            _ => Status::Malformed,
        };
        Incoming::Refuse(address, Box::new(Reply::refusal(status, "", error.to_string())))
    }

    fn prefix(&self) -> Prefix<'_> {
        Prefix::parse(&self.prefix).expect("the configuration has checked the prefix")
    }
}

impl Address {
    /// Where the reply goes: with the correlation it tells a repeated request from a new one.
    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// The publish that carries `reply`.
    pub(super) fn message(&self, reply: &Reply) -> Message {
        let (payload, content_type) = match &self.encoding {
            Encoding::Json { id } => (json::write(id.as_ref(), reply), "application/json"),
            Encoding::Frame { id } => {
                (frame::write_reply(*id, reply).to_vec(), "application/vnd.tractd.frame")
            }
        };
        let properties = Properties {
            correlation: self.correlation.clone(),
            content_type: Some(content_type.to_owned()),
            user: user_properties(reply),
            ..Properties::default()
        };
        Message {
            topic: self.topic.clone(),
            payload: payload.into(),
            retain: false,
            qos: self.qos,
            properties,
        }
    }

    /// What goes out instead of a reply the broker wouldn't take.
    pub(super) fn too_large(&self, model: &str, bytes: usize, bytes_max: usize) -> Message {
        let detail =
            format!("the reply has {bytes} bytes, the broker takes {bytes_max}; ask for classes alone");
        self.message(&Reply::refusal(Status::TooLarge, model, detail))
    }
}

fn user_properties(reply: &Reply) -> Vec<(&'static str, String)> {
    let mut user = Vec::with_capacity(6);
    user.push(("status", reply.status.code().to_string()));
    let mut add = |key, value: String| user.push((key, value));
    if !reply.model.is_empty() {
        add("model", reply.model.to_string());
    }
    if reply.version > 0 {
        add("version", reply.version.to_string());
        add("digest", reply.digest.to_string());
    }
    if reply.status == Status::Ok {
        add("infer_us", reply.timings.infer_us.to_string());
        add("queue_us", reply.queue_us.to_string());
    }
    if reply.retry_after_ms > 0 {
        add("retry_after_ms", reply.retry_after_ms.to_string());
    }
    user
}

/// The requester's mailbox itself or a topic below it, without wildcards.
fn lies_under(mailbox: &str, topic: &str) -> bool {
    let below = topic.strip_prefix(mailbox).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below
        && topic.len() <= REPLY_TOPIC_LEN_MAX
        && !topic.chars().any(|c| matches!(c, '+' | '#') || c.is_control())
}

/// An image is what its first bytes say; a content type that says otherwise is a mistake worth hearing of.
fn media(payload: &Bytes, content_type: Option<&str>) -> Result<Payload, json::Refusal> {
    let unsupported = |detail: String| Err((Status::UnsupportedType, detail));
    let kind = if payload.starts_with(&[0xff, 0xd8, 0xff]) {
        "image/jpeg"
    } else if payload.starts_with(b"\x89PNG\r\n\x1a\n") {
        "image/png"
    } else {
        return unsupported("the payload is neither a JPEG nor a PNG".to_owned());
    };
    match content_type {
        None => {}
        Some(named) if named == kind || named == "application/octet-stream" => {}
        Some(named) => return unsupported(format!("the content type is {named:?}, the payload {kind}")),
    }
    Ok(Payload::Media(payload.clone()))
}

/// The id of a frame, as far as its header can be read, so that even a refusal echoes it.
fn frame_id(payload: &[u8]) -> u64 {
    payload
        .first_chunk::<HEADER_LEN>()
        .and_then(|header| Header::parse(header).ok())
        .map_or(0, |header| header.id)
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::TensorDesc;
    use tractd_bundle::{DType as BundleDType, Digest};
    use tractd_engine::{Class, Tensor, Timings};
    use tractd_wire::{self as wire, DType};

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\nrest";

    fn exchange() -> Exchange {
        Exchange { prefix: "tractd/v1".to_owned(), node: "n1".to_owned(), request_bytes_max: 1000 }
    }

    fn arrival(topic: &str, payload: &[u8]) -> Arrival {
        Arrival {
            topic: format!("tractd/v1/{topic}"),
            payload: Bytes::copy_from_slice(payload),
            retain: false,
            dup: false,
            qos: Qos::AtLeastOnce,
            properties: Properties::default(),
        }
    }

    fn with(mut arrival: Arrival, properties: Properties) -> Arrival {
        arrival.properties = properties;
        arrival
    }

    fn incoming(arrival: &Arrival) -> Incoming {
        exchange().incoming(10_000, arrival, &|_, _| Some(DType::U8))
    }

    #[track_caller]
    fn accepted(arrival: &Arrival) -> Ask {
        match incoming(arrival) {
            Incoming::Request(ask) => *ask,
            other => panic!("{other:?}"),
        }
    }

    /// Status, detail and the topic of the refusal.
    #[track_caller]
    fn refused(arrival: &Arrival) -> (Status, String, String) {
        match incoming(arrival) {
            Incoming::Refuse(address, reply) => (reply.status, reply.detail, address.topic),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn dropped(arrival: &Arrival) -> Dropped {
        match incoming(arrival) {
            Incoming::Drop(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn frame(id: u64, model: &str) -> Vec<u8> {
        let mut request = wire::Request::tensors(model);
        let shape = wire::Shape::from_slice(&[2]).unwrap();
        request.tensors.push(wire::TensorDesc { name: "x", dtype: DType::U8, shape }).unwrap();
        request.deadline_ms = 80;
        let mut head = [0; wire::FRAME_HEAD_MAX];
        let length = wire::encode_request(id, &request, 2, &mut head).unwrap();
        [&head[..length], &[7, 8]].concat()
    }

    fn answer() -> Reply {
        let tensor = |name: &str, dtype, shape: &[u32], data: Vec<u8>| Tensor {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            data,
        };
        let floats = [0.25_f32, 0.1, f32::NAN].iter().flat_map(|f| f.to_le_bytes()).collect();
        Reply {
            version: 2,
            digest: Digest([0xab; 32]),
            signed: true,
            queue_us: 5,
            timings: Timings { pre_us: 1, infer_us: 20, post_us: 3 },
            tensors: vec![
                tensor("p", BundleDType::F32, &[1, 3], floats),
                tensor("n", BundleDType::I64, &[], (-4_i64).to_le_bytes().to_vec()),
            ],
            classes: vec![Class { index: 7, score: 0.5, label: "seven".into() }],
            ..Reply::refusal(Status::Ok, "digits", "")
        }
    }

    #[test]
    fn each_format_becomes_the_same_kind_of_request() {
        let tensors = Payload::Tensors {
            descs: vec![TensorDesc { name: "x".to_owned(), dtype: DType::U8, shape: vec![2] }],
            body: vec![7, 8].into(),
        };
        let json = accepted(&arrival("n1/req/digits@7/json/cam", br#"{"inputs":{"x":[7,8]}}"#));
        let postcard = accepted(&arrival("n1/req/digits@7/postcard/cam", &frame(9, "digits@7")));
        let raw = accepted(&arrival("n1/req/digits@7/raw/cam", PNG));
        for (ask, payload, deadline_ms) in [
            (json, tensors.clone(), None),
            (postcard, tensors, Some(80)),
            (raw, Payload::Media(Bytes::from_static(PNG)), None),
        ] {
            assert_eq!(ask.request.model, "digits@7");
            assert_eq!(ask.request.payload, payload);
            assert_eq!(ask.request.deadline, deadline_ms.map(Duration::from_millis));
            assert_eq!(ask.request.origin, Origin::Mqtt);
            assert_eq!(ask.address.topic, "tractd/v1/_res/cam");
        }
    }

    #[test]
    fn the_correlation_is_the_property_or_the_topic_or_the_body() {
        let body = br#"{"inputs":{"x":[7]},"id":"b"}"#;
        let property = Properties { correlation: Some("p".into()), ..Properties::default() };
        let correlation = |arrival: &Arrival| accepted(arrival).correlation;
        let plain = arrival("n1/req/m/json/cam", body);
        let topic = arrival("n1/req/m/json/cam/t", body);
        assert_eq!(correlation(&with(topic.clone(), property)), Some("p".into()));
        assert_eq!(correlation(&topic), Some("t".into()));
        assert_eq!(correlation(&plain), Some("b".into()));
        assert_eq!(accepted(&topic).address.topic, "tractd/v1/_res/cam/t");
        let frame_id = correlation(&arrival("n1/req/m/postcard/cam", &frame(9, "m")));
        assert_eq!(frame_id, Some(Bytes::copy_from_slice(&9_u64.to_le_bytes())));
        assert_eq!(correlation(&arrival("n1/req/m/raw/cam", PNG)), None);
    }

    #[test]
    fn a_reply_goes_into_the_mailbox_of_the_client_in_the_topic_and_nowhere_else() {
        let ask = |response: &str| {
            let properties =
                Properties { response_topic: Some(response.to_owned()), ..Properties::default() };
            with(arrival("n1/req/m/raw/cam", PNG), properties)
        };
        for mine in ["tractd/v1/_res/cam", "tractd/v1/_res/cam/a/b"] {
            assert_eq!(accepted(&ask(mine)).address.topic, mine);
        }
        for other in [
            "tractd/v1/_res/camera",
            "tractd/v1/_res/other/x",
            "tractd/v1/_res/",
            "tractd/v1/n1/req/m/raw/cam",
            "tractd/v1/_res/cam/#",
            "tractd/v1/_res/cam/+",
            "elsewhere",
            "",
        ] {
            let expected = (
                Status::Forbidden,
                "the response topic must lie under tractd/v1/_res/cam".to_owned(),
                "tractd/v1/_res/cam".to_owned(),
            );
            assert_eq!(refused(&ask(other)), expected, "{other:?}");
        }
    }

    #[test]
    fn leftovers_and_topics_without_a_requester_are_dropped() {
        let mut leftover = arrival("n1/req/m/raw/cam", PNG);
        leftover.retain = true;
        assert_eq!(dropped(&leftover), Dropped::Retained);
        for topic in
            ["n1/req/m/raw", "n1/req/m/raw/-cam", "n1/status", "n1/req/m/raw/cam/1/2", "other/req/M/raw/cam"]
        {
            assert_eq!(dropped(&arrival(topic, PNG)), Dropped::Topic, "{topic}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_to_whoever_asked() {
        let check = |arrival: &Arrival, status, detail: &str| {
            let (actual, words, topic) = refused(arrival);
            assert_eq!((actual, words.as_str(), topic.as_str()), (status, detail, "tractd/v1/_res/cam"));
        };
        let raw = |payload: &[u8]| arrival("n1/req/m/raw/cam", payload);
        let property = |change: fn(&mut Properties)| {
            let mut properties = Properties::default();
            change(&mut properties);
            with(raw(PNG), properties)
        };
        check(
            &arrival("n1/req/m/xml/cam", PNG),
            Status::UnsupportedType,
            "the format is none of json, postcard and raw",
        );
        check(
            &arrival("n1/req/Digits/raw/cam", PNG),
            Status::Malformed,
            "model: a name may hold a-z, 0-9, '_' and '-' only, and '_' and '-' not first",
        );
        check(&raw(b"GIF89a"), Status::UnsupportedType, "the payload is neither a JPEG nor a PNG");
        check(
            &property(|p| p.content_type = Some("image/jpeg".to_owned())),
            Status::UnsupportedType,
            "the content type is \"image/jpeg\", the payload image/png",
        );
        check(&raw(&[0; 1001]), Status::TooLarge, "1001 bytes; at most 1000 are answered");
        check(
            &property(|p| p.expiry_s = Some(0)),
            Status::DeadlineExceeded,
            "the deadline passed on the way",
        );
        check(
            &property(|p| p.correlation = Some(vec![0; 257].into())),
            Status::Malformed,
            "correlation data is longer than 256 bytes",
        );
        check(
            &arrival("n1/req/m/postcard/cam", &frame(9, "other")),
            Status::Malformed,
            "the frame asks \"other\", its topic \"m\"",
        );
        let stale = br#"{"inputs":{"x":[1]},"deadline_ms":500,"issued_at":9500}"#;
        check(
            &arrival("n1/req/m/json/cam", stale),
            Status::DeadlineExceeded,
            "the deadline passed on the way",
        );
    }

    #[test]
    fn the_shorter_of_expiry_and_deadline_holds() {
        let body = br#"{"inputs":{"x":[1]},"deadline_ms":1500,"issued_at":9900}"#;
        let deadline = |expiry_s| {
            let properties = Properties { expiry_s, ..Properties::default() };
            accepted(&with(arrival("n1/req/m/json/cam", body), properties)).request.deadline
        };
        assert_eq!(deadline(None), Some(Duration::from_millis(1400)));
        assert_eq!(deadline(Some(1)), Some(Duration::from_secs(1)));
        assert_eq!(deadline(Some(2)), Some(Duration::from_millis(1400)));
    }

    #[test]
    fn an_answer_reads_so() {
        let properties = Properties { correlation: Some("c".into()), ..Properties::default() };
        let ask =
            accepted(&with(arrival("n1/req/m/json/cam/1", br#"{"inputs":{"x":[1]},"id":5}"#), properties));
        let message = ask.address.message(&answer());
        let ab = "ab".repeat(32);
        let golden = format!(
            concat!(
                r#"{{"id":5,"status":200,"model":"digits","version":2,"digest":"sha256:{ab}","signed":true,"#,
                r#""queue_us":5,"pre_us":1,"infer_us":20,"post_us":3,"#,
                r#""outputs":{{"p":{{"shape":[1,3],"dtype":"f32","data":[0.25,0.1,null]}},"#,
                r#""n":{{"shape":[],"dtype":"i64","data":[-4]}}}},"#,
                r#""classes":[{{"index":7,"label":"seven","score":0.5}}]}}"#
            ),
            ab = ab
        );
        assert_eq!(String::from_utf8(message.payload.to_vec()).unwrap(), golden);
        assert_eq!(message.topic, "tractd/v1/_res/cam/1");
        assert_eq!((message.retain, message.qos), (false, Qos::AtLeastOnce));
        assert_eq!(message.properties.correlation, Some("c".into()));
        assert_eq!(message.properties.content_type.as_deref(), Some("application/json"));
        let user: Vec<String> =
            message.properties.user.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let digest = format!("digest=sha256:{ab}");
        assert_eq!(user, ["status=200", "model=digits", "version=2", &digest, "infer_us=20", "queue_us=5"]);
    }

    #[test]
    fn a_refusal_reads_so() {
        let Incoming::Request(ask) = incoming(&arrival("n1/req/m/raw/cam/42", PNG)) else { panic!() };
        let message =
            ask.address.message(&Reply::refusal(Status::Busy, "m", "the queue is full").retry_after(120));
        assert_eq!(
            String::from_utf8(message.payload.to_vec()).unwrap(),
            concat!(
                r#"{"id":"42","status":429,"code":429,"name":"busy","detail":"the queue is full","#,
                r#""retryable":true,"retry_after_ms":120,"model":"m"}"#
            )
        );
        let user: Vec<String> =
            message.properties.user.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(user, ["status=429", "model=m", "retry_after_ms=120"]);
    }

    #[test]
    fn a_frame_is_answered_by_a_frame_with_its_id() {
        let ask = accepted(&arrival("n1/req/m/postcard/cam", &frame(9, "m")));
        for (message, status, body) in [
            (ask.address.message(&answer()), Status::Ok, 20),
            (ask.address.too_large("m", 5000, 100), Status::TooLarge, 0),
        ] {
            let (header, rest) = message.payload.split_first_chunk::<HEADER_LEN>().unwrap();
            let header = Header::parse(header).unwrap();
            let (head, tensors) = rest.split_at(header.head_len.into());
            let reply = wire::decode_reply(head, header.body_len).unwrap();
            assert_eq!((header.id, reply.status, tensors.len()), (9, status, body));
        }
    }

    #[test]
    fn a_refused_frame_still_echoes_its_id() {
        let mut broken = frame(77, "m");
        broken.pop();
        let Incoming::Refuse(address, reply) = incoming(&arrival("n1/req/m/postcard/cam", &broken)) else {
            panic!()
        };
        assert_eq!(address.encoding, Encoding::Frame { id: 77 });
        assert_eq!(reply.status, Status::Malformed);
    }
}
