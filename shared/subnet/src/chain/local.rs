//! The local chain: a block clock from a fixed genesis, hashes derived from block numbers, and one JSON file for metagraph and
//! commitments. It stands in for a node where there is no network, and speaks through the same trait.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, ready};
use grail_process::clock;
use grail_protocol::constants::TRAINER_UID;
use grail_protocol::keys::Hotkey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{BucketCommitment, Chain, ChainError, Standing};

impl State {
    fn standing(&self, hotkey: &str) -> Result<Standing, ChainError> {
        let bucket = |address: &str| self.commitments.get(address).map(|text| BucketCommitment::decode(text)).transpose();
        let trainer = self.hotkeys.get(usize::from(TRAINER_UID)).cloned();
        Ok(Standing {
            subnet_exists: true,
            uid: self.hotkeys.iter().position(|member| member == hotkey).and_then(|uid| u16::try_from(uid).ok()),
            trainer_bucket: trainer.as_deref().map(bucket).transpose()?.flatten(),
            trainer,
            own_bucket: bucket(hotkey)?,
        })
    }
}

/// A chain whose blocks are the ticks of the host's clock.
#[derive(Debug)]
pub struct LocalChain {
    genesis: f64,
    block_seconds: f64,
    file: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// In UID order.
    hotkeys: Vec<String>,
    /// Address to commitment text.
    #[serde(default)]
    commitments: BTreeMap<String, String>,
}

impl LocalChain {
    /// A clock that counts from `genesis` (Unix seconds). The file is made by [`LocalChain::found`].
    pub fn new(genesis: f64, block_seconds: f64, file: PathBuf) -> Self {
        Self { genesis, block_seconds, file }
    }

    /// Creates the file with these hotkeys (UID order) and buckets if there is none; an existing file is left as it is.
    ///
    /// # Errors
    /// When the file cannot be written or a bucket cannot be expressed.
    pub fn found(&self, members: &[(String, BucketCommitment)]) -> Result<(), ChainError> {
        if self.file.exists() {
            return self.read().map(|_| ());
        }
        let mut state = State::default();
        for (hotkey, bucket) in members {
            state.hotkeys.push(hotkey.clone());
            state.commitments.insert(hotkey.clone(), bucket.encode()?);
        }
        self.write(&state)
    }

    fn head_at(&self, now: Duration) -> u64 {
        ((now.as_secs_f64() - self.genesis) / self.block_seconds).floor().max(0.0) as u64
    }

    fn hash(&self, block: u64) -> Result<String, ChainError> {
        let head = self.head_at(clock::since_epoch());
        if block > head {
            return Err(ChainError::NotYet { block, head });
        }
        let text = format!("grail local chain|{}|{block}", self.genesis);
        Ok(format!("0x{}", hex::encode(Sha256::digest(text))))
    }

    fn failed(&self, reason: String) -> ChainError {
        ChainError::File { path: self.file.clone(), reason }
    }

    fn read(&self) -> Result<State, ChainError> {
        let text = std::fs::read_to_string(&self.file).map_err(|error| self.failed(format!("cannot be read: {error}")))?;
        serde_json::from_str(&text)
            .map_err(|error| self.failed(format!("is not the form this program writes ({error}); remove it to begin anew")))
    }

    fn write(&self, state: &State) -> Result<(), ChainError> {
        let folder = self.file.parent().unwrap_or(Path::new("."));
        let replace = || -> std::io::Result<()> {
            std::fs::create_dir_all(folder)?;
            let mut beside = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut beside, state)?;
            beside.flush()?;
            beside.persist(&self.file).map(|_| ()).map_err(|error| error.error)
        };
        replace().map_err(|error| self.failed(format!("cannot be written: {error}")))
    }

    fn commit(&self, hotkey: &str, bucket: &BucketCommitment) -> Result<(), ChainError> {
        let mut state = self.read()?;
        let text = bucket.encode()?;
        if state.commitments.get(hotkey) == Some(&text) {
            return Ok(());
        }
        state.commitments.insert(hotkey.into(), text);
        self.write(&state)
    }
}

impl Chain for LocalChain {
    fn genesis(&self) -> BoxFuture<'_, Result<Option<[u8; 32]>, ChainError>> {
        ready(Ok(None)).boxed()
    }

    fn head(&self) -> BoxFuture<'_, Result<u64, ChainError>> {
        ready(Ok(self.head_at(clock::since_epoch()))).boxed()
    }

    fn block_hash(&self, block: u64) -> BoxFuture<'_, Result<String, ChainError>> {
        ready(self.hash(block)).boxed()
    }

    fn block_time(&self, block: u64) -> BoxFuture<'_, Result<f64, ChainError>> {
        ready(Ok(self.genesis + block as f64 * self.block_seconds)).boxed()
    }

    fn finalized(&self) -> BoxFuture<'_, Result<u64, ChainError>> {
        self.head()
    }

    fn nominal_block_seconds(&self) -> f64 {
        self.block_seconds
    }

    fn standing<'a>(&'a self, hotkey: &'a str) -> BoxFuture<'a, Result<Standing, ChainError>> {
        ready(self.read().and_then(|state| state.standing(hotkey))).boxed()
    }

    fn commit_bucket<'a>(&'a self, hotkey: &'a Hotkey, bucket: &'a BucketCommitment) -> BoxFuture<'a, Result<(), ChainError>> {
        ready(self.commit(hotkey.address(), bucket)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use grail_settings::Secret;

    use super::*;

    fn bucket(name: &str) -> BucketCommitment {
        BucketCommitment { account_id: name.into(), access_key_id: "AK".into(), secret_access_key: Secret::new("SK") }
    }

    #[tokio::test]
    async fn blocks_follow_the_clock() {
        let folder = tempfile::tempdir().unwrap();
        let chain = LocalChain::new(clock::unix_seconds() - 100.0, 2.0, folder.path().join("chain.json"));
        let head = chain.head().await.unwrap();
        assert!((50..=51).contains(&head), "{head}");
        let hash = chain.block_hash(30).await.unwrap();
        assert!(hash.starts_with("0x") && hash.len() == 66 && hash == chain.block_hash(30).await.unwrap());
        assert!(matches!(chain.block_hash(1_000_000).await, Err(ChainError::NotYet { .. })));
    }

    #[tokio::test]
    async fn members_and_buckets_are_kept_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let chain = LocalChain::new(0.0, 1.0, folder.path().join("deep/chain.json"));
        let miner = Hotkey::from_uri("//Alice").unwrap();
        chain.found(&[("trainer".into(), bucket("t")), (miner.address().into(), bucket("m"))]).unwrap();
        chain.found(&[]).unwrap();
        assert_eq!(chain.standing(miner.address()).await.unwrap().trainer().unwrap(), ("trainer".into(), bucket("t")));
        chain.commit_bucket(&miner, &bucket("n")).await.unwrap();
        let standing = chain.standing(miner.address()).await.unwrap();
        assert_eq!((standing.uid, standing.own_bucket), (Some(1), Some(bucket("n"))));
        let stranger = chain.standing("stranger").await.unwrap();
        assert_eq!((stranger.uid, stranger.own_bucket), (None, None));
        std::fs::write(folder.path().join("deep/chain.json"), "{}").unwrap();
        assert!(chain.standing("miner").await.unwrap_err().to_string().contains("remove it to begin anew"));
    }
}
