//! Whether a process and what it started do anything, as far as the kernel counts it.

use std::time::Duration;

use crate::proc;

/// `USER_HZ`, in which `/proc/<pid>/stat` counts on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// What a tree of processes has done so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Activity {
    /// Its members.
    pub processes: Vec<u32>,
    /// Time on a processor, of the members and of those they waited for.
    pub cpu: Duration,
    /// Bytes read by calls and, where a file is mapped, from storage; where this user may see it.
    pub read: u64,
}

impl Activity {
    /// Of `root` and everything below it.
    pub fn of(root: u32) -> Self {
        let processes = proc::tree(root).unwrap_or_default();
        let ticks: u64 = processes.iter().filter_map(|pid| ticks(*pid)).sum();
        let read = processes.iter().filter_map(|pid| bytes_read(*pid)).sum();
        Self { processes, cpu: Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND)), read }
    }

    /// Whether so much happened since `before`, `elapsed` ago, that it cannot be only threads that wake up and look around, or
    /// answer probes.
    pub fn moved_since(&self, before: &Self, elapsed: Duration) -> bool {
        const BYTES: u64 = 1 << 20;
        let cpu = (elapsed / 50).max(Duration::from_millis(500));
        self.processes != before.processes || self.cpu.abs_diff(before.cpu) >= cpu || self.read.abs_diff(before.read) >= BYTES
    }
}

fn ticks(pid: u32) -> Option<u64> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // utime, stime, cutime and cstime; the name before them may hold anything.
    let fields = line.rsplit_once(')')?.1.split_whitespace().skip(11).take(4);
    Some(fields.filter_map(|field| field.parse::<u64>().ok()).sum())
}

fn bytes_read(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let counts = text.lines().filter_map(|line| line.strip_prefix("rchar: ").or_else(|| line.strip_prefix("read_bytes: ")));
    Some(counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_reading_are_movement_and_waiting_is_none() {
        let me = std::process::id();
        let before = Activity::of(me);
        let work = || (0..5_000_000u64).fold(1u64, |sum, number| sum.wrapping_mul(31).wrapping_add(std::hint::black_box(number)));
        while Activity::of(me).cpu < before.cpu + Duration::from_millis(600) {
            std::hint::black_box(work());
        }
        let after = Activity::of(me);
        let short = Duration::from_secs(2);
        let before = Activity { processes: after.processes.clone(), ..before };
        assert!(after.moved_since(&before, short));
        let idle = Activity { cpu: before.cpu + Duration::from_millis(600), ..before.clone() };
        assert!(!idle.moved_since(&before, Duration::from_secs(100)), "probes that are answered take as much");
        let still = Activity { cpu: after.cpu + Duration::from_millis(20), read: after.read + 4096, ..after.clone() };
        assert!(!still.moved_since(&after, short));
        assert!(Activity { read: after.read + (2 << 20), ..after.clone() }.moved_since(&after, short));
        assert!(Activity { processes: vec![], ..after.clone() }.moved_since(&after, short));
    }
}
