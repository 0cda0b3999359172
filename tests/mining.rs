//! Windows from start to verdict on the real programs.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::time::Duration;

use grail_tests::{Host, Running, assert_all_gone, one_at_a_time, programs, skipped, tree, workspace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const END: Duration = Duration::from_secs(120);
/// Windows of twenty-one seconds, four of them slack.
const BLOCK_SECONDS: f64 = 0.7;
/// Seconds until the first of them: starting takes four.
const LEAD: f64 = 6.0;

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn uploads(status: &Value) -> usize {
    let finished = status["finished"].as_array().map(Vec::as_slice).unwrap_or_default();
    finished.iter().filter(|window| window["outcome"] == "uploaded").count()
}

fn child_pids(status: &Value) -> Vec<i32> {
    let children = status["children"].as_object().into_iter().flatten();
    children.filter_map(|(_, child)| child["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())).collect()
}

/// Every window that was uploaded is accepted, with every group checked.
fn assert_accepted(host: &Host, windows: usize) -> Vec<Value> {
    let validated = host.run(&["validate", "--test-mode", "--last", &windows.to_string(), "--all", "--json"]);
    assert_eq!(validated.code, 0, "{}\n{}", validated.stdout, validated.stderr);
    let verdicts: Vec<Value> = validated.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verdicts.len(), windows, "{}", validated.stdout);
    for verdict in &verdicts {
        assert_eq!(verdict["failure_flag"], 0, "{verdict:#}");
        assert_eq!(verdict["valid_count"], verdict["checked_count"], "{verdict:#}");
        assert!(number(verdict, "/checked_count") >= 16, "{verdict:#}");
    }
    verdicts
}

/// What the terminal and the status say of a file is what lies in the bucket.
fn assert_told_as_it_is(host: &Host, terminal: &str) {
    for path in host.uploaded() {
        let bytes = std::fs::metadata(&path).unwrap().len();
        let status = host.status();
        let ending = |window: &&Value| path.to_string_lossy().ends_with(&format!("-window-{}.parquet", window["window"]));
        let window = status["finished"].as_array().unwrap().iter().find(ending).unwrap();
        assert_eq!(number(window, "/bytes"), bytes, "{window:#}");
        let (window, rollouts) = (number(window, "/window"), number(window, "/rollouts"));
        let line = format!("window {window} uploaded and read back: {rollouts} rollouts, {} KiB", bytes / 1024);
        assert!(rollouts >= 16 && terminal.contains(&line), "{line:?} is missing in\n{terminal}");
    }
}

#[test]
fn only_workers_and_engine_link_libtorch() {
    let links_it = |program: &str| {
        let bytes = std::fs::read(programs().join(program)).unwrap();
        // As the linker names what a program needs; messages that speak of the file end otherwise.
        const NEEDED: &[u8] = b"\0libtorch_cpu.so\0";
        bytes.windows(NEEDED.len()).any(|window| window == NEEDED)
    };
    assert!(links_it("grail-proof-worker") && links_it("grail-gen-launcher"));
    assert!(!links_it("grail-supervisor"), "the supervisor must not link libtorch");
}

#[test]
fn failpoints_do_not_compile_into_a_release() {
    let compile = |debug_assertions: &str| {
        let folder = tempfile::tempdir().unwrap();
        let compiled = std::process::Command::new("rustc")
            .args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata", "--cfg", "feature=\"failpoints\"", "-C"])
            .arg(format!("debug-assertions={debug_assertions}"))
            .arg(workspace().join("shared/supervision/src/failpoint.rs"))
            .current_dir(folder.path())
            .output()
            .unwrap();
        String::from_utf8_lossy(&compiled.stderr).into_owned()
    };
    // Without its dependencies the file does not compile anyway; what matters is whether it refuses by itself.
    let refusal = "must not be part of a release build";
    assert!(compile("off").contains(refusal), "a release build with failpoints is refused");
    assert!(!compile("on").contains(refusal), "a debug build is not");
}

/// Kills a worker in mid-window, while it proves, and waits until another one has its place.
fn a_worker_is_killed_and_replaced(host: &Host, miner: &mut Running) {
    let status = host.await_status("a busy worker", miner, 120, |status| {
        number(status, "/window/spooled") >= 1 && status["children"]["proof-worker 0"]["state"] == "busy"
    });
    let victim = i32::try_from(status["children"]["proof-worker 0"]["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let status = host.await_status("a new worker with the weights", miner, 120, |status| {
        let worker = &status["children"]["proof-worker 0"];
        worker["pid"].as_i64().is_some_and(|pid| pid != i64::from(victim)) && worker["revision"].is_string()
    });
    assert_eq!(status["children"]["proof-worker 0"]["ends"], 1, "{status:#}");
}

/// A folder with a data set for each of the environments, the demo's problems in either form.
fn both_datasets(host: &Host) -> String {
    let folder = host.path().join("datasets");
    let written =
        std::process::Command::new("python3").arg(workspace().join("demo/as_math.py")).arg(folder.join("math")).output();
    let written = written.unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    std::os::unix::fs::symlink(workspace().join("demo/gsm8k").canonicalize().unwrap(), folder.join("gsm8k")).unwrap();
    folder.display().to_string()
}

/// Two windows; a worker dies in the first of them, and the second one has a new checkpoint with another environment.
#[test]
fn windows_are_mined_reloaded_and_accepted_and_a_killed_worker_costs_no_group() {
    let _turn = one_at_a_time();
    let host = Host::new(BLOCK_SECONDS, LEAD);
    let datasets = both_datasets(&host);
    let host = host.set("environment.dataset", &datasets);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run", "--windows", "2"]);
    a_worker_is_killed_and_replaced(&host, &mut miner);
    let published = host.publish("checkpoint-b", &["--env", "math"]);
    assert_eq!(published.code, 0, "{}", published.stderr);
    let first = host.await_status("the first window", &mut miner, 120, |status| uploads(status) == 1);
    let second = host.await_status("the second checkpoint in the workers", &mut miner, 120, |status| {
        uploads(status) == 1
            && number(status, "/window/spooled") >= 1
            && status["window"]["window"] != first["finished"][0]["window"]
    });
    assert_eq!(child_pids(&first), child_pids(&second), "a reload replaces no process");
    assert_eq!(second["children"]["proof-worker 0"]["ends"], 1, "one death, the test's own: {second:#}");
    let finished = miner.finish(END);
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    let checkpoints: Vec<u64> = host.status()["finished"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|window| window["outcome"] == "uploaded")
        .map(|window| number(window, "/checkpoint_window"))
        .collect();
    assert_eq!(checkpoints.len(), 2, "{}", finished.stdout);
    assert!(checkpoints[0] < checkpoints[1], "the second window is mined with the second checkpoint: {checkpoints:?}");
    assert_told_as_it_is(&host, &finished.stdout);
    let told = grail_supervision::journal::read(&host.path().join("state/journal")).unwrap().entries;
    let lost = told.iter().find(|entry| entry.kind == "group_dropped" && entry.data["cause"] == "proof failed");
    assert!(lost.is_none(), "the job of the worker that died went to the other one: {lost:?}");
    let kept = told.iter().filter(|entry| entry.kind == "group_kept").count() as u64;
    let finished = host.status()["finished"].as_array().unwrap().iter().map(|window| number(window, "/rollouts")).sum::<u64>();
    assert_eq!(finished, kept * 16, "every kept group is in a file");
    for verdict in assert_accepted(&host, 2) {
        assert_eq!(verdict["rewards_not_judged"], 0, "{verdict:#}");
    }
    assert_eq!(std::fs::read_dir(host.path().join("state/windows")).unwrap().count(), 2, "local copies");
    let spools: Vec<_> = std::fs::read_dir(host.path().join("state/spool")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(spools.len(), 1, "a past window leaves no spool: {spools:?}");
    assert!(spools[0].join("uploaded.record").exists(), "what is left is known to be uploaded");
}

/// The trainer publishes a whole checkpoint, then what differs; the supervisor is killed in mid-window and leaves no orphan, and the
/// next one goes on with its groups.
#[test]
fn a_delta_is_mined_in_place_and_a_killed_supervisors_groups_are_uploaded_by_the_next() {
    let _turn = one_at_a_time();
    let host = Host::new(BLOCK_SECONDS, LEAD);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run"]);
    let first = host.await_status("a group", &mut miner, 120, |status| number(status, "/window/spooled") >= 1);
    let before = workspace().join("demo/checkpoint-a");
    let published = host.publish("checkpoint-b", &["--delta-from", before.to_str().unwrap()]);
    assert_eq!(published.code, 0, "{}", published.stderr);
    let delta = host.path().join("buckets/grail-trainer/grail/checkpoints");
    let deltas = std::fs::read_dir(delta).unwrap().filter(|entry| entry.as_ref().unwrap().path().join("DELTA").exists()).count();
    assert_eq!(deltas, 1, "the second checkpoint is a DELTA and nothing else");
    let second = host.await_status("the second checkpoint in the workers", &mut miner, 120, |status| {
        number(status, "/window/spooled") >= 2 && status["window"]["revision"] != first["window"]["revision"]
    });
    assert_eq!(child_pids(&first), child_pids(&second), "a change replaces no process");
    let family = tree(miner.pid());
    miner.signal(Signal::SIGKILL);
    let killed = miner.finish(END);
    assert_eq!(killed.code, -1);
    assert!(killed.stderr.contains("workers that hold the base take it in place"), "{}", killed.stderr);
    assert!(!killed.stderr.contains("The changes are refused"), "{}", killed.stderr);
    assert_all_gone(&family);
    let finished = host.start(&["run", "--windows", "1"]).finish(END);
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("were found in the spool"), "{}", finished.stderr);
    let status = host.status();
    let window = status["finished"].as_array().unwrap().iter().rfind(|window| window["outcome"] == "uploaded").unwrap();
    assert_eq!(window["window"], second["window"]["window"], "the same window goes on");
    assert!(number(window, "/rollouts") >= number(&second, "/window/spooled") * 16, "{window:#}");
    assert_accepted(&host, 2);
    let cache: Vec<_> =
        std::fs::read_dir(host.path().join("cache/checkpoints")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(cache.iter().all(|name| !name.to_string_lossy().contains(".partial")), "{cache:?}");
}

#[test]
fn sigterm_in_mid_window_uploads_what_is_finished() {
    let _turn = one_at_a_time();
    let host = Host::new(2.0, 6.0).variable("R2_WRITE_SECRET_ACCESS_KEY", "hush-hush").variable("WANDB_API_KEY", "hush-hush");
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run"]);
    host.await_status("two finished groups", &mut miner, 120, |status| number(status, "/window/spooled") >= 2);
    let family = tree(miner.pid());
    assert!(family.len() >= 5, "supervisor, launcher, server, two workers: {family:?}");
    for child in &family[1..] {
        let environment = std::fs::read(format!("/proc/{}/environ", child.pid)).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("hush"), "a secret reached process {child:?}");
    }
    miner.signal(Signal::SIGTERM);
    let finished = miner.finish(Duration::from_secs(120));
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    assert_all_gone(&family);
    assert!(host.uploaded().len() == 1, "{}\n{}", finished.stdout, finished.stderr);
    let rollouts = host.status()["finished"].as_array().unwrap().iter().map(|window| number(window, "/rollouts")).sum::<u64>();
    assert!(rollouts >= 32, "{rollouts} rollouts were uploaded");
}

#[test]
fn real_problems_are_mined_and_accepted() {
    let default = workspace().join("../shared/data/gsm8k/test.jsonl");
    let dataset = std::env::var_os("GRAIL_REAL_DATASET").map_or(default, Into::into);
    if !dataset.exists() {
        return skipped("real GSM8K", &format!("the test set is not at {} (set GRAIL_REAL_DATASET)", dataset.display()));
    }
    let _turn = one_at_a_time();
    let host = Host::new(1.0, LEAD);
    let published = host.publish("checkpoint-a", &["--split", "test"]);
    assert_eq!(published.code, 0, "{}", published.stderr);
    let dataset = dataset.canonicalize().unwrap();
    let arguments = ["run", "--windows", "1", "--dataset", dataset.to_str().unwrap()];
    let finished = host.start(&arguments).finish(Duration::from_secs(150));
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    let validated = host.run(&["validate", "--test-mode", "--last", "1", "--all", "--dataset", dataset.to_str().unwrap()]);
    assert_eq!(validated.code, 0, "{}\n{}\n{}", finished.stdout, validated.stdout, validated.stderr);
}
