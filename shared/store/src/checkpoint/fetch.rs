//! From the bucket to a verified directory (grail-checkpoints 4 and 8).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use futures::future::BoxFuture;

use super::cache::{Kind, METADATA, Partial, checkpoint_dir, is_weights, verify_dir, verify_dir_without_weights};
use super::chain::{self, Base, Chain, Sources};
use super::changes::{self, Changes, LinkError};
use super::documents::{Documents, fetch_metadata};
use super::error::local;
use super::event::{FetchEvent, Observer, VerifiedChanges};
use super::objects::{Objects, Published, check_room};
use super::rebuild::rebuild;
use super::sparse::{SparseError, SparseFormat};
use super::weights::{file_sha256, tensor_places, weights_hash};
use super::{CheckpointError, Manifest, Metadata, keys};
use crate::bucket::Bucket;

const WEIGHTS: &str = "model.safetensors";
const DELTA_METADATA: &str = "delta_metadata.json";
const DELTA_BODY: &str = "delta_sparse.bin.zst";
/// Links that are downloaded at the same time.
const LINKS_AT_ONCE: usize = 4;

/// A metadata document, or why it cannot be believed.
type Document = Result<Metadata, CheckpointError>;

/// What a fetch may cost and whom it trusts.
#[derive(Clone, Debug)]
pub struct FetchLimits {
    /// Bytes of all files of one directory together, as announced by the bucket and again while unpacking.
    pub total_bytes: u64,
    /// SS58 address whose `manifest.sig` is required; `None` trusts the bucket's credentials alone.
    pub trainer: Option<String>,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self { total_bytes: 200 << 30, trainer: None }
    }
}

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
        let dir = checkpoint_dir(self.cache_root, window);
        if let Some(metadata) = self.verified(&dir).await? {
            let metadata = self.with_terms(window, metadata).await;
            return Ok(CachedCheckpoint { dir, window, metadata });
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

    /// A checkpoint that was published as both: the cheaper one, else the other one.
    async fn either(&self, window: u64, full: Document, delta: Document) -> Result<CachedCheckpoint, CheckpointError> {
        let terms = delta.as_ref().ok().cloned();
        let delta_first = match terms.as_ref().and_then(|delta| delta.prev_window) {
            Some(base) => self.cached(base).await?.is_some(),
            None => false,
        };
        let mut kinds = [(Published::Full, full), (Published::Delta, delta)];
        if delta_first {
            kinds.reverse();
        }
        let [first, second] = kinds;
        let mut fetched = match self.one(window, first).await {
            Ok(fetched) => fetched,
            Err(why) => {
                (self.observer)(FetchEvent::OtherKind { window, why: why.to_string() });
                self.one(window, second).await?
            }
        };
        if let Some(terms) = &terms {
            fetched.metadata = fetched.metadata.with_terms_of(terms);
        }
        Ok(fetched)
    }

    async fn one(&self, window: u64, (published, document): (Published, Document)) -> Result<CachedCheckpoint, CheckpointError> {
        match published {
            Published::Full => Box::pin(self.full(window, document?)).await,
            Published::Delta => Box::pin(self.delta(window, document?)).await,
        }
    }

    async fn full(&self, window: u64, metadata: Metadata) -> Result<CachedCheckpoint, CheckpointError> {
        let objects = Objects::locate(self.bucket, window, Published::Full, &metadata.file_manifest).await?;
        let partial = Partial::resume(self.cache_root, Kind::Checkpoint, window)?;
        if let Err(error) = objects.download(self.bucket, partial.path(), self.limits, self.observer).await {
            return Err(partial.give_up(error));
        }
        let (place, verified) = (partial.path().to_owned(), metadata.clone());
        let dir = blocking(&place, move || finish(partial, window, &verified)).await?;
        Ok(CachedCheckpoint { dir, window, metadata })
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
        match (self.rebuilt(window, &metadata, chain).await, base) {
            // The base was looked at without its weights. If they are damaged, the chain is not to blame.
            (Err(CheckpointError::WrongWeights { .. }), Some(base)) if self.discarded(base).await? => {
                let chain = chain::walk(self, window, metadata.clone()).await?;
                self.rebuilt(window, &metadata, chain).await
            }
            (rebuilt, _) => rebuilt,
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
        // Small and likely to be at fault, so before a base that may be large.
        let downloads: Vec<_> = chain.links.iter().map(|(link, metadata)| self.link(window, *link, metadata)).collect();
        let links: Vec<_> = futures::stream::iter(downloads).buffered(LINKS_AT_ONCE).collect().await;
        let links = all(links)?;
        let (base_window, base) = match self.base(chain.base).await {
            Ok(base) => base,
            Err(error) => return Err(give_up(links, error)),
        };
        let work = Work {
            window,
            metadata: metadata.clone(),
            base,
            base_dir: checkpoint_dir(self.cache_root, base_window),
            changes: Partial::create(self.cache_root, Kind::Delta, window)?,
            target: Partial::create(self.cache_root, Kind::Checkpoint, window)?,
            limit: self.limits.total_bytes,
        };
        let place = work.base_dir.clone();
        let (decoded, files, target) = blocking(&place, move || work.rebuild(links)).await?;
        decoded.into_iter().for_each(|(window, entries)| (self.observer)(FetchEvent::Decoded { window, entries }));
        let weights_hash = metadata.hash().unwrap_or_default().to_owned();
        (self.observer)(FetchEvent::Verified(VerifiedChanges { window, weights_hash, base_window, files }));
        let (dir, metadata) = blocking(&place, move || target.install()).await?;
        Ok(CachedCheckpoint { dir, window, metadata })
    }

    async fn base(&self, base: Base) -> Result<(u64, Metadata), CheckpointError> {
        match base {
            Base::Cached(window, metadata) => Ok((window, metadata)),
            Base::Published(window, _) if !keys::is_ready(self.bucket, window).await? => {
                Err(CheckpointError::NotReady { window })
            }
            Base::Published(window, metadata) => Ok((window, Box::pin(self.full(window, metadata)).await?.metadata)),
        }
    }

    /// Downloads one link and judges as much of it as can be judged without its base.
    async fn link(&self, window: u64, link: u64, metadata: &Metadata) -> Result<Link, CheckpointError> {
        let broken = |why: String| CheckpointError::BrokenLink { window, link, why };
        for name in [DELTA_METADATA, DELTA_BODY] {
            if !metadata.file_manifest.files().any(|(listed, _)| listed == name) {
                return Err(broken(format!("has no {name} in its manifest")));
            }
        }
        let objects = Objects::locate(self.bucket, link, Published::Delta, &metadata.file_manifest).await?;
        let partial = Partial::resume(self.cache_root, Kind::Delta, link)?;
        if let Err(error) = objects.download(self.bucket, partial.path(), self.limits, self.observer).await {
            return Err(partial.give_up(error));
        }
        let (place, limit) = (partial.path().to_owned(), self.limits.total_bytes);
        blocking(&place, move || {
            let format = changes::format_of(&partial.path().join(DELTA_METADATA));
            let judged = format.and_then(|format| format.map_err(broken_at(window, link))).and_then(|format| {
                let opened = changes::open_body(&partial.path().join(DELTA_BODY), format, limit);
                opened.map(|_| format).map_err(|error| refused(window, link, error))
            });
            match judged {
                Ok(format) => Ok(Link { window: link, format, partial }),
                Err(error) => Err(partial.give_up(error)),
            }
        })
        .await
    }

    async fn verified(&self, dir: &Path) -> Result<Option<Metadata>, CheckpointError> {
        if !dir.exists() {
            return Ok(None);
        }
        let owned = dir.to_owned();
        let found = blocking(dir, move || verify_dir(&owned)).await?;
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

/// A link that is on the disk.
struct Link {
    window: u64,
    format: SparseFormat,
    partial: Partial,
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

/// What a rebuilding needs.
struct Work {
    window: u64,
    metadata: Metadata,
    base: Metadata,
    base_dir: PathBuf,
    changes: Partial,
    target: Partial,
    limit: u64,
}

/// The number of changed elements of each link, the changes files where they stay, and what is left to do.
type Rebuilt = (Vec<(u64, u64)>, Vec<PathBuf>, Unfinished);

impl Work {
    /// Decodes the links, rebuilds the weights and compares their hash.
    fn rebuild(self, links: Vec<Link>) -> Result<Rebuilt, CheckpointError> {
        let weights = self.weights(&links);
        links.into_iter().for_each(|link| link.partial.discard());
        let weights = match weights {
            Ok(weights) => weights,
            Err(error) => {
                self.target.discard();
                self.changes.discard();
                return Err(error);
            }
        };
        let (entries, names) = weights;
        let dir = self.changes.install()?;
        let files = names.iter().map(|name| dir.join(name)).collect();
        let Self { window, metadata, base, base_dir, target, .. } = self;
        Ok((entries, files, Unfinished { window, metadata, base, base_dir, target }))
    }

    fn weights(&self, links: &[Link]) -> Result<(Vec<(u64, u64)>, Vec<String>), CheckpointError> {
        let window = self.window;
        let places = tensor_places(&self.base_dir)?;
        check_room(self.target.path(), places.values().map(|place| place.length).sum())?;
        let (mut entries, mut names) = (Vec::new(), Vec::new());
        for Link { window: link, format, partial } in links {
            let name = format!("changes-{link}.safetensors");
            let body = changes::open_body(&partial.path().join(DELTA_BODY), *format, self.limit);
            let decoded = body.and_then(|body| changes::decode(body, &places, &self.changes.path().join(&name)));
            entries.push((*link, decoded.map_err(|error| refused(window, *link, error))?));
            names.push(name);
        }
        let opened: Vec<Changes> =
            names.iter().map(|name| Changes::open(&self.changes.path().join(name))).collect::<Result<_, _>>()?;
        let got = rebuild(&places, &opened, &self.target.path().join(WEIGHTS))?;
        check_hash(window, &self.metadata, got, true)?;
        Ok((entries, names))
    }
}

/// A rebuilt checkpoint whose weights are there and verified, and nothing else yet.
struct Unfinished {
    window: u64,
    metadata: Metadata,
    base: Metadata,
    base_dir: PathBuf,
    target: Partial,
}

impl Unfinished {
    /// Adds what is not weights, and the manifest of all.
    fn install(self) -> Result<(PathBuf, Metadata), CheckpointError> {
        let weights = self.target.path().join(WEIGHTS);
        File::open(&weights).and_then(|file| file.sync_all()).map_err(local(&weights))?;
        let mut manifest = vec![(WEIGHTS.to_owned(), file_sha256(&weights)?)];
        for (name, sha256) in self.base.file_manifest.files().filter(|(name, _)| !is_of_weights(name)) {
            let (from, to) = (self.base_dir.join(name), self.target.path().join(name));
            std::fs::copy(&from, &to).and_then(|_| File::open(&to)?.sync_all()).map_err(local(&to))?;
            manifest.push((name.to_owned(), sha256.to_owned()));
        }
        let metadata = Metadata {
            file_manifest: Manifest::new(manifest),
            checkpoint_type: Some("FULL".into()),
            reconstructed_from_delta: Some(true),
            original_anchor_window: self.metadata.anchor_window,
            window: Some(self.window),
            ..self.metadata
        };
        write_metadata(&self.target, &metadata)?;
        Ok((self.target.install()?, metadata))
    }
}

/// Weights, and the index that says in which file which tensor is: it would send a reader to the base's.
fn is_of_weights(name: &str) -> bool {
    is_weights(name) || name.ends_with(".safetensors.index.json")
}

/// Checks the tensors, writes the local metadata and installs the directory.
fn finish(partial: Partial, window: u64, metadata: &Metadata) -> Result<PathBuf, CheckpointError> {
    let verified = || {
        partial.retain(|name| metadata.file_manifest.files().any(|(listed, _)| listed == name))?;
        if metadata.hash().is_some() {
            check_hash(window, metadata, weights_hash(partial.path())?, false)?;
        }
        write_metadata(&partial, metadata)
    };
    match verified() {
        Ok(()) => partial.install(),
        Err(error) => Err(partial.give_up(error)),
    }
}

fn check_hash(window: u64, metadata: &Metadata, got: String, rebuilt: bool) -> Result<(), CheckpointError> {
    match metadata.hash() {
        Some(want) if got.eq_ignore_ascii_case(want) => Ok(()),
        want => {
            let want = want.unwrap_or("nothing").to_owned();
            Err(CheckpointError::WrongWeights { window, got, want, rebuilt })
        }
    }
}

fn write_metadata(partial: &Partial, metadata: &Metadata) -> Result<(), CheckpointError> {
    let path = partial.path().join(METADATA);
    let mut file = File::create(&path).map_err(local(&path))?;
    file.write_all(metadata.to_json().as_bytes()).and_then(|()| file.sync_all()).map_err(local(&path))
}

fn broken_at(window: u64, link: u64) -> impl FnOnce(String) -> CheckpointError {
    move |why| CheckpointError::BrokenLink { window, link, why }
}

/// Why a link is refused. What the network's own decoder does not look at is not everybody's reason.
fn refused(window: u64, link: u64, error: LinkError) -> CheckpointError {
    match error {
        LinkError::Sparse(error @ SparseError::Tensor { .. }) => {
            CheckpointError::Unverifiable { window, why: format!("its link {link} contradicts itself: {error}") }
        }
        LinkError::Misfit { name, why } => {
            CheckpointError::Unverifiable { window, why: format!("its link {link} does not fit its base: tensor {name}: {why}") }
        }
        LinkError::Sparse(error) => broken_at(window, link)(format!("cannot be decoded: {error}")),
        LinkError::Checkpoint(error) => error,
    }
}

/// Runs disk and hash work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    place: &Path,
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, CheckpointError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(local(place)(std::io::Error::other(error))),
    }
}
