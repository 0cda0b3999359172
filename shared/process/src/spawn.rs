//! One way to start a child, and one way to end it with everything it started.
//!
//! ```text
//!  Spawner::spawn ──▶ spawner thread ──fork──▶ child: setsid · parent-death signal · parent check ──exec──▶ program
//!                     (lives as long as the process, because the kernel sends the parent-death signal
//!                      when the *thread* that forked ends, not when the process does)
//!  Child::stop: TERM to the group → grace → KILL to the group → reap the leader, or say that the kernel does not let it go
//! ```
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpid, getppid, setsid};
use tokio::io::unix::AsyncFd;
use tokio::process::{ChildStderr, ChildStdout};

use crate::bounds::Limits;
use crate::clock;
use crate::environment::FAMILY;
use crate::identity::Identity;
use crate::orphans::OwnProcesses;
use crate::recorder::Recorder;
use crate::records::{self, Record, Records, TOKEN};
use crate::side_thread::SideThread;

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program itself could not be executed.
    #[error("{name}: cannot start {program:?}: {source}; check that the file exists and is executable")]
    Start {
        /// The child's name.
        name: String,
        /// The program's path.
        program: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The thread that starts children is gone, which only happens while the process ends.
    #[error("{name}: the thread that starts children has ended")]
    SpawnerGone {
        /// The child's name.
        name: String,
    },
}

/// What to start. The environment is exactly what is given: nothing is inherited (see [`crate::environment`]).
#[derive(Debug, Clone)]
pub struct Launch {
    /// How logs and errors call the child, for example `proof-worker 0`.
    pub name: String,
    /// The program's path.
    pub program: PathBuf,
    /// Arguments after the program's name.
    pub arguments: Vec<OsString>,
    /// The whole environment of the child.
    pub environment: Vec<(OsString, OsString)>,
}

/// Longest wait for a killed process. One that is still there sits in the kernel, as under a broken GPU driver.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at a process that has ended and is not given out yet.
const REAP_LOOK: Duration = Duration::from_millis(20);
/// Longest wait for a killed process where a thread waits.
const DROP_LIMIT: Duration = Duration::from_millis(500);

type Reply = tokio::sync::oneshot::Sender<io::Result<Started>>;

/// What the spawner thread is asked for, in order.
enum Request {
    Start(Box<Launch>, Option<Limits>, Reply),
    /// Everything before this is done.
    Settle(tokio::sync::oneshot::Sender<()>),
}

/// A process that runs, and its record.
struct Started {
    process: std::process::Child,
    recorded: io::Result<()>,
}

/// Starts children from one thread that lives as long as the process. Clone it freely.
#[derive(Debug, Clone)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
    own: OwnProcesses,
    recorder: Recorder,
}

impl Spawner {
    /// Starts the spawner thread; children leave no record.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start() -> io::Result<Self> {
        Self::with(None)
    }

    /// Starts the spawner thread; every child is written down in `records` before anybody hears of it, until it is reaped.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn recording(records: Records) -> io::Result<Self> {
        Self::with(Some(records))
    }

    fn with(records: Option<Records>) -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel();
        let recorder = Recorder::start(records)?;
        let spawner = Self { requests, own: OwnProcesses::of_this_process()?, recorder: recorder.clone() };
        let own = spawner.own.clone();
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            for request in inbox {
                match request {
                    // The caller may have been cancelled; then the child ends here.
                    Request::Start(launch, limits, reply) => {
                        if let Err(Ok(Started { mut process, .. })) = reply.send(start(*launch, limits, &own, &recorder)) {
                            kill_now(&mut process, &own, &recorder);
                        }
                    }
                    Request::Settle(done) => drop(done.send(())),
                }
            }
        })?;
        Ok(spawner)
    }

    /// Ends every orphan of ours that came to this process as subreaper, and reaps all that ended (see [`crate::orphans`]).
    ///
    /// # Errors
    /// When the kernel does not list children, or refuses a signal.
    pub fn sweep(&self) -> io::Result<Vec<crate::orphans::Orphan>> {
        crate::orphans::sweep(&self.own, &self.recorder)
    }

    /// Kills every child and everything below it, whoever holds it: for an end that cannot wait. Returns how many of them lived
    /// when it looked.
    ///
    /// # Errors
    /// When the kernel does not list processes, or refuses a signal.
    pub fn end_all(&self) -> io::Result<usize> {
        crate::orphans::end_all(&self.own)
    }

    /// What children and all below them carry in their environment as [`FAMILY`]. A child's own children inherit it, so it belongs
    /// into the environment of each.
    pub fn family(&self) -> (OsString, OsString) {
        (FAMILY.into(), self.own.family().into())
    }

    /// The thread for small things around children that a disk may hold up: records, sockets.
    pub fn aside(&self) -> &SideThread {
        self.recorder.aside()
    }

    /// Waits until no start is under way any more, those that nobody waits for included: their children are ended and their
    /// records removed.
    pub async fn settle(&self) {
        let (done, settled) = tokio::sync::oneshot::channel();
        if self.requests.send(Request::Settle(done)).is_ok() {
            let _ = settled.await;
        }
        // Whatever was to be done before it is done.
        let _ = self.recorder.aside().ask(Duration::MAX, || ()).await;
    }

    /// Starts a child in its own session and process group, its output piped, its life tied to this process.
    ///
    /// # Errors
    /// When the program cannot be executed.
    pub async fn spawn(&self, launch: Launch) -> Result<Child, SpawnError> {
        self.begin(launch, None).await
    }

    /// As [`Spawner::spawn`], for a child that the kernel holds to `limits`.
    ///
    /// # Errors
    /// As [`Spawner::spawn`].
    pub async fn spawn_within(&self, limits: Limits, launch: Launch) -> Result<Child, SpawnError> {
        self.begin(launch, Some(limits)).await
    }

    async fn begin(&self, launch: Launch, limits: Option<Limits>) -> Result<Child, SpawnError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let (name, program) = (launch.name.clone(), launch.program.clone());
        let gone = || SpawnError::SpawnerGone { name: name.clone() };
        self.requests.send(Request::Start(Box::new(launch), limits, reply)).map_err(|_| gone())?;
        let failed = |source| SpawnError::Start { name: name.clone(), program: program.clone(), source };
        let started = answer.await.map_err(|_| gone())?.map_err(failed)?;
        Child::adopt(name.clone(), started, self).map_err(failed)
    }
}

/// Runs on the spawner thread: starts, enters and records a child.
fn start(mut launch: Launch, limits: Option<Limits>, own: &OwnProcesses, recorder: &Recorder) -> io::Result<Started> {
    let token = records::token()?;
    launch.environment.push((TOKEN.into(), token.clone().into()));
    if !launch.environment.iter().any(|(name, _)| name == FAMILY) {
        launch.environment.push((FAMILY.into(), own.family().into()));
    }
    let mut held = own.lock();
    let process = execute(&launch, limits)?;
    held.enter(process.id());
    drop(held);
    let recorded = Identity::of(process.id())
        .and_then(|identity| recorder.write(Record { name: launch.name, program: launch.program, identity, token }));
    Ok(Started { process, recorded })
}

/// Takes the status of a process that has ended, and forgets it. The lock makes sure that its number is not used again before
/// it is forgotten. `None` while it runs, sits in the kernel, or is in a debugger's hands: nobody here may wait for that.
fn reap(process: &mut std::process::Child, own: &OwnProcesses, recorder: &Recorder) -> Option<ExitStatus> {
    let mut held = own.lock();
    let status = match process.try_wait() {
        Ok(None) => return None,
        Ok(Some(status)) => status,
        // Somebody else took it; that it has ended is all that is left to know.
        Err(_) => ExitStatus::from_raw(0x7f00),
    };
    held.children.remove(&process.id());
    drop(held);
    recorder.remove(process.id());
    Some(status)
}

/// Kills a process with its group where nothing can wait for it. One that does not end in time is left to the next sweep; its
/// record stays.
fn kill_now(process: &mut std::process::Child, own: &OwnProcesses, recorder: &Recorder) {
    let _ = killpg(Pid::from_raw(process.id().cast_signed()), Signal::SIGKILL);
    let start = clock::monotonic();
    while start.elapsed() < DROP_LIMIT {
        if reap(process, own, recorder).is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    own.lock().children.remove(&process.id());
}

/// From now on this process outlives its parent, whom the kernel would have it follow at once: it has something to end in
/// order first, and must notice by itself that the parent is gone.
///
/// # Errors
/// When the kernel refuses.
pub fn outlive_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(None)?)
}

/// Forks and executes.
#[allow(clippy::disallowed_methods)]
fn execute(launch: &Launch, limits: Option<Limits>) -> io::Result<std::process::Child> {
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments).env_clear().envs(launch.environment.iter().map(|(name, value)| (name, value)));
    // Descriptors of the parent are close-on-exec (the standard library and tokio open them so): only these three pass.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let parent = getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are made (setsid, prctl, getppid, setrlimit) and nothing
    // allocates.
    unsafe {
        command.pre_exec(move || {
            // 1. Own session and group, so that the child can be ended with everything it started.
            setsid()?;
            // 2. The kernel kills the child when the spawner thread, hence this process, ends in any way.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // 3. The parent may have died before step 2 took effect.
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
            }
            // 4. What the kernel holds it to.
            Ok(limits.map_or(Ok(()), Limits::take)?)
        });
    }
    command.spawn()
}

/// The piped output of a child.
#[derive(Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: ChildStdout,
    /// Standard error.
    pub stderr: ChildStderr,
}

/// The end of a process, as a descriptor that becomes readable.
#[derive(Debug)]
pub(crate) struct EndOf(AsyncFd<OwnedFd>);

impl EndOf {
    pub fn process(pid: u32) -> io::Result<Self> {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).ok_or_else(|| io::Error::other("no process has this pid"))?;
        let descriptor = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on, and nothing replaces or closes it meanwhile.
        Ok(Self(unsafe { AsyncFd::register_with_interest(descriptor, tokio::io::Interest::READABLE) }?))
    }

    /// An error of the readiness call cannot be mended here; whoever waits looks at the process itself next.
    pub async fn reached(&self) {
        let _ = self.0.readable().await;
    }
}

/// What came first in [`Child::during`].
#[derive(Debug)]
pub enum StopOutcome<T> {
    /// The work was done.
    Done(T),
    /// The child ended.
    Ended(ExitStatus),
    /// The time was up; the child lives.
    Late,
}

/// A running (or ended, not yet reaped) child. Dropping it kills its group.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    /// Becomes readable when the leader ends; signalling goes by group while the leader is unreaped, so no pid is reused.
    ended: EndOf,
    status: Option<ExitStatus>,
    unrecorded: Option<io::Error>,
    own: OwnProcesses,
    recorder: Recorder,
}

impl Child {
    fn adopt(name: String, started: Started, spawner: &Spawner) -> io::Result<Self> {
        let Started { mut process, recorded } = started;
        let (own, recorder) = (spawner.own.clone(), spawner.recorder.clone());
        match EndOf::process(process.id()) {
            Ok(ended) => Ok(Self { name, process, ended, status: None, unrecorded: recorded.err(), own, recorder }),
            Err(error) => {
                kill_now(&mut process, &own, &recorder);
                Err(error)
            }
        }
    }

    /// The name the child was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id of the leader, which is also the id of its group and session.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Why the child could not be written down, once, where it could not: a later run would not find it.
    pub fn take_unrecorded(&mut self) -> Option<io::Error> {
        self.unrecorded.take()
    }

    /// The child's output pipes, once. They must be drained for as long as the child lives.
    pub fn take_output(&mut self) -> Option<Output> {
        let stdout = ChildStdout::from_std(self.process.stdout.take()?).ok()?;
        let stderr = ChildStderr::from_std(self.process.stderr.take()?).ok()?;
        Some(Output { stdout, stderr })
    }

    /// Waits until the leader has ended, then kills what is left of its group and reaps the leader. Cancel-safe.
    pub async fn exited(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        self.ended.reached().await;
        self.signal_group(Signal::SIGKILL);
        loop {
            if let Some(status) = reap(&mut self.process, &self.own, &self.recorder) {
                self.status = Some(status);
                return status;
            }
            tokio::time::sleep(REAP_LOOK).await;
        }
    }

    /// Waits for `work`, which the child takes part in, for the child's end, or until `limit` has passed, whichever is first.
    /// Cancel-safe where `work` is.
    pub async fn during<T>(&mut self, limit: Duration, work: impl Future<Output = T>) -> StopOutcome<T> {
        tokio::select! {
            // What was done before the end counts.
            biased;
            done = work => StopOutcome::Done(done),
            status = self.exited() => StopOutcome::Ended(status),
            () = tokio::time::sleep(limit) => StopOutcome::Late,
        }
    }

    /// Sends `signal` to the whole group; nothing once the leader was reaped.
    pub fn signal_group(&self, signal: Signal) {
        if self.status.is_none() {
            let _ = killpg(Pid::from_raw(self.pid().cast_signed()), signal);
        }
    }

    /// Ends the child: TERM to the group, KILL after `grace`. `None` as [`Child::kill`].
    pub async fn stop(&mut self, grace: Duration) -> Option<ExitStatus> {
        self.signal_group(Signal::SIGTERM);
        match tokio::time::timeout(grace, self.exited()).await {
            Ok(status) => Some(status),
            Err(_) => self.kill().await,
        }
    }

    /// Kills the group. `None` when the leader is still there ten seconds later: then it sits in the kernel, and only the
    /// kernel can let it go.
    pub async fn kill(&mut self) -> Option<ExitStatus> {
        self.signal_group(Signal::SIGKILL);
        tokio::time::timeout(KILL_LIMIT, self.exited()).await.ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_some() {
            return;
        }
        kill_now(&mut self.process, &self.own, &self.recorder);
    }
}
