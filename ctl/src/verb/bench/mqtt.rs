//! `tractctl bench mqtt`: what the daemon adds to a bare echo through the same broker.

use std::time::{Duration, Instant};

use serde_json::json;
use tractd_wire::topic::Format;

use super::{Samples, Subject, WARM_UP_RUNS};
use crate::args::BenchMqtt;
use crate::exchange::Reply;
use crate::mqtt::{Echo, Line, Road, WINDOW};
use crate::print::{out, render, table};
use crate::verb::Failure;

/// What one exchange may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Rounds in which echo and daemon take turns with [`WINDOW`] exchanges under way. Who wakes whom settles into one of two
/// rhythms for a while, one nearly twice as fast as the other: a round mostly outlasts that, and so many tell which is the
/// usual one.
const ROUNDS: usize = 25;

/// One side of the comparison.
#[derive(Default)]
struct Side {
    took: Samples,
    /// Exchanges per second of each round.
    rates: Vec<f64>,
}

/// Sends the same bytes to an echo client of our own and to the daemon in turn, QoS 1, and prints both.
pub(super) fn mqtt(args: &BenchMqtt) -> Result<(), Failure> {
    let subject = Subject::of(&args.source)?;
    let Some(road) = Road::of(&args.at, &args.prefix) else {
        return Err(Failure::Usage("--at mqtt://host:port/node; for a socket: tractctl bench serve".into()));
    };
    let request = subject.request();
    let payload = request.frame(1)?;
    let mut line = Line::open(&road)?;
    let to_daemon = line.request_topic(&request.model, Format::Postcard)?;
    let reply_bytes = line.exchange(&to_daemon, payload.clone(), PATIENCE)?.len();
    let echo = Echo::start(&road, reply_bytes, args.echo_core)?;

    let (mut bare, mut served) = (Side::default(), Side::default());
    let (mut outside, mut inside) = (Samples::default(), Samples::default());
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
        let model = Duration::from_micros(model_us);
        bare.took.push(took_bare);
        served.took.push(took_served);
        outside.push(took_served.saturating_sub(model));
        inside.push(model);
    }
    let count = args.source.runs.max(WINDOW);
    for _ in 0..ROUNDS {
        for (topic, side) in [(echo.topic(), &mut bare), (&to_daemon, &mut served)] {
            let started = Instant::now();
            line.exchanges(topic, &payload, count, PATIENCE)?;
            side.rates.push(count as f64 / started.elapsed().as_secs_f64());
        }
    }
    echo.stop();

    let rows = [
        ("bare echo through the broker", &mut bare.took),
        ("through the daemon", &mut served.took),
        ("of it in the model", &mut inside),
        ("of it outside the model", &mut outside),
    ];
    let figures = rows.map(|(name, samples)| (name, samples.p50_us(), samples.p99_us()));
    let (echo_us, outside_us) = (figures[0].1, figures[3].1);
    let (added_us, ratio) = (outside_us - echo_us, outside_us / echo_us.max(f64::MIN_POSITIVE));
    let pairs = bare.rates.iter().zip(&served.rates);
    let rate_ratio =
        median(&mut pairs.map(|(echo, daemon)| daemon / echo.max(f64::MIN_POSITIVE)).collect::<Vec<_>>());
    let [echo_rate, daemon_rate] = [&mut bare.rates, &mut served.rates].map(|rates| median(rates));
    let (runs, bytes) = (args.source.runs, payload.len());
    if args.source.json {
        let [echo, daemon, model, outside] =
            figures.map(|(_, p50, p99)| json!({ "p50_us": p50, "p99_us": p99 }));
        let answer = json!({
            "echo": echo, "daemon": daemon, "model": model, "outside_model": outside,
            "added_p50_us": added_us, "ratio_p50": ratio,
            "throughput": { "window": WINDOW, "echo_per_s": echo_rate, "daemon_per_s": daemon_rate, "ratio": rate_ratio },
            "runs": runs, "payload_bytes": bytes, "reply_bytes": reply_bytes,
        });
        return Ok(out(&answer.to_string())?);
    }
    let mut rows = table(&["", "p50 µs", "p99 µs"]);
    for (name, p50, p99) in figures {
        rows.add_row([name.to_owned(), format!("{p50:.1}"), format!("{p99:.1}")]);
    }
    let name = &request.model;
    out(&format!(
        "{name}, {bytes} bytes out, {reply_bytes} back, QoS 1, {runs} runs of each in turn, one client"
    ))?;
    out(&render(rows, &[1, 2]))?;
    out(&format!("added outside the model: {added_us:.1} µs, {ratio:.2} times the bare echo (medians)"))?;
    Ok(out(&format!(
        "with {WINDOW} under way: echo {echo_rate:.0}/s, daemon {daemon_rate:.0}/s, {rate_ratio:.2} times (medians of {ROUNDS} rounds)"
    ))?)
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}
