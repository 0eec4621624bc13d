//! Any bytes as a frame: what a decoder takes encodes again to what it was, and both decoders of a reply agree.

use tractd_wire::*;

pub(crate) fn check(bytes: &[u8]) {
    if let Some(Ok(header)) = bytes.first_chunk().map(Header::parse) {
        assert_eq!(bytes.first_chunk(), Some(&header.to_bytes()));
    }
    let frame = match Frame::parse(bytes, BODY_LEN_MAX) {
        Ok(frame) => frame,
        Err(error) => {
            let _ = (error.id(), error.status());
            return;
        }
    };
    assert_eq!(Frame::checked(bytes), Some(frame));
    let Header { kind, body_len, id, .. } = frame.header;
    let mut out = [0; FRAME_HEAD_MAX];
    match kind {
        Kind::Request => {
            if let Ok(request) = frame.request() {
                let len = encode_request(id, &request, body_len, &mut out)
                    .expect("a reader's rules are the writer's");
                assert_eq!(decode_request(&out[HEADER_LEN..len], body_len), Ok(request));
            }
        }
        Kind::Reply => same_reply(&frame),
        Kind::Query => {
            if let Ok(query) = frame.query() {
                let len = encode_query(id, &query, &mut out).expect("a query fits");
                assert_eq!(decode_query(&out[HEADER_LEN..len], 0), Ok(query));
            }
        }
        Kind::Answer => {
            if let Ok(answer) = frame.answer() {
                let len = encode_answer(id, &answer, body_len, &mut out)
                    .expect("a reader's rules are the writer's");
                assert_eq!(decode_answer(&out[HEADER_LEN..len]), Ok(answer));
            }
        }
    }
}

fn same_reply(frame: &Frame<'_>) {
    let (reply, view) = match (frame.reply(), frame.reply_view()) {
        (Ok(reply), Ok(view)) => (reply, view),
        (Err(_), Err(_)) => return,
        (reply, view) => panic!("{reply:?}\n{view:?}"),
    };
    let mut out = [0; FRAME_HEAD_MAX];
    let len =
        encode_reply(1, &reply, frame.header.body_len, &mut out).expect("a reader's rules are the writer's");
    // As text, because a score may be NaN.
    let again = decode_reply(&out[HEADER_LEN..len], frame.header.body_len);
    assert_eq!(format!("{again:?}"), format!("{:?}", Ok::<_, DecodeError>(&reply)));

    let times = [view.queue_us, view.pre_us, view.infer_us, view.post_us, view.retry_after_ms];
    assert_eq!(times, [reply.queue_us, reply.pre_us, reply.infer_us, reply.post_us, reply.retry_after_ms]);
    assert_eq!((view.status, view.model, view.version), (reply.status, reply.model, reply.version));
    assert_eq!((view.digest, view.signed, view.detail), (&reply.digest, reply.signed, reply.detail));
    assert_eq!(format!("{:?}", view.classes().collect::<Vec<_>>()), format!("{:?}", &reply.classes[..]));
    let viewed: Vec<_> =
        view.tensors().map(|t| (t.name, t.dtype, t.shape.iter().collect::<Vec<_>>(), t.data)).collect();
    let read: Vec<_> = views(&reply.tensors, frame.body)
        .map(|(t, data)| (t.name, t.dtype, t.shape.to_vec(), data))
        .collect();
    assert_eq!(viewed, read);
}
