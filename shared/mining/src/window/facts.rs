//! What a window's rollouts are made from: the hash of its first block, and the beacon.

use std::time::Duration;

use grail_process::clock;
use grail_protocol::derivation::miner_randomness;
use grail_protocol::hexadecimal::without_prefix;
use grail_protocol::sketch::coefficients;

use super::opening::Obstacle;
use super::{CHAIN_PATIENCE, Miner, NoFile};
use crate::clockwork::Clockwork;
use crate::gate::Judge;
use crate::groups::WindowFacts;

/// Of what is left of the window, the part that may go by in waiting for a beacon: more than the relays' own limits on the
/// network, less on a faster clock.
const BEACON_SHARE: f64 = 0.125;

impl Miner {
    pub(super) async fn facts(&self, clockwork: &Clockwork) -> Result<WindowFacts, Obstacle> {
        let window = clockwork.window;
        let block_hash = self.ask(self.chain.block_hash(window)).await?;
        let beacon = self.beacon(clockwork).await;
        // Without a beacon the reference writes the hash with its 0x, which every validator's schema refuses, or makes bytes up;
        // without the prefix all bytes that are derived from the hash are the same.
        let randomness = without_prefix(&miner_randomness(&block_hash, beacon.as_deref())).to_owned();
        let coefficients = coefficients(&randomness).map_err(|error| Obstacle::Chain(error.to_string()))?;
        Ok(WindowFacts { window, block_hash, randomness, use_drand: beacon.is_some(), coefficients })
    }

    /// drand's newest randomness, verified, or none in time.
    async fn beacon(&self, clockwork: &Clockwork) -> Option<String> {
        let relays = self.relays.as_ref()?;
        let left = (clockwork.deadline - clock::unix_seconds()) * BEACON_SHARE;
        let limit = Duration::try_from_secs_f64(left).unwrap_or_default();
        match tokio::time::timeout(limit, relays.latest(clock::unix_seconds)).await {
            Ok(Ok((round, randomness))) => {
                tracing::info!(round, "The window's randomness is drand's.");
                Some(randomness)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "No beacon: the block hash alone makes the window's randomness.");
                None
            }
            Err(_) => {
                tracing::warn!(
                    seconds = limit.as_secs_f64(),
                    "No beacon in time: the block hash alone makes the window's randomness."
                );
                None
            }
        }
    }

    /// Whether validators judge the window's rows by what they were made from: its first block and its checkpoint. No answer is no
    /// reason to hold them back.
    pub(super) async fn still_judged_alike(&self, clockwork: &Clockwork, judge: &Judge) -> Result<(), NoFile> {
        // What is left is for the upload.
        let quarter = Duration::try_from_secs_f64((clockwork.deadline - clock::unix_seconds()) / 4.0).unwrap_or_default();
        let patience = CHAIN_PATIENCE.min(quarter);
        let (block, checkpoint) = tokio::join!(
            self.still_has(clockwork.window, &judge.block_hash, patience),
            self.still_newest(clockwork.window, judge.checkpoint_window, patience)
        );
        block.and(checkpoint)
    }

    /// A READY marker of the window before may arrive when this window has begun.
    async fn still_newest(&self, window: u64, checkpoint: u64, patience: Duration) -> Result<(), NoFile> {
        match tokio::time::timeout(patience, self.checkpoints.newest(window)).await {
            Ok(Ok(Some(now))) if now != checkpoint => Err(NoFile::HeldBack(format!(
                "checkpoint {now} became the newest for this window while it was mined with {checkpoint}, so every row would be rejected"
            ))),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, window, "Which checkpoint is the newest could not be looked at again before the upload.");
                Ok(())
            }
            Err(_) => {
                tracing::warn!(window, "The trainer's bucket did not say in time which checkpoint is the newest.");
                Ok(())
            }
        }
    }

    async fn still_has(&self, window: u64, block_hash: &str, patience: Duration) -> Result<(), NoFile> {
        match tokio::time::timeout(patience, self.chain.block_hash(window)).await {
            Ok(Ok(now)) if now != block_hash => Err(NoFile::HeldBack(format!(
                "the chain was reorganised: block {window} was {block_hash} when the rows were made and is {now} now, so every row \
                 would be rejected"
            ))),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, window, "The hash of the window's first block could not be looked at again before the upload.");
                Ok(())
            }
            Err(_) => {
                tracing::warn!(window, "The chain did not say in time whether the window's first block is still the same.");
                Ok(())
            }
        }
    }
}
