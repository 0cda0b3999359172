//! Records of children, written on a thread of their own.

use std::io;
use std::time::Duration;

use crate::records::{Record, Records};
use crate::side_thread::SideThread;

/// Longest wait for a record to reach the disk. A child whose record does not is told of, and runs.
const RECORD_LIMIT: Duration = Duration::from_secs(3);
/// Longest wait where a thread has something small done that a disk may hold up.
const SMALL_LIMIT: Duration = Duration::from_millis(250);
/// Small things that may wait for the disk.
const MOST_WAITING: usize = 1024;

/// Writes children down, where they are to be, without being held up by the disk.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    records: Option<Records>,
    aside: SideThread,
}

impl Recorder {
    /// Starts the thread that waits for the disk. Without `records` nothing is written.
    pub fn start(records: Option<Records>) -> io::Result<Self> {
        Ok(Self { records, aside: SideThread::start("records", MOST_WAITING)? })
    }

    /// The thread, for other work on the same disk.
    pub fn aside(&self) -> &SideThread {
        &self.aside
    }

    /// The child was started.
    pub fn write(&self, record: Record) -> io::Result<()> {
        let Some(records) = self.records.clone() else { return Ok(()) };
        self.aside.wait(RECORD_LIMIT, move || records.write(&record))?
    }

    /// The child was reaped. Where the disk hangs, its record goes once the disk is back.
    pub fn remove(&self, pid: u32) {
        let Some(records) = self.records.clone() else { return };
        // A record that stays is judged by its start time later, and does no harm.
        let _ = self.aside.wait(SMALL_LIMIT, move || records.remove(pid));
    }
}
