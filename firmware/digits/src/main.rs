//! A Cortex-M4 that has its digits read by a daemon at the other end of its UART: twenty pictures in flash, one
//! request for each. It fails on a wrong digit and on silence. On the mps2-an386 of qemu; see `scripts/test-firmware`.
#![no_std]
#![no_main]

mod board;

use board::{Uart, now_ms};
use core::panic::PanicInfo;
use cortex_m_semihosting::{debug, hprintln};
use tractd_firmware_shim::{Call, Client, Patience, Serial, Status, Step, Want, wire::serial};

/// The digits, in flash. The name of each begins with what it shows.
macro_rules! samples {
    ($($name:literal)*) => {
        [$(($name, include_bytes!(concat!("../../../models/digits/samples/", $name, ".png")).as_slice())),*]
    };
}
static SAMPLES: [(&str, &[u8]); 20] = samples! {
    "0-0202" "0-0229" "1-0047" "1-0085" "2-0002" "2-0022" "3-0045" "3-0089" "4-0004" "4-0014"
    "5-0135" "5-0204" "6-0006" "6-0034" "7-0017" "7-0027" "8-0018" "8-0053" "9-0009" "9-0037"
};

/// A picture takes some 200 bytes on the line and milliseconds in the model; a daemon that is gone is gone after this.
const PATIENCE: Patience = Patience { timeout_ms: 10_000, resend_ms: 500 };

#[cortex_m_rt::entry]
fn main() -> ! {
    let mut uart = Uart::start();
    let (mut replies, mut head, mut out) = ([0; 512], [0; 96], [0; serial::PACKET_LEN_MAX]);
    // The emulated board starts the same way every time; a real one has a counter in flash or the noise of an ADC.
    let boot = 1;
    let mut client = Client::new(Serial::new(&mut replies, boot), &mut head, PATIENCE, boot);

    let mut wrong = 0;
    for (name, png) in SAMPLES {
        let shown = u32::from(name.as_bytes()[0] - b'0');
        let call = Call { want: Want::CLASSES, ..Call::media("digits", png) };
        match read(&mut uart, &mut client, &call, &mut out) {
            Some(digit) if digit == shown => hprintln!("{}: {}", name, digit),
            Some(digit) => {
                hprintln!("{}: {}, wrong", name, digit);
                wrong += 1;
            }
            None => {
                hprintln!("{}: no answer", name);
                debug::exit(debug::EXIT_FAILURE);
            }
        }
    }
    hprintln!("{} digits, {} wrong", SAMPLES.len(), wrong);
    debug::exit(if wrong == 0 { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    loop {}
}

/// The best class for a picture; none when there is no answer, or another one than an answer.
fn read(
    uart: &mut Uart,
    client: &mut Client<'_, Serial<'_>>,
    call: &Call<'_>,
    out: &mut [u8],
) -> Option<u32> {
    let mut exchange = client.start(now_ms(), call).ok()?;
    loop {
        match exchange.poll(now_ms(), out) {
            Step::Send(bytes) => uart.write(bytes),
            // A UART brings one byte at a time; a real device would sleep until its interrupt.
            Step::Sleep(_) => {
                if let Some(byte) = uart.read() {
                    exchange.on_bytes(&[byte]);
                }
            }
            Step::Done(reply) if reply.status == Status::Ok => {
                return reply.classes().next().map(|best| best.index);
            }
            Step::Done(reply) => {
                hprintln!("{}: {}", reply.status.code(), reply.detail);
                return None;
            }
            Step::TimedOut | Step::TooLarge(_) | Step::Broken => return None,
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hprintln!("{}", info);
    debug::exit(debug::EXIT_FAILURE);
    loop {}
}
