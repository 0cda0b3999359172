//! Whether a server that starts gets anywhere: it prints lines, computes or reads. One that does neither will not be ready either.

use std::time::{Duration, Instant};

use grail_process::{Activity, proc};

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Of the time that a server may take, the share in which it may do nothing at all.
const SHARE: f64 = 1.0 / 3.0;

/// Judges a start. Pure but for [`Stillness::look`].
#[derive(Debug)]
pub struct Stillness {
    limit: Duration,
    moved: Instant,
    looked: Instant,
    activity: Activity,
    lines: u64,
}

impl Stillness {
    /// From `now` on, of a server that may take `ready_timeout`.
    pub fn begin(ready_timeout: Duration, now: Instant) -> Self {
        Self { limit: ready_timeout.mul_f64(SHARE), moved: now, looked: now, activity: Activity::default(), lines: 0 }
    }

    /// Looks at the server's processes now and then; `lines` were printed so far. How long nothing has moved, where that is too
    /// long.
    pub fn look(&mut self, pid: u32, lines: u64, now: Instant) -> Option<Duration> {
        if now.duration_since(self.looked) < LOOK {
            return None;
        }
        self.looked = now;
        self.judge(Activity::of(pid), lines, now)
    }

    fn judge(&mut self, activity: Activity, lines: u64, now: Instant) -> Option<Duration> {
        if lines != self.lines || activity.moved_since(&self.activity, now.duration_since(self.moved)) {
            (self.activity, self.lines, self.moved) = (activity, lines, now);
        }
        let still = now.duration_since(self.moved);
        (still >= self.limit).then_some(still)
    }
}

/// The server's processes with their states, for the message.
pub fn processes(pid: u32) -> String {
    let facts = proc::tree(pid).unwrap_or_default().into_iter().filter_map(|pid| proc::facts(pid).ok());
    facts.map(|process| format!("{} {} ({})", process.name, process.pid, process.state)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use grail_process::clock;

    use super::*;

    #[test]
    fn lines_work_and_reading_keep_a_start_alive_and_nothing_else() {
        let began = clock::monotonic();
        let at = |seconds| began + Duration::from_secs(seconds);
        let done = |seconds| Activity { processes: vec![1], cpu: Duration::from_secs(seconds), read: 0 };
        let read = |bytes| Activity { read: bytes, ..done(5) };
        let mut start = Stillness::begin(Duration::from_secs(300), began);
        assert_eq!(start.judge(done(1), 0, at(90)), None);
        assert_eq!(start.judge(done(1), 1, at(180)), None, "a line");
        assert_eq!(start.judge(done(5), 1, at(270)), None, "seconds on a processor");
        assert_eq!(start.judge(read(2 << 20), 1, at(360)), None, "weights that are read");
        assert_eq!(start.judge(read(2 << 20), 1, at(459)), None);
        assert_eq!(start.judge(read((2 << 20) + 100), 1, at(460)), Some(Duration::from_secs(100)));
    }
}
