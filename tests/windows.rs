//! Window after window in accelerated time on the network's chain: the node of the tests, S3, the real workers and the embedded
//! engine, with new checkpoints in between, whole ones and differences. Every window is to end with a file that `validate`
//! accepts, every group checked. `make test` plays four windows, `GRAIL_FAULTS=whole` (`make test-faults`) fifty; `GRAIL_WINDOWS`
//! takes another number.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use grail_fakes::Script;
use grail_tests::{Cast, Host, Running, oracle, points, testnet, workspace};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Windows of twelve seconds: eight to load, mine and upload in, four of slack.
const BLOCK_SECONDS: f64 = 0.4;
const LEAD: f64 = 6.0;
const WINDOW_BLOCKS: u64 = 30;
/// The first one with a checkpoint that was ready before it.
const FIRST_WINDOW: u64 = 30;
/// A new checkpoint in every second window, every fifth of them whole.
const WINDOWS_PER_CHECKPOINT: usize = 2;
const CHECKPOINTS_PER_FULL: usize = 5;
/// A loaded machine may miss one window in so many; the files must be there all the same.
const MISSES_OF: usize = 5;

fn main() -> ExitCode {
    let whole = std::env::var("GRAIL_FAULTS").is_ok_and(|form| form == "whole");
    let asked = std::env::var("GRAIL_WINDOWS").ok().and_then(|number| number.parse().ok());
    let windows: usize = asked.unwrap_or(if whole { 50 } else { 4 });
    println!("{windows} windows of 12 s on a node of the chain, with a new checkpoint in every second one.");
    // Built before the host's clock starts.
    points::supervisor();
    match mine(windows) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

fn mine(windows: usize) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Real, &Script::default()).with_failpoints();
    // A few groups a window are enough here, and judging all of them takes its time.
    let host = host.set("generation.groups_in_flight", "2").set("beacon.drand", "false");
    let (host, node) = testnet::registered(&runtime, host);
    let mut trainer = Trainer { host: &host, checkpoints: 0 };
    trainer.publish()?;
    let mut miner = host.start(&["run"]);
    let mut ended: BTreeMap<u64, (String, String)> = BTreeMap::new();
    while uploads(&ended) < windows && ended.len() - uploads(&ended) <= windows.div_ceil(MISSES_OF) {
        let last = ended.keys().next_back().copied().unwrap_or(0);
        let status = host.await_status("the next window", &mut miner, 120, |status| newest(status) > Some(last));
        ended.extend(outcomes(&status).into_iter().filter(|(window, _)| *window >= FIRST_WINDOW));
        if ended.len().is_multiple_of(WINDOWS_PER_CHECKPOINT) {
            // As early in the window as can be: what is published in one window must be whole in the same.
            let begun = node.height() / WINDOW_BLOCKS;
            host.await_status("the next window's first block", &mut miner, 120, |_| node.height() / WINDOW_BLOCKS > begun);
            trainer.publish()?;
            if node.height() / WINDOW_BLOCKS > begun + 1 {
                return Err("this machine publishes slower than windows go by".into());
            }
        }
    }
    let code = stop(miner);
    let judged = if code == 0 { report(&host, windows, &ended, &trainer) } else { Err(format!("it ended with {code}")) };
    judged.map_err(|why| format!("{why}\n{}", host.log()))
}

fn stop(miner: Running) -> i32 {
    miner.signal(Signal::SIGTERM);
    miner.finish(Duration::from_secs(120)).code
}

/// The trainer: checkpoints of two models in turn, as differences with a whole one now and then.
struct Trainer<'a> {
    host: &'a Host,
    checkpoints: usize,
}

impl Trainer<'_> {
    fn publish(&mut self) -> Result<(), String> {
        let models = ["checkpoint-a", "checkpoint-b"];
        let (next, before) = (models[self.checkpoints % 2], models[(self.checkpoints + 1) % 2]);
        let before = workspace().join("demo").join(before);
        let whole = self.checkpoints.is_multiple_of(CHECKPOINTS_PER_FULL);
        let difference = ["--delta-from", before.to_str().ok_or("a path in UTF-8")?];
        testnet::publish(self.host, next, if whole { &[] } else { &difference });
        self.checkpoints += 1;
        Ok(())
    }
}

fn outcomes(status: &Value) -> Vec<(u64, (String, String))> {
    let finished = status["finished"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let outcome = |window: &Value| Some((window["window"].as_u64()?, (text(&window["outcome"]), text(&window["reason"]))));
    finished.iter().filter_map(outcome).collect()
}

fn newest(status: &Value) -> Option<u64> {
    outcomes(status).into_iter().map(|(window, _)| window).max()
}

fn uploads(ended: &BTreeMap<u64, (String, String)>) -> usize {
    ended.values().filter(|(outcome, _)| outcome == "uploaded").count()
}

/// Judges everything that lies in the bucket, and says what there was.
fn report(host: &Host, windows: usize, ended: &BTreeMap<u64, (String, String)>, trainer: &Trainer<'_>) -> Result<(), String> {
    for (window, (outcome, reason)) in ended.iter().filter(|(_, (outcome, _))| outcome != "uploaded") {
        println!("Missed: window {window}, {outcome}: {reason}");
    }
    let begun = Instant::now();
    let account = oracle::judge(host, &[])?;
    let lost: usize = account.lost.values().sum();
    let (files, uploaded, published) = (account.windows.len(), account.uploaded, trainer.checkpoints);
    println!("{files} files accepted, {uploaded} groups ({} rollouts), {lost} durable groups lost.", uploaded * 16);
    println!("{published} checkpoints were published; judged in {:.0} s.", begun.elapsed().as_secs_f64());
    if files < windows || lost > 0 && uploads(ended) == ended.len() {
        return Err(format!("{windows} files were asked for: {account}"));
    }
    Ok(())
}
