//! Int8 micro-kernels per CPU tier and the executor of compiled programs.
//!
//! A compiler describes a network as a [`ProgramSpec`]: u8 buffers in NHWC order and steps over them, weights in their plain
//! ONNX order. [`Program::new`] checks every size, offset and scale once, plans the arena, packs the weights for one [`Tier`] and
//! keeps nothing a run would have to check again. A `Program` is immutable and shared; each session owns an [`Arena`].
//!
//! # Numerics
//! One definition for every tier, and the portable tier is the reference, bit for bit:
//!
//! - Convolution, depthwise, dense: `acc = bias + Σ (x − zx)·(w − zw)` in i32. `Program::new` refuses a layer that could overflow.
//! - Requantisation: `q = clamp(round_ties_even(acc as f32 * multiplier) + zy, low, high)`; the product is one f32
//!   multiplication, and what leaves i32 saturates. Where all sums of a layer span less than 2^23 and their results fit i16,
//!   as those of most layers do, it is one fused operation instead, with whole numbers `a` and `b` by channel:
//!   `q = clamp(round((acc + a) * multiplier + b), low, high)`. `a * multiplier + b` is `zy` within 2^-18, `multiplier` the
//!   given one within a few units in the last place: about ten results in a million differ, by one.
//! - Addition: `clamp(round_ties_even(((a − za) as f32 * ma + (b − zb) as f32 * mb) + zy as f32), low, high)`, each operation
//!   rounded to f32 on its own, never contracted. Zero points go first, so that tensors shifted from i8 give the same bits.
//! - Multiplication: `acc = (a − za)·(b − zb)`, then `clamp(round_ties_even(acc as f32 * multiplier + zy as f32), low, high)`,
//!   two operations, not contracted.
//! - Averages: `acc = Σ (x − zx)`, then as a product or as a convolution's sum, by [`Rounding`], with `multiplier / count`.
//! - Quantisation of f32: `clamp(round_ties_even(x / scale) + zero_point, 0, 255)`; NaN becomes 0.
//!
//! # What this crate deliberately does not do
//! It reads no files, knows no ONNX and spawns no threads. It is the only crate with `unsafe` (the C ABI aside).

mod arena;
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
mod arm;
#[cfg(feature = "serde")]
mod bytes;
mod contention;
mod error;
mod fused;
mod kernel;
mod layout;
mod lower;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "x86 tiers use all of it"))]
mod pack;
mod plan;
mod portable;
mod program;
mod spec;
mod step;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "x86 tiers use all of it"))]
mod strip;
mod tier;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use arena::Arena;
pub use contention::contention_probe;
pub use error::{ProgramError, RunError};
pub use program::{Program, StepReport};
pub use spec::*;
pub use tier::{Tier, UnknownTier};
