//! One binary for all end-to-end tests: the real daemon, tool, broker and registry, on loopback and temporary folders.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod announces;
mod arrows;
mod clients;
mod fleet;
mod gateway;
mod inputs;
mod lives;
mod loads;
mod path;
mod publisher;
mod roads;
mod stick;
mod tool;
mod trials;
mod trust;
mod unit;
