//! Registration and trainer, looked at again in every window: hotkeys lose their UID, and UID 0 may change its owner or bucket.

use std::sync::Arc;

use grail_subnet::buckets::Buckets;
use grail_subnet::chain::BucketCommitment;

use super::opening::Obstacle;
use super::{CHAIN_PATIENCE, Miner};

/// What was last known of the subnet.
#[derive(Debug)]
pub struct Subnet {
    /// The subnet.
    pub netuid: u16,
    /// UID 0's address.
    pub trainer: String,
    /// UID 0's bucket.
    pub trainer_bucket: BucketCommitment,
    /// Whose signature a checkpoint must carry, where the settings say so.
    pub signer: Option<String>,
    /// Makes clients for published buckets.
    pub buckets: Arc<Buckets>,
}

impl Miner {
    /// A chain that gives no answer changes nothing.
    pub(super) async fn follow_subnet(&mut self) -> Result<(), Obstacle> {
        let hotkey = self.resources.hotkey.address();
        let standing = match tokio::time::timeout(CHAIN_PATIENCE, self.chain.standing(hotkey)).await {
            Ok(Ok(standing)) => standing,
            Ok(Err(error)) => {
                tracing::warn!(%error, "The subnet could not be read; what was known before counts.");
                return Ok(());
            }
            Err(_) => {
                tracing::warn!("The subnet was not read in time; what was known before counts.");
                return Ok(());
            }
        };
        if standing.uid.is_none() {
            let netuid = self.subnet.netuid;
            return Err(Obstacle::Unregistered(format!(
                "the hotkey {hotkey} is no longer registered on subnet {netuid}; register it again with: btcli subnet register \
                 --netuid {netuid}"
            )));
        }
        // A trainer without a bucket is one that publishes anew; its last bucket counts until then.
        let Ok((trainer, bucket)) = standing.trainer() else { return Ok(()) };
        if (&trainer, &bucket) == (&self.subnet.trainer, &self.subnet.trainer_bucket) {
            return Ok(());
        }
        let client = self.subnet.buckets.published(&bucket).map_err(|error| Obstacle::TrainerBucket(error.to_string()))?;
        tracing::info!(trainer, "The trainer or its bucket changed; checkpoints are read from there.");
        let signer = self.subnet.signer.clone().unwrap_or_else(|| trainer.clone());
        self.checkpoints.follow(client, signer);
        (self.subnet.trainer, self.subnet.trainer_bucket) = (trainer, bucket);
        Ok(())
    }
}
