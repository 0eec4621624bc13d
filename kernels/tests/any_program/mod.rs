//! Programs from any bytes: what the fuzz target does, and the test that replays its corpus.

use tractd_kernels::{Program, ProgramSpec, Tier};

/// Largest arena and most work of a program that is run: a description of a few bytes can ask for hours.
const ARENA_BYTES_MAX: usize = 1 << 22;
const MACS_MAX: u64 = 1 << 22;
const STEPS_MAX: usize = 64;

/// Every tier must take or refuse the description alike, and give the portable tier's bytes.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(spec) = postcard::from_bytes::<ProgramSpec<'_>>(bytes) else { return };
    if spec.steps.len() > STEPS_MAX || !is_small(&spec) {
        return;
    }
    let portable = Program::new(&spec, Tier::Portable);
    let best = Program::new(&spec, Tier::detect());
    let (portable, best) = match (portable, best) {
        (Ok(portable), Ok(best)) => (portable, best),
        (portable, best) => return assert_eq!(portable.err(), best.err()),
    };
    if portable.arena_bytes() > ARENA_BYTES_MAX || portable.macs() > MACS_MAX {
        return;
    }
    assert_eq!(run(&portable, bytes), run(&best, bytes));
}

/// Whether no tensor is large: sizes alone cost a description nothing.
fn is_small(spec: &ProgramSpec<'_>) -> bool {
    let fits = |extents: [usize; 3]| {
        let elements = extents.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        elements.is_none_or(|elements| elements <= ARENA_BYTES_MAX / 64)
    };
    let externals = spec.inputs.iter().chain(&spec.outputs);
    spec.buffers.iter().all(|buffer| fits([buffer.height, buffer.width, buffer.channels]))
        && externals.into_iter().all(|external| fits([external.height, external.width, external.channels]))
}

/// Inputs repeat the description's own bytes.
fn run(program: &Program, bytes: &[u8]) -> Vec<Vec<u8>> {
    let fill = |count: usize| bytes.iter().copied().cycle().take(count).collect::<Vec<u8>>();
    let inputs: Vec<Vec<u8>> = program.inputs().iter().map(|external| fill(external.bytes())).collect();
    let mut outputs: Vec<Vec<u8>> =
        program.outputs().iter().map(|external| vec![0; external.bytes()]).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    program.run(&mut program.session(), &inputs, &mut slices).expect("the sizes are the program's own");
    outputs
}
