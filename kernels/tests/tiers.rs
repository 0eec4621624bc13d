//! Each tier against the portable one, to the bit, and the portable one against the ONNX formulas.

mod generate;
mod naive;

use generate::{Case, Rng};
use tractd_kernels::{Program, Tier};

/// Runs a case's program on a tier and returns its outputs.
fn run(case: &Case, tier: Tier) -> Vec<Vec<u8>> {
    let program = Program::new(&case.spec, tier).expect("the generator only makes valid programs");
    let mut arena = program.session();
    let inputs: Vec<&[u8]> = case.inputs.iter().map(Vec::as_slice).collect();
    let mut outputs: Vec<Vec<u8>> =
        program.outputs().iter().map(|external| vec![0xee; external.bytes()]).collect();
    // Twice: a run must not depend on what the one before left in the arena.
    for _ in 0..2 {
        let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
        program.run(&mut arena, &inputs, &mut slices).expect("inputs and outputs have the program's sizes");
    }
    outputs
}

/// Compares a tier with `expected` over `count` seeded cases, or `TRACTD_CASES` where that is fewer; `TRACTD_SEED=n` replays one.
/// The tiers that `TRACTD_TIERS` names have to be there; others are left out where they are not.
fn check(
    name: &str,
    tier: Tier,
    count: u64,
    make: fn(&mut Rng) -> Case,
    mut expected: impl FnMut(&Case) -> Vec<Vec<u8>>,
) {
    if !tier.is_available() {
        let required = std::env::var("TRACTD_TIERS").unwrap_or_default();
        assert!(required.split(' ').all(|name| name != tier.name()), "{tier} is not available here");
        eprintln!("{tier} is not available here");
        return;
    }
    let seeds = match std::env::var("TRACTD_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("TRACTD_SEED is a number");
            seed..seed + 1
        }
        Err(_) => {
            0..std::env::var("TRACTD_CASES")
                .map_or(count, |cases| count.min(cases.parse().expect("TRACTD_CASES is a number")))
        }
    };
    for seed in seeds {
        let case = make(&mut Rng::new(seed));
        let (expected, found) = (expected(&case), run(&case, tier));
        for (output, (expected, found)) in expected.iter().zip(&found).enumerate() {
            let Some(at) = expected.iter().zip(found).position(|(a, b)| a != b) else { continue };
            panic!(
                "{name} on {tier}: output {output} differs at byte {at}: expected {}, found {}\n{}\n\
                 replay: TRACTD_SEED={seed} cargo test -p tractd-kernels --test tiers {name}",
                expected[at], found[at], case.describe
            );
        }
    }
}

macro_rules! stamp {
    ($($tier:ident $module:ident;)*) => { $(
        mod $module {
            use super::*;
            const TIER: Tier = Tier::$tier;

            fn check(name: &str, count: u64, make: fn(&mut Rng) -> Case) {
                super::check(name, TIER, count, make, |case| run(case, Tier::Portable));
            }

            #[test] fn conv() { check("conv", 400, generate::conv); }
            #[test] fn dense() { check("dense", 150, generate::dense); }
            #[test] fn wide_conv() { check("wide_conv", 60, generate::wide_conv); }
            #[test] fn heavy() { check("heavy", 12, generate::heavy); }
            #[test] fn stem() { check("stem", 150, generate::stem); }
            #[test] fn depthwise() { check("depthwise", 400, generate::depthwise); }
            #[test] fn single_row() { check("single_row", 60, generate::single_row); }
            #[test] fn grouped() { check("grouped", 150, generate::grouped); }
            #[test] fn extreme() { check("extreme", 100, generate::extreme); }
            #[test] fn zeros() { check("zeros", 20, generate::zeros); }
            #[test] fn max_pool() { check("max_pool", 150, generate::max_pool); }
            #[test] fn average_pool() { check("average_pool", 200, generate::average_pool); }
            #[test] fn add() { check("add", 200, generate::add); }
            #[test] fn mul() { check("mul", 200, generate::mul); }
            #[test] fn table() { check("table", 100, generate::table); }
            #[test] fn copy() { check("copy", 150, generate::copy); }
            #[test] fn softmax() { check("softmax", 60, generate::softmax); }
            #[test] fn quantize() { check("quantize", 200, generate::quantize); }
            #[test] fn load() { check("load", 150, generate::load); }
            #[test] fn chain() { check("chain", 100, generate::chain); }
        }
    )* };
}

stamp! {
    Avx512Vnni avx512_vnni;
    AvxVnni avx_vnni;
    Avx2 avx2;
    Sse41 sse41;
    NeonI8mm neon_i8mm;
    NeonDot neon_dot;
    Neon neon;
    ArmV7Neon armv7_neon;
}

mod portable {
    use super::*;

    fn check(name: &str, count: u64, make: fn(&mut Rng) -> Case) {
        super::check(name, Tier::Portable, count, make, |case| naive::run(case, 0.0));
    }

    /// Requantisation may be off by half a sum's step, which shows in few results.
    fn check_conv(name: &str, count: u64, make: fn(&mut Rng) -> Case) {
        let (mut all, mut other) = (0, 0);
        let nearest = |case: &Case| {
            let mut expected = naive::run(case, 0.0);
            let near = [naive::run(case, -0.5), naive::run(case, 0.5)];
            let found = run(case, Tier::Portable);
            for (output, expected) in expected.iter_mut().enumerate() {
                for (at, byte) in expected.iter_mut().enumerate() {
                    let found = found[output][at];
                    all += 1;
                    if found != *byte && near.iter().any(|near| near[output][at] == found) {
                        *byte = found;
                        other += 1;
                    }
                }
            }
            expected
        };
        super::check(name, Tier::Portable, count, make, nearest);
        assert!(other * 20_000 < all, "{other} of {all} results are not those of the definition");
    }

    #[test]
    fn conv() {
        check_conv("conv", 400, generate::conv);
    }

    #[test]
    fn dense() {
        check_conv("dense", 100, generate::dense);
    }

    #[test]
    fn stem() {
        check_conv("stem", 100, generate::stem);
    }

    #[test]
    fn depthwise() {
        check_conv("depthwise", 300, generate::depthwise);
    }

    #[test]
    fn grouped() {
        check_conv("grouped", 100, generate::grouped);
    }

    #[test]
    fn extreme() {
        check_conv("extreme", 50, generate::extreme);
    }

    #[test]
    fn max_pool() {
        check("max_pool", 100, generate::max_pool);
    }

    #[test]
    fn average_pool() {
        check("average_pool", 100, generate::average_pool);
    }

    #[test]
    fn add() {
        check("add", 100, generate::add);
    }

    #[test]
    fn mul() {
        check("mul", 100, generate::mul);
    }

    #[test]
    fn table() {
        check("table", 50, generate::table);
    }

    #[test]
    fn softmax() {
        check("softmax", 50, generate::softmax);
    }

    #[test]
    fn quantize() {
        check("quantize", 50, generate::quantize);
    }

    #[test]
    fn load() {
        check("load", 50, generate::load);
    }
}
