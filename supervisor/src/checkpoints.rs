//! Which checkpoint a window is mined with, on disk and understood: weights, prompt, tasks, sampling policy.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use grail_environments::dataset::SourceSplit;
use grail_environments::{ChatTokenizer, Dataset, Environment, ThinkingMode};
use grail_link::message::{ReloadCommand, Revision};
use grail_protocol::generation_params::GenerationParams;
use grail_store::bucket::Bucket;
use grail_store::checkpoint::{CachedCheckpoint, CheckpointError, FetchLimits, clean, discover, fetch_full, weights_hash};

use crate::exit::Failure;
use crate::groups::Terms;

/// A config.json has a few kilobytes.
const CONFIG_LIMIT: u64 = 1 << 20;

/// Why a window cannot be mined.
#[derive(Debug)]
pub enum Unready {
    /// Nothing was ready before the window.
    None,
    /// What is there cannot be used, and why.
    Unusable(String),
}

/// The trainer's checkpoints as this host has them.
pub struct Checkpoints {
    bucket: Bucket,
    cache: PathBuf,
    limits: FetchLimits,
    dataset: PathBuf,
    current: Option<(Arc<Terms>, ReloadCommand)>,
}

impl Checkpoints {
    /// Checkpoints of `bucket`, kept below `cache`, which must carry the signature of `trainer`.
    pub fn new(bucket: Bucket, cache: &Path, trainer: String, dataset: PathBuf) -> Self {
        let limits = FetchLimits { trainer: Some(trainer), ..FetchLimits::default() };
        Self { bucket, cache: cache.join("checkpoints"), limits, dataset, current: None }
    }

    /// From now on the checkpoints of another bucket, signed by `trainer`.
    pub fn follow(&mut self, bucket: Bucket, trainer: String) {
        self.bucket = bucket;
        self.limits.trainer = Some(trainer);
        self.current = None;
    }

    /// The terms of the newest checkpoint that was ready before `window`, fetched and verified where it is not on disk yet.
    ///
    /// # Errors
    /// When there is none, or it cannot be used: then the window is skipped, never mined with another checkpoint, because
    /// validators take exactly this one.
    pub async fn terms_for(&mut self, window: u64) -> Result<Arc<Terms>, Unready> {
        let unusable = |error: &dyn std::fmt::Display| Unready::Unusable(format!("the checkpoint cannot be used: {error}"));
        let newest = discover(&self.bucket, window).await.map_err(|error| unusable(&error))?.ok_or(Unready::None)?;
        if let Some((terms, _)) = self.current.as_ref().filter(|(terms, _)| terms.revision.window == newest) {
            return Ok(terms.clone());
        }
        tracing::info!(checkpoint = newest, "A new checkpoint is fetched and verified.");
        let cached = fetch_full(&self.bucket, newest, &self.cache, &self.limits).await.map_err(|error| unusable(&error))?;
        let dataset = self.dataset.clone();
        let understood = tokio::task::spawn_blocking(move || understand(&cached, &dataset)).await;
        let (terms, command) = understood.map_err(|error| unusable(&error))?.map_err(|why| unusable(&why))?;
        let terms = Arc::new(terms);
        self.current = Some((terms.clone(), command));
        Ok(terms)
    }

    /// What children are told to load.
    pub fn reload_command(&self) -> Option<ReloadCommand> {
        self.current.as_ref().map(|(_, command)| command.clone())
    }

    /// Announces to other processes over the same cache that checkpoints are being read, for as long as the file lives.
    ///
    /// # Errors
    /// When the cache folder cannot be used.
    pub fn hold(&self) -> std::io::Result<File> {
        let file = self.lock_file()?;
        file.lock_shared()?;
        Ok(file)
    }

    fn lock_file(&self) -> std::io::Result<File> {
        std::fs::create_dir_all(&self.cache)?;
        File::options().create(true).truncate(false).write(true).open(self.cache.join("in-use.lock"))
    }

    /// Removes every cached checkpoint but the one in use: a window never goes back to an older one. Nothing is removed while
    /// another process reads checkpoints; the next window tries again.
    pub fn clean(&self, terms: &Terms) {
        let Ok(lock) = self.lock_file() else { return };
        if lock.try_lock().is_err() {
            return;
        }
        match clean(&self.cache, &[terms.revision.window]) {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(count = removed.len(), "Old checkpoints were removed from the cache."),
            Err(error) => tracing::warn!(%error, "The checkpoint cache cannot be cleaned."),
        }
    }
}

fn understand(cached: &CachedCheckpoint, dataset: &Path) -> Result<(Terms, ReloadCommand), String> {
    let metadata = &cached.metadata;
    let terms = metadata.mining_terms().map_err(|error| error.to_string())?;
    let hash = match &metadata.weights_hash {
        Some(hash) => hash.clone(),
        None => weights_hash(&cached.dir).map_err(|error: CheckpointError| error.to_string())?,
    };
    let revision = Revision { window: cached.window, weights_hash: hash };
    let files: BTreeMap<String, String> =
        metadata.file_manifest.files().map(|(name, hash)| (name.to_owned(), hash.to_owned())).collect();
    let command = ReloadCommand { revision: revision.clone(), directory: cached.dir.clone(), manifest: files };
    let mode: ThinkingMode = terms.thinking_mode.parse().map_err(|error| format!("{error}"))?;
    let environment = Environment::open(&terms.env_id, &terms.env_params, dataset).map_err(|error| error.to_string())?;
    let terms = Terms {
        revision,
        model_name: metadata.model_name.clone().unwrap_or_else(|| cached.dir.display().to_string()),
        environment,
        chat: ChatTokenizer::open(&cached.dir).map_err(|error| error.to_string())?,
        mode,
        params: GenerationParams::from_json(&terms.generation_params).map_err(|error| error.to_string())?,
        generation_params: terms.generation_params,
        vocab_size: model_number(&cached.dir, "vocab_size")?,
        max_positions: model_number(&cached.dir, "max_position_embeddings")?,
    };
    Ok((terms, command))
}

fn model_number(dir: &Path, key: &str) -> Result<u32, String> {
    let path = dir.join("config.json");
    let size = std::fs::metadata(&path).map_err(|error| format!("{path:?} cannot be read: {error}"))?.len();
    if size > CONFIG_LIMIT {
        return Err(format!("{path:?} has {size} bytes, a model's configuration has a few thousand"));
    }
    let text = std::fs::read(&path).map_err(|error| format!("{path:?} cannot be read: {error}"))?;
    let config: serde_json::Value = serde_json::from_slice(&text).map_err(|error| format!("{path:?} is not JSON: {error}"))?;
    let number = config.get(key).and_then(serde_json::Value::as_u64).and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| format!("{path:?} has no usable {key}"))
}

/// Reads every row of every split once, so that a bad row is found before anything is started. gsm8k is the environment
/// that is built, so its columns are what a dataset must have.
///
/// # Errors
/// The first bad row, with its file and line.
pub fn check_dataset(dataset: Option<&Path>) -> Result<PathBuf, Failure> {
    let path = dataset.ok_or_else(|| {
        Failure::Data("no dataset is set; give one with --dataset PATH, environment.dataset or GRAIL_DATASET (a JSONL or Parquet file, or a folder)".into())
    })?;
    let refuse = |error: grail_environments::DatasetError| {
        Failure::Data(format!("the dataset cannot be used, nothing was started: {error}"))
    };
    let opened = Dataset::open(path).map_err(refuse)?;
    let mut splits: Vec<SourceSplit> = opened.splits().collect();
    if splits.is_empty() {
        // A single file whose name names no split serves as any.
        splits.push(SourceSplit::Train);
    }
    for split in splits {
        opened.rows(split, ["question", "answer"]).map_err(refuse)?;
    }
    Ok(path.to_path_buf())
}
