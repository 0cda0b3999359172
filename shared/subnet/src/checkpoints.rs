//! Which checkpoint a window is mined with, on disk and understood: weights, prompt, tasks, sampling policy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use grail_environments::{Environment, ThinkingMode};
use grail_link::message::{ApplyCommand, ReloadCommand, Revision};
use grail_protocol::generation_params::GenerationParams;
use grail_store::bucket::Bucket;
use grail_store::checkpoint::{
    CachedCheckpoint, CheckpointChanges, CheckpointError, FetchEvent, FetchLimits, Fetcher, Hold, Metadata, Refused, clean,
    clean_but_the_last, discover, fetch_metadata, refuse_code, weights_hash,
};
use tokio_util::task::AbortOnDropHandle;

use crate::reader::{ReadError, Reader, Readers};
use crate::terms::Terms;

/// A config.json has a few kilobytes.
const CONFIG_LIMIT: u64 = 1 << 20;

/// Bytes between two lines of the log about one download.
const PROGRESS_BYTES: u64 = 256 << 20;

/// Why a window cannot be mined.
#[derive(Debug)]
pub enum NotReady {
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
    readers: Readers,
    current: Option<(Arc<Terms>, ReloadCommand, Hold)>,
    bringing: Option<CheckpointFetch>,
    /// What was brought and is not understood here, as it was published, and why.
    misunderstood: Option<(u64, Metadata, String)>,
    on_change: Arc<OnChange>,
}

/// What is mined with; the directory stays while this lives.
type Usable = (Terms, ReloadCommand, Hold);

/// A checkpoint that is on its way into the cache, whoever waits for it.
struct CheckpointFetch {
    checkpoint: u64,
    task: AbortOnDropHandle<Result<Usable, Unusable>>,
}

/// Why a checkpoint cannot be used.
enum Unusable {
    Unfetched(CheckpointError),
    /// As published, where that is known.
    Misunderstood(Option<Box<Metadata>>, String),
}

/// Told how to get from the last checkpoint to the next, as soon as that is known.
type OnChange = dyn Fn(ApplyCommand) + Send + Sync;

impl Checkpoints {
    /// Checkpoints of `bucket`, kept below `cache`, which must carry the signature of `trainer`; `readers` run their templates and
    /// tokenizers.
    pub fn new(bucket: Bucket, cache: &Path, trainer: String, dataset: PathBuf, readers: Readers) -> Self {
        let cache = cache.join("checkpoints");
        let limits = limits(&cache, &bucket, trainer);
        let on_change = Arc::new(drop);
        Self { bucket, cache, limits, dataset, readers, current: None, bringing: None, misunderstood: None, on_change }
    }

    /// The same, telling `on_change` how to get from one checkpoint to the next before the next is whole on the disk.
    pub fn telling(self, on_change: impl Fn(ApplyCommand) + Send + Sync + 'static) -> Self {
        Self { on_change: Arc::new(on_change), ..self }
    }

    /// From now on the checkpoints of another bucket, signed by `trainer`.
    pub fn follow(&mut self, bucket: Bucket, trainer: String) {
        self.limits = limits(&self.cache, &bucket, trainer);
        self.bucket = bucket;
        (self.current, self.bringing, self.misunderstood) = (None, None, None);
    }

    /// The terms of the checkpoint to mine `window` with, fetched and verified where it is not on disk yet: the newest that was
    /// ready before, and no other, because validators that can use it reject every row of another.
    ///
    /// Whoever stops to wait loses nothing: what is on its way goes on, and the next call waits for it.
    ///
    /// # Errors
    /// When there is none, or it cannot be used as things stand. The next call looks again; while nothing is published anew that
    /// costs a few questions, and bytes only after a fault of transport.
    pub async fn terms_for(&mut self, window: u64) -> Result<Arc<Terms>, NotReady> {
        let newest = self.newest(window).await.map_err(|error| unusable(&error))?.ok_or(NotReady::None)?;
        if let Some((terms, ..)) = self.current.as_ref().filter(|(terms, ..)| terms.revision.window == newest) {
            return Ok(terms.clone());
        }
        if let Some(earlier) = self.bringing.as_mut().filter(|bringing| bringing.checkpoint != newest) {
            // Not broken off: the newest is likely to stand on it. How it ended, it is not what is wanted.
            let _ = (&mut earlier.task).await;
            self.bringing = None;
        }
        self.remember_misunderstanding(newest).await?;
        let bringing = match &mut self.bringing {
            Some(bringing) => bringing,
            None => {
                let task = AbortOnDropHandle::new(tokio::spawn(self.bring(newest)));
                self.bringing.insert(CheckpointFetch { checkpoint: newest, task })
            }
        };
        let brought = (&mut bringing.task).await;
        self.bringing = None;
        match brought.map_err(|error| unusable(&error))? {
            Ok((terms, command, hold)) => {
                let terms = Arc::new(terms);
                self.current = Some((terms.clone(), command, hold));
                Ok(terms)
            }
            Err(Unusable::Unfetched(error)) => Err(unusable(&error)),
            Err(Unusable::Misunderstood(published, why)) => {
                let why = format!("checkpoint {newest}: {why}");
                self.misunderstood = published.map(|published| (newest, *published, why.clone()));
                Err(unusable(&why))
            }
        }
    }

    /// The checkpoint that validators take for `window`, as things stand.
    ///
    /// # Errors
    /// When the bucket does not say.
    pub async fn newest(&self, window: u64) -> Result<Option<u64>, CheckpointError> {
        discover(&self.bucket, window).await
    }

    /// Fails where the checkpoint was not understood and still is the same.
    async fn remember_misunderstanding(&self, checkpoint: u64) -> Result<(), NotReady> {
        let Some((_, before, why)) = self.misunderstood.as_ref().filter(|(window, ..)| *window == checkpoint) else {
            return Ok(());
        };
        let now = fetch_metadata(&self.bucket, checkpoint, &self.limits).await.map_err(|error| unusable(&error))?;
        if now == *before { Err(unusable(why)) } else { Ok(()) }
    }

    /// Fetches and understands a checkpoint.
    fn bring(&self, checkpoint: u64) -> impl Future<Output = Result<Usable, Unusable>> + use<> {
        let (bucket, cache, limits) = (self.bucket.clone(), self.cache.clone(), self.limits.clone());
        let (dataset, readers) = (self.dataset.clone(), self.readers.clone());
        let (on_change, from) = (self.on_change.clone(), self.reload_command());
        async move {
            tracing::info!(checkpoint, "A new checkpoint is fetched and verified.");
            let progress = Progress::default();
            let observer = |event| {
                if let FetchEvent::Changes(changes) = &event
                    && let Some(command) = change(from.as_ref(), changes)
                {
                    on_change(command);
                }
                progress.tell(event);
            };
            let fetcher = Fetcher { bucket: &bucket, cache_root: &cache, limits: &limits, observer: &observer };
            let mut cached = fetcher.fetch(checkpoint).await.map_err(Unusable::Unfetched)?;
            let why = match understand(cached.clone(), dataset.clone(), &readers).await {
                Ok(understood) => return Ok(understood),
                Err(TermsMismatch::Host(why)) => return Err(Unusable::Misunderstood(None, why)),
                Err(TermsMismatch::Checkpoint(why)) => why,
            };
            // The cache may hold terms that were published anew since.
            let Ok(published) = fetch_metadata(&bucket, checkpoint, &limits).await else {
                return Err(Unusable::Misunderstood(None, why));
            };
            if !cached.take_terms(&published) {
                return Err(Unusable::Misunderstood(Some(Box::new(published)), why));
            }
            understand(cached, dataset, &readers).await.map_err(|why| match why {
                TermsMismatch::Host(why) => Unusable::Misunderstood(None, why),
                TermsMismatch::Checkpoint(why) => Unusable::Misunderstood(Some(Box::new(published)), why),
            })
        }
    }

    /// Who runs templates and tokenizers.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// What children are told to load.
    pub fn reload_command(&self) -> Option<ReloadCommand> {
        self.current.as_ref().map(|(_, command, _)| command.clone())
    }

    /// What removes every cached checkpoint but the one in use and those of other processes, which may take seconds: a window never
    /// goes back to an older one.
    pub fn clean(&self, terms: &Terms) -> impl FnOnce() + Send + use<> {
        let (cache, window) = (self.cache.clone(), terms.revision.window);
        move || tell_cleaned(clean(&cache, &[window]))
    }

    /// What bounds the cache while no checkpoint can be used: the one in use stays, and what the next attempt may go on with.
    pub fn bound(&self) -> impl FnOnce() + Send + use<> {
        let (cache, current) = (self.cache.clone(), self.reload_command().map(|command| command.revision.window));
        move || tell_cleaned(clean_but_the_last(&cache, current.as_slice()))
    }
}

fn tell_cleaned(cleaned: Result<Vec<PathBuf>, CheckpointError>) {
    match cleaned {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => tracing::info!(count = removed.len(), "Old checkpoints were removed from the cache."),
        Err(error) => tracing::warn!(%error, "The checkpoint cache cannot be cleaned."),
    }
}

/// A crash must not cost the download of what is known to be damaged, so that is kept beside the checkpoints.
fn limits(cache: &Path, bucket: &Bucket, trainer: String) -> FetchLimits {
    let refused = Refused::kept_in(&cache.join("refused.json"), bucket);
    FetchLimits { trainer: Some(trainer), refused, ..FetchLimits::default() }
}

/// The change as a command, if it starts from what was told last.
fn change(from: Option<&ReloadCommand>, changes: &CheckpointChanges) -> Option<ApplyCommand> {
    let from = from?.revision.clone();
    let revision = Revision { window: changes.window, weights_hash: changes.weights_hash.clone() };
    (from.window == changes.base_window).then(|| ApplyCommand { from, revision, files: changes.files.clone() })
}

fn unusable(error: &dyn std::fmt::Display) -> NotReady {
    NotReady::Unusable(format!("the checkpoint cannot be used: {error}"))
}

/// Turns the steps of a fetch into lines of the log, a download's now and then.
#[derive(Default)]
struct Progress {
    /// Bytes that are announced, that have arrived, and that had when it was told last.
    bytes: Mutex<(u64, u64, u64)>,
}

impl Progress {
    fn tell(&self, event: FetchEvent) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            FetchEvent::Download { window, files, bytes: announced } => {
                bytes.0 += announced;
                tracing::info!(checkpoint = window, files, bytes = announced, "Files of a checkpoint are downloaded.");
            }
            FetchEvent::Received { bytes: received, .. } => {
                bytes.1 += received;
                if bytes.1 >= bytes.2 + PROGRESS_BYTES {
                    bytes.2 = bytes.1;
                    tracing::info!(received = bytes.1, of = bytes.0, "The download of the checkpoint goes on.");
                }
            }
            FetchEvent::Waits { window } => {
                tracing::info!(checkpoint = window, "Another process makes the checkpoint in this cache; it is waited for.");
            }
            FetchEvent::Decoded { window, entries } => {
                tracing::info!(link = window, entries, "A link of the checkpoint's chain is decoded.");
            }
            FetchEvent::Changes(changes) => {
                tracing::info!(
                    checkpoint = changes.window,
                    base = changes.base_window,
                    "What changed is on the disk; workers that hold the base take it in place."
                );
            }
            FetchEvent::OtherKind { window, why } => {
                tracing::warn!(checkpoint = window, why, "One kind of the checkpoint cannot be used, the other is tried.");
            }
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Everything that template and tokenizer follow from.
fn texts(cached: &CachedCheckpoint) -> String {
    let is_text = |name: &str| !name.ends_with(".safetensors") && !name.ends_with(".safetensors.index.json");
    let files = cached.metadata.file_manifest.files().filter(|(name, _)| is_text(name));
    let mode = cached.metadata.thinking_mode.as_deref().unwrap_or_default();
    files.fold(mode.to_owned(), |all, (name, hash)| format!("{all} {name} {hash}"))
}

/// Why a checkpoint that is here cannot be mined with.
enum TermsMismatch {
    /// What it says is why, and that is the same until it is published anew.
    Checkpoint(String),
    /// This host could not look; the next attempt may.
    Host(String),
}

impl From<String> for TermsMismatch {
    fn from(why: String) -> Self {
        Self::Checkpoint(why)
    }
}

impl From<ReadError> for TermsMismatch {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Refused(why) => Self::Checkpoint(why),
            error @ ReadError::Trouble(_) => Self::Host(error.to_string()),
        }
    }
}

/// Nobody gets the directory before it is known to hold no code, and its template and tokenizer to stay within bounds.
async fn understand(cached: CachedCheckpoint, dataset: PathBuf, readers: &Readers) -> Result<Usable, TermsMismatch> {
    let (window, dir) = (cached.window, cached.dir.clone());
    let searched = tokio::task::spawn_blocking(move || refuse_code(window, &dir)).await;
    searched.map_err(text)?.map_err(text)?;
    let mode: ThinkingMode = cached.metadata.mining_terms().map_err(text)?.thinking_mode.parse().map_err(text)?;
    let chat = readers.open(&cached.dir, mode, &texts(&cached)).await?;
    let hold = cached.hold.clone();
    let understood = tokio::task::spawn_blocking(move || understand_now(&cached, &dataset, mode, chat)).await;
    let (terms, command) = understood.map_err(text)??;
    Ok((terms, command, hold))
}

fn understand_now(
    cached: &CachedCheckpoint,
    dataset: &Path,
    mode: ThinkingMode,
    chat: Reader,
) -> Result<(Terms, ReloadCommand), String> {
    let metadata = &cached.metadata;
    let terms = metadata.mining_terms().map_err(|error| error.to_string())?;
    let hash = match metadata.hash() {
        Some(hash) => hash.to_ascii_lowercase(),
        None => weights_hash(&cached.dir).map_err(|error: CheckpointError| error.to_string())?,
    };
    let revision = Revision { window: cached.window, weights_hash: hash };
    let files: BTreeMap<String, String> =
        metadata.file_manifest.files().map(|(name, hash)| (name.to_owned(), hash.to_owned())).collect();
    let command = ReloadCommand { revision: revision.clone(), directory: cached.dir.clone(), manifest: files };
    let environment = Environment::open(&terms.env_id, &terms.env_params, dataset).map_err(|error| error.to_string())?;
    let terms = Terms {
        revision,
        model_name: metadata.model_name.clone().unwrap_or_else(|| cached.dir.display().to_string()),
        environment,
        chat,
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
