//! The groups of one window that are complete: encoded, judged, durable where the disk allows it, and in memory in any case.
//!
//! ```text
//!  sixteen rows ─ encode ─ read back and judge ─▶ kept ─ close ─▶ the window's file
//!                                                 └────▶ spool, on a thread of its own
//!  spool of an earlier run ─ read ─ judge ────────────────▶ │
//!  a worker that is not believed any more ──────────────────┴─▶ its groups are taken out, on disk too; and what an earlier run
//!  a doubt about all of them                                    has brought into the bucket is to be withdrawn
//! ```
//!
//! A disk that is full, read-only or hangs costs durability, never the window: one thread alone writes the spool, in the order in
//! which things happened, and nobody waits for it twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use grail_process::{SideThread, clock};
use grail_protocol::row::WindowRow;
use grail_store::window_file::{WindowMetadata, encode_group, read_window};
use grail_supervision::journal::Journal;
use tokio::sync::mpsc;

use crate::events::{SpoolRefused, SpooledGroupUnusable};
use crate::gate::{Judge, JudgedGroup};
use crate::groups::{Dropped, Group};
use crate::spool::{CondemnedFile, GroupHeader, GroupRecord, Sent, Spool, SpoolError, Uploaded, Verdict};
use crate::status::Board;

/// How long a group waits for the disk before it is kept in memory only.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
/// A disk that refused is left alone for this time.
const DISK_REST: Duration = Duration::from_secs(5);

/// A group that may go into the window's file.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The group, encoded.
    pub record: GroupRecord,
    /// What the gate found in it.
    pub judged: JudgedGroup,
}

/// The complete groups of one window.
#[derive(Debug)]
pub struct Harvest {
    judge: Judge,
    spool: Option<Arc<Spool>>,
    /// The thread that writes the spool.
    disk: SideThread,
    journal: Journal,
    board: Board,
    /// What earlier runs have sent.
    sent: Sent,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<i64, Kept>,
    /// Those of them that the status counts: the disk has answered for them.
    counted: BTreeSet<i64>,
    bytes: usize,
    distrusted: BTreeSet<u32>,
    /// Nothing of this window is believed.
    held_back: bool,
    /// Something that an earlier run has kept must not be judged, so nothing that it has sent may be.
    tainted: bool,
    /// Files that are to be taken out of the bucket, until somebody does.
    condemned: Vec<CondemnedFile>,
    closed: bool,
    /// How long anybody waits for the disk, where that is not [`DISK_PATIENCE`].
    disk_patience: Option<Duration>,
    disk_rests_until: Option<Instant>,
    /// Who is told of every group that is kept.
    listener: Option<mpsc::UnboundedSender<(i64, Bytes)>>,
}

impl Harvest {
    /// An empty harvest of the window that `judge` speaks of, whose spool is written on `disk`; without a spool, one in memory only.
    pub fn new(judge: Judge, spool: Option<Arc<Spool>>, disk: SideThread, journal: Journal, board: Board) -> Self {
        Self { judge, spool, disk, journal, board, sent: Sent::default(), state: Mutex::default() }
    }

    /// With what earlier runs of the window have sent under `key`: a verdict on groups concerns it too.
    pub fn after(mut self, sent: &Sent, key: &str) -> Self {
        let of_the_key = |file: &Option<Uploaded>| file.clone().filter(|file| file.key == key);
        let (uploaded, sending) = (of_the_key(&sent.uploaded), of_the_key(&sent.sending));
        self.sent = Sent { uploaded, sending, condemned: sent.condemned.clone() };
        self
    }

    /// What rows are judged by.
    pub fn judge(&self) -> &Judge {
        &self.judge
    }

    /// Encodes, judges and keeps one group, and spools it. Says whether it is durable. Cancelled once it is kept, it stays kept.
    ///
    /// # Errors
    /// When the gate holds it back, its worker is not believed any more, or the window is closed.
    pub async fn keep(self: &Arc<Self>, group: Group) -> Result<bool, Dropped> {
        let this = self.clone();
        let encoded = tokio::task::spawn_blocking(move || this.encode(&group)).await;
        let kept = encoded.map_err(|error| Dropped::Internal(error.to_string()))??;
        let (index, record) = (kept.record.header.index, kept.record.clone());
        self.add(kept)?;
        let this = self.clone();
        // What was taken out meanwhile must not come back; what is taken out later is discarded behind this.
        let put = move |spool: &Spool| if this.worker_of(index).is_some() { spool.put(&record) } else { Ok(()) };
        let durable = self.on_willing_disk(put).await.is_some();
        self.count(index);
        Ok(durable)
    }

    /// Counts a kept group in the status, once.
    pub fn count(&self, index: i64) {
        let mut state = self.state();
        let Some(GroupHeader { reward_sum, successes, .. }) = state.groups.get(&index).map(|kept| kept.record.header.clone())
        else {
            return;
        };
        if state.counted.insert(index) {
            self.board.window(|window| {
                window.spooled += 1;
                window.reward_sum += reward_sum;
                window.successes += successes;
            });
        }
    }

    /// Who proved a group that is kept.
    pub fn worker_of(&self, index: i64) -> Option<u32> {
        self.state().groups.get(&index).map(|kept| kept.record.header.worker)
    }

    fn encode(&self, group: &Group) -> Result<Kept, Dropped> {
        let metadata = self.metadata(clock::unix_seconds());
        let file = Bytes::from(encode_group(&metadata, &group.rows).map_err(|error| Dropped::Gate(error.to_string()))?);
        let judged = self.judge.judge_group(&file).map_err(|doubt| Dropped::Gate(doubt.to_string()))?;
        let header = GroupHeader {
            wallet: self.judge.hotkey.clone(),
            window: self.judge.window,
            index: group.index,
            checkpoint_window: self.judge.checkpoint_window,
            worker: group.worker,
            reward_sum: sum_of_rewards(&group.rows),
            successes: group.rows.iter().filter(|row| row.commit.rollout.success).count() as u32,
        };
        if judged.index != group.index {
            return Err(Dropped::Gate(format!("its rows are of group {}", judged.index)));
        }
        Ok(Kept { record: GroupRecord { header, file }, judged })
    }

    /// The metadata of a file of this window.
    pub fn metadata(&self, timestamp: f64) -> WindowMetadata {
        let Judge { hotkey, window, .. } = &self.judge;
        WindowMetadata { wallet: hotkey.clone(), window_start: window.cast_signed(), timestamp }
    }

    fn add(&self, kept: Kept) -> Result<(), Dropped> {
        let GroupHeader { index, worker, .. } = kept.record.header;
        let mut state = self.state();
        if state.closed {
            return Err(Dropped::TooLate);
        }
        if state.held_back || state.distrusted.contains(&worker) {
            return Err(Dropped::Distrusted);
        }
        state.bytes += kept.record.file.len();
        if let Some(listener) = &state.listener {
            // One that has gone wants to know no more.
            _ = listener.send((index, kept.record.file.clone()));
        }
        state.groups.insert(index, kept);
        Ok(())
    }

    /// Reads and judges what an earlier run left. Seconds of CPU for a full window, so it goes on beside the mining. What
    /// cannot be used is left out, told, and removed.
    pub async fn recover(self: Arc<Self>, indices: Vec<i64>) {
        let recovered = tokio::task::spawn_blocking(move || {
            for index in indices {
                if self.state().closed {
                    return;
                }
                if let Err(why) = self.recover_one(index) {
                    let window = self.judge.window;
                    self.journal.record(&SpooledGroupUnusable { window, group: index, why });
                    let removed = self.spool.as_ref().map(|spool| spool.discard(index));
                    if let Some(Err(error)) = removed {
                        tracing::warn!(%error, "An unusable group cannot be removed from the spool.");
                    }
                }
            }
        });
        if let Err(error) = recovered.await {
            tracing::error!(%error, "Reading the spool ended abnormally.");
        }
    }

    fn recover_one(&self, index: i64) -> Result<(), String> {
        let spool = self.spool.as_ref().ok_or("there is no spool")?;
        let record = spool.group(index).map_err(|error| match error {
            SpoolError::Disk { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "its record is not in the spool any more (a withdrawn file takes its groups along)".to_owned()
            }
            error => error.to_string(),
        })?;
        if let Some(why) = self.sent.condemned.verdict_on(index, record.header.worker) {
            return Err(format!("a run before has found that it must not be uploaded: {why}"));
        }
        let judged = self.judge_again(index, &record);
        if let Err(why) = &judged
            && self.is_of_this_sheet(&record)
        {
            // It is as it was written, and whoever wrote it has sent it too.
            let why = format!("group {index}, which an earlier run has kept, does not pass the gate ({why})");
            if let Err(error) = spool.condemn(None, self.condemn(&why)) {
                tracing::error!(%error, "What must not be judged is not on disk.");
            }
        }
        self.add(Kept { judged: judged?, record }).map_err(|dropped| dropped.to_string())?;
        self.count(index);
        Ok(())
    }

    fn judge_again(&self, index: i64, record: &GroupRecord) -> Result<JudgedGroup, String> {
        let judged = self.judge.judge_group(&record.file).map_err(|doubt| doubt.to_string())?;
        if judged.index == index { Ok(judged) } else { Err(format!("its rows are of group {}", judged.index)) }
    }

    /// Whether the rows are meant to be judged by the same as here: those of another checkpoint, or of a first block that was replaced,
    /// are in another file.
    fn is_of_this_sheet(&self, record: &GroupRecord) -> bool {
        let Ok(file) = read_window(record.file.clone()) else { return true };
        let (hash, checkpoint) = (&self.judge.block_hash, self.judge.checkpoint_window.cast_signed());
        file.rows.iter().all(|row| row.block_hash == *hash && row.checkpoint_window == checkpoint)
    }

    /// Takes out every group of a worker, durably, and refuses any more of it; what earlier runs have sent is to be withdrawn. All
    /// groups so far are `below`. Says how many there were.
    pub async fn distrust(&self, worker: u32, below: i64, why: &str) -> usize {
        let out = self.take_out(Some(worker));
        self.put_out(out, Verdict { worker: Some(worker), below, why: why.to_owned() }).await
    }

    /// The same with all groups, whoever has proved them.
    pub async fn hold_back(&self, below: i64, why: &str) -> usize {
        let out = self.take_out(None);
        self.put_out(out, Verdict { worker: None, below, why: why.to_owned() }).await
    }

    /// On disk: the verdict first, for removing takes time.
    async fn put_out(&self, out: Vec<GroupHeader>, verdict: Verdict) -> usize {
        let (files, indices) = (self.condemn(&verdict.why), out.iter().map(|header| header.index).collect::<Vec<_>>());
        self.on_disk(move |spool| {
            spool.condemn(Some(verdict), files)?;
            indices.iter().try_for_each(|index| spool.discard(*index))
        })
        .await;
        for GroupHeader { index, reward_sum, successes, .. } in &out {
            if !self.state().counted.remove(index) {
                continue;
            }
            self.board.window(|window| {
                window.spooled = window.spooled.saturating_sub(1);
                window.reward_sum -= reward_sum;
                window.successes = window.successes.saturating_sub(*successes);
            });
        }
        out.len()
    }

    fn take_out(&self, worker: Option<u32>) -> Vec<GroupHeader> {
        let mut state = self.state();
        match worker {
            Some(worker) => _ = state.distrusted.insert(worker),
            None => state.held_back = true,
        }
        let groups = std::mem::take(&mut state.groups);
        let (out, stay): (BTreeMap<_, _>, BTreeMap<_, _>) =
            groups.into_iter().partition(|(_, kept)| worker.is_none_or(|worker| kept.record.header.worker == worker));
        state.bytes = stay.values().map(|kept| kept.record.file.len()).sum();
        state.groups = stay;
        out.into_values().map(|kept| kept.record.header).collect()
    }

    /// From now on nothing that earlier runs have sent may be judged. Which groups are in it, only the bucket could say.
    fn condemn(&self, why: &str) -> Vec<CondemnedFile> {
        let mut state = self.state();
        if std::mem::replace(&mut state.tainted, true) {
            return Vec::new();
        }
        let condemned =
            |file: &Uploaded| CondemnedFile { file: file.clone(), why: why.to_owned(), groups_too: false, anything_else: false };
        let files: Vec<_> = self.sent.files().map(condemned).collect();
        state.condemned.clone_from(&files);
        files
    }

    /// Nothing that earlier runs have sent may be judged, whichever groups are in it.
    pub async fn condemn_sent(&self, why: &str) {
        let files = self.condemn(why);
        if !files.is_empty() {
            self.on_disk(move |spool| spool.condemn(None, files)).await;
        }
    }

    /// Whether nothing that earlier runs have sent may be judged.
    pub fn is_tainted(&self) -> bool {
        self.state().tainted
    }

    /// What is to be taken out of the bucket, once.
    pub fn take_condemned(&self) -> Vec<CondemnedFile> {
        std::mem::take(&mut self.state().condemned)
    }

    /// Every group that is kept from now on, in that order: its index and its file.
    pub fn listen(&self) -> mpsc::UnboundedReceiver<(i64, Bytes)> {
        let (tell, groups) = mpsc::unbounded_channel();
        self.state().listener = Some(tell);
        groups
    }

    /// Groups kept so far.
    pub fn groups(&self) -> usize {
        self.state().groups.len()
    }

    /// Bytes of the groups kept so far: what the window's file will have, but for its footer.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Takes no more, and gives what there is, in order of the indices.
    pub fn close(&self) -> Vec<Kept> {
        let mut state = self.state();
        state.closed = true;
        state.listener = None;
        std::mem::take(&mut state.groups).into_values().collect()
    }

    /// As [`Harvest::on_disk`], but spares a disk that has just refused: nobody shall wait for it again and again.
    pub async fn on_willing_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Spool) -> Result<T, SpoolError> + Send + 'static,
    ) -> Option<T> {
        let resting = self.state().disk_rests_until.is_some_and(|until| clock::monotonic() < until);
        if resting || self.disk.held_up() >= self.patience() { None } else { self.on_disk(work).await }
    }

    /// Does something with the spool, behind everything that was to be done before, and waits for it for a limited time, once
    /// for a disk that hangs. `None` when there is no spool, or the disk refuses or hangs; the first refusal in a row is told. What
    /// a disk that hangs was to do is done when it is back.
    pub async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Spool) -> Result<T, SpoolError> + Send + 'static,
    ) -> Option<T> {
        let spool = self.spool.clone()?;
        let why = match self.disk.ask(self.patience(), move || work(&spool)).await {
            Ok(Ok(value)) => {
                self.state().disk_rests_until = None;
                return Some(value);
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let before = self.state().disk_rests_until.replace(clock::monotonic() + DISK_REST);
        if before.is_none() {
            self.journal.record(&SpoolRefused { window: self.judge.window, why });
        }
        None
    }

    fn patience(&self) -> Duration {
        self.state().disk_patience.unwrap_or(DISK_PATIENCE)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum_of_rewards(rows: &[WindowRow]) -> f64 {
    rows.iter().map(|row| row.commit.rollout.total_reward).sum()
}

#[cfg(test)]
#[path = "harvest_tests.rs"]
pub(super) mod tests;
