//! One way to start a child, and one way to end it with everything it started.
//!
//! ```text
//!  Spawner::spawn ──▶ spawner thread ──fork──▶ child: setsid · parent-death signal · parent check ──exec──▶ program
//!                     (lives as long as the process, because the kernel sends the parent-death signal
//!                      when the *thread* that forked ends, not when the process does)
//!  Child::stop: TERM to the group → grace → KILL to the group → reap the leader
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

type Reply = tokio::sync::oneshot::Sender<io::Result<std::process::Child>>;

/// Starts children from one thread that lives as long as the process. Clone it freely.
#[derive(Debug, Clone)]
pub struct Spawner {
    requests: mpsc::Sender<(Launch, Reply)>,
}

impl Spawner {
    /// Starts the spawner thread.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start() -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<(Launch, Reply)>();
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            for (launch, reply) in inbox {
                // The caller may have been cancelled; then the child is ended by dropping it below.
                if let Err(Ok(mut orphan)) = reply.send(start(&launch)) {
                    let _ = killpg(Pid::from_raw(orphan.id().cast_signed()), Signal::SIGKILL);
                    let _ = orphan.wait();
                }
            }
        })?;
        Ok(Self { requests })
    }

    /// Starts a child in its own session and process group, its output piped, its life tied to this process.
    ///
    /// # Errors
    /// When the program cannot be executed.
    pub async fn spawn(&self, launch: Launch) -> Result<Child, SpawnError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let (name, program) = (launch.name.clone(), launch.program.clone());
        let gone = || SpawnError::SpawnerGone { name: name.clone() };
        self.requests.send((launch, reply)).map_err(|_| gone())?;
        let failed = |source| SpawnError::Start { name: name.clone(), program: program.clone(), source };
        let process = answer.await.map_err(|_| gone())?.map_err(failed)?;
        Child::adopt(name.clone(), process).map_err(failed)
    }
}

/// Runs on the spawner thread.
#[allow(clippy::disallowed_methods)]
fn start(launch: &Launch) -> io::Result<std::process::Child> {
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments).env_clear().envs(launch.environment.iter().map(|(name, value)| (name, value)));
    // Descriptors of the parent are close-on-exec (the standard library and tokio open them so): only these three pass.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let parent = getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are made (setsid, prctl, getppid) and nothing allocates.
    unsafe {
        command.pre_exec(move || {
            // 1. Own session and group, so that the child can be ended with everything it started.
            setsid()?;
            // 2. The kernel kills the child when the spawner thread, hence this process, ends in any way.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // 3. The parent may have died before step 2 took effect.
            if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(nix::libc::ESRCH)) }
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

/// A running (or ended, not yet reaped) child. Dropping it kills its group.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    /// Becomes readable when the leader ends; signalling goes by group while the leader is unreaped, so no pid is reused.
    ended: AsyncFd<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Child {
    fn adopt(name: String, mut process: std::process::Child) -> io::Result<Self> {
        let watched = rustix::process::Pid::from_raw(process.id().cast_signed())
            .ok_or_else(|| io::Error::other("a child without a pid"))
            .and_then(|pid| Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK)?))
            // SAFETY: the descriptor is owned by the `AsyncFd` from here on, and nothing replaces or closes it meanwhile.
            .and_then(|descriptor| Ok(unsafe { AsyncFd::register_with_interest(descriptor, tokio::io::Interest::READABLE) }?));
        match watched {
            Ok(ended) => Ok(Self { name, process, ended, status: None }),
            Err(error) => {
                let _ = killpg(Pid::from_raw(process.id().cast_signed()), Signal::SIGKILL);
                let _ = process.wait();
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
        // An error of the readiness call cannot be mended here; the wait below then blocks at most until the child ends.
        let _ = self.ended.readable().await;
        self.signal_group(Signal::SIGKILL);
        let status = self.process.wait().unwrap_or_else(|_| ExitStatus::from_raw(0x7f00));
        self.status = Some(status);
        status
    }

    /// Sends `signal` to the whole group; nothing once the leader was reaped.
    pub fn signal_group(&self, signal: Signal) {
        if self.status.is_none() {
            let _ = killpg(Pid::from_raw(self.pid().cast_signed()), signal);
        }
    }

    /// Ends the child: TERM to the group, KILL after `grace`.
    pub async fn stop(&mut self, grace: Duration) -> ExitStatus {
        self.signal_group(Signal::SIGTERM);
        if let Ok(status) = tokio::time::timeout(grace, self.exited()).await {
            return status;
        }
        self.signal_group(Signal::SIGKILL);
        self.exited().await
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.signal_group(Signal::SIGKILL);
            let _ = self.process.wait();
        }
    }
}
