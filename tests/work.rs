//! Groups that are finished are uploaded, whatever the disk or the children do; and the journal tells about it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use grail_fakes::Script;
use grail_store::window_file::read_window;
use grail_tests::{Cast, Finished, Host, one_at_a_time, points, write_program};
use nix::sys::signal::Signal;
use serde_json::Value;

const END: Duration = Duration::from_secs(150);

/// Fakes that are no faster than a real host, so that others run beside them.
fn script() -> Script {
    Script { job_seconds: 0.1, completion_seconds: 0.1, ..Script::default() }
}

fn spooled(status: &Value) -> u64 {
    status.pointer("/window/spooled").and_then(Value::as_u64).unwrap_or(0)
}

fn succeeds(finished: Finished) -> String {
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    finished.stdout
}

/// The problem indices in the only file that was uploaded, each with sixteen rows of their own.
fn uploaded_groups(host: &Host) -> BTreeSet<i64> {
    let files = host.uploaded();
    assert_eq!(files.len(), 1, "{files:?}");
    let rows = read_window(std::fs::read(&files[0]).unwrap()).unwrap().rows;
    let groups: BTreeSet<i64> = rows.iter().map(|row| row.rollout_group).collect();
    let nonces: BTreeSet<i64> = rows.iter().map(|row| row.nonce).collect();
    assert_eq!((rows.len(), nonces.len()), (groups.len() * 16, groups.len() * 16));
    groups
}

/// The same of a file that a validator accepts whole. Waits for the window's end, because a validator does.
fn accepted_groups(host: &Host) -> BTreeSet<i64> {
    succeeds(host.run(&["validate", "--test-mode", "--last", "1", "--all"]));
    uploaded_groups(host)
}

/// Groups that have a file in the spool.
fn groups_on_disk(host: &Host) -> BTreeSet<i64> {
    let windows = std::fs::read_dir(host.path().join("state/spool")).unwrap().flatten();
    let files = windows.flat_map(|window| std::fs::read_dir(window.path()).unwrap().flatten());
    let index = |name: String| name.strip_prefix("group-")?.strip_suffix(".record")?.parse().ok();
    files.filter_map(|file| index(file.file_name().into_string().unwrap())).collect()
}

#[test]
fn a_disk_that_takes_nothing_costs_no_window_and_the_story_says_so() {
    let _turn = one_at_a_time();
    let secret = "canary-7d1c09";
    let host = Host::new(0.7, 6.0).variable("WANDB_API_KEY", secret);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    // Folders that cannot be made: their places are taken by files.
    let state = host.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    for name in ["spool", "windows"] {
        std::fs::write(state.join(name), "not a folder").unwrap();
    }
    // As if an error message had repeated it.
    std::fs::write(state.join("supervisor.log"), format!("the key {secret} was refused\n")).unwrap();
    succeeds(host.start(&["run", "--windows", "1"]).finish(END));
    let groups = accepted_groups(&host);
    let story = succeeds(host.run(&["explain"]));
    for part in [
        "the disk did not take the spool",
        "no local copy was kept",
        &format!("{} of the finished ones were in memory only", groups.len()),
        "outcome   uploaded",
        "proved again",
    ] {
        assert!(story.contains(part), "{part:?} is missing in\n{story}");
    }
    assert!(!story.contains("by the same worker"), "there are two workers\n{story}");
    assert!(story.contains("proof-worker 0 held checkpoint ") && !story.contains('{'), "{story}");
    assert_eq!(host.run(&["explain", "7"]).code, 65);
    succeeds(host.run(&["incident", "--output", "incident.tar.gz"]));
    let mut packed = Vec::new();
    let file = std::fs::File::open(host.path().join("incident.tar.gz")).unwrap();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut packed).unwrap();
    let packed = String::from_utf8_lossy(&packed);
    assert!(packed.contains("window_ended") && packed.contains("storage.local_folder") && packed.contains("was refused"));
    assert!(!packed.contains(secret), "a secret left the host");
}

#[test]
fn a_window_that_was_uploaded_is_gone_on_with_and_uploaded_again_with_more() {
    // Long enough for a loaded machine; nothing waits for its end.
    let host = Host::new(6.0, 4.0).cast(Cast::Fakes, &script());
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut first = host.start(&["run"]);
    let before = host.await_status("two finished groups", &mut first, 120, |status| spooled(status) >= 2);
    first.signal(Signal::SIGTERM);
    succeeds(first.finish(END));
    let uploaded = uploaded_groups(&host);
    assert!(uploaded.len() >= 2, "{uploaded:?}");
    let mut second = host.start(&["run"]);
    let more = uploaded.len() as u64 + 1;
    let after = host.await_status("one more group", &mut second, 120, |status| spooled(status) >= more);
    assert_eq!(after["window"]["window"], before["window"]["window"], "the same window goes on");
    second.signal(Signal::SIGTERM);
    succeeds(second.finish(END));
    let again = uploaded_groups(&host);
    assert!(again.len() as u64 >= more && again.is_superset(&uploaded), "{uploaded:?} then {again:?}");
}

#[test]
fn what_a_killed_supervisor_left_is_uploaded_although_no_child_comes_up_any_more() {
    let host = Host::new(0.7, 4.0).cast(Cast::Fakes, &script());
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run"]);
    host.await_status("three finished groups", &mut miner, 120, |status| spooled(status) >= 3);
    miner.signal(Signal::SIGKILL);
    assert_eq!(miner.finish(END).code, -1);
    let left = groups_on_disk(&host);
    assert!(left.len() >= 3, "{left:?}");
    let programs = broken_programs(&host);
    let finished = host.start(&["run", "--windows", "1", "--set", &programs]).finish(END);
    assert!(finished.stderr.contains("what the spool holds is uploaded"), "{}", finished.stderr);
    succeeds(finished);
    assert_eq!(accepted_groups(&host), left);
}

#[test]
fn a_file_that_was_being_sent_when_its_supervisor_died_is_found_in_the_bucket() {
    // Built before the host's clock starts.
    points::supervisor();
    let host = Host::new(0.6, 4.0).cast(Cast::Fakes, &script()).with_failpoints();
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run"]);
    host.await_status("three finished groups", &mut miner, 120, |status| spooled(status) >= 3);
    points::arm(&host, "read-back");
    miner.signal(Signal::SIGTERM);
    points::await_reached(&host, "read-back", Duration::from_secs(120)).unwrap();
    miner.signal(Signal::SIGKILL);
    miner.finish(END);
    points::release(&host, "read-back");
    let (sent, written) = (uploaded_groups(&host), modified(&host));
    // The next run has less than the bucket: one group's record is torn, and nothing more can be mined.
    let window = std::fs::read_dir(host.path().join("state/spool")).unwrap().flatten().next().unwrap().path();
    let torn = std::fs::read_dir(window).unwrap().flatten().find(|file| file.file_name().to_string_lossy().starts_with("group-"));
    std::fs::write(torn.unwrap().path(), "torn").unwrap();
    let broken = broken_programs(&host);
    let finished = host.start(&["run", "--windows", "1", "--set", &broken]).finish(END);
    assert!(finished.stderr.contains("The bucket holds the file that an earlier run was sending"), "{}", finished.stderr);
    succeeds(finished);
    assert_eq!((uploaded_groups(&host), modified(&host)), (sent, written), "the fuller file stays");
    let story = succeeds(host.run(&["explain"]));
    assert!(story.contains("the bucket holds what an earlier run was sending"), "{story}");
    // What became of the children is told in words.
    assert!(story.contains("died, to be started again in ") && story.contains("it failed with exit code 1"), "{story}");
    assert!(!story.contains('{'), "{story}");
}

fn modified(host: &Host) -> std::time::SystemTime {
    std::fs::metadata(&host.uploaded()[0]).unwrap().modified().unwrap()
}

/// The setting for children that cannot come up.
fn broken_programs(host: &Host) -> String {
    let broken = host.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for program in ["grail-proof-worker", "grail-gen-launcher"] {
        write_program(&broken.join(program), "exit 1");
    }
    format!("programs.folder={}", broken.display())
}
