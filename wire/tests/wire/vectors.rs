//! Each golden frame decodes to exactly one message and that message encodes to exactly that frame.

use tractd_wire::*;

use crate::golden;

#[track_caller]
fn check<M: PartialEq + std::fmt::Debug>(
    file: &str,
    id: u64,
    message: &M,
    body: &[u8],
    decoded: Result<M, DecodeError>,
    encode: impl Fn(u64, &M, u32, &mut [u8]) -> Result<usize, EncodeError>,
) {
    let bytes = golden::bytes(file);
    let frame = Frame::parse(&bytes, BODY_LEN_MAX).unwrap();
    assert_eq!(frame.header.id, id);
    assert_eq!(frame.body, body);
    assert_eq!(decoded.as_ref(), Ok(message));

    let mut out = [0; FRAME_HEAD_MAX];
    let len = encode(id, message, body.len() as u32, &mut out).unwrap();
    assert_eq!([&out[..len], body].concat(), bytes);
    // The buffer may be exact and no smaller.
    assert_eq!(encode(id, message, body.len() as u32, &mut out[..len]), Ok(len));
    for short in 0..len {
        assert_eq!(
            encode(id, message, body.len() as u32, &mut out[..short]),
            Err(EncodeError::Buffer),
            "{short}"
        );
    }
}

/// The decoders borrow from the frame; the golden frames live as long as the test.
fn leak(file: &str) -> Frame<'static> {
    Frame::parse(golden::bytes(file).leak(), BODY_LEN_MAX).unwrap()
}

#[test]
fn request_with_tensors() {
    let tensors = Tensors::from_slice(&[
        TensorDesc { name: "input:0", dtype: DType::F32, shape: Shape::from_slice(&[1, 3]).unwrap() },
        TensorDesc { name: "größe", dtype: DType::I16, shape: Shape::new() },
    ])
    .unwrap();
    let request = Request {
        deadline_ms: 1500,
        priority: Priority::High,
        want: Want::TENSORS,
        tensors,
        ..Request::tensors("digits@7")
    };
    let body = [&0.5_f32.to_le_bytes()[..], &(-1_f32).to_le_bytes(), &3.25_f32.to_le_bytes(), &[0xfe, 0xff]];
    let frame = leak(golden::REQUEST_TENSORS);
    check(
        golden::REQUEST_TENSORS,
        0x0102_0304_0506_0708,
        &request,
        &body.concat(),
        frame.request(),
        encode_request,
    );

    let bytes: Vec<_> = views(&request.tensors, frame.body).map(|(t, data)| (t.name, data.len())).collect();
    assert_eq!(bytes, [("input:0", 12), ("größe", 2)]);
}

#[test]
fn request_with_an_image() {
    let frame = leak(golden::REQUEST_MEDIA);
    let request = Request::media("digits");
    check(golden::REQUEST_MEDIA, 1, &request, b"\x89PNG\r\n\x1a\n", frame.request(), encode_request);
}

#[test]
fn request_at_every_limit() {
    let name = "t".repeat(TENSOR_NAME_LEN_MAX);
    let shape = Shape::from_slice(&[u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0]);
    let shape = shape.unwrap();
    use DType::*;
    let tensors: Vec<_> = [U8, I8, U16, U32, U64, F16, F64, Bool]
        .map(|dtype| TensorDesc { name: name.as_str(), dtype, shape: shape.clone() })
        .into();
    let model = format!("{}@{}", "a".repeat(NAME_LEN_MAX), "b".repeat(NAME_LEN_MAX));
    let request = Request {
        deadline_ms: u32::MAX,
        priority: Priority::Low,
        want: Want { tensors: false, classes: false },
        tensors: Tensors::from_slice(&tensors).unwrap(),
        ..Request::tensors(&model)
    };
    let frame = leak(golden::REQUEST_LIMITS);
    check(golden::REQUEST_LIMITS, 0, &request, &[], frame.request(), encode_request);
}

#[test]
fn reply_with_an_answer() {
    let shape = Shape::from_slice(&[1, 2, 2]).unwrap();
    let tensors = Tensors::from_slice(&[TensorDesc { name: "scores", dtype: DType::U8, shape }]).unwrap();
    let classes = Classes::from_slice(&[
        Class { index: u32::MAX, score: 0.75, label: "sieben ✓" },
        Class { index: 1, score: -0.0, label: "" },
    ])
    .unwrap();
    let reply = Reply {
        status: Status::Ok,
        model: "digits",
        version: u64::MAX,
        digest: std::array::from_fn(|i| i as u8),
        signed: true,
        queue_us: 127,
        pre_us: 128,
        infer_us: 300,
        post_us: 16_384,
        retry_after_ms: u32::MAX,
        detail: "",
        tensors,
        classes,
    };
    let frame = leak(golden::REPLY_OK);
    check(golden::REPLY_OK, 0x0102_0304_0506_0708, &reply, &[1, 2, 254, 255], frame.reply(), encode_reply);
}

#[test]
fn reply_with_a_refusal() {
    let reply = Reply { model: "digits", ..Reply::refusal(Status::Busy, 250, "the queue is full") };
    let frame = leak(golden::REPLY_REFUSED);
    check(golden::REPLY_REFUSED, u64::MAX, &reply, &[], frame.reply(), encode_reply);
}

#[test]
fn query_and_answer() {
    let query = Query { what: What::Models };
    let frame = leak(golden::QUERY_MODELS);
    check(golden::QUERY_MODELS, 7, &query, &[], frame.query(), |id, query, _, out| {
        encode_query(id, query, out)
    });
    let answer = Answer { status: Status::Ok, detail: "" };
    let frame = leak(golden::ANSWER_MODELS);
    check(golden::ANSWER_MODELS, 7, &answer, b"{\"models\":[]}", frame.answer(), encode_answer);
}

/// The numbers as `docs/wire.md` lists them.
#[test]
fn every_number_is_frozen() {
    let numbers = |all: &[(u16, &str)]| all.iter().map(|(n, name)| format!("{n} {name}")).collect::<Vec<_>>();
    let dtypes: Vec<_> = DType::ALL.iter().map(|d| (d.number().into(), d.name())).collect();
    assert_eq!(
        numbers(&dtypes).join(", "),
        "1 u8, 2 i8, 3 u16, 4 i16, 5 u32, 6 i32, 7 u64, 8 i64, 9 f16, 10 f32, 11 f64, 12 bool"
    );
    let statuses: Vec<_> = Status::ALL.iter().map(|s| (s.code(), s.name())).collect();
    assert_eq!(
        numbers(&statuses).join(", "),
        "200 ok, 400 malformed, 403 forbidden, 404 model-not-found, 408 deadline-exceeded, 413 too-large, \
         415 unsupported-type, 422 invalid-input, 429 busy, 500 internal, 502 quarantined, 503 draining, \
         505 version, 507 insufficient-memory"
    );
    let retryable: Vec<_> = Status::ALL.iter().filter(|s| s.retryable()).map(|s| s.code()).collect();
    assert_eq!(retryable, [429, 503, 507]);
    let kinds: Vec<_> = Kind::ALL.iter().map(|k| (k.number().into(), k.name())).collect();
    assert_eq!(numbers(&kinds).join(", "), "1 request, 2 reply, 3 query, 4 answer");
    let whats: Vec<_> = What::ALL.iter().map(|w| (w.number().into(), w.name())).collect();
    assert_eq!(numbers(&whats).join(", "), "1 models, 2 status, 3 check-updates");
    let priorities: Vec<_> = Priority::ALL.iter().map(|p| (p.number().into(), p.name())).collect();
    assert_eq!(numbers(&priorities).join(", "), "0 low, 1 normal, 2 high");
    let contents: Vec<_> = Content::ALL.iter().map(|c| (c.number().into(), c.name())).collect();
    assert_eq!(numbers(&contents).join(", "), "0 tensors, 1 media");
    assert_eq!((Want::TENSORS.number(), Want::CLASSES.number(), Want::default().number()), (1, 2, 3));
    let sizes: Vec<_> = DType::ALL.iter().map(|d| d.size()).collect();
    assert_eq!(sizes, [1, 1, 2, 2, 4, 4, 8, 8, 2, 4, 8, 1]);
    assert!(DType::ALL.iter().all(|d| DType::from_name(d.name()) == Some(*d)));
    assert!(Status::ALL.iter().all(|s| Status::from_code(s.code()) == Some(*s)));
}
