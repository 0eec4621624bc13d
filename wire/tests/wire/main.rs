//! The wire against its golden vectors, against itself, and against anything at all.

#[path = "../golden/mod.rs"]
mod golden;

mod header;
mod hostile;
mod refusals;
mod round_trip;
mod vectors;
