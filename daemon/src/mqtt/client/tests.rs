use super::*;
use crate::mqtt::config::{Config, Version};
use crate::mqtt::message::Properties;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const CONNACK: &[u8] = b"\x20\x03\0\0\0";

/// A connection to a broker that lets its only client in, answers with `answer` once it has been sent `after` bytes,
/// and takes whatever else comes.
async fn connected(after: usize, answer: &'static [u8]) -> Connection {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut bytes = [0; 4096];
        assert!(client.read(&mut bytes).await.unwrap() > 0);
        client.write_all(CONNACK).await.unwrap();
        let mut length = 0;
        while length < after {
            length += client.read(&mut bytes).await.unwrap();
        }
        client.write_all(answer).await.unwrap();
        while client.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
    });
    let mut connection = connection(Config { url, ..Config::default() });
    assert!(matches!(connection.next().await, Event::Connected(_)));
    connection
}

fn connection(config: Config) -> Connection {
    let settings = config.settings("n1").unwrap();
    let certificates = Certificates::new(&crate::config::Config::default(), 0);
    let will = Message::notice("status".to_owned(), "lost");
    Connection::open(&settings, &certificates, &will, false).unwrap()
}

/// A connection that is open, with the broker's end of it, which holds `bytes` unread.
fn open(bytes: usize) -> (Connection, DuplexStream) {
    let (ours, broker) = tokio::io::duplex(bytes);
    let mut connection = connection(Config::default());
    connection.stage = Stage::Open(Box::new(ours));
    (connection, broker)
}

async fn read(broker: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let length = broker.read(&mut bytes).await.unwrap();
    bytes.truncate(length);
    bytes
}

/// What is said while nothing comes.
async fn quiet(connection: &mut Connection) -> Option<Event> {
    tokio::task::yield_now().await;
    timeout(Duration::ZERO, connection.next()).await.ok()
}

fn message(qos: Qos) -> Message {
    let properties = Properties::default();
    Message { topic: "t".to_owned(), payload: "four".into(), retain: false, qos, properties }
}

#[tokio::test]
async fn what_was_read_with_the_end_of_the_connection_still_counts() {
    // Two publishes of 12 bytes each. Both are acknowledged, and no packet has the type that follows.
    let mut connection = connected(24, b"\x40\x02\0\x01\x40\x02\0\x02\0\0").await;
    for tag in [7, 8] {
        connection.publish(tag, &message(Qos::AtLeastOnce)).unwrap();
    }
    assert!(matches!(connection.next().await, Event::Acked { tag: 7, refused: None }));
    assert!(matches!(connection.next().await, Event::Acked { tag: 8, refused: None }));
    assert!(matches!(connection.next().await, Event::Lost(_)));
    assert!(timeout(Duration::from_millis(100), connection.next()).await.is_err());
}

#[tokio::test]
async fn what_came_before_a_write_that_failed_is_told_first() {
    let (mut connection, mut broker) = open(4096);
    connection.publish(7, &message(Qos::AtLeastOnce)).unwrap();
    assert!(quiet(&mut connection).await.is_none());
    read(&mut broker).await;
    broker.write_all(b"\x40\x02\0\x01").await.unwrap();
    drop(broker);
    connection.publish(8, &message(Qos::AtLeastOnce)).unwrap();
    assert!(matches!(connection.next().await, Event::Acked { tag: 7, refused: None }));
    assert!(matches!(connection.next().await, Event::Lost(Loss::Closed)));
}

#[tokio::test]
async fn what_a_turn_has_to_say_leaves_at_once() {
    let (mut connection, mut broker) = open(4096);
    for tag in 0..3 {
        connection.publish(tag, &message(Qos::AtLeastOnce)).unwrap();
    }
    connection.ack(Token(9)).unwrap();
    // Not before the turn is over.
    assert!(timeout(Duration::ZERO, broker.read(&mut [0; 1])).await.is_err());
    assert!(quiet(&mut connection).await.is_none());
    let written = read(&mut broker).await;
    assert_eq!(written.len(), 3 * 12 + 4);
    assert!(written.ends_with(b"\x40\x02\0\x09"));
}

#[tokio::test]
async fn a_burst_does_not_keep_its_first_answer() {
    let (mut connection, mut broker) = open(1 << 16);
    let request = b"\x30\x04\0\x01t\0";
    broker.write_all(&request.repeat(3 * UNWRITTEN_EVENTS_MAX as usize)).await.unwrap();
    let mut unwritten = 0;
    for _ in 0..3 * UNWRITTEN_EVENTS_MAX {
        assert!(matches!(quiet(&mut connection).await, Some(Event::Publish(..))));
        connection.publish(0, &message(Qos::AtMostOnce)).unwrap();
        unwritten = unwritten.max(connection.write.len());
    }
    assert!(quiet(&mut connection).await.is_none());
    let answer = 10;
    assert_eq!(read(&mut broker).await.len(), answer * 3 * UNWRITTEN_EVENTS_MAX as usize);
    assert_eq!(unwritten, answer * (UNWRITTEN_EVENTS_MAX as usize + 1));
}

#[tokio::test]
async fn there_is_a_limit_to_what_a_broker_does_not_take() {
    let (mut connection, mut broker) = open(16);
    let message = message(Qos::AtMostOnce);
    connection.publish(0, &message).unwrap();
    assert!(quiet(&mut connection).await.is_none(), "what went out is of interest to nobody");
    while connection.publish(0, &message).is_ok() {
        assert!(connection.write.len() < WRITE_BYTES_MAX + 16);
    }
    assert!(quiet(&mut connection).await.is_none());
    loop {
        read(&mut broker).await;
        match quiet(&mut connection).await {
            None => assert!(connection.write.len() >= WRITE_BYTES_MAX),
            Some(Event::Sent) => break,
            Some(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(connection.publish(0, &message), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_takes_nothing_is_given_up_for_the_ping_it_does_not_answer() {
    let (mut connection, _broker) = open(16);
    while connection.publish(0, &message(Qos::AtMostOnce)).is_ok() {}
    assert!(matches!(connection.next().await, Event::Sent));
    let begun = Instant::now();
    assert!(matches!(connection.next().await, Event::Lost(Loss::Broken(_))));
    assert_eq!(begun.elapsed().as_secs(), 2 * connection.keep_alive.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_ping_behind_a_message_that_moves_has_time() {
    let (mut connection, mut broker) = open(16);
    let mut message = message(Qos::AtMostOnce);
    message.payload = vec![0; 160].into();
    connection.publish(0, &message).unwrap();
    for _ in 0..10 {
        assert!(timeout(connection.keep_alive, connection.next()).await.is_err());
        read(&mut broker).await;
    }
    assert!(quiet(&mut connection).await.is_none());
    assert_eq!(read(&mut broker).await, b"\0\0\0\0\0\0\0\xc0\0");
    assert!(matches!(connection.next().await, Event::Lost(Loss::Broken(_))));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_answers_pings_is_kept() {
    let (mut connection, mut broker) = open(16);
    for _ in 0..3 {
        let begun = Instant::now();
        assert!(timeout(connection.keep_alive, connection.next()).await.is_err());
        assert_eq!(begun.elapsed(), connection.keep_alive);
        assert_eq!(read(&mut broker).await, b"\xc0\0");
        broker.write_all(b"\xd0\0").await.unwrap();
        assert!(matches!(connection.next().await, Event::Alive));
    }
}

#[tokio::test]
async fn a_packet_that_comes_in_parts_is_one() {
    let (mut connection, mut broker) = open(100);
    let mut packet = b"\x30\xa4\x9c\x03\0\x01t\0".to_vec();
    packet.extend((0..52_768).map(|byte: u32| byte as u8));
    tokio::spawn({
        let packet = packet.clone();
        async move {
            broker.write_all(&packet).await.unwrap();
            broker.write_all(&packet[..5]).await.unwrap();
            std::future::pending::<()>().await;
        }
    });
    let Event::Publish(arrival, None) = connection.next().await else { panic!() };
    assert_eq!(arrival.payload, &packet[8..]);
    assert!(!connection.is_behind());
}

#[tokio::test]
async fn a_packet_above_the_limit_is_refused_by_its_head() {
    let (mut connection, mut broker) = open(100);
    broker.write_all(b"\x30\xff\xff\xff\x7f").await.unwrap();
    assert!(matches!(connection.next().await, Event::Lost(Loss::ArrivalTooLarge)));
}

#[tokio::test]
async fn a_publish_behind_other_packets_is_seen() {
    let (mut connection, mut broker) = open(100);
    broker.write_all(b"\xd0\0\x40\x02\0\x01\x30\x04\0\x01t\0").await.unwrap();
    assert!(!connection.is_behind());
    assert!(matches!(connection.next().await, Event::Alive));
    assert!(connection.is_behind());
    assert!(matches!(connection.next().await, Event::Alive));
    assert!(connection.is_behind());
    assert!(matches!(connection.next().await, Event::Publish(..)));
    assert!(!connection.is_behind());
}

#[tokio::test]
async fn a_disconnect_needs_no_properties_and_no_reason() {
    for (packet, loss) in [
        (&b"\xe0\x02\x8e\0"[..], Loss::TakenOver),
        (b"\xe0\x01\x8e", Loss::TakenOver),
        (b"\xe0\0", Loss::Broken("the broker disconnected us: NormalDisconnection".to_owned())),
    ] {
        let (mut connection, mut broker) = open(100);
        broker.write_all(packet).await.unwrap();
        match connection.next().await {
            Event::Lost(told) => assert_eq!(told, loss),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn our_disconnect_is_the_last_word_and_the_brokers_end_is_waited_for() {
    for closes in [true, false] {
        let (mut connection, mut broker) = open(4);
        connection.publish(0, &message(Qos::AtMostOnce)).unwrap();
        connection.disconnect().unwrap();
        assert_eq!(connection.publish(0, &message(Qos::AtMostOnce)), Err(Full));
        assert_eq!(connection.ack(Token(1)), Err(Full));
        let mut written = Vec::new();
        while !written.ends_with(b"four\xe0\0") {
            assert!(quiet(&mut connection).await.is_none());
            written.extend(read(&mut broker).await);
        }
        assert!(quiet(&mut connection).await.is_none());
        assert!(read(&mut broker).await.is_empty(), "our end is closed");
        // Nobody is told of what still comes, nor does it keep the connection.
        broker.write_all(b"\xd0\0\xd0").await.unwrap();
        assert!(quiet(&mut connection).await.is_none());
        let begun = Instant::now();
        if closes {
            drop(broker);
            assert!(matches!(connection.next().await, Event::Closed));
            assert_eq!(begun.elapsed(), Duration::ZERO);
        } else {
            assert!(matches!(connection.next().await, Event::Closed));
            assert_eq!(begun.elapsed(), GOODBYE_MAX);
        }
    }
}

#[tokio::test]
async fn a_broker_that_goes_on_talking_after_our_disconnect_is_not_listened_to_for_ever() {
    let mut connection = connection(Config::default());
    connection.stage = Stage::Open(Box::new(tokio::io::join(tokio::io::repeat(0), tokio::io::sink())));
    connection.leaving = Leaving::Shut;
    connection.timer.as_mut().reset(Instant::now() + Duration::from_millis(20));
    assert!(matches!(timeout(Duration::from_secs(10), connection.next()).await, Ok(Event::Closed)));
}

#[tokio::test]
async fn an_id_in_use_is_not_given_again() {
    for version in [Version::V4, Version::V5] {
        let (mut connection, mut broker) = open(1 << 20);
        connection.codec =
            Codec::new(&Config { version: version as u8 + 4, ..Config::default() }.settings("n1").unwrap());
        connection.publish(5, &message(Qos::AtLeastOnce)).unwrap();
        connection.last_id = u16::MAX - 1;
        for tag in 6..9 {
            connection.publish(tag, &message(Qos::AtLeastOnce)).unwrap();
        }
        assert_eq!(connection.waiting.get(&1), Some(&Waiting::Publish(5)));
        assert_eq!(connection.waiting.get(&2), Some(&Waiting::Publish(7)));
        broker.write_all(b"\x40\x02\0\x02\x40\x02\0\x02").await.unwrap();
        assert!(matches!(connection.next().await, Event::Acked { tag: 7, .. }));
        assert!(matches!(connection.next().await, Event::Alive), "it had been acknowledged");
    }
}
