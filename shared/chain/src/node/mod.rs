//! A node of the network: one kept connection, and what a miner asks of it.

mod error;
mod keeper;
mod runtime;
mod session;

use std::sync::Arc;

use grail_process::clock;
use grail_secrets::Address;
use scale_value::Value as Scale;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

pub use error::NodeError;
pub use keeper::Head;
use keeper::{Announcements, Link, Live, at_most_a_second, header_number};
pub use runtime::Runtime;
use runtime::{bytes_of, hash_of};
use session::Session;

use crate::commitment::Registration;
use crate::metadata::Metadata;
use crate::patience::Patience;
use crate::storage::{self, Decoded, StorageError};

/// Hash of a block.
pub type BlockHash = [u8; 32];

/// Which nodes, and of which network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// `ws://` or `wss://` addresses, taken in turn. Never empty.
    pub addresses: Vec<Address>,
    /// Hash of the network's block 0; `None` takes what the first connection tells, for good.
    pub genesis: Option<BlockHash>,
}

/// A subnet as one hotkey sees it, all of it at one finalised block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// Whether there is such a subnet.
    pub exists: bool,
    /// UID of the hotkey; `None` = not registered.
    pub uid: Option<u16>,
    /// Public key of UID 0; the all-zero key of an unused UID is none.
    pub trainer: Option<[u8; 32]>,
    /// What UID 0 has published.
    pub trainer_registration: Option<Registration>,
    /// What the hotkey has published.
    pub own_registration: Option<Registration>,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Number.
    pub number: u64,
    /// Hash of the block before.
    pub parent: BlockHash,
}

/// A handle to the kept connection, which ends with the last handle.
#[derive(Debug, Clone)]
pub struct Node {
    link: watch::Receiver<Link>,
    head: watch::Receiver<Option<Head>>,
    patience: Arc<Patience>,
    _keeper: Arc<AbortOnDropHandle<()>>,
}

impl Node {
    /// Begins to connect; nothing is waited for.
    #[must_use]
    pub fn connect(endpoints: Endpoints, patience: Patience) -> Self {
        let patience = Arc::new(patience);
        let (link, link_told) = watch::channel(Link::Opening);
        let (head, head_told) = watch::channel(None);
        let keeper = tokio::spawn(keeper::keep(endpoints, patience.clone(), Announcements { link, head }));
        Self { link: link_told, head: head_told, patience, _keeper: Arc::new(AbortOnDropHandle::new(keeper)) }
    }

    /// The newest block.
    ///
    /// # Errors
    /// When there is no connection, or it has told no new block for long.
    pub async fn head(&self) -> Result<Head, NodeError> {
        self.live().await?;
        let mut head = self.head.clone();
        let told = tokio::time::timeout(self.patience.request, head.wait_for(Option::is_some)).await;
        let seconds = self.patience.request.as_secs();
        let late = NodeError::Late { method: "chain_subscribeNewHeads", seconds };
        let head = told.ok().and_then(Result::ok).and_then(|head| *head).ok_or(late)?;
        let age = clock::since_boot().saturating_sub(head.since);
        if age > self.patience.silence { Err(NodeError::Stale { seconds: age.as_secs(), number: head.number }) } else { Ok(head) }
    }

    /// Address of the node that is connected, hash of its block 0, and its runtime.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn identity(&self) -> Result<(Address, BlockHash, Arc<Runtime>), NodeError> {
        let live = self.live().await?;
        let runtime = live.runtime.borrow().clone();
        Ok((live.endpoint.clone(), live.genesis, runtime))
    }

    /// Hash of a block of the best chain; `None` for one that is still to come.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn block_hash(&self, number: u64) -> Result<Option<BlockHash>, NodeError> {
        self.honest(async {
            let method = "chain_getBlockHash";
            let answer = self.read(method, json!([number])).await?;
            if answer.is_null() { Ok(None) } else { hash_of(method, &answer).map(Some) }
        })
        .await
    }

    /// Hash and number of the newest finalised block.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn finalized(&self) -> Result<(BlockHash, u64), NodeError> {
        self.honest(async {
            let method = "chain_getFinalizedHead";
            let hash = hash_of(method, &self.read(method, json!([])).await?)?;
            let header = self.header(&hash).await?.ok_or_else(|| NodeError::answer(method, "the block is not there"))?;
            Ok((hash, header.number))
        })
        .await
    }

    /// The header of a block; `None` for an unknown one.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn header(&self, hash: &BlockHash) -> Result<Option<Header>, NodeError> {
        self.honest(async {
            let method = "chain_getHeader";
            let answer = self.read(method, json!([text(hash)])).await?;
            if answer.is_null() {
                return Ok(None);
            }
            let number = header_number(&answer).ok_or_else(|| NodeError::answer(method, "it has no number"))?;
            Ok(Some(Header { number, parent: hash_of(method, &answer["parentHash"])? }))
        })
        .await
    }

    /// Time of a block in Unix seconds: the block's own. Nodes forget it after about 256 blocks.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn timestamp(&self, hash: &BlockHash) -> Result<Option<f64>, NodeError> {
        self.honest(async {
            let value = self.storage(("Timestamp", "Now"), &[], hash).await?;
            Ok(value.as_ref().and_then(storage::number::<u64>).map(|milliseconds| milliseconds as f64 / 1000.0))
        })
        .await
    }

    /// One storage value at a block. Absent is absent: no default is filled in.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn storage(
        &self,
        (pallet, item): (&str, &str),
        arguments: &[Scale],
        at: &BlockHash,
    ) -> Result<Option<Decoded>, NodeError> {
        self.honest(async {
            let (_, _, runtime) = self.identity().await?;
            let key = storage::key(&runtime.metadata, pallet, item, arguments)?;
            let Some(bytes) = self.storage_bytes(&key, at).await? else { return Ok(None) };
            Ok(Some(storage::value(&runtime.metadata, pallet, item, &bytes)?))
        })
        .await
    }

    /// The bytes of one storage value at a block.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn storage_bytes(&self, key: &[u8], at: &BlockHash) -> Result<Option<Vec<u8>>, NodeError> {
        self.honest(async {
            let method = "state_getStorage";
            let answer = self.read(method, json!([format!("0x{}", hex::encode(key)), text(at)])).await?;
            if answer.is_null() { Ok(None) } else { bytes_of(method, &answer).map(Some) }
        })
        .await
    }

    /// What a hotkey has published on a subnet, at a block. `None` is absent, which is not the same as unreadable: a value that
    /// the metadata cannot decode has no text, as for validators.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn registration(&self, netuid: u16, account: &[u8; 32], at: &BlockHash) -> Result<Option<Registration>, NodeError> {
        self.honest(async {
            let (_, _, runtime) = self.identity().await?;
            let key = commitment_key(&runtime.metadata, netuid, account)?;
            Ok(self.storage_bytes(&key, at).await?.map(|bytes| readable(&runtime.metadata, &bytes)).transpose()?)
        })
        .await
    }

    /// Everything a miner must know of its subnet, in two requests at one finalised block.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn subnet(&self, netuid: u16, hotkey: &[u8; 32]) -> Result<Subnet, NodeError> {
        self.honest(async {
            let (_, _, runtime) = self.identity().await?;
            let metadata = &runtime.metadata;
            let (at, _) = self.finalized().await?;
            let (subnet, zero) = (Scale::u128(netuid.into()), Scale::u128(grail_protocol::constants::TRAINER_UID.into()));
            let own = commitment_key(metadata, netuid, hotkey)?;
            let key = |item: &str, arguments: &[Scale]| storage::key(metadata, "SubtensorModule", item, arguments);
            let keys = [
                key("NetworksAdded", std::slice::from_ref(&subnet))?,
                key("Uids", &[subnet.clone(), Scale::from_bytes(hotkey)])?,
                key("Keys", &[subnet, zero])?,
                own,
            ];
            let [exists, uid, trainer, own] = self.storage_set(&keys, &at).await?;
            let decoded = |item: &str, bytes: Option<Vec<u8>>| {
                bytes.map(|bytes| storage::value(metadata, "SubtensorModule", item, &bytes)).transpose()
            };
            let trainer =
                decoded("Keys", trainer)?.as_ref().and_then(storage::bytes).and_then(|key| <[u8; 32]>::try_from(key).ok());
            let trainer = trainer.filter(|key| *key != [0; 32]);
            let trainer_registration = match &trainer {
                Some(trainer) => self.registration(netuid, trainer, &at).await?,
                None => None,
            };
            Ok(Subnet {
                exists: decoded("NetworksAdded", exists)?.and_then(|value| value.as_bool()).unwrap_or(false),
                uid: decoded("Uids", uid)?.as_ref().and_then(storage::number),
                trainer,
                trainer_registration,
                own_registration: own.map(|bytes| readable(metadata, &bytes)).transpose()?,
            })
        })
        .await
    }

    /// Values of several keys at one block, in order of the keys.
    async fn storage_set<const N: usize>(&self, keys: &[Vec<u8>; N], at: &BlockHash) -> Result<[Option<Vec<u8>>; N], NodeError> {
        let method = "state_queryStorageAt";
        let names = keys.each_ref().map(|key| format!("0x{}", hex::encode(key)));
        let answer = self.read(method, json!([names.to_vec(), text(at)])).await?;
        let changes = answer[0]["changes"].as_array().ok_or_else(|| NodeError::answer(method, "it has no changes"))?;
        let mut values = [const { None }; N];
        for (value, name) in values.iter_mut().zip(&names) {
            // Absent and not answered must never look the same: the one leads to a write.
            let change = changes.iter().find(|change| change[0].as_str().is_some_and(|key| key.eq_ignore_ascii_case(name)));
            let change = change.ok_or_else(|| NodeError::answer(method, "a key that was asked for is missing"))?;
            *value = if change[1].is_null() { None } else { Some(bytes_of(method, &change[1])?) };
        }
        Ok(values)
    }

    /// The next nonce of an address, with what waits in the node's pool.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn next_nonce(&self, address: &str) -> Result<u32, NodeError> {
        self.honest(async {
            let method = "system_accountNextIndex";
            let answer = self.read(method, json!([address])).await?;
            let nonce = answer.as_u64().and_then(|nonce| u32::try_from(nonce).ok());
            nonce.ok_or_else(|| NodeError::answer(method, "it is not a nonce"))
        })
        .await
    }

    /// Submits an extrinsic, once; what becomes of it is told until the connection ends.
    ///
    /// # Errors
    /// See [`NodeError`]; after anything but a refusal nobody knows whether it is in the pool.
    pub async fn submit_and_watch(&self, extrinsic: &[u8]) -> Result<mpsc::Receiver<Value>, NodeError> {
        let live = self.live().await?;
        live.session.subscribe("author_submitAndWatchExtrinsic", json!([format!("0x{}", hex::encode(extrinsic))])).await
    }

    /// Extrinsics of a block, each with its length prefix.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn extrinsics(&self, hash: &BlockHash) -> Result<Vec<Vec<u8>>, NodeError> {
        self.honest(async {
            let method = "chain_getBlock";
            let answer = self.read(method, json!([text(hash)])).await?;
            let listed =
                answer["block"]["extrinsics"].as_array().ok_or_else(|| NodeError::answer(method, "it has no extrinsics"))?;
            listed.iter().map(|one| bytes_of(method, one)).collect()
        })
        .await
    }

    /// The runtime that a block was executed with: that of its parent's state.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn runtime_of(&self, parent: &BlockHash) -> Result<Arc<Runtime>, NodeError> {
        self.honest(async {
            let live = self.live().await?;
            let parent = text(parent);
            let versions = runtime::versions_at(&live.session, Some(&parent)).await?;
            let held = live.runtime.borrow().clone();
            if held.spec_version == versions.spec {
                return Ok(held);
            }
            runtime::fetch(&live.session, versions, Some(&parent)).await
        })
        .await
    }

    /// The runtime of now, asked for anew: what is signed must name the version that judges it.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn fresh_runtime(&self) -> Result<Arc<Runtime>, NodeError> {
        self.honest(async {
            let live = self.live().await?;
            let versions = runtime::versions_at(&live.session, None).await?;
            let held = live.runtime.borrow().clone();
            if (held.spec_version, held.transaction_version) == (versions.spec, versions.transaction) {
                return Ok(held);
            }
            let runtime = runtime::fetch(&live.session, versions, None).await?;
            live.runtime.send_replace(runtime.clone());
            Ok(runtime)
        })
        .await
    }

    /// A node whose answer no honest one gives is left for the next: the connection ends, and whoever asked may ask again.
    async fn honest<T>(&self, answer: impl Future<Output = Result<T, NodeError>>) -> Result<T, NodeError> {
        let asked = match &*self.link.borrow() {
            Link::Up(live) => Some(live.clone()),
            Link::Opening | Link::Down(_) => None,
        };
        let answer = answer.await;
        if let (Err(error), Some(live)) = (&answer, asked)
            && error.is_a_lie()
        {
            live.session.leave(error.to_string());
        }
        answer
    }

    /// A read: tried again where the connection was the trouble.
    async fn read(&self, method: &'static str, params: Value) -> Result<Value, NodeError> {
        let mut tries = 0;
        loop {
            let answer = match self.live().await {
                Ok(live) => live.session.request(method, params.clone()).await,
                Err(error) => Err(error),
            };
            tries += 1;
            match answer {
                // Without a connection the circuit is open: the next question may find one, this one fails at once.
                Err(error @ (NodeError::Lost { .. } | NodeError::Late { .. })) if tries < self.patience.tries => {
                    tracing::debug!(%error, tries, "A question to the chain is asked again.");
                    tokio::time::sleep(at_most_a_second(self.patience.backoff.first)).await;
                }
                answer => return answer,
            }
        }
    }

    /// The connection, waited for while the first one is being made.
    async fn live(&self) -> Result<Arc<Live>, NodeError> {
        let mut link = self.link.clone();
        let opened = tokio::time::timeout(self.patience.connect, link.wait_for(|link| !matches!(link, Link::Opening))).await;
        match opened.map(|link| link.map(|link| link.clone())) {
            Ok(Ok(Link::Up(live))) => Ok(live),
            // A network or a runtime that this program cannot work with is told as such, trouble with the way there as that.
            Ok(Ok(Link::Down(why))) if why.is_passing() => {
                Err(NodeError::Down(why.to_string().replacen("no node answers: ", "", 1)))
            }
            Ok(Ok(Link::Down(why))) => Err(why),
            _ => Err(NodeError::Down(format!("no connection was made within {} s", self.patience.connect.as_secs()))),
        }
    }
}

fn commitment_key(metadata: &Metadata, netuid: u16, account: &[u8; 32]) -> Result<Vec<u8>, NodeError> {
    let arguments = [Scale::u128(netuid.into()), Scale::from_bytes(account)];
    Ok(storage::key(metadata, "Commitments", "CommitmentOf", &arguments)?)
}

/// Something that the metadata cannot decode has no text; something that no chain holds is the node's doing.
fn readable(metadata: &Metadata, bytes: &[u8]) -> Result<Registration, StorageError> {
    match Registration::decode(metadata, bytes) {
        Err(error @ StorageError::Excess { .. }) => Err(error),
        decoded => Ok(decoded.unwrap_or(Registration { deposit: 0, block: 0, text: None })),
    }
}

async fn read_timestamp(session: &Session, metadata: &Metadata, hash: &str) -> Result<Option<f64>, NodeError> {
    let method = "state_getStorage";
    let key = storage::key(metadata, "Timestamp", "Now", &[])?;
    let answer = session.request(method, json!([format!("0x{}", hex::encode(key)), hash])).await?;
    if answer.is_null() {
        return Ok(None);
    }
    let value = storage::value(metadata, "Timestamp", "Now", &bytes_of(method, &answer)?)?;
    Ok(storage::number::<u64>(&value).map(|milliseconds| milliseconds as f64 / 1000.0))
}

fn text(hash: &BlockHash) -> String {
    format!("0x{}", hex::encode(hash))
}
