//! What happens around a window while it is mined: the host is suspended, its clock is set, the chain falls silent or is
//! reorganised. Against the node of the tests, with fakes for workers and server: whatever happens, nothing late or wrong is
//! uploaded, a window that can be saved is saved, and the next one is mined. A word on the command line filters.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::process::ExitCode;
use std::time::Duration;

use grail_fakes::{LyingBucket, Script};
use grail_node::{Setup, TestNode};
use grail_tests::set_clock::WallClock;
use grail_tests::side_by_side::{Scenario, play};
use grail_tests::{Cast, Host, Running, oracle, points, testnet, tree};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Windows of twelve seconds: eight to mine and upload in, four of slack.
const BLOCK_SECONDS: f64 = 0.4;
const LEAD: f64 = 5.0;
/// The first window with a checkpoint.
const FIRST: u64 = 30;
const SECOND: u64 = 60;
const HOUR: i64 = 3600;

fn main() -> ExitCode {
    // Built before any host's clock starts.
    points::supervisor();
    println!("Fakes stand in for workers and generation server, a node of the tests' own for the chain.");
    let scenarios = vec![
        Scenario::new("suspended-for-more-than-a-window", suspended),
        Scenario::new("clock-set-an-hour-ahead", || clock_set(HOUR)),
        Scenario::new("clock-set-an-hour-back", || clock_set(-HOUR)),
        Scenario::new("chain-stands-still", || silent(|node, still| node.faults(|faults| faults.frozen = still))),
        Scenario::new("chain-is-unreachable", || {
            silent(|node, down| {
                node.faults(|faults| faults.down = down);
                node.drop_connections();
            })
        }),
    ];
    play(scenarios, 6)
}

/// A host with a checkpoint on a node, and its miner.
struct Site {
    host: Host,
    node: TestNode,
    miner: Running,
    _runtime: tokio::runtime::Runtime,
}

impl Site {
    fn open(change: impl FnOnce(&mut Setup), prepare: impl FnOnce(Host) -> Host) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let script = Script { job_seconds: 0.1, completion_seconds: 0.05, load_seconds: 0.1, ..Script::default() };
        let host = prepare(Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Fakes, &script).with_failpoints());
        let host = host.set("beacon.drand", "false");
        let (host, node) = testnet::registered(&runtime, host, change);
        testnet::publish(&host, "checkpoint-a", &[]);
        let miner = host.start(&["run"]);
        Self { host, node, miner, _runtime: runtime }
    }

    fn mining(&mut self) {
        let wanted = |status: &Value| status["window"]["window"] == FIRST && status["window"]["spooled"].as_u64() >= Some(2);
        self.host.await_status("two durable groups of the first window", &mut self.miner, 60, wanted);
    }

    fn ended(&mut self, what: &str, wanted: impl Fn(u64, &str) -> bool) -> Value {
        self.host.await_status(what, &mut self.miner, 60, |status| {
            let finished = status["finished"].as_array().map(Vec::as_slice).unwrap_or_default();
            finished
                .iter()
                .any(|window| wanted(window["window"].as_u64().unwrap_or(0), window["outcome"].as_str().unwrap_or_default()))
        })
    }

    fn uploaded(&mut self, window: u64) -> Value {
        self.ended(&format!("window {window} in the bucket"), |found, outcome| found >= window && outcome == "uploaded")
    }

    fn has_file(&self, window: u64) -> bool {
        let name = format!("window-{window}.parquet");
        self.host.uploaded().iter().any(|path| path.to_string_lossy().ends_with(&name))
    }

    /// Ends it, and judges everything by the oracle. `windows` must be in the bucket.
    fn judged(self, windows: &[u64], more: &[&str]) -> Result<String, String> {
        self.miner.signal(Signal::SIGTERM);
        let code = self.miner.finish(Duration::from_secs(40)).code;
        let judged = if code == 0 { oracle::judge(&self.host, more) } else { Err(format!("it ended with {code}")) };
        match judged {
            Ok(account) if windows.iter().all(|window| account.windows.contains(window)) => Ok(account.to_string()),
            Ok(account) => Err(format!("{windows:?} should be there: {account}\n{}", self.host.log())),
            Err(why) => Err(format!("{why}\n{}", self.host.log())),
        }
    }

    fn said(&self, words: &str) -> Result<(), String> {
        match self.host.log().matches(words).count() {
            1 => Ok(()),
            count => Err(format!("{count} times {words:?}\n{}", self.host.log())),
        }
    }
}

/// The whole family stands still for more than a window, as in a suspend.
fn suspended() -> Result<String, String> {
    let mut site = Site::open(|_| {}, |host| host);
    site.mining();
    let family = tree(site.miner.pid());
    let all = |signal| family.iter().filter(|pid| kill(Pid::from_raw(**pid), signal).is_err()).count();
    all(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs_f64(40.0 * BLOCK_SECONDS));
    all(Signal::SIGCONT);
    site.ended("the window that was slept through", |window, outcome| window == FIRST && outcome == "lost");
    site.uploaded(SECOND);
    if site.has_file(FIRST) { Err("a file came too late".into()) } else { site.judged(&[], &[]) }
}

/// The host's wall clock jumps in mid-window and is set right two windows later.
fn clock_set(seconds: i64) -> Result<String, String> {
    let (mut clock, mut bucket) = (None, None);
    let mut site = Site::open(
        |_| {},
        |host| {
            let (host, wall) = WallClock::of(host);
            let lying = LyingBucket::start(&host.path().join("buckets"), Vec::new()).unwrap();
            let host = host.with_bucket(&lying);
            (clock, bucket) = (Some(wall), Some(lying));
            host
        },
    );
    let clock = clock.unwrap();
    site.mining();
    clock.set_ahead(seconds);
    site.uploaded(FIRST);
    site.uploaded(SECOND);
    site.said("says that it was right before")?;
    clock.set_ahead(0);
    site.judged(&[FIRST, SECOND], &[])
}

/// The chain tells nothing from the middle of a window until its file is uploaded.
fn silent(fault: impl Fn(&TestNode, bool)) -> Result<String, String> {
    let mut site = Site::open(|_| {}, |host| host);
    site.mining();
    fault(&site.node, true);
    let status = site.uploaded(FIRST);
    let age = status["chain"]["age_seconds"].as_f64().unwrap_or(0.0);
    if status["chain"]["stale"] != true || age < 5.0 * BLOCK_SECONDS || status["events"]["chain_silent"] != 1 {
        return Err(format!("the status does not tell of the silence: {status:#}"));
    }
    fault(&site.node, false);
    let status = site.uploaded(SECOND);
    if status["chain"]["stale"] != false || status["events"]["chain_answers_again"] != 1 {
        return Err(format!("the status does not tell that it is over: {status:#}"));
    }
    site.said("The chain has told no new block for several block times")?;
    site.said("The chain tells new blocks again")?;
    site.judged(&[FIRST], &[])
}
