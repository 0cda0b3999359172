//! What the supervisor is doing, in one place: written by those who do it, read by the live view, the status file and the logs.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grail_process::{SideThread, clock};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::children::{ChildEvent, ChildState, Death};
use crate::gpu::GpuReading;
use crate::journal::{Journal, LinesLost};
use crate::{log, secrets};

/// How many events of children are remembered.
const EVENTS: usize = 32;

/// One child as operators see it.
#[derive(Debug, Clone, Serialize)]
pub struct ChildStatus {
    /// Where it is in its life.
    pub state: ChildState,
    /// Revision of the weights it holds.
    pub revision: Option<String>,
    /// Process id while it lives.
    pub pid: Option<u32>,
    /// How often a process was started.
    pub starts: u32,
    /// How often it has ended without being asked to.
    pub ends: u32,
    /// Why it ended last.
    pub last_end: Option<String>,
    /// The record of its last death: class, last lines, threads.
    pub death: Option<Death>,
    /// Health counter: movements of its work (sequences proved, completions answered) over all lives.
    pub progress: u64,
    /// How long pending work may stand still at present, before it counts as hung.
    pub progress_limit_seconds: f64,
}

impl Default for ChildStatus {
    fn default() -> Self {
        Self {
            state: ChildState::Absent,
            revision: None,
            pid: None,
            starts: 0,
            ends: 0,
            last_end: None,
            death: None,
            progress: 0,
            progress_limit_seconds: 0.0,
        }
    }
}

/// What is shown of the host, whichever workload it runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Process id of the supervisor.
    pub pid: u32,
    /// Unix seconds of this snapshot.
    pub time: f64,
    /// Children by name.
    pub children: BTreeMap<String, ChildStatus>,
    /// What NVML tells of the children's GPUs, where it does.
    pub gpus: BTreeMap<String, GpuReading>,
    /// The last events of children and GPUs, oldest first.
    pub child_events: VecDeque<ChildEvent>,
    /// Events of this run by kind, as the journal has them.
    pub events: BTreeMap<String, u64>,
    /// Lines of the log and records of the journal that found no room, by place: a disk or a reader did not keep up.
    pub left_out: BTreeMap<String, u64>,
}

/// A workload's own part of the board: what it shows beside its children.
pub trait Part: Send + Sync {
    /// Its fields, which stand beside the host's own ([`Status`]).
    fn fields(&self) -> Map<String, Value>;
}

/// The shared status.
#[derive(Clone, Default)]
pub struct Board {
    status: Arc<Mutex<Status>>,
    parts: Arc<Mutex<Vec<Arc<dyn Part>>>>,
    journal: Journal,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Board").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Board {
    /// A board whose events of children are written down in `journal`; without one ([`Board::default`]) they are only logged.
    pub fn with_journal(journal: Journal) -> Self {
        Self { journal, ..Self::default() }
    }

    /// Shows a workload's part, too.
    pub fn show(&self, part: Arc<dyn Part>) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    }

    /// Changes something.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes one child's entry.
    pub fn child(&self, name: &str, change: impl FnOnce(&mut ChildStatus)) {
        self.update(|status| change(status.children.entry(name.to_owned()).or_default()));
    }

    /// Something happened to a child: the line in the log and the journal, the child's entry, the list of events. Every event of
    /// children and GPUs passes here.
    pub fn event(&self, event: ChildEvent) {
        self.journal.record(&event);
        if let ChildEvent::Died { child, death, .. } | ChildEvent::Quarantined { child, death, .. } = &event {
            self.child(child, |shown| {
                shown.ends += 1;
                shown.last_end = Some(death.reason.clone());
                shown.death = Some(death.clone());
            });
        }
        self.update(|status| {
            status.child_events.push_back(event);
            let surplus = status.child_events.len().saturating_sub(EVENTS);
            status.child_events.drain(..surplus);
        });
    }

    /// Puts into the status what the log and the journal have lost, and tells of places that begin to lose.
    fn look_for_losses(&self) {
        let journal = Some(("journal", self.journal.left_out())).filter(|(_, lost)| *lost > 0);
        let lost: BTreeMap<String, u64> =
            log::lost().into_iter().chain(journal).map(|(place, lost)| (place.to_owned(), lost)).collect();
        let mut before = BTreeMap::new();
        self.update(|status| before = std::mem::replace(&mut status.left_out, lost.clone()));
        for (place, lost) in lost.into_iter().filter(|(place, _)| !before.contains_key(place)) {
            self.journal.record(&LinesLost { place, lost });
        }
    }

    /// A copy of what is shown of the host.
    pub fn snapshot(&self) -> Status {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.time = clock::unix_seconds();
        status.events = self.journal.counts();
        status
    }

    /// Everything that is shown, the workload's parts included.
    fn document(&self) -> Document {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fields = parts.iter().flat_map(|part| part.fields()).collect();
        Document { host: self.snapshot(), fields }
    }
}

/// What the status file says.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    host: Status,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// The status file, with a thread of its own that writes it: a disk that hangs holds up nobody.
#[derive(Debug, Clone)]
pub struct StatusFile {
    path: PathBuf,
    disk: SideThread,
}

/// The disk is said to hang after this time.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

impl StatusFile {
    /// Nothing is written yet.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn at(path: PathBuf) -> std::io::Result<Self> {
        Ok(Self { path, disk: SideThread::start("status", 1)? })
    }

    /// Writes it twice a second until it is cancelled, each time as a whole, and tells which places lose lines.
    pub async fn keep(self, board: Board) {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = false;
        loop {
            ticks.tick().await;
            board.look_for_losses();
            let (status, path) = (board.document(), self.path.clone());
            let written = self.disk.ask(DISK_PATIENCE, move || write_file(&status, &path)).await;
            let failed = written.map_err(std::io::Error::from).flatten().err();
            // A full disk is told once, not twice a second.
            if let Some(error) = failed.as_ref().filter(|_| !told) {
                tracing::warn!(%error, path = %self.path.display(), "The status file cannot be written.");
            }
            told = failed.is_some();
        }
    }

    /// Writes it once more, within `limit`.
    pub async fn write_last(&self, board: &Board, limit: Duration) {
        let (status, path) = (board.document(), self.path.clone());
        let written = self.disk.ask(limit, move || write_file(&status, &path)).await;
        if let Err(error) = written.map_err(std::io::Error::from).flatten() {
            tracing::warn!(%error, "The status file cannot be written.");
        }
    }
}

/// Replaces the status file in one step, so that a reader never sees half of it.
fn write_file(status: &Document, path: &Path) -> std::io::Result<()> {
    let beside = path.with_extension("json.new");
    std::fs::write(&beside, secrets::clean(&serde_json::to_vec_pretty(status)?))?;
    std::fs::rename(beside, path)
}
