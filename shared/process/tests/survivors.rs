//! What an earlier run left is found by recorded identity, ended, and nothing else is touched.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::shell;
use grail_process::records::{Record, Records, end, survivors};
use grail_process::{Identity, Launch, Liveness, Spawner};
use tokio::io::{AsyncBufReadExt, BufReader};

fn generation(script: &str) -> Launch {
    Launch { name: "generation".into(), ..shell(script) }
}

fn read(records: &Records) -> Vec<Record> {
    records.read().unwrap().0
}

#[tokio::test]
async fn a_record_lives_as_long_as_its_child() {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::open(folder.path()).unwrap();
    let spawner = Spawner::recording(records.clone()).unwrap();
    let mut child = spawner.spawn(generation("sleep 60")).await.unwrap();
    assert!(child.take_unrecorded().is_none());
    let found = read(&records);
    assert_eq!((found.len(), found[0].identity.pid, found[0].name.as_str()), (1, child.pid(), "generation"));
    assert_eq!(found[0].identity.standing().unwrap(), Liveness::Alive);
    child.kill().await.unwrap();
    assert_eq!(found[0].identity.standing().unwrap(), Liveness::Gone);
    assert!(read(&records).is_empty());
    std::fs::write(folder.path().join("7.json"), "{\"torn").unwrap();
    let (found, refused) = records.read().unwrap();
    assert!(found.is_empty() && refused == [folder.path().join("7.json")]);
    assert!(!folder.path().join("7.json").exists());
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_leaves_no_child_and_no_record() {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::open(folder.path()).unwrap();
    let spawner = Spawner::recording(records.clone()).unwrap();
    for _ in 0..20 {
        // Cut off before the first answer can come.
        let cut_off = tokio::time::timeout(Duration::ZERO, spawner.spawn(generation("sleep 64"))).await;
        drop(cut_off);
    }
    spawner.settle().await;
    assert_eq!(read(&records), []);
    assert_eq!(spawner.sweep().unwrap(), [], "no child is left that nobody owns");
}

#[tokio::test]
async fn the_child_and_what_left_its_session_are_found_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::open(folder.path()).unwrap();
    let spawner = Spawner::recording(records.clone()).unwrap();
    // One descendant in the child's session whose environment says nothing, one that left the session.
    let mut child = spawner.spawn(generation("env -i sleep 301 & setsid sleep 302 & echo started; wait")).await.unwrap();
    let output = child.take_output().unwrap();
    BufReader::new(output.stdout).lines().next_line().await.unwrap();
    let strangers = Spawner::start().unwrap();
    let stranger = strangers.spawn(generation("sleep 303")).await.unwrap();
    let before = read(&records);
    let mut found = Vec::new();
    // The shell needs a moment to start both.
    for _ in 0..200 {
        found = survivors(&before).unwrap();
        if found.iter().filter(|survivor| survivor.program == "sleep").count() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|survivor| survivor.child == "generation"));
    let ended = tokio::task::spawn_blocking(move || end(&found, Duration::from_secs(60)).unwrap());
    child.exited().await;
    assert!(ended.await.unwrap().is_empty());
    assert!(survivors(&before).unwrap().is_empty());
    assert_eq!(Identity::of(stranger.pid()).unwrap().standing().unwrap(), Liveness::Alive);
}

#[tokio::test]
async fn a_number_that_is_used_again_is_left_alone() {
    let spawner = Spawner::start().unwrap();
    let mut child = spawner.spawn(generation("sleep 60")).await.unwrap();
    let now = Identity::of(child.pid()).unwrap();
    let earlier = Identity { started: now.started - 1, ..now.clone() };
    let other_boot = Identity { boot: "0000".into(), ..now.clone() };
    let elsewhere = Identity { namespace: "pid:[1]".into(), ..now.clone() };
    assert_eq!(earlier.standing().unwrap(), Liveness::Gone);
    assert_eq!(other_boot.standing().unwrap(), Liveness::OtherBoot);
    assert_eq!(elsewhere.standing().unwrap(), Liveness::OtherNamespace);
    for stranger in [earlier, other_boot, elsewhere] {
        assert!(!stranger.kill().unwrap());
        let record = Record { name: "x".into(), program: "/bin/sh".into(), identity: stranger, token: "none".into() };
        assert!(survivors(&[record]).unwrap().is_empty());
    }
    assert_eq!(now.standing().unwrap(), Liveness::Alive);
    assert!(now.kill().unwrap());
    assert_eq!(child.exited().await.to_string(), "signal: 9 (SIGKILL)");
}
