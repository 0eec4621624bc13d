//! Sums and tables over runs of bytes.

use super::{AddFactors, tractd_v7_add};
use crate::step::Sum;

/// # Safety
/// `bytes` are readable at `a` and `b`, and writable at `to`, which may be `a`.
pub(in crate::arm) unsafe fn add_bytes(a: *const u8, b: *const u8, to: *mut u8, bytes: usize, sum: &Sum) {
    let factors = AddFactors {
        a: sum.a,
        b: sum.b,
        a_zero: sum.a_zero,
        b_zero: sum.b_zero,
        zero: sum.zero,
        low: f32::from(sum.clamp.low),
        high: f32::from(sum.clamp.high),
    };
    // SAFETY: the caller's contract; the tier was detected.
    unsafe {
        tractd_v7_add(a, b, to, bytes / 8, &factors);
        for at in bytes / 8 * 8..bytes {
            *to.add(at) = sum.apply(*a.add(at), *b.add(at));
        }
    }
}

/// # Safety
/// `bytes` are readable at `from` and writable at `to`, which may be the same.
pub(in crate::arm) unsafe fn look_up(from: *const u8, to: *mut u8, bytes: usize, table: &[u8; 256]) {
    for at in 0..bytes {
        // SAFETY: the caller's contract.
        unsafe { *to.add(at) = table[usize::from(*from.add(at))] };
    }
}
