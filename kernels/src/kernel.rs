//! The small table behind which the tiers stand.

use std::ops::Range;

use crate::Tier;
use crate::step::{
    Add, AveragePool, Conv, Copy, Depthwise, Dequantize, Load, MaxPool, Mul, Quantize, Softmax, Store, Table,
    Weights,
};

/// What a step runs on. The arena has the size the program was checked for, and so has each external tensor.
pub(crate) struct Memory<'a, 'b> {
    pub(crate) arena: &'a mut [u8],
    pub(crate) inputs: &'a [&'a [u8]],
    pub(crate) outputs: &'a mut [&'b mut [u8]],
    /// Weights that a later step needs at once, and that no cache near this core still holds. A kernel that has time while
    /// it multiplies may bring them, or the beginning of them, near.
    pub(crate) ahead: &'a [u8],
}

/// A step packed for one tier.
pub(crate) trait Run: Send + Sync {
    /// Computes these rows of the output.
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>);

    /// The weights it needs at once when it begins: whoever runs before it may bring them near.
    fn first_weights(&self) -> &[u8] {
        &[]
    }

    /// Bytes of weights and tables held.
    fn bytes(&self) -> usize {
        0
    }
}

/// A packed step of any kind.
pub(crate) type Kernel = Box<dyn Run>;

/// How a tier makes its kernels. A tier takes over from [`crate::portable::KERNELS`] what it does not specialise.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) quantize: fn(Quantize) -> Kernel,
    pub(crate) dequantize: fn(Dequantize) -> Kernel,
    pub(crate) load: fn(Load) -> Kernel,
    pub(crate) store: fn(Store) -> Kernel,
    pub(crate) conv: fn(Conv<Weights<'_>>) -> Kernel,
    pub(crate) depthwise: fn(Depthwise) -> Kernel,
    pub(crate) max_pool: fn(MaxPool) -> Kernel,
    pub(crate) average_pool: fn(AveragePool) -> Kernel,
    pub(crate) add: fn(Add) -> Kernel,
    pub(crate) mul: fn(Mul) -> Kernel,
    pub(crate) table: fn(Table) -> Kernel,
    pub(crate) copy: fn(Copy) -> Kernel,
    pub(crate) softmax: fn(Softmax) -> Kernel,
}

/// The kernels of a tier, where this build has them and this machine can run them.
pub(crate) fn kernels(tier: Tier) -> Option<&'static Kernels> {
    match tier {
        Tier::Portable => Some(&crate::portable::KERNELS),
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512Vnni | Tier::AvxVnni | Tier::Avx2 | Tier::Sse41 => crate::x86::kernels(tier),
        #[cfg(target_arch = "aarch64")]
        Tier::NeonI8mm | Tier::NeonDot | Tier::Neon => crate::arm::kernels(tier),
        #[cfg(target_arch = "arm")]
        Tier::ArmV7Neon => crate::arm::kernels(tier),
        _ => None,
    }
}
