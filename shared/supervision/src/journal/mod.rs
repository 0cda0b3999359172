//! What happened, one record per notable event: append-only, checked line by line, bounded in size.
//!
//! ```text
//!  struct of an event ──▶ log line
//!                     ├─▶ count by kind                       (status)
//!                     └─▶ journal/journal.jsonl ─ 16 MiB ─▶ journal.1.jsonl … journal.4.jsonl, the oldest is dropped
//! ```
//!
//! A thread of its own writes, so that a disk that hangs holds up nobody. Each record is handed to the operating system at
//! once, so it survives the death of this process. Records of a lasting kind (how a window ended, what was lost, who was
//! distrusted) are flushed to the disk before the next one is taken, all others within a second. A torn line, such as a crash
//! leaves at the end, is skipped by readers and never joined with the next one.

mod events;
mod line;
mod read;
mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grail_process::clock;
use serde::Serialize;

pub use events::*;
pub use line::{Entry, LineError, MAX_LINE, decode, encode};
pub use read::{Reading, files, read};

/// Records that may wait for the disk; what comes beyond is counted and left out.
const WAITING: usize = 4096;

/// Something notable. One struct makes the log line, the journal's record and the count, so that they cannot drift.
pub trait Event: Serialize {
    /// Its name in the journal.
    const KIND: &'static str;
    /// Whether it must be on disk before anything that comes after it.
    const LASTING: bool;
    /// Writes the log line.
    fn log(&self);
}

/// The way into the journal. Cloning is cheap; the thread ends with the last clone.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    queue: SyncSender<Message>,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    by_kind: BTreeMap<&'static str, u64>,
    /// Records that found no room: all of them, and those of which the journal does not tell yet.
    left_out: u64,
    untold: u64,
}

enum Message {
    Record(Record),
    /// Everything before it is on disk when the sender is dropped.
    Flush(std::sync::mpsc::Sender<()>),
}

struct Record {
    time: f64,
    kind: &'static str,
    data: serde_json::Value,
    lasting: bool,
}

impl Record {
    fn of<E: Event>(event: &E) -> Self {
        let data = serde_json::to_value(event).unwrap_or_default();
        Self { time: clock::unix_seconds(), kind: E::KIND, data, lasting: E::LASTING }
    }
}

impl Journal {
    /// Opens the journal in `folder` and goes on after its last whole record. A disk that refuses is told in the log and costs
    /// the journal, never the mining.
    pub fn open(folder: &Path) -> Self {
        let (queue, messages) = sync_channel(WAITING);
        let folder = folder.to_owned();
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || write::run(&folder, &messages));
        if let Err(error) = thread {
            tracing::error!(%error, "The journal's thread cannot be started; there will be no journal.");
            return Self::default();
        }
        Self { inner: Some(Arc::new(Inner { queue, counts: Mutex::default() })) }
    }

    /// Logs an event, counts it and writes it down. Never waits: what finds no room is counted, and the gap is on record as soon
    /// as there is room again.
    pub fn record<E: Event>(&self, event: &E) {
        event.log();
        let Some(inner) = &self.inner else { return };
        let mut counts = inner.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.by_kind.entry(E::KIND).or_default() += 1;
        let fits = |record| !matches!(inner.queue.try_send(Message::Record(record)), Err(TrySendError::Full(_)));
        if counts.untold > 0 && fits(Record::of(&RecordsLeftOut { count: counts.untold })) {
            counts.untold = 0;
        }
        if counts.untold > 0 || !fits(Record::of(event)) {
            counts.left_out += 1;
            counts.untold += 1;
        }
    }

    /// Records that found no room.
    pub fn left_out(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.counts.lock().unwrap_or_else(PoisonError::into_inner).left_out)
    }

    /// How often each kind was recorded by this process.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let Some(inner) = &self.inner else { return BTreeMap::new() };
        let counts = inner.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.by_kind.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
    }

    /// Waits until everything recorded so far is on disk, at most `limit`. Blocks the thread.
    pub fn flush(&self, limit: Duration) {
        let Some(inner) = &self.inner else { return };
        let (done, written) = std::sync::mpsc::channel();
        if inner.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = written.recv_timeout(limit);
        }
    }
}

#[cfg(test)]
mod tests;
