//! The specification says what the crate does.

use tractd_wire::*;

use crate::golden;

const DOC: &str = include_str!("../../../docs/wire.md");

#[track_caller]
fn says(text: &str) {
    assert!(DOC.contains(text), "docs/wire.md does not say: {text}");
}

#[test]
fn every_number_stands_in_the_tables() {
    for status in Status::ALL {
        let row = format!("| {} | `{status}` | ", status.code());
        let line = DOC.lines().find(|line| line.starts_with(&row)).expect("a row for each status");
        assert_eq!(line.ends_with("| yes |"), status.retryable(), "{line}");
    }
    for kind in Kind::ALL {
        says(&format!("| {} | `{kind}` | ", kind.number()));
    }
    let list = |numbers: Vec<(u8, &str)>| {
        numbers.iter().map(|(number, name)| format!("{number} {name}")).collect::<Vec<_>>().join(", ")
    };
    says(&list(DType::ALL.iter().map(|d| (d.number(), d.name())).collect()));
    says(&list(Priority::ALL.iter().map(|p| (p.number(), p.name())).collect()));
    says(&list(What::ALL.iter().map(|w| (w.number(), w.name())).collect()));
}

#[test]
fn the_examples_are_the_golden_frames() {
    for line in golden::REQUEST_TENSORS.lines().skip(1) {
        says(line);
    }
    for line in golden::REPLY_REFUSED.lines().skip_while(|line| *line != "# head") {
        says(line);
    }
}

#[test]
fn the_limits_are_the_crates() {
    let thousands = |number: usize| match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", number / 1000, number % 1000),
    };
    says(&format!("| head | {} bytes;", thousands(HEAD_LEN_MAX)));
    says(&format!("| body | {} MiB,", BODY_LEN_MAX >> 20));
    says(&format!("| tensors of a message | {TENSORS_MAX} |"));
    says(&format!("| dimensions of a tensor | {RANK_MAX} |"));
    says(&format!("| classes of a reply | {CLASSES_MAX} |"));
    says(&format!("| {NAME_LEN_MAX}; {TENSOR_NAME_LEN_MAX}; {LABEL_LEN_MAX} bytes |"));
    says(&format!("| detail | {DETAIL_LEN_MAX} bytes |"));
}
