//! Any ONNX file through the compiler, and a run of what is compiled whole.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/any_model/mod.rs"]
mod any_model;

fuzz_target!(|bytes: &[u8]| any_model::check_onnx(bytes));
