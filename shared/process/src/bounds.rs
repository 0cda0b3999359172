//! What the kernel holds a child to: stack, memory, computing time. For children that work on a stranger's data, where a limit of
//! our own would only be as good as our knowledge of everything that such data can do.
//!
//! The child's time is bounded twice. The kernel ends it when a piece of work has taken too much computing time
//! ([`allow_cpu`]), which no load of the host can bring about; a deadline by the clock ([`crate::Child::during`]) is for what
//! waits and computes nothing.

use std::io;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};

/// Limits of one child, hard: it cannot raise them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the main thread's stack. Work that may recurse belongs on the main thread.
    pub stack: u64,
    /// Bytes of address space: everything that is mapped, read or not.
    pub memory: u64,
}

impl Limits {
    /// Takes them for this process and whatever it executes; between fork and exec. No core is ever dumped.
    pub(crate) fn take(self) -> nix::Result<()> {
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        setrlimit(Resource::RLIMIT_STACK, self.stack, self.stack)?;
        setrlimit(Resource::RLIMIT_AS, self.memory, self.memory)
    }
}

/// The kernel ends this process with SIGXCPU once it has computed for `time` more, up to a second later.
///
/// # Errors
/// When the kernel refuses.
pub fn allow_cpu(time: Duration) -> io::Result<()> {
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| u64::try_from(time.tv_sec() + 1).unwrap_or(0);
    let until = seconds(used.user_time()) + seconds(used.system_time()) + time.as_secs();
    let (_, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_CPU)?;
    Ok(setrlimit(Resource::RLIMIT_CPU, until.min(hard), hard)?)
}
