//! The broker: what it allows, whether it keeps and shares, and how long a message takes through it.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Finding;
use crate::mqtt::{Granted, Line, Road};
use crate::print::{bytes, micros};

const SUBJECT: &str = "broker";
/// What one message through the broker may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// Round trips measured.
const ROUNDS: usize = 11;
/// A round trip as long as this is two delayed acknowledgements of TCP's, not distance.
const NAGLE_US: u64 = 35_000;
/// The daemon's default `mqtt.max_packet_bytes`.
const PACKET_BYTES: u32 = 16 << 20;
/// The daemon's default `mqtt.inflight`.
const INFLIGHT: u16 = 32;

pub(super) fn look(road: &Road<'_>) -> Vec<Finding> {
    let mut line = match Line::open(road) {
        Ok(line) => line,
        Err(error) => {
            return vec![Finding::wrong(
                SUBJECT,
                format!("{error:#}; the daemon serves its socket meanwhile"),
            )];
        }
    };
    let mut findings = limits(line.granted());
    let topic = format!("{}/_doctor/{}", road.prefix, line.name());
    findings.push(match round_trip_us(&mut line, &topic) {
        Ok(us) => round_trip(us),
        Err(error) => Finding::unknown(
            SUBJECT,
            format!(
                "no round trip: {error:#}; an access list may allow {}/_doctor/# to this user",
                road.prefix
            ),
        ),
    });
    if line.granted().retain {
        findings.push(
            keeps(&mut line, &topic).unwrap_or_else(|error| Finding::unknown(SUBJECT, format!("{error:#}"))),
        );
    }
    if line.granted().shared_subscriptions {
        findings.push(
            shares(&mut line, &topic).unwrap_or_else(|error| Finding::unknown(SUBJECT, format!("{error:#}"))),
        );
    }
    findings
}

fn limits(granted: &Granted) -> Vec<Finding> {
    let mut findings = Vec::new();
    match granted.packet_bytes_max {
        Some(max) if max < PACKET_BYTES => findings.push(Finding::advice(
            SUBJECT,
            format!(
                "takes packets of {} at most: larger requests and replies are refused; raise its limit (mosquitto: \
                 max_packet_size) or lower mqtt.max_request_bytes, so that clients are told",
                bytes(max.into())
            ),
        )),
        Some(max) => findings.push(Finding::well(SUBJECT, format!("takes packets of {}", bytes(max.into())))),
        None => findings.push(Finding::well(SUBJECT, "sets no limit to a packet")),
    }
    if granted.receive_max < INFLIGHT {
        let (max, ours) = (granted.receive_max, INFLIGHT);
        let text = format!(
            "takes {max} messages at once, the daemon could send {ours}: max_inflight_messages in mosquitto"
        );
        findings.push(if max < 10 { Finding::advice(SUBJECT, text) } else { Finding::well(SUBJECT, text) });
    }
    if granted.qos_max < 1 {
        findings.push(Finding::wrong(SUBJECT, "has no QoS 1: nothing is promised through it"));
    }
    if !granted.retain {
        findings
            .push(Finding::wrong(SUBJECT, "keeps no messages (retain): nobody sees which nodes there are"));
    }
    if !granted.shared_subscriptions {
        let text = "has no shared subscriptions: mqtt.share_group and requests to _any don't work";
        findings.push(Finding::advice(SUBJECT, text));
    }
    findings
}

fn round_trip_us(line: &mut Line<'_>, topic: &str) -> Result<u64> {
    line.subscribe(topic)?;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        line.exchange(topic, vec![0; 64], PATIENCE)?;
        took.push(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    took.sort_unstable();
    Ok(took[ROUNDS / 2])
}

fn round_trip(us: u64) -> Finding {
    let text = format!("{} for a message there and back at QoS 1", micros(us));
    if us < NAGLE_US {
        return Finding::well(SUBJECT, text);
    }
    Finding::advice(
        SUBJECT,
        format!(
            "{text}: as long as TCP's delayed acknowledgements; mosquitto: set_tcp_nodelay true; a far broker is as slow"
        ),
    )
}

fn keeps(line: &mut Line<'_>, topic: &str) -> Result<Finding> {
    let topic = format!("{topic}/kept");
    line.publish(&topic, true, b"1")?;
    line.subscribe(&topic)?;
    let heard = line.heard(Instant::now() + PATIENCE)?;
    line.publish(&topic, true, b"")?;
    // The emptied message comes to our own subscription as well.
    line.heard(Instant::now() + PATIENCE)?;
    Ok(match heard {
        Some(heard) if heard.topic == topic && heard.retain => {
            Finding::well(SUBJECT, "keeps messages (retain)")
        }
        _ => Finding::wrong(
            SUBJECT,
            "did not give back a kept message (retain): nobody sees which nodes there are",
        ),
    })
}

fn shares(line: &mut Line<'_>, topic: &str) -> Result<Finding> {
    let topic = format!("{topic}/shared");
    line.subscribe(&format!("$share/doctor/{topic}"))?;
    line.publish(&topic, false, b"1")?;
    Ok(match line.heard(Instant::now() + PATIENCE)? {
        Some(heard) if heard.topic == topic => Finding::well(SUBJECT, "has shared subscriptions"),
        _ => Finding::advice(SUBJECT, "shared subscriptions don't deliver: mqtt.share_group won't work"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn limits_are_compared_with_the_daemons() {
        let generous = Granted {
            packet_bytes_max: None,
            receive_max: 65_535,
            retain: true,
            shared_subscriptions: true,
            qos_max: 2,
        };
        let verdicts = |granted: Granted| limits(&granted).iter().map(|f| f.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(generous.clone()), [Verdict::Well]);
        // AWS IoT Core: 128 KB.
        let small = Granted { packet_bytes_max: Some(131_072), ..generous.clone() };
        assert_eq!(verdicts(small), [Verdict::Advice]);
        let bare =
            Granted { retain: false, qos_max: 0, shared_subscriptions: false, receive_max: 1, ..generous };
        use Verdict::{Advice, Well, Wrong};
        assert_eq!(verdicts(bare), [Well, Advice, Wrong, Wrong, Advice]);
    }

    #[test]
    fn forty_milliseconds_are_nagle() {
        assert_eq!(round_trip(34_999).verdict, Verdict::Well);
        let slow = round_trip(44_000);
        assert_eq!(slow.verdict, Verdict::Advice);
        assert!(slow.text.contains("set_tcp_nodelay"), "{}", slow.text);
    }
}
