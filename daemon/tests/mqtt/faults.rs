//! Some hundreds of requests through each fault; `scripts/test-mqtt-faults` asks ten thousand through a client of its
//! own. What counts: every request is answered or refused, and said twice only where something was lost.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::client::{Client, Extras};
use crate::samples;
use crate::site::Site;

const COUNT: usize = 300;
/// Requests unanswered at once.
const WINDOW: usize = 16;
/// Silence after which a request is sent again, and after which it is lost.
const AGAIN: Duration = Duration::from_secs(3);
const LOST: Duration = Duration::from_secs(60);

/// One client that asks and counts.
pub(crate) struct Load {
    client: Client,
    /// `tractd/v1/<node>/req/digits/raw/load`, and where its numbers go on.
    topic: String,
    next: usize,
    /// Unanswered: when they were asked first and last.
    open: HashMap<usize, (Instant, Instant)>,
    pub(crate) tally: Tally,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) answered: usize,
    pub(crate) refused: usize,
    pub(crate) repeats: usize,
    pub(crate) again: usize,
}

impl Load {
    pub(crate) fn new(site: &Site, node: &str) -> Load {
        let topic = format!("tractd/v1/{node}/req/digits/raw/load");
        Load { client: connect(site), topic, next: 0, open: HashMap::new(), tally: Tally::default() }
    }

    /// Asks `count` requests and lets `fault` happen after a third of them. It says whether our own connection is gone.
    pub(crate) fn run(
        &mut self,
        site: &mut Site,
        count: usize,
        fault: impl FnOnce(&mut Site) -> bool,
    ) -> Tally {
        self.tally = Tally::default();
        let mut fault = Some(fault);
        let mut left = count;
        while left > 0 || !self.open.is_empty() {
            while left > 0 && self.open.len() < WINDOW {
                let now = Instant::now();
                self.open.insert(self.next, (now, now));
                self.ask(self.next);
                self.next += 1;
                left -= 1;
            }
            if left <= count * 2 / 3
                && let Some(fault) = fault.take()
                && fault(site)
            {
                self.client = connect(site);
            }
            self.listen();
        }
        // What is said twice comes soon after.
        while let Some(reply) = self.client.receive(Duration::from_millis(500)) {
            self.count(&reply.topic, true);
        }
        self.tally
    }

    fn listen(&mut self) {
        if let Some(reply) = self.client.receive(Duration::from_millis(20)) {
            self.count(&reply.topic, reply.json()["status"] == 200);
        }
        let now = Instant::now();
        let silent: Vec<usize> = self
            .open
            .iter()
            .filter(|(_, (_, last))| now - *last > AGAIN)
            .map(|(number, _)| *number)
            .collect();
        for number in silent {
            let (first, last) = self.open.get_mut(&number).expect("it was just now");
            assert!(now - *first < LOST, "request {number} is lost: {:?}", self.tally);
            *last = now;
            self.tally.again += 1;
            self.ask(number);
        }
    }

    fn ask(&mut self, number: usize) {
        let png = &samples()[0].1;
        self.client.publish(&format!("{}/{number}", self.topic), png, &Extras::default());
    }

    fn count(&mut self, topic: &str, well: bool) {
        let number: usize = topic.rsplit('/').next().unwrap().parse().unwrap();
        match self.open.remove(&number) {
            Some(_) if well => self.tally.answered += 1,
            Some(_) => self.tally.refused += 1,
            None => self.tally.repeats += 1,
        }
    }
}

fn connect(site: &Site) -> Client {
    let mut client = site.client("load");
    client.subscribe("tractd/v1/_res/load/#");
    client
}

fn through(version: u8, fault: impl FnOnce(&mut Site) -> bool) -> Tally {
    let mut site = Site::new(version);
    let kept =
        format!("persistence true\npersistence_location {}/\nautosave_interval 1", site.dir.path().display());
    site.start_broker(&kept);
    site.start_daemon("client_id = \"daemon\"");
    let node = site.wait_ready();
    let mut load = Load::new(&site, &node);
    let tally = load.run(&mut site, COUNT, fault);
    assert_eq!(tally.answered + tally.refused, COUNT, "{tally:?}");
    tally
}

#[test]
fn without_a_fault_everything_is_answered_once() {
    for version in [5, 4] {
        let tally = through(version, |_| false);
        assert_eq!(tally, Tally { answered: COUNT, ..Tally::default() });
    }
}

#[test]
fn a_broker_that_restarts_loses_nothing() {
    for version in [5, 4] {
        through(version, |site| {
            site.stop_broker_in_order();
            site.restart_broker();
            true
        });
    }
}

#[test]
fn a_session_that_is_lost_loses_nothing() {
    for version in [5, 4] {
        through(version, |site| {
            drop(Client::connect(site.port, 4, "daemon"));
            false
        });
    }
}

#[test]
fn a_daemon_that_is_killed_loses_nothing() {
    for version in [5, 4] {
        through(version, |site| {
            site.end_daemon("KILL");
            site.start_daemon("client_id = \"daemon\"");
            false
        });
    }
}
