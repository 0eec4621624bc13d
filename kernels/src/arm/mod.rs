//! ARM tiers.

#![allow(
    clippy::needless_range_loop,
    reason = "indices run over several arrays of registers at once, and iterators hide that the loops unroll"
)]

#[cfg(target_arch = "aarch64")]
mod aarch64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::kernels;
