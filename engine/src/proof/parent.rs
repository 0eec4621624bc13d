use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;

use super::{Limits, Proof, Refusal, Verdict};

/// How long the parent sleeps at most before it looks whether the child is gone; the pipes wake it before.
const LOOK: Duration = Duration::from_millis(50);
/// Characters of a child's last words kept for a message.
const LAST_WORDS_MAX: usize = 400;
/// A child that waits for a processor has this many times its wall time in all: what a device that is busy for minutes
/// leaves to whoever gives way is enough for most models, and a trial must end.
const STARVED_FACTOR: u32 = 5;
/// What the Rust runtime says before it aborts for want of memory.
const ALLOCATION_FAILED: &str = "memory allocation of ";
/// The service manager's variables: a child must not speak for the daemon, nor find its credentials.
const SERVICE_VARIABLES: [&str; 7] = [
    "CREDENTIALS_DIRECTORY",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// Runs `child` with `child_args` and `dir`, a bundle's folder, as its last argument; it must end up in
/// [`child_main`](super::child_main) with the same limits. Returns once the child is reaped, at the latest
/// soon after `limits.wall`, or five times that where the child could not run.
///
/// The calling thread must live until this returns: the child is killed with it.
///
/// # Errors
/// [`Refusal`]: the model's fault, except for [`Refusal::NotStarted`] and [`Refusal::Starved`].
pub fn prove(child: &Path, child_args: &[&OsStr], dir: &Path, limits: &Limits) -> Result<Proof, Refusal> {
    let mut command = Command::new(child);
    command.args(child_args).arg(dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in SERVICE_VARIABLES {
        command.env_remove(variable);
    }
    let not_started = |error: io::Error| Refusal::NotStarted(format!("{}: {error}", child.display()));
    let mut running = Running(command.spawn().map_err(not_started)?);
    let end = running.watch(limits).map_err(not_started)?;
    judge(end, limits)
}

/// How a child ended and what it said.
struct End {
    /// Or why it is killed.
    status: Result<ExitStatus, Refusal>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn judge(end: End, limits: &Limits) -> Result<Proof, Refusal> {
    let status = end.status?;
    let out_of_memory = || Refusal::OutOfMemory { limit_bytes: limits.address_space_bytes };
    let stderr = last_words(&end.stderr);
    if let Some(signal) = status.signal() {
        return Err(match signal {
            _ if stderr.contains(ALLOCATION_FAILED) => out_of_memory(),
            // Nobody else kills it so: not the parent, which would know, but the kernel out of memory.
            _ if signal == Signal::KILL.as_raw() => out_of_memory(),
            _ if signal == Signal::XCPU.as_raw() => {
                Refusal::TimedOut { after: Duration::from_secs(limits.cpu_seconds) }
            }
            signal => Refusal::Crashed { signal, stderr },
        });
    }
    let no_verdict = |detail: String| Refusal::NoVerdict { detail, stderr: stderr.clone() };
    if !status.success() {
        return Err(no_verdict(status.to_string()));
    }
    match serde_json::from_slice(&end.stdout) {
        Ok(Verdict::Proven(proof)) => Ok(proof),
        Ok(Verdict::OutOfMemory) => Err(out_of_memory()),
        Ok(Verdict::LoadFailed(problem)) => Err(Refusal::LoadFailed(problem)),
        Ok(Verdict::SelfTestFailed(problem)) => Err(Refusal::SelfTestFailed(problem)),
        Err(error) => Err(no_verdict(format!("its answer is not understood ({error})"))),
    }
}

/// The end of what a child said, fit for one line of a log.
fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let skip = line.chars().count().saturating_sub(LAST_WORDS_MAX);
    line.chars().skip(skip).collect()
}

/// A child that does not outlive this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Harmless after it was reaped: the standard library remembers.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Running {
    fn watch(&mut self, limits: &Limits) -> io::Result<End> {
        let started = Instant::now();
        let stdout = self.0.stdout.take().map(OwnedFd::from).ok_or(io::ErrorKind::BrokenPipe)?;
        let stderr = self.0.stderr.take().map(OwnedFd::from).ok_or(io::ErrorKind::BrokenPipe)?;
        // Of a flood on standard output the beginning decides; on standard error, the end.
        let mut stdout = Pipe::new(stdout, limits.output_bytes)?;
        let mut stderr = Pipe::new(stderr, limits.output_bytes)?;
        loop {
            let status = self.0.try_wait()?;
            stdout.drain_head()?;
            stderr.drain_tail()?;
            let status = match status {
                Some(status) => Ok(status),
                None => match self.left(started.elapsed(), limits.wall) {
                    Ok(left) => {
                        wait(&[&stdout, &stderr], left.min(LOOK))?;
                        continue;
                    }
                    Err(refusal) => Err(refusal),
                },
            };
            return Ok(End { status, stdout: stdout.kept, stderr: stderr.kept });
        }
    }

    /// Time until the child may have to be killed, or why it has to be now: a time in which it was ready to run and
    /// could not says nothing about the model.
    fn left(&self, elapsed: Duration, wall: Duration) -> Result<Duration, Refusal> {
        if let Some(left) = wall.checked_sub(elapsed) {
            return Ok(left);
        }
        match self.ran_and_is_ready() {
            Some(ran) if ran < wall && elapsed < wall * STARVED_FACTOR => Ok(wall - ran),
            Some(ran) if ran < wall => Err(Refusal::Starved { after: elapsed, ran }),
            _ => Err(Refusal::TimedOut { after: wall }),
        }
    }

    /// How long the child was on a processor, if it is on one or waits for one, and does not sleep. `None` on a kernel
    /// that does not say so.
    fn ran_and_is_ready(&self) -> Option<Duration> {
        // Both are of the first thread, and the child has one only. What it waited for a processor is counted there, too,
        // but not before it gets one.
        let of_child = |what| std::fs::read_to_string(format!("/proc/{}/{what}", self.0.id())).ok();
        let stat = of_child("stat")?;
        let (_, state) = stat.rsplit_once(") ")?;
        let counts = of_child("schedstat")?;
        let ran = counts.split_ascii_whitespace().next()?.parse().ok()?;
        state.starts_with('R').then_some(Duration::from_nanos(ran))
    }
}

/// Returns when there is something to read, or when `time` is up.
fn wait(pipes: &[&Pipe], time: Duration) -> io::Result<()> {
    let open = pipes.iter().filter_map(|pipe| pipe.file.as_ref());
    let mut fds: Vec<PollFd<'_>> =
        open.map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)).collect();
    let time = Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(&mut fds, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// One end of a pipe that never blocks, and at most so many bytes of what came through it.
struct Pipe {
    /// `None` once the other side closed it; polling it further would return at once, forever.
    file: Option<std::fs::File>,
    kept: Vec<u8>,
    kept_max: usize,
}

impl Pipe {
    fn new(fd: OwnedFd, kept_max: usize) -> io::Result<Pipe> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Pipe { file: Some(fd.into()), kept: Vec::new(), kept_max })
    }

    fn drain_head(&mut self) -> io::Result<()> {
        self.drain(|kept, max, new| kept.extend_from_slice(&new[..new.len().min(max - kept.len())]))
    }

    fn drain_tail(&mut self) -> io::Result<()> {
        self.drain(|kept, max, new| {
            kept.extend_from_slice(new);
            kept.drain(..kept.len().saturating_sub(max));
        })
    }

    /// Reads what is there. Bounded, so that a child that writes without end cannot hold the parent here.
    fn drain(&mut self, keep: impl Fn(&mut Vec<u8>, usize, &[u8])) -> io::Result<()> {
        const READS_MAX: usize = 64;
        let mut buffer = [0; 4096];
        for _ in 0..READS_MAX {
            let Some(file) = &mut self.file else { return Ok(()) };
            match file.read(&mut buffer) {
                Ok(0) => self.file = None,
                Ok(got) => keep(&mut self.kept, self.kept_max, &buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
