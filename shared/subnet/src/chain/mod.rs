//! The chain as the supervisor sees it: blocks, hashes, who is registered, and whose bucket is where.

mod commitment;
mod joining;
mod local;
mod network;

use futures::future::BoxFuture;
use grail_chain::node::NodeError;
use grail_chain::publish::PublishError;
use grail_protocol::keys::Hotkey;
use grail_supervision::exit::Failure;

pub use commitment::{BucketCommitment, CommitmentError};
pub use joining::{Joined, genesis, join};
pub use local::LocalChain;
pub use network::NetworkChain;

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
        "the hotkey {hotkey} is not registered on subnet {netuid}; register it with: btcli subnet register --netuid {netuid} \
         --wallet.name COLD --wallet.hotkey HOT (the names in wallet.cold and wallet.hot)"
    )]
    NotRegistered {
        /// The hotkey's address.
        hotkey: String,
        /// The subnet.
        netuid: u16,
    },
    /// The chain has no such subnet.
    #[error(
        "the chain has no subnet {netuid}; correct chain.netuid (NETUID), which is 81 for GRAIL, or chain.network (BT_NETWORK)"
    )]
    NoSubnet {
        /// The subnet.
        netuid: u16,
    },
    /// A commitment that does not have the published form.
    #[error(transparent)]
    Commitment(#[from] CommitmentError),
    /// A node gave no usable answer.
    #[error("the chain gives no answer: {0}")]
    Node(#[from] NodeError),
    /// The bucket is not known to be published.
    #[error("the bucket's read credentials cannot be published on chain: {0}")]
    Publish(#[from] PublishError),
}

impl From<ChainError> for Failure {
    fn from(error: ChainError) -> Self {
        Self::Chain(error.to_string())
    }
}

impl ChainError {
    /// Whether the same may succeed later without a change by the operator.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NotYet { .. } | Self::NoTrainerBucket => true,
            Self::Node(error) => error.is_passing(),
            Self::Publish(error) => error.is_passing(),
            Self::File { .. } | Self::NotRegistered { .. } | Self::NoSubnet { .. } | Self::Commitment(_) => false,
        }
    }
}

/// The subnet as one hotkey sees it, all of it at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Whether the chain has the subnet.
    pub subnet_exists: bool,
    /// The hotkey's UID; `None` = not registered.
    pub uid: Option<u16>,
    /// Address of UID 0.
    pub trainer: Option<String>,
    /// What UID 0 has published.
    pub trainer_bucket: Option<BucketCommitment>,
    /// What the hotkey has published.
    pub own_bucket: Option<BucketCommitment>,
}

impl Standing {
    /// UID 0's address and bucket.
    ///
    /// # Errors
    /// When there is no UID 0 or it has published nothing that validators could read.
    pub fn trainer(&self) -> Result<(String, BucketCommitment), ChainError> {
        self.trainer.clone().zip(self.trainer_bucket.clone()).ok_or(ChainError::NoTrainerBucket)
    }
}

/// What the supervisor needs of a chain. The local one is a clock; a network's is a node behind a WebSocket ([`NetworkChain`]).
pub trait Chain: Send + Sync {
    /// Hash of block 0, by which networks are told apart; the local chain has none.
    fn genesis(&self) -> BoxFuture<'_, Result<Option<[u8; 32]>, ChainError>>;
    /// Number of the newest block.
    fn head(&self) -> BoxFuture<'_, Result<u64, ChainError>>;
    /// Hash of an existing block, lower-case hex with `0x`.
    fn block_hash(&self, block: u64) -> BoxFuture<'_, Result<String, ChainError>>;
    /// Unix seconds of a block: on-chain for an existing one, expected for a later one.
    fn block_time(&self, block: u64) -> BoxFuture<'_, Result<f64, ChainError>>;
    /// Number of the newest block that, like all before it, cannot be replaced by another any more.
    fn finalized(&self) -> BoxFuture<'_, Result<u64, ChainError>>;
    /// Nominal seconds of one block.
    fn nominal_block_seconds(&self) -> f64;
    /// The subnet as a hotkey (an address) sees it.
    fn standing<'a>(&'a self, hotkey: &'a str) -> BoxFuture<'a, Result<Standing, ChainError>>;
    /// Publishes the bucket of a hotkey; nothing is written when the chain already holds the same.
    fn commit_bucket<'a>(&'a self, hotkey: &'a Hotkey, bucket: &'a BucketCommitment) -> BoxFuture<'a, Result<(), ChainError>>;
}
