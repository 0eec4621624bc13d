//! What a device does with the shim, one function for each part that is measured. `scripts/firmware-size` links each
//! on its own and sees that no panic is reached from it; the image `stack` runs them.
//!
//! Arguments come from the caller so that nothing is worked out when the probe is built.
#![no_std]

use tractd_firmware_shim::{
    Call, Client, DType, FrameReader, Patience, Serial, Status, Step, Tensor, encode_request,
    topic::{Prefix, Topic},
    wire::serial,
};

/// What a device holds for as long as it runs, in its own static memory.
pub type Device<'b> = Client<'b, Serial<'b>>;

/// Which digit an image is, asked over a UART: request, framing, retries and reply together. The budget is for this.
#[unsafe(no_mangle)]
pub fn uart(device: &mut Device<'_>, pixels: &[u8], out: &mut [u8], uart: &mut dyn Uart) -> u32 {
    let image = Tensor { name: "", dtype: DType::U8, shape: &[1, 1, 8, 8], data: pixels };
    let Ok(mut exchange) = device.start(uart.now_ms(), &Call::tensor("digits", image)) else { return 1 };
    loop {
        match exchange.poll(uart.now_ms(), out) {
            Step::Send(bytes) => uart.write(bytes),
            Step::Sleep(_) => {
                let bytes = uart.read();
                exchange.on_bytes(bytes);
            }
            Step::Done(reply) if reply.status == Status::Ok => {
                let data = reply.tensors().next().map_or(0, |tensor| tensor.data.len() as u32);
                return reply.classes().next().map_or(2, |class| class.index) + (data << 8);
            }
            Step::Done(reply) => return u32::from(reply.status.code()),
            Step::TimedOut | Step::TooLarge(_) | Step::Broken => return 3,
        }
    }
}

/// A device's line and clock.
pub trait Uart {
    /// Sends.
    fn write(&mut self, bytes: &[u8]);
    /// What came.
    fn read(&mut self) -> &[u8];
    /// Milliseconds since some time.
    fn now_ms(&mut self) -> u32;
}

/// A new device.
#[unsafe(no_mangle)]
pub fn device<'b>(replies: &'b mut [u8], head: &'b mut [u8], boot: u32) -> Device<'b> {
    Client::new(Serial::new(replies, boot), head, Patience::default(), boot)
}

/// A request as one frame.
#[unsafe(no_mangle)]
pub fn request(model: &str, pixels: &[u8], out: &mut [u8]) -> usize {
    let image = Tensor { name: "", dtype: DType::U8, shape: &[1, 1, 8, 8], data: pixels };
    encode_request(7, &Call::tensor(model, image), out).unwrap_or(0)
}

/// A frame out of a stream, and the reply in it.
#[unsafe(no_mangle)]
pub fn reply(reader: &mut FrameReader<'_>, input: &mut &[u8]) -> u32 {
    match reader.read(input).map(|frame| frame.map(|frame| frame.reply_view())) {
        Ok(Some(Ok(reply))) => match reply.classes().next() {
            Some(class) => class.index,
            None => u32::from(reply.status.code()) | reply.retry_after_ms << 16,
        },
        Ok(Some(Err(_))) => 1,
        Ok(None) => 2,
        Err(_) => 3,
    }
}

/// The packets of a serial line, both ways.
#[unsafe(no_mangle)]
pub fn framing(
    sender: &mut serial::Sender,
    receiver: &mut serial::Receiver,
    buffer: &mut [u8],
    bytes: &mut &[u8],
    out: &mut [u8],
) -> usize {
    match receiver.read(buffer, bytes) {
        Some(serial::Event::Frame { len }) => len,
        Some(serial::Event::Hello(hello)) => hello.encode(out).unwrap_or(0),
        _ => sender.next([*bytes].into_iter(), 250, out).unwrap_or(0),
    }
}

/// A topic, both ways.
#[unsafe(no_mangle)]
pub fn topics(text: &str, out: &mut [u8]) -> usize {
    match Topic::parse(Prefix::DEFAULT, text) {
        Ok(topic) => topic.build(Prefix::DEFAULT, out).map_or(0, str::len),
        Err(_) => 0,
    }
}
