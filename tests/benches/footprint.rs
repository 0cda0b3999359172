//! `make bench`, second part: what the supervisor itself takes on a host, measured from outside on the real program while it
//! mines one window and while it waits for the next.
#![allow(clippy::disallowed_methods, missing_docs, reason = "a benchmark reads the clock")]

use std::time::{Duration, Instant};

use grail_tests::Host;
use serde_json::Value;

const TICKS_PER_SECOND: f64 = 100.0;

fn resident_mib(pid: i32, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn cpu_seconds(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

fn uploaded(status: &Value) -> bool {
    status["finished"].as_array().is_some_and(|windows| windows.iter().any(|window| window["outcome"] == "uploaded"))
}

fn main() {
    let host = Host::new(1.0, 8.0);
    let published = host.publish("checkpoint-a", &[]);
    assert_eq!(published.code, 0, "{}", published.stderr);
    let mut miner = host.start(&["run"]);
    let status = host.await_status("an uploaded window", &mut miner, 120, uploaded);
    let mining = resident_mib(miner.pid(), "VmHWM");
    // The window's file is uploaded a few seconds before its end; what follows until then is idle.
    let (begun, before) = (Instant::now(), cpu_seconds(miner.pid()));
    std::thread::sleep(Duration::from_secs(3));
    let idle = (cpu_seconds(miner.pid()) - before) / begun.elapsed().as_secs_f64();
    println!("{:<52} {mining:.1} MiB (aim: under 60)", "supervisor, most memory while mining");
    println!("{:<52} {:.2} % of one core (aim: under 1)", "supervisor, CPU while it waits for a window", idle * 100.0);
    println!(
        "{:<52} {}",
        "rollouts in that window",
        status["finished"].as_array().and_then(|all| all.last()).map_or(0, |last| last["rollouts"].as_u64().unwrap_or(0))
    );
}
