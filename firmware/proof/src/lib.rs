//! The probe as a static library whose panics call a function that does not exist: what links has no panic in it.
#![no_std]

pub use probe::*;

unsafe extern "C" {
    fn a_panic_can_be_reached() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: never called: whatever reaches it does not link.
    unsafe { a_panic_can_be_reached() }
}

/// A panic on purpose, so that the proof is seen to fail where there is one.
#[unsafe(no_mangle)]
pub fn control(bytes: &[u8], at: usize) -> u8 {
    bytes[at]
}
