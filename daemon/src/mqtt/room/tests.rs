use super::*;
use crate::mqtt::config::Config;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\nrest";

/// A room with its clock; what it wants done is told in short sentences.
struct Bench {
    room: Room,
    ms: u64,
}

impl Bench {
    fn new() -> Bench {
        let mut room = Room::new(&Config::default().settings("n1").unwrap(), "n1", 0xb007);
        room.will();
        Bench { room, ms: 0 }
    }

    /// Connected, subscribed, and everything about itself said and acknowledged.
    fn ready() -> Bench {
        let mut bench = Bench::new();
        bench.greet();
        bench
    }

    fn greet(&mut self) {
        self.link(connected(false));
        self.link(client::Event::Subscribed { refused: vec![] });
        self.settle();
    }

    fn handle(&mut self, event: Event) {
        let now = Now { at: Duration::from_millis(self.ms), unix_ms: 1_000_000 + self.ms };
        self.room.handle(now, event);
    }

    fn link(&mut self, event: client::Event) {
        self.handle(Event::Link(event));
    }

    /// A raw request for model `m` by client `cam`.
    fn request(&mut self, id: &str, token: Option<u16>) {
        self.publish(&arrival(id, if token.is_some() { Qos::AtLeastOnce } else { Qos::AtMostOnce }), token);
    }

    fn publish(&mut self, arrival: &Arrival, token: Option<u16>) {
        self.link(client::Event::Publish(arrival.clone(), token.map(Token)));
    }

    fn reply(&mut self, job: u64, status: Status) {
        self.handle(Event::Reply { job, reply: Reply::refusal(status, "m", "") });
    }

    fn acked(&mut self, tag: Tag) {
        self.link(client::Event::Acked { tag, refused: None });
    }

    fn lost(&mut self) {
        self.link(client::Event::Lost(Loss::Broken("gone".to_owned())));
    }

    fn effects(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.room.effect()).map(|effect| sentence(&effect)).collect()
    }

    /// Acknowledges whatever goes out until nothing does.
    fn settle(&mut self) {
        while let Some(effect) = self.room.effect() {
            if let Effect::Publish(tag, _) = effect {
                self.acked(tag);
            }
        }
    }
}

fn arrival(id: &str, qos: Qos) -> Arrival {
    Arrival {
        topic: format!("tractd/v1/n1/req/m/raw/cam{id}"),
        payload: Bytes::from_static(PNG),
        retain: false,
        dup: false,
        qos,
        properties: Properties::default(),
    }
}

fn connected(session_present: bool) -> client::Event {
    granted(session_present, None)
}

fn granted(session_present: bool, packet_bytes_max: Option<u32>) -> client::Event {
    let keep_alive = None;
    client::Event::Connected(Granted { session_present, packet_bytes_max, receive_max: None, keep_alive })
}

fn sentence(effect: &Effect) -> String {
    match effect {
        Effect::Submit(job, request) => format!("submit {job} to {}", request.model),
        Effect::Subscribe(filters) => format!("subscribe {}", filters[REQUESTS].0),
        Effect::Unsubscribe(filter) => format!("unsubscribe {filter}"),
        Effect::CheckUpdates => "check updates".to_owned(),
        Effect::Acknowledge(Token(token)) => format!("acknowledge {token}"),
        Effect::Close => "close".to_owned(),
        Effect::Publish(tag, message) => {
            let said: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
            let what = match (&said["state"], &said["status"]) {
                (Value::String(state), _) => state.clone(),
                (_, Value::Number(status)) => status.to_string(),
                _ => String::new(),
            };
            format!("publish {tag}: {} {what}", message.topic.trim_start_matches("tractd/v1/"))
                .trim_end()
                .to_owned()
        }
    }
}

#[test]
fn a_connection_subscribes_and_then_says_what_there_is() {
    let mut bench = Bench::new();
    bench.handle(Event::Models(json!({ "models": [{ "name": "m", "version": 1, "state": "serving" }] })));
    assert!(bench.effects().is_empty());
    bench.link(connected(false));
    assert_eq!(bench.effects(), ["subscribe tractd/v1/n1/req/#"]);
    bench.link(client::Event::Subscribed { refused: vec![] });
    let said =
        ["publish 1: n1/status ready", "publish 2: n1/description", "publish 3: n1/model/m/state serving"];
    assert_eq!(bench.effects(), said);
    // The broker kept the session: the subscription stands, but our will may have been published meanwhile.
    (1..=3).for_each(|tag| bench.acked(tag));
    bench.lost();
    bench.link(connected(true));
    assert_eq!(bench.effects(), ["subscribe tractd/v1/n1/req/#"]);
    bench.link(client::Event::Subscribed { refused: vec![] });
    assert_eq!(bench.effects()[0], "publish 4: n1/status ready");
}

#[test]
fn a_session_of_an_earlier_run_is_subscribed_anew() {
    let mut bench = Bench::new();
    bench.link(connected(true));
    assert_eq!(bench.effects(), ["subscribe tractd/v1/n1/req/#"]);
}

#[test]
fn the_will_carries_the_number_of_its_birth() {
    let mut room = Room::new(&Config::default().settings("n1").unwrap(), "n1", 0xb007);
    let will = room.will();
    assert_eq!((will.topic.as_str(), will.retain), ("tractd/v1/n1/status", true));
    let text = concat!(
        r#"{"boot":"000000000000b007","max_bytes":8388608,"proto":1,"queue":16,"seq":1,"state":"lost","version":""#,
        env!("CARGO_PKG_VERSION"),
        r#""}"#
    );
    assert_eq!(will.payload, text);
    assert_eq!(room.status("ready").payload, text.replace("lost", "ready"));
    assert_eq!(room.will().payload, text.replace(r#""seq":1"#, r#""seq":2"#));
}

#[test]
fn a_request_is_acknowledged_after_its_reply_and_in_its_turn() {
    let mut bench = Bench::ready();
    bench.request("/a", Some(11));
    bench.request("/b", Some(12));
    assert_eq!(bench.effects(), ["submit 1 to m", "submit 2 to m"]);
    bench.reply(2, Status::Ok);
    assert_eq!(bench.effects(), ["publish 3: _res/cam/b 200"]);
    bench.acked(3);
    assert!(bench.effects().is_empty(), "the first request has not been answered yet");
    bench.reply(1, Status::Ok);
    assert_eq!(bench.effects(), ["publish 4: _res/cam/a 200"]);
    bench.acked(4);
    assert_eq!(bench.effects(), ["acknowledge 11", "acknowledge 12"]);
}

#[test]
fn qos_0_asks_and_is_answered_without_acknowledgements() {
    let mut bench = Bench::ready();
    bench.request("", None);
    bench.reply(1, Status::Ok);
    let effects: Vec<Effect> = std::iter::from_fn(|| bench.room.effect()).collect();
    let Effect::Publish(_, reply) = &effects[1] else { panic!("{effects:?}") };
    assert_eq!((effects.len(), reply.qos), (2, Qos::AtMostOnce));
}

#[test]
fn a_reply_outlives_its_connection_and_a_repeated_request_is_not_worked_on_again() {
    let mut bench = Bench::ready();
    bench.request("/a", Some(11));
    bench.request("/b", Some(12));
    bench.reply(1, Status::Ok);
    assert_eq!(bench.effects(), ["submit 1 to m", "submit 2 to m", "publish 3: _res/cam/a 200"]);
    bench.lost();
    bench.reply(2, Status::Ok);
    assert!(bench.effects().is_empty());
    bench.link(connected(true));
    bench.link(client::Event::Subscribed { refused: vec![] });
    bench.settle();
    // The broker delivers both again, under ids of the new connection.
    bench.request("/a", Some(1));
    bench.request("/b", Some(2));
    assert_eq!(bench.effects(), ["publish 7: _res/cam/a 200", "publish 8: _res/cam/b 200"]);
    bench.acked(7);
    bench.acked(8);
    assert_eq!(bench.effects(), ["acknowledge 1", "acknowledge 2"]);
    assert_eq!((bench.room.counters.requests, bench.room.counters.repeated), (4, 2));
}

#[test]
fn a_repetition_joins_the_work_or_the_waiting_reply() {
    let mut bench = Bench::ready();
    bench.request("/a", Some(11));
    bench.request("/a", Some(12));
    bench.reply(1, Status::Ok);
    assert_eq!(bench.effects(), ["submit 1 to m", "publish 3: _res/cam/a 200"]);
    bench.request("/a", Some(13));
    assert!(bench.effects().is_empty());
    bench.acked(3);
    assert_eq!(bench.effects(), ["acknowledge 11", "acknowledge 12", "acknowledge 13"]);
}

#[test]
fn without_a_name_only_the_brokers_word_makes_a_repetition() {
    let mut bench = Bench::ready();
    bench.request("", Some(1));
    bench.request("", Some(2));
    assert_eq!(bench.effects(), ["submit 1 to m", "submit 2 to m"]);
    let dup = Arrival { dup: true, ..arrival("", Qos::AtLeastOnce) };
    bench.publish(&dup, Some(3));
    assert!(bench.effects().is_empty());
    assert_eq!(bench.room.counters.repeated, 1);
}

#[test]
fn a_refusal_for_now_may_be_asked_again_under_the_same_name() {
    let mut bench = Bench::ready();
    bench.request("/a", Some(1));
    bench.reply(1, Status::Busy);
    bench.settle();
    bench.request("/a", Some(2));
    assert_eq!(bench.effects(), ["submit 2 to m"]);
    bench.reply(2, Status::InvalidInput);
    bench.settle();
    bench.request("/a", Some(3));
    assert_eq!(bench.effects(), ["publish 5: _res/cam/a 422"]);
    assert_eq!(bench.room.counters.refused, BTreeMap::from([(422, 1), (429, 1)]));
}

#[test]
fn beyond_what_can_be_held_the_answer_is_429_at_once() {
    let mut bench = Bench::ready();
    for id in 0..JOBS_MAX as u16 {
        bench.request(&format!("/{id}"), Some(id));
    }
    assert_eq!(bench.effects().len(), JOBS_MAX);
    bench.request("/more", Some(2000));
    bench.request("/more", None);
    assert_eq!(bench.effects(), ["publish 3: _res/cam/more 429", "publish 4: _res/cam/more 429"]);
    bench.reply(7, Status::Ok);
    bench.request("/more", Some(2001));
    assert_eq!(bench.effects(), ["submit 1025 to m", "publish 5: _res/cam/6 200"]);
}

#[test]
fn every_reason_to_drop_is_counted_and_the_broker_is_told() {
    let mut bench = Bench::ready();
    bench.publish(&Arrival { retain: true, ..arrival("/a", Qos::AtLeastOnce) }, Some(1));
    assert_eq!(bench.effects(), ["acknowledge 1"]);
    bench.publish(
        &Arrival { topic: "tractd/v1/n1/req/m".to_owned(), ..arrival("", Qos::AtLeastOnce) },
        Some(2),
    );
    assert_eq!(bench.effects(), ["acknowledge 2"]);
    let counters = &bench.room.counters;
    assert_eq!((counters.dropped_retained, counters.dropped_topic, counters.requests), (1, 1, 0));
}

#[test]
fn a_reply_the_broker_would_not_take_becomes_413() {
    let mut bench = Bench::ready();
    bench.lost();
    bench.link(granted(false, Some(600)));
    bench.link(client::Event::Subscribed { refused: vec![] });
    bench.settle();
    bench.request("/a", Some(1));
    bench.handle(Event::Reply { job: 1, reply: Reply::refusal(Status::Internal, "m", "x".repeat(500)) });
    assert_eq!(bench.effects(), ["submit 1 to m", "publish 5: _res/cam/a 413"]);
    assert_eq!(bench.room.counters.refused, BTreeMap::from([(413, 1)]));
}

#[test]
fn a_waiting_reply_too_large_for_the_next_broker_becomes_413() {
    let mut bench = Bench::ready();
    bench.request("/a", Some(1));
    bench.lost();
    bench.handle(Event::Reply { job: 1, reply: Reply::refusal(Status::Internal, "m", "x".repeat(500)) });
    bench.link(granted(true, Some(600)));
    assert!(bench.effects().contains(&"publish 4: _res/cam/a 413".to_owned()));
}

#[test]
fn a_refused_subscription_is_said_and_tried_again() {
    let mut bench = Bench::new();
    bench.link(connected(false));
    bench.link(client::Event::Subscribed { refused: vec![0] });
    assert_eq!(bench.effects(), ["subscribe tractd/v1/n1/req/#", "publish 1: n1/status deaf"]);
    bench.ms = 29_999;
    bench.handle(Event::Tick);
    assert!(bench.effects().is_empty());
    bench.ms = 30_000;
    bench.handle(Event::Tick);
    assert_eq!(bench.effects(), ["subscribe tractd/v1/n1/req/#"]);
}

#[test]
fn a_message_the_broker_refuses_is_counted_and_its_request_let_go() {
    let mut bench = Bench::ready();
    bench.request("/a", Some(1));
    bench.reply(1, Status::Ok);
    bench.effects();
    bench.link(client::Event::Acked { tag: 3, refused: Some("NotAuthorized".to_owned()) });
    assert_eq!(bench.effects(), ["acknowledge 1"]);
    assert_eq!(bench.room.counters.refused_by_broker, 1);
}

#[test]
fn only_what_changed_about_the_models_is_published() {
    let mut bench = Bench::ready();
    let models = |version| {
        json!({ "models": [
            { "name": "a", "version": 1, "state": "serving" },
            { "name": "b", "version": version, "state": "serving" },
        ]})
    };
    bench.handle(Event::Models(models(1)));
    bench.settle();
    bench.handle(Event::Models(models(2)));
    assert_eq!(bench.effects(), ["publish 6: n1/description", "publish 7: n1/model/b/state serving"]);
    bench.acked(6);
    bench.acked(7);
    // Model b goes while the broker is away: its retained state is emptied on return.
    bench.lost();
    bench.handle(Event::Models(json!({ "models": [{ "name": "a", "version": 1, "state": "serving" }] })));
    bench.link(connected(true));
    bench.link(client::Event::Subscribed { refused: vec![] });
    let said = bench.effects();
    assert_eq!(
        said[2..],
        ["publish 9: n1/description", "publish 10: n1/model/a/state serving", "publish 11: n1/model/b/state",]
    );
}

#[test]
fn a_models_state_is_that_of_the_version_that_answers() {
    let mut bench = Bench::ready();
    let ready = json!({ "name": "a", "version": 1, "digest": "sha256:00", "signed": true, "state": "ready" });
    let failed =
        json!({ "name": "a", "version": 2, "signed": true, "state": "failed", "reason": "no such op" });
    let said = |bench: &mut Bench, models: &[&Value]| -> Vec<String> {
        bench.handle(Event::Models(json!({ "models": models })));
        let effects: Vec<Effect> = std::iter::from_fn(|| bench.room.effect()).collect();
        let state = effects.iter().filter_map(|effect| match effect {
            Effect::Publish(_, message) if message.topic.ends_with("/state") => {
                Some(String::from_utf8(message.payload.to_vec()).unwrap())
            }
            _ => None,
        });
        state.collect()
    };
    bench.ms = 5;
    let alone = r#"{"digest":"sha256:00","signed":true,"since":1000005,"state":"ready","version":1}"#;
    assert_eq!(said(&mut bench, &[&ready]), [alone]);
    bench.ms = 9;
    let beside = alone.replace("\"signed", "\"last_error\":\"no such op\",\"signed").replace("05", "09");
    assert_eq!(said(&mut bench, &[&failed, &ready]), [beside.as_str()]);
    assert!(said(&mut bench, &[&ready, &failed]).is_empty(), "the same, in another order");
}

#[test]
fn the_farewell_finishes_the_work_first() {
    let mut bench = Bench::ready();
    bench.request("/a", Some(1));
    assert_eq!(bench.effects(), ["submit 1 to m"]);
    bench.handle(Event::Drain);
    assert!(bench.effects().is_empty());
    bench.reply(1, Status::Ok);
    assert_eq!(bench.effects(), ["publish 3: _res/cam/a 200"]);
    bench.acked(3);
    assert_eq!(bench.effects(), ["acknowledge 1", "publish 4: n1/status offline"]);
    // Too late: unacknowledged, the broker keeps it for our successor.
    bench.request("/b", Some(2));
    assert!(bench.effects().is_empty());
    bench.acked(4);
    assert_eq!(bench.effects(), ["close"]);
    bench.link(client::Event::Closed);
    assert!(!bench.room.is_connected());
}

#[test]
fn metrics_carry_the_counters_and_are_not_kept_for_later() {
    let mut bench = Bench::new();
    bench.handle(Event::Metrics(json!({})));
    bench.greet();
    bench.handle(Event::Metrics(json!({ "jobs": 3 })));
    let Some(Effect::Publish(0, message)) = bench.room.effect() else { panic!() };
    let metrics: Value = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!((&metrics["jobs"], &metrics["mqtt"]["connects"]), (&json!(3), &json!(1)));
    assert_eq!((message.qos, message.retain), (Qos::AtMostOnce, false));
    assert_eq!(bench.room.effect(), None);
}

fn said_about_us(state: &str, boot: &str, retain: bool) -> Arrival {
    Arrival {
        topic: "tractd/v1/n1/status".to_owned(),
        payload: format!(r#"{{"state":"{state}","boot":"{boot}"}}"#).into(),
        retain,
        ..arrival("", Qos::AtMostOnce)
    }
}

#[test]
fn a_late_will_is_contradicted_once() {
    let mut bench = Bench::ready();
    bench.publish(&said_about_us("lost", "000000000000b007", false), None);
    assert_eq!(bench.effects(), ["publish 3: n1/status ready"]);
    bench.publish(&said_about_us("ready", "000000000000b007", false), None);
    // What the broker kept from before is our predecessor's, and overwritten by what we just said.
    bench.publish(&said_about_us("lost", "0ld", true), None);
    assert!(bench.effects().is_empty());
}

#[test]
fn another_daemon_under_our_name_is_noticed() {
    let mut bench = Bench::ready();
    bench.publish(&said_about_us("ready", "0ld", true), None);
    assert_eq!(bench.room.counters.doubles, 0, "our predecessor, killed");
    bench.publish(&said_about_us("ready", "d0b1", false), None);
    bench.publish(&said_about_us("ready", "d0b1", false), None);
    assert_eq!(bench.room.counters.doubles, 1);
    assert!(bench.effects().is_empty(), "two that contradict each other would never end");
    bench.lost();
    bench.link(connected(true));
    bench.publish(&said_about_us("ready", "7h1rd", true), None);
    assert_eq!(bench.room.counters.doubles, 2, "it spoke while we were away");
}

#[test]
fn states_of_models_that_went_while_we_did_not_run_are_emptied() {
    let mut bench = Bench::ready();
    bench.handle(Event::Models(json!({ "models": [{ "name": "m", "version": 1, "state": "ready" }] })));
    bench.settle();
    for model in ["m", "gone"] {
        let topic = format!("tractd/v1/n1/model/{model}/state");
        let payload = Bytes::from_static(b"{}");
        let kept = Arrival { topic, payload, retain: true, ..arrival("", Qos::AtMostOnce) };
        bench.publish(&kept, None);
    }
    bench.handle(Event::Tick);
    assert!(bench.effects().is_empty(), "the daemon may not have found all its models yet");
    bench.ms = 10_000;
    bench.handle(Event::Tick);
    assert_eq!(bench.effects(), ["publish 5: n1/model/gone/state"]);
    bench.handle(Event::Tick);
    assert!(bench.effects().is_empty());
}

#[test]
fn a_member_of_a_group_takes_no_more_of_its_requests_when_it_leaves() {
    let config = Config { share_group: Some("line".to_owned()), ..Config::default() };
    let mut room = Room::new(&config.settings("n1").unwrap(), "n1", 0xb007);
    room.will();
    let mut bench = Bench { room, ms: 0 };
    bench.link(connected(false));
    let Some(Effect::Subscribe(filters)) = bench.room.effect() else { panic!() };
    assert_eq!(filters[SHARED], ("$share/line/tractd/v1/_any/req/#".to_owned(), Qos::AtLeastOnce));
    bench.link(client::Event::Subscribed { refused: vec![] });
    bench.settle();
    let shared =
        Arrival { topic: "tractd/v1/_any/req/m/raw/cam/a".to_owned(), ..arrival("", Qos::AtLeastOnce) };
    bench.publish(&shared, Some(1));
    assert_eq!(bench.effects(), ["submit 1 to m"]);
    bench.handle(Event::Drain);
    assert_eq!(bench.effects(), ["unsubscribe $share/line/tractd/v1/_any/req/#"]);
    bench.reply(1, Status::Ok);
    assert_eq!(bench.effects(), ["publish 3: _res/cam/a 200"]);
}

#[test]
fn metrics_keep_to_what_a_day_may_cost() {
    let config = Config { metrics_bytes_per_day: 64 << 10, ..Config::default() };
    let mut room = Room::new(&config.settings("n1").unwrap(), "n1", 0xb007);
    room.will();
    let mut bench = Bench { room, ms: 0 };
    bench.greet();
    let mut bytes = 0;
    for minute in 0..24 * 60 {
        bench.ms = minute * 60_000;
        bench.handle(Event::Metrics(json!({ "filler": "x".repeat(1000) })));
        while let Some(effect) = bench.room.effect() {
            let Effect::Publish(0, message) = effect else { panic!("{effect:?}") };
            bytes += message.packet_bytes_max();
        }
    }
    assert!((50_000..=65_536).contains(&bytes), "{bytes}");
}

#[test]
fn home_assistant_is_told_when_asked_for_and_forgets_models_that_go() {
    let config = Config { discovery_prefix: Some("ha".to_owned()), ..Config::default() };
    let mut room = Room::new(&config.settings("n1").unwrap(), "n1", 0xb007);
    room.will();
    let mut bench = Bench { room, ms: 0 };
    bench.handle(Event::Models(json!({ "models": [{ "name": "m", "version": 1, "state": "ready" }] })));
    bench.greet();
    bench.handle(Event::Models(json!({ "models": [] })));
    let said = bench.effects();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].ends_with("ha/sensor/tractd_n1/model_m/config"), "{said:?}");
}

#[test]
fn an_update_is_told_beside_its_model() {
    let mut bench = Bench::ready();
    let update = json!({ "m": { "version": 2, "state": "shadow" } });
    bench.handle(Event::Models(json!({ "models": [], "updates": update })));
    assert_eq!(bench.effects(), ["publish 3: n1/update/m/state shadow"]);
    bench.handle(Event::Models(json!({ "models": [] })));
    bench.acked(3);
    assert_eq!(bench.effects(), ["publish 4: n1/update/m/state"]);
}

fn announce(payload: &[u8], retain: bool) -> Arrival {
    Arrival {
        topic: "tractd/v1/_announce".to_owned(),
        payload: Bytes::copy_from_slice(payload),
        retain,
        ..arrival("", Qos::AtMostOnce)
    }
}

#[test]
fn an_announce_is_a_hint_and_what_it_says_is_not_read() {
    for payload in [&b""[..], b"kitchen", b"\xff\0", br#"{"url":"http://elsewhere.example"}"#] {
        let mut bench = Bench::ready();
        bench.publish(&announce(payload, false), None);
        assert!(bench.effects().is_empty(), "it comes at random within half a minute");
        bench.ms = 30_000;
        bench.handle(Event::Tick);
        assert_eq!(bench.effects(), ["check updates"]);
        bench.ms = 3_600_000;
        bench.handle(Event::Tick);
        assert!(bench.effects().is_empty());
    }
}

#[test]
fn an_announce_that_was_retained_or_is_large_is_dropped() {
    let mut bench = Bench::ready();
    bench.publish(&announce(b"kitchen", true), None);
    bench.publish(&announce(&[b'x'; PAYLOAD_BYTES_MAX + 1], false), None);
    bench.ms = 3_600_000;
    bench.handle(Event::Tick);
    assert!(bench.effects().is_empty());
    assert_eq!((bench.room.counters.dropped_retained, bench.room.counters.announces), (1, 0));
}

#[test]
fn a_flood_of_announces_leads_to_one_check_a_minute_and_requests_are_answered() {
    const MINUTES: u64 = 60;
    let mut bench = Bench::ready();
    let mut checks = Vec::new();
    for second in 0..MINUTES * 60 {
        bench.ms = second * 1000;
        for _ in 0..100 {
            bench.publish(&announce(b"kitchen", false), None);
        }
        bench.request(&format!("/{second}"), None);
        bench.reply(second + 1, Status::Ok);
        bench.handle(Event::Tick);
        let effects = bench.effects();
        assert!(effects.iter().any(|e| e.ends_with(&format!("_res/cam/{second} 200"))), "{effects:?}");
        checks.extend(effects.iter().filter(|e| *e == "check updates").map(|_| second));
    }
    assert_eq!(bench.room.counters.announces, MINUTES * 60 * 100);
    assert!(checks.windows(2).all(|pair| pair[1] - pair[0] >= 60), "{checks:?}");
    // Each waits its minute and then at most half of one.
    assert!(checks.len() as u64 >= MINUTES * 2 / 3 - 1, "{checks:?}");
}
