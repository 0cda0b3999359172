//! Children end when they should, with everything they started.

use std::time::Duration;

use grail_process::{Launch, Spawner, clock};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};

fn shell(script: &str) -> Launch {
    Launch {
        name: "test child".into(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
    }
}

async fn gone(pid: i32) -> bool {
    let start = clock::monotonic();
    while start.elapsed() < Duration::from_secs(5) {
        // A zombie whose new parent has not reaped it yet still answers signal 0.
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if kill(Pid::from_raw(pid), None).is_err() || state.contains(") Z ") {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn exit_status_and_environment() {
    let spawner = Spawner::start().unwrap();
    let mut child = spawner.spawn(shell("test -z \"$HOME\" && exit 7")).await.unwrap();
    assert_eq!(child.exited().await.code(), Some(7));
    assert_eq!(child.exited().await.code(), Some(7), "a second wait gives the same answer");
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let spawner = Spawner::start().unwrap();
    let launch = Launch { program: "/nowhere/program".into(), ..shell("") };
    let error = spawner.spawn(launch).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/program") && error.contains("test child"), "{error}");
}

#[tokio::test]
async fn stop_ends_grandchildren_that_ignore_term() {
    let spawner = Spawner::start().unwrap();
    let mut child = spawner.spawn(shell("trap '' TERM; sh -c 'trap \"\" TERM; echo $$; sleep 60' & wait")).await.unwrap();
    let output = child.take_output().unwrap();
    let line = BufReader::new(output.stdout).lines().next_line().await.unwrap().unwrap();
    child.stop(Duration::from_millis(200)).await;
    assert!(gone(line.parse().unwrap()).await, "grandchild {line} outlived the stop");
}

#[tokio::test]
async fn the_group_goes_with_its_leader() {
    let spawner = Spawner::start().unwrap();
    let mut child = spawner.spawn(shell("sleep 60 & echo $!; exit 3")).await.unwrap();
    let output = child.take_output().unwrap();
    let line = BufReader::new(output.stdout).lines().next_line().await.unwrap().unwrap();
    assert_eq!(child.exited().await.code(), Some(3));
    assert!(gone(line.parse().unwrap()).await, "process {line} outlived its leader");
}
