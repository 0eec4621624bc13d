//! Models from any bytes: what the fuzz targets do, and the test that replays their corpora.

use prost::Message;
use tract_onnx::pb::ModelProto;
use tractd_compiler::{Compiled, Form, Options, Port, Tier, Whole, compile_and_store, restore};

/// Largest arena and most work of a program that is run: a file of a few bytes can ask for hours.
const ARENA_BYTES_MAX: usize = 1 << 22;
const MACS_MAX: u64 = 1 << 22;

/// Whatever the file is: an answer, and one that restores to the same.
#[allow(dead_code, reason = "one target calls this, one the other")]
pub(crate) fn check_onnx(bytes: &[u8]) {
    let Ok(model) = ModelProto::decode(bytes) else { return };
    let Ok((compiled, stored)) = compile_and_store(&model, &[], &Options { tier: Tier::Portable }) else {
        return;
    };
    let Form::Whole(whole) = &compiled.form else { return assert!(stored.is_none()) };
    let stored = stored.expect("what runs without tract can be stored");
    let restored = restore(&stored, Tier::Portable).expect("what was stored is sound");
    assert_eq!(restored.report, compiled.report);
    assert_eq!(run(whole, bytes), restored_run(&restored, bytes));
}

/// Whatever the bytes are: nothing, or something that runs without harm.
#[allow(dead_code, reason = "one target calls this, one the other")]
pub(crate) fn check_stored(bytes: &[u8]) {
    if let Some(compiled) = restore(bytes, Tier::detect()) {
        restored_run(&compiled, bytes);
    }
}

fn restored_run(compiled: &Compiled, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    match &compiled.form {
        Form::Whole(whole) => run(whole, bytes),
        _ => unreachable!("nothing else is stored"),
    }
}

/// The outputs for inputs that repeat the file's own bytes; `None` for what is too large, or whose inputs are not the
/// graph's.
fn run(whole: &Whole, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let program = whole.region().program();
    if program.arena_bytes() > ARENA_BYTES_MAX || program.macs() > MACS_MAX {
        return None;
    }
    let size = |port: &Port| port.shape.iter().product::<usize>() * port.element.size();
    let filled = |port: &Port| bytes.iter().copied().cycle().take(size(port)).collect::<Vec<u8>>();
    let inputs: Vec<Vec<u8>> = whole.region().inputs().iter().map(filled).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut outputs: Vec<Vec<u8>> = whole.outputs().map(|port| vec![0; size(port)]).collect();
    let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    whole.run(&mut program.session(), &inputs, &mut slices).ok()?;
    Some(outputs)
}
