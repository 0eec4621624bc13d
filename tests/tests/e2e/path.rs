//! The whole path: a model is packed, signed and published; a provisioned device pulls it, proves it and answers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tractd_ctl::exchange::Input;
use tractd_tests::daemon::{Home, request};
use tractd_tests::digits::{self, Expected};
use tractd_tests::process::{tractctl, wait_for};
use tractd_tests::registry::Registry;

#[test]
fn a_model_goes_from_a_registry_to_answers() {
    let registry = Registry::new();
    registry.add(&digits::dir(1));
    registry.publish("digits@1");
    let home = Home::new();
    registry.provision(&home, "bench-1");
    let daemon = home.start();
    assert_eq!(daemon.version_of("digits"), None);

    daemon.update_to("digits", 1);
    let expected = Expected::of(&digits::dir(1));
    for sample in digits::samples() {
        let reply = daemon.ask("digits", Input::Media(sample.png.clone()));
        assert_eq!(expected.check(&sample.name, &reply), Ok(()));
        assert_eq!(reply.classes[0].label, sample.class.to_string());
        assert!(reply.signed);
    }
    assert_eq!(tractctl(&["update", "check", "--at", &home.at()]).ok(), "nothing new\n");
    let status = daemon.status();
    assert_eq!(status["node"], "bench-1");
    assert_eq!(status["update"]["last"]["ok"], true);
}

#[test]
fn a_version_is_swapped_in_under_running_requests_and_none_is_lost() {
    const CLIENTS: usize = 3;
    let registry = Registry::new();
    registry.add(&digits::dir(1));
    registry.publish("digits@1");
    let home = Home::new();
    registry.provision(&home, "bench-1");
    let daemon = home.start();
    daemon.update_to("digits", 1);
    registry.add(&digits::dir(2));
    registry.publish("digits@2");

    let expected = [Expected::of(&digits::dir(1)), Expected::of(&digits::dir(2))];
    let samples = digits::samples();
    let over = AtomicBool::new(false);
    let answered = [AtomicU64::new(0), AtomicU64::new(0)];
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (over, answered, expected, samples, daemon) =
                (&over, &answered, &expected, &samples, &daemon);
            scope.spawn(move || {
                let mut socket = daemon.connect();
                let mut last = 0;
                for sample in samples.iter().cycle().skip(client) {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let reply = socket.infer(&request("digits", Input::Media(sample.png.clone()))).unwrap();
                    let which = expected
                        .iter()
                        .position(|expected| expected.digest == reply.digest)
                        .unwrap_or_else(|| panic!("{}: {} {}", sample.name, reply.status, reply.detail));
                    assert_eq!(expected[which].check(&sample.name, &reply), Ok(()));
                    assert!(reply.version >= last, "version {} after {last}", reply.version);
                    last = reply.version;
                    answered[which].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let enough = |which: usize| {
            wait_for("answers", Duration::from_secs(60), || {
                (answered[which].load(Ordering::Relaxed) >= 100).then_some(())
            });
        };
        let ends = Ends(&over);
        enough(0);
        daemon.update_to("digits", 2);
        enough(1);
        drop(ends);
    });
    // The two really differ: by more than what either may be off, somewhere.
    let apart =
        samples.iter().map(|sample| expected[0].distance(&expected[1], &sample.name)).fold(0.0, f32::max);
    assert!(apart > 1.0, "versions 1 and 2 answer alike: {apart}");
    let models = daemon.models();
    assert_eq!(models["models"][0]["previous_version"], 1);
    let replies = &daemon.status()["replies"];
    assert_eq!(replies.as_object().unwrap().keys().collect::<Vec<_>>(), ["ok"]);
}

/// Lets the clients end, also when the test fails meanwhile: a scope waits for its threads.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
