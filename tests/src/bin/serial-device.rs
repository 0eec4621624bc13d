//! `serial-device LINE MODEL PICTURE`: a device on a serial line, for `scripts/test-deb`, where there is no device.
//!
//! Makes a pseudo-terminal, calls its far end LINE, and asks MODEL about PICTURE with the firmware's own client until
//! somebody who opened LINE has answered. Prints the class. Any refusal, and a minute without an answer, is a failure.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serial2::SerialPort;
use tractd_firmware_shim::{Call, Client, Patience, Serial, Status, Step, Want};

const PATIENCE: Patience = Patience { timeout_ms: 60_000, resend_ms: 300 };

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [line, model, picture] = &args[..] else { bail!("usage: serial-device LINE MODEL PICTURE") };
    let picture = std::fs::read(picture).with_context(|| format!("reading {picture}"))?;

    // The far end stays open here, so that the near one may be written before anybody listens.
    let (mut near, far) = SerialPort::pair()?;
    near.set_read_timeout(Duration::from_millis(50))?;
    let name = std::fs::read_link(format!("/proc/self/fd/{}", far.as_raw_fd()))?;
    symlink(name, line).with_context(|| format!("making {line}"))?;

    let (mut replies, mut head) = ([0; 2048], [0; 96]);
    let mut client = Client::new(Serial::new(&mut replies, 1), &mut head, PATIENCE, 1);
    let call = Call { want: Want::CLASSES, ..Call::media(model, &picture) };
    let start = Instant::now();
    let now_ms = || start.elapsed().as_millis() as u32;
    let Ok(mut exchange) = client.start(now_ms(), &call) else { bail!("the request does not fit") };
    let (mut out, mut bytes) = ([0; 257], [0; 512]);
    loop {
        match exchange.poll(now_ms(), &mut out) {
            Step::Send(packet) => near.write_all(packet)?,
            Step::Sleep(_) => match near.read(&mut bytes) {
                Ok(length) => {
                    exchange.on_bytes(&bytes[..length]);
                }
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(error) => return Err(error.into()),
            },
            Step::Done(reply) if reply.status == Status::Ok => {
                let class = reply.classes().next().context("an answer without classes")?;
                println!("{}", class.index);
                return Ok(());
            }
            Step::Done(reply) => bail!("refused: {:?}, {}", reply.status, reply.detail),
            step => bail!("no answer: {step:?}"),
        }
    }
}
