//! A child process with its log kept, ended when dropped, and shown when a test fails.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a child may take to end after SIGTERM before it is killed; above the daemon's own grace time.
const END: Duration = Duration::from_secs(20);
/// Lines of a log that are shown on failure.
const LOG_LINES: usize = 120;

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("the log can be written");
        let err = out.try_clone().expect("a file can be opened twice");
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { child, log: log.to_owned(), name }
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal to this one process.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // One that has ended already needs no signal.
        let _ = kill_process(id.expect("a child has a process id"), signal);
    }

    /// SIGKILL, as a crash or the out-of-memory killer would.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child can be killed");
        let _ = self.child.wait();
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        match self.wait(END) {
            Some(status) => status,
            None => panic!("{} did not end within {} s of SIGTERM", self.name, END.as_secs()),
        }
    }

    /// Waits for the end at most so long.
    pub fn wait(&mut self, at_most: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + at_most;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                _ if Instant::now() > until => return None,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::TERM);
            if self.wait(END).is_none() {
                self.kill();
            }
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!("--- the last of {} ---\n{}\n---", self.name, tail.join("\n"));
        }
    }
}

/// What a command that was run to its end said.
#[derive(Debug)]
pub struct Said {
    /// How it ended.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs `tractctl` to its end.
///
/// # Panics
/// When it cannot be started.
pub fn tractctl<S: AsRef<OsStr>>(arguments: &[S]) -> Said {
    run(Command::new(crate::binary("tractctl")).args(arguments))
}

/// Runs a command to its end, without a terminal.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Said {
    let output = command
        .env("TRACTD_KEY_PASSPHRASE", crate::registry::PASSPHRASE)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {:?}: {error}", command.get_program()));
    Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Said {
    /// Its standard output, if it ended well.
    ///
    /// # Panics
    /// With what it said, otherwise.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "it failed:\n{}{}", self.out, self.err);
        self.out
    }
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none in time; `what` says what was waited for.
pub fn wait_for<T>(what: &str, at_most: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + at_most;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "{what}: nothing within {} s", at_most.as_secs_f32());
        std::thread::sleep(Duration::from_millis(10));
    }
}
