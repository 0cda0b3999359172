//! Window files on their way into the bucket, beside whatever the miner does next: a bucket that is slow to answer costs the next
//! window nothing. Each file keeps its own deadline.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use grail_process::clock;
use grail_store::bucket::Bucket;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::closing::Closed;
use super::vigil::Vigil;
use super::{Clockwork, Harvest, Miner, conclude};
use crate::journal::{FileUploaded, Journal};
use crate::spool::Uploaded;
use crate::status::{Board, FinishedWindow};
use crate::upload::{Receipt, UploadError, WindowObject, upload};

/// Files that may be on their way at once. Each is up to a gigabyte in memory.
const MOST: usize = 2;

/// A finished file, and everything that bringing it into the bucket needs.
pub(super) struct Dispatch {
    pub bucket: Bucket,
    pub journal: Journal,
    pub board: Board,
    pub clockwork: Clockwork,
    pub harvest: Arc<Harvest>,
    pub key: String,
    pub bytes: Bytes,
    pub sha256: [u8; 32],
    /// SHA-256 of what an earlier run of the window has brought there.
    pub earlier: Option<[u8; 32]>,
    pub total: Closed,
    pub groups: usize,
    /// When the closing began.
    pub begun: Instant,
    /// The writing of the local copy.
    pub copy: JoinHandle<()>,
}

/// A window whose file is on its way. Dropped, it is given up.
pub struct Sending {
    finished: FinishedWindow,
    arrival: AbortOnDropHandle<Option<Arrived>>,
}

/// A file that was read back.
struct Arrived {
    finished: FinishedWindow,
    clockwork: Clockwork,
    key: String,
    block_hash: String,
    /// Seconds of the sending alone.
    seconds: f64,
}

impl Dispatch {
    /// Sends, looks, and puts on record how the window ended. `finished` is what is known of it.
    async fn deliver(self, mut finished: FinishedWindow) -> Option<Arrived> {
        let sent = self.send().await;
        // It bounds its own time, and tells its own failure.
        let _ = self.copy.await;
        finished.close_seconds = self.begun.elapsed().as_secs_f64();
        let seconds = match sent {
            Ok(seconds) => seconds,
            Err(error) => {
                finished = FinishedWindow {
                    outcome: "lost".into(),
                    reason: Some(error.to_string()),
                    checkpoint_window: finished.checkpoint_window,
                    ..FinishedWindow::of(finished.window)
                };
                conclude(&self.journal, &self.board, finished);
                return None;
            }
        };
        conclude(&self.journal, &self.board, finished.clone());
        let block_hash = self.harvest.judge().block_hash.clone();
        Some(Arrived { finished, clockwork: self.clockwork, key: self.key, block_hash, seconds })
    }

    async fn send(&self) -> Result<f64, UploadError> {
        let deadline = self.clockwork.deadline;
        let uploaded = Uploaded { groups: self.groups, bytes: self.bytes.len() as u64, sha256: hex::encode(self.sha256) };
        let sending = uploaded.clone();
        // First, so that a run that ends between here and the record below leaves a trace of what the bucket may hold.
        self.harvest.on_willing_disk(move |spool| spool.mark_sending(&sending)).await;
        let object = WindowObject { key: &self.key, bytes: &self.bytes, sha256: self.sha256, earlier: self.earlier };
        let Receipt { spent, rounds } = upload(&self.bucket, &object, deadline).await?;
        let Uploaded { groups, bytes, sha256 } = uploaded.clone();
        let (window, seconds, left) = (self.clockwork.window, spent.as_secs_f64(), deadline - clock::unix_seconds());
        self.journal.record(&FileUploaded { window, groups, bytes, sha256, rounds, seconds, left });
        self.harvest.on_disk(move |spool| spool.mark_uploaded(&uploaded)).await;
        Ok(seconds)
    }
}

impl Miner {
    /// Lets a file go its own way. Where too many are on theirs, the oldest is given up.
    pub(super) fn send_off(&mut self, dispatch: Dispatch, finished: FinishedWindow) {
        self.take_arrivals();
        while self.sendings.len() >= MOST {
            let oldest = self.sendings.remove(0);
            self.give_up_sending(
                &oldest,
                "the files of two later windows were finished before the bucket had answered for this one",
            );
        }
        let arrival = AbortOnDropHandle::new(tokio::spawn(dispatch.deliver(finished.clone())));
        self.sendings.push(Sending { finished, arrival });
    }

    /// Learns from the files that have arrived since the last look.
    pub(super) fn take_arrivals(&mut self) {
        let (ended, under_way) =
            std::mem::take(&mut self.sendings).into_iter().partition(|sending| sending.arrival.is_finished());
        self.sendings = under_way;
        let ended: Vec<Sending> = ended;
        for sending in ended {
            match sending.arrival.now_or_never() {
                Some(Ok(arrived)) => self.arrived(arrived),
                Some(Err(error)) => self.ended_abnormally(sending.finished, &error),
                None => {}
            }
        }
        self.vigils.retain(|vigil| !vigil.is_finished());
    }

    /// Waits for what is still on its way. Where this future is dropped, what is left stays for [`Miner::break_off`].
    pub(super) async fn await_sendings(&mut self) {
        while let Some(sending) = self.sendings.first_mut() {
            let arrival = (&mut sending.arrival).await;
            let sending = self.sendings.remove(0);
            match arrival {
                Ok(arrived) => self.arrived(arrived),
                Err(error) => self.ended_abnormally(sending.finished, &error),
            }
        }
    }

    fn arrived(&mut self, arrived: Option<Arrived>) {
        // What was lost has told so itself.
        let Some(Arrived { finished, clockwork, key, block_hash, seconds }) = arrived else { return };
        self.schedule.uploaded(seconds);
        let vigil = Vigil {
            chain: self.chain.clone(),
            bucket: self.bucket.clone(),
            journal: self.journal.clone(),
            board: self.board.clone(),
            clockwork,
            key,
            block_hash,
            finished,
        };
        self.vigils.push(AbortOnDropHandle::new(tokio::spawn(vigil.keep())));
    }

    fn ended_abnormally(&self, finished: FinishedWindow, error: &tokio::task::JoinError) {
        self.put_away(&finished, "lost", format!("the upload ended abnormally: {error}"));
    }

    /// Puts on record that nobody waits for this file any more.
    pub(super) fn give_up_sending(&self, sending: &Sending, why: &str) {
        if !sending.arrival.is_finished() {
            self.put_away(
                &sending.finished,
                "broken off",
                format!("{why}, while its file was on its way; the bucket may hold it"),
            );
        }
    }

    fn put_away(&self, finished: &FinishedWindow, outcome: &str, reason: String) {
        let finished = FinishedWindow {
            outcome: outcome.into(),
            reason: Some(reason),
            checkpoint_window: finished.checkpoint_window,
            ..FinishedWindow::of(finished.window)
        };
        conclude(&self.journal, &self.board, finished);
    }

    /// Windows whose file is on its way: their spool is still needed.
    pub(super) fn windows_under_way(&self) -> Vec<u64> {
        self.sendings.iter().map(|sending| sending.finished.window).collect()
    }
}
