//! A bundle made runnable: plans, sessions, pre- and post-processing, self-test.
//!
//! A [`Plan`] is a model loaded once, immutable and shared; a [`Session`] is one worker's state on it. A model
//! is an untrusted program: [`proof::prove`] tries it in a child process with limits before any plan of it
//! is loaded where it could do harm.
//!
//! Inside, a graph runs on tract. This crate knows no transport and no runtime; it blocks, and one session
//! uses one thread.

mod cache;
mod convert;
mod exec;
mod finite;
mod graph;
mod guard;
mod image;
mod interface;
mod plan;
mod post;
pub mod proof;
mod self_test;
mod session;
mod tensor;

pub use plan::{LoadError, Plan, PlanOptions};
pub use self_test::{SelfTest, SelfTestError, self_test};
pub use session::{RunError, Session};
pub use tensor::{Class, Input, Output, Tensor, TensorView, Timings, Want};
pub use tractd_compiler::{NodeReport, Place, Report, Tier, contention_probe};
