//! Whole windows with a real server under the real supervisor, and what happens to it there.

use std::time::{Duration, Instant};

use grail_process::Identity;
use grail_tests::{Host, Running, assert_all_gone, lives, process, send, tree};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::drills::NOTICED;
use crate::rig::{Installed, START, embedded_greedy, greedy, named};

/// A host that mines with `server` in f32, in windows of 30 blocks of `block_seconds`.
fn host(server: Installed, block_seconds: f64) -> Host {
    let python = server.python().expect("the scenario is played where the server is installed");
    let mut host = Host::new(block_seconds, 6.0);
    for (name, value) in server.variables() {
        host = host.variable(name, value);
    }
    for (key, value) in [
        ("backend", server.name()),
        ("device", "cpu"),
        ("dtype", "f32"),
        ("memory_share", "0.1"),
        ("max_running", "48"),
        ("groups_in_flight", "3"),
        ("disable_cuda_graph", "true"),
        ("server_timeout_seconds", &START.as_secs().to_string()),
        ("extra_arguments", &server.extra().join(" ")),
    ] {
        host = host.set(&format!("generation.{key}"), value);
    }
    host.set(&format!("generation.{}_python", server.name()), &python.display().to_string()).set("proof.cpu_slots", "1")
}

fn generation(status: &Value) -> &Value {
    &status["children"]["generation"]
}

fn launcher(status: &Value) -> i32 {
    generation(status)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("the launcher runs")
}

fn uploads(status: &Value) -> usize {
    status["finished"].as_array().into_iter().flatten().filter(|window| window["outcome"] == "uploaded").count()
}

fn spooled(status: &Value) -> u64 {
    status["window"]["spooled"].as_u64().unwrap_or(0)
}

/// The address that the launcher told last.
fn url(host: &Host) -> String {
    let log = host.log();
    let told = log.rsplit_once("The generation server serves.").expect("a server serves").1;
    let url = told.split_whitespace().find_map(|word| word.strip_prefix("url=")).expect("with its address");
    url.trim_matches('"').to_owned()
}

fn block_on<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
}

/// Two windows with a new checkpoint between them and the death of the server in the second; greedy ids as the embedded
/// engine's under both checkpoints; every file accepted.
pub fn mined_across_an_update_and_a_death(server: Installed) -> Result<String, String> {
    let want = block_on(embedded_greedy(&["checkpoint-a", "checkpoint-b"]));
    let host = host(server, 1.2);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let began = Instant::now();
    // No number of windows: one in which the server is ready just before the end counts as well.
    let mut miner = host.start(&["run"]);
    host.await_status("the first group", &mut miner, START.as_secs(), |status| spooled(status) >= 1);
    let started = began.elapsed().as_secs_f64();
    assert!(block_on(greedy(server.engine(), &url(&host))) == want[0], "greedy ids differ from the embedded engine's");
    host.await_status("the first window", &mut miner, 120, |status| uploads(status) == 1);
    assert_eq!(host.publish("checkpoint-b", &[]).code, 0);
    let first = host.status()["window"]["revision"].clone();
    let status = host.await_status("a group of the second checkpoint", &mut miner, 150, |status| {
        spooled(status) >= 2 && status["window"]["revision"] != first && status["window"]["revision"].is_string()
    });
    assert_eq!(generation(&status)["ends"], 0, "an update replaces no process: {status:#}");
    assert!(block_on(greedy(server.engine(), &url(&host))) == want[1], "after the update");

    let noticed = kill_and_await(&host, &mut miner, server, server.vital()[0]);
    host.await_status("the second window", &mut miner, 120, |status| uploads(status) == 2);
    miner.signal(Signal::SIGTERM);
    let finished = miner.finish(Duration::from_secs(60));
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    accepted(&host, 2);
    let rollouts: Vec<u64> =
        host.status()["finished"].as_array().unwrap().iter().filter_map(|window| window["rollouts"].as_u64()).collect();
    let update = seconds_of(&finished.stderr);
    Ok(format!(
        "first group after {started:.0} s; rollouts {rollouts:?} accepted; update {update}; death noticed in {noticed:.2} s"
    ))
}

/// What the launcher says an update took.
fn seconds_of(log: &str) -> String {
    let told = log.lines().rev().find(|line| line.contains("The server stood still") && !line.contains("lines="));
    let steps = told.and_then(|line| line.split_once("steps=\"")).and_then(|(_, rest)| rest.split_once('"'));
    steps.expect("the launcher tells where the time goes").0.to_owned()
}

/// Kills a process of the server and waits until the supervisor knows: seconds.
fn kill_and_await(host: &Host, miner: &mut Running, server: Installed, victim: &str) -> f64 {
    let before = host.status();
    let family = tree(launcher(&before));
    let process = named(launcher(&before), victim)[0].clone();
    let began = Instant::now();
    send(&process, Signal::SIGKILL);
    let ends = generation(&before)["ends"].as_u64().unwrap_or(0) + 1;
    let status = host.await_status("the death", miner, 60, |status| generation(status)["ends"] == ends);
    let noticed = began.elapsed().as_secs_f64();
    assert!(noticed < NOTICED, "{noticed:.1} s\n{status:#}");
    assert_all_gone(&family);
    let death = &generation(&status)["death"];
    let lines = death["lines"].as_array().unwrap();
    let told = |word: &str| lines.iter().any(|line| line.as_str().unwrap().contains(word));
    assert!(told("the generation server is gone") && told(" server: "), "{}: {death:#}", server.name());
    noticed
}

fn accepted(host: &Host, windows: usize) {
    let validated = host.run(&["validate", "--test-mode", "--last", &windows.to_string(), "--all", "--json"]);
    assert_eq!(validated.code, 0, "{}\n{}", validated.stdout, validated.stderr);
    assert_eq!(validated.stdout.lines().count(), windows, "{}", validated.stdout);
}

/// The launcher, then the supervisor itself, is killed while the server's own processes load. They would load on for nobody.
pub fn parents_killed_while_it_loads(server: Installed) -> Result<String, String> {
    let host = host(server, 6.0);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run"]);
    let first = loading(&host, &mut miner, 0);
    send(&first[0], Signal::SIGKILL);
    assert_all_gone(&first);
    loading(&host, &mut miner, first[0].pid.cast_signed());
    let family = tree(miner.pid());
    let began = Instant::now();
    miner.signal(Signal::SIGKILL);
    assert_eq!(miner.finish(Duration::from_secs(20)).code, -1);
    assert_all_gone(&family);
    let seconds = began.elapsed().as_secs_f64();
    Ok(format!("{} and {} processes gone, the latter {seconds:.1} s after the supervisor", first.len(), family.len()))
}

/// Waits until the server of a launcher other than `before` has started processes of its own: the launcher and all of them.
fn loading(host: &Host, miner: &mut Running, before: i32) -> Vec<Identity> {
    let started = |status: &Value| {
        let launcher = generation(status)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        // Launcher, the server's first process, Python's resource tracker, and those that load.
        launcher.filter(|launcher| *launcher != before).map(tree).filter(|family| family.len() >= 4)
    };
    let status = host.await_status("a server that loads", miner, 180, |status| started(status).is_some());
    assert!(generation(&status)["revision"].is_null(), "it is still loading: {status:#}");
    started(&status).expect("they load for longer than a moment")
}

/// A process of the server is stopped by a signal: it is neither dead nor does it answer.
pub fn a_stopped_process_is_noticed(server: Installed) -> Result<String, String> {
    let host = host(server, 3.0);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run"]);
    let status = host.await_status("a group", &mut miner, START.as_secs(), |status| spooled(status) >= 1);
    let family = tree(launcher(&status));
    let vital = named(launcher(&status), server.vital()[0])[0].clone();
    let began = Instant::now();
    send(&vital, Signal::SIGSTOP);
    let status = host.await_status("the hang", &mut miner, 60, |status| generation(status)["ends"] == 1);
    let noticed = began.elapsed().as_secs_f64();
    assert_eq!(generation(&status)["death"]["class"], "hang", "{status:#}");
    assert_all_gone(&family);
    let again =
        host.await_status("a new server", &mut miner, START.as_secs(), |status| generation(status)["revision"].is_string());
    let family = tree(miner.pid());
    assert!(lives(&process(launcher(&again))));
    // A stop in the middle of the window uploads what is there and leaves nothing.
    miner.signal(Signal::SIGTERM);
    let finished = miner.finish(Duration::from_secs(60));
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    assert_all_gone(&family);
    Ok(format!("a stopped {} noticed in {noticed:.1} s, a new server serves", server.vital()[0]))
}
