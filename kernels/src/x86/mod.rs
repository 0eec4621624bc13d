//! x86-64 tiers.

mod avx512;

use crate::Tier;
use crate::kernel::Kernels;

/// The kernels of a tier, where this machine can run them.
pub(crate) fn kernels(tier: Tier) -> Option<&'static Kernels> {
    match tier {
        Tier::Avx512Vnni => avx512::is_available().then_some(&avx512::KERNELS),
        _ => None,
    }
}
