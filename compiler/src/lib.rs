//! Takes int8 regions off ONNX graphs and compiles them to kernel programs.
//!
//! [`compile`] reads the parsed file before tract does. What is quantised, in either of ONNX Runtime's forms, is folded into
//! the kernels' steps and cut into regions, each of which becomes one program. A graph that is one region runs without tract;
//! otherwise tract gets a file in which each region is one operator, and never sees the nodes it was made of.
//!
//! # The file is not trusted
//! Everything of it is checked before it is used: sizes, types, names, order, scales. A wrong file is a [`CompileError`]; what is
//! only beyond the kernels stays with tract, and the [`Report`] says why, node by node. Whatever a bug here lets through,
//! `Program::new` checks again.
//!
//! # What this crate deliberately does not do
//! It opens no files (tensors kept outside of the file are left to tract), runs nothing in float, and has no unsafe code.

mod compile;
mod constant;
mod error;
mod fold;
mod fuse;
mod graph;
mod ir;
mod lower;
mod macs;
mod op;
mod region;
mod regions;
mod report;
mod rewrite;
mod shapes;
mod sound;
mod stored;
mod window;

pub use compile::{Compiled, Form, Options, compile, without_kernels};
pub use error::CompileError;
pub use lower::Port;
pub use op::{DOMAIN, OPERATOR, attach, register};
pub use region::{Region, Whole};
pub use report::{NodeReport, Place, Report};
pub use stored::{compile_and_store, restore};
// What callers need of the kernels to run what was compiled.
pub use tractd_kernels::{Arena, Element, Tier, contention_probe};
