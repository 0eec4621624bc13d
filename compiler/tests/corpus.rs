//! What the fuzzer found worth keeping, on every build: see `compiler/fuzz`.

#![allow(clippy::unwrap_used, reason = "all of it is test code")]

use std::path::PathBuf;

use prost::Message;
use tractd_compiler::{Options, Tier, compile_and_store};

mod any_model;
#[allow(dead_code, reason = "only its cases are asked for here")]
mod common;

fn corpus(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz/corpus", target].iter().collect()
}

fn replay(target: &str, check: fn(&[u8])) {
    let mut files: Vec<_> =
        std::fs::read_dir(corpus(target)).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read(file).unwrap());
    }
}

#[test]
fn the_fuzzers_models_hold() {
    replay("onnx", any_model::check_onnx);
}

#[test]
fn the_fuzzers_stored_programs_hold() {
    replay("stored", any_model::check_stored);
}

/// Largest seed, in bytes: the fuzzer changes small ones faster.
const SEED_BYTES_MAX: usize = 1600;

#[test]
#[ignore = "writes seeds for the fuzzer into its corpora"]
fn seeds() {
    for case in common::cases(include_bytes!("models/ops.cases")) {
        let (name, model) = (case.name.replace(' ', "-"), case.model.encode_to_vec());
        let wanted = name.ends_with("qdq-u8s8-pc") || name.ends_with("qop-s8s8-pt");
        if !wanted || model.len() > SEED_BYTES_MAX {
            continue;
        }
        std::fs::write(corpus("onnx").join(format!("seed-{name}")), model).unwrap();
        let options = Options { tier: Tier::Portable };
        let stored = compile_and_store(&case.model, &[], &options).unwrap().1.unwrap();
        std::fs::write(corpus("stored").join(format!("seed-{name}")), stored).unwrap();
    }
}
