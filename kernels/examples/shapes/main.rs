//! Speed of the kernels on the layers of known networks, next to this core's own peak measured in between.
//!
//! `cargo run --release -p tractd-kernels --example shapes -- [--tier NAME] [--net NAME] [--layers] [--quantile 0.5]`
//!
//! With `--peak`, only the peak of each tier; with `--scaling NET`, what a second core adds to a network's throughput, and
//! to that of a loop of the tier's instruction alone. Both as JSON, for scripts/bench-engine.
//! `--repeat N` prints how many multiply-accumulates a run has and runs it as often: for tools that count instructions.

mod nets;
mod peak;
mod scaling;

use std::time::Instant;

use tractd_kernels::{Program, ProgramSpec, Tier};

/// Runs measured, after a tenth of it to warm up.
const RUNS: usize = 200;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let tiers: Vec<Tier> = match value("--tier") {
        Some(name) => vec![name.parse().unwrap_or_else(|error| panic!("{error}"))],
        None => Tier::available().filter(|&tier| tier != Tier::Portable).collect(),
    };
    if args.iter().any(|arg| arg == "--peak") {
        return tiers.into_iter().for_each(print_peak);
    }
    if let Some(net) = value("--scaling") {
        let (_, make) = nets::ALL.into_iter().find(|(name, _)| name == net).expect("a network's name");
        let tier = value("--tier").map_or(Tier::detect(), |_| tiers[0]);
        return scaling::print(&make(), tier);
    }
    let layers = args.iter().any(|arg| arg == "--layers");
    let repeat = value("--repeat").map(|n| n.parse().expect("a number of runs"));
    let quantile = value("--quantile").map_or(0.5, |q| q.parse().expect("a quantile is a number"));
    for tier in tiers {
        if let Some(count) = repeat {
            let nets = nets::ALL.iter().filter(|(name, _)| value("--net").is_none_or(|net| net == name));
            nets.for_each(|(_, make)| run(&make(), tier, count));
            continue;
        }
        println!("\n# {tier}");
        println!(
            "{:<16}{:>10}{:>11}{:>11}{:>11}{:>9}",
            "network", "MACs", "µs", "limit µs", "GMAC/s", "of peak"
        );
        for (name, make) in nets::ALL {
            if value("--net").is_none_or(|net| net == name) {
                measure(name, &make(), tier, layers, quantile);
            }
        }
    }
}

fn print_peak(tier: Tier) {
    let mut all: Vec<f64> = (0..RUNS).map(|_| peak::gmacs(tier)).collect();
    let gmacs = median(&mut all);
    if gmacs.is_finite() {
        println!("{{\"tier\": \"{tier}\", \"gmacs\": {gmacs:.1}}}");
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run(spec: &ProgramSpec<'_>, tier: Tier, count: usize) {
    let program = Program::new(spec, tier).expect("the networks are valid");
    let mut arena = program.session();
    let inputs: Vec<Vec<u8>> = program.inputs().iter().map(|input| nets::image(input.bytes())).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut outputs: Vec<Vec<u8>> = program.outputs().iter().map(|output| vec![0; output.bytes()]).collect();
    let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    println!("{}", program.macs());
    for _ in 0..count {
        program.run(&mut arena, &inputs, &mut outputs).expect("the sizes are the program's");
    }
}

fn measure(name: &str, spec: &ProgramSpec<'_>, tier: Tier, layers: bool, quantile: f64) {
    let started = Instant::now();
    let program = Program::new(spec, tier).expect("the networks are valid");
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let mut arena = program.session();
    let inputs: Vec<Vec<u8>> = program.inputs().iter().map(|input| nets::image(input.bytes())).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut outputs: Vec<Vec<u8>> = program.outputs().iter().map(|output| vec![0; output.bytes()]).collect();
    let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    let (mut totals, mut peaks) = (vec![], vec![]);
    let mut steps = vec![vec![]; program.steps().len()];
    for run in 0..RUNS + RUNS / 10 {
        let peak = peak::gmacs(tier);
        let started = Instant::now();
        program.run(&mut arena, &inputs, &mut outputs).expect("the sizes are the program's");
        let total = started.elapsed().as_secs_f64() * 1e6;
        let mut last = Instant::now();
        let mut times = vec![0.0; steps.len()];
        let observe = |step: usize| {
            let now = Instant::now();
            times[step] = (now - last).as_secs_f64() * 1e6;
            last = now;
        };
        program
            .run_observed(&mut arena, &inputs, &mut outputs, observe)
            .expect("the sizes are the program's");
        if run >= RUNS / 10 {
            peaks.push(peak);
            totals.push(total);
            steps.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
        }
    }
    let low = |values: &mut [f64]| {
        values.sort_by(f64::total_cmp);
        values[((values.len() - 1) as f64 * quantile) as usize]
    };
    peaks.iter_mut().for_each(|peak| *peak = -*peak);
    let (peak, total) = (-low(&mut peaks), low(&mut totals));
    let row = |name: &str, macs: u64, time: f64| {
        let (rate, limit) = (macs as f64 / time / 1e3, macs as f64 / peak / 1e3);
        println!("{name:<16}{macs:>10}{time:>11.2}{limit:>11.2}{rate:>11.1}{:>8.1}%", 100.0 * rate / peak);
    };
    row(name, program.macs(), total);
    println!(
        "  peak {peak:.0} GMAC/s, load {load_ms:.1} ms, arena {} KB, packed {} KB",
        program.arena_bytes() / 1024,
        program.packed_bytes() / 1024
    );
    let mut kinds: Vec<(&str, u64, f64)> = vec![];
    for (index, (report, times)) in program.steps().zip(&mut steps).enumerate() {
        let time = low(times);
        if layers {
            row(&format!("  {index} {} {}", report.kind, nets::label(spec, index)), report.macs, time);
        }
        match kinds.iter_mut().find(|kind| kind.0 == report.kind) {
            Some(kind) => (kind.1, kind.2) = (kind.1 + report.macs, kind.2 + time),
            None => kinds.push((report.kind, report.macs, time)),
        }
    }
    for (kind, macs, time) in kinds {
        row(&format!("  {kind}"), macs, time);
    }
}
