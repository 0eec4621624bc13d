//! What the fuzzer found worth keeping, on every build: see `kernels/fuzz`.

use std::path::PathBuf;

mod any_program;
#[allow(dead_code, reason = "only asked for descriptions here")]
mod generate;

fn corpus() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz/corpus/program"].iter().collect()
}

#[test]
fn the_fuzzers_corpus_holds() {
    let files = std::fs::read_dir(corpus()).expect("the corpus is part of the sources");
    let mut files: Vec<_> = files.map(|file| file.expect("a readable folder").path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        println!("{}", file.display());
        any_program::check(&std::fs::read(file).expect("a readable file"));
    }
}

/// Largest seed, in bytes: the fuzzer changes small ones faster.
const SEED_BYTES_MAX: usize = 1000;

#[test]
#[ignore = "writes seeds for the fuzzer into its corpus"]
fn seeds() {
    use generate::*;
    type Generator = fn(&mut Rng) -> Case;
    let generators: [(&str, Generator); 15] = [
        ("conv", conv),
        ("dense", dense),
        ("stem", stem),
        ("depthwise", depthwise),
        ("grouped", grouped),
        ("extreme", extreme),
        ("max_pool", max_pool),
        ("average_pool", average_pool),
        ("add", add),
        ("mul", mul),
        ("table", table),
        ("copy", copy),
        ("softmax", softmax),
        ("quantize", quantize),
        ("load", load),
    ];
    for (name, generator) in generators {
        let specs = (0..500).map(|seed| generator(&mut Rng::new(seed)).spec);
        let bytes = specs.map(|spec| postcard::to_allocvec(&spec).expect("descriptions are plain data"));
        for (number, bytes) in bytes.filter(|bytes| bytes.len() <= SEED_BYTES_MAX).take(4).enumerate() {
            std::fs::write(corpus().join(format!("seed-{name}-{number}")), bytes).expect("a writable folder");
        }
    }
}
