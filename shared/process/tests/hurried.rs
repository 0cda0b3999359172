//! One test in a process of its own: it ends everything that this process has started.

use std::time::Duration;

use grail_process::{Identity, Launch, Spawner, Standing, clock};
use tokio::io::{AsyncBufReadExt, BufReader};

/// A child whose task is not ended in time is killed by the kernel when this process ends, but nothing below it would be.
#[tokio::test]
async fn a_hurried_end_reaches_everything_below_a_child_that_somebody_still_holds() {
    let spawner = Spawner::start().unwrap();
    let launch = |script: &str| Launch {
        name: "test child".into(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
    };
    let mut child = spawner.spawn(launch("trap '' TERM; sleep 300 & echo $!; setsid sleep 300 & echo $!; wait")).await.unwrap();
    let mut lines = BufReader::new(child.take_output().unwrap().stdout).lines();
    let mut below = Vec::new();
    for _ in 0..2 {
        let pid = lines.next_line().await.unwrap().unwrap().parse().unwrap();
        below.push(Identity::of(pid).unwrap());
    }
    assert!(spawner.end_all().unwrap() >= 3);
    assert_eq!(child.exited().await.to_string(), "signal: 9 (SIGKILL)");
    let end = clock::monotonic() + Duration::from_secs(60);
    while below.iter().any(|process| process.standing().unwrap() == Standing::Alive) {
        assert!(clock::monotonic() < end, "{below:?} outlive the end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
