//! Measures on a Cortex-M4 how much stack the probe's functions take: the free stack is painted, a function runs, and
//! the paint that is left tells how deep it went. Prints `NAME BYTES`, and what a device's state takes.
#![no_std]
#![no_main]

use core::{hint::black_box, panic::PanicInfo};

use cortex_m::register::msp;
use cortex_m_semihosting::{debug, hprintln};
use probe::{Device, Uart};
use tractd_firmware_shim::{
    FrameReader,
    wire::{Class, Reply, Shape, Status, TensorDesc, encode_reply, serial},
};

const PAINT: u32 = 0xaaaa_aaaa;
/// Below the stack pointer and not painted: what the painting itself takes.
const MARGIN_WORDS: usize = 16;
/// Painted at most.
const PAINTED_WORDS: usize = 512;

#[cortex_m_rt::entry]
fn main() -> ! {
    let mut frame = [0; 256];
    let frame_len = reply_frame(1 << 32 | 1, &mut frame);
    let frame = &frame[..frame_len];

    let mut out = [0; serial::PACKET_LEN_MAX];
    let (mut replies, mut head) = ([0; 256], [0; 64]);
    measure("request", || assert_ne!(probe::request(black_box("digits@7"), &[7; 64], &mut out), 0));
    let mut reader = FrameReader::new(&mut replies);
    measure("reply", || assert_eq!(probe::reply(&mut reader, &mut &*frame), 7));
    let topic = black_box("tractd/v1/_any/req/digits@18446744073709551615/postcard/ESP32_0A/42");
    measure("topics", || assert_eq!(probe::topics(topic, &mut out), topic.len()));

    // A refusal first, so that a retry is in it as well.
    let mut refusal = [0; 128];
    let refused = Reply { retry_after_ms: 5, ..Reply::new(Status::Busy) };
    let refusal_len = encode_reply(1 << 32 | 1, &refused, 0, &mut refusal).expect("a refusal fits");
    let mut gateway = Gateway::new(&refusal[..refusal_len], frame);
    let mut device = probe::device(&mut replies, &mut head, 1);
    measure("uart", || assert_eq!(probe::uart(&mut device, &[7; 64], &mut out, &mut gateway), 7 + (4 << 8)));

    hprintln!("state {}", size_of::<Device<'_>>());
    debug::exit(debug::EXIT_SUCCESS);
    loop {}
}

/// A reply as the daemon sends it: one tensor, three classes.
fn reply_frame(id: u64, out: &mut [u8]) -> usize {
    let mut reply = Reply { model: "digits", version: 7, ..Reply::new(Status::Ok) };
    let shape = Shape::from_slice(&[1, 4]).expect("two dimensions");
    let tensor = TensorDesc { name: "logits", dtype: tractd_firmware_shim::DType::U8, shape };
    reply.tensors.push(tensor).expect("one tensor");
    for index in [7, 8, 9] {
        reply.classes.push(Class { index, score: 0.5, label: "seven" }).expect("three classes");
    }
    let len = encode_reply(id, &reply, 4, out).expect("it fits");
    out[len..len + 4].copy_from_slice(&[1, 2, 3, 4]);
    len + 4
}

/// The other end of the line, with its answers ready.
struct Gateway {
    line: [u8; 512],
    /// Where each answer ends, and which is next.
    ends: [usize; 3],
    next: usize,
    now_ms: u32,
}

impl Gateway {
    fn new(refusal: &[u8], reply: &[u8]) -> Self {
        let mut line = [0; 512];
        let hello = serial::Hello { answer: false, payload_max: 250, frame_max: 4096, session: 1 };
        let mut ends = [0; 3];
        ends[0] = hello.encode(&mut line).expect("it fits");
        for (i, frame) in [(1, refusal), (2, reply)] {
            let start = ends[i - 1];
            let len = serial::Sender::new().next([frame].into_iter(), 250, &mut line[start..]);
            ends[i] = start + len.expect("it fits");
        }
        Self { line, ends, next: 0, now_ms: u32::MAX - 2 }
    }
}

impl Uart for Gateway {
    fn write(&mut self, bytes: &[u8]) {
        black_box(bytes);
    }

    fn read(&mut self) -> &[u8] {
        let i = self.next.min(2);
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        self.next += 1;
        &self.line[start..self.ends[i]]
    }

    fn now_ms(&mut self) -> u32 {
        self.now_ms = self.now_ms.wrapping_add(1);
        self.now_ms
    }
}

/// Runs a function and prints how far below this frame its stack went.
#[inline(never)]
fn measure(name: &str, run: impl FnOnce()) {
    let top = msp::read() as usize - MARGIN_WORDS * 4;
    let bottom = top - PAINTED_WORDS * 4;
    for at in (bottom..top).step_by(4) {
        // SAFETY: free stack, below everything that lives: `memory.x` leaves more than is painted, and no interrupt
        // is enabled.
        unsafe { (at as *mut u32).write_volatile(PAINT) };
    }
    run();
    // SAFETY: as above.
    let untouched =
        (bottom..top).step_by(4).take_while(|at| unsafe { (*at as *const u32).read_volatile() } == PAINT);
    let deepest = bottom + 4 * untouched.count();
    hprintln!("{} {}", name, top + MARGIN_WORDS * 4 - deepest);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hprintln!("{}", info);
    debug::exit(debug::EXIT_FAILURE);
    loop {}
}
