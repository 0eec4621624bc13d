//! The C ABI as a static library: `libtractd_firmware.a`, for `include/tractd.h`.
//!
//! Its panic handler calls a function that nobody defines, so that a firmware links only because no panic can be
//! reached. Link with `--gc-sections`.
#![no_std]

pub use tractd_firmware_shim_c::*;

unsafe extern "C" {
    fn a_panic_can_be_reached() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: never called: whatever reaches it does not link.
    unsafe { a_panic_can_be_reached() }
}
