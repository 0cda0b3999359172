//! The only place that reads a clock. Decisions take time as an argument; the shells around them ask here.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock, for durations and time limits.
#[allow(clippy::disallowed_methods)]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// The wall clock, for block times and time stamps.
#[allow(clippy::disallowed_methods)]
pub fn system() -> SystemTime {
    SystemTime::now()
}

/// The wall clock as time since the Unix epoch (zero for a clock before it).
pub fn since_epoch() -> Duration {
    system().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The wall clock in Unix seconds.
pub fn unix_seconds() -> f64 {
    since_epoch().as_secs_f64()
}
