//! May a child start on this GPU? Only when the memory of the last one is back (pure).

use std::time::Duration;

use super::{GpuReading, gibibytes};

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
    /// Look again; this is who holds it.
    Wait(String),
    /// The time is over; this is who holds it.
    Held(String),
}

impl Clearance {
    /// The kernel frees a dead process's memory within seconds; the reference waits 30 s (grail-miner 5).
    pub const LIMIT: Duration = Duration::from_secs(30);

    /// Begins to wait.
    pub fn new(began: Duration, limit: Duration) -> Self {
        Self { began, limit }
    }

    /// Judges a look. A GPU of which nothing is known counts as free: no library may keep a host from mining.
    pub fn judge(&self, now: Duration, gpu: &str, reading: Option<&GpuReading>) -> Verdict {
        let Some(reading) = reading.filter(|reading| reading.memory_used >= FREE_BELOW) else { return Verdict::Free };
        let holder = describe(gpu, reading);
        if now.saturating_sub(self.began) < self.limit { Verdict::Wait(holder) } else { Verdict::Held(holder) }
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
