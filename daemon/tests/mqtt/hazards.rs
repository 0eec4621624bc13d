//! The traps of rumqttc 0.25 and of brokers, one test each: first what happens to whoever uses the library plainly,
//! then that it does not happen to the daemon.

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet, PubAckReason, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::json;

use crate::REPLY;
use crate::broker::{Broker, wait_until};
use crate::client::{Client, Extras};
use crate::samples;
use crate::site::Site;

/// The daemon's client id in these tests.
const DAEMON: &str = "daemon";
/// The client id of the plain use.
const PLAIN: &str = "plain";

/// A daemon on the misbehaving broker.
struct Rig {
    broker: Broker,
    site: Site,
    node: String,
}

impl Rig {
    fn ready(version: u8, options: &str) -> Rig {
        let broker = Broker::start();
        let mut site = Site::at(broker.port, version);
        site.start_daemon(&format!("client_id = \"{DAEMON}\"\n{options}"));
        let mut node = None;
        wait_until("the model is ready", Duration::from_secs(60), || {
            let states = broker.published(DAEMON, "/model/digits/state");
            let ready =
                states.iter().find(|state| String::from_utf8_lossy(&state.payload).contains("\"ready\""));
            node = ready
                .map(|state| String::from_utf8_lossy(&state.topic).split('/').nth(2).unwrap().to_owned());
            node.is_some()
        });
        Rig { broker, site, node: node.unwrap() }
    }

    /// Requests as the broker delivers them, with the ids `from..to`.
    fn ask(&self, from: usize, to: usize) {
        let png = &samples()[0].1;
        for id in from..to {
            let properties = PublishProperties {
                correlation_data: Some(format!("c{id}").into()),
                ..PublishProperties::default()
            };
            let topic = format!("tractd/v1/{}/req/digits/raw/cam/{id}", self.node);
            self.broker.deliver(&topic, QoS::AtLeastOnce, png, properties);
        }
    }

    /// Replies that have come, repetitions not counted.
    fn answered(&self) -> usize {
        let replies = self.broker.published(DAEMON, "_res/cam/");
        replies.into_iter().map(|reply| reply.topic).collect::<HashSet<_>>().len()
    }

    fn wait_answered(&self, count: usize) {
        wait_until(&format!("{count} replies"), Duration::from_secs(60), || self.answered() == count);
    }

    fn connects(&self) -> usize {
        self.broker.hellos(DAEMON).len()
    }
}

/// rumqttc as its examples use it, with a session that is kept.
fn plain(port: u16, capacity: usize, configure: impl FnOnce(&mut MqttOptions)) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(PLAIN, "127.0.0.1", port);
    options.set_clean_start(false).set_session_expiry_interval(Some(3600));
    configure(&mut options);
    AsyncClient::new(options, capacity)
}

/// Polls for `wait` as the examples do, through every error; returns what came in, and the errors.
async fn poll(event_loop: &mut EventLoop, wait: Duration) -> (Vec<Packet>, usize) {
    let deadline = Instant::now() + wait;
    let (mut packets, mut errors) = (Vec::new(), 0);
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        match tokio::time::timeout(left, event_loop.poll()).await {
            Ok(Ok(Event::Incoming(packet))) => packets.push(packet),
            Ok(Ok(Event::Outgoing(_))) => {}
            Ok(Err(_)) => {
                errors += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(_) => break,
        }
    }
    (packets, errors)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn publishing_in_the_poll_task_does_not_hang_on_a_full_channel() {
    let broker = Broker::start();
    let hung = run(async {
        let (client, mut event_loop) = plain(broker.port, 2, |_| {});
        event_loop.poll().await.unwrap();
        let publish = async {
            for _ in 0..10 {
                client.publish("t", QoS::AtLeastOnce, false, "x").await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(1), publish).await.is_err()
    });
    assert!(hung, "plain use hangs");

    // 3.1.1 has no receive maximum: all requests come at once, and none of their replies is acknowledged.
    let rig = Rig::ready(4, "");
    rig.broker.set(|faults| faults.hold_acks = true);
    rig.ask(0, 300);
    wait_until("the window is full", REPLY, || rig.broker.held() == 32);
    rig.broker.set(|faults| faults.hold_acks = false);
    rig.broker.release(0, 32);
    rig.wait_answered(300);
    assert_eq!((rig.connects(), rig.broker.unacked(DAEMON).1), (1, 0));
}

#[test]
fn a_message_above_the_default_incoming_limit_does_not_loop() {
    let broker = Broker::start();
    run(async {
        let (client, mut event_loop) = plain(broker.port, 10, |_| {});
        client.subscribe("t", QoS::AtLeastOnce).await.unwrap();
        poll(&mut event_loop, Duration::from_millis(800)).await;
        broker.deliver("t", QoS::AtLeastOnce, &[0; 20_000], PublishProperties::default());
        poll(&mut event_loop, Duration::from_secs(1)).await;
    });
    assert!(broker.hellos(PLAIN).len() > 3, "plain use reconnects for ever");

    let rig = Rig::ready(5, "");
    let mut large = samples()[0].1.clone();
    large.resize(200_000, 0);
    let topic = format!("tractd/v1/{}/req/digits/raw/cam/0", rig.node);
    rig.broker.deliver(&topic, QoS::AtLeastOnce, &large, PublishProperties::default());
    rig.wait_answered(1);
    assert_eq!(rig.connects(), 1, "{}", rig.site.log());
}

#[test]
fn a_message_above_the_brokers_limit_is_not_sent() {
    let broker = Broker::start();
    broker.set(|faults| faults.packet_bytes_max = Some(600));
    run(async {
        let (client, mut event_loop) = plain(broker.port, 10, |_| {});
        client.subscribe("t", QoS::AtLeastOnce).await.unwrap();
        poll(&mut event_loop, Duration::from_millis(800)).await;
        client.publish("t", QoS::AtLeastOnce, false, vec![0; 1000]).await.unwrap();
        let (_, errors) = poll(&mut event_loop, Duration::from_secs(1)).await;
        assert!(errors > 0, "plain use loses its connection");
    });

    let rig = Rig::ready(5, "");
    rig.broker.set(|faults| faults.packet_bytes_max = Some(600));
    rig.broker.cut(DAEMON);
    wait_until("it is back", REPLY, || rig.connects() == 2);
    rig.ask(0, 1);
    rig.wait_answered(1);
    let reply = rig.broker.published(DAEMON, "_res/cam/0").pop().unwrap();
    let reply: serde_json::Value = serde_json::from_slice(&reply.payload).unwrap();
    assert_eq!((&reply["code"], &reply["name"]), (&json!(413), &json!("too-large")), "{reply}");
    assert_eq!(rig.connects(), 2, "the connection holds");
}

#[test]
fn a_write_that_never_ends_is_given_up() {
    let broker = Broker::start();
    let port = broker.port;
    // Four times what the kernel buffers on a loopback connection, so that the last write waits for the peer.
    let stuck = std::thread::spawn(move || {
        run(async {
            let (client, mut event_loop) = plain(port, 100, |options| {
                options.set_keep_alive(Duration::from_secs(5));
            });
            event_loop.poll().await.unwrap();
            broker.set(|faults| faults.frozen = true);
            for _ in 0..32 {
                client.publish("t", QoS::AtMostOnce, false, vec![0; 1 << 20]).await.unwrap();
            }
            poll(&mut event_loop, Duration::from_secs(14)).await.1
        })
    });

    let rig = Rig::ready(5, "");
    rig.broker.set(|faults| faults.frozen = true);
    let png = &samples()[0].1;
    let topic = format!("tractd/v1/{}/req/digits/raw/cam/0", rig.node);
    for _ in 0..20_000 {
        rig.broker.deliver(&topic, QoS::AtMostOnce, png, PublishProperties::default());
    }
    wait_until("it gives up", 2 * REPLY, || rig.site.log().contains("no broker at"));
    rig.broker.set(|faults| faults.frozen = false);
    wait_until("it is back", REPLY, || rig.connects() == 2);
    rig.ask(1, 2);
    wait_until("it answers", REPLY, || !rig.broker.published(DAEMON, "_res/cam/1").is_empty());
    assert_eq!(stuck.join().unwrap(), 0, "plain use waits for ever");
}

#[test]
fn what_was_sent_before_a_lost_session_is_sent_again() {
    let broker = Broker::start();
    broker.set(|faults| faults.hold_acks = true);
    run(async {
        let (client, mut event_loop) = plain(broker.port, 10, |_| {});
        client.publish("t", QoS::AtLeastOnce, false, "x").await.unwrap();
        poll(&mut event_loop, Duration::from_millis(800)).await;
        broker.forget(PLAIN);
        poll(&mut event_loop, Duration::from_secs(1)).await;
    });
    assert_eq!(broker.published(PLAIN, "t").len(), 1, "plain use drops it");
    assert!(broker.hellos(PLAIN).len() > 1);

    for version in [5, 4] {
        let rig = Rig::ready(version, "");
        rig.broker.set(|faults| faults.hold_acks = true);
        rig.ask(0, 5);
        rig.wait_answered(5);
        rig.broker.forget(DAEMON);
        rig.broker.set(|faults| faults.hold_acks = false);
        let replies = || rig.broker.published(DAEMON, "_res/cam/");
        wait_until("they come again", REPLY, || replies().len() == 10);
        let [first, second] = [0, 5].map(|from| replies()[from..from + 5].to_vec());
        for (first, second) in first.iter().zip(&second) {
            assert_eq!((&first.topic, &first.payload), (&second.topic, &second.payload));
        }
    }
}

#[test]
fn a_collision_of_packet_ids_does_not_outlive_its_connection() {
    let broker = Broker::start();
    broker.set(|faults| faults.hold_acks = true);
    run(async {
        let (client, mut event_loop) = plain(broker.port, 10, |options| {
            options.set_outgoing_inflight_upper_limit(2);
        });
        for payload in ["a", "b", "c"] {
            client.publish("t", QoS::AtLeastOnce, false, payload).await.unwrap();
        }
        poll(&mut event_loop, Duration::from_millis(800)).await;
        // The second of two is acknowledged: the third wants the id of the first.
        broker.release(1, 1);
        poll(&mut event_loop, Duration::from_millis(800)).await;
        broker.forget(PLAIN);
        broker.set(|faults| faults.hold_acks = false);
        client.publish("after", QoS::AtLeastOnce, false, "d").await.unwrap();
        poll(&mut event_loop, Duration::from_secs(1)).await;
    });
    assert!(broker.published(PLAIN, "after").is_empty(), "plain use never sends again");

    let rig = Rig::ready(5, "inflight = 2");
    rig.broker.set(|faults| faults.hold_acks = true);
    rig.ask(0, 3);
    wait_until("the window is full", REPLY, || rig.broker.held() == 2);
    rig.broker.release(1, 1);
    std::thread::sleep(Duration::from_millis(300));
    rig.broker.forget(DAEMON);
    rig.broker.set(|faults| faults.hold_acks = false);
    wait_until("it is back", REPLY, || rig.connects() == 2);
    rig.wait_answered(3);
    wait_until("it listens again", REPLY, || {
        rig.ask(3, 4);
        rig.answered() == 4
    });
}

#[test]
fn messages_under_way_are_bounded() {
    let broker = Broker::start();
    broker.set(|faults| faults.hold_acks = true);
    run(async {
        let (client, mut event_loop) = plain(broker.port, 1000, |_| {});
        for _ in 0..500 {
            client.publish("t", QoS::AtLeastOnce, false, "x").await.unwrap();
        }
        poll(&mut event_loop, Duration::from_secs(1)).await;
    });
    assert!(broker.held() > 100, "plain use has up to 65,535 under way");

    let rig = Rig::ready(4, "");
    rig.broker.set(|faults| faults.hold_acks = true);
    rig.ask(0, 100);
    wait_until("the window is full", REPLY, || rig.broker.held() == 32);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(rig.broker.held(), 32);
}

#[test]
fn no_topic_alias_is_asked_for() {
    let broker = Broker::start();
    broker.set(|faults| faults.alias = true);
    let packets = run(async {
        let (client, mut event_loop) = plain(broker.port, 10, |options| {
            options.set_topic_alias_max(Some(10));
        });
        client.subscribe("t", QoS::AtLeastOnce).await.unwrap();
        poll(&mut event_loop, Duration::from_millis(800)).await;
        broker.deliver("t", QoS::AtLeastOnce, b"x", PublishProperties::default());
        poll(&mut event_loop, Duration::from_millis(800)).await.0
    });
    let nameless = |packet: &Packet| matches!(packet, Packet::Publish(publish) if publish.topic.is_empty());
    assert!(packets.iter().any(nameless), "plain use gets a publish without a topic");

    let rig = Rig::ready(5, "");
    rig.broker.set(|faults| faults.alias = true);
    let hello = rig.broker.hellos(DAEMON).remove(0);
    assert_eq!(hello.properties.unwrap().topic_alias_max, None);
    assert!(!hello.clean, "the session is kept");
    rig.ask(0, 3);
    rig.wait_answered(3);
}

#[test]
fn nothing_reconnects_after_the_farewell() {
    let broker = Broker::start();
    run(async {
        let (client, mut event_loop) = plain(broker.port, 10, |_| {});
        event_loop.poll().await.unwrap();
        client.disconnect().await.unwrap();
        poll(&mut event_loop, Duration::from_secs(1)).await;
    });
    assert!(broker.hellos(PLAIN).len() > 1, "plain use is back");

    for version in [5, 4] {
        let mut rig = Rig::ready(version, "");
        rig.site.end_daemon("TERM");
        wait_until("the farewell", REPLY, || rig.broker.farewells(DAEMON) == 1);
        assert_eq!(rig.connects(), 1, "{}", rig.site.log());
        let status = rig.broker.retained(&format!("tractd/v1/{}/status", rig.node)).unwrap();
        assert!(String::from_utf8_lossy(&status).contains(r#""state":"offline""#));
    }
}

#[test]
fn refusals_of_the_broker_are_heard() {
    let broker = Broker::start();
    broker.set(|faults| {
        faults.refuse_subscribe = true;
        faults.refuse_publish = Some(PubAckReason::NotAuthorized);
    });
    let errors = run(async {
        let (client, mut event_loop) = plain(broker.port, 10, |_| {});
        client.subscribe("t", QoS::AtLeastOnce).await.unwrap();
        client.publish("t", QoS::AtLeastOnce, false, "x").await.unwrap();
        poll(&mut event_loop, Duration::from_millis(800)).await.1
    });
    assert_eq!(errors, 0, "plain use hears of nothing");

    for version in [5, 4] {
        let rig = Rig::ready(version, "");
        rig.broker.set(|faults| faults.refuse_subscribe = true);
        rig.broker.forget(DAEMON);
        let status = format!("tractd/v1/{}/status", rig.node);
        wait_until("it says that it is deaf", REPLY, || {
            let said = rig.broker.retained(&status).unwrap();
            String::from_utf8_lossy(&said).contains(r#""state":"deaf""#)
        });
        assert!(rig.site.log().contains("refused the subscription"), "{}", rig.site.log());
    }

    let rig = Rig::ready(5, "");
    rig.broker.set(|faults| faults.refuse_publish = Some(PubAckReason::NotAuthorized));
    rig.ask(0, 1);
    wait_until("the refusal is told", REPLY, || {
        rig.site.log().contains("refused a message of ours: NotAuthorized")
    });

    rig.broker.set(|faults| faults.refuse_connect = Some(ConnectReturnCode::NotAuthorized));
    rig.broker.cut(DAEMON);
    wait_until("the refusal is told", REPLY, || {
        rig.site.log().contains("refused the connection: NotAuthorized")
    });
}

#[test]
fn small_packets_are_not_held_back() {
    let mut site = Site::new(5);
    site.start_broker("");
    site.start_daemon("");
    let node = site.wait_ready();
    let port = site.port;
    std::thread::spawn(move || {
        run(async {
            let (client, mut event_loop) = plain(port, 10, |_| {});
            client.subscribe("echo", QoS::AtLeastOnce).await.unwrap();
            while let Ok(event) = event_loop.poll().await {
                if let Event::Incoming(Packet::Publish(_)) = event {
                    client.try_publish("tractd/v1/_res/cam/e", QoS::AtLeastOnce, false, "x").unwrap();
                }
            }
        });
    });
    let mut client = site.client("cam");
    client.subscribe("tractd/v1/_res/cam/#");
    let png = &samples()[0].1;
    // The shortest of them: a busy machine makes others longer, never shorter.
    let mut shortest_ms = |topic: &str| {
        let took = (0..15).map(|_| {
            let started = Instant::now();
            client.publish(topic, png, &Extras::default());
            client.receive(REPLY).expect("a reply");
            started.elapsed().as_millis()
        });
        took.min().unwrap()
    };
    std::thread::sleep(Duration::from_millis(300));
    let plain = shortest_ms("echo");
    assert!(plain >= 35, "plain use waits for a delayed acknowledgement: {plain} ms");
    let ours = shortest_ms(&format!("tractd/v1/{node}/req/digits/raw/cam"));
    assert!(ours < 30, "{ours} ms");
}

#[test]
fn a_keep_alive_that_would_panic_is_refused_before() {
    let panicked = std::panic::catch_unwind(|| {
        MqttOptions::new(PLAIN, "127.0.0.1", 1).set_keep_alive(Duration::from_secs(4));
    });
    assert!(panicked.is_err(), "plain use panics");

    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("tractd.toml");
    std::fs::write(&config, "[mqtt]\nkeep_alive_s = 4\n").unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_tractd"))
        .arg("--check-config")
        .arg("--config")
        .arg(&config)
        .output();
    let run = run.unwrap();
    assert!(!run.status.success());
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(said.contains("mqtt.keep_alive_s 4 is outside 5 to 3600"), "{said}");
}

#[test]
fn a_delivery_that_comes_twice_is_worked_on_once() {
    for version in [5, 4] {
        let rig = Rig::ready(version, "");
        rig.broker.set(|faults| faults.duplicate = true);
        rig.ask(0, 20);
        rig.wait_answered(20);
        wait_until("both are acknowledged", REPLY, || rig.broker.unacked(DAEMON) == (0, 0));
    }
}

#[test]
fn deliveries_out_of_order_are_acknowledged_in_theirs() {
    let rig = Rig::ready(5, "");
    rig.broker.set(|faults| faults.reorder = true);
    rig.ask(0, 40);
    rig.wait_answered(40);
    wait_until("all are acknowledged", REPLY, || rig.broker.unacked(DAEMON) == (0, 0));
}

#[test]
fn requests_beyond_the_queue_stay_with_the_broker() {
    let rig = Rig::ready(5, "queue = 4");
    rig.broker.set(|faults| faults.hold_acks = true);
    rig.ask(0, 50);
    wait_until("four are answered", REPLY, || rig.broker.held() == 4);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((rig.broker.held(), rig.broker.unacked(DAEMON)), (4, (4, 0)));
    rig.broker.set(|faults| faults.hold_acks = false);
    rig.broker.release(0, 4);
    rig.wait_answered(50);
}

#[test]
fn a_late_will_does_not_have_the_last_word() {
    for version in [5, 4] {
        let rig = Rig::ready(version, "");
        rig.broker.set(|faults| faults.late_will = Some(Duration::from_secs(2)));
        rig.broker.cut(DAEMON);
        wait_until("it is back", REPLY, || rig.connects() == 2);
        let status = format!("tractd/v1/{}/status", rig.node);
        let said = || -> serde_json::Value {
            serde_json::from_slice(&rig.broker.retained(&status).unwrap()).unwrap()
        };
        wait_until("it is ready", REPLY, || said()["seq"] == 2);
        std::thread::sleep(Duration::from_millis(2500));
        wait_until("it contradicts its will", REPLY, || said()["state"] == "ready" && said()["seq"] == 2);
    }
}

#[test]
fn a_take_over_is_said() {
    let rig = Rig::ready(5, "");
    rig.broker.take_over(DAEMON);
    wait_until("the reason is told", REPLY, || {
        rig.site.log().contains("another client connected with our client id")
    });
}

/// Mosquitto 2.0 does not say so, and 3.1.1 has no word for it.
#[test]
fn a_take_over_that_is_not_said_is_concluded() {
    for version in [5, 4] {
        let (site, node) = Site::ready(version);
        wait_until("it concludes", 2 * REPLY, || {
            drop(Client::connect(site.port, 4, &format!("tractd-{node}")));
            std::thread::sleep(Duration::from_millis(500));
            site.log().contains("most likely another client has our client id")
        });
    }
}
