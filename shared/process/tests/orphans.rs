//! One test in a process of its own: being a subreaper is an attribute of the whole process.

mod common;

use std::time::Duration;

use common::shell;
use grail_process::{Spawner, orphans, proc};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test]
async fn grandchildren_in_sessions_of_their_own_are_ended_and_children_are_not() {
    orphans::become_subreaper().unwrap();
    let spawner = Spawner::start().unwrap();
    let mut kept = spawner.spawn(shell("sleep 60")).await.unwrap();
    // The grandchild is in another session and group: killing the child's group does not reach it.
    let mut parent = spawner.spawn(shell("setsid sh -c 'echo $$; sleep 60; :' & sleep 60")).await.unwrap();
    let output = parent.take_output().unwrap();
    let line = BufReader::new(output.stdout).lines().next_line().await.unwrap().unwrap();
    let grandchild: u32 = line.parse().unwrap();
    assert_eq!(spawner.sweep().unwrap(), [], "its parent lives");
    parent.kill().await.unwrap();
    let mut met = Vec::new();
    for _ in 0..250 {
        met.extend(spawner.sweep().unwrap());
        if proc::children(std::process::id()).unwrap() == [kept.pid()] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(met.iter().any(|orphan| orphan.pid == grandchild && orphan.killed), "{met:?}");
    assert_eq!(proc::children(std::process::id()).unwrap(), [kept.pid()], "orphans remain, or a child was taken for one");
    assert!(proc::facts(grandchild).is_err(), "it was reaped");
    assert!(proc::facts(kept.pid()).unwrap().lives());
    // A status is never taken from whoever waits for it.
    kept.signal_group(nix::sys::signal::Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(50)).await;
    spawner.sweep().unwrap();
    assert_eq!(kept.exited().await.to_string(), "signal: 15 (SIGTERM)");
}
