//! Any bytes as what a cache kept of a compiled graph, and a run of it.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/any_model/mod.rs"]
mod any_model;

fuzz_target!(|bytes: &[u8]| any_model::check_stored(bytes));
