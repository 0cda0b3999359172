//! Drives the real programs as a user would: real processes, sockets, files and exit codes, each with a time limit.
//! Everything a test starts is ended by pid.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

pub mod heartbeat;
pub mod oracle;
pub mod points;
#[cfg(test)]
mod scripts;
pub mod set_clock;
pub mod side_by_side;
pub mod testnet;

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use grail_fakes::{LyingBucket, MINER_BUCKET, READ_PAIR, Script, WRITE_PAIR};
use grail_process::proc::{self, ProcessFacts};
use grail_process::{Identity, Liveness};
use grail_settings::{Form, TABLE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Time for the kernel to let go of what was killed.
const GONE: Duration = Duration::from_secs(30);

/// The workspace's root.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace").to_path_buf()
}

/// Builds programs of the workspace: with the features that the whole of it has, so that nothing is built twice.
fn build(what: &[&str]) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--workspace"]).args(what).current_dir(workspace());
    // What cargo tells a test about its package would make build scripts that look at it (ring's) run again, and with them
    // half the workspace.
    let of_package = |name: &std::ffi::OsStr| {
        let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "OUT_DIR"];
        name.to_str().is_some_and(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
    };
    std::env::vars_os().filter(|(name, _)| of_package(name)).for_each(|(name, _)| {
        cargo.env_remove(name);
    });
    let built = cargo.status().expect("cargo builds the programs");
    assert!(built.success(), "the programs do not build: cargo build {what:?}");
}

/// `target/<profile>` of the tests.
fn target() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it lies");
    test.ancestors().nth(2).expect("target/<profile>/deps/<test>").to_path_buf()
}

/// The profile that the tests were built in.
fn profile() -> &'static str {
    if target().ends_with("release") { "release" } else { "dev" }
}

/// The folder of the programs, built in the profile of the tests.
pub fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        build(&["--bins", "--profile", profile()]);
        target()
    })
}

/// Mining tests use both cores and a clock; two at once would make each other late.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that something is not tested here, and why, past the harness, which keeps what a test that passes prints. `make test` lists
/// it again at its end; CI fails on what `tests/expected-skips.txt` does not have.
pub fn skipped(what: &str, why: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("SKIPPED {what}: {why}\n").as_bytes());
}

/// The wall clock in Unix seconds.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64()
}

/// A host of its own: state folder, buckets, cache and configuration in one temporary folder.
pub struct Host {
    folder: tempfile::TempDir,
    extra: Vec<(String, String)>,
    settings: Vec<String>,
    program: PathBuf,
    begun: Instant,
}

/// Which programs the supervisor finds as its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cast {
    /// Fake workers, a fake launcher with a fake generation server.
    Fakes,
    /// Fake workers; the real launcher with the embedded engine.
    RealLauncher,
    /// The real programs.
    Real,
}

/// What a finished command left.
#[derive(Debug)]
pub struct Finished {
    /// Exit code, -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Host {
    /// A host whose block 30 comes `lead` seconds from now, with blocks of `block_seconds`.
    pub fn new(block_seconds: f64, lead: f64) -> Self {
        // Building may take minutes, and the clock of the host starts below.
        programs();
        heartbeat::begin();
        let folder = tempfile::Builder::new().prefix("grail").tempdir().expect("a temporary folder");
        let begun = Instant::now();
        let genesis = now() + lead - 30.0 * block_seconds;
        let demo = workspace().join("demo/gsm8k");
        let text = format!(
            "[state]\nfolder = 'state'\n[wallet]\ndevelopment = '//Alice'\n[chain]\nnetwork = 'local'\ngenesis = {genesis:.3}\n\
             block_seconds = {block_seconds:.3}\n[storage]\nlocal_folder = 'buckets'\nlocal_address = '127.0.0.1:{port}'\n\
             [checkpoints]\ncache = 'cache'\n[environment]\ndataset = {demo:?}\n[generation]\nbackend = 'embedded'\n\
             max_model_length = 2048\n[proof]\ndevice = 'cpu'\ncpu_slots = 2\n",
            port = free_port()
        );
        std::fs::write(folder.path().join("host.toml"), text).expect("the configuration is written");
        Self { folder, extra: Vec::new(), settings: Vec::new(), program: programs().join("grail-supervisor"), begun }
    }

    /// Whether a window may have been lost because the machine stood still: for more than a second since this host was made.
    pub fn stood_still(&self) -> bool {
        heartbeat::stood_still(self.begun) > Duration::from_secs(1)
    }

    /// Puts these programs into `programs.folder`; fakes act by `script`.
    pub fn cast(self, cast: Cast, script: &Script) -> Self {
        let folder = self.path().join("programs");
        std::fs::create_dir_all(&folder).expect("a folder for the programs");
        let (worker, launcher) = match cast {
            Cast::Fakes => ("fake-worker", "fake-launcher"),
            Cast::RealLauncher => ("fake-worker", "grail-gen-launcher"),
            Cast::Real => ("grail-proof-worker", "grail-gen-launcher"),
        };
        for (role, program) in [("grail-proof-worker", worker), ("grail-gen-launcher", launcher)] {
            std::os::unix::fs::symlink(programs().join(program), folder.join(role)).expect("a link to a program");
        }
        script.write(&folder).expect("a script");
        self.set("programs.folder", &folder.display().to_string())
    }

    /// From their next life on, the fakes act by this script.
    pub fn rewrite(&self, script: &Script) {
        script.write(&self.path().join("programs")).expect("a script");
    }

    /// Overrides a setting of every command.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.extend(["--set".to_owned(), format!("{key}={value}")]);
        self
    }

    /// Runs the supervisor that can be held at failpoints (see [`points`]).
    pub fn with_failpoints(mut self) -> Self {
        self.program = points::supervisor().to_path_buf();
        std::fs::create_dir_all(points::folder(&self)).expect("a folder for the failpoints");
        let folder = points::folder(&self).display().to_string();
        self.variable("GRAIL_FAILPOINTS", &folder)
    }

    /// Every command is started by a shell that does this first, such as `ulimit -n 64`.
    pub fn after(mut self, shell: &str) -> Self {
        let path = self.path().join("started-by-a-shell");
        write_program(&path, &format!("{shell}\nexec '{}' \"$@\"", self.program.display()));
        self.program = path;
        self
    }

    /// Uses `bucket`, which must lie over this host's `buckets` folder, instead of the supervisor's own local server.
    pub fn with_bucket(self, bucket: &LyingBucket) -> Self {
        let host = self
            .set("storage.local_folder", "")
            .set("storage.endpoint", &bucket.endpoint())
            .set("storage.account_id", MINER_BUCKET)
            .set("storage.bucket", MINER_BUCKET);
        host.set("storage.read_access_key_id", READ_PAIR.0)
            .set("storage.read_secret_access_key", READ_PAIR.1)
            .set("storage.write_access_key_id", WRITE_PAIR.0)
            .set("storage.write_secret_access_key", WRITE_PAIR.1)
    }

    /// Adds a variable to the environment of every command.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.extra.push((name.into(), value.into()));
        self
    }

    /// The host's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The trainer's bucket as a folder.
    pub fn trainer_bucket(&self) -> PathBuf {
        self.path().join("buckets/grail-trainer")
    }

    /// The miner's bucket as a folder.
    pub fn miner_bucket(&self) -> PathBuf {
        self.path().join("buckets/grail-miner")
    }

    /// Window files in the miner's bucket.
    pub fn uploaded(&self) -> Vec<PathBuf> {
        let folder = self.miner_bucket().join("grail/windows");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "parquet")).collect();
        files.sort();
        files
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // Tests that were started by `nohup` would hand that on, and SIGHUP would end nothing.
        if grail_process::limits::ignores(nix::sys::signal::Signal::SIGHUP) {
            command = Command::new("env");
            command.arg("--default-signal=HUP").arg(&self.program);
        }
        // Overrides stand together behind the verb: of a repeated flag the parser keeps only those on one side of it.
        let (verb, rest) = arguments.split_first().expect("a command has a verb");
        let words = self.settings.iter().cloned().chain(rest.iter().map(|word| (*word).to_owned())).collect();
        let (words, secrets) = secrets_apart(words);
        command.arg("--config").arg(self.path().join("host.toml")).arg(verb).args(words);
        command.current_dir(self.path());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.path());
        command.envs(self.extra.iter().cloned()).envs(secrets).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.start(arguments).finish(Duration::from_secs(240))
    }

    /// Starts a command; its output goes to files.
    pub fn start(&self, arguments: &[&str]) -> Running {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = |kind: &str| self.path().join(format!("{number}.{kind}"));
        let file = |kind: &str| std::fs::File::create(path(kind)).expect("an output file");
        let child = self.command(arguments).stdout(file("out")).stderr(file("err")).spawn().expect("the supervisor starts");
        Running { child, stdout: path("out"), stderr: path("err") }
    }

    /// Starts a command whose output goes where the test wants it.
    pub fn start_into(&self, arguments: &[&str], stdout: Stdio, stderr: Stdio) -> Running {
        let child = self.command(arguments).stdout(stdout).stderr(stderr).spawn().expect("the supervisor starts");
        let nowhere = self.path().join("not kept");
        Running { child, stdout: nowhere.clone(), stderr: nowhere }
    }

    /// Everything that every command on this host has printed on standard error, in the order of their starts.
    pub fn log(&self) -> String {
        let entries = std::fs::read_dir(self.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut logs: Vec<(u32, PathBuf)> = entries
            .filter(|path| path.extension().is_some_and(|kind| kind == "err"))
            .filter_map(|path| Some((path.file_stem()?.to_str()?.parse().ok()?, path)))
            .collect();
        logs.sort();
        logs.iter().map(|(_, path)| read(path)).collect()
    }

    /// Processes of this host: everything that was started with a path in its folder, with its command line.
    pub fn processes(&self) -> Vec<(Identity, String)> {
        let folder = self.path().display().to_string();
        let process = |facts: &ProcessFacts| {
            let line = std::fs::read(format!("/proc/{}/cmdline", facts.pid)).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // The line is that of whoever had the number when it was read.
            let process = Identity::seen(facts).ok().filter(lives)?;
            line.contains(&folder).then_some((process, line))
        };
        proc::all().expect("/proc can be read").iter().filter_map(process).collect()
    }

    /// Publishes a checkpoint of the demo.
    pub fn publish(&self, checkpoint: &str, more: &[&str]) -> Finished {
        let directory = workspace().join("demo").join(checkpoint);
        let directory = directory.to_str().expect("a path in UTF-8");
        let mut arguments =
            vec!["publish-checkpoint", directory, "--max-tokens", "192", "--temperature", "0.7", "--top-p", "0.95"];
        arguments.extend(more);
        self.run(&arguments)
    }

    /// The supervisor's status, or null while there is none.
    pub fn status(&self) -> Value {
        let text = std::fs::read(self.path().join("state/status.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Waits until the status satisfies `wanted`; a timeout shows the status and the log.
    pub fn await_status(&self, what: &str, running: &mut Running, limit: u64, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(limit);
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            let ended = running.child.try_wait().expect("the supervisor can be asked");
            assert!(
                Instant::now() < end && ended.is_none(),
                "{what}: not within {limit} s (ended: {ended:?})\n{status:#}\n{}",
                running.output()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Secrets have no place on a command line, and are refused there: `--set` of a secret that has a variable becomes that variable.
fn secrets_apart(words: Vec<String>) -> (Vec<String>, Vec<(&'static str, String)>) {
    let secret = |word: &str| {
        let (key, value) = word.split_once('=')?;
        let setting = TABLE.iter().find(|setting| setting.key == key && setting.form == Form::Secret && !value.is_empty())?;
        Some((*setting.variables.first()?, value.to_owned()))
    };
    let (mut kept, mut variables) = (Vec::new(), Vec::new());
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        match words.peek().and_then(|next| secret(next)).filter(|_| word == "--set") {
            Some(variable) => {
                variables.push(variable);
                words.next();
            }
            None => kept.push(word),
        }
    }
    (kept, variables)
}

/// A started command. Dropping it kills it.
pub struct Running {
    child: std::process::Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// The command's process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a signal to the command itself.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the command lives");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the command can be asked").is_some()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        let mut text = String::new();
        for path in [&self.stdout, &self.stderr] {
            let _ = write!(text, "--- {}\n{}", path.display(), read(path));
        }
        text
    }

    /// Waits for the end.
    pub fn finish(mut self, limit: Duration) -> Finished {
        let status = self.wait(limit);
        Finished { code: status.code().unwrap_or(-1), stdout: read(&self.stdout), stderr: read(&self.stderr) }
    }

    fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the command can be asked") {
                return status;
            }
            assert!(Instant::now() < end, "the command did not end within {limit:?}\n{}", self.output());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        let _ = file.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A port that nobody uses at this moment, and nobody will be given before it is used: below those that the kernel gives out by
/// itself, and another one each time.
pub fn free_port() -> u16 {
    static NEXT: Mutex<Option<u16>> = Mutex::new(None);
    let range = 10_000..20_000_u16;
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    // Neighbours begin at different places.
    let begin = || range.start + (std::process::id().wrapping_mul(97) % 10_000) as u16;
    let port = grail_process::ports::free(range.clone(), next.unwrap_or_else(begin)).expect("a port");
    *next = Some(port + 1);
    port
}

/// Writes a program that a shell runs. Another process writes it: a file that this one had open for writing could not be executed
/// while a child that another thread just started still has it.
pub fn write_program(path: &Path, script: &str) {
    let write = "printf '#!/bin/sh\n%s\n' \"$2\" > \"$1\" && chmod 755 \"$1\"";
    let written = Command::new("/bin/sh").args(["-c", write, "sh"]).arg(path).arg(script).status();
    assert!(written.expect("a shell").success(), "{} cannot be written", path.display());
}

/// The process that has this pid now. A number alone may be another process's a moment later, beside a neighbour that starts many.
pub fn process(pid: i32) -> Identity {
    Identity::of(pid.cast_unsigned()).unwrap_or_else(|error| panic!("process {pid}: {error}"))
}

/// Whether exactly this process exists and is no zombie.
pub fn lives(process: &Identity) -> bool {
    process.standing().is_ok_and(|standing| standing == Liveness::Alive)
}

/// Sends exactly this process a signal; it must live.
pub fn send(process: &Identity, signal: Signal) {
    assert!(process.signal(signal).unwrap_or_else(|error| panic!("{process:?}: {error}")), "{process:?} has ended");
}

/// The process and everything below it, by parent ids. A parent is older than its children: a number that was given out again
/// while the list was read makes nobody a relative.
pub fn tree(root: i32) -> Vec<Identity> {
    let all = proc::all().expect("/proc can be read");
    let mut found: Vec<&ProcessFacts> = all.iter().filter(|process| process.pid == root.cast_unsigned()).collect();
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(all.iter().filter(|process| process.parent == parent.pid && process.started >= parent.started));
        next += 1;
    }
    found.into_iter().filter_map(|facts| Identity::seen(facts).ok()).collect()
}

/// Asserts that every process of an earlier [`tree`] is gone, with a moment for the kernel.
pub fn assert_all_gone(processes: &[Identity]) {
    let end = Instant::now() + GONE;
    loop {
        let left: Vec<String> = processes.iter().filter(|process| lives(process)).map(described).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "orphans: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process with everything that says whose it is.
fn described(process: &Identity) -> String {
    let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    format!("{line:?}: {:?}, started {}", proc::facts(process.pid), process.started)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `scripts/skips.py` says of a log, as in CI and elsewhere.
    fn judged(log: &str, ci: &str) -> (Option<i32>, String) {
        let folder = tempfile::tempdir().unwrap();
        let (path, known) = (folder.path().join("log"), folder.path().join("known"));
        std::fs::write(&path, log).unwrap();
        std::fs::write(&known, "# why\nSKIPPED known: *\n* skipped: of [no] matter\n").unwrap();
        let script = workspace().join("scripts/skips.py");
        let said = Command::new("python3").arg(script).args([&path, &known]).env("CI", ci).output().unwrap();
        (said.status.code(), String::from_utf8(said.stdout).unwrap() + &String::from_utf8(said.stderr).unwrap())
    }

    #[test]
    fn every_skip_is_listed_and_an_unexpected_one_fails_in_ci() {
        let fine = "test a ... ok\nSKIPPED known: no such thing\ntest b ... SKIPPED known: neither\n    12 skipped: of [no] matter\n\
                    window 30 skipped\n5 passed, 0 failed, 0 skipped\n";
        let (code, said) = judged(fine, "true");
        assert_eq!(code, Some(0), "{said}");
        for line in ["3 skipped, 0 of them", "  SKIPPED known: no such thing", "  SKIPPED known: neither", "12 skipped: of [no]"]
        {
            assert!(said.contains(line), "{line:?} is missing in\n{said}");
        }
        for skip in
            ["SKIPPED new: why", "grail/file.json      SKIPPED: not in this folder", "test c ... ignored", "1 skipped: else"]
        {
            let log = format!("{fine}{skip}\n");
            let ((in_ci, said), (elsewhere, _)) = (judged(&log, "true"), judged(&log, ""));
            assert!(in_ci == Some(1) && said.contains("NOT EXPECTED"), "{skip}: {in_ci:?}\n{said}");
            assert_eq!(elsewhere, Some(0));
        }
    }
}
