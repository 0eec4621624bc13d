//! The threads that run models, one request at a time each, and the one that answers what expires.

use crate::{
    floor::{BEAT, Floor, Task},
    place::Heart,
};
use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A thread that has not been round its loop for so long is stuck.
const STUCK: Duration = Duration::from_secs(10 * BEAT.as_secs());

/// Running threads; see [`Workers::join`].
pub(crate) struct Workers {
    floor: Arc<Floor>,
    threads: Vec<JoinHandle<()>>,
    hearts: Vec<Arc<Heart>>,
}

impl Workers {
    /// Starts the workers and the thread that answers what expires.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn start(floor: &Arc<Floor>) -> io::Result<Workers> {
        let mut workers = Workers { floor: floor.clone(), threads: Vec::new(), hearts: floor.hearts() };
        for number in 0..floor.limits.workers {
            workers.spawn(format!("worker-{number}"), work)?;
        }
        workers.spawn("deadlines".into(), |floor, heart| {
            floor.watch_deadlines(|| heart.beat(floor.now()));
        })?;
        Ok(workers)
    }

    fn spawn(&mut self, name: String, body: impl FnOnce(&Floor, &Heart) + Send + 'static) -> io::Result<()> {
        let floor = self.floor.clone();
        let heart = self.heart(STUCK);
        heart.beat(floor.now());
        self.threads.push(thread::Builder::new().name(name).spawn(move || body(&floor, &heart))?);
        Ok(())
    }

    /// A heart for a thread; once it has begun to beat, it must not stop for longer than `longest`.
    pub(crate) fn heart(&mut self, longest: Duration) -> Arc<Heart> {
        let heart = Heart::new(longest);
        self.hearts.push(heart.clone());
        heart
    }

    /// A handle on the hearts, for the watchdog.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse { floor: self.floor.clone(), hearts: self.hearts.clone() }
    }

    /// Waits for every thread until `deadline`; false when one is still inside a model then.
    pub(crate) fn join(self, deadline: Instant) -> bool {
        for thread in self.threads {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    return false;
                }
                thread::sleep(Duration::from_millis(1));
            }
            if thread.join().is_err() {
                log::error!("a worker thread ended by a panic outside of a model");
            }
        }
        true
    }
}

/// Tells whether the threads live.
pub(crate) struct Pulse {
    floor: Arc<Floor>,
    hearts: Vec<Arc<Heart>>,
}

impl Pulse {
    /// Whether every thread either beat lately or is inside a run of bearable length. An idle worker is alive.
    pub(crate) fn is_alive(&self) -> bool {
        let now = self.floor.now();
        self.hearts.iter().all(|heart| heart.is_alive(now))
    }
}

fn work(floor: &Floor, heart: &Heart) {
    loop {
        heart.beat(floor.now());
        match floor.take() {
            Task::Run(run) => {
                // How long that may take, the place's own heart says.
                heart.rest();
                run.carry_out(floor);
            }
            Task::Prepare { mut place, generation, plans } => {
                place.prepare(generation, plans);
                floor.prepared(place);
            }
            Task::Idle => {}
            Task::Stop => return,
        }
    }
}
