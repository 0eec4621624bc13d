//! A device on a serial line: the firmware's client at one end of a pseudo-terminal, the daemon's gateway at the other.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use serial2::SerialPort;
use tractd_firmware_shim::{Call, Client, DType, Patience, Priority, Serial, Status, Step, Tensor, Want};
use tractd_tests::daemon::Home;
use tractd_tests::digits;
use tractd_tests::process::wait_for;

const PATIENCE: Patience = Patience { timeout_ms: 20_000, resend_ms: 300 };

/// A line whose one end has a name that stays.
struct Wire {
    device: SerialPort,
    /// Held open, so that the device may speak before the daemon listens.
    _gateway: SerialPort,
}

impl Wire {
    fn at(path: &Path) -> Self {
        let (device, gateway) = SerialPort::pair().unwrap();
        let name = std::fs::read_link(format!("/proc/self/fd/{}", gateway.as_raw_fd())).unwrap();
        let _ = std::fs::remove_file(path);
        std::os::unix::fs::symlink(name, path).unwrap();
        Self { device, _gateway: gateway }
    }
}

fn home() -> Home {
    let home = Home::new();
    home.put_model(&digits::dir(1), "digits", 1);
    let config = format!(
        "[mqtt]\nenabled = false\n[update]\nenabled = false\n\
         [[gateway]]\npath = {:?}\nframe_bytes_max = 2048\n",
        line(&home)
    );
    home.with_config(&config)
}

fn line(home: &Home) -> std::path::PathBuf {
    home.config().with_file_name("line")
}

/// What a call came to.
#[derive(Debug, PartialEq)]
enum Outcome {
    Class(u32),
    Refused(Status, String),
    TooLarge,
}

/// A device's main loop. `noise` may change what it sends, packet by packet.
fn ask(
    wire: &Wire,
    client: &mut Client<'_, Serial<'_>>,
    call: &Call<'_>,
    mut noise: impl FnMut(&mut Vec<u8>),
) -> Outcome {
    let start = Instant::now();
    let now_ms = || start.elapsed().as_millis() as u32;
    let mut exchange = client.start(now_ms(), call).unwrap();
    let (mut out, mut bytes) = ([0; 257], [0; 512]);
    loop {
        match exchange.poll(now_ms(), &mut out) {
            Step::Send(packet) => {
                let mut packet = packet.to_vec();
                noise(&mut packet);
                wire.device.write_all(&packet).unwrap();
            }
            Step::Sleep(_) => match wire.device.read(&mut bytes) {
                Ok(len) => assert_eq!(exchange.on_bytes(&bytes[..len]), len),
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(error) => panic!("{error}"),
            },
            Step::Done(reply) if reply.status == Status::Ok => {
                return Outcome::Class(reply.classes().next().unwrap().index);
            }
            Step::Done(reply) => return Outcome::Refused(reply.status, reply.detail.to_owned()),
            Step::TooLarge(_) => return Outcome::TooLarge,
            step => panic!("{step:?}"),
        }
    }
}

#[test]
fn a_device_on_a_serial_line_gets_its_digits_through_noise_and_restarts() {
    let home = home();
    let mut wire = Wire::at(&line(&home));
    wire.device.set_read_timeout(Duration::from_millis(50)).unwrap();
    let daemon = home.start();
    let (mut replies, mut head) = ([0; 2048], [0; 96]);
    let mut client = Client::new(Serial::new(&mut replies, 1), &mut head, PATIENCE, 1);

    for sample in digits::samples() {
        let call = Call { want: Want::CLASSES, ..Call::media("digits", &sample.png) };
        assert_eq!(ask(&wire, &mut client, &call, |_| {}), Outcome::Class(sample.class), "{}", sample.name);
    }

    // Every third packet loses a byte or has one changed; nothing but the time tells.
    let mut packets = 0;
    let (class, pixels) = digits::held_out().swap_remove(0);
    let floats: Vec<u8> = pixels.iter().flat_map(|&p| (f32::from(p) / 255.0).to_le_bytes()).collect();
    let image = Tensor { name: "image", dtype: DType::F32, shape: &[1, 1, 8, 8], data: &floats };
    let call = Call { priority: Priority::High, ..Call::tensor("digits", image) };
    for _ in 0..3 {
        let outcome = ask(&wire, &mut client, &call, |packet| {
            packets += 1;
            let at = packet.len() / 2;
            match packets % 3 {
                0 if packets % 2 == 0 => drop(packet.remove(at)),
                0 => packet[at] ^= 0x10,
                _ => {}
            }
        });
        assert_eq!(outcome, Outcome::Class(class));
    }
    let status = daemon.status()["gateways"][0].clone();
    assert!(status["damaged"].as_u64().unwrap() > 0, "{status}");
    assert_eq!((&status["open"], &status["sessions"]), (&true.into(), &1.into()), "{status}");

    // The cable is pulled, and put in again.
    drop(wire);
    wait_for("the line's end", Duration::from_secs(10), || {
        (daemon.status()["gateways"][0]["open"] == false).then_some(())
    });
    wire = Wire::at(&line(&home));
    wire.device.set_read_timeout(Duration::from_millis(50)).unwrap();
    assert_eq!(ask(&wire, &mut client, &call, |_| {}), Outcome::Class(class));
    assert_eq!(daemon.status()["gateways"][0]["opened"], 2);

    // The daemon ends while the device sends; the next one hears it all.
    drop(daemon);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&wire, &mut client, &call, |_| {}));
        let _daemon = home.start();
        assert_eq!(asked.join().unwrap(), Outcome::Class(class));
    });

    // And once more while the device sleeps and hears nothing of it.
    let _daemon = home.start();
    wire.device.discard_input_buffer().unwrap();
    assert_eq!(ask(&wire, &mut client, &call, |_| {}), Outcome::Class(class));
}

#[test]
fn the_documented_python_asks_over_a_line() {
    let home = home();
    let device = home.config().with_file_name("device");
    // The other way round: the daemon has the end without a name, so that the script has one.
    let (ours, theirs) = (Wire::at(&line(&home)), Wire::at(&device));
    let daemon = home.start();
    let text = std::fs::read_to_string(tractd_tests::root().join("docs/firmware.md")).unwrap();
    let code = text.split("```python\n").nth(1).unwrap().split("\n```").next().unwrap();
    let script = home.config().with_file_name("ask.py");
    std::fs::write(&script, code).unwrap();
    let sample = digits::samples().swap_remove(7);
    let output = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            std::process::Command::new("python3")
                .arg(&script)
                .arg(&device)
                .arg(&sample.path)
                .env("PYTHONPATH", tractd_tests::root().join("clients/python"))
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .output()
                .unwrap()
        });
        splice(&ours.device, &theirs.device, || asked.is_finished());
        asked.join().unwrap()
    });
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, format!("{}\n", sample.class), "{}", String::from_utf8_lossy(&output.stderr));
    drop(daemon);
}

/// Joins two lines, as a cable does, until `done`.
fn splice(one: &SerialPort, other: &SerialPort, done: impl Fn() -> bool) {
    let mut bytes = [0; 4096];
    let mut pass = |from: &SerialPort, to: &SerialPort| {
        let fds = &mut [rustix::event::PollFd::new(from, rustix::event::PollFlags::IN)];
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        if rustix::event::poll(fds, Some(&wait)).unwrap() > 0 {
            let len = from.read(&mut bytes).unwrap_or(0);
            to.write_all(&bytes[..len]).unwrap();
        }
    };
    while !done() {
        pass(one, other);
        pass(other, one);
    }
}

#[test]
fn what_is_too_large_for_either_end_is_said() {
    let home = home();
    let mut wire = Wire::at(&line(&home));
    wire.device.set_read_timeout(Duration::from_millis(50)).unwrap();
    let daemon = home.start();
    let (mut replies, mut head) = ([0; 136], [0; 96]);
    let mut client = Client::new(Serial::new(&mut replies, 1), &mut head, PATIENCE, 1);

    let image = vec![1; 4096];
    let Outcome::Refused(Status::TooLarge, detail) =
        ask(&wire, &mut client, &Call::media("digits", &image), |_| {})
    else {
        panic!("a frame of 4 kB was taken");
    };
    assert!(detail.ends_with("bytes; this line takes 2048"), "{detail}");

    // Three classes and the tensor do not fit 136 bytes; what the daemon says about it does.
    let png = digits::samples().swap_remove(0).png;
    match ask(&wire, &mut client, &Call::media("digits", &png), |_| {}) {
        Outcome::Refused(Status::TooLarge, detail) => {
            assert!(detail.contains("the device takes 136"), "{detail}")
        }
        other => panic!("{other:?}"),
    }
    let none = Call { want: Want { tensors: false, classes: false }, ..Call::media("no-such", &png) };
    assert!(matches!(ask(&wire, &mut client, &none, |_| {}), Outcome::Refused(Status::ModelNotFound, _)));
    assert_eq!(daemon.status()["gateways"][0]["replies"], 3);
}
