//! Whatever encodes decodes to itself, and whatever topic is built is read back.

use proptest::{collection::vec, option, prelude::*, sample::select};
use tractd_wire::{topic::*, *};

use crate::hostile::same_reply;

prop_compose! {
    fn tensor()(
        name in ".{0,31}",
        dtype in select(DType::ALL),
        shape in vec(prop_oneof![0..40_u32, any::<u32>()], 0..=RANK_MAX),
    ) -> (String, DType, Vec<u32>) {
        (name, dtype, shape)
    }
}

type Owned = (String, DType, Vec<u32>);

/// The tensors that still fit a body together, and that body's length.
fn describe(owned: &[Owned]) -> (Tensors<'_>, u32) {
    let mut tensors = Tensors::new();
    let mut sum = 0;
    for (name, dtype, shape) in owned {
        let tensor = TensorDesc { name, dtype: *dtype, shape: Shape::from_slice(shape).unwrap() };
        let Some(with) = tensor.byte_len().and_then(|len| len.checked_add(sum)) else { continue };
        sum = with;
        tensors.push(tensor).unwrap();
    }
    assert_eq!(body_len(&tensors), Some(sum));
    (tensors, sum)
}

fn selector() -> impl Strategy<Value = String> {
    ("[a-z0-9][a-z0-9_-]{0,62}", option::of(prop_oneof!["[1-9][0-9]{0,18}", "[a-z][a-z0-9_-]{0,62}"]))
        .prop_map(|(name, pin)| pin.map_or(name.clone(), |pin| format!("{name}@{pin}")))
}

proptest! {
    #[test]
    fn requests(
        id: u64, model in selector(), deadline_ms: u32, priority in select(Priority::ALL), want in 0..=3_u8,
        owned in vec(tensor(), 0..=TENSORS_MAX), media in option::of(1_u32..),
    ) {
        let (tensors, sum) = if media.is_some() { (Tensors::new(), 0) } else { describe(&owned) };
        let body_len = media.unwrap_or(sum);
        let content = if media.is_some() { Content::Media } else { Content::Tensors };
        let want = Want::from_number(want).unwrap();
        let request = Request { deadline_ms, priority, content, want, tensors, ..Request::tensors(&model) };
        let mut out = [0; FRAME_HEAD_MAX];
        let len = encode_request(id, &request, body_len, &mut out).unwrap();
        let header = Header::parse(out.first_chunk().unwrap()).unwrap();
        prop_assert_eq!(header, Header { kind: Kind::Request, head_len: (len - 20) as u16, body_len, id });
        prop_assert_eq!(decode_request(&out[20..len], body_len), Ok(request));
    }

    #[test]
    fn replies(
        id: u64, status in select(Status::ALL), model in option::of(selector()), version: u64, digest: [u8; 32],
        signed: bool, times: [u32; 5], detail in ".{0,128}", owned in vec(tensor(), 0..=TENSORS_MAX),
        labels in vec((any::<u32>(), -1e30_f32..1e30, ".{0,31}"), 0..=CLASSES_MAX),
    ) {
        let (tensors, body_len) = describe(&owned);
        let [queue_us, pre_us, infer_us, post_us, retry_after_ms] = times;
        let classes: Vec<_> =
            labels.iter().map(|(index, score, label)| Class { index: *index, score: *score, label }).collect();
        let reply = Reply {
            status, model: model.as_deref().unwrap_or_default(), version, digest, signed, queue_us, pre_us,
            infer_us, post_us, retry_after_ms, detail: &detail, tensors,
            classes: Classes::from_slice(&classes).unwrap(),
        };
        let mut out = [0; FRAME_HEAD_MAX];
        let len = encode_reply(id, &reply, body_len, &mut out).unwrap();
        prop_assert_eq!(decode_reply(&out[20..len], body_len), Ok(reply));
        if body_len < 1 << 20 {
            same_reply(&out[20..len], &vec![1; body_len as usize]);
        }
    }

    #[test]
    fn queries_and_answers(
        id: u64, what in select(What::ALL), status in select(Status::ALL), detail in ".{0,128}", body_len: u32,
    ) {
        let mut out = [0; FRAME_HEAD_MAX];
        let len = encode_query(id, &Query { what }, &mut out).unwrap();
        prop_assert_eq!(Frame::parse(&out[..len], 0).unwrap().query(), Ok(Query { what }));
        let answer = Answer { status, detail: &detail };
        let len = encode_answer(id, &answer, body_len, &mut out).unwrap();
        prop_assert_eq!(decode_answer(&out[20..len]), Ok(answer));
    }

    #[test]
    fn topics(
        prefix in "[a-z]{1,9}(/[A-Z0-9]{1,9}){0,3}", node in option::of("[a-z0-9][a-z0-9_-]{0,62}"),
        model in selector(), format in select(&[Format::Json, Format::Postcard, Format::Raw]),
        client in "[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}", id in option::of("[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}"),
    ) {
        let prefix = Prefix::parse(&prefix).unwrap();
        let request = RequestTopic {
            node: node.as_deref().map_or(Node::Any, |node| Node::Named(Name::parse(node).unwrap())),
            model: Selector::parse(&model).unwrap(),
            format,
            client: Word::parse(&client).unwrap(),
            id: id.as_deref().map(|id| Word::parse(id).unwrap()),
        };
        let mut buffer = [0; TOPIC_LEN_MAX];
        let topic = Topic::Request(request);
        prop_assert_eq!(Topic::parse(prefix, topic.build(prefix, &mut buffer).unwrap()), Ok(topic));
        let reply = request.reply();
        prop_assert_eq!(Topic::parse(prefix, reply.build(prefix, &mut buffer).unwrap()), Ok(reply));
        prop_assert_eq!(request.model.to_string(), model);
    }
}
