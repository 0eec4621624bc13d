//! Whether this core does somebody else's work as well.

use std::arch::asm;
use std::time::{Duration, Instant};

/// Instructions of one probe: 7 µs of a core of 5 a cycle at 2.8 GHz.
const INSTRUCTIONS: usize = 100_000;
/// Instructions of one turn of its loop.
const TURN: usize = 100;

/// How long instructions take that do nothing, as many at a time as the core can begin. Longer than at other times, where its
/// other hardware thread is at work or the system took the core away: whoever measures does so between two probes that took
/// no longer than the quickest. A loop of multiplications alone does not tell: it leaves the other thread room.
pub fn contention_probe() -> Duration {
    let started = Instant::now();
    for _ in 0..INSTRUCTIONS / TURN {
        // SAFETY: does nothing.
        unsafe { asm!(".rept 97", "nop", ".endr", options(nomem, nostack, preserves_flags)) };
    }
    started.elapsed()
}
