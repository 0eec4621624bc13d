//! What a second core adds.

use std::sync::Barrier;
use std::time::Instant;

use tractd_kernels::{Program, ProgramSpec, Tier};

use crate::{median, nets, peak};

/// Rounds of one and two threads, interleaved.
const ROUNDS: usize = 15;
/// How long each measurement of one or two threads lasts, about.
const ROUND_S: f64 = 0.02;

/// Prints `{"program": RATIO, "bare": RATIO}`: the throughput of two threads, each with a session of its own on one
/// program or with a loop of the tier's instruction, divided by that of one.
pub(crate) fn print(spec: &ProgramSpec<'_>, tier: Tier) {
    let program = Program::new(spec, tier).expect("the networks are valid");
    let session = || {
        let mut arena = program.session();
        let inputs: Vec<Vec<u8>> = program.inputs().iter().map(|input| nets::image(input.bytes())).collect();
        let mut outputs: Vec<Vec<u8>> =
            program.outputs().iter().map(|output| vec![0; output.bytes()]).collect();
        move |program: &Program| {
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
            program.run(&mut arena, &inputs, &mut outputs).expect("the sizes are the program's");
        }
    };
    let made = || {
        let mut run = session();
        let program = &program;
        move || run(program)
    };
    let bare = || move || _ = std::hint::black_box(peak::gmacs(tier));
    let runs = [count(made()), count(bare())];
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        ours.push(rate([made(), made()], runs[0]) / rate([made()], runs[0]));
        theirs.push(rate([bare(), bare()], runs[1]) / rate([bare()], runs[1]));
    }
    let (program, bare) = (median(&mut ours), median(&mut theirs));
    println!("{{\"program\": {program:.3}, \"bare\": {bare:.3}}}");
}

/// Runs that take [`ROUND_S`], after some to warm up.
fn count(mut run: impl FnMut()) -> usize {
    (0..20).for_each(|_| run());
    let started = Instant::now();
    (0..20).for_each(|_| run());
    (ROUND_S * 20.0 / started.elapsed().as_secs_f64()).ceil() as usize
}

/// Runs per second of all threads together, from when all are ready until the last is done.
fn rate<const N: usize>(threads: [impl FnMut() + Send; N], runs: usize) -> f64 {
    let ready = Barrier::new(N);
    let took = std::thread::scope(|scope| {
        let thread = |mut run: Box<dyn FnMut() + Send>| {
            let ready = &ready;
            scope.spawn(move || {
                run();
                ready.wait();
                let started = Instant::now();
                (0..runs).for_each(|_| run());
                started.elapsed().as_secs_f64()
            })
        };
        let spawned: Vec<_> = threads.into_iter().map(|run| thread(Box::new(run))).collect();
        let took = spawned.into_iter().map(|thread| thread.join().expect("a run does not panic"));
        took.fold(0.0, f64::max)
    });
    (N * runs) as f64 / took
}
