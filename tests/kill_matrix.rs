//! The kill matrix: every phase of a window × every signal × every kind of process. After each, the sentence of
//! [`grail_tests::oracle`] must hold, and a window after the fault must be mined.
//!
//! `make test` plays one cell per phase and some that bite; `GRAIL_FAULTS=whole` (`make test-faults`) plays all of them. A word on
//! the command line filters by name, as in `cargo test --test kill_matrix -- spooling-kill`. `GRAIL_FAULTS_CAST=real` plays with
//! the real programs; without it workers are fakes, and launcher and server too except where they are the victims of the whole
//! form.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use grail_fakes::Script;
use grail_process::Identity;
use grail_tests::side_by_side::{Scenario, play};
use grail_tests::{Cast, Host, Running, lives, oracle, points};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Windows of twelve seconds: eight to mine and upload in, four of slack.
const BLOCK_SECONDS: f64 = 0.4;
/// Seconds from the start of the host to its first window.
const LEAD: f64 = 4.0;
/// A stopped supervisor goes on after this; nobody watches it.
const SUPERVISOR_STOPPED: Duration = Duration::from_millis(2500);
/// A stopped child goes on after this, if nobody has noticed and ended it.
const CHILD_STOPPED: Duration = Duration::from_millis(7500);
const REACH: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Spawn,
    Handshake,
    Idle,
    Generating,
    Proving,
    Signing,
    Spooling,
    Closing,
    Uploading,
    ReadBack,
    Reloading,
    ShuttingDown,
}

use Phase::*;
const PHASES: [Phase; 12] =
    [Spawn, Handshake, Idle, Generating, Proving, Signing, Spooling, Closing, Uploading, ReadBack, Reloading, ShuttingDown];

impl Phase {
    /// The failpoint's name, and this phase's in the table.
    fn name(self) -> &'static str {
        match self {
            Spawn => "spawn",
            Handshake => "handshake",
            Idle => "idle",
            Generating => "generating",
            Proving => "proving",
            Signing => "signing",
            Spooling => "spooling",
            Closing => "closing",
            Uploading => "uploading",
            ReadBack => "read-back",
            Reloading => "reloading",
            ShuttingDown => "shutting-down",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Supervisor,
    Launcher,
    Server,
    Worker,
}

const VICTIMS: [Victim; 4] = [Victim::Supervisor, Victim::Launcher, Victim::Server, Victim::Worker];
const SIGNALS: [(Signal, &str); 3] = [(Signal::SIGKILL, "kill"), (Signal::SIGTERM, "term"), (Signal::SIGSTOP, "stop")];

impl Victim {
    fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Launcher => "launcher",
            Self::Server => "server",
            Self::Worker => "worker",
        }
    }

    /// How its command line is told from the others'.
    fn is(self, line: &str) -> bool {
        match self {
            Self::Supervisor => line.contains("--config") && line.contains(" run"),
            Self::Launcher => line.contains("--backend"),
            Self::Server => line.contains(" server ") || line.contains(" embedded --model-path"),
            Self::Worker => line.contains("--slot 1"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    phase: Phase,
    signal: (Signal, &'static str),
    victim: Victim,
}

impl Cell {
    fn name(&self) -> String {
        format!("{}-{}-{}", self.phase.name(), self.signal.1, self.victim.name())
    }

    fn cast(&self, whole: bool) -> Cast {
        if std::env::var("GRAIL_FAULTS_CAST").is_ok_and(|cast| cast == "real") {
            return Cast::Real;
        }
        let theirs = matches!(self.victim, Victim::Launcher | Victim::Server);
        if whole && theirs { Cast::RealLauncher } else { Cast::Fakes }
    }
}

fn main() -> ExitCode {
    let whole = std::env::var("GRAIL_FAULTS").is_ok_and(|form| form == "whole");
    let cells = if whole { every_cell() } else { short_form() };
    points::supervisor();
    println!("The kill matrix, {} of 144 cells: phase-signal-process, what became of it, seconds.", cells.len());
    println!("Fakes stand in for the proof workers (no model), and a local S3 server and a block clock for the network.");
    let scenarios = cells.into_iter().map(|cell| Scenario::new(cell.name(), move || run(cell, whole))).collect();
    play(scenarios, if whole { 4 } else { 6 })
}

fn every_cell() -> Vec<Cell> {
    let pairs = PHASES.iter().flat_map(|phase| SIGNALS.iter().map(move |signal| (*phase, *signal)));
    pairs.flat_map(|(phase, signal)| VICTIMS.map(|victim| Cell { phase, signal, victim })).collect()
}

/// Every phase, every signal and every process at least once, and the supervisor's death wherever it would cost groups.
fn short_form() -> Vec<Cell> {
    let [term, stop] = [SIGNALS[1], SIGNALS[2]];
    let kill = SIGNALS[0];
    use Victim::*;
    let cells = [
        (Spawn, kill, Worker),
        (Handshake, stop, Worker),
        (Idle, kill, Server),
        (Generating, kill, Launcher),
        (Generating, stop, Server),
        (Proving, kill, Worker),
        (Proving, stop, Supervisor),
        (Signing, term, Server),
        (Spooling, kill, Supervisor),
        (Closing, kill, Supervisor),
        (Uploading, kill, Supervisor),
        (ReadBack, kill, Supervisor),
        (Reloading, kill, Worker),
        (ShuttingDown, term, Launcher),
    ];
    cells.map(|(phase, signal, victim)| Cell { phase, signal, victim }).into()
}

fn spooled(status: &Value) -> u64 {
    status["window"]["spooled"].as_u64().unwrap_or(0)
}

/// The newest window with a file, as the running supervisor tells it.
fn newest_upload(status: &Value) -> Option<u64> {
    let finished = status["finished"].as_array()?;
    finished.iter().filter(|window| window["outcome"] == "uploaded").filter_map(|window| window["window"].as_u64()).max()
}

fn run(cell: Cell, whole: bool) -> Result<String, String> {
    let script = Script { job_seconds: 0.15, completion_seconds: 0.1, load_seconds: 0.1, ..Script::default() };
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(cell.cast(whole), &script).with_failpoints();
    let published = host.publish("checkpoint-a", &[]);
    if published.code != 0 {
        return Err(published.stderr);
    }
    let mut miner = host.start(&["run"]);
    let outcome = strike(cell, &host, &mut miner).and_then(|struck| Ok((struck, finish(cell, &host, miner)?)));
    let told = outcome.map(|(struck, account)| format!("{struck}{account}"));
    told.map_err(|why| format!("{why}\n{}", host.log()))
}

/// Brings the supervisor into the phase, sends the signal, and lets it go on. Tells what became of a stopped process.
fn strike(cell: Cell, host: &Host, miner: &mut Running) -> Result<&'static str, String> {
    let point = cell.phase.name();
    host.await_status("a first durable group", miner, 120, |status| spooled(status) >= 1);
    if cell.phase == Idle {
        host.await_status("an uploaded window", miner, 120, |status| newest_upload(status).is_some());
    }
    points::arm(host, point);
    match cell.phase {
        // A worker of its own makes the supervisor spawn; the victim is another process, or this worker's next life.
        Spawn | Handshake => signal(&one(host, Victim::Worker)?, Signal::SIGKILL)?,
        Reloading => {
            let published = host.publish("checkpoint-b", &[]);
            if published.code != 0 {
                return Err(published.stderr);
            }
        }
        ShuttingDown => miner.signal(Signal::SIGTERM),
        _ => {}
    }
    points::await_reached(host, point, REACH)?;
    let victim = one(host, cell.victim)?;
    signal(&victim, cell.signal.0)?;
    if cell.signal.0 != Signal::SIGSTOP {
        points::release(host, point);
        return Ok("");
    }
    // Stopped a moment in the phase, then while the others go on.
    std::thread::sleep(Duration::from_millis(200));
    points::release(host, point);
    let patience = if cell.victim == Victim::Supervisor { SUPERVISOR_STOPPED } else { CHILD_STOPPED };
    let end = Instant::now() + patience;
    while Instant::now() < end && lives(&victim) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let noticed = !lives(&victim);
    // Nobody may have noticed: then it goes on where it was.
    let _ = victim.signal(Signal::SIGCONT);
    Ok(if noticed { "was replaced; " } else { "went on; " })
}

fn signal(process: &Identity, signal: Signal) -> Result<(), String> {
    match process.signal(signal) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{process:?} has ended and cannot be sent {signal}")),
        Err(error) => Err(format!("{process:?} cannot be sent {signal}: {error}")),
    }
}

/// The process of a kind; it may be between two lives.
fn one(host: &Host, victim: Victim) -> Result<Identity, String> {
    let end = Instant::now() + REACH;
    while Instant::now() < end {
        let found = host.processes().into_iter().find(|(_, line)| victim.is(line));
        if let Some((process, _)) = found {
            return Ok(process);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(format!("there is no {}: {:?}", victim.name(), host.processes()))
}

/// Sees that mining goes on after the fault, ends in order, and judges.
fn finish(cell: Cell, host: &Host, mut miner: Running) -> Result<String, String> {
    let struck = host.status()["window"]["window"].as_u64().unwrap_or(0);
    let dies = cell.victim == Victim::Supervisor && cell.signal.0 != Signal::SIGSTOP;
    if dies || cell.phase == ShuttingDown {
        let ended = miner.finish(Duration::from_secs(120));
        let killed = cell.victim == Victim::Supervisor && cell.signal.0 == Signal::SIGKILL;
        if !killed && ended.code != 0 {
            return Err(format!("the supervisor ended with {}", ended.code));
        }
        oracle::no_process_is_left(host)?;
        miner = host.start(&["run"]);
    }
    let pid = miner.pid();
    let goes_on = |status: &Value| status["pid"] == pid && newest_upload(status).is_some_and(|window| window >= struck);
    host.await_status("a window after the fault", &mut miner, 120, goes_on);
    miner.signal(Signal::SIGTERM);
    let ended = miner.finish(Duration::from_secs(120));
    if ended.code != 0 {
        return Err(format!("the supervisor ended with {}", ended.code));
    }
    oracle::judge(host, &[]).map(|account| account.to_string())
}
