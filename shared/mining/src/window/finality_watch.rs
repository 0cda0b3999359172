//! A file in the bucket until nothing can change what it is judged by: rows name the hash of the window's first block, and a file
//! whose block was replaced costs more windows than it brings (grail-validation: `block_hash_mismatch`). And a file of which is
//! known already that it must not be judged: it holds groups that are not believed, or rows of a checkpoint that has changed.
//!
//! What is watched is on disk (`spool::sent`), so a start goes on with it, whichever window it comes in.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use grail_process::{SideThread, SideThreadError, clock};
use grail_protocol::constants::{MAX_FILE_BYTES, ROLLOUTS_PER_PROBLEM, WINDOW_LENGTH};
use grail_store::bucket::{Bucket, BucketError};
use grail_subnet::chain::{Chain, ChainError};
use grail_supervision::journal::Journal;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{CHAIN_PATIENCE, Harvest, Heads, Miner, OPEN_PATIENCE, Opened, conclude, refusal};
use crate::events::{FileStays, FileWithdrawn};
use crate::spool::{self, CondemnedFile, FileSystem, Uploaded, WindowRecord};
use crate::status::{Board, FinishedWindow};
use crate::upload::{remove_twin, twin};

/// Windows after the deadline in which a file may still be judged.
const WATCHED_WINDOWS: f64 = 2.0;
/// Longest wait for one removal, and the same in blocks: an upload of the same window waits for it.
const REMOVAL: (Duration, f64) = (Duration::from_secs(10), 2.0);
/// A planned end waits so long for first blocks that become final.
const LAST_LOOKS: Duration = Duration::from_secs(5);

/// What lies under a window's key, as far as this process knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum ObjectPresence {
    /// Only the bucket knows.
    #[default]
    Unknown,
    /// The file with this SHA-256, hex.
    File(String),
    /// What lay there was removed.
    Removed,
}

/// A window's key. Whoever changes what lies there holds it, so that the removal of a file never meets the upload of the next one.
pub(super) type Place = Arc<Mutex<ObjectPresence>>;

/// A file that is watched. Dropped, it is not watched any more.
pub struct Watch {
    window: u64,
    place: Place,
    /// It is to be taken out, whatever the chain says.
    condemned: bool,
    task: AbortOnDropHandle<()>,
}

/// The watch over one file.
struct FinalityWatch {
    chain: Arc<dyn Chain>,
    bucket: Bucket,
    journal: Journal,
    board: Board,
    spool: std::path::PathBuf,
    spool_disk: SideThread,
    window: u64,
    file: Uploaded,
    place: Place,
    /// Why it must not be judged, where that is known already.
    condemned: Option<Condemnation>,
}

/// Why a file must not be judged.
#[derive(Debug, Clone)]
struct Condemnation {
    why: String,
    /// Groups that are judged by the same sheet are worth nothing either.
    groups_too: bool,
    /// Not the file is meant, but anything else in its place.
    anything_else: bool,
}

/// What lies at the place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ObjectState {
    /// What must not be judged.
    Condemned,
    /// Nothing, or something that may stay.
    Well,
}

impl Watch {
    /// Whether the file's fate is still open.
    pub(super) fn goes_on(&self) -> bool {
        !self.task.is_finished()
    }
}

impl Miner {
    /// Watches `file` of `window`, which lies at `place` or may lie there.
    pub(super) fn watch(&mut self, window: u64, file: Uploaded, place: Place) {
        self.keep_watch(window, file, place, None);
    }

    /// Takes a file out of the bucket, beside the mining.
    pub(super) fn withdraw(&mut self, window: u64, condemned: CondemnedFile) {
        let CondemnedFile { file, why, groups_too, anything_else } = condemned;
        tracing::warn!(window, why, "A file in the bucket must not be judged; it is taken out.");
        let place = self.place(window);
        self.keep_watch(window, file, place, Some(Condemnation { why, groups_too, anything_else }));
    }

    /// Takes out of the bucket what the verdicts on groups concern.
    pub(super) fn withdraw_condemned(&mut self, harvest: &Harvest) {
        for condemned in harvest.take_condemned() {
            self.withdraw(harvest.judge().window, condemned);
        }
    }

    fn keep_watch(&mut self, window: u64, file: Uploaded, place: Place, condemned: Option<Condemnation>) {
        let is_condemned = condemned.is_some();
        let finality_watch = FinalityWatch {
            chain: self.chain.clone(),
            bucket: self.bucket.clone(),
            journal: self.journal.clone(),
            board: self.board.clone(),
            spool: self.spool.clone(),
            spool_disk: self.spool_disk.clone(),
            window,
            file,
            place: place.clone(),
            condemned,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(finality_watch.keep()));
        self.finality_watches.push(Watch { window, place, condemned: is_condemned, task });
    }

    /// Goes on with the files of earlier runs that may still be judged.
    pub(super) async fn take_up_watches(&mut self) {
        let root = self.spool.clone();
        let found = match self.spool_disk.ask(OPEN_PATIENCE, move || spool::sent(&FileSystem, &root)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                return tracing::warn!(%error, "Which files earlier runs have sent cannot be told; they are not watched.");
            }
            Err(error) => {
                return tracing::warn!(
                    %error,
                    "The disk does not say which files earlier runs have sent; they are not watched."
                );
            }
        };
        for (window, sent) in found {
            let there = sent.known().map_or(ObjectPresence::Unknown, |file| ObjectPresence::File(file.sha256.clone()));
            let place = Place::new(Mutex::new(there));
            for file in sent.files().cloned().collect::<Vec<_>>() {
                tracing::info!(window, "The file of an earlier run is watched again until its window's first block is final.");
                self.watch(window, file, place.clone());
            }
            for condemned in sent.condemned.files {
                self.withdraw(window, condemned);
            }
        }
    }

    /// Withdraws what earlier runs of this window have sent and `sheet` does not judge like their own: validators reject all of it,
    /// and that costs more windows than this one. It goes on beside the mining.
    pub(super) async fn condemn_earlier(&mut self, opened: &Opened, key: &str, sheet: &WindowRecord) {
        let window = opened.clockwork.window;
        let condemn = |file: &Uploaded| {
            let why = if file.sheet.block_hash == sheet.block_hash {
                let (was, now) = (file.sheet.checkpoint_window, sheet.checkpoint_window);
                format!(
                    "its rows are of checkpoint {was} as it was, and the window's checkpoint is {now} now, so every row would be rejected"
                )
            } else {
                replaced(window, &file.sheet.block_hash, &sheet.block_hash)
            };
            CondemnedFile { file: file.clone(), why, groups_too: true, anything_else: false }
        };
        let sent = opened.left.sent.files();
        let condemned: Vec<_> = sent.filter(|file| file.key == key && !file.sheet.judges_like(sheet)).map(condemn).collect();
        if let (false, Some(spool)) = (condemned.is_empty(), opened.spool.clone()) {
            let files = condemned.clone();
            let noted = self.spool_disk.ask(OPEN_PATIENCE, move || spool.condemn(None, files)).await;
            if let Some(error) = refusal_of(noted) {
                tracing::warn!(error, window, "That the file is to be withdrawn is not on disk.");
            }
        }
        for condemned in condemned {
            self.withdraw(window, condemned);
        }
    }

    /// The window's key.
    pub(super) fn place(&self, window: u64) -> Place {
        let known = self.finality_watches.iter().find(|watch| watch.window == window).map(|watch| watch.place.clone());
        known.unwrap_or_default()
    }

    /// Windows with a file that is still watched.
    pub(super) fn watched(&self) -> Vec<u64> {
        self.finality_watches.iter().filter(|watch| watch.goes_on()).map(|watch| watch.window).collect()
    }

    /// Gives what is still watched a moment to become final.
    pub(super) async fn await_watches(&mut self) {
        let looks = join_all(self.finality_watches.iter_mut().map(|watch| &mut watch.task));
        // Who is not ready in time is told of when the run is broken off.
        let _ = tokio::time::timeout(LAST_LOOKS, looks).await;
        self.finality_watches.retain(Watch::goes_on);
    }

    /// Says which files the next start has to watch.
    pub(super) fn leave_watches(&mut self) {
        let going_on = self.finality_watches.iter().filter(|watch| watch.goes_on());
        let (condemned, watched): (Vec<&Watch>, Vec<&Watch>) = going_on.partition(|watch| watch.condemned);
        let windows = |watches: Vec<&Watch>| watches.iter().map(|watch| watch.window).collect::<Vec<_>>();
        let (condemned, watched) = (windows(condemned), windows(watched));
        self.finality_watches.clear();
        if !condemned.is_empty() {
            tracing::error!(
                windows = ?condemned,
                "Files of these windows must not be judged, and are not known to be out of the bucket: remove them by hand (grail/windows/), or \
                 start again now, which goes on trying."
            );
        }
        if !watched.is_empty() {
            tracing::warn!(
                windows = ?watched,
                "The first block of these windows is not known to be final yet: the next start goes on watching their files, and removes what a \
                 reorganisation has made worthless."
            );
        }
    }
}

impl FinalityWatch {
    /// Looks once a block until the window's first block is final, or the file must not be judged and is out of the bucket, or
    /// everybody has judged it.
    async fn keep(self) {
        let block = Duration::from_secs_f64(self.chain.nominal_block_seconds());
        let limit = REMOVAL.0.min(block.mul_f64(REMOVAL.1));
        let end = self.file.sheet.deadline + WATCHED_WINDOWS * WINDOW_LENGTH as f64 * block.as_secs_f64();
        let mut heads = Heads::new(block.as_secs_f64());
        // What finality may have come to is bounded from here on.
        _ = heads.heard(self.file.sheet.deadline - WINDOW_LENGTH as f64 * block.as_secs_f64(), Ok(self.window));
        let mut refused: Option<(Condemnation, String)> = None;
        while clock::unix_seconds() < end {
            let verdict = match &self.condemned {
                Some(condemned) => Ok(Ok(Some(condemned.clone()))),
                None => tokio::time::timeout(CHAIN_PATIENCE, self.look(&mut heads)).await,
            };
            match verdict {
                Ok(Ok(None)) => return,
                Ok(Ok(Some(condemned))) => match self.withdraw(&condemned, limit).await {
                    Ok(()) => return,
                    Err(refusal) => {
                        if refused.as_ref().is_none_or(|(_, before)| *before != refusal) {
                            let (window, key) = (self.window, &self.file.key);
                            tracing::error!(
                                refusal,
                                window,
                                key,
                                "A file that must not be judged is still in the bucket; removing it is tried again in every block."
                            );
                        }
                        refused = Some((condemned, refusal));
                    }
                },
                // A chain that gives no answer: the next look may find one.
                _ => {}
            }
            tokio::time::sleep(block).await;
        }
        if let Some((Condemnation { why, .. }, refusal)) = refused {
            self.journal.record(&FileStays { window: self.window, why, refusal });
        }
    }

    /// Why every row would be rejected; `None` where that cannot happen any more; an error where it still can.
    async fn look(&self, heads: &mut Heads) -> Result<Option<Condemnation>, ChainError> {
        let (window, was) = (self.window, &self.file.sheet.block_hash);
        // In this order: of a final block the hash that is read then is the last word.
        let is_final = self.is_final(heads).await?;
        let now = self.chain.block_hash(window).await?;
        match (now == *was, is_final) {
            (false, _) => Ok(Some(Condemnation { why: replaced(window, was, &now), groups_too: true, anything_else: false })),
            (true, true) => Ok(None),
            (true, false) => Err(ChainError::NotYet { block: window, head: window }),
        }
    }

    /// Whether the window's first block is final. A number that no head may have is no finality either: it would end the watch.
    async fn is_final(&self, heads: &mut Heads) -> Result<bool, ChainError> {
        let newest = self.chain.finalized().await?;
        if newest < self.window {
            return Ok(false);
        }
        if heads.allows(clock::unix_seconds(), newest) {
            return Ok(true);
        }
        let Some(why) = refusal(self.chain.as_ref(), heads, newest).await else { return Ok(true) };
        if heads.doubt(newest) {
            tracing::warn!(
                why,
                window = self.window,
                "Finality is not believed: the clock does not allow it. The file is watched on."
            );
        }
        Ok(false)
    }

    /// Takes the file out of the bucket. An error says why it is not certain that it is out.
    async fn withdraw(&self, condemned: &Condemnation, limit: Duration) -> Result<(), String> {
        let mut there = self.place.lock().await;
        let removed = tokio::time::timeout(limit, self.remove(&there, condemned.anything_else, limit / 3)).await;
        let removed = removed.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        if removed == Ok(true) {
            *there = ObjectPresence::Removed;
            self.tell(&condemned.why);
        }
        drop(there);
        let twin = self.remove_twin(limit).await;
        removed.and(twin)?;
        if !condemned.anything_else {
            self.forget(condemned.groups_too).await;
        }
        Ok(())
    }

    /// Removes what must not be judged if that is what lies there, and makes sure of it. Says whether it was.
    async fn remove(&self, there: &ObjectPresence, anything_else: bool, patience: Duration) -> Result<bool, String> {
        let ask = async || self.ask(anything_else, patience).await.map_err(|error| error.to_string());
        let lies = match there {
            ObjectPresence::File(sha256) if *sha256 == self.file.sha256 && !anything_else => ObjectState::Condemned,
            ObjectPresence::File(_) | ObjectPresence::Removed => ObjectState::Well,
            ObjectPresence::Unknown => ask().await?,
        };
        if lies == ObjectState::Well {
            return Ok(false);
        }
        self.bucket.delete(&self.file.key).await.map_err(|error| error.to_string())?;
        // The look decides, never the answer.
        match ask().await? {
            ObjectState::Well => Ok(true),
            ObjectState::Condemned => Err("the bucket says that it has removed the file, and still holds it".into()),
        }
    }

    /// Removes what lies beside the file's key and would be judged in its place. Nobody of ours writes there, so it needs no turn.
    async fn remove_twin(&self, limit: Duration) -> Result<(), String> {
        let why = match tokio::time::timeout(limit, remove_twin(&self.bucket, &self.file.key)).await {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(why))) => why,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {limit:?}"),
        };
        Err(format!("validators would judge {} in its place, and it is not known to be gone: {why}", twin(&self.file.key)))
    }

    /// What the bucket holds. Something of the file's size that does not come within `patience` is taken for the file.
    async fn ask(&self, anything_else: bool, patience: Duration) -> Result<ObjectState, BucketError> {
        let Some(head) = self.bucket.head(&self.file.key).await? else { return Ok(ObjectState::Well) };
        let is_file = if head.size == self.file.bytes {
            match tokio::time::timeout(patience, self.bucket.get(&self.file.key, MAX_FILE_BYTES)).await {
                Ok(Ok(bytes)) => hex::encode(Sha256::digest(&bytes)) == self.file.sha256,
                Ok(Err(BucketError::NotFound(_))) => return Ok(ObjectState::Well),
                Ok(Err(error)) => return Err(error),
                Err(_) => true,
            }
        } else {
            false
        };
        Ok(if is_file != anything_else { ObjectState::Condemned } else { ObjectState::Well })
    }

    /// What is not forgotten is looked for once more by the next start, and not found.
    async fn forget(&self, groups_too: bool) {
        let (root, window, file) = (self.spool.clone(), self.window, self.file.clone());
        let forget = move || spool::forget(&FileSystem, &root, window, &file, groups_too);
        if let Some(error) = refusal_of(self.spool_disk.ask(OPEN_PATIENCE, forget).await) {
            tracing::warn!(error, window, "The disk still says that the file was sent.");
        }
    }

    fn tell(&self, why: &str) {
        let Uploaded { groups, bytes, sheet, .. } = &self.file;
        self.journal.record(&FileWithdrawn { window: self.window, why: why.into() });
        let finished = FinishedWindow {
            outcome: "withdrawn".into(),
            reason: Some(format!("{why}; the file was removed")),
            rollouts: (groups * ROLLOUTS_PER_PROBLEM) as u32,
            bytes: *bytes,
            checkpoint_window: Some(sheet.checkpoint_window),
            ..FinishedWindow::of(self.window)
        };
        conclude(&self.journal, &self.board, finished);
    }
}

/// Why something is not on disk, if it is not.
fn refusal_of<E: Display>(answer: Result<Result<(), E>, SideThreadError>) -> Option<String> {
    match answer {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

fn replaced(window: u64, was: &str, now: &str) -> String {
    format!(
        "the chain was reorganised after the upload: block {window} was {was} and is {now} now, so every row would be rejected"
    )
}
