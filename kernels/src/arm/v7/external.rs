//! The caller's floats to buffers.

use super::{QuantizeFactors, Rounding, tractd_v7_quantize};
use crate::Clamp;
use crate::step::{Quantize, Requant};

/// How a step turns floats into bytes.
pub(in crate::arm) struct Quantizer(QuantizeFactors);

/// Pixels whose planes are quantised before they are interleaved.
const TOGETHER: usize = 64;

impl Quantizer {
    pub(in crate::arm) fn new(step: &Quantize) -> Quantizer {
        let requant = Requant { zero_point: step.output.zero_point, clamp: Clamp::default() };
        Quantizer(QuantizeFactors { scale: step.scale, rounding: Rounding::new(&requant) })
    }

    /// # Safety
    /// `elements` floats are readable and as many bytes writable.
    pub(in crate::arm) unsafe fn run(&self, from: *const u8, to: *mut u8, elements: usize) {
        let rest = elements % 8;
        let whole = elements - rest;
        let (mut values, mut bytes) = ([0u8; 32], [0; 8]);
        // SAFETY: the caller's contract; arrays of 32 and 8 bytes; the tier was detected.
        unsafe {
            tractd_v7_quantize(from, to, whole / 8, &self.0);
            std::ptr::copy_nonoverlapping(from.add(whole * 4), values.as_mut_ptr(), rest * 4);
            tractd_v7_quantize(values.as_ptr(), bytes.as_mut_ptr(), 1, &self.0);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(whole), rest);
        }
    }

    /// A row of `C` planes to pixels of `C` bytes.
    ///
    /// # Safety
    /// `width` floats are readable at each plane, and as many pixels writable.
    pub(in crate::arm) unsafe fn planes<const C: usize>(
        &self,
        from: *const u8,
        plane: usize,
        to: *mut u8,
        width: usize,
    ) {
        let mut bytes = [[0; TOGETHER]; C];
        for x in (0..width).step_by(TOGETHER) {
            let count = TOGETHER.min(width - x);
            // SAFETY: the caller's contract.
            unsafe {
                for c in 0..C {
                    self.run(from.add(c * plane + x * 4), bytes[c].as_mut_ptr(), count);
                }
                for i in 0..count {
                    for c in 0..C {
                        *to.add((x + i) * C + c) = bytes[c][i];
                    }
                }
            }
        }
    }
}
