//! The chain as the supervisor sees it: blocks, hashes, who is registered, and whose bucket is where.

mod commitment;
mod local;

use futures::future::BoxFuture;

pub use commitment::{BucketCommitment, CommitmentError};
pub use local::LocalChain;

/// Why the chain could not answer.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A block that does not exist yet.
    #[error("block {block} does not exist yet, the head is {head}")]
    NotYet {
        /// Asked for.
        block: u64,
        /// The newest.
        head: u64,
    },
    /// The local chain's file cannot be used.
    #[error("the local chain's file {path:?} {reason}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// UID 0 has published no bucket.
    #[error("UID 0, the trainer, has committed no bucket on this chain, so there is no checkpoint to mine with; wait for it")]
    NoTrainerBucket,
    /// The hotkey may not mine.
    #[error(
        "the hotkey {hotkey} is not registered on subnet {netuid}; register it with: btcli subnet register --netuid {netuid}"
    )]
    NotRegistered {
        /// The hotkey's address.
        hotkey: String,
        /// The subnet.
        netuid: u32,
    },
    /// A commitment that does not have the published form.
    #[error(transparent)]
    Commitment(#[from] CommitmentError),
}

/// What the supervisor needs of a chain. The local one is a clock; a network's is a node behind a WebSocket.
pub trait Chain: Send + Sync {
    /// Number of the newest block.
    fn head(&self) -> BoxFuture<'_, Result<u64, ChainError>>;
    /// Hash of an existing block, lower-case hex with `0x`.
    fn block_hash(&self, block: u64) -> BoxFuture<'_, Result<String, ChainError>>;
    /// Unix seconds of a block: on-chain for an existing one, expected for a later one.
    fn block_time(&self, block: u64) -> BoxFuture<'_, Result<f64, ChainError>>;
    /// Nominal seconds of one block.
    fn nominal_block_seconds(&self) -> f64;
    /// Hotkeys of the subnet in UID order.
    fn hotkeys(&self) -> BoxFuture<'_, Result<Vec<String>, ChainError>>;
    /// The bucket that a hotkey has committed, if any.
    fn bucket_of<'a>(&'a self, hotkey: &'a str) -> BoxFuture<'a, Result<Option<BucketCommitment>, ChainError>>;
    /// Publishes the bucket of a hotkey; nothing is written when the chain already holds the same.
    fn commit_bucket<'a>(&'a self, hotkey: &'a str, bucket: &'a BucketCommitment) -> BoxFuture<'a, Result<(), ChainError>>;
}

/// The trainer: UID 0's hotkey and the bucket it has committed.
///
/// # Errors
/// When the metagraph is empty or UID 0 has committed no bucket.
pub async fn trainer(chain: &dyn Chain) -> Result<(String, BucketCommitment), ChainError> {
    let hotkeys = chain.hotkeys().await?;
    let trainer = hotkeys.get(usize::from(grail_protocol::constants::TRAINER_UID)).ok_or(ChainError::NoTrainerBucket)?;
    let bucket = chain.bucket_of(trainer).await?.ok_or(ChainError::NoTrainerBucket)?;
    Ok((trainer.clone(), bucket))
}
