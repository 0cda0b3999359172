//! The window loop: one attempt per window, from its first block to the confirmed upload.
//!
//! ```text
//!  wait for a new window → what is in the spool → checkpoint and terms → children hold its revision
//!   → groups while they fit, encoded, judged and spooled one by one  (shift, harvest)
//!   → cut-off → file from the groups → gate → local copy  (closing)
//!   → upload → read back, beside the next window  (sending) → watched until nothing can replace its block  (finality_watch)
//! ```
//!
//! One task owns all of it but the files on their way; decisions about time are in [`Schedule`], which is pure. What an earlier run of the window left
//! is uploaded even where nothing can be mined any more: its groups are judged by the record that lies beside them.

mod closing;
mod early_upload;
mod facts;
mod finality_watch;
mod harvest;
mod heads;
mod mining_loop;
mod opening;
mod sending;
mod subnet;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use grail_chain::relays::Relays;
use grail_process::{SideThread, clock};
use grail_protocol::constants::{ROLLOUTS_PER_PROBLEM, WINDOW_LENGTH};
use grail_protocol::window::{object_key, window_start};
use grail_store::bucket::Bucket;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::events::{MiningBegan, SpoolExpired, SpoolRefused, WindowEnded, WindowOpened};
use crate::gate::Judge;
use crate::groups::MinerResources;
use crate::schedule::Schedule;
use crate::spool::{Expired, FileSystem, Growing, Indices, Left, Spool, WindowRecord};
use crate::status::{Board, ChainStatus, FinishedWindow, WindowStatus};
use grail_settings as settings;
use grail_subnet::chain::Chain;
use grail_subnet::checkpoints::Checkpoints;
use grail_subnet::terms::Terms;
use grail_supervision::journal::Journal;

use crate::clockwork::Clockwork;
use closing::Ending;
use early_upload::{Destination, EarlyUpload};
pub use finality_watch::Watch;
pub use harvest::{Harvest, Kept};
use heads::HeadUpdate;
pub use heads::Heads;
use mining_loop::{Findings, WindowContext};
pub use sending::Sending;
pub use subnet::Subnet;

pub use mining_loop::ROLLOUT_TARGET;

/// Longest wait for one answer of the chain in the middle of a window.
const CHAIN_PATIENCE: Duration = Duration::from_secs(5);
/// Between two questions to a chain that gives no head.
const HEAD_PAUSE: Duration = Duration::from_secs(2);
/// Time that opening the spool may take.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// The miner: everything that outlives a window.
pub struct Miner {
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// Who the trainer is, and where.
    pub subnet: Subnet,
    /// drand, unless it is not used.
    pub relays: Option<Relays>,
    /// Key, server, workers.
    pub resources: Arc<MinerResources>,
    /// Our bucket.
    pub bucket: Bucket,
    /// The trainer's checkpoints.
    pub checkpoints: Checkpoints,
    /// The thread that removes old ones.
    pub cache_disk: SideThread,
    /// Folder of the spool, and the thread that writes it.
    pub spool: PathBuf,
    /// See [`Miner::spool`].
    pub spool_disk: SideThread,
    /// Bytes of the parts in which a file leaves while its window runs; 0 sends it whole at the end.
    pub part_bytes: usize,
    /// Most bytes of one window's spool.
    pub spool_budget: u64,
    /// Folder of the local copies, and the thread that writes them.
    pub windows: PathBuf,
    /// See [`Miner::windows`].
    pub copies_disk: SideThread,
    /// Where progress is shown.
    pub board: Board,
    /// Where events are written down.
    pub journal: Journal,
    /// How proofs are checked before the upload.
    pub gate: settings::Gate,
    /// What decides about time.
    pub schedule: Schedule,
    /// The chain's newest block.
    pub heads: Heads,
    /// Seconds for an orderly stop.
    pub shutdown_budget: f64,
    /// The window that is being attempted.
    pub under_way: Option<u64>,
    /// Windows whose file is on its way, oldest first.
    pub sendings: Vec<Sending>,
    /// Uploaded files that may have to be withdrawn.
    pub finality_watches: Vec<Watch>,
}

/// Why a block must not be believed that the clock does not allow, by the times that the chain tells.
async fn refusal(chain: &dyn Chain, heads: &Heads, block: u64) -> Option<String> {
    let time = async |block| match tokio::time::timeout(CHAIN_PATIENCE, chain.block_time(block)).await {
        Ok(time) => time.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", CHAIN_PATIENCE.as_secs())),
    };
    match time(block).await {
        Ok(its) => {
            let known = match heads.newest() {
                Some((known, _)) => time(known).await.ok(),
                None => None,
            };
            heads.refuses(clock::unix_seconds(), (block, its), known)
        }
        Err(why) => Some(format!("the node tells block {block}, and does not have its time ({why})")),
    }
}

/// Why a window has no file in the bucket.
enum NoFile {
    /// It could not be mined at all.
    Skipped(String),
    /// It was mined, and nothing came of it.
    Empty(String),
    /// There is a doubt about what was mined, so it stays here.
    HeldBack(String),
}

/// The present window with what was in its spool.
struct Opened {
    clockwork: Clockwork,
    spool: Option<Arc<Spool>>,
    left: Left,
    /// Seconds of [`clock::unix_seconds`] when it was opened here.
    at: f64,
}

/// A harvest, and the reading of what an earlier run left, which goes on beside the mining.
struct OpenWindow {
    harvest: Arc<Harvest>,
    recovery: JoinHandle<()>,
    /// What leaves for the bucket meanwhile.
    ahead: Option<EarlyUpload>,
    /// What it is judged by.
    sheet: WindowRecord,
}

impl Miner {
    /// Mines window after window until told to stop, or until `limit` windows were attempted.
    pub async fn run(&mut self, stop: &CancellationToken, limit: Option<u64>) {
        self.take_up_watches().await;
        let mut last = None;
        let mut attempted = 0;
        while !stop.is_cancelled() && limit.is_none_or(|limit| attempted < limit) {
            self.take_arrivals();
            let Ok(block) = self.head(CHAIN_PATIENCE).await else {
                pause(stop, HEAD_PAUSE).await;
                continue;
            };
            self.board.update(|status| status.block = block);
            let window = window_start(block);
            if last.is_some_and(|last| window <= last) {
                self.await_window(window + WINDOW_LENGTH, stop).await;
                continue;
            }
            self.under_way = Some(window);
            let finished = self.window(window, stop).await;
            self.under_way = None;
            attempted += u64::from(finished.as_ref().is_none_or(|finished| finished.outcome != "skipped"));
            if let Some(finished) = finished {
                conclude(&self.journal, &self.board, finished);
            }
            last = Some(window);
        }
        self.await_sendings().await;
        self.await_watches().await;
    }

    /// The chain's newest block. What it says, and that it says nothing, is told where it is news.
    async fn head(&mut self, patience: Duration) -> Result<u64, String> {
        let answer = match tokio::time::timeout(patience, self.chain.head()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {:.1} s", patience.as_secs_f64())),
        };
        let answer = match answer {
            Ok(block) if !self.heads.allows(clock::unix_seconds(), block) => {
                let confirmed = tokio::time::timeout(patience, self.confirmed(block)).await;
                confirmed.unwrap_or_else(|_| Err(format!("block {block} was not confirmed in time")))
            }
            answer => answer,
        };
        match self.heads.heard(clock::unix_seconds(), answer.clone()) {
            Some(HeadUpdate::Silent(event)) => self.journal.record(&event),
            Some(HeadUpdate::Again(event)) => self.journal.record(&event),
            None => {}
        }
        let (newest, since) = self.heads.newest().unzip();
        let chain = ChainStatus { newest, since: since.unwrap_or_default(), stale: self.heads.is_stale(), age_seconds: None };
        self.board.update(|status| status.chain = chain);
        answer
    }

    /// A head that the clock does not allow, if the chain has it, and its time is one that it can have.
    async fn confirmed(&mut self, block: u64) -> Result<u64, String> {
        let Some(why) = refusal(self.chain.as_ref(), &self.heads, block).await else { return Ok(block) };
        if self.heads.doubt(block) {
            tracing::warn!(why, "A head is not believed: the clock does not allow it.");
        }
        Err(why)
    }

    /// Puts on record that the window that [`Miner::run`] had under way was not brought to its end, if there is one.
    pub fn break_off(&mut self) {
        for sending in std::mem::take(&mut self.sendings) {
            sending.give_up("the supervisor was stopped");
        }
        self.leave_watches();
        let Some(window) = self.under_way.take() else { return };
        let status = self.board.snapshot().window;
        let reason = format!(
            "the supervisor was stopped while the window was {}; {} groups are in the spool, and a start before the deadline goes on with them",
            status.phase, status.spooled
        );
        let outcome = "broken off".into();
        conclude(&self.journal, &self.board, FinishedWindow { outcome, reason: Some(reason), ..FinishedWindow::of(window) });
    }

    async fn await_window(&self, window: u64, stop: &CancellationToken) {
        if self.sendings.is_empty() {
            self.board.window(|status| status.phase = format!("waiting for window {window}"));
        }
        // A node that hangs must not keep the next window from being seen.
        let patience = CHAIN_PATIENCE.min(Duration::from_secs_f64(self.chain.nominal_block_seconds()));
        let opens = tokio::time::timeout(patience, self.chain.block_time(window)).await;
        let left = opens.ok().and_then(Result::ok).map_or(2.0, |time| time - clock::unix_seconds());
        if self.sendings.is_empty() {
            grail_supervision::failpoint::pass("idle").await;
        }
        pause(stop, Duration::from_secs_f64(left.clamp(0.05, 2.0))).await;
    }

    /// One attempt. `None`: the file is on its way, and who brings it tells how the window ended.
    async fn window(&mut self, window: u64, stop: &CancellationToken) -> Option<FinishedWindow> {
        self.board.update(|status| {
            status.window = WindowStatus { window, phase: "opening".into(), ..WindowStatus::default() };
        });
        let mut finished = FinishedWindow::of(window);
        let (outcome, reason) = match self.attempt(window, stop, &mut finished.checkpoint_window).await {
            Ok(Ending::AlreadyThere(closed)) => {
                closed.tell(&mut finished);
                return Some(finished);
            }
            Ok(Ending::OnItsWay(dispatch)) => {
                let (dispatch, total) = *dispatch;
                total.tell(&mut finished);
                self.send_off(dispatch, finished);
                return None;
            }
            Err(NoFile::Skipped(reason)) => ("skipped", reason),
            Err(NoFile::Empty(reason)) => ("empty", reason),
            Err(NoFile::HeldBack(reason)) => ("held back", reason),
        };
        finished.outcome = outcome.into();
        finished.reason = Some(reason);
        Some(finished)
    }

    async fn attempt(&mut self, window: u64, stop: &CancellationToken, checkpoint: &mut Option<u64>) -> Result<Ending, NoFile> {
        let opened = self.open(window, stop).await?;
        // Begun at once, because judging a full window takes seconds.
        let mut gathering = opened.left.sheet.clone().map(|sheet| self.gather(&opened, &sheet));
        let mined = self.mine(&opened, &mut gathering, stop, checkpoint).await;
        let (findings, why_not) = match mined {
            Ok(findings) => (findings, None),
            Err(why) => (Findings::default(), Some(why)),
        };
        match (gathering, why_not) {
            (Some(gathering), why_not) if why_not.is_none() || !opened.left.groups.is_empty() => {
                *checkpoint = Some(gathering.harvest.judge().checkpoint_window);
                if let Some(NoFile::Skipped(why)) = &why_not {
                    tracing::warn!(why, "Nothing more can be mined; what the spool holds is uploaded.");
                }
                self.close(&opened, gathering, findings, why_not).await
            }
            (_, why_not) => Err(why_not.unwrap_or_else(|| NoFile::Empty("no group was finished in time".into()))),
        }
    }

    /// The window's deadline and its spool. A disk that refuses is told, and costs durability only.
    async fn open(&mut self, window: u64, stop: &CancellationToken) -> Result<Opened, NoFile> {
        let at = clock::unix_seconds();
        let (disk, root, budget) = (Arc::new(FileSystem), self.spool.clone(), self.spool_budget);
        let wallet = self.resources.hotkey.address().to_owned();
        let under_way = self.windows_under_way();
        let opening = self.spool_disk.ask(OPEN_PATIENCE, move || Spool::open(disk, &root, &wallet, window, &under_way, budget));
        let opened =
            opening.await.map_err(|error| error.to_string()).and_then(|opened| opened.map_err(|error| error.to_string()));
        let (spool, left) = match opened {
            Ok((spool, left)) => (Some(Arc::new(spool)), left),
            Err(why) => {
                self.journal.record(&SpoolRefused { window, why });
                (None, Left::default())
            }
        };
        for Expired { window, groups, sending } in left.lost.iter().copied() {
            self.journal.record(&SpoolExpired { window, groups, sending });
        }
        self.abort_growing(left.growing.clone());
        let deadline = self.deadline(window, left.sheet.as_ref(), stop).await?;
        self.board.window(|status| status.deadline = deadline);
        self.journal.record(&WindowOpened { window, deadline, spooled: left.groups.len(), next_index: left.next_index });
        Ok(Opened { clockwork: Clockwork { window, deadline }, spool, left, at })
    }

    /// Ends multipart uploads that nobody goes on with.
    fn abort_growing(&self, growing: Vec<Growing>) {
        let (bucket, hotkey) = (self.bucket.clone(), self.resources.hotkey.address().to_owned());
        tokio::spawn(async move {
            for Growing { window, upload } in growing {
                if let Err(error) = bucket.abort_parts(&object_key(&hotkey, window), &upload).await {
                    tracing::warn!(%error, window, "The parts of a file that was not finished may stay in the bucket.");
                }
            }
        });
    }

    /// A harvest under `sheet`, with the reading of what is in the spool begun.
    fn gather(&self, opened: &Opened, sheet: &WindowRecord) -> OpenWindow {
        let judge = Judge {
            hotkey: self.resources.hotkey.address().to_owned(),
            scheme: self.resources.hotkey.scheme(),
            window: opened.clockwork.window,
            block_hash: sheet.block_hash.clone(),
            checkpoint_window: sheet.checkpoint_window,
            vocab_size: sheet.vocab_size,
            max_positions: sheet.max_positions,
        };
        let key = object_key(self.resources.hotkey.address(), opened.clockwork.window);
        let (spool, disk) = (opened.spool.clone(), self.spool_disk.clone());
        let harvest = Harvest::new(judge, spool, disk, self.journal.clone(), self.board.clone());
        let harvest = Arc::new(harvest.after(&opened.left.sent, &key));
        if !opened.left.groups.is_empty() {
            tracing::info!(groups = opened.left.groups.len(), "Groups of this window were found in the spool.");
        }
        let destination =
            Destination { bucket: self.bucket.clone(), key, part_bytes: self.part_bytes, deadline: opened.clockwork.deadline };
        let ahead = (self.part_bytes > 0).then(|| EarlyUpload::begin(&harvest, destination));
        let recovery = tokio::spawn(harvest.clone().recover(opened.left.groups.clone()));
        OpenWindow { harvest, recovery, ahead, sheet: sheet.clone() }
    }

    /// Everything between opening and closing. An error says why nothing more can be mined.
    async fn mine(
        &mut self,
        opened: &Opened,
        gathering: &mut Option<OpenWindow>,
        stop: &CancellationToken,
        checkpoint: &mut Option<u64>,
    ) -> Result<Findings, NoFile> {
        let Opened { clockwork, left, .. } = opened;
        let kept = left.groups.len() * ROLLOUTS_PER_PROBLEM;
        let (terms, facts) = self.prepared(clockwork, kept, stop).await?;
        *checkpoint = Some(terms.revision.window);
        self.board.window(|status| {
            status.revision = Some(terms.revision.to_string());
            status.phase = "loading the checkpoint".into();
        });
        let sheet = WindowRecord {
            block_hash: facts.block_hash.clone(),
            checkpoint_window: terms.revision.window,
            vocab_size: terms.vocab_size,
            max_positions: terms.max_positions,
            deadline: clockwork.deadline,
        };
        let key = object_key(self.resources.hotkey.address(), clockwork.window);
        self.condemn_earlier(opened, &key, &sheet).await;
        // A sheet of another checkpoint: validators take the newest one, and its groups are judged by this one.
        if left.sheet.as_ref().is_some_and(|before| !before.judges_like(&sheet))
            && let Some(stale) = gathering.take()
        {
            stale.harvest.close();
            self.board.window(|status| (status.spooled, status.reward_sum, status.successes) = (0, 0.0, 0));
        }
        if gathering.is_none() {
            *gathering = Some(self.gather(opened, &sheet));
        }
        let Some(OpenWindow { harvest, .. }) = gathering.as_ref() else {
            return Err(NoFile::Skipped("no harvest was begun".into()));
        };
        let harvest = harvest.clone();
        harvest.on_disk(move |spool| spool.keep_sheet(&sheet)).await;
        self.await_children(&terms, clockwork, kept, stop).await?;
        let revision = terms.revision.to_string();
        let seconds = clock::unix_seconds() - opened.at;
        self.journal.record(&MiningBegan { window: clockwork.window, revision, seconds });
        let site = WindowContext { clockwork: clockwork.clone(), terms: terms.clone(), facts: Arc::new(facts), harvest };
        let findings = self.generate(&site, self.indices(opened), stop).await;
        // A disk that is busy with it is left to it.
        self.cache_disk.offer(self.checkpoints.clean(&terms));
        Ok(findings)
    }

    fn indices(&self, opened: &Opened) -> Indices {
        let mut indices = Indices::from_bound(opened.left.next_index.unwrap_or(0));
        if opened.left.next_index.is_none() {
            let block_seconds = self.chain.nominal_block_seconds();
            let milliseconds = opened.clockwork.milliseconds_into(clock::unix_seconds(), block_seconds);
            indices.take_from_the_clock(milliseconds, self.schedule.choice().groups);
        }
        indices
    }

    /// The server and at least one worker must hold the window's weights, in time to upload `rollouts` that are there.
    async fn await_children(
        &self,
        terms: &Terms,
        clockwork: &Clockwork,
        rollouts: usize,
        stop: &CancellationToken,
    ) -> Result<(), NoFile> {
        let command = self.checkpoints.reload_command().ok_or_else(|| NoFile::Skipped("no checkpoint is loaded".into()))?;
        self.resources.proofs.reload(command.clone());
        self.resources.generator.reload(command);
        let left =
            Duration::try_from_secs_f64(self.schedule.cut_off(clockwork, rollouts) - clock::unix_seconds()).unwrap_or_default();
        let ready = async {
            self.resources.proofs.serving(&terms.revision).await;
            self.resources.generator.judged(&terms.revision);
            self.resources.generator.replicas().awaited(&terms.revision).await;
        };
        tokio::select! {
            ready = tokio::time::timeout(left, ready) => {
                ready.map_err(|_| NoFile::Skipped("the children did not hold the checkpoint before the window's end".into()))
            }
            why = self.resources.proofs.refusing(&terms.revision) => Err(NoFile::Skipped(format!("a proof worker refused the checkpoint: {why}"))),
            why = self.resources.generator.refusing(&terms.revision) => Err(NoFile::Skipped(format!("the generation server refused the checkpoint: {why}"))),
            () = stop.cancelled() => Err(NoFile::Skipped("the supervisor is stopping".into())),
        }
    }
}

async fn pause(stop: &CancellationToken, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}

/// Puts on record how a window ended.
fn conclude(journal: &Journal, board: &Board, finished: FinishedWindow) {
    journal.record(&ended(&finished));
    board.update(|status| {
        if status.window.window == finished.window {
            status.window.phase = finished.outcome.clone();
        }
    });
    board.finish(finished);
}

fn ended(finished: &FinishedWindow) -> WindowEnded {
    WindowEnded {
        window: finished.window,
        outcome: finished.outcome.clone(),
        reason: finished.reason.clone(),
        rollouts: finished.rollouts,
        checkpoint: finished.checkpoint_window,
        mean_reward: finished.mean_reward,
    }
}
