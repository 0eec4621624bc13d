#![no_main]

#[path = "../checks/topics.rs"]
mod topics;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| topics::check(bytes));
