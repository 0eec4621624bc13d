//! The reference: safe Rust, any machine. What it computes is what every other tier has to compute, to the bit.

#![forbid(unsafe_code)]

mod conv;
mod elementwise;
mod external;
mod pool;
mod softmax;

use std::ops::Range;

use crate::kernel::{Kernel, Kernels, Memory, Run};

/// Kernels of this tier.
pub(crate) const KERNELS: Kernels = Kernels {
    quantize: packed,
    dequantize: packed,
    load: packed,
    store: packed,
    conv: |conv| packed(conv.whole()),
    depthwise: packed,
    max_pool: packed,
    average_pool: packed,
    add: packed,
    mul: packed,
    table: packed,
    copy: packed,
    softmax: packed,
};

/// A step that runs as it was lowered.
pub(crate) trait Portable: Send + Sync + 'static {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>);

    fn bytes(&self) -> usize {
        0
    }
}

struct Packed<T>(T);

impl<T: Portable> Run for Packed<T> {
    fn run(&self, memory: &mut Memory<'_, '_>, rows: Range<usize>) {
        self.0.run(memory, rows);
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

pub(crate) fn packed<T: Portable>(step: T) -> Kernel {
    Box::new(Packed(step))
}
