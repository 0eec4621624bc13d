//! ARM tiers. Packing and what goes round the tiles is shared; the tiles are each architecture's.
//!
//! # Safety of this module
//! Lowered steps hold views that lie in the arena with [`crate::layout::SLACK`] readable bytes behind the last; stores keep to a
//! pixel's stride, which is a multiple of 16 bytes, or the channels where these are at most four.

#![allow(
    clippy::needless_range_loop,
    reason = "indices run over several arrays of registers at once, and iterators hide that the loops unroll"
)]

mod conv;
mod depthwise;
mod external;
mod rows;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "arm")]
mod v7;

#[cfg(target_arch = "aarch64")]
use aarch64 as arch;
#[cfg(target_arch = "arm")]
use v7 as arch;

pub(crate) use arch::kernels;

/// Channels that kernels compute together: a vector of bytes.
const CHANNELS: usize = 16;
