//! Processes that come to this one and are not its own: what an entrypoint started before it became this program, and what loses its
//! parent in a container whose first process this is. They are reaped when they end, and left alone.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::shell;
use grail_process::{Identity, Liveness, Spawner, orphans, proc};

const LONG: Duration = Duration::from_secs(60);
/// Folder in which the test and the process that it starts meet.
const MEETING: &str = "GRAIL_TEST_MEETING";

fn await_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The process whose pid somebody has written into a file.
fn named(folder: &Path, file: &str) -> Identity {
    let path = folder.join(file);
    await_some(file, || Identity::of(std::fs::read_to_string(&path).ok()?.trim().parse().ok()?).ok())
}

fn lives(process: &Identity) -> bool {
    process.standing().unwrap() == Liveness::Alive
}

/// Not a test of its own: what the others start, as the supervisor in miniature.
#[tokio::test]
async fn supervisor() {
    let Some(folder) = std::env::var_os(MEETING).map(PathBuf::from) else { return };
    orphans::become_subreaper().unwrap();
    let spawner = Spawner::start().unwrap();
    // What a child leaves behind: one that carries the family, and one whose environment and session say nothing.
    let script = format!(
        "cd {folder:?}; setsid sleep 301 & echo $! > family.new; mv family.new family; \
         env -i setsid sleep 302 & echo $! > silent.new; mv silent.new silent; exec sleep 303"
    );
    let mut child = spawner.spawn(shell(&script)).await.unwrap();
    let ours = [named(&folder, "family"), named(&folder, "silent")];
    spawner.sweep().unwrap();
    std::fs::write(folder.join("ready"), "").unwrap();
    let stranger = named(&folder, "stranger");
    let this = std::process::id();
    await_some("the stranger among our children", || proc::children(this).unwrap().contains(&stranger.pid).then_some(()));
    child.kill().await.unwrap();
    // Everything of ours goes; every one that is told of is ours.
    await_some("the end of what is ours", || {
        let met = spawner.sweep().unwrap();
        assert!(met.iter().all(|orphan| orphan.pid != stranger.pid), "{met:?}");
        ours.iter().all(|process| !lives(process)).then_some(())
    });
    for _ in 0..20 {
        spawner.sweep().unwrap();
    }
    spawner.end_all().unwrap();
    assert!(lives(&stranger), "it is not ours to end");
    // Its end is its own affair, and it is reaped.
    stranger.kill().unwrap();
    await_some("the reaping", || {
        spawner.sweep().unwrap();
        proc::facts(stranger.pid).is_err().then_some(())
    });
    let left: Vec<u32> = proc::children(this).unwrap();
    assert!(left.iter().all(|pid| proc::facts(*pid).is_ok_and(|facts| facts.lives())), "zombies are left: {left:?}");
    std::fs::write(folder.join("passed"), "").unwrap();
}

/// `program` with the miniature above behind its arguments. It bounds its own time.
fn miniature(folder: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg(std::env::current_exe().unwrap()).args(["supervisor", "--exact", "--nocapture"]);
    command.env(MEETING, folder).stdin(Stdio::null());
    command
}

#[test]
fn what_an_entrypoint_started_before_exec_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    // The helper goes on until the supervisor is there, and leaves a daemon to it.
    let entrypoint = "(while ! [ -e \"$1/ready\" ]; do sleep 0.05; done; setsid sleep 304 & echo $! > \"$1/s.new\"; \
                      mv \"$1/s.new\" \"$1/stranger\") & shift; exec \"$@\"";
    let meeting = folder.path().to_str().unwrap();
    let done = miniature(folder.path(), "/bin/sh", &["-c", entrypoint, "entrypoint", meeting]).output().unwrap();
    assert!(done.status.success() && folder.path().join("passed").exists(), "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn what_docker_exec_leaves_to_the_first_process_of_a_container_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let unshare = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let allowed = Command::new("unshare").args(unshare).arg("/bin/true").output();
    if !allowed.as_ref().is_ok_and(|done| done.status.success()) {
        // Past the harness, which keeps what a test that passes prints.
        let told = format!("SKIPPED pid namespace: this kernel allows none here: {allowed:?}\n");
        return std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes()).unwrap();
    }
    let container = miniature(folder.path(), "unshare", &unshare).stdout(Stdio::piped()).spawn().unwrap();
    await_some("the first process", || folder.path().join("ready").exists().then_some(()));
    let first = proc::children(container.id()).unwrap()[0].to_string();
    let daemon = "setsid sleep 305 & echo $! > \"$0/s.new\"; mv \"$0/s.new\" \"$0/stranger\"";
    let mut enter = Command::new("nsenter");
    enter.args(["--target", &first, "--pid", "--mount", "/bin/sh", "-c", daemon]).arg(folder.path());
    assert!(enter.status().unwrap().success());
    let done = container.wait_with_output().unwrap();
    assert!(folder.path().join("passed").exists(), "{}", String::from_utf8_lossy(&done.stdout));
}
