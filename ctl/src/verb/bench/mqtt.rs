//! `tractctl bench mqtt`: what the daemon adds to a bare echo through the same broker.

use std::time::{Duration, Instant};

use serde_json::json;
use tractd_wire::topic::Format;

use super::{Samples, Subject, WARM_UP_RUNS};
use crate::args::BenchMqtt;
use crate::at::At;
use crate::exchange::Reply;
use crate::mqtt::{Echo, Line, Road};
use crate::print::{out, render, table};
use crate::verb::Failure;

/// What one exchange may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends the same bytes to an echo client of our own and to the daemon in turn, QoS 1, and prints both.
pub(super) fn mqtt(args: &BenchMqtt) -> Result<(), Failure> {
    let subject = Subject::of(&args.source)?;
    let At::Mqtt { host, port, user, node } = &args.at else {
        return Err(Failure::Usage("--at mqtt://host:port/node; for a socket: tractctl bench serve".into()));
    };
    let road = Road { host, port: *port, user: user.as_deref(), node, prefix: &args.prefix };
    let request = subject.request();
    let payload = request.frame(1)?;
    let echo = Echo::start(&road)?;
    let mut line = Line::open(&road)?;
    let to_daemon = line.request_topic(&request.model, Format::Postcard)?;
    let (mut bare, mut served, mut added) = (Samples::default(), Samples::default(), Samples::default());
    for run in 0..WARM_UP_RUNS + args.source.runs {
        let started = Instant::now();
        line.exchange(echo.topic(), payload.clone(), PATIENCE)?;
        let took_bare = started.elapsed();
        let started = Instant::now();
        let answer = line.exchange(&to_daemon, payload.clone(), PATIENCE)?;
        let took_served = started.elapsed();
        let reply = Reply::from_frame(&answer)?;
        subject.check(&reply)?;
        if run < WARM_UP_RUNS {
            continue;
        }
        let stages = reply.stages_us;
        let model_us = u64::from(stages.pre) + u64::from(stages.infer) + u64::from(stages.post);
        let without_model = took_served.saturating_sub(Duration::from_micros(model_us));
        bare.push(took_bare);
        served.push(took_served);
        added.push(without_model);
    }
    echo.stop();
    let rows = [
        ("bare echo through the broker", &mut bare),
        ("through the daemon", &mut served),
        ("of it outside the model", &mut added),
    ];
    let figures = rows.map(|(name, samples)| (name, samples.p50_us(), samples.p99_us()));
    let ratio = figures[2].1 / figures[0].1.max(f64::MIN_POSITIVE);
    if args.source.json {
        let [bare, served, added] = figures.map(|(_, p50, p99)| json!({ "p50_us": p50, "p99_us": p99 }));
        let (runs, bytes) = (args.source.runs, payload.len());
        let answer = json!({ "echo": bare, "daemon": served, "outside_model": added, "ratio_p50": ratio, "runs": runs, "payload_bytes": bytes });
        return Ok(out(&answer.to_string())?);
    }
    let mut rows = table(&["", "p50 µs", "p99 µs"]);
    for (name, p50, p99) in figures {
        rows.add_row([name.to_owned(), format!("{p50:.1}"), format!("{p99:.1}")]);
    }
    let (name, runs) = (&request.model, args.source.runs);
    out(&format!("{name}, {} bytes out, QoS 1, {runs} runs of each in turn, one client", payload.len()))?;
    out(&render(rows, &[1, 2]))?;
    Ok(out(&format!("without the model: {ratio:.2} times the bare echo (medians)"))?)
}
