//! Twenty-four short windows under random faults: processes killed, stopped and restarted, workers and server that lie, a bucket
//! that fails. The oracle is the kill matrix's sentence. Part of `make test-faults`; `GRAIL_SOAK_SEED` repeats a run's choices,
//! `GRAIL_SOAK_WINDOWS` makes it shorter or longer.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use axum::http::Method;
use grail_fakes::{BucketCue, BucketLie, LyingBucket, Script, ServerCue, ServerLie, WorkerCue, WorkerLie};
use grail_process::Identity;
use grail_protocol::constants::DEADLINE_SLACK_SECONDS;
use grail_supervision::journal;
use grail_tests::{Cast, Host, Running, now, oracle, points, process};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// Windows of twelve seconds.
const BLOCK_SECONDS: f64 = 0.4;
const LEAD: f64 = 4.0;
const WINDOW_BLOCKS: u64 = 30;
/// From a window's first block to its deadline.
const MINED_SECONDS: f64 = WINDOW_BLOCKS as f64 * BLOCK_SECONDS - DEADLINE_SLACK_SECONDS;
/// Deaths of one child that a supervisor is given in one life: more lead to quarantine, which is right, and ends the soak.
const DEATHS: u32 = 5;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn main() -> ExitCode {
    if std::env::var("GRAIL_FAULTS").is_ok_and(|form| form == "whole") {
        let seed = number("GRAIL_SOAK_SEED").unwrap_or(now() as u64);
        let windows = number("GRAIL_SOAK_WINDOWS").unwrap_or(24);
        println!("A soak of {windows} windows of 12 s with random faults; GRAIL_SOAK_SEED={seed} repeats its choices.");
        return soak(seed, windows);
    }
    println!("SKIPPED soak: it takes five minutes and is part of `make test-faults`.");
    ExitCode::SUCCESS
}

fn soak(seed: u64, windows: u64) -> ExitCode {
    let mut random = StdRng::seed_from_u64(seed);
    // Built before the host's clock starts.
    points::supervisor();
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Fakes, &script(&mut random)).with_failpoints();
    let bucket = LyingBucket::start(&host.path().join("buckets"), Vec::new()).unwrap();
    let host = host.with_bucket(&bucket).set("upload.timeout_seconds", "2");
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut night = Night { host: &host, bucket: &bucket, random, faults: BTreeMap::new(), deaths: BTreeMap::new() };
    let mut miner = host.start(&["run"]);
    host.await_status("the first durable group", &mut miner, 120, |status| status["window"]["spooled"].as_u64() > Some(0));
    let last = WINDOW_BLOCKS * (windows + 1);
    while host.status()["block"].as_u64().unwrap_or(0) < last {
        let pause = night.random.random_range(0.5..4.0);
        std::thread::sleep(Duration::from_secs_f64(pause));
        miner = night.strike(miner);
    }
    bucket.lie(Vec::new());
    let pid = miner.pid();
    let calm = |status: &serde_json::Value| {
        let finished = status["finished"].as_array().map(Vec::as_slice).unwrap_or_default();
        let good = |window: &serde_json::Value| window["outcome"] == "uploaded" && window["window"].as_u64() > Some(last);
        status["pid"] == pid && finished.iter().any(good)
    };
    host.await_status("a window after the last fault", &mut miner, 120, calm);
    miner.signal(Signal::SIGTERM);
    let code = miner.finish(Duration::from_secs(120)).code;
    let faults = std::mem::take(&mut night.faults);
    report(&host, &bucket, &faults, windows, code)
}

/// Lies of workers and server, spread over the first of their lives.
fn script(random: &mut StdRng) -> Script {
    use ServerLie::*;
    let lies = [Aborted, Cut, CutInTheMiddle, ErrorInside, HalfAnAnswer, IdOutsideVocabulary, NoEnd, Slow, Status500, TooShort];
    let lives = (0..2).flat_map(|slot| (1..4).map(move |life| (slot, life)));
    let worker_cues = lives.map(|(slot, life)| WorkerCue {
        slot: Some(slot),
        life: Some(life),
        job: random.random_range(20..60),
        count: 1,
        lie: *WORKER_LIES.choose(random).unwrap(),
    });
    let worker = worker_cues.collect();
    let server_cues = (0..60).map(|place| ServerCue {
        life: None,
        from: 300 * (place + 1) + random.random_range(0..200),
        count: 1,
        lie: *lies.choose(random).unwrap(),
    });
    let server = server_cues.collect();
    Script { job_seconds: 0.2, completion_seconds: 0.2, load_seconds: 0.2, worker, server, ..Script::default() }
}

const WORKER_LIES: [WorkerLie; 7] = [
    WorkerLie::Die,
    WorkerLie::DamagedFrame,
    WorkerLie::HalfAFrame,
    WorkerLie::MissingProof,
    WorkerLie::NotANumber,
    WorkerLie::WrongHash,
    WorkerLie::WrongLength,
];

struct Night<'a> {
    host: &'a Host,
    bucket: &'a LyingBucket,
    random: StdRng,
    /// How often each fault happened.
    faults: BTreeMap<String, u32>,
    /// Deaths of each kind of child since the supervisor started.
    deaths: BTreeMap<&'static str, u32>,
}

/// How a process is told from the others by its command line.
const CHILDREN: [(&str, &str); 4] =
    [("worker 0", "--slot 0"), ("worker 1", "--slot 1"), ("launcher", "--backend"), ("server", " server --address")];

impl Night<'_> {
    fn strike(&mut self, miner: Running) -> Running {
        match self.random.random_range(0..10) {
            0 => return self.supervisor_ends(miner),
            1 => self.stop_and_go_on("supervisor", &process(miner.pid())),
            2..6 => self.bucket_lies(),
            _ => self.child(),
        }
        miner
    }

    fn count(&mut self, fault: String) {
        *self.faults.entry(fault).or_default() += 1;
    }

    fn supervisor_ends(&mut self, miner: Running) -> Running {
        let signal = *[Signal::SIGKILL, Signal::SIGTERM].choose(&mut self.random).unwrap();
        self.count(format!("supervisor {signal}"));
        miner.signal(signal);
        miner.finish(Duration::from_secs(120));
        if let Err(orphans) = oracle::no_process_is_left(self.host) {
            panic!("{orphans}");
        }
        self.deaths.clear();
        self.host.start(&["run"])
    }

    fn stop_and_go_on(&mut self, name: &str, process: &Identity) {
        self.count(format!("{name} SIGSTOP"));
        let seconds = self.random.random_range(0.3..2.5);
        let _ = process.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs_f64(seconds));
        let _ = process.signal(Signal::SIGCONT);
    }

    fn child(&mut self) {
        let (name, mark) = *CHILDREN.choose(&mut self.random).unwrap();
        let deaths = self.deaths.entry(name).or_default();
        let Some((process, _)) = self.host.processes().into_iter().find(|(_, line)| line.contains(mark)) else { return };
        *deaths += 1;
        if *deaths > DEATHS || self.random.random_bool(0.3) {
            return self.stop_and_go_on(name, &process);
        }
        let signal = *[Signal::SIGKILL, Signal::SIGTERM].choose(&mut self.random).unwrap();
        self.count(format!("{name} {signal}"));
        let _ = process.signal(signal);
    }

    fn bucket_lies(&mut self) {
        use BucketLie::*;
        let lies = [
            (Method::PUT, SlowDown),
            (Method::PUT, Status500),
            (Method::PUT, CutRequest),
            (Method::PUT, CutAnswer),
            (Method::PUT, ErrorInside),
            (Method::PUT, Lost),
            (Method::PUT, StoredDamaged),
            (Method::PUT, Slow(700)),
            (Method::GET, OtherBytes),
            (Method::GET, HalfAnAnswer),
            (Method::HEAD, Absent),
        ];
        let (method, lie) = lies.choose(&mut self.random).unwrap().clone();
        self.count(format!("bucket {lie:?}"));
        self.bucket.lie(vec![BucketCue { method, path: "/grail/windows/", count: 1, lie }]);
    }
}

fn report(host: &Host, bucket: &LyingBucket, faults: &BTreeMap<String, u32>, windows: u64, code: i32) -> ExitCode {
    println!("\nFaults:");
    for (fault, count) in faults {
        println!("  {count:4}  {fault}");
    }
    println!("  {:4}  lies that the bucket told", bucket.lies().len());
    let log = host.log();
    println!("Groups dropped before they were durable:");
    for (cause, count) in dropped(&log) {
        println!("  {count:4}  {cause}");
    }
    times(host);
    let begun = Instant::now();
    // The validator's workers are fakes as well, and must not lie.
    host.rewrite(&Script::default());
    let honest = format!("storage.endpoint={}", bucket.honest_endpoint());
    let judged = if code == 0 { oracle::judge(host, &["--set", &honest]) } else { Err(format!("it ended with {code}")) };
    match judged {
        Ok(account) => {
            let lost: usize = account.lost.values().sum();
            let durable = account.uploaded + lost;
            println!("Windows with an accepted file: {}, where {windows} were to be had.", account.windows.len());
            println!("Durable groups: {durable}, uploaded {}, lost {lost}.", account.uploaded);
            println!("Lost per 1,000 durable groups: {:.1}", lost as f64 * 1000.0 / durable.max(1) as f64);
            for (cause, count) in &account.lost {
                println!("  {count:4}  {cause}");
            }
            println!("Judged in {:.0} s: the sentence holds.", begun.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(why) => {
            let kept = std::env::temp_dir().join("grail-soak.log");
            let _ = std::fs::write(&kept, log);
            println!("FAILED: {why}\nThe supervisors' log is {}; failpoints: {:?}", kept.display(), points::folder(host));
            ExitCode::FAILURE
        }
    }
}

/// How long it took until a dead worker's successor was ready and a supervisor mined again, from the journal.
fn times(host: &Host) {
    let entries = journal::read(&host.path().join("state/journal")).map(|reading| reading.entries).unwrap_or_default();
    let mut started: Option<f64> = None;
    let mut died: BTreeMap<String, f64> = BTreeMap::new();
    let (mut mining, mut ready) = (Vec::new(), Vec::new());
    for entry in entries {
        let child = || entry.data["child"].as_str().unwrap_or_default().to_owned();
        match (entry.kind.as_str(), entry.data["event"].as_str()) {
            ("supervisor_started", _) => {
                died.clear();
                started = Some(entry.time);
            }
            // A start between two windows waits for the next one.
            ("window_opened", _) => {
                let opens = entry.data["deadline"].as_f64().unwrap_or_default() - MINED_SECONDS;
                started = started.filter(|began| *began > opens);
            }
            ("mining_began", _) => mining.extend(started.take().map(|began| entry.time - began)),
            ("child", Some("died")) => drop(died.insert(child(), entry.time)),
            ("child", Some("holds")) => ready.extend(died.remove(&child()).map(|death| entry.time - death)),
            _ => {}
        }
    }
    let line = |what: &str, mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        if let (Some(longest), Some(median)) = (seconds.last(), seconds.get(seconds.len() / 2)) {
            println!("{what}: median {median:.2} s, longest {longest:.2} s, of {}.", seconds.len());
        }
    };
    line("From a supervisor's start within a window to mining again", mining);
    line("From a child's death to its successor holding the weights, back-off and 0.2 s of pretended load included", ready);
}

/// Drops by cause, from the log.
fn dropped(log: &str) -> BTreeMap<String, u32> {
    let mut causes = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains("A group was dropped.")) {
        let cause = line.split("cause=").nth(1).and_then(|rest| rest.split(" detail=").next()).unwrap_or("without a cause");
        *causes.entry(cause.to_owned()).or_default() += 1;
    }
    causes
}
