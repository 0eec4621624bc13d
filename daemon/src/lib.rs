//! `tractd`: sockets, MQTT, workers and observation around the engine.
//!
//! What it deliberately does not do: verify signatures (`update`), know ONNX (`engine`), or decide who is next
//! (`scheduler`). It moves bytes, owns threads and tells what happens.

pub mod config;
mod floor;
pub mod frame;
pub mod intake;
pub mod mqtt;
pub mod observe;
