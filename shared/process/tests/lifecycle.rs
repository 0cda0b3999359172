//! Children end when they should, with everything they started.

mod common;

use std::time::Duration;

use common::shell;
use grail_process::{Launch, Spawner, Watched, clock};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};

/// What does not come within this time never comes.
const LONG: Duration = Duration::from_secs(60);

async fn gone(pid: i32) -> bool {
    let start = clock::monotonic();
    while start.elapsed() < LONG {
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
    let mut child = spawner.spawn(shell("trap '' TERM; sh -c 'trap \"\" TERM; echo $$; sleep 300' & wait")).await.unwrap();
    let output = child.take_output().unwrap();
    let line = BufReader::new(output.stdout).lines().next_line().await.unwrap().unwrap();
    child.stop(Duration::from_millis(200)).await;
    assert!(gone(line.parse().unwrap()).await, "grandchild {line} outlived the stop");
}

#[tokio::test]
async fn the_group_goes_with_its_leader() {
    let spawner = Spawner::start().unwrap();
    let mut child = spawner.spawn(shell("sleep 300 & echo $!; exit 3")).await.unwrap();
    let output = child.take_output().unwrap();
    let line = BufReader::new(output.stdout).lines().next_line().await.unwrap().unwrap();
    assert_eq!(child.exited().await.code(), Some(3));
    assert!(gone(line.parse().unwrap()).await, "process {line} outlived its leader");
}

/// The debugger of the next test, in a process of its own: attaches to the process it is told, says how that went, and stays.
#[test]
fn debugger() {
    let Some(pid) = std::env::var("DEBUGGED_PID").ok().and_then(|pid| pid.parse().ok()) else { return };
    let attached = nix::sys::ptrace::attach(Pid::from_raw(pid));
    println!("attached: {}", attached.is_ok());
    std::thread::sleep(5 * LONG);
}

/// As a wedged driver does, a debugger keeps a killed process from being given out; it must not hold up anybody else.
#[tokio::test]
async fn a_process_that_is_not_given_out_blocks_nobody() {
    let spawner = Spawner::start().unwrap();
    let mut child = spawner.spawn(shell("sleep 300")).await.unwrap();
    let mut debugger = spawner
        .spawn(Launch {
            name: "debugger".into(),
            program: std::env::current_exe().unwrap(),
            arguments: ["debugger", "--exact", "--nocapture"].map(Into::into).into(),
            environment: vec![("DEBUGGED_PID".into(), child.pid().to_string().into())],
        })
        .await
        .unwrap();
    let mut lines = BufReader::new(debugger.take_output().unwrap().stdout).lines();
    let mut attached = None;
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, outcome)) = line.split_once("attached: ") {
            attached = Some(outcome == "true");
            break;
        }
    }
    if attached != Some(true) {
        // Then nothing can play the driver. Told past the harness, which keeps what a test that passes prints.
        let told = b"SKIPPED wedged driver: this kernel forbids debuggers.\n";
        return std::io::Write::write_all(&mut std::io::stderr(), told).unwrap();
    }
    let killing = tokio::time::timeout(Duration::from_millis(300), child.kill());
    let other = async { spawner.spawn(shell("exit 5")).await.unwrap().exited().await.code() };
    let (killed, code) = tokio::join!(killing, other);
    assert!(killed.is_err(), "the debugger has it");
    assert_eq!(code, Some(5), "another child is started and reaped meanwhile");
    debugger.kill().await.unwrap();
    assert_eq!(child.kill().await.unwrap().to_string(), "signal: 9 (SIGKILL)");
}

#[tokio::test]
async fn the_end_of_somebody_elses_child_is_an_event() {
    let spawner = Spawner::start().unwrap();
    let mut child = spawner.spawn(shell("sleep 300 & echo $!; wait; sleep 300")).await.unwrap();
    let mut lines = BufReader::new(child.take_output().unwrap().stdout).lines();
    let pid: u32 = lines.next_line().await.unwrap().unwrap().parse().unwrap();
    let watched = Watched::of(pid).unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), watched.ended()).await;
    assert!(early.is_err(), "it runs");
    kill(Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL).unwrap();
    tokio::time::timeout(LONG, watched.ended()).await.expect("its end is told");
    child.kill().await;
}
