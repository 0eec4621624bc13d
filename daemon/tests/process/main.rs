//! The real daemon as a process: what it answers, refuses, survives, and how it ends.

#![allow(clippy::unwrap_used)]

mod configuration;
mod frames;
mod harness;
mod lifecycle;
mod load;
mod models;
mod onnx;
mod status;
