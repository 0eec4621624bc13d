//! Trials of models, with children that behave as badly as can be.
//!
//! A harness of its own, because this very file is also the child: as `proof --child KIND DIR` it is what
//! `tractd --prove DIR` is to the daemon, or something worse.

// Clippy lets unwrap through in #[test] functions only, not in what they call.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tractd_engine::proof::{Limits, Proof, Refusal, child_main, prove};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, kind, dir] = args.as_slice()
        && flag == "--child"
    {
        return child(kind, Path::new(dir));
    }
    // What cargo test and nextest ask of a harness, as far as one list of tests needs it. nextest asks twice: what also
    // stands in the list of the ignored ones is not run.
    let asks = |what: &str| args.iter().any(|arg| arg == what);
    if asks("--list") && asks("--ignored") {
        return ExitCode::SUCCESS;
    }
    if asks("--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filter = args[1..].iter().find(|arg| !arg.starts_with('-'));
    for (name, test) in
        TESTS.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())))
    {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

const TESTS: &[(&str, fn())] = &[
    ("a_sound_model_is_proven", a_sound_model_is_proven),
    ("refused_models_say_why", refused_models_say_why),
    ("a_hungry_model_meets_its_limit", a_hungry_model_meets_its_limit),
    ("a_slow_model_meets_its_limit", a_slow_model_meets_its_limit),
    ("bad_children", bad_children),
    (
        "a_child_that_could_not_run_says_nothing_about_its_model",
        a_child_that_could_not_run_says_nothing_about_its_model,
    ),
    ("a_chatty_child_fills_nothing", a_chatty_child_fills_nothing),
    ("the_network_is_denied", the_network_is_denied),
    ("no_child_is_left", no_child_is_left),
];

fn limits() -> Limits {
    Limits {
        address_space_bytes: 2 << 30,
        cpu_seconds: 30,
        wall: Duration::from_secs(60),
        output_bytes: 16 << 10,
    }
}

fn child(kind: &str, dir: &Path) -> ExitCode {
    let limits = match kind {
        "one-second" => Limits { cpu_seconds: 1, ..limits() },
        _ => limits(),
    };
    match kind {
        "prove" | "one-second" => return child_main(dir, &limits),
        "abort" => std::process::abort(),
        "overflow" => _ = std::hint::black_box(recurse(1)),
        "fail" => {
            eprintln!("something\nis wrong");
            return ExitCode::from(3);
        }
        "garbage" => print!("{{\"proven\": 1"),
        "silent" => {}
        "sleep" => std::thread::sleep(Duration::from_secs(600)),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "chatty" => {
            let line = [b'x'; 4096];
            // Until the parent kills it, or closes the pipe.
            while std::io::stdout().write_all(&line).is_ok() && std::io::stderr().write_all(&line).is_ok() {}
        }
        "network" => {
            let code = child_main(dir, &limits);
            let error = std::net::UdpSocket::bind("127.0.0.1:0").err();
            eprintln!("socket: {:?}", error.map(|error| error.kind()));
            eprintln!("exec: {:?}", std::process::Command::new("/bin/true").status().err().map(|e| e.kind()));
            _ = code;
            return ExitCode::from(9);
        }
        other => panic!("no child {other}"),
    }
    ExitCode::SUCCESS
}

#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let page = std::hint::black_box([depth; 512]);
    recurse(page[7] + 1) + page[9]
}

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

fn attempt(kind: &str, model: &str, limits: &Limits) -> Result<Proof, Refusal> {
    let this = std::env::current_exe().unwrap();
    prove(&this, &[OsStr::new("--child"), OsStr::new(kind)], &models().join(model), limits)
}

fn a_sound_model_is_proven() {
    let proof = attempt("prove", "pictures", &limits()).unwrap();
    assert_eq!(proof.golden, 2);
    assert!(proof.peak_rss_bytes > proof.baseline_rss_bytes && proof.baseline_rss_bytes > 0, "{proof:?}");
    assert!((1..256 << 20).contains(&proof.model_peak_bytes()), "{proof:?}");
    assert_eq!(attempt("prove", "bare/unnamed/1", &limits()).unwrap().golden, 0);
}

fn refused_models_say_why() {
    let check =
        |model: &str, expected: Refusal| assert_eq!(attempt("prove", model, &limits()), Err(expected));
    let hint = ": quantise the model in QDQ form instead (quant_format=QuantFormat.QDQ)";
    let operator = format!("operator com.microsoft.QLinearReduceMean is not supported (node `mean`){hint}");
    check("bare/qoperator/1", Refusal::LoadFailed(operator));
    let infinite = "output `y` is NaN or infinite on an input of zeros";
    check("bare/infinite/1", Refusal::SelfTestFailed(infinite.to_owned()));
    let gone = models().join("nothing");
    check("nothing", Refusal::LoadFailed(format!("{}: no model.onnx there", gone.display())));
}

fn a_hungry_model_meets_its_limit() {
    let refusal = attempt("prove", "bare/hungry/1", &limits()).unwrap_err();
    assert_eq!(refusal, Refusal::OutOfMemory { limit_bytes: 2 << 30 });
}

fn a_slow_model_meets_its_limit() {
    let begin = Instant::now();
    let limits = Limits { cpu_seconds: 1, ..limits() };
    assert_eq!(
        attempt("one-second", "bare/slow/1", &limits),
        Err(Refusal::TimedOut { after: Duration::from_secs(1) })
    );
    assert!(begin.elapsed() < Duration::from_secs(30));
}

fn bad_children() {
    let refusal = |kind: &str| attempt(kind, "pictures", &limits()).unwrap_err();
    assert_eq!(refusal("abort"), Refusal::Crashed { signal: 6, stderr: String::new() });
    assert!(
        matches!(refusal("overflow"), Refusal::Crashed { signal: 6, stderr } if stderr.contains("overflowed its stack"))
    );
    let (detail, stderr) = ("exit status: 3".to_owned(), "something is wrong".to_owned());
    assert_eq!(refusal("fail"), Refusal::NoVerdict { detail, stderr });
    assert!(
        matches!(refusal("garbage"), Refusal::NoVerdict { detail, .. } if detail.contains("not understood"))
    );
    assert!(
        matches!(refusal("silent"), Refusal::NoVerdict { detail, .. } if detail.contains("not understood"))
    );
    let missing = prove(Path::new("/nonexistent/tractd"), &[], Path::new("."), &limits());
    assert!(matches!(missing, Err(Refusal::NotStarted(text)) if text.starts_with("/nonexistent/tractd: ")));
}

fn a_chatty_child_fills_nothing() {
    let limits = Limits { wall: Duration::from_millis(700), ..limits() };
    for kind in ["chatty", "sleep", "spin"] {
        let begin = Instant::now();
        let refusal = attempt(kind, "pictures", &limits).unwrap_err();
        // A test beside this one may have the processors; what sleeps needs none.
        let starved = kind != "sleep" && matches!(refusal, Refusal::Starved { .. });
        assert!(starved || refusal == Refusal::TimedOut { after: limits.wall }, "{kind}: {refusal:?}");
        let took = begin.elapsed();
        assert!(took >= limits.wall && took < Duration::from_secs(20), "{kind} took {took:?}");
    }
}

/// The child gives way to four threads on its processor, as a proof does on a busy device.
fn a_child_that_could_not_run_says_nothing_about_its_model() {
    let counted =
        std::fs::read_to_string("/proc/self/schedstat").is_ok_and(|counts| !counts.starts_with("0 "));
    if !counted {
        println!("left out: this kernel does not count how long a process waits for a processor");
        return;
    }
    let limits = Limits { wall: Duration::from_millis(400), ..limits() };
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let refusal = std::thread::scope(|scope| {
        let prover = scope.spawn(|| {
            on_one_processor();
            // Of a thread's own, and its child's: what is spawned inherits it.
            rustix::process::setpriority_process(None, 19).unwrap();
            let refusal = attempt("spin", "pictures", &limits);
            over.store(true, Ordering::Relaxed);
            refusal
        });
        for _ in 0..4 {
            scope.spawn(|| {
                on_one_processor();
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        prover.join().unwrap().unwrap_err()
    });
    let took = begin.elapsed();
    let Refusal::Starved { after, ran } = refusal else { panic!("{refusal:?} after {took:?}") };
    assert!(took >= after && after >= 5 * limits.wall && ran < limits.wall, "{after:?} {ran:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
}

fn on_one_processor() {
    let mut allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
    allowed.clear();
    allowed.set(first);
    rustix::thread::sched_setaffinity(None, &allowed).unwrap();
}

fn the_network_is_denied() {
    // Only where seccomp is: not under emulation.
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64"))
        || !Path::new("/proc/sys/kernel/seccomp").exists()
    {
        return;
    }
    let Err(Refusal::NoVerdict { stderr, .. }) = attempt("network", "pictures", &limits()) else {
        panic!("the child ends with status 9");
    };
    if !stderr.contains("stay allowed") {
        assert_eq!(stderr, "socket: Some(PermissionDenied) exec: Some(PermissionDenied)");
    }
}

fn no_child_is_left() {
    let limits = Limits { wall: Duration::from_millis(100), ..limits() };
    _ = attempt("sleep", "pictures", &limits);
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    assert_eq!(children.trim(), "");
}
