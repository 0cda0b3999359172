//! The groups of one window that are complete: encoded, judged, durable where the disk allows it, and in memory in any case.
//!
//! ```text
//!  sixteen rows ─ encode ─ read back and judge ─ spool ─▶ kept ─ close ─▶ the window's file
//!  spool of an earlier run ─ read ─ judge ────────────────▶ │
//!  a worker that is not believed any more ──────────────────┴─▶ its groups are taken out, on disk too
//! ```
//!
//! A disk that is full, read-only or hangs costs durability, never the window.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use grail_process::clock;
use grail_protocol::row::WindowRow;
use grail_store::window_file::{WindowMetadata, encode_group};
use tokio::sync::mpsc;

use crate::gate::{Judge, JudgedGroup};
use crate::groups::{Dropped, Group};
use crate::journal::{Journal, SpoolRefused, SpooledGroupUnusable};
use crate::spool::{GroupHeader, GroupRecord, Spool, SpoolError};
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
    journal: Journal,
    board: Board,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<i64, Kept>,
    bytes: usize,
    distrusted: BTreeSet<u32>,
    closed: bool,
    disk_rests_until: Option<Instant>,
    /// Who is told of every group that is kept.
    listener: Option<mpsc::UnboundedSender<(i64, Bytes)>>,
}

impl Harvest {
    /// An empty harvest of the window that `judge` speaks of; without a spool, one in memory only.
    pub fn new(judge: Judge, spool: Option<Arc<Spool>>, journal: Journal, board: Board) -> Self {
        Self { judge, spool, journal, board, state: Mutex::default() }
    }

    /// What rows are judged by.
    pub fn judge(&self) -> &Judge {
        &self.judge
    }

    /// Encodes, judges and spools one group, and keeps it. Says whether it is durable.
    ///
    /// # Errors
    /// When the gate holds it back, its worker is not believed any more, or the window is closed.
    pub async fn keep(self: &Arc<Self>, group: Group) -> Result<bool, Dropped> {
        let this = self.clone();
        let encoded = tokio::task::spawn_blocking(move || this.encode(&group)).await;
        let kept = encoded.map_err(|error| Dropped::Internal(error.to_string()))??;
        let (index, record) = (kept.record.header.index, kept.record.clone());
        let durable = self.on_willing_disk(move |spool| spool.put(&record)).await.is_some();
        let added = self.add(kept);
        if added.is_err() {
            self.on_disk(move |spool| spool.discard(index)).await;
        }
        added.map(|()| durable)
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
        let GroupHeader { index, worker, reward_sum, successes, .. } = kept.record.header;
        let mut state = self.state();
        if state.closed {
            return Err(Dropped::TooLate);
        }
        if state.distrusted.contains(&worker) {
            return Err(Dropped::Distrusted);
        }
        state.bytes += kept.record.file.len();
        if let Some(listener) = &state.listener {
            // One that has gone wants to know no more.
            _ = listener.send((index, kept.record.file.clone()));
        }
        state.groups.insert(index, kept);
        drop(state);
        self.board.window(|window| {
            window.spooled += 1;
            window.reward_sum += reward_sum;
            window.successes += successes;
        });
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
        let judged = self.judge.judge_group(&record.file).map_err(|doubt| doubt.to_string())?;
        if judged.index != index {
            return Err(format!("its rows are of group {}", judged.index));
        }
        self.add(Kept { record, judged }).map_err(|dropped| dropped.to_string())
    }

    /// Takes out every group of a worker, durably, and refuses any more of it. Says how many there were.
    pub async fn distrust(&self, worker: u32) -> usize {
        let out = self.take_out(worker);
        let indices: Vec<i64> = out.iter().map(|header| header.index).collect();
        self.on_disk(move |spool| indices.iter().try_for_each(|index| spool.discard(*index))).await;
        for GroupHeader { reward_sum, successes, .. } in &out {
            self.board.window(|window| {
                window.spooled = window.spooled.saturating_sub(1);
                window.reward_sum -= reward_sum;
                window.successes = window.successes.saturating_sub(*successes);
            });
        }
        out.len()
    }

    fn take_out(&self, worker: u32) -> Vec<GroupHeader> {
        let mut state = self.state();
        state.distrusted.insert(worker);
        let groups = std::mem::take(&mut state.groups);
        let (out, stay): (BTreeMap<_, _>, BTreeMap<_, _>) =
            groups.into_iter().partition(|(_, kept)| kept.record.header.worker == worker);
        state.bytes = stay.values().map(|kept| kept.record.file.len()).sum();
        state.groups = stay;
        out.into_values().map(|kept| kept.record.header).collect()
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
        if resting { None } else { self.on_disk(work).await }
    }

    /// Does something with the spool, on a thread of its own and within [`DISK_PATIENCE`]. `None` when there is no spool, or
    /// the disk refuses or hangs; the first refusal in a row is told.
    pub async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Spool) -> Result<T, SpoolError> + Send + 'static,
    ) -> Option<T> {
        let spool = self.spool.clone()?;
        let worked = tokio::time::timeout(DISK_PATIENCE, tokio::task::spawn_blocking(move || work(&spool))).await;
        let why = match worked {
            Ok(Ok(Ok(value))) => {
                self.state().disk_rests_until = None;
                return Some(value);
            }
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", DISK_PATIENCE.as_secs()),
        };
        let before = self.state().disk_rests_until.replace(clock::monotonic() + DISK_REST);
        if before.is_none() {
            self.journal.record(&SpoolRefused { window: self.judge.window, why });
        }
        None
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum_of_rewards(rows: &[WindowRow]) -> f64 {
    rows.iter().map(|row| row.commit.rollout.total_reward).sum()
}

#[cfg(test)]
pub(super) mod tests {
    use grail_protocol::keys::Hotkey;

    use super::*;
    use crate::gate;
    use crate::spool::{FileSystem, UnderWay};

    pub(in crate::window) fn harvest(folder: &std::path::Path, budget: u64) -> (Arc<Harvest>, Vec<i64>) {
        let hotkey = Hotkey::from_uri("//Alice").unwrap();
        let (spool, left) =
            Spool::open(Arc::new(FileSystem), folder, hotkey.address(), 600, &UnderWay::default(), budget).unwrap();
        let judge = gate::tests::judge(&hotkey);
        (Arc::new(Harvest::new(judge, Some(Arc::new(spool)), Journal::default(), Board::default())), left.groups)
    }

    pub(in crate::window) fn group(index: i64, worker: u32) -> Group {
        Group { index, worker, rows: gate::tests::rows(&Hotkey::from_uri("//Alice").unwrap(), index) }
    }

    fn indices(kept: Vec<Kept>) -> Vec<i64> {
        kept.into_iter().map(|kept| kept.record.header.index).collect()
    }

    #[tokio::test]
    async fn kept_groups_are_found_again_by_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = harvest(folder.path(), u64::MAX);
        assert!(first.keep(group(4, 0)).await.unwrap() && first.keep(group(9, 1)).await.unwrap());
        let (second, left) = harvest(folder.path(), u64::MAX);
        second.clone().recover(left).await;
        assert!(second.keep(group(12, 0)).await.unwrap());
        assert_eq!(second.groups(), 3);
        assert_eq!(indices(second.close()), [4, 9, 12]);
        assert_eq!(second.keep(group(13, 0)).await, Err(Dropped::TooLate), "a closed window takes no more");
    }

    #[tokio::test]
    async fn a_record_that_has_gone_is_said_to_have_gone_and_the_others_count() {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = harvest(folder.path(), u64::MAX);
        assert!(first.keep(group(4, 0)).await.unwrap() && first.keep(group(9, 1)).await.unwrap());
        let (second, left) = harvest(folder.path(), u64::MAX);
        second.spool.as_ref().unwrap().discard(4).unwrap();
        let why = second.recover_one(4).unwrap_err();
        assert!(why.contains("not in the spool any more"), "{why}");
        second.clone().recover(left).await;
        assert_eq!(indices(second.close()), [9]);
    }

    #[tokio::test]
    async fn a_distrusted_workers_groups_are_gone_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = harvest(folder.path(), u64::MAX);
        for (index, worker) in [(0, 0), (1, 1), (2, 0), (3, 1)] {
            first.keep(group(index, worker)).await.unwrap();
        }
        assert_eq!(first.distrust(1).await, 2);
        assert_eq!(first.keep(group(4, 1)).await, Err(Dropped::Distrusted));
        assert_eq!(indices(first.close()), [0, 2]);
        assert_eq!(harvest(folder.path(), u64::MAX).1, [0, 2], "on disk too");
    }

    #[tokio::test]
    async fn a_disk_that_refuses_costs_durability_and_not_the_group() {
        let folder = tempfile::tempdir().unwrap();
        let (full, _) = harvest(folder.path(), 10);
        assert_eq!(full.keep(group(0, 0)).await, Ok(false));
        assert_eq!((full.groups(), harvest(folder.path(), 10).1), (1, vec![]));
        assert_eq!(full.on_willing_disk(|spool| spool.reserve(64)).await, None, "it is left alone for a while");
        assert_eq!(full.on_disk(|spool| spool.reserve(64)).await, Some(()));
    }

    #[tokio::test]
    async fn what_the_gate_doubts_is_not_kept_and_not_recovered() {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = harvest(folder.path(), u64::MAX);
        let mut spoilt = group(5, 0);
        spoilt.rows[3].signature = spoilt.rows[2].signature.clone();
        assert!(matches!(first.keep(spoilt).await, Err(Dropped::Gate(why)) if why.contains("row 3")));
        first.keep(group(6, 0)).await.unwrap();
        let path = folder.path().join("600/group-0000006.record");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[700] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (second, left) = harvest(folder.path(), u64::MAX);
        second.clone().recover(left).await;
        assert_eq!(second.groups(), 0);
        assert!(!path.exists(), "what cannot be used is removed");
    }
}
