//! From the bucket to a verified directory (grail-checkpoints 4 and 8).

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use grail_process::clock;

use super::assemble::{Assembly, DELTA_BODY, DELTA_METADATA, Link, broken_at, check_hash, write_metadata};
use super::cache::{Kind, Partial, Taken, checkpoint_dir, under_way, verify_dir, verify_dir_without_weights, verify_on_disk};
use super::chain::{self, Base, Chain, Sources};
use super::disk::blocking;
use super::documents::{Documents, fetch_metadata};
use super::error::local;
use super::event::{CheckpointChanges, FetchEvent, Observer};
use super::limits::FetchLimits;
use super::objects::{Objects, Published};
use super::ownership::Hold;
use super::refused::subject;
use super::weights::{tied_weights_hash, weights_hash};
use super::{CheckpointError, Metadata, keys};
use crate::bucket::Bucket;

/// Between two looks at what another process makes.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Links that are downloaded at the same time.
const LINKS_AT_ONCE: usize = 4;

/// A metadata document, or why it cannot be believed.
type Document = Result<Metadata, CheckpointError>;

/// A verified checkpoint on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedCheckpoint {
    /// Directory with weights, configuration and tokenizer.
    pub dir: PathBuf,
    /// Checkpoint window.
    pub window: u64,
    /// Its metadata, with everything that the trainer published. Environment and sampling are the DELTA's where both kinds
    /// were published.
    pub metadata: Metadata,
    /// Keeps other processes from removing it, and what changed on the way to it.
    pub hold: Hold,
}

/// Whose turn it is to make a checkpoint.
enum Turn {
    /// It was made meanwhile.
    Made(Box<CachedCheckpoint>),
    Ours(Partial),
}

impl CachedCheckpoint {
    /// Takes environment and sampling of what is published, if they are others and the weights are the same. Says whether it did.
    pub fn take_terms(&mut self, published: &Metadata) -> bool {
        let mine = &self.metadata;
        let hash = |metadata: &Metadata| metadata.hash().map(str::to_ascii_lowercase);
        let same = published.file_manifest == mine.file_manifest || (mine.hash().is_some() && hash(published) == hash(mine));
        let theirs = mine.clone().with_terms_of(published);
        let news = same && theirs != *mine;
        if news {
            self.metadata = theirs;
        }
        news
    }
}

/// Brings checkpoints of one bucket into one cache.
#[derive(Clone, Copy)]
pub struct Fetcher<'a> {
    /// The trainer's bucket.
    pub bucket: &'a Bucket,
    /// Folder of the cache.
    pub cache_root: &'a Path,
    /// What it may cost.
    pub limits: &'a FetchLimits,
    /// Where steps are told.
    pub observer: &'a Observer<'a>,
}

impl Fetcher<'_> {
    /// Brings checkpoint `window` into the cache and verifies it: every file against its manifest, the tensors against
    /// `weights_hash`. A cached directory that still verifies is used as it is; any other is replaced. FULL is preferred, as
    /// the network's reader does, unless the DELTA's base is in the cache; if the one cannot be used, the other is tried.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn fetch(&self, window: u64) -> BoxFuture<'_, Result<CachedCheckpoint, CheckpointError>> {
        // Boxed: it is deeper than the compiler's limit for whoever awaits it.
        Box::pin(self.fetch_unboxed(window))
    }

    async fn fetch_unboxed(&self, window: u64) -> Result<CachedCheckpoint, CheckpointError> {
        if let Some(cached) = self.whole(window).await? {
            return Ok(cached);
        }
        if !keys::is_ready(self.bucket, window).await? {
            return Err(CheckpointError::NotReady { window });
        }
        let Documents { full, delta } = Documents::read(self.bucket, window, self.limits).await?;
        match (full, delta) {
            (None, None) => Err(Documents::why_none(self.bucket, window).await?),
            (Some(full), None) => Box::pin(self.full(window, full?)).await,
            (None, Some(delta)) => Box::pin(self.delta(window, delta?)).await,
            (Some(full), Some(delta)) => Box::pin(self.either(window, full, delta)).await,
        }
    }

    /// The checkpoint as the cache has it, if that verifies.
    async fn whole(&self, window: u64) -> Result<Option<CachedCheckpoint>, CheckpointError> {
        let dir = checkpoint_dir(self.cache_root, window);
        let Some((metadata, hold)) = self.verified(&dir).await? else { return Ok(None) };
        let metadata = self.with_terms(window, metadata).await;
        Ok(Some(CachedCheckpoint { dir, window, metadata, hold }))
    }

    /// Waits until nobody else makes checkpoint `window` in this cache. One that stands still is not waited for: then it is made in a
    /// folder of its own.
    async fn turn(&self, window: u64) -> Result<Turn, CheckpointError> {
        let (mut waited, mut seen, mut since) = (false, Vec::new(), clock::monotonic());
        loop {
            let root = self.cache_root.to_owned();
            let taken = blocking(self.cache_root, move || Partial::shared(&root, Kind::Checkpoint, window)).await?;
            if let Taken::Ours(partial) = taken {
                return match if waited { self.whole(window).await? } else { None } {
                    Some(cached) => {
                        partial.discard();
                        Ok(Turn::Made(Box::new(cached)))
                    }
                    None => Ok(Turn::Ours(partial)),
                };
            }
            if !waited {
                waited = true;
                (self.observer)(FetchEvent::Waits { window });
            }
            let root = self.cache_root.to_owned();
            let now = blocking(self.cache_root, move || Ok(under_way(&root))).await?;
            if now != seen {
                (seen, since) = (now, clock::monotonic());
            } else if since.elapsed() > self.limits.patience {
                tracing::warn!(
                    window,
                    "The process that makes the checkpoint in this cache does not get on; it is made once more, beside it."
                );
                return Partial::create(self.cache_root, Kind::Checkpoint, window).map(Turn::Ours);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// A checkpoint that was published as both: the cheaper one, else the other one.
    async fn either(&self, window: u64, full: Document, delta: Document) -> Result<CachedCheckpoint, CheckpointError> {
        let terms = delta.as_ref().ok().cloned();
        let delta_first = match terms.as_ref().and_then(|delta| delta.prev_window) {
            Some(base) => self.cached(base).await?.is_some(),
            None => false,
        };
        // In the cache too, so that it tells the same after a restart.
        let full = full.map(|full| match &terms {
            Some(terms) => full.with_terms_of(terms),
            None => full,
        });
        let mut kinds = [(Published::Full, full), (Published::Delta, delta)];
        if delta_first {
            kinds.reverse();
        }
        let [first, second] = kinds;
        match self.one(window, first).await {
            Ok(fetched) => Ok(fetched),
            Err(why) => {
                (self.observer)(FetchEvent::OtherKind { window, why: why.to_string() });
                self.one(window, second).await
            }
        }
    }

    async fn one(&self, window: u64, (published, document): (Published, Document)) -> Result<CachedCheckpoint, CheckpointError> {
        match published {
            Published::Full => Box::pin(self.full(window, document?)).await,
            Published::Delta => Box::pin(self.delta(window, document?)).await,
        }
    }

    async fn full(&self, window: u64, metadata: Metadata) -> Result<CachedCheckpoint, CheckpointError> {
        let subject = subject("full", window, [&metadata]);
        if let Some(error) = self.limits.refused.verdict(&subject) {
            return Err(error);
        }
        let objects = Objects::locate(self.bucket, window, Published::Full, &metadata.file_manifest).await?;
        let partial = match self.turn(window).await? {
            Turn::Made(cached) => return Ok(*cached),
            Turn::Ours(partial) => partial,
        };
        if let Err(error) = objects.download(self.bucket, partial.path(), self.limits, self.observer).await {
            return Err(partial.give_up(error));
        }
        let place = partial.path().to_owned();
        let finished = blocking(&place, move || finish(partial, window, metadata)).await;
        let (dir, metadata, hold) = finished.inspect_err(|error| self.limits.refused.remember(subject, error))?;
        Ok(CachedCheckpoint { dir, window, metadata, hold })
    }

    /// Fails where a base is known to be unusable, without a byte of it.
    async fn obtainable(&self, window: u64, metadata: &Metadata) -> Result<(), CheckpointError> {
        if let Some(error) = self.limits.refused.verdict(&subject("full", window, [metadata])) {
            return Err(error);
        }
        if !keys::is_ready(self.bucket, window).await? {
            return Err(CheckpointError::NotReady { window });
        }
        Objects::locate(self.bucket, window, Published::Full, &metadata.file_manifest).await?.unrefused(self.limits)
    }

    async fn delta(&self, window: u64, metadata: Metadata) -> Result<CachedCheckpoint, CheckpointError> {
        if metadata.hash().is_none() {
            let why = "it is a DELTA without weights_hash, so nothing tells whether it was rebuilt rightly".to_owned();
            return Err(CheckpointError::Unverifiable { window, why });
        }
        let chain = chain::walk(self, window, metadata.clone()).await?;
        let base = match &chain.base {
            Base::Cached(base, _) => Some(*base),
            Base::Published(..) => None,
        };
        let subject = subject("delta", window, chain.documents());
        if let Some(error) = self.limits.refused.verdict(&subject) {
            return Err(error);
        }
        match (self.rebuilt(window, &metadata, chain).await, base) {
            // The base was looked at without its weights. If they are damaged, the chain is not to blame.
            (Err(CheckpointError::WrongWeights { .. } | CheckpointError::Weights { .. }), Some(base))
                if self.discarded(base).await? =>
            {
                let chain = chain::walk(self, window, metadata.clone()).await?;
                self.rebuilt(window, &metadata, chain).await
            }
            (rebuilt, _) => rebuilt.inspect_err(|error| self.limits.refused.remember(subject, error)),
        }
    }

    /// Removes a cached checkpoint if it does not verify.
    async fn discarded(&self, window: u64) -> Result<bool, CheckpointError> {
        let dir = checkpoint_dir(self.cache_root, window);
        if self.verified(&dir).await?.is_some() {
            return Ok(false);
        }
        let owned = dir.clone();
        blocking(&dir, move || std::fs::remove_dir_all(&owned).map_err(local(owned))).await?;
        Ok(true)
    }

    async fn rebuilt(&self, window: u64, metadata: &Metadata, chain: Chain) -> Result<CachedCheckpoint, CheckpointError> {
        // All of it, before any byte: while something is missing or refused, every further look costs questions only.
        let objects: Vec<_> = chain.links.iter().map(|(link, metadata)| self.link_objects(window, *link, metadata)).collect();
        let objects: Vec<_> = futures::stream::iter(objects).buffered(LINKS_AT_ONCE).try_collect().await?;
        if let Base::Published(base, metadata) = &chain.base {
            self.obtainable(*base, metadata).await?;
        }
        let target = match self.turn(window).await? {
            Turn::Made(cached) => return Ok(*cached),
            Turn::Ours(partial) => partial,
        };
        // Of another kind, by an earlier attempt.
        target.retain(|_| false)?;
        // Small and likely to be at fault, so before a base that may be large.
        let links = chain.links.iter().zip(objects);
        let downloads: Vec<_> = links.map(|((link, metadata), objects)| self.link(window, *link, metadata, objects)).collect();
        let links: Vec<_> = futures::stream::iter(downloads).buffered(LINKS_AT_ONCE).collect().await;
        let links = match all(links) {
            Ok(links) => links,
            Err(error) => return Err(target.give_up(error)),
        };
        let (base_window, base, _base_hold) = match self.base(chain.base).await {
            Ok(base) => base,
            Err(error) => return Err(target.give_up(give_up(links, error))),
        };
        let assembly = Assembly {
            window,
            metadata: metadata.clone(),
            base,
            base_dir: checkpoint_dir(self.cache_root, base_window),
            limit: self.limits.total_bytes,
        };
        let told: Vec<u64> = links.iter().map(|link| link.window).collect();
        let (place, delta_dir) = (assembly.base_dir.clone(), Partial::create(self.cache_root, Kind::Delta, window)?);
        let decoding = blocking(&place, move || match assembly.decode(links, delta_dir) {
            Ok((decoded, hold)) => Ok((assembly, target, decoded, hold)),
            Err(error) => Err(target.give_up(error)),
        });
        let (assembly, target, decoded, delta_hold) = decoding.await?;
        for (link, (_, entries)) in told.into_iter().zip(&decoded) {
            (self.observer)(FetchEvent::Decoded { window: link, entries: *entries });
        }
        let files: Vec<PathBuf> = decoded.into_iter().map(|(file, _)| file).collect();
        let weights_hash = metadata.hash().unwrap_or_default().to_ascii_lowercase();
        (self.observer)(FetchEvent::Changes(CheckpointChanges { window, weights_hash, base_window, files: files.clone() }));
        let (dir, metadata, hold) = blocking(&place, move || assembly.build(&files, target)).await?;
        Ok(CachedCheckpoint { dir, window, metadata, hold: hold.and(delta_hold) })
    }

    async fn base(&self, base: Base) -> Result<(u64, Metadata, Hold), CheckpointError> {
        match base {
            Base::Cached(window, metadata) => {
                let dir = checkpoint_dir(self.cache_root, window);
                let hold = blocking(self.cache_root, move || Ok(Hold::on(&dir))).await?;
                Ok((window, metadata, hold))
            }
            Base::Published(window, metadata) => {
                let CachedCheckpoint { metadata, hold, .. } = Box::pin(self.full(window, metadata)).await?;
                Ok((window, metadata, hold))
            }
        }
    }

    /// Finds one link's objects, none of which is known to be damaged.
    async fn link_objects(&self, window: u64, link: u64, metadata: &Metadata) -> Result<Objects, CheckpointError> {
        for name in [DELTA_METADATA, DELTA_BODY] {
            if !metadata.file_manifest.files().any(|(listed, _)| listed == name) {
                return Err(broken_at(window, link)(format!("has no {name} in its manifest")));
            }
        }
        let objects = Objects::locate(self.bucket, link, Published::Delta, &metadata.file_manifest).await?;
        objects.unrefused(self.limits)?;
        Ok(objects)
    }

    /// Downloads one link and judges as much of it as can be judged without its base.
    async fn link(&self, window: u64, link: u64, metadata: &Metadata, objects: Objects) -> Result<Link, CheckpointError> {
        // Small, so nobody is waited for: two that wait for each other's links would wait for ever.
        let partial = match Partial::shared(self.cache_root, Kind::Delta, link)? {
            Taken::Ours(partial) => partial,
            Taken::Others => Partial::create(self.cache_root, Kind::Delta, link)?,
        };
        if let Err(error) = objects.download(self.bucket, partial.path(), self.limits, self.observer).await {
            return Err(partial.give_up(error));
        }
        let (place, limit, manifest) = (partial.path().to_owned(), self.limits.total_bytes, metadata.file_manifest.clone());
        blocking(&place, move || match verify_on_disk(partial.path(), link, &manifest, |_| true) {
            Ok(()) => Link::judge(window, link, partial, limit),
            Err(error) => Err(partial.give_up(error)),
        })
        .await
    }

    async fn verified(&self, dir: &Path) -> Result<Option<(Metadata, Hold)>, CheckpointError> {
        if !dir.exists() {
            return Ok(None);
        }
        let owned = dir.to_owned();
        let found = blocking(dir, move || {
            // First, so that nobody removes what was verified.
            let hold = Hold::on(&owned);
            Ok(verify_dir(&owned)?.map(|metadata| (metadata, hold)))
        })
        .await?;
        if found.is_none() {
            tracing::warn!(dir = %dir.display(), "A cached checkpoint does not verify and is fetched anew.");
        }
        Ok(found)
    }

    /// A directory made by another program may lack the mining terms; they are taken from the bucket if the weights are the
    /// same.
    async fn with_terms(&self, window: u64, local: Metadata) -> Metadata {
        if local.mining_terms().is_ok() {
            return local;
        }
        match fetch_metadata(self.bucket, window, self.limits).await {
            Ok(published) if published.file_manifest == local.file_manifest => published,
            _ => local,
        }
    }
}

impl Sources for Fetcher<'_> {
    async fn cached(&self, window: u64) -> Result<Option<Metadata>, CheckpointError> {
        let dir = checkpoint_dir(self.cache_root, window);
        let owned = dir.clone();
        blocking(&dir, move || verify_dir_without_weights(&owned)).await
    }

    async fn published(&self, window: u64) -> Result<Documents, CheckpointError> {
        Documents::read(self.bucket, window, self.limits).await
    }

    async fn is_whole(&self, window: u64, full: &Metadata) -> Result<bool, CheckpointError> {
        match Objects::locate(self.bucket, window, Published::Full, &full.file_manifest).await {
            Ok(_) => keys::is_ready(self.bucket, window).await,
            Err(CheckpointError::MissingFile { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Every link, or the first error.
fn all(links: Vec<Result<Link, CheckpointError>>) -> Result<Vec<Link>, CheckpointError> {
    let (mut whole, mut failed) = (Vec::new(), None);
    for link in links {
        match link {
            Ok(link) => whole.push(link),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        None => Ok(whole),
        Some(error) => Err(give_up(whole, error)),
    }
}

fn give_up(links: Vec<Link>, error: CheckpointError) -> CheckpointError {
    links.into_iter().fold(error, |error, link| link.partial.give_up(error))
}

/// Checks the tensors, writes the local metadata and installs the directory.
fn finish(partial: Partial, window: u64, mut metadata: Metadata) -> Result<(PathBuf, Metadata, Hold), CheckpointError> {
    let mut verified = || {
        partial.retain(|name| metadata.file_manifest.files().any(|(listed, _)| listed == name))?;
        let (on_disk, hash) = std::thread::scope(|scope| {
            let on_disk = scope.spawn(|| verify_on_disk(partial.path(), window, &metadata.file_manifest, |_| true));
            let hash = hash_of_files(partial.path(), window, &metadata);
            (on_disk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), hash)
        });
        // First: what was altered here says nothing about what is published.
        on_disk?;
        if let Some(hash) = hash? {
            metadata.weights_hash = Some(hash);
        }
        write_metadata(&partial, &metadata)
    };
    match verified() {
        Ok(()) => {
            let (dir, hold) = partial.install(|_| Ok(()))?;
            Ok((dir, metadata, hold))
        }
        Err(error) => Err(partial.give_up(error)),
    }
}

/// The hash of a FULL's files, if one is published: that, or for a model with tied embeddings that of the live state, in which the
/// head has a name of its own (grail-checkpoints 4). Whoever loads the files compares with what is in them.
fn hash_of_files(dir: &Path, window: u64, metadata: &Metadata) -> Result<Option<String>, CheckpointError> {
    let Some(want) = metadata.hash() else { return Ok(None) };
    let whole = |error| match error {
        // Its files are the manifest's, so another download would bring the same.
        CheckpointError::Weights { path, why } => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            CheckpointError::Unverifiable { window, why: format!("{name} is no valid safetensors file: {why}") }
        }
        error => error,
    };
    let got = weights_hash(dir).map_err(whole)?;
    if !got.eq_ignore_ascii_case(want) && tied_weights_hash(dir)?.is_some_and(|tied| tied.eq_ignore_ascii_case(want)) {
        return Ok(Some(got));
    }
    check_hash(window, metadata, got)?;
    Ok(Some(want.to_owned()))
}
