//! The network's chain: a node behind one kept connection.

use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use grail_chain::commitment::Registration;
use grail_chain::node::{Endpoints, Node, NodeError};
use grail_chain::patience::{Patience, PublishLimits};
use grail_chain::publish::{Published, publish};
use grail_protocol::keys::{Hotkey, address_of, public_key_of};

use super::{BucketCommitment, Chain, ChainError, Standing};

/// A known block's time serves for later ones, as long as it is not further back than this.
const ANCHOR_BLOCKS: u64 = 5;

/// A subnet of a network's chain.
#[derive(Debug)]
pub struct NetworkChain {
    node: Node,
    netuid: u16,
    block_seconds: f64,
    limits: PublishLimits,
    /// The last block whose time was asked for, with that time in Unix seconds.
    anchor: Mutex<Option<(u64, f64)>>,
}

impl NetworkChain {
    /// Begins to connect; nothing is waited for. Blocks come every `block_seconds` where nothing is late.
    pub fn connect(endpoints: Endpoints, netuid: u16, block_seconds: f64, patience: Patience) -> Self {
        // A chain with faster blocks than the network's is asked more often.
        let look = PublishLimits::default().look.min(std::time::Duration::from_secs_f64(block_seconds));
        Self {
            node: Node::connect(endpoints, patience),
            netuid,
            block_seconds,
            limits: PublishLimits { look, ..PublishLimits::default() },
            anchor: Mutex::new(None),
        }
    }

    async fn hash(&self, block: u64) -> Result<[u8; 32], ChainError> {
        match self.node.block_hash(block).await? {
            Some(hash) => Ok(hash),
            None => Err(ChainError::NotYet { block, head: self.node.head().await?.number }),
        }
    }

    async fn time(&self, block: u64) -> Result<f64, ChainError> {
        let head = self.node.head().await?.number;
        if block <= head {
            return self.time_of(block).await;
        }
        let known = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, time) = match known.filter(|(number, _)| *number <= head && number + ANCHOR_BLOCKS > head) {
            Some(anchor) => anchor,
            None => (head, self.time_of(head).await?),
        };
        Ok(time + (block - number) as f64 * self.block_seconds)
    }

    async fn time_of(&self, block: u64) -> Result<f64, ChainError> {
        let hash = self.hash(block).await?;
        let absent = || NodeError::Answer { method: "state_getStorage", reason: format!("block {block} has no time") };
        let time = self.node.timestamp(&hash).await?.ok_or_else(absent)?;
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Some((block, time));
        Ok(time)
    }

    async fn subnet(&self, hotkey: &str) -> Result<Standing, ChainError> {
        let account = public_key_of(hotkey)
            .map_err(|error| NodeError::Answer { method: "state_queryStorageAt", reason: format!("{hotkey}: {error}") })?;
        let subnet = self.node.subnet(self.netuid, &account).await?;
        Ok(Standing {
            subnet_exists: subnet.exists,
            uid: subnet.uid,
            trainer: subnet.trainer.as_ref().map(address_of),
            trainer_bucket: bucket(subnet.trainer_registration),
            own_bucket: bucket(subnet.own_registration),
        })
    }

    async fn commit(&self, hotkey: &Hotkey, bucket: &BucketCommitment) -> Result<(), ChainError> {
        let text = bucket.encode()?;
        if publish(&self.node, hotkey, self.netuid, &text, &self.limits).await? == Published::Written {
            tracing::info!(netuid = self.netuid, "The bucket's read credentials are published on chain, finalised.");
        }
        Ok(())
    }
}

/// What validators would make of a registration: something they cannot read is no bucket.
fn bucket(registration: Option<Registration>) -> Option<BucketCommitment> {
    BucketCommitment::decode(registration?.text.as_deref()?).ok()
}

impl Chain for NetworkChain {
    fn genesis(&self) -> BoxFuture<'_, Result<Option<[u8; 32]>, ChainError>> {
        async { Ok(Some(self.node.identity().await?.1)) }.boxed()
    }

    fn head(&self) -> BoxFuture<'_, Result<u64, ChainError>> {
        async { Ok(self.node.head().await?.number) }.boxed()
    }

    fn block_hash(&self, block: u64) -> BoxFuture<'_, Result<String, ChainError>> {
        async move { Ok(format!("0x{}", hex::encode(self.hash(block).await?))) }.boxed()
    }

    fn block_time(&self, block: u64) -> BoxFuture<'_, Result<f64, ChainError>> {
        self.time(block).boxed()
    }

    fn finalized(&self) -> BoxFuture<'_, Result<u64, ChainError>> {
        async { Ok(self.node.finalized().await?.1) }.boxed()
    }

    fn nominal_block_seconds(&self) -> f64 {
        self.block_seconds
    }

    fn standing<'a>(&'a self, hotkey: &'a str) -> BoxFuture<'a, Result<Standing, ChainError>> {
        self.subnet(hotkey).boxed()
    }

    fn commit_bucket<'a>(&'a self, hotkey: &'a Hotkey, bucket: &'a BucketCommitment) -> BoxFuture<'a, Result<(), ChainError>> {
        self.commit(hotkey, bucket).boxed()
    }
}
