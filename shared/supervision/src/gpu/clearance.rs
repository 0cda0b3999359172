//! May a child start on this GPU? Only when the memory of the last one is back (pure).

use std::time::Duration;

use super::{GpuReading, Look, gibibytes};

/// A driver and its services hold less; a model holds more.
const FREE_BELOW: u64 = 2 << 30;

/// Waits for one GPU. Times are durations since any fixed instant.
#[derive(Debug, Clone, Copy)]
pub struct Clearance {
    began: Duration,
    limit: Duration,
}

/// What a look means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Start.
    Free,
    /// Look again: nobody has looked yet.
    Blind,
    /// Look again; this is who holds it.
    Wait(String),
    /// The time is over; this is who holds it.
    Held(String),
}

impl Clearance {
    /// The kernel frees a dead process's memory within seconds; the reference waits 30 s (grail-miner 5).
    pub const LIMIT: Duration = Duration::from_secs(30);

    /// The first look takes a library's start and a second; a driver that takes longer for it is not waited for.
    pub const FIRST_LOOK: Duration = Duration::from_secs(3);

    /// Begins to wait.
    pub fn new(began: Duration, limit: Duration) -> Self {
        Self { began, limit }
    }

    /// Judges a look. A GPU of which nothing can be known counts as free: no library may keep a host from mining. One of which nothing
    /// is known yet does not, for a little while.
    pub fn judge(&self, now: Duration, gpu: &str, look: &Look) -> Verdict {
        let waited = now.saturating_sub(self.began);
        match look {
            Look::Awaited if waited < Self::FIRST_LOOK => Verdict::Blind,
            Look::Known(reading) if reading.memory_used >= FREE_BELOW => {
                let holder = describe(gpu, reading);
                if waited < self.limit { Verdict::Wait(holder) } else { Verdict::Held(holder) }
            }
            Look::Awaited | Look::Unknown | Look::Known(_) => Verdict::Free,
        }
    }
}

fn describe(gpu: &str, reading: &GpuReading) -> String {
    let (used, total) = (gibibytes(reading.memory_used), gibibytes(reading.memory_total));
    let mut processes: Vec<_> = reading.processes.iter().collect();
    processes.sort_by_key(|process| std::cmp::Reverse(process.bytes));
    let named: Vec<String> = processes
        .iter()
        .map(|process| {
            let bytes = process.bytes.map_or(String::new(), |bytes| format!(" with {}", gibibytes(bytes)));
            format!("{} (pid {}){bytes}", process.program, process.pid)
        })
        .collect();
    if named.is_empty() {
        return format!(
            "{used} of {total} of GPU {gpu} are in use by a process that cannot be seen from here, as in another container"
        );
    }
    format!("{used} of {total} of GPU {gpu} are in use by {}", named.join(", "))
}
