#![no_main]

#[path = "../checks/client.rs"]
mod client;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client::check(bytes));
