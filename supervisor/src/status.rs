//! What the supervisor is doing, in one place: written by those who do it, read by the live view, the status file and the logs.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grail_process::{Aside, clock};
use serde::{Deserialize, Serialize};

use crate::children::{ChildEvent, ChildState, Death};
use crate::gpu::GpuReading;
use crate::journal::{Journal, LinesLost};
use crate::{log, secrets};

/// How many finished windows are remembered.
const HISTORY: usize = 24;
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

/// The window that is being mined.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WindowStatus {
    /// First block.
    pub window: u64,
    /// What is going on, in words.
    pub phase: String,
    /// Unix seconds of the upload deadline.
    pub deadline: f64,
    /// Revision it is mined with.
    pub revision: Option<String>,
    /// What keeps it from being mined, while that is tried again.
    pub waits_for: Option<String>,
    /// Groups whose sixteen completions are there.
    pub generated: u32,
    /// Groups with a checked proof.
    pub proved: u32,
    /// Groups that are complete and judged, and durable where the disk allows it.
    pub spooled: u32,
    /// Groups under way.
    pub in_flight: u32,
    /// Groups that were dropped, by cause.
    pub dropped: BTreeMap<String, u32>,
    /// Sum of the rewards of spooled rollouts.
    pub reward_sum: f64,
    /// Spooled rollouts whose answer is right.
    pub successes: u32,
    /// Rollouts that another worker proved again, and agrees.
    pub spot_checks: u32,
}

/// How a window ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinishedWindow {
    /// First block.
    pub window: u64,
    /// `uploaded`, `skipped`, `empty`, `held back`, `lost`, `broken off` or `withdrawn`.
    pub outcome: String,
    /// Why, where it was not uploaded.
    pub reason: Option<String>,
    /// Rollouts in the uploaded file.
    pub rollouts: u32,
    /// Bytes of the uploaded file.
    pub bytes: u64,
    /// Window of the checkpoint.
    pub checkpoint_window: Option<u64>,
    /// Mean reward of the rollouts.
    pub mean_reward: f64,
    /// Seconds from the last group to the confirmed upload.
    pub close_seconds: f64,
}

impl FinishedWindow {
    /// A window whose end is to be filled in.
    pub fn of(window: u64) -> Self {
        Self {
            window,
            outcome: "uploaded".into(),
            reason: None,
            rollouts: 0,
            bytes: 0,
            checkpoint_window: None,
            mean_reward: 0.0,
            close_seconds: 0.0,
        }
    }
}

/// What is heard of the chain.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ChainStatus {
    /// The newest block that it has told.
    pub newest: Option<u64>,
    /// Seconds since that was told first.
    pub age_seconds: Option<f64>,
    /// Whether that is longer than several block times.
    pub stale: bool,
    /// Unix seconds when it was told first.
    #[serde(skip)]
    pub since: f64,
}

/// Everything that is shown.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Process id of the supervisor.
    pub pid: u32,
    /// The hotkey's address.
    pub hotkey: String,
    /// Newest block; by the clock where the chain tells none.
    pub block: u64,
    /// What is heard of the chain.
    pub chain: ChainStatus,
    /// Unix seconds of this snapshot.
    pub time: f64,
    /// Children by name.
    pub children: BTreeMap<String, ChildStatus>,
    /// What NVML tells of the children's GPUs, where it does.
    pub gpus: BTreeMap<String, GpuReading>,
    /// The last events of children and GPUs, oldest first.
    pub child_events: VecDeque<ChildEvent>,
    /// The present window.
    pub window: WindowStatus,
    /// The last windows, oldest first.
    pub finished: Vec<FinishedWindow>,
    /// Events of this run by kind, as the journal has them.
    pub events: BTreeMap<String, u64>,
    /// Lines of the log and records of the journal that found no room, by place: a disk or a reader did not keep up.
    pub left_out: BTreeMap<String, u64>,
}

/// The shared status.
#[derive(Debug, Clone, Default)]
pub struct Board {
    status: Arc<Mutex<Status>>,
    journal: Journal,
}

impl Board {
    /// A board whose events of children are written down in `journal`; without one ([`Board::default`]) they are only logged.
    pub fn with_journal(journal: Journal) -> Self {
        Self { journal, ..Self::default() }
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

    /// Changes the present window's entry.
    pub fn window(&self, change: impl FnOnce(&mut WindowStatus)) {
        self.update(|status| change(&mut status.window));
    }

    /// Remembers how a window ended, by its last word.
    pub fn finish(&self, window: FinishedWindow) {
        self.update(|status| {
            status.finished.retain(|finished| finished.window != window.window);
            status.finished.push(window);
            let surplus = status.finished.len().saturating_sub(HISTORY);
            status.finished.drain(..surplus);
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

    /// A copy of everything.
    pub fn snapshot(&self) -> Status {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.time = clock::unix_seconds();
        status.chain.age_seconds = status.chain.newest.map(|_| status.time - status.chain.since);
        status
    }
}

/// The status file, with a thread of its own that writes it: a disk that hangs holds up nobody.
#[derive(Debug, Clone)]
pub struct StatusFile {
    path: PathBuf,
    disk: Aside,
}

/// The disk is said to hang after this time.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

impl StatusFile {
    /// Nothing is written yet.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn at(path: PathBuf) -> std::io::Result<Self> {
        Ok(Self { path, disk: Aside::start("status", 1)? })
    }

    /// Writes it twice a second until it is cancelled, each time as a whole, and tells which places lose lines.
    pub async fn keep(self, board: Board) {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = false;
        loop {
            ticks.tick().await;
            board.look_for_losses();
            let (status, path) = (board.snapshot(), self.path.clone());
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
        let (status, path) = (board.snapshot(), self.path.clone());
        let written = self.disk.ask(limit, move || write_file(&status, &path)).await;
        if let Err(error) = written.map_err(std::io::Error::from).flatten() {
            tracing::warn!(%error, "The status file cannot be written.");
        }
    }
}

/// Replaces the status file in one step, so that a reader never sees half of it.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_file(status: &Status, path: &Path) -> std::io::Result<()> {
    let beside = path.with_extension("json.new");
    std::fs::write(&beside, secrets::clean(&serde_json::to_vec_pretty(status)?))?;
    std::fs::rename(beside, path)
}
