//! How the supervisor is started, and by what its terminal ends it: limits of open files, SIGHUP.

use std::time::Duration;

use grail_fakes::Script;
use grail_tests::side_by_side::Scenario;
use grail_tests::{Cast, Host, oracle};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Windows of a minute: only what is validated waits for the end of one.
const BLOCK_SECONDS: f64 = 2.0;
const LEAD: f64 = 4.0;
/// Requests in flight of 24 groups.
const REQUESTS: u64 = 24 * 16;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("files-a-soft-limit-of-64", soft_limit),
        Scenario::new("files-a-hard-limit-of-64", hard_limit),
        Scenario::new("hang-up-ends-in-order", hung_up),
        Scenario::new("hang-up-is-ignored-under-nohup", not_hung_up),
    ]
}

fn host(completion_seconds: f64) -> Host {
    let script = Script { job_seconds: 0.05, completion_seconds, load_seconds: 0.1, ..Script::default() };
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Fakes, &script).with_failpoints();
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    host
}

fn spooled(status: &Value) -> u64 {
    if status["window"]["window"] == 30 { status["window"]["spooled"].as_u64().unwrap_or(0) } else { 0 }
}

/// Mines `groups`, is sent `signals`, ends in order, and everything is accounted for.
fn mined(host: &Host, groups: u64, signals: &[Signal], look: impl Fn(i32) -> Result<(), String>) -> Result<String, String> {
    let mut miner = host.start(&["run"]);
    host.await_status(&format!("{groups} durable groups"), &mut miner, 120, |status| spooled(status) >= groups);
    look(miner.pid())?;
    for signal in signals {
        miner.signal(*signal);
    }
    let code = miner.finish(Duration::from_secs(120)).code;
    host.rewrite(&Script::default());
    let fail = |why: String| Err(format!("{why}\n{:#}\n{}", host.status(), host.log()));
    if code != 0 || host.log().contains("Too many open files") {
        return fail(format!("it ended with {code}"));
    }
    match oracle::account(host) {
        Ok(account) if account.uploaded as u64 >= groups => Ok(account.to_string()),
        Ok(account) => fail(format!("{groups} groups should be there: {account}")),
        Err(why) => fail(why),
    }
}

/// The limits of a process: soft and hard.
fn open_files(pid: i32) -> Result<(String, String), String> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).map_err(|error| format!("{pid}: {error}"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).ok_or("no limit of open files")?;
    let mut words = line.split_whitespace().map(str::to_owned);
    words.next().zip(words.next()).ok_or_else(|| format!("an unknown form: {line}"))
}

/// Six times as many requests as the soft limit: it is raised, for the generation server as well.
fn soft_limit() -> Result<String, String> {
    let host = host(0.8).set("generation.groups_in_flight", "24").after("ulimit -Sn 64");
    let raised = |pid: i32| {
        let processes = host.processes().into_iter().filter(|(_, line)| !line.contains("--slot"));
        for pid in processes.map(|(process, _)| process.pid.cast_signed()).chain([pid]) {
            let (soft, hard) = open_files(pid)?;
            if soft != hard || soft == "64" {
                return Err(format!("process {pid} has {soft} of {hard}"));
            }
        }
        let log = host.log();
        if log.contains("fewer requests at once") { Err(format!("less than {REQUESTS} requests\n{log}")) } else { Ok(()) }
    };
    mined(&host, 30, &[Signal::SIGTERM], raised)
}

/// It cannot be raised: fewer requests at once, and what is mined is uploaded.
fn hard_limit() -> Result<String, String> {
    let host = host(0.05).after("ulimit -n 64");
    let told = mined(&host, 4, &[Signal::SIGTERM], |pid| {
        let limits = open_files(pid)?;
        let told = host.log().contains("fewer requests at once");
        if limits.0 == "64" && told { Ok(()) } else { Err(format!("limits {limits:?}, told: {told}")) }
    })?;
    // The validator has no more.
    oracle::files_are_accepted(&host, &[30], &[]).map(|()| told)
}

/// The terminal ends: the kernel and the shell both say so.
fn hung_up() -> Result<String, String> {
    mined(&host(0.05), 2, &[Signal::SIGHUP, Signal::SIGHUP], |_| Ok(()))
}

/// Started by `nohup`, it goes on.
fn not_hung_up() -> Result<String, String> {
    let host = host(0.05).after("trap '' HUP");
    let mut miner = host.start(&["run"]);
    let status = host.await_status("two durable groups", &mut miner, 120, |status| spooled(status) >= 2);
    miner.signal(Signal::SIGHUP);
    host.await_status("more groups", &mut miner, 120, |now| spooled(now) >= spooled(&status) + 2);
    miner.signal(Signal::SIGTERM);
    let code = miner.finish(Duration::from_secs(120)).code;
    host.rewrite(&Script::default());
    match oracle::account(&host) {
        Ok(account) if code == 0 && account.uploaded >= 4 => Ok(account.to_string()),
        other => Err(format!("it ended with {code}: {other:?}\n{}", host.log())),
    }
}
