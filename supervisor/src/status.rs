//! What the supervisor is doing, in one place: written by those who do it, read by the live view, the status file and the logs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grail_process::clock;
use serde::{Deserialize, Serialize};

use crate::children::ChildState;

/// How many finished windows are remembered.
const HISTORY: usize = 24;

/// One child as operators see it.
#[derive(Debug, Clone, Serialize)]
pub struct ChildStatus {
    /// Where it is in its life.
    pub state: ChildState,
    /// Revision of the weights it holds.
    pub revision: Option<String>,
    /// Process id while it lives.
    pub pid: Option<u32>,
    /// How often it has ended without being asked to.
    pub ends: u32,
    /// Why it ended last.
    pub last_end: Option<String>,
}

impl Default for ChildStatus {
    fn default() -> Self {
        Self { state: ChildState::Absent, revision: None, pid: None, ends: 0, last_end: None }
    }
}

impl ChildStatus {
    /// Enters a state; `why` is given when the child ended.
    pub fn enter(&mut self, state: ChildState, why: Option<String>) {
        self.state = state;
        if let Some(why) = why {
            self.ends += 1;
            self.last_end = Some(why);
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
    /// `uploaded`, `skipped`, `empty`, `held back` or `lost`.
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

/// Everything that is shown.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Process id of the supervisor.
    pub pid: u32,
    /// The hotkey's address.
    pub hotkey: String,
    /// Newest block.
    pub block: u64,
    /// Unix seconds of this snapshot.
    pub time: f64,
    /// Children by name.
    pub children: BTreeMap<String, ChildStatus>,
    /// The present window.
    pub window: WindowStatus,
    /// The last windows, oldest first.
    pub finished: Vec<FinishedWindow>,
    /// Events of this run by kind, as the journal has them.
    pub events: BTreeMap<String, u64>,
}

/// The shared status.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Status>>);

impl Board {
    /// Changes something.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes one child's entry.
    pub fn child(&self, name: &str, change: impl FnOnce(&mut ChildStatus)) {
        self.update(|status| change(status.children.entry(name.to_owned()).or_default()));
    }

    /// Changes the present window's entry.
    pub fn window(&self, change: impl FnOnce(&mut WindowStatus)) {
        self.update(|status| change(&mut status.window));
    }

    /// Remembers how a window ended.
    pub fn finish(&self, window: FinishedWindow) {
        self.update(|status| {
            status.finished.push(window);
            let surplus = status.finished.len().saturating_sub(HISTORY);
            status.finished.drain(..surplus);
        });
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> Status {
        let mut status = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.time = clock::unix_seconds();
        status
    }
}

/// Writes the status file twice a second until it is cancelled, each time as a whole.
pub async fn keep_file(board: Board, path: std::path::PathBuf) {
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    loop {
        ticks.tick().await;
        if let Err(error) = write_file(&board.snapshot(), &path) {
            tracing::warn!(%error, path = %path.display(), "The status file cannot be written.");
        }
    }
}

/// Replaces the status file in one step, so that a reader never sees half of it.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_file(status: &Status, path: &Path) -> std::io::Result<()> {
    let beside = path.with_extension("json.new");
    std::fs::write(&beside, serde_json::to_vec_pretty(status)?)?;
    std::fs::rename(beside, path)
}
