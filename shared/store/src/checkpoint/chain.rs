//! From a DELTA back to something that stands on its own (grail-checkpoints 4).
//!
//! ```text
//!  target ──prev──▶ DELTA ──prev──▶ DELTA ──prev──▶ FULL in the bucket, or a checkpoint in the cache
//!  └───────────── links, applied oldest first ────┘  base
//! ```

use super::documents::Documents;
use super::{CheckpointError, Metadata};

/// Links of a chain at most. A trainer begins a new one after ten.
const MAX_LINKS: usize = 64;

/// What a chain stands on.
#[derive(Debug)]
pub(super) enum Base {
    /// A checkpoint of the cache.
    Cached(u64, Metadata),
    /// A FULL of the bucket.
    Published(u64, Metadata),
}

/// A chain of differences, oldest first, and what the first is a difference against.
#[derive(Debug)]
pub(super) struct Chain {
    pub base: Base,
    pub links: Vec<(u64, Metadata)>,
}

impl Chain {
    /// Everything that the weights follow from: the base's metadata and the links', oldest first.
    pub(super) fn documents(&self) -> impl Iterator<Item = &Metadata> {
        let (Base::Cached(_, base) | Base::Published(_, base)) = &self.base;
        std::iter::once(base).chain(self.links.iter().map(|(_, link)| link))
    }
}

/// What the walk asks.
pub(super) trait Sources {
    /// The metadata of checkpoint `window` if the cache has it whole.
    async fn cached(&self, window: u64) -> Result<Option<Metadata>, CheckpointError>;
    /// What is published under `window`.
    async fn published(&self, window: u64) -> Result<Documents, CheckpointError>;
    /// Whether a FULL's objects are all there; one that follows its DELTA may still be uploading.
    async fn is_whole(&self, window: u64, full: &Metadata) -> Result<bool, CheckpointError>;
}

/// Walks back from the DELTA of `target`. A predecessor must be older than its successor, which leaves no room for cycles.
///
/// # Errors
/// [`CheckpointError::BrokenLink`] where a predecessor is missing or not named, [`CheckpointError::Unverifiable`] for a chain
/// that goes forward or is too long, and what the sources say.
pub(super) async fn walk(sources: &impl Sources, target: u64, delta: Metadata) -> Result<Chain, CheckpointError> {
    let mut links = Vec::new();
    let (mut window, mut link) = (target, delta);
    let base = loop {
        let prev = predecessor(target, window, &link)?;
        links.push((window, link));
        if links.len() > MAX_LINKS {
            let why = format!("its chain has more than {MAX_LINKS} links");
            return Err(CheckpointError::Unverifiable { window: target, why });
        }
        if let Some(metadata) = sources.cached(prev).await? {
            break Base::Cached(prev, metadata);
        }
        let Documents { full, delta } = sources.published(prev).await?;
        match (full, delta) {
            (Some(full), None) => break Base::Published(prev, full?),
            (Some(Ok(full)), Some(_)) if sources.is_whole(prev, &full).await? => break Base::Published(prev, full),
            (_, Some(delta)) => (window, link) = (prev, delta?),
            (None, None) => {
                let why = format!("is a difference against {prev}, which is not in the bucket");
                return Err(CheckpointError::BrokenLink { window: target, link: window, why });
            }
        }
    };
    links.reverse();
    Ok(Chain { base, links })
}

fn predecessor(target: u64, window: u64, link: &Metadata) -> Result<u64, CheckpointError> {
    let Some(prev) = link.prev_window else {
        let why = "does not say what it is a difference against (prev_window)".to_owned();
        return Err(CheckpointError::BrokenLink { window: target, link: window, why });
    };
    if prev < window {
        return Ok(prev);
    }
    let why = format!("its link {window} claims to be a difference against {prev}, which is not before it");
    Err(CheckpointError::Unverifiable { window: target, why })
}
