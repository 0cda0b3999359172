//! A file in the bucket until nothing can change what it is judged by: rows name the hash of the window's first block, and a file
//! whose block was replaced costs more windows than it brings (grail-validation: `block_hash_mismatch`).
//!
//! What is watched is on disk (`spool::sent`), so a start goes on with it, whichever window it comes in.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use grail_process::clock;
use grail_protocol::constants::{MAX_FILE_BYTES, ROLLOUTS_PER_PROBLEM, WINDOW_LENGTH};
use grail_store::bucket::{Bucket, BucketError};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{CHAIN_PATIENCE, Miner, OPEN_PATIENCE, conclude};
use crate::chain::{Chain, ChainError};
use crate::journal::{FileWithdrawn, Journal};
use crate::spool::{self, FileSystem, Uploaded, WindowSheet};
use crate::status::{Board, FinishedWindow};

/// Windows after the deadline in which a file may still be judged.
const WATCHED_WINDOWS: f64 = 2.0;
/// Longest wait for one removal, and the same in blocks: an upload of the same window waits for it.
const REMOVAL: (Duration, f64) = (Duration::from_secs(10), 2.0);
/// A planned end waits so long for first blocks that become final.
const LAST_LOOKS: Duration = Duration::from_secs(5);

/// What lies under a window's key, as far as this process knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum There {
    /// Only the bucket knows.
    #[default]
    Unknown,
    /// The file with this SHA-256, hex.
    File(String),
    /// What lay there was removed.
    Removed,
}

/// A window's key. Whoever changes what lies there holds it, so that the removal of a file never meets the upload of the next one.
pub(super) type Place = Arc<Mutex<There>>;

/// A file that is watched. Dropped, it is not watched any more.
pub struct Watch {
    window: u64,
    place: Place,
    task: AbortOnDropHandle<()>,
}

/// The watch over one file.
struct Vigil {
    chain: Arc<dyn Chain>,
    bucket: Bucket,
    journal: Journal,
    board: Board,
    spool: std::path::PathBuf,
    window: u64,
    file: Uploaded,
    place: Place,
    /// Why every row would be rejected, where that is known already.
    condemned: Option<String>,
}

impl Watch {
    /// Whether the file's fate is still open.
    pub(super) fn goes_on(&self) -> bool {
        !self.task.is_finished()
    }
}

impl Miner {
    /// Watches `file` of `window`, which lies at `place` or may lie there.
    pub(super) fn watch(&mut self, window: u64, file: Uploaded, place: Place, condemned: Option<String>) {
        let vigil = Vigil {
            chain: self.chain.clone(),
            bucket: self.bucket.clone(),
            journal: self.journal.clone(),
            board: self.board.clone(),
            spool: self.spool.clone(),
            window,
            file,
            place: place.clone(),
            condemned,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(vigil.keep()));
        self.vigils.push(Watch { window, place, task });
    }

    /// Goes on with the files of earlier runs that may still be judged.
    pub(super) async fn take_up_vigils(&mut self) {
        let root = self.spool.clone();
        let reading = tokio::task::spawn_blocking(move || spool::sent(&FileSystem, &root));
        let found = match tokio::time::timeout(OPEN_PATIENCE, reading).await {
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(error))) => {
                return tracing::warn!(%error, "Which files earlier runs have sent cannot be told; they are not watched.");
            }
            _ => return tracing::warn!("The disk does not say which files earlier runs have sent; they are not watched."),
        };
        for (window, sent) in found {
            let there = sent.known().map_or(There::Unknown, |file| There::File(file.sha256.clone()));
            let place = Place::new(Mutex::new(there));
            for file in sent.files().cloned().collect::<Vec<_>>() {
                tracing::info!(window, "The file of an earlier run is watched again until its window's first block is final.");
                self.watch(window, file, place.clone(), None);
            }
        }
    }

    /// Withdraws what earlier runs of this window have sent and `sheet` does not judge like their own: validators reject all of it,
    /// and that costs more windows than this one. It goes on beside the mining.
    pub(super) fn condemn_earlier(&mut self, window: u64, key: &str, sent: &spool::Sent, sheet: &WindowSheet) {
        let condemned: Vec<Uploaded> =
            sent.files().filter(|file| file.key == key && !file.sheet.judges_like(sheet)).cloned().collect();
        for file in condemned {
            let why = if file.sheet.block_hash == sheet.block_hash {
                let (was, now) = (file.sheet.checkpoint_window, sheet.checkpoint_window);
                format!("its rows are of checkpoint {was} as it was, and the window's checkpoint is {now} now")
            } else {
                replaced(window, &file.sheet.block_hash, &sheet.block_hash)
            };
            let place = self.place(window);
            self.watch(window, file, place, Some(why));
        }
    }

    /// The window's key.
    pub(super) fn place(&self, window: u64) -> Place {
        let known = self.vigils.iter().find(|watch| watch.window == window).map(|watch| watch.place.clone());
        known.unwrap_or_default()
    }

    /// Windows with a file that is still watched.
    pub(super) fn watched(&self) -> Vec<u64> {
        self.vigils.iter().filter(|watch| watch.goes_on()).map(|watch| watch.window).collect()
    }

    /// Gives what is still watched a moment to become final.
    pub(super) async fn await_vigils(&mut self) {
        let looks = join_all(self.vigils.iter_mut().map(|watch| &mut watch.task));
        // Who is not ready in time is told of when the run is broken off.
        let _ = tokio::time::timeout(LAST_LOOKS, looks).await;
        self.vigils.retain(Watch::goes_on);
    }

    /// Says which files the next start has to watch.
    pub(super) fn leave_vigils(&mut self) {
        let windows = self.watched();
        self.vigils.clear();
        if !windows.is_empty() {
            tracing::warn!(
                ?windows,
                "The first block of these windows is not known to be final yet: the next start goes on watching their files, and removes what a \
                 reorganisation has made worthless."
            );
        }
    }
}

impl Vigil {
    /// Looks once a block until the window's first block is final, or was replaced and the file is out of the bucket, or everybody
    /// has judged it.
    async fn keep(self) {
        let block = Duration::from_secs_f64(self.chain.nominal_block_seconds());
        let end = self.file.sheet.deadline + WATCHED_WINDOWS * WINDOW_LENGTH as f64 * block.as_secs_f64();
        while clock::unix_seconds() < end {
            let verdict = match &self.condemned {
                Some(why) => Ok(Ok(Some(why.clone()))),
                None => tokio::time::timeout(CHAIN_PATIENCE, self.look()).await,
            };
            match verdict {
                Ok(Ok(Some(why))) if self.withdraw(&why, REMOVAL.0.min(block.mul_f64(REMOVAL.1))).await => return,
                Ok(Ok(None)) => return,
                // A chain that gives no answer, or a bucket that does not: the next look may find one.
                _ => {}
            }
            tokio::time::sleep(block).await;
        }
    }

    /// Why every row would be rejected; `None` where that cannot happen any more; an error where it still can.
    async fn look(&self) -> Result<Option<String>, ChainError> {
        let (window, was) = (self.window, &self.file.sheet.block_hash);
        // In this order: of a final block the hash that is read then is the last word.
        let is_final = self.chain.is_final(window).await?;
        let now = self.chain.block_hash(window).await?;
        match (now == *was, is_final) {
            (false, _) => Ok(Some(replaced(window, was, &now))),
            (true, true) => Ok(None),
            (true, false) => Err(ChainError::NotYet { block: window, head: window }),
        }
    }

    /// Whether the file is out of the bucket.
    async fn withdraw(&self, why: &str, limit: Duration) -> bool {
        let window = self.window;
        let mut there = self.place.lock().await;
        let removed = match tokio::time::timeout(limit, self.remove(&there)).await {
            Ok(Ok(removed)) => removed,
            Ok(Err(error)) => {
                tracing::error!(%error, window, "A file that validators reject cannot be removed; it is tried again.");
                return false;
            }
            Err(_) => {
                tracing::error!(window, ?limit, "A file that validators reject was not removed in time; it is tried again.");
                return false;
            }
        };
        if removed {
            *there = There::Removed;
            self.forget().await;
            self.tell(why);
        }
        true
    }

    /// Removes the file if that is what lies there. Says whether it was.
    async fn remove(&self, there: &There) -> Result<bool, BucketError> {
        let lies = match there {
            There::Unknown => self.ask().await?,
            There::File(sha256) => Some(sha256.clone()),
            There::Removed => None,
        };
        if lies.as_ref() != Some(&self.file.sha256) {
            return Ok(false);
        }
        self.bucket.delete(&self.file.key).await.map(|()| true)
    }

    /// SHA-256 of what the bucket holds.
    async fn ask(&self) -> Result<Option<String>, BucketError> {
        match self.bucket.get(&self.file.key, MAX_FILE_BYTES).await {
            Ok(bytes) => Ok(Some(hex::encode(Sha256::digest(&bytes)))),
            Err(BucketError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is not forgotten is looked for once more by the next start, and not found.
    async fn forget(&self) {
        let (root, window, sheet) = (self.spool.clone(), self.window, self.file.sheet.clone());
        let forgetting = tokio::task::spawn_blocking(move || spool::forget(&FileSystem, &root, window, &sheet));
        if let Ok(Ok(Err(error))) = tokio::time::timeout(OPEN_PATIENCE, forgetting).await {
            tracing::warn!(%error, window, "The disk still says that the file was sent.");
        }
    }

    fn tell(&self, why: &str) {
        let Uploaded { groups, bytes, sheet, .. } = &self.file;
        self.journal.record(&FileWithdrawn { window: self.window, why: why.into() });
        let finished = FinishedWindow {
            outcome: "withdrawn".into(),
            reason: Some(format!("{why}, so every row would be rejected; the file was removed")),
            rollouts: (groups * ROLLOUTS_PER_PROBLEM) as u32,
            bytes: *bytes,
            checkpoint_window: Some(sheet.checkpoint_window),
            ..FinishedWindow::of(self.window)
        };
        conclude(&self.journal, &self.board, finished);
    }
}

fn replaced(window: u64, was: &str, now: &str) -> String {
    format!("the chain was reorganised after the upload: block {window} was {was} and is {now} now")
}
