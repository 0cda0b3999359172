//! Who a process is: a pid alone may belong to another process a moment later, a pid with its start time may not.

use std::io;

use serde::{Deserialize, Serialize};

use crate::proc;

/// One process for ever: pids are used again, a pid together with its start time, boot and pid namespace is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Start, in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    pub started: u64,
    /// The kernel's random id of this boot.
    pub boot: String,
    /// The pid namespace, such as `pid:[4026531836]`: a container counts pids for itself.
    pub namespace: String,
}

/// What became of a process that was written down earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It runs.
    Alive,
    /// It has ended, or waits to be reaped.
    Gone,
    /// It belonged to an earlier boot of this machine, and ended with it.
    OtherBoot,
    /// It belonged to another pid namespace: from here nobody can tell, and nobody could signal it.
    OtherNamespace,
}

impl Identity {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// When there is none, or `/proc` cannot be read.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::seen(&proc::facts(pid)?)
    }

    /// The process that was seen.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn seen(facts: &proc::ProcessFacts) -> io::Result<Self> {
        Ok(Self { pid: facts.pid, started: facts.started, boot: boot()?, namespace: namespace()? })
    }

    /// This process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn this() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// What became of it.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn standing(&self) -> io::Result<Liveness> {
        if self.boot != boot()? {
            return Ok(Liveness::OtherBoot);
        }
        if self.namespace != namespace()? {
            return Ok(Liveness::OtherNamespace);
        }
        let alive = proc::facts(self.pid).is_ok_and(|facts| facts.started == self.started && facts.lives());
        Ok(if alive { Liveness::Alive } else { Liveness::Gone })
    }

    /// Kills exactly this process. `false` when it is gone.
    ///
    /// # Errors
    /// When the operating system refuses the signal.
    pub fn kill(&self) -> io::Result<bool> {
        self.signal(nix::sys::signal::Signal::SIGKILL)
    }

    /// Sends exactly this process a signal: the descriptor is opened first and the start time compared after, so that a pid used
    /// again in between is never hit. `false` when it is gone.
    ///
    /// # Errors
    /// When the operating system refuses the signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<bool> {
        use rustix::io::Errno;
        use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
        let signal = Signal::from_named_raw(signal as i32).ok_or(Errno::INVAL)?;
        let Some(pid) = Pid::from_raw(self.pid.cast_signed()) else { return Ok(false) };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if self.standing()? != Liveness::Alive {
            return Ok(false);
        }
        match pidfd_send_signal(&descriptor, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn boot() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn namespace() -> io::Result<String> {
    Ok(std::fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned())
}
