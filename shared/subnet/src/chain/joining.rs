//! Joining a subnet: registered, published, and the trainer's bucket known.

use std::sync::Arc;
use std::time::Duration;

use grail_chain::patience::{Backoff, PublishLimits};
use grail_process::clock;
use grail_protocol::keys::Hotkey;
use tokio_util::task::AbortOnDropHandle;

use super::{BucketCommitment, Chain, ChainError};

/// How long a start waits for a chain that does not answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);
/// Between two questions to a chain that does not answer.
const QUESTION: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(15), jitter: 0.25 };

/// A hotkey that may mine.
#[derive(Debug)]
pub struct Joined {
    /// UID 0's address.
    pub trainer: String,
    /// UID 0's bucket.
    pub trainer_bucket: BucketCommitment,
    /// Goes on trying to publish, where an older publication of ours serves meanwhile.
    pub publishing: Option<AbortOnDropHandle<()>>,
}

/// Checks the registration, publishes the bucket unless the chain holds it, and waits for the trainer's bucket, which is never
/// replaced by our own.
///
/// # Errors
/// Not registered, no such subnet, a chain that refuses for good, or one that gives no answer for two minutes.
pub async fn join(
    chain: &Arc<dyn Chain>,
    hotkey: &Arc<Hotkey>,
    own: &BucketCommitment,
    netuid: u16,
) -> Result<Joined, ChainError> {
    let standing = patiently(|| chain.standing(hotkey.address())).await?;
    if !standing.subnet_exists {
        return Err(ChainError::NoSubnet { netuid });
    }
    if standing.uid.is_none() {
        return Err(ChainError::NotRegistered { hotkey: hotkey.address().to_owned(), netuid });
    }
    let publishing = published(chain, hotkey, own, standing.own_bucket.as_ref()).await?;
    let (trainer, trainer_bucket) = match standing.trainer() {
        Ok(found) => found,
        Err(_) => await_trainer(chain.as_ref(), hotkey.address()).await?,
    };
    Ok(Joined { trainer, trainer_bucket, publishing })
}

/// Hash of the chain's block 0, asked as patiently as [`join`] asks.
///
/// # Errors
/// A chain that refuses for good, or one that gives no answer for two minutes.
pub async fn genesis(chain: &dyn Chain) -> Result<Option<[u8; 32]>, ChainError> {
    patiently(|| chain.genesis()).await
}

/// A chain that is only just not reachable is asked again.
async fn patiently<T, F: Future<Output = Result<T, ChainError>>>(ask: impl Fn() -> F) -> Result<T, ChainError> {
    let (begun, mut failures) = (clock::monotonic(), 0);
    loop {
        match ask().await {
            Err(error) if error.is_passing() && begun.elapsed() < ANSWER_PATIENCE => {
                failures += 1;
                tracing::warn!(%error, "The chain does not answer yet.");
                tokio::time::sleep(QUESTION.pause(failures, rand::random())).await;
            }
            answer => return answer,
        }
    }
}

async fn published(
    chain: &Arc<dyn Chain>,
    hotkey: &Arc<Hotkey>,
    own: &BucketCommitment,
    there: Option<&BucketCommitment>,
) -> Result<Option<AbortOnDropHandle<()>>, ChainError> {
    if there == Some(own) {
        return Ok(None);
    }
    let mut failures = 0;
    loop {
        let Err(error) = chain.commit_bucket(hotkey, own).await else { return Ok(None) };
        failures += 1;
        let pause = PublishLimits::default().again.pause(failures, rand::random());
        if there.is_some() {
            // What validators read now may still work, so mining need not wait.
            tracing::warn!(%error, "The chain still holds other read credentials of this hotkey; mining goes on with those.");
            return Ok(error.is_passing().then(|| publish_later(chain.clone(), hotkey.clone(), own.clone(), pause)));
        }
        if !error.is_passing() {
            return Err(error);
        }
        tracing::warn!(%error, pause = pause.as_secs_f64(), "Without published read credentials nobody reads what is mined; it is tried again.");
        tokio::time::sleep(pause).await;
    }
}

fn publish_later(
    chain: Arc<dyn Chain>,
    hotkey: Arc<Hotkey>,
    own: BucketCommitment,
    mut pause: Duration,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        for failures in 2.. {
            tokio::time::sleep(pause).await;
            match chain.commit_bucket(&hotkey, &own).await {
                Ok(()) => return,
                Err(error) if error.is_passing() => tracing::warn!(%error, "The read credentials are still not published."),
                Err(error) => return tracing::error!(%error, "The read credentials will not be published; this needs somebody."),
            }
            pause = PublishLimits::default().again.pause(failures, rand::random());
        }
    }))
}

async fn await_trainer(chain: &dyn Chain, hotkey: &str) -> Result<(String, BucketCommitment), ChainError> {
    let look_pause = Duration::from_secs_f64(chain.nominal_block_seconds());
    for look in 0_u32.. {
        match chain.standing(hotkey).await.and_then(|standing| standing.trainer()) {
            Ok(found) => return Ok(found),
            Err(error) if !error.is_passing() => return Err(error),
            Err(error) if look % 5 == 0 => tracing::warn!(%error, "The trainer's bucket is waited for."),
            Err(_) => {}
        }
        tokio::time::sleep(look_pause).await;
    }
    Err(ChainError::NoTrainerBucket)
}
