//! The miner's part of the board: written by those who mine, read by the live view and the status file.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use grail_process::clock;
use grail_supervision::board::{self, Part};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How many finished windows are remembered.
const HISTORY: usize = 24;

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

/// What is shown of the mining, beside the host's own fields.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// The hotkey's address.
    pub hotkey: String,
    /// Newest block; by the clock where the chain tells none.
    pub block: u64,
    /// What is heard of the chain.
    pub chain: ChainStatus,
    /// The present window.
    pub window: WindowStatus,
    /// The last windows, oldest first.
    pub finished: Vec<FinishedWindow>,
}

/// The host's board with the miner's part.
#[derive(Debug, Clone, Default)]
pub struct Board {
    /// Children, GPUs, events.
    pub host: board::Board,
    mining: Mining,
}

#[derive(Debug, Clone, Default)]
struct Mining(Arc<Mutex<Status>>);

impl Mining {
    fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn snapshot(&self) -> Status {
        let mut status = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.chain.age_seconds = status.chain.newest.map(|_| clock::unix_seconds() - status.chain.since);
        status
    }
}

impl Part for Mining {
    fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self.snapshot()) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        }
    }
}

/// Children, GPUs and events are the host's.
impl Deref for Board {
    type Target = board::Board;

    fn deref(&self) -> &board::Board {
        &self.host
    }
}

impl Board {
    /// The miner's part is shown on `host` from now on.
    pub fn on(host: &board::Board) -> Self {
        let board = Self { host: host.clone(), mining: Mining::default() };
        host.show(Arc::new(board.mining.clone()));
        board
    }

    /// Changes something of the mining.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.mining.update(change);
    }

    /// A copy of what is shown of the mining.
    pub fn snapshot(&self) -> Status {
        self.mining.snapshot()
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
}
