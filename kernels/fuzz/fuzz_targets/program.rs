//! Any description, as its serialised form reads any bytes, and a run of what `Program::new` accepts.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/any_program/mod.rs"]
mod any_program;

fuzz_target!(|bytes: &[u8]| any_program::check(bytes));
