//! x86-64 tiers.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators are functions of their own, which would not be compiled for a kernel's features in place"
)]

mod avx2;
mod avx512;
mod narrow;
mod sse41;

use crate::Tier;
use crate::kernel::Kernels;

/// The kernels of a tier, where this machine can run them.
pub(crate) fn kernels(tier: Tier) -> Option<&'static Kernels> {
    match tier {
        Tier::Avx512Vnni => avx512::is_available().then_some(&avx512::KERNELS),
        Tier::AvxVnni => avx2::vnni::is_available().then_some(&avx2::vnni::KERNELS),
        Tier::Avx2 => avx2::plain::is_available().then_some(&avx2::plain::KERNELS),
        Tier::Sse41 => sse41::is_available().then_some(&sse41::KERNELS),
        _ => None,
    }
}
