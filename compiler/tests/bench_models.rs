//! The networks of `scripts/make-bench-models` at full size, held to what ONNX Runtime answers.

#![allow(clippy::unwrap_used, reason = "all of it is test code")]

use std::path::Path;
use std::time::Instant;

use tractd_compiler::{Form, Place};

#[allow(dead_code, reason = "the recorded graphs are not asked for here")]
mod common;

/// Where the last quantisation is, results are at most this many of its steps apart.
const STEPS_MAX: f32 = 1.01;
/// Here ONNX Runtime's own answers, with and without its fusions, are two steps apart: sums of signed tensors that lie on a
/// half within f32's precision, amplified by fifty random layers.
const DEEP: (&str, f32) = ("mobilenet-v2 qdq-s8s8-pc", 2.01);
const NETWORKS: [&str; 7] =
    ["mlp", "autoencoder", "ds-cnn", "resnet8", "mobilenet-v3-small", "mobilenet-v2", "resnet18"];
const FORMS: [&str; 7] =
    ["qdq-u8s8-pc", "qdq-u8s8-pt", "qdq-s8s8-pc", "qdq-u8u8-pt", "qop-u8s8-pc", "qop-u8s8-pt", "qop-s8s8-pc"];

#[test]
#[ignore = "needs build/bench-models: run scripts/make-bench-models, then this with --ignored --nocapture"]
fn networks_are_covered_and_agree_with_onnx_runtime() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/bench-models");
    let mut failed = vec![];
    println!("network form: int8 MACs, nodes outside, compile ms, differing outputs, worst in steps");
    for network in NETWORKS {
        let input = std::fs::read(folder.join(format!("{network}.input"))).unwrap();
        for form in FORMS {
            let file = std::fs::read(folder.join(format!("{network}.{form}.onnx"))).unwrap();
            let expected = std::fs::read(folder.join(format!("{network}.{form}.expected"))).unwrap();
            let model = common::parse(&file);
            let begin = Instant::now();
            let compiled = common::compiled(&model);
            let ms = begin.elapsed().as_millis();
            let report = &compiled.report;
            let share = report.int8_macs as f64 / report.total_macs as f64;
            let outputs = common::run(&model, &compiled, std::slice::from_ref(&input));
            let (got, expected) = (common::floats(&outputs[0]), common::floats(&expected));
            // The smallest difference of two results is the last quantisation's step.
            let mut sorted = expected.clone();
            sorted.sort_by(f32::total_cmp);
            let gaps = sorted.windows(2).map(|pair| pair[1] - pair[0]).filter(|&gap| gap > 1e-7);
            let step = gaps.fold(f32::INFINITY, f32::min);
            let unfused = std::fs::read(folder.join(format!("{network}.{form}.expected-unfused")));
            let references = [expected, unfused.map_or(vec![], |bytes| common::floats(&bytes))];
            let compared = references.iter().filter(|reference| !reference.is_empty()).map(|reference| {
                let apart: Vec<f32> = got.iter().zip(reference).map(|(a, b)| (a - b).abs()).collect();
                let worst = apart.iter().copied().fold(0.0, f32::max) / step;
                (worst, apart.iter().filter(|&&apart| apart > step / 2.0).count())
            });
            let (worst, differing) = compared.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
            let expected = &references[0];
            let (whole, outside) = (matches!(compiled.form, Form::Whole(_)), report.outside().count());
            println!(
                "{network} {form}: {:.2} %{}, {outside}, {ms}, {differing}/{}, {worst:.2}",
                share * 100.0,
                if whole { " whole" } else { "" },
                got.len(),
            );
            for node in report.nodes.iter().filter(|node| node.place == Place::Tract).take(4) {
                println!("    {} {}: {}", node.op, node.name, node.why);
            }
            let limit = if format!("{network} {form}") == DEEP.0 { DEEP.1 } else { STEPS_MAX };
            if share < 0.99 || worst > limit || got.len() != expected.len() {
                failed.push(format!("{network} {form}"));
            }
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}
