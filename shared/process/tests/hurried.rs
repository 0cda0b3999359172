//! One test in a process of its own: it ends everything that this process has started.

mod common;

use std::time::Duration;

use common::shell;
use grail_process::{Identity, Liveness, Spawner, clock};
use tokio::io::{AsyncBufReadExt, BufReader};

/// A child whose task is not ended in time is killed by the kernel when this process ends, but nothing below it would be.
#[tokio::test]
async fn a_hurried_end_reaches_everything_below_a_child_that_somebody_still_holds() {
    let spawner = Spawner::start().unwrap();
    let mut child = spawner.spawn(shell("trap '' TERM; sleep 300 & echo $!; setsid sleep 300 & echo $!; wait")).await.unwrap();
    let mut lines = BufReader::new(child.take_output().unwrap().stdout).lines();
    let mut below = Vec::new();
    for _ in 0..2 {
        let pid = lines.next_line().await.unwrap().unwrap().parse().unwrap();
        below.push(Identity::of(pid).unwrap());
    }
    assert!(spawner.end_all().unwrap() >= 3);
    assert_eq!(child.exited().await.to_string(), "signal: 9 (SIGKILL)");
    let end = clock::monotonic() + Duration::from_secs(60);
    while below.iter().any(|process| process.standing().unwrap() == Liveness::Alive) {
        assert!(clock::monotonic() < end, "{below:?} outlive the end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
