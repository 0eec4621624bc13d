//! x86-64 tiers.

use crate::Tier;
use crate::kernel::Kernels;

/// The kernels of a tier, where this machine can run them.
pub(crate) fn kernels(_tier: Tier) -> Option<&'static Kernels> {
    None
}
