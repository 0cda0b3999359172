//! What the kernel allows this process, and what it is told to ignore.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

/// Descriptors that may be open at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// At the start.
    pub found: u64,
    /// Now, and for every child that is started from now on.
    pub now: u64,
}

/// Raises the soft limit of open descriptors to the hard one: 1,024 is what every login shell and systemd unit has, for the sake of
/// programs that use `select`. Children that are started later have it too; generation servers need as many.
///
/// # Errors
/// When the kernel does not tell the limit, or refuses; then it is as it was.
pub fn raise_open_files() -> io::Result<OpenFiles> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(OpenFiles { found: soft, now: hard.max(soft) })
}

/// The present limit of open descriptors.
///
/// # Errors
/// When the kernel does not tell.
pub fn open_files() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Whether this process ignores a signal, as one does that was started by `nohup`. What cannot be told is not ignored.
pub fn ignores(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_set(&status, signal)
}

fn is_set(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // Signal 1 is bit 0.
    mask >> (signal as i32 - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read_by_its_bits() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        assert!(is_set(status, Signal::SIGHUP) && is_set(status, Signal::SIGPIPE));
        assert!(!is_set(status, Signal::SIGINT) && !is_set("", Signal::SIGHUP));
        // Rust programs ignore SIGPIPE.
        assert!(ignores(Signal::SIGPIPE) && !ignores(Signal::SIGKILL));
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_one_and_stays_there() {
        let first = raise_open_files().unwrap();
        let second = raise_open_files().unwrap();
        assert!(first.now >= first.found && second.found == first.now && second.now == first.now);
        assert_eq!(open_files().unwrap(), first.now);
    }
}
