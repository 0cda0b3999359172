//! The only place that reads a clock. Decisions take time as an argument; the shells around them ask here.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::steady::Steady;
pub use crate::steady::Verdict;

/// The monotonic clock, for durations and time limits. It stands still while the machine is suspended.
#[allow(clippy::disallowed_methods)]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Time since the machine's start, which goes on while it is suspended: for ages.
pub fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Unix time without jumps, for block times, deadlines, time stamps and signatures: see [`crate::steady`].
pub fn system() -> SystemTime {
    UNIX_EPOCH + since_epoch()
}

/// [`system`] as time since the Unix epoch (zero for a clock before it).
pub fn since_epoch() -> Duration {
    let (wall, boot) = both();
    Duration::try_from_secs_f64(steady(wall, boot).read(wall, boot)).unwrap_or_default()
}

/// [`system`] in Unix seconds.
pub fn unix_seconds() -> f64 {
    since_epoch().as_secs_f64()
}

/// By how many seconds the wall clock was set since this process began, where that is not followed.
pub fn step_seconds() -> f64 {
    let (wall, boot) = both();
    steady(wall, boot).step(wall, boot)
}

/// Another machine's clock shows `reference`, in Unix seconds: where this one's wall clock was set, that decides whether it is
/// followed.
pub fn judge(reference: f64) -> Verdict {
    let (wall, boot) = both();
    steady(wall, boot).judge(reference, wall, boot)
}

#[allow(clippy::disallowed_methods)]
fn both() -> (f64, f64) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (wall.as_secs_f64(), since_boot().as_secs_f64())
}

/// Begins with the first look.
fn steady(wall: f64, boot: f64) -> MutexGuard<'static, Steady> {
    static STEADY: OnceLock<Mutex<Steady>> = OnceLock::new();
    STEADY.get_or_init(|| Mutex::new(Steady::new(wall, boot))).lock().unwrap_or_else(PoisonError::into_inner)
}
