//! Several daemons behind one shared subscription.

use std::time::Duration;

use crate::broker::wait_until;
use crate::faults::{Load, Tally};
use crate::site::Site;

const COUNT: usize = 300;

fn member(port: u16, version: u8, name: &str) -> Site {
    let mut site = Site::at(port, version);
    // A session that ends with its connection leaves no requests waiting for a member that does not come back.
    let options =
        format!("node = \"{name}\"\nshare_group = \"line\"\nsession_expiry_s = 0\nmetrics_interval_s = 5");
    site.start_daemon(&options);
    site
}

#[test]
fn three_daemons_share_the_work_and_one_may_be_killed_and_one_may_leave() {
    let mut hub = Site::new(5);
    hub.start_broker("");
    let mut members = ["one", "two", "three"].map(|name| member(hub.port, 5, name));
    for (site, name) in members.iter().zip(["one", "two", "three"]) {
        wait_until("a member is ready", Duration::from_secs(60), || hub.says_ready(name));
        assert!(!site.log().contains("refused the shared subscription"), "{}", site.log());
    }
    let mut load = Load::new(&hub, "_any");
    let tally = load.run(&mut hub, COUNT, |_| false);
    assert_eq!(tally, Tally { answered: COUNT, ..Tally::default() });
    let served: Vec<u64> = members.iter().map(|site| site.requests()).collect();
    assert_eq!(served.iter().sum::<u64>(), COUNT as u64, "{served:?}");
    assert!(served.iter().all(|count| *count >= COUNT as u64 / 5), "shared out: {served:?}");

    let tally = load.run(&mut hub, COUNT, |_| {
        members[0].end_daemon("KILL");
        false
    });
    assert_eq!(tally.answered, COUNT, "{tally:?}");
    let tally = load.run(&mut hub, COUNT, |_| {
        members[1].end_daemon("TERM");
        false
    });
    assert_eq!((tally.answered, tally.again), (COUNT, 0), "one that leaves in order takes nothing with it");
}
