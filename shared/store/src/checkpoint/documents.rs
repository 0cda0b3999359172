//! The metadata documents of one checkpoint window, as far as they can be believed.

use super::objects::{Published, small_object};
use super::{CheckpointError, FetchLimits, Metadata, is_signed_by};
use crate::bucket::Bucket;

/// Bytes of a metadata document at most.
const MAX_METADATA_BYTES: u64 = 4 << 20;
/// Bytes of a signature file at most.
const MAX_SIGNATURE_BYTES: u64 = 4096;

/// What is published under one window. A document that cannot be believed hides the other one's kind only.
pub(super) struct Documents {
    pub full: Option<Result<Metadata, CheckpointError>>,
    pub delta: Option<Result<Metadata, CheckpointError>>,
}

impl Documents {
    /// Reads both.
    ///
    /// # Errors
    /// [`CheckpointError::Bucket`] only.
    pub(super) async fn read(bucket: &Bucket, window: u64, limits: &FetchLimits) -> Result<Self, CheckpointError> {
        let document = async |published| match document(bucket, window, published, limits).await {
            Ok(None) => Ok(None),
            Ok(Some(metadata)) => Ok(Some(Ok(metadata))),
            Err(error @ CheckpointError::Bucket(_)) => Err(error),
            Err(error) => Ok(Some(Err(error))),
        };
        let (full, delta) = tokio::join!(document(Published::Full), document(Published::Delta));
        Ok(Self { full: full?, delta: delta? })
    }

    /// Why neither is there.
    pub(super) async fn why_none(bucket: &Bucket, window: u64) -> Result<CheckpointError, CheckpointError> {
        for (published, name) in [(Published::Full, "FULL"), (Published::Delta, "DELTA")] {
            if !bucket.list(&published.key(window, "")).await?.is_empty() {
                let why = format!("its {name} directory has no metadata.json");
                return Ok(CheckpointError::Unverifiable { window, why });
            }
        }
        Ok(CheckpointError::Absent { window })
    }
}

async fn document(
    bucket: &Bucket,
    window: u64,
    published: Published,
    limits: &FetchLimits,
) -> Result<Option<Metadata>, CheckpointError> {
    let key = published.key(window, "metadata.json");
    let Some(document) = small_object(bucket, &key, MAX_METADATA_BYTES).await? else { return Ok(None) };
    let mut metadata = Metadata::parse(&key, &document)?;
    metadata.check(window, published == Published::Full)?;
    metadata.window = Some(window);
    if let Some(trainer) = &limits.trainer {
        let signature = small_object(bucket, &published.key(window, "manifest.sig"), MAX_SIGNATURE_BYTES).await?;
        if !is_signed_by(trainer, &document, &signature.unwrap_or_default()) {
            return Err(CheckpointError::WrongSignature { window, trainer: trainer.clone() });
        }
    }
    Ok(Some(metadata))
}

/// Metadata that tells environment and sampling of checkpoint `window`: the DELTA's where there is one, else the FULL's
/// (grail-checkpoints 4).
///
/// # Errors
/// [`CheckpointError::Absent`], [`CheckpointError::Unverifiable`], [`CheckpointError::WrongSignature`],
/// [`CheckpointError::Metadata`], [`CheckpointError::Bucket`].
pub async fn fetch_metadata(bucket: &Bucket, window: u64, limits: &FetchLimits) -> Result<Metadata, CheckpointError> {
    let Documents { full, delta } = Documents::read(bucket, window, limits).await?;
    match delta.or(full) {
        Some(metadata) => metadata,
        None => Err(Documents::why_none(bucket, window).await?),
    }
}
