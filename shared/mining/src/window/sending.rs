//! Window files on their way into the bucket, beside whatever the miner does next: a bucket that is slow to answer costs the next
//! window nothing. Each file keeps its own deadline.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use grail_process::clock;
use grail_store::bucket::Bucket;
use grail_supervision::journal::Journal;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::early_upload::EarlyUpload;
use super::finality_watch::{ObjectPresence, Place, Watch};
use super::{Harvest, Miner, conclude};
use crate::events::FileUploaded;
use crate::spool::{CondemnedFile, UnderWay, Uploaded};
use crate::status::{Board, FinishedWindow};
use crate::upload::{Receipt, UploadError, WindowObject, upload};

/// Files that may be on their way at once. Each is up to a gigabyte in memory.
const MOST: usize = 2;

/// A finished file, and everything that bringing it into the bucket needs.
pub(super) struct Dispatch {
    pub bucket: Bucket,
    pub journal: Journal,
    pub window: u64,
    pub deadline: f64,
    pub harvest: Arc<Harvest>,
    pub place: Place,
    pub file: Uploaded,
    pub bytes: Bytes,
    pub sha256: [u8; 32],
    /// What of it has left already.
    pub ahead: Option<EarlyUpload>,
    /// SHA-256 of what an earlier run of the window has brought there.
    pub earlier: Option<[u8; 32]>,
    /// When the closing began.
    pub begun: Instant,
    /// The writing of the local copy.
    pub copy: JoinHandle<()>,
}

/// The right to say how a window ended. It is taken once: whoever comes later says nothing.
#[derive(Debug, Clone)]
struct Verdict {
    journal: Journal,
    board: Board,
    /// What is known of the window, until somebody has said how it ended.
    open: Arc<Mutex<Option<FinishedWindow>>>,
}

/// A window whose file is on its way. Dropped, it is given up.
pub struct Sending {
    window: u64,
    verdict: Verdict,
    arrival: AbortOnDropHandle<Delivery>,
}

/// A file that was sent. Where it was not confirmed, the bucket may hold it all the same.
struct Delivery {
    window: u64,
    file: Uploaded,
    place: Place,
    /// Where it was read back.
    took: Option<Took>,
    /// What lies in its place and must not be judged.
    condemned: Option<CondemnedFile>,
}

/// Seconds of the sending alone.
#[derive(Debug, Clone, Copy)]
struct Took {
    /// After the window was closed.
    last: f64,
    /// With all that had left before.
    all: f64,
}

impl Verdict {
    fn new(journal: &Journal, board: &Board, finished: FinishedWindow) -> Self {
        Self { journal: journal.clone(), board: board.clone(), open: Arc::new(Mutex::new(Some(finished))) }
    }

    /// Puts on record how the window ended, by what `word` makes of what is known; unless that is on record already.
    fn say(&self, word: impl FnOnce(&mut FinishedWindow)) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut finished) = open.take() else { return };
        word(&mut finished);
        conclude(&self.journal, &self.board, finished);
    }

    /// The window has no file that is known to be in the bucket.
    fn no_file(&self, outcome: &str, reason: String) {
        self.say(|finished| {
            *finished = FinishedWindow {
                outcome: outcome.into(),
                reason: Some(reason),
                checkpoint_window: finished.checkpoint_window,
                ..FinishedWindow::of(finished.window)
            };
        });
    }
}

impl Dispatch {
    /// Sends, looks, and puts on record how the window ended.
    async fn deliver(mut self, verdict: Verdict) -> Delivery {
        let (took, condemned) = match self.send(&verdict).await {
            Ok(took) => (Some(took), None),
            Err(error) => {
                verdict.no_file("lost", error.to_string());
                (None, self.condemned(&error).await)
            }
        };
        // It bounds its own time, and tells its own failure.
        let _ = self.copy.await;
        Delivery { window: self.window, file: self.file, place: self.place, took, condemned }
    }

    /// What could not be removed and is not what was sent, or would be judged instead of it: on disk, as whatever must not be judged.
    async fn condemned(&self, error: &UploadError) -> Option<CondemnedFile> {
        let stays = match error {
            UploadError::Different { stays, .. } | UploadError::Ignored { stays, .. } => *stays,
            UploadError::Shadowed { .. } => true,
            _ => false,
        };
        if !stays {
            return None;
        }
        let (file, why) = (self.file.clone(), error.to_string());
        let condemned = CondemnedFile { file, why, groups_too: false, anything_else: true };
        let files = vec![condemned.clone()];
        self.harvest.on_disk(move |spool| spool.condemn(None, files)).await;
        Some(condemned)
    }

    async fn send(&mut self, verdict: &Verdict) -> Result<Took, UploadError> {
        let mut there = self.place.lock().await;
        let sending = self.file.clone();
        // First, so that a run that ends between here and the record below leaves a trace of what the bucket may hold.
        self.harvest.on_willing_disk(move |spool| spool.mark_sending(&sending)).await;
        *there = ObjectPresence::Unknown;
        let begun = clock::monotonic();
        let ahead = match self.ahead.take() {
            // At most half of the time that is left: the other half belongs to the whole file.
            Some(ahead) => ahead.sent(&self.bytes, (self.deadline - clock::unix_seconds()) / 2.0).await,
            None => None,
        };
        let waited = begun.elapsed().as_secs_f64();
        let (before, ahead_bytes) = ahead.as_ref().map_or((0.0, 0), |ahead| (ahead.seconds, ahead.object.sent_bytes() as u64));
        let object = WindowObject { key: &self.file.key, bytes: &self.bytes, sha256: self.sha256, earlier: self.earlier };
        let ahead = ahead.map(|ahead| ahead.object);
        let Receipt { spent, rounds } = upload(&self.bucket, &object, ahead, self.deadline).await?;
        *there = ObjectPresence::File(self.file.sha256.clone());
        let left = self.deadline - clock::unix_seconds();
        let uploaded = self.file.clone();
        self.harvest.on_disk(move |spool| spool.mark_uploaded(&uploaded).and_then(|()| spool.forget_growing())).await;
        let (window, seconds, close_seconds) = (self.window, waited + spent.as_secs_f64(), self.begun.elapsed().as_secs_f64());
        let Uploaded { groups, bytes, sha256, .. } = self.file.clone();
        verdict.say(|finished| {
            finished.close_seconds = close_seconds;
            self.journal.record(&FileUploaded { window, groups, bytes, ahead_bytes, sha256, rounds, seconds, left });
        });
        Ok(Took { last: seconds, all: before + seconds })
    }
}

impl Miner {
    /// Lets a file go its own way. Where too many are on theirs, the oldest is given up. `finished` is what is known of the window.
    pub(super) fn send_off(&mut self, dispatch: Dispatch, finished: FinishedWindow) {
        self.take_arrivals();
        while self.sendings.len() >= MOST {
            let oldest = self.sendings.remove(0);
            oldest.give_up("the files of two later windows were finished before the bucket had answered for this one");
        }
        let (window, verdict) = (dispatch.window, Verdict::new(&self.journal, &self.board, finished));
        let arrival = AbortOnDropHandle::new(tokio::spawn(dispatch.deliver(verdict.clone())));
        self.sendings.push(Sending { window, verdict, arrival });
    }

    /// Learns from the files that have arrived since the last look.
    pub(super) fn take_arrivals(&mut self) {
        let (ended, under_way) =
            std::mem::take(&mut self.sendings).into_iter().partition(|sending| sending.arrival.is_finished());
        self.sendings = under_way;
        let ended: Vec<Sending> = ended;
        for Sending { verdict, arrival, .. } in ended {
            if let Some(arrival) = arrival.now_or_never() {
                self.arrived(&verdict, arrival);
            }
        }
        self.finality_watches.retain(Watch::goes_on);
    }

    /// Waits for what is still on its way. Where this future is dropped, what is left stays for [`Miner::break_off`].
    pub(super) async fn await_sendings(&mut self) {
        while let Some(sending) = self.sendings.first_mut() {
            let arrival = (&mut sending.arrival).await;
            let sending = self.sendings.remove(0);
            self.arrived(&sending.verdict, arrival);
        }
    }

    fn arrived(&mut self, verdict: &Verdict, arrival: Result<Delivery, tokio::task::JoinError>) {
        match arrival {
            Ok(Delivery { window, file, place, took, condemned }) => {
                took.into_iter().for_each(|took| self.schedule.uploaded(took.last, took.all));
                self.watch(window, file, place);
                condemned.into_iter().for_each(|condemned| self.withdraw(window, condemned));
            }
            Err(error) => verdict.no_file("lost", format!("the upload ended abnormally: {error}")),
        }
    }

    /// Windows whose spool is still needed.
    pub(super) fn windows_under_way(&self) -> UnderWay {
        let sending = self.sendings.iter().map(|sending| sending.window).collect();
        UnderWay { sending, watched: self.watched(), now: clock::unix_seconds() }
    }
}

impl Sending {
    /// Puts on record that nobody waits for this file any more, unless it has just arrived.
    pub(super) fn give_up(self, why: &str) {
        self.verdict.no_file("broken off", format!("{why}, while its file was on its way; the bucket may hold it"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// A file that is given up at the moment in which it arrives has one outcome, whoever is first.
    #[test]
    fn a_window_has_one_verdict() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, board) = (Journal::open(folder.path()), Board::default());
        for window in 1..=400 {
            let verdict = Verdict::new(&journal, &board, FinishedWindow::of(window));
            let (start, spoken) = (Barrier::new(2), Mutex::new(Vec::new()));
            let say = |outcome: &'static str| {
                start.wait();
                verdict.say(|finished| {
                    finished.outcome = outcome.into();
                    spoken.lock().unwrap().push(outcome);
                });
            };
            std::thread::scope(|scope| {
                scope.spawn(|| say("uploaded"));
                scope.spawn(|| say("broken off"));
            });
            let spoken = spoken.into_inner().unwrap();
            assert_eq!(spoken.len(), 1, "window {window}");
            assert_eq!(board.snapshot().finished.last().unwrap().outcome, spoken[0]);
            verdict.no_file("lost", "too late to say so".into());
        }
        assert_eq!(journal.counts()["window_ended"], 400);
        assert!(board.snapshot().finished.iter().all(|finished| finished.outcome != "lost"));
    }
}
