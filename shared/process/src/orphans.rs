//! Grandchildren whose parent died: as subreaper this process inherits them, and ends them.
//!
//! A generation server starts processes of its own, in groups that nobody here knows. When it dies they would go to init and
//! keep their GPU; with the subreaper attribute they come here instead, where everything that was not started by a
//! [`Spawner`](crate::Spawner) of this process is an orphan by definition.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::identity::Identity;
use crate::proc;
use crate::records::Records;

/// Children that were started here and are not reaped yet. The lock is held from fork to entry and from reaping to removal, so
/// that a sweep never takes one for an orphan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own(Arc<Mutex<HashSet<u32>>>);

impl Own {
    pub fn lock(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An orphan that was met in a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Process id.
    pub pid: u32,
    /// Its program's short name.
    pub name: String,
    /// It lived and was killed; otherwise it had ended and was reaped.
    pub killed: bool,
}

/// From now on orphaned descendants come to this process instead of init.
///
/// # Errors
/// When the kernel does not know the attribute (before Linux 3.4).
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Kills the orphans that live and reaps those that ended, with the record that a dead parent left of them. What a killed one
/// leaves behind comes here in the next sweep.
pub(crate) fn sweep(own: &Own, records: Option<&Records>) -> io::Result<Vec<Orphan>> {
    // Spawning waits meanwhile, for well under a millisecond.
    let own = own.lock();
    let mut met = Vec::new();
    for pid in proc::children(std::process::id())?.into_iter().filter(|pid| !own.contains(pid)) {
        let Ok(facts) = proc::facts(pid) else { continue };
        if facts.lives() {
            Identity::of(pid)?.kill()?;
        } else {
            // Only this very pid: reaping any other child would take its status from whoever waits for it.
            let _ = waitpid(Pid::from_raw(pid.cast_signed()), Some(WaitPidFlag::WNOHANG));
            records.inspect(|records| records.remove(pid));
        }
        met.push(Orphan { pid, name: facts.name.clone(), killed: facts.lives() });
    }
    Ok(met)
}
