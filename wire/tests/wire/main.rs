//! The wire against its golden vectors, against itself, and against anything at all.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]

#[path = "../golden/mod.rs"]
mod golden;

mod corpus;
mod docs;
mod header;
mod hostile;
mod refusals;
mod round_trip;
mod serial;
mod vectors;
