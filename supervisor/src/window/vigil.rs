//! An uploaded file until nothing can change what it is judged by: rows name the hash of the window's first block, and a file whose
//! block was replaced costs more windows than it brings (grail-validation: `block_hash_mismatch`).

use std::sync::Arc;
use std::time::Duration;

use grail_process::clock;
use grail_protocol::constants::WINDOW_LENGTH;
use grail_store::bucket::Bucket;

use super::{CHAIN_PATIENCE, Clockwork, conclude};
use crate::chain::{Chain, ChainError};
use crate::journal::{FileWithdrawn, Journal};
use crate::status::{Board, FinishedWindow};

/// Windows after the deadline in which a file may still be judged.
const WATCHED_WINDOWS: f64 = 2.0;

/// The watch over one file.
pub(super) struct Vigil {
    pub chain: Arc<dyn Chain>,
    pub bucket: Bucket,
    pub journal: Journal,
    pub board: Board,
    pub clockwork: Clockwork,
    pub key: String,
    /// Of the window's first block, as the rows have it.
    pub block_hash: String,
    /// How the window ended.
    pub finished: FinishedWindow,
}

impl Vigil {
    /// Looks once a block until the window's first block is final, or was replaced and the file is out of the bucket, or everybody
    /// has judged it.
    pub async fn keep(self) {
        let block_seconds = self.chain.nominal_block_seconds();
        let end = self.clockwork.deadline + WATCHED_WINDOWS * WINDOW_LENGTH as f64 * block_seconds;
        while clock::unix_seconds() < end {
            match tokio::time::timeout(CHAIN_PATIENCE, self.look()).await {
                Ok(Ok(Some(now))) if self.withdraw(&now).await => return,
                Ok(Ok(None)) => return,
                // A chain that gives no answer, or a bucket that does not: the next look may find one.
                _ => {}
            }
            tokio::time::sleep(Duration::from_secs_f64(block_seconds)).await;
        }
    }

    /// The hash that has taken the place of the rows'; `None` where that cannot happen any more; an error where it still can.
    async fn look(&self) -> Result<Option<String>, ChainError> {
        let window = self.clockwork.window;
        // In this order: of a final block the hash that is read then is the last word.
        let is_final = self.chain.is_final(window).await?;
        let now = self.chain.block_hash(window).await?;
        match (now == self.block_hash, is_final) {
            (false, _) => Ok(Some(now)),
            (true, true) => Ok(None),
            (true, false) => Err(ChainError::NotYet { block: window, head: window }),
        }
    }

    async fn withdraw(&self, now: &str) -> bool {
        let window = self.clockwork.window;
        if let Err(error) = self.bucket.delete(&self.key).await {
            tracing::error!(%error, window, "A file that validators reject cannot be removed; it is tried again.");
            return false;
        }
        let (was, now) = (self.block_hash.clone(), now.to_owned());
        let reason = format!(
            "the chain was reorganised after the upload: block {window} was {was} and is {now} now, so every row would be rejected; \
             the file was removed"
        );
        self.journal.record(&FileWithdrawn { window, was, now });
        let finished = FinishedWindow { outcome: "withdrawn".into(), reason: Some(reason), ..self.finished.clone() };
        conclude(&self.journal, &self.board, finished);
        true
    }
}
