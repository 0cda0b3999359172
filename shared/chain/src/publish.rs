//! Publishing a commitment, and knowing that it is published (chain 5, 6).
//!
//! ```text
//!  read at finalised ── equal ──▶ nothing is sent
//!     │ differs or absent
//!     ▼
//!  build, sign, check own signature, submit and watch
//!     │  in a block: its events decide; failed is final      finalised: its events decide
//!     │  usurped, dropped, invalid, lost, too late ─▶ nobody knows
//!     ▼
//!  nobody knows: read at finalised until it is there (success) or the era has passed (a new transaction)
//! ```
//!
//! Call data is never logged.

use std::collections::VecDeque;
use std::sync::Arc;

use grail_protocol::keys::Hotkey;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::era::Era;
use crate::events::{self, DispatchError, Verdict};
use crate::extrinsic::{SignedExtrinsic, SigningError, Terms, set_commitment, sign};
use crate::node::{BlockHash, Node, NodeError, Runtime};
use crate::patience::PublishLimits;
use crate::storage;

/// How it came to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// The chain held the same; nothing was sent.
    Already,
    /// Written by this call, finalised.
    Written,
}

/// Why it is not known to be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The runtime executed the call and refused.
    #[error("the chain refuses the commitment: {0}")]
    Failed(DispatchError),
    /// The node does not take the transaction.
    #[error("the node does not take the transaction: {message} (code {code})")]
    Refused {
        /// JSON-RPC's code.
        code: i64,
        /// The node's words.
        message: String,
    },
    /// Nothing was signed.
    #[error("nothing was signed: {0}")]
    Signing(#[from] SigningError),
    /// The chain could not be read; without a successful read nothing is written.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Still unknown when attempts or time were used up.
    #[error("after {attempts} transaction(s) it is not known whether the commitment is published; it is tried again later")]
    Unknown {
        /// Transactions that were sent.
        attempts: u32,
    },
}

impl PublishError {
    /// Whether a later attempt may end otherwise, without a change by the operator.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            // The rate limit is the one error of the pallet that time mends; its names differ between runtimes.
            Self::Failed(error) => error.name.contains("RateLimit") || error.name.contains("SpaceLimit"),
            Self::Refused { code, .. } => ![CODE_UNKNOWN_VALIDITY, CODE_TRAP].contains(code),
            Self::Signing(_) => false,
            Self::Node(error) => error.is_passing(),
            Self::Unknown { .. } => true,
        }
    }
}

const CODE_TRAP: i64 = 1002;
const CODE_INVALID: i64 = 1010;
const CODE_UNKNOWN_VALIDITY: i64 = 1011;
const CODE_BANNED: i64 = 1012;
const CODE_ALREADY_IMPORTED: i64 = 1013;
const CODE_PRIORITY_TOO_LOW: i64 = 1014;

/// What a node tells of a submitted transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// In the pool, in one way or another, or out of a block again.
    Waiting,
    /// In a block of the best chain.
    InBlock(BlockHash),
    /// In a finalised block.
    Finalized(BlockHash),
    /// The node watches no longer; what became of it is unknown.
    Over(String),
}

impl Status {
    /// Reads one notification. What is not understood means that nobody knows.
    #[must_use]
    pub fn read(notification: &Value) -> Self {
        let (name, value) = match notification {
            Value::String(name) => (name.as_str(), &Value::Null),
            Value::Object(object) => match object.iter().next() {
                Some((name, value)) => (name.as_str(), value),
                None => ("", &Value::Null),
            },
            _ => ("", &Value::Null),
        };
        let hash = || -> Option<BlockHash> { hex::decode(value.as_str()?.strip_prefix("0x")?).ok()?.try_into().ok() };
        match (name, hash()) {
            ("ready" | "future" | "broadcast" | "retracted", _) => Self::Waiting,
            ("inBlock", Some(hash)) => Self::InBlock(hash),
            ("finalized", Some(hash)) => Self::Finalized(hash),
            _ => Self::Over(if name.is_empty() { "an unreadable status".into() } else { name.to_owned() }),
        }
    }
}

/// What is to be done after one attempt.
#[derive(Debug)]
enum Outcome {
    Success,
    Failed(DispatchError),
    /// Nobody knows; after this block it can no longer be included.
    Unknown {
        death: u64,
        why: String,
    },
    /// Not in the pool: once more, with everything read anew.
    Rebuild {
        code: i64,
        message: String,
    },
}

/// Brings `text` onto the chain as the hotkey's commitment on a subnet, unless it is there.
///
/// # Errors
/// See [`PublishError`].
pub async fn publish(
    node: &Node,
    hotkey: &Hotkey,
    netuid: u16,
    text: &str,
    limits: &PublishLimits,
) -> Result<Published, PublishError> {
    let writer = Writer { node, hotkey, netuid, text, limits };
    let sent = std::sync::atomic::AtomicU32::new(0);
    let result = tokio::time::timeout(limits.total, writer.run(&sent)).await;
    result.unwrap_or_else(|_| Err(PublishError::Unknown { attempts: sent.into_inner() }))
}

struct Writer<'a> {
    node: &'a Node,
    hotkey: &'a Hotkey,
    netuid: u16,
    text: &'a str,
    limits: &'a PublishLimits,
}

impl Writer<'_> {
    async fn run(&self, sent: &std::sync::atomic::AtomicU32) -> Result<Published, PublishError> {
        if self.is_there().await? {
            return Ok(Published::Already);
        }
        let mut rebuilt = false;
        for attempt in 1..=self.limits.attempts {
            sent.store(attempt, std::sync::atomic::Ordering::Relaxed);
            match self.attempt().await? {
                Outcome::Success => return Ok(Published::Written),
                Outcome::Failed(error) => return Err(PublishError::Failed(error)),
                Outcome::Unknown { death, why } => {
                    tracing::warn!(
                        attempt,
                        why,
                        "It is not known whether the commitment was written; the chain is asked until it is."
                    );
                    if self.appears_before(death).await? {
                        return Ok(Published::Written);
                    }
                }
                Outcome::Rebuild { code, message } if rebuilt && code == CODE_INVALID => {
                    return Err(PublishError::Refused { code, message });
                }
                Outcome::Rebuild { code, message } => {
                    rebuilt = true;
                    tracing::warn!(attempt, code, message, "The node did not take the transaction; it is built anew.");
                    if code != CODE_INVALID {
                        tokio::time::sleep(self.limits.look).await;
                    }
                }
            }
        }
        Err(PublishError::Unknown { attempts: self.limits.attempts })
    }

    /// Whether the newest finalised block has it.
    async fn is_there(&self) -> Result<bool, NodeError> {
        let (at, _) = self.node.finalized().await?;
        self.is_there_at(&at).await
    }

    async fn is_there_at(&self, at: &BlockHash) -> Result<bool, NodeError> {
        let registration = self.node.registration(self.netuid, &self.hotkey.public_key(), at).await?;
        Ok(registration.is_some_and(|registration| registration.text.as_deref() == Some(self.text)))
    }

    async fn attempt(&self) -> Result<Outcome, PublishError> {
        let runtime = self.node.fresh_runtime().await?;
        let (birth_hash, number) = self.node.finalized().await?;
        let (_, genesis, _) = self.node.identity().await?;
        let era = Era::mortal(self.limits.period, number);
        // Above 4096 blocks the encoding rounds the anchor, and another block's hash would be wanted.
        let birth_hash = if era.birth(number) == number {
            birth_hash
        } else {
            let rounded = self.node.block_hash(era.birth(number)).await?;
            rounded.ok_or_else(|| NodeError::Down("the era's first block is not there".into()))?
        };
        let terms = Terms {
            spec_version: runtime.spec_version,
            transaction_version: runtime.transaction_version,
            genesis,
            era,
            birth_hash,
            nonce: self.node.next_nonce(self.hotkey.address()).await?,
            tip: 0,
        };
        let call = set_commitment(&runtime.metadata, self.netuid, self.text.as_bytes())?;
        let extrinsic = sign(&runtime.metadata, &call, &terms, self.hotkey)?;
        let death = era.death(number);
        tracing::info!(
            nonce = terms.nonce,
            hash = hex::encode(extrinsic.hash),
            netuid = self.netuid,
            "The bucket is being published on chain."
        );
        match self.node.submit_and_watch(&extrinsic.bytes).await {
            Ok(updates) => Ok(self.watch(updates, &extrinsic, death).await),
            Err(NodeError::Refused { code, message, .. }) => refused(code, message, death),
            // Nothing was sent.
            Err(error @ NodeError::Down(_)) => Err(error.into()),
            Err(error) => Ok(Outcome::Unknown { death, why: error.to_string() }),
        }
    }

    /// Follows a submitted transaction until something is known, or nothing can be any more.
    async fn watch(&self, mut updates: mpsc::Receiver<Value>, extrinsic: &SignedExtrinsic, death: u64) -> Outcome {
        let unknown = |why: String| Outcome::Unknown { death, why };
        // Each block is judged once; a retraction may bring another.
        let mut judged = VecDeque::new();
        loop {
            let status = match tokio::time::timeout(self.limits.look, updates.recv()).await {
                Ok(Some(update)) => Status::read(&update),
                Ok(None) => return unknown("the connection ended".into()),
                Err(_) => match self.node.finalized().await {
                    Ok((_, number)) if number > death + self.limits.finality_lag => return unknown("its era has passed".into()),
                    _ => Status::Waiting,
                },
            };
            let (hash, last) = match status {
                Status::Waiting => continue,
                Status::Over(why) => return unknown(why),
                Status::InBlock(hash) if judged.contains(&hash) => continue,
                Status::InBlock(hash) => (hash, false),
                Status::Finalized(hash) => (hash, true),
            };
            judged.push_back(hash);
            match self.verdict(&hash, extrinsic).await {
                Ok(Verdict::Failed(error)) => return Outcome::Failed(error),
                Ok(Verdict::Success) if last => return Outcome::Success,
                Ok(_) if last => return unknown("the block's events do not tell".into()),
                Err(error) if last => return unknown(error.to_string()),
                _ => {}
            }
        }
    }

    /// What the events of a block say of the transaction in it. The block was executed with its parent's runtime.
    async fn verdict(&self, hash: &BlockHash, extrinsic: &SignedExtrinsic) -> Result<Verdict, PublishError> {
        let Some(header) = self.node.header(hash).await? else { return Ok(Verdict::Untold) };
        let body = self.node.extrinsics(hash).await?;
        let Some(position) = body.iter().position(|one| *one == extrinsic.bytes) else { return Ok(Verdict::Untold) };
        let runtime: Arc<Runtime> = self.node.runtime_of(&header.parent).await?;
        let key = storage::key(&runtime.metadata, "System", "Events", &[]).map_err(NodeError::from)?;
        let Some(bytes) = self.node.storage_bytes(&key, hash).await? else { return Ok(Verdict::Untold) };
        let events = events::decode(&runtime.metadata, &bytes).map_err(NodeError::from)?;
        if events.undecoded > 0 {
            tracing::warn!(records = events.undecoded, "Events of the block could not be decoded by the runtime's metadata.");
        }
        Ok(events.verdict(&runtime.metadata, position as u32))
    }

    /// Asks until the commitment is there, or a transaction that dies at `death` can no longer bring it.
    async fn appears_before(&self, death: u64) -> Result<bool, PublishError> {
        loop {
            match self.look(death).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) if error.is_passing() => tracing::debug!(%error, "The chain does not say yet."),
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(self.limits.look).await;
        }
    }

    async fn look(&self, death: u64) -> Result<Option<bool>, NodeError> {
        let (at, number) = self.node.finalized().await?;
        if self.is_there_at(&at).await? {
            return Ok(Some(true));
        }
        Ok((number > death).then_some(false))
    }
}

/// What a refusal at submission means. Codes decide; texts differ between nodes and are only shown.
fn refused(code: i64, message: String, death: u64) -> Result<Outcome, PublishError> {
    match code {
        // It is in the pool already, or another one with its nonce is.
        CODE_ALREADY_IMPORTED | CODE_PRIORITY_TOO_LOW => Ok(Outcome::Unknown { death, why: message }),
        CODE_INVALID | CODE_BANNED => Ok(Outcome::Rebuild { code, message }),
        _ => Err(PublishError::Refused { code, message }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_understood_means_that_nobody_knows() {
        let hash = format!("0x{}", "ab".repeat(32));
        for (told, status) in [
            (json!("ready"), Status::Waiting),
            (json!({ "future": null }), Status::Waiting),
            (json!({ "broadcast": ["peer"] }), Status::Waiting),
            (json!({ "retracted": hash }), Status::Waiting),
            (json!({ "inBlock": hash }), Status::InBlock([0xab; 32])),
            (json!({ "finalized": hash }), Status::Finalized([0xab; 32])),
            (json!({ "inBlock": "0x12" }), Status::Over("inBlock".into())),
            (json!({ "usurped": hash }), Status::Over("usurped".into())),
            (json!({ "finalityTimeout": hash }), Status::Over("finalityTimeout".into())),
            (json!("invalid"), Status::Over("invalid".into())),
            (json!(7), Status::Over("an unreadable status".into())),
        ] {
            assert_eq!(Status::read(&told), status, "{told}");
        }
    }

    #[test]
    fn codes_decide_what_a_refusal_means() {
        let meaning = |code| refused(code, "text".into(), 100);
        assert!(matches!(meaning(CODE_ALREADY_IMPORTED), Ok(Outcome::Unknown { death: 100, .. })));
        assert!(matches!(meaning(CODE_PRIORITY_TOO_LOW), Ok(Outcome::Unknown { .. })));
        assert!(matches!(meaning(CODE_INVALID), Ok(Outcome::Rebuild { .. })));
        assert!(matches!(meaning(CODE_BANNED), Ok(Outcome::Rebuild { .. })));
        assert!(meaning(CODE_TRAP).is_err_and(|error| !error.is_passing()));
        assert!(meaning(CODE_UNKNOWN_VALIDITY).is_err_and(|error| !error.is_passing()));
    }
}
