//! The window loop: one attempt per window, from its first block to the confirmed upload.
//!
//! ```text
//!  wait for a new window → checkpoint and terms → children hold its revision → groups while they fit
//!   → cut-off → file from the spool → gate → upload → read back → local copy
//! ```
//!
//! One task owns all of it; decisions about time are in [`Clockwork`], which is pure.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use grail_process::clock;
use grail_protocol::constants::{DEADLINE_SLACK_SECONDS, ROLLOUTS_PER_PROBLEM, UNIQUE_ROLLOUTS_CAP, WINDOW_LENGTH};
use grail_protocol::derivation::miner_randomness;
use grail_protocol::hexadecimal::without_prefix;
use grail_protocol::row::WindowRow;
use grail_protocol::sketch::coefficients;
use grail_protocol::time_budget::TimeBudget;
use grail_protocol::window::{object_key, window_start};
use grail_store::bucket::Bucket;
use grail_store::retention::keep_last;
use grail_store::window_file::{WindowMetadata, WindowWriter};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::chain::{Chain, ChainError};
use crate::checkpoints::{Checkpoints, Unready};
use crate::gate;
use crate::groups::{self, Dropped, Group, Terms, WindowFacts, Workshop};
use crate::spool::Spool;
use crate::status::{Board, FinishedWindow, WindowStatus};
use crate::upload::{WindowObject, upload};

/// Local copies of window files that are kept.
const KEPT_WINDOWS: usize = 3;
/// Beyond the cap only insurance is gained: a tenth more covers one lost window of a period of twelve.
const ROLLOUT_TARGET: usize = (UNIQUE_ROLLOUTS_CAP + UNIQUE_ROLLOUTS_CAP / 10) as usize;
/// Wait before another group after one that failed at a server or worker, so that a lasting fault does not burn indices.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Share of the shutdown budget that groups under way get.
const FINISHING_SHARE: f64 = 1.0 / 3.0;

/// When groups may start and when they must be done. Times are Unix seconds.
#[derive(Debug, Clone)]
pub struct Clockwork {
    /// First block of the window.
    pub window: u64,
    /// Uploads after this are ignored by validators.
    pub deadline: f64,
}

impl Clockwork {
    /// Groups that are not durable by then are abandoned: what is left is for closing a file of `rollouts`, and for
    /// uploading it twice over.
    pub fn cut_off(&self, budget: &TimeBudget, closing: &ClosingTime, rollouts: usize) -> f64 {
        let upload = budget.upload_seconds().min(budget.block_seconds() * 2.0);
        self.deadline - 2.0 * upload - closing.expected(rollouts)
    }

    /// The reference's gate (grail-miner 4) and, for clocks faster than the network's, the deadline itself.
    pub fn admits(&self, budget: &TimeBudget, closing: &ClosingTime, rollouts: usize, block: u64, now: f64) -> bool {
        window_start(block) == self.window
            && budget.admits(block, self.window)
            && now + budget.generation_seconds().min(budget.block_seconds() * 6.0) < self.cut_off(budget, closing, rollouts)
    }
}

/// How long it takes from the last group to a file that has passed the gate. A late file is a lost window, so a slow close is
/// remembered at once and a fast one believed slowly.
#[derive(Debug, Clone)]
pub struct ClosingTime {
    seconds_per_rollout: f64,
}

impl Default for ClosingTime {
    /// Before anything was measured: slower than any host that mines.
    fn default() -> Self {
        Self { seconds_per_rollout: 0.004 }
    }
}

impl ClosingTime {
    const FIXED_SECONDS: f64 = 0.5;
    const MARGIN: f64 = 1.5;

    /// Seconds to plan for a file of `rollouts`.
    pub fn expected(&self, rollouts: usize) -> f64 {
        Self::FIXED_SECONDS + Self::MARGIN * self.seconds_per_rollout * rollouts as f64
    }

    /// A file of `rollouts` took `seconds`.
    pub fn observe(&mut self, rollouts: usize, seconds: f64) {
        let measured = seconds / rollouts.max(1) as f64;
        self.seconds_per_rollout = measured.max(0.8 * self.seconds_per_rollout + 0.2 * measured);
    }
}

/// The miner: everything that outlives a window.
pub struct Miner {
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// Key, server, workers.
    pub workshop: Arc<Workshop>,
    /// Our bucket.
    pub bucket: Bucket,
    /// The trainer's checkpoints.
    pub checkpoints: Checkpoints,
    /// Folder of the spool.
    pub spool: PathBuf,
    /// Folder of the local copies.
    pub windows: PathBuf,
    /// Where progress is shown.
    pub board: Board,
    /// Averages that the gate decides by.
    pub budget: TimeBudget,
    /// What closing a file takes here.
    pub closing: ClosingTime,
    /// Groups under way at once.
    pub groups_in_flight: usize,
    /// Seconds for an orderly stop.
    pub shutdown_budget: f64,
}

/// Why a window has no file in the bucket.
enum NoFile {
    /// It could not be mined at all.
    Skipped(String),
    /// It was mined, and nothing came of it.
    Empty(String),
    /// Finished groups were lost.
    Lost(String),
}

/// What a closed window put into the bucket.
struct Closed {
    rollouts: u32,
    bytes: u64,
    mean_reward: f64,
    seconds: f64,
}

impl Miner {
    /// Mines window after window until told to stop, or until `limit` windows were attempted.
    pub async fn run(&mut self, stop: &CancellationToken, limit: Option<u64>) {
        let mut last = None;
        let mut attempted = 0;
        while !stop.is_cancelled() && limit.is_none_or(|limit| attempted < limit) {
            let window = match self.chain.head().await {
                Ok(block) => {
                    self.board.update(|status| status.block = block);
                    window_start(block)
                }
                Err(error) => {
                    tracing::warn!(%error, "The chain gives no head.");
                    pause(stop, Duration::from_secs(2)).await;
                    continue;
                }
            };
            if last.is_some_and(|last| window <= last) {
                self.await_window(window + WINDOW_LENGTH, stop).await;
                continue;
            }
            let finished = self.window(window, stop).await;
            attempted += u64::from(finished.outcome != "skipped");
            tell(&finished);
            self.board.window(|status| status.phase = finished.outcome.clone());
            self.board.finish(finished);
            last = Some(window);
        }
    }

    async fn await_window(&self, window: u64, stop: &CancellationToken) {
        self.board.window(|status| status.phase = format!("waiting for window {window}"));
        let left = self.chain.block_time(window).await.map_or(2.0, |time| time - clock::unix_seconds());
        crate::failpoint::pass("idle").await;
        pause(stop, Duration::from_secs_f64(left.clamp(0.05, 2.0))).await;
    }

    async fn window(&mut self, window: u64, stop: &CancellationToken) -> FinishedWindow {
        self.board.update(|status| {
            status.window = WindowStatus { window, phase: "looking for the checkpoint".into(), ..WindowStatus::default() };
        });
        let mut finished = FinishedWindow {
            window,
            outcome: "uploaded".into(),
            reason: None,
            rollouts: 0,
            bytes: 0,
            checkpoint_window: None,
            mean_reward: 0.0,
            close_seconds: 0.0,
        };
        let (outcome, reason) = match self.mine(window, stop, &mut finished.checkpoint_window).await {
            Ok(closed) => {
                finished.rollouts = closed.rollouts;
                finished.bytes = closed.bytes;
                finished.mean_reward = closed.mean_reward;
                finished.close_seconds = closed.seconds;
                return finished;
            }
            Err(NoFile::Skipped(reason)) => ("skipped", reason),
            Err(NoFile::Empty(reason)) => ("empty", reason),
            Err(NoFile::Lost(reason)) => ("lost", reason),
        };
        finished.outcome = outcome.into();
        finished.reason = Some(reason);
        finished
    }

    async fn mine(&mut self, window: u64, stop: &CancellationToken, checkpoint: &mut Option<u64>) -> Result<Closed, NoFile> {
        let deadline = self.chain.block_time(window + WINDOW_LENGTH).await.map_err(skip)? - DEADLINE_SLACK_SECONDS;
        let clockwork = Clockwork { window, deadline };
        let terms = self.checkpoints.terms_for(window).await.map_err(|unready| match unready {
            Unready::None => NoFile::Skipped(
                "there is no checkpoint that was ready before this window (on a local chain: grail-supervisor publish-checkpoint DIR)".into(),
            ),
            Unready::Unusable(why) => NoFile::Skipped(why),
        })?;
        *checkpoint = Some(terms.revision.window);
        self.board.window(|status| {
            status.deadline = deadline;
            status.revision = Some(terms.revision.to_string());
            status.phase = "loading the checkpoint".into();
        });
        self.await_children(&terms, &clockwork, stop).await?;
        let facts = self.facts(window).await?;
        let spool = Spool::open(&self.spool, self.workshop.hotkey.address(), window).map_err(skip)?;
        self.generate(&clockwork, &terms, &Arc::new(facts), &spool, stop).await?;
        self.board.window(|status| status.phase = "closing".into());
        let closed = self.close(&clockwork, &terms, &spool).await?;
        spool.clear();
        self.checkpoints.clean(&terms);
        Ok(closed)
    }

    /// The server and at least one worker must hold the window's weights.
    async fn await_children(&self, terms: &Terms, clockwork: &Clockwork, stop: &CancellationToken) -> Result<(), NoFile> {
        let command = self.checkpoints.reload_command().ok_or_else(|| NoFile::Skipped("no checkpoint is loaded".into()))?;
        self.workshop.proofs.reload(command.clone());
        self.workshop.generator.reload(command);
        let left = Duration::try_from_secs_f64(clockwork.cut_off(&self.budget, &self.closing, 0) - clock::unix_seconds())
            .unwrap_or_default();
        let ready = async {
            self.workshop.generator.serving_revision(&terms.revision).await;
            self.workshop.proofs.serving(&terms.revision).await;
        };
        tokio::select! {
            ready = tokio::time::timeout(left, ready) => {
                ready.map_err(|_| NoFile::Skipped("the children did not hold the checkpoint before the window's end".into()))
            }
            why = self.workshop.proofs.refusing(&terms.revision) => Err(NoFile::Skipped(format!("a proof worker refused the checkpoint: {why}"))),
            why = self.workshop.generator.refusing(&terms.revision) => Err(NoFile::Skipped(format!("the generation server refused the checkpoint: {why}"))),
            () = stop.cancelled() => Err(NoFile::Skipped("the supervisor is stopping".into())),
        }
    }

    async fn facts(&self, window: u64) -> Result<WindowFacts, NoFile> {
        let block_hash = self.chain.block_hash(window).await.map_err(skip)?;
        // The local chain has no beacon. Without one the reference writes the hash with its 0x, which every validator's
        // schema refuses; without the prefix all bytes that are derived from it are the same.
        let randomness = without_prefix(&miner_randomness(&block_hash, None)).to_owned();
        let coefficients = coefficients(&randomness).map_err(skip)?;
        Ok(WindowFacts { window, block_hash, randomness, use_drand: false, coefficients })
    }

    /// Starts groups while they fit and makes each finished one durable, until the cut-off.
    async fn generate(
        &mut self,
        clockwork: &Clockwork,
        terms: &Arc<Terms>,
        facts: &Arc<WindowFacts>,
        spool: &Spool,
        stop: &CancellationToken,
    ) -> Result<(), NoFile> {
        let (next_index, rollouts) = self.resume(spool)?;
        let mut shift = Shift { jobs: JoinSet::new(), next_index, blocked_until: 0.0, rollouts };
        let mut stopped_at = None;
        loop {
            let block = self.chain.head().await.unwrap_or(clockwork.window);
            let now = clock::unix_seconds();
            self.budget.observe_block(block, now);
            self.board.update(|status| status.block = block);
            if stop.is_cancelled() {
                stopped_at.get_or_insert(now);
            }
            let finishing = stopped_at.map_or(f64::INFINITY, |at| at + self.shutdown_budget * FINISHING_SHARE);
            let planned = shift.rollouts + shift.jobs.len().max(1) * ROLLOUTS_PER_PROBLEM;
            let cut_off = clockwork.cut_off(&self.budget, &self.closing, planned).min(finishing);
            let admits = clockwork.admits(&self.budget, &self.closing, planned, block, now);
            let open = stopped_at.is_none() && shift.rollouts < ROLLOUT_TARGET && admits;
            // Without a server an index would be burnt for nothing.
            let served = self.workshop.generator.serving().is_some_and(|serving| serving.revision == terms.revision);
            if open && served && now >= shift.blocked_until {
                while shift.jobs.len() < self.groups_in_flight {
                    shift.start(&self.workshop, terms, facts, block);
                }
            }
            let phase = match (open, served) {
                (true, true) => "mining",
                (true, false) => "waiting for the generation server",
                (false, _) => "finishing groups",
            };
            self.board.window(|status| {
                status.phase = phase.into();
                status.in_flight = shift.jobs.len() as u32;
            });
            if (shift.jobs.is_empty() && !open) || now >= cut_off {
                break;
            }
            let tick = Duration::from_secs_f64((cut_off - now).clamp(0.01, (self.budget.block_seconds() / 4.0).clamp(0.05, 1.0)));
            tokio::select! {
                Some(ended) = shift.jobs.join_next() => self.record(ended, &mut shift, spool),
                () = tokio::time::sleep(tick) => {}
                () = stop.cancelled(), if stopped_at.is_none() => {}
            }
        }
        for _ in 0..shift.jobs.len() {
            self.count_drop(&Dropped::TooLate);
        }
        shift.jobs.shutdown().await;
        self.board.window(|status| status.in_flight = 0);
        Ok(())
    }

    /// Groups of this very window that an earlier run left in the spool stay in it; indices go on after theirs.
    fn resume(&self, spool: &Spool) -> Result<(i64, usize), NoFile> {
        let groups = spool.groups().map_err(skip)?;
        for rows in &groups {
            self.count_spooled(rows);
        }
        if !groups.is_empty() {
            tracing::info!(groups = groups.len(), "Groups of this window were found in the spool.");
        }
        let next_index = groups.iter().flatten().map(|row| row.rollout_group + 1).max().unwrap_or(0);
        Ok((next_index, groups.iter().map(Vec::len).sum()))
    }

    fn record(&mut self, ended: Result<Ended, tokio::task::JoinError>, shift: &mut Shift, spool: &Spool) {
        let Ended { index, seconds, result } = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "A group's task ended abnormally.");
                return self.count_drop(&Dropped::Generation(error.to_string()));
            }
        };
        let kept = result.and_then(|group| {
            spool.put(group.index, &group.rows).map_err(|error| Dropped::Spool(error.to_string()))?;
            Ok(group)
        });
        match kept {
            Ok(group) => {
                self.budget.observe_kept_group(seconds);
                shift.rollouts += group.rows.len();
                self.count_spooled(&group.rows);
            }
            Err(dropped) => {
                tracing::warn!(group = index, cause = %dropped, detail = dropped.detail(), "A group was dropped.");
                if matches!(dropped, Dropped::ShortCompletion) {
                    self.budget.observe_dropped_group(seconds);
                }
                if !dropped.detail().is_empty() || dropped == Dropped::Revision {
                    shift.blocked_until = clock::unix_seconds() + PAUSE_AFTER_FAILURE.as_secs_f64();
                }
                self.count_drop(&dropped);
            }
        }
    }

    fn count_drop(&self, dropped: &Dropped) {
        self.board.window(|status| *status.dropped.entry(dropped.to_string()).or_default() += 1);
    }

    fn count_spooled(&self, rows: &[WindowRow]) {
        self.board.window(|status| {
            status.spooled += 1;
            status.reward_sum += rows.iter().map(|row| row.commit.rollout.total_reward).sum::<f64>();
            status.successes += rows.iter().filter(|row| row.commit.rollout.success).count() as u32;
        });
    }

    /// The file from the spool, through the gate, into the bucket.
    async fn close(&mut self, clockwork: &Clockwork, terms: &Terms, spool: &Spool) -> Result<Closed, NoFile> {
        let begun = clock::monotonic();
        let groups = spool.groups().map_err(|error| NoFile::Lost(error.to_string()))?;
        // Weights may have changed between an earlier run of this window and this one; a file speaks of one checkpoint.
        let (rows, foreign): (Vec<_>, Vec<_>) =
            groups.into_iter().flatten().partition(|row| row.checkpoint_window == terms.revision.window.cast_signed());
        if !foreign.is_empty() {
            tracing::warn!(rollouts = foreign.len(), "Spooled rollouts of another checkpoint are left out.");
        }
        if rows.is_empty() {
            return Err(NoFile::Empty(self.why_empty()));
        }
        crate::failpoint::pass("closing").await;
        let rollouts = rows.len();
        let mean_reward = rows.iter().map(|row| row.commit.rollout.total_reward).sum::<f64>() / rollouts as f64;
        let wallet = self.workshop.hotkey.address().to_owned();
        let key = object_key(&wallet, clockwork.window);
        let path = self.windows.join(key.rsplit('/').next().unwrap_or(&key));
        let job = FileJob {
            path: path.clone(),
            metadata: WindowMetadata { wallet, window_start: clockwork.window.cast_signed(), timestamp: clock::unix_seconds() },
            rows,
            judge: self.judge(clockwork.window, terms).await.map_err(|error| NoFile::Lost(error.to_string()))?,
        };
        let made = tokio::task::spawn_blocking(move || job.run()).await.unwrap_or_else(|error| Err(error.to_string()));
        let (size, sha256) = made.map_err(NoFile::Lost)?;
        self.closing.observe(rollouts, begun.elapsed().as_secs_f64());
        self.board.window(|status| status.phase = "uploading".into());
        let object = WindowObject { key: &key, path: &path, size, sha256 };
        let spent = upload(&self.bucket, &object, clockwork.deadline).await.map_err(|error| NoFile::Lost(error.to_string()))?;
        self.budget.observe_upload(spent.as_secs_f64());
        Ok(Closed { rollouts: rollouts as u32, bytes: size, mean_reward, seconds: begun.elapsed().as_secs_f64() })
    }

    async fn judge(&self, window: u64, terms: &Terms) -> Result<gate::Judge, ChainError> {
        Ok(gate::Judge {
            hotkey: self.workshop.hotkey.address().to_owned(),
            scheme: self.workshop.hotkey.scheme(),
            window,
            block_hash: self.chain.block_hash(window).await?,
            checkpoint_window: terms.revision.window,
            vocab_size: terms.vocab_size,
            max_positions: terms.max_positions,
        })
    }

    fn why_empty(&self) -> String {
        let dropped = self.board.snapshot().window.dropped;
        let causes: Vec<String> = dropped.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
        if causes.is_empty() {
            "no group was finished in time".into()
        } else {
            format!("every group was dropped: {}", causes.join(", "))
        }
    }
}

/// The groups under way in one window.
struct Shift {
    jobs: JoinSet<Ended>,
    next_index: i64,
    blocked_until: f64,
    rollouts: usize,
}

struct Ended {
    index: i64,
    seconds: f64,
    result: Result<Group, Dropped>,
}

impl Shift {
    fn start(&mut self, workshop: &Arc<Workshop>, terms: &Arc<Terms>, facts: &Arc<WindowFacts>, block: u64) {
        let index = self.next_index;
        self.next_index += 1;
        let group = groups::make(workshop.clone(), terms.clone(), facts.clone(), index, block);
        self.jobs.spawn(async move {
            let begun = clock::monotonic();
            let result = group.await;
            Ended { index, seconds: begun.elapsed().as_secs_f64(), result }
        });
    }
}

/// Encoding, reading back and judging: seconds of CPU for a full window, so on a thread of its own.
struct FileJob {
    path: PathBuf,
    metadata: WindowMetadata,
    rows: Vec<WindowRow>,
    judge: gate::Judge,
}

impl FileJob {
    fn run(self) -> Result<(u64, [u8; 32]), String> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|error| format!("the folder {folder:?} cannot be made: {error}"))?;
        let mut writer = WindowWriter::new(Vec::new(), &self.metadata).map_err(|error| error.to_string())?;
        for group in self.rows.chunks(ROLLOUTS_PER_PROBLEM) {
            writer.append_group(group).map_err(|error| error.to_string())?;
        }
        let bytes = writer.finish().map_err(|error| error.to_string())?;
        let sha256 = Sha256::digest(&bytes).into();
        let size = bytes.len() as u64;
        write_durably(&self.path, &bytes).map_err(|error| format!("{:?} cannot be written: {error}", self.path))?;
        keep_last(folder, KEPT_WINDOWS).map_err(|error| error.to_string())?;
        self.judge.judge(bytes).map_err(|doubt| format!("the gate holds the file back: {doubt}"))?;
        Ok((size, sha256))
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut beside = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut beside, bytes)?;
    beside.as_file().sync_all()?;
    beside.persist(path).map(|_| ()).map_err(|error| error.error)
}

fn skip(error: impl std::fmt::Display) -> NoFile {
    NoFile::Skipped(error.to_string())
}

async fn pause(stop: &CancellationToken, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}

fn tell(finished: &FinishedWindow) {
    let FinishedWindow { window, outcome, rollouts, bytes, mean_reward, close_seconds, .. } = finished;
    match &finished.reason {
        None => tracing::info!(window, rollouts, bytes, mean_reward, close_seconds, "The window is uploaded and was read back."),
        Some(reason) => tracing::warn!(window, outcome, reason, "The window has no file in the bucket."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_respects_the_deadline_and_the_time_to_close() {
        let mut budget = TimeBudget::new(1.0, 3.0).unwrap();
        budget.observe_kept_group(2.0);
        budget.observe_upload(0.2);
        let (clockwork, closing) = (Clockwork { window: 30, deadline: 26.0 }, ClosingTime::default());
        assert!((clockwork.cut_off(&budget, &closing, 0) - 25.1).abs() < 1e-9);
        assert!((clockwork.cut_off(&budget, &closing, 500) - 22.1).abs() < 1e-9);
        assert!(clockwork.admits(&budget, &closing, 500, 52, 20.0));
        assert!(!clockwork.admits(&budget, &closing, 500, 52, 20.2), "the group would end after the cut-off");
        assert!(!clockwork.admits(&budget, &closing, 0, 54, 10.0), "the reference's gate is closed");
        assert!(!clockwork.admits(&budget, &closing, 0, 60, 10.0), "another window");
    }

    #[test]
    fn one_long_group_does_not_close_the_gate_for_ever() {
        let mut budget = TimeBudget::new(12.0, 3.0).unwrap();
        budget.observe_dropped_group(3600.0);
        let clockwork = Clockwork { window: 0, deadline: 356.0 };
        assert!(clockwork.admits(&budget, &ClosingTime::default(), 0, 0, 0.0));
    }

    #[test]
    fn a_slow_close_is_remembered_and_a_fast_one_believed_slowly() {
        let mut closing = ClosingTime::default();
        closing.observe(1000, 10.0);
        assert!((closing.expected(1000) - 15.5).abs() < 1e-9);
        closing.observe(1000, 1.0);
        assert!((closing.expected(1000) - 12.8).abs() < 1e-9);
    }
}
