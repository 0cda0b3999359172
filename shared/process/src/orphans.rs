//! Grandchildren whose parent died: as subreaper this process inherits them, and ends them.
//!
//! A generation server starts processes of its own, in groups that nobody here knows. When it dies they would go to init and
//! keep their GPU; with the subreaper attribute they come here instead.
//!
//! Not everything that comes here is ours. An entrypoint may have started a helper before it became this program with `exec`, and
//! the first process of a container inherits whatever loses its parent there, daemons of `docker exec` among it. Where neither can
//! be, every adopted process descends from a child of ours by definition. Else it must be shown to: by the family in its environment,
//! by its session, or because it was seen below a child of ours before. What is not is reaped when it ends, and left alone.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::environment::FAMILY;
use crate::identity::Identity;
use crate::proc::{self, ProcessFacts};
use crate::recorder::Recorder;
use crate::records;

/// Who belongs to this process. The lock is held from fork to entry and from reaping to removal, so that a sweep never takes a
/// child for an orphan.
#[derive(Debug, Clone)]
pub(crate) struct OwnProcesses(Arc<Mutex<ProcessTree>>);

/// What is known of our own.
#[derive(Debug)]
pub(crate) struct ProcessTree {
    /// Children that were started here and are not reaped yet.
    pub children: HashSet<u32>,
    /// Sessions of all that were started. A number is not given out again while a process of the session lives.
    sessions: HashSet<u32>,
    /// What our own carry in their environment as [`FAMILY`].
    family: String,
    /// Whether others' processes may be among our children.
    strangers: bool,
    /// Descendants that were seen below one of our own, with their start.
    seen: HashSet<(u32, u64)>,
}

impl OwnProcesses {
    /// The one of this process, whichever spawner asks. Children that there are when the first one does are others'.
    pub fn of_this_process() -> io::Result<Self> {
        static OWN: OnceLock<OwnProcesses> = OnceLock::new();
        let family = records::token()?;
        let begin = || {
            let this = std::process::id();
            let strangers = this == 1 || proc::children(this).map_or(true, |children| !children.is_empty());
            let (children, sessions, seen) = (HashSet::new(), HashSet::new(), HashSet::new());
            Self(Arc::new(Mutex::new(ProcessTree { children, sessions, family, strangers, seen })))
        };
        Ok(OWN.get_or_init(begin).clone())
    }

    pub fn family(&self) -> String {
        self.lock().family.clone()
    }

    pub fn lock(&self) -> MutexGuard<'_, ProcessTree> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProcessTree {
    /// A child was started; it leads a session of its own.
    pub fn enter(&mut self, pid: u32) {
        self.children.insert(pid);
        self.sessions.insert(pid);
    }

    /// The processes of ours among `all`: children, and everything below them or below what was.
    fn ours<'a>(&mut self, all: &'a [ProcessFacts]) -> Vec<&'a ProcessFacts> {
        let this = std::process::id();
        self.sessions.retain(|session| self.children.contains(session) || all.iter().any(|process| process.session == *session));
        let family = format!("{FAMILY}={}", self.family).into_bytes();
        let mut found: HashSet<u32> = HashSet::new();
        loop {
            let before = found.len();
            for process in all.iter().filter(|process| process.pid != this) {
                let known = self.children.contains(&process.pid)
                    || found.contains(&process.parent)
                    || self.sessions.contains(&process.session)
                    || self.seen.contains(&(process.pid, process.started))
                    || process.parent == this && (!self.strangers || proc::carries(process.pid, &family));
                if known && found.insert(process.pid) {
                    self.seen.insert((process.pid, process.started));
                }
            }
            if found.len() == before {
                break;
            }
        }
        self.seen.retain(|seen| all.iter().any(|process| (process.pid, process.started) == *seen));
        all.iter().filter(|process| found.contains(&process.pid)).collect()
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

/// Kills the orphans of ours that live and reaps all that ended, with the record that a dead parent left of them. What a killed
/// one leaves behind comes here in the next sweep.
pub(crate) fn sweep(own: &OwnProcesses, recorder: &Recorder) -> io::Result<Vec<Orphan>> {
    // Spawning waits meanwhile, for well under a millisecond, or a few where strangers may be here.
    let mut kin = own.lock();
    let mut met = Vec::new();
    let ours: Option<HashSet<u32>> = match kin.strangers {
        true => Some(kin.ours(&proc::all()?).iter().map(|process| process.pid).collect()),
        false => None,
    };
    for pid in proc::children(std::process::id())?.into_iter().filter(|pid| !kin.children.contains(pid)) {
        let Ok(facts) = proc::facts(pid) else { continue };
        if !facts.lives() {
            // Only this very pid: reaping any other child would take its status from whoever waits for it.
            let _ = waitpid(Pid::from_raw(pid.cast_signed()), Some(WaitPidFlag::WNOHANG));
        } else if ours.as_ref().is_none_or(|ours| ours.contains(&pid)) {
            Identity::seen(&facts)?.kill()?;
        } else {
            continue;
        }
        met.push(Orphan { pid, name: facts.name.clone(), killed: facts.lives() });
    }
    drop(kin);
    met.iter().filter(|orphan| !orphan.killed).for_each(|orphan| recorder.remove(orphan.pid));
    Ok(met)
}

/// Kills all that is ours, children and everything below them. Returns how many of them still live.
pub(crate) fn end_all(own: &OwnProcesses) -> io::Result<usize> {
    let mut kin = own.lock();
    let all = proc::all()?;
    let ours: Vec<Identity> =
        kin.ours(&all).into_iter().filter(|process| process.lives()).map(Identity::seen).collect::<io::Result<_>>()?;
    drop(kin);
    for process in &ours {
        process.kill()?;
    }
    Ok(ours.len())
}
