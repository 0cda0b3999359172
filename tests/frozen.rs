//! Disks, pipes and terminals that take nothing for as long as they like: a window that is under way is uploaded all the same, and a
//! stop keeps to its budget. A word on the command line filters.
//!
//! A process that waits for a frozen file system cannot even be killed: the kernel keeps it until the disk lets go of its thread. Its
//! first thread is gone, then, and so is everything that it started; that is what is asked for here.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::io::{PipeReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use grail_fakes::Script;
use grail_process::proc;
use grail_tests::side_by_side::{Scenario, play};
use grail_tests::{Cast, Host, Running, lives, oracle, points, process, send};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use serde_json::Value;

/// Windows of twelve seconds.
const BLOCK_SECONDS: f64 = 0.4;
const LEAD: f64 = 5.0;
/// Seconds that a stop may take by the settings, and how long it is waited for: it would never come.
const BUDGET: &str = "8";
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    // Built before any host's clock starts.
    points::supervisor();
    println!("Fakes stand in for workers and generation server.");
    let scenarios = vec![
        Scenario::new("state-folder-on-a-frozen-disk", frozen_state),
        Scenario::new("output-that-nobody-reads", unread_output),
        Scenario::new("log-and-status-that-cannot-be-opened", || fifos(&["supervisor.log", "status.json.new"])),
        Scenario::new("reader-that-gives-no-answer", silent_reader),
        Scenario::new("stop-that-does-not-come-to-its-end", endless_stop),
    ];
    play(scenarios, 4)
}

fn host() -> Host {
    let script = Script { job_seconds: 0.15, completion_seconds: 0.1, load_seconds: 0.1, ..Script::default() };
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Fakes, &script).set("shutdown.budget_seconds", BUDGET);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    host
}

/// Seconds until it was so, and the longest of them for which the machine stood still.
fn await_true(what: &str, host: &Host, look: impl Fn() -> bool) -> (f64, f64) {
    let (began, mut before, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
    while !look() {
        assert!(began.elapsed() < LIMIT, "{what}: not within {LIMIT:?}\n{}", host.log());
        std::thread::sleep(Duration::from_millis(20));
        longest = longest.max(before.elapsed());
        before = Instant::now();
    }
    (began.elapsed().as_secs_f64(), longest.as_secs_f64())
}

fn spooled(status: &Value) -> bool {
    status["window"]["spooled"].as_u64() >= Some(2)
}

/// Another file in the bucket than there are now.
fn await_upload(host: &Host) {
    let before = host.uploaded().len();
    await_true("a window's file in the bucket", host, || host.uploaded().len() > before);
}

/// Every file in the bucket is one that a validator accepts.
fn accepted(host: &Host) -> Result<(), String> {
    let window = |path: &PathBuf| path.file_stem()?.to_str()?.rsplit('-').next()?.parse().ok();
    let windows: Vec<u64> = host.uploaded().iter().filter_map(window).collect();
    oracle::files_are_accepted(host, &windows, &[])
}

/// A file system of its own, which can be frozen. Dropped, it is thawed and goes.
struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts one at `folder`, from an image beside it.
    fn mount(folder: &Path) -> Result<Self, String> {
        let image = folder.with_extension("img");
        std::fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).map_err(|error| error.to_string())?;
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        let (image, at) = (image.display().to_string(), folder.display().to_string());
        call("mkfs.ext4", &["-q", &image])?;
        call("mount", &["-o", "loop", &image, &at])?;
        let disk = Self { folder: folder.to_owned() };
        disk.freeze().and_then(|()| disk.thaw()).map(|()| disk)
    }

    fn freeze(&self) -> Result<(), String> {
        call("fsfreeze", &["-f", &self.folder.display().to_string()])
    }

    fn thaw(&self) -> Result<(), String> {
        call("fsfreeze", &["-u", &self.folder.display().to_string()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It is thawed already, as a rule.
        let _ = self.thaw();
        if let Err(error) = call("umount", &["--lazy", &self.folder.display().to_string()]) {
            eprintln!("{error}");
        }
    }
}

fn call(program: &str, arguments: &[&str]) -> Result<(), String> {
    let done = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if done.status.success() { Ok(()) } else { Err(format!("{program} {arguments:?}: {said}")) }
}

/// The disk of spool, journal, status and log freezes in mid-window.
fn frozen_state() -> Result<String, String> {
    let host = host();
    // Dropped after the disk: it cannot be reaped before that is thawed.
    let mut miner: Option<Running> = None;
    let disk = match Disk::mount(&host.path().join("state")) {
        Ok(disk) => disk,
        Err(why) => {
            grail_tests::skipped("frozen disk", &format!("this kernel makes no file system that can be frozen: {why}"));
            return Ok("skipped".into());
        }
    };
    let running = miner.insert(host.start(&["run"]));
    host.await_status("two durable groups", running, 120, spooled);
    disk.freeze()?;
    await_upload(&host);
    let first = process(running.pid());
    running.signal(Signal::SIGTERM);
    let (seconds, stood_still) = await_true("the end of the stop", &host, || !lives(&first));
    oracle::no_process_is_left(&host)?;
    disk.thaw()?;
    let finished = miner.take().unwrap().finish(LIMIT);
    // With this disk a stop takes its whole budget. On a machine that stands still at its end, the backstop may come first.
    if finished.code != 0 && !(finished.code == 70 && stood_still > 1.0) {
        return Err(format!("it ended with {}\n{}", finished.code, host.log()));
    }
    accepted(&host)?;
    Ok(format!("a window uploaded while it was frozen, stopped in {seconds:.1} s"))
}

/// A pipe that is full, and whose other end is open.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = OFlag::from_bits_truncate(fcntl(&writer, FcntlArg::F_GETFL).unwrap());
    fcntl(&writer, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'\n'; 4096]).is_ok() {}
    while writer.write(b"\n").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(flags)).unwrap();
    (reader, writer)
}

/// As behind a log driver that stands still, or a terminal after Ctrl-S.
fn unread_output() -> Result<String, String> {
    let host = host();
    let (_unread, writer) = full_pipe();
    let output = || Stdio::from(writer.try_clone().unwrap());
    let mut miner = host.start_into(&["run"], output(), output());
    host.await_status("two durable groups", &mut miner, 120, spooled);
    await_upload(&host);
    miner.signal(Signal::SIGTERM);
    let began = Instant::now();
    let finished = miner.finish(LIMIT);
    let seconds = began.elapsed().as_secs_f64();
    let log = std::fs::read_to_string(host.path().join("state/supervisor.log")).unwrap();
    if finished.code != 0 || !log.contains("The supervisor ends.") {
        return Err(format!("it ended with {}\n{log}", finished.code));
    }
    oracle::no_process_is_left(&host)?;
    accepted(&host)?;
    Ok(format!("uploaded, stopped in {seconds:.1} s, and the log file has every line"))
}

/// Files of the state folder that hold up whoever opens them.
fn fifos(names: &[&str]) -> Result<String, String> {
    let host = host();
    let state = host.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    for name in names {
        nix::unistd::mkfifo(&state.join(name), Mode::S_IRWXU).unwrap();
    }
    let miner = host.start(&["run"]);
    await_upload(&host);
    miner.signal(Signal::SIGTERM);
    let began = Instant::now();
    let finished = miner.finish(LIMIT);
    let seconds = began.elapsed().as_secs_f64();
    if finished.code != 0 || !finished.stderr.contains("The status file cannot be written.") {
        return Err(format!("it ended with {}\n{}", finished.code, host.log()));
    }
    oracle::no_process_is_left(&host)?;
    accepted(&host)?;
    Ok(format!("uploaded, stopped in {seconds:.1} s, and told on standard error"))
}

/// A checkpoint's reader gives no answer, as behind a template that computes for long: the status stays fresh meanwhile, and a stop
/// is obeyed.
fn silent_reader() -> Result<String, String> {
    let host = host();
    let miner = host.start(&["run"]);
    let reads = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains("read-checkpoint"))
    };
    let reader = || proc::children(miner.pid().cast_unsigned()).unwrap_or_default().into_iter().find(reads);
    await_true("a reader of the checkpoint", &host, || reader().is_some());
    let Some(reader) = reader().map(|pid| process(pid.cast_signed())) else {
        return Err(format!("the reader was gone at once\n{}", host.log()));
    };
    send(&reader, Signal::SIGSTOP);
    let written = || std::fs::metadata(host.path().join("state/status.json")).and_then(|file| file.modified()).ok();
    for _ in 0..3 {
        let before = written();
        await_true("another status", &host, || written() != before);
        if !lives(&reader) {
            return Err(format!("the reader was gone before the status was written three times\n{}", host.log()));
        }
    }
    miner.signal(Signal::SIGTERM);
    let began = Instant::now();
    let (finished, seconds) = (miner.finish(LIMIT), began.elapsed().as_secs_f64());
    // A stop that does not come to its end within the budget has another code.
    if finished.code != 0 || lives(&reader) {
        return Err(format!(
            "it ended with {} after {seconds:.1} s, the reader lives: {}\n{}",
            finished.code,
            lives(&reader),
            host.log()
        ));
    }
    oracle::no_process_is_left(&host)?;
    Ok(format!("status written meanwhile, stopped in {seconds:.1} s"))
}

/// Something holds up the stop itself.
fn endless_stop() -> Result<String, String> {
    let host = host().with_failpoints();
    let mut miner = host.start(&["run"]);
    host.await_status("a durable group", &mut miner, 120, spooled);
    points::arm(&host, "shutting-down");
    miner.signal(Signal::SIGTERM);
    points::await_reached(&host, "shutting-down", LIMIT)?;
    let began = Instant::now();
    let finished = miner.finish(LIMIT);
    let seconds = began.elapsed().as_secs_f64();
    if finished.code != 70 || !finished.stderr.contains("the stop did not come to its end within its budget") {
        return Err(format!("it ended with {}\n{}", finished.code, host.log()));
    }
    oracle::no_process_is_left(&host)?;
    Ok(format!("ended {seconds:.1} s later with its children"))
}
