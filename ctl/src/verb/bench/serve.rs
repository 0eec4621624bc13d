//! `tractctl bench serve`: what the daemon's socket adds to a call within the process.

use std::time::Instant;

use serde_json::json;

use super::{InProcess, Samples, Subject, WARM_UP_RUNS};
use crate::args::BenchServe;
use crate::at::{At, default_at};
use crate::print::{out, render, table};
use crate::socket::Socket;
use crate::verb::Failure;

/// Asks the daemon and a session of our own in turn, and prints both.
pub(super) fn serve(args: &BenchServe) -> Result<(), Failure> {
    let subject = Subject::of(&args.source)?;
    let path = match args.at.clone().unwrap_or_else(default_at) {
        At::Unix(path) => path,
        At::Mqtt { .. } => {
            return Err(Failure::Usage("--at unix:PATH; for a broker: tractctl bench mqtt".into()));
        }
    };
    let request = subject.request();
    let mut session = InProcess::load(&subject.bundle)?;
    let mut socket = Socket::connect(&path)?;
    let (mut within, mut over, mut added) = (Samples::default(), Samples::default(), Samples::default());
    for run in 0..WARM_UP_RUNS + args.source.runs {
        let started = Instant::now();
        session.run(&subject.input)?;
        let took_within = started.elapsed();
        let started = Instant::now();
        let reply = socket.infer(&request)?;
        let took_over = started.elapsed();
        subject.check(&reply)?;
        if run < WARM_UP_RUNS {
            continue;
        }
        let stages = reply.stages_us;
        let model_us = u64::from(stages.pre) + u64::from(stages.infer) + u64::from(stages.post);
        within.push(took_within);
        over.push(took_over);
        added.push(took_over.saturating_sub(std::time::Duration::from_micros(model_us)));
    }
    let rows = [
        ("in this process", &mut within),
        ("over the socket", &mut over),
        ("of it outside the model", &mut added),
    ];
    let figures = rows.map(|(name, samples)| (name, samples.p50_us(), samples.p99_us()));
    if args.source.json {
        let [within, over, added] = figures.map(|(_, p50, p99)| json!({ "p50_us": p50, "p99_us": p99 }));
        let (runs, bytes) = (args.source.runs, subject.bytes());
        let answer = json!({ "in_process": within, "socket": over, "outside_model": added, "runs": runs, "input_bytes": bytes });
        return Ok(out(&answer.to_string())?);
    }
    let mut rows = table(&["", "p50 µs", "p99 µs"]);
    for (name, p50, p99) in figures {
        rows.add_row([name.to_owned(), format!("{p50:.1}"), format!("{p99:.1}")]);
    }
    let (name, runs) = (&request.model, args.source.runs);
    out(&format!("{name}, {} bytes in, {runs} runs of each in turn, one client", subject.bytes()))?;
    Ok(out(&render(rows, &[1, 2]))?)
}
