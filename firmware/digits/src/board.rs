//! What the mps2-an386 has: a tick of a millisecond, and a UART (ARM DDI 0479, CMSDK APB UART) without a FIFO.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use cortex_m::{Peripherals, peripheral::syst::SystClkSource};
use cortex_m_rt::exception;

const CLOCK_HZ: u32 = 25_000_000;
const UART0: *mut u32 = 0x4000_4000 as *mut u32;
/// Words from the start: data, state (bit 0: sending, bit 1: received), control, and clocks per bit.
const DATA: usize = 0;
const STATE: usize = 1;
const CTRL: usize = 2;
const BAUDDIV: usize = 4;

/// Close to its end, so that every run goes over it.
static NOW_MS: AtomicU32 = AtomicU32::new(u32::MAX - 50);

/// Milliseconds of a counter that wraps around.
pub(crate) fn now_ms() -> u32 {
    NOW_MS.load(Relaxed)
}

#[exception]
fn SysTick() {
    NOW_MS.fetch_add(1, Relaxed);
}

/// The board's first UART.
pub(crate) struct Uart(());

impl Uart {
    /// Starts the tick and the UART; once.
    pub(crate) fn start() -> Self {
        let mut tick = Peripherals::take().expect("called once").SYST;
        tick.set_clock_source(SystClkSource::Core);
        tick.set_reload(CLOCK_HZ / 1000 - 1);
        tick.clear_current();
        tick.enable_interrupt();
        tick.enable_counter();
        let uart = Self(());
        uart.set(BAUDDIV, CLOCK_HZ / 115_200);
        uart.set(CTRL, 0b11);
        uart
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while self.word(STATE) & 1 != 0 {}
            self.set(DATA, byte.into());
        }
    }

    pub(crate) fn read(&mut self) -> Option<u8> {
        (self.word(STATE) & 2 != 0).then(|| self.word(DATA) as u8)
    }

    fn word(&self, at: usize) -> u32 {
        // SAFETY: a register of the board's UART, which only this struct uses.
        unsafe { UART0.add(at).read_volatile() }
    }

    fn set(&self, at: usize, word: u32) {
        // SAFETY: as above.
        unsafe { UART0.add(at).write_volatile(word) }
    }
}
