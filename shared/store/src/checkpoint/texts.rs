//! Configuration, template and tokenizer of a checkpoint without its weights, for whoever only looks at them.

use std::path::Path;

use super::cache::is_weights;
use super::documents::Documents;
use super::objects::{Objects, Published};
use super::{CheckpointError, FetchLimits, Manifest};
use crate::bucket::Bucket;

/// Brings every file but the weights of the FULL checkpoint `window` into `dir`, verified.
///
/// # Errors
/// As a fetch.
pub async fn fetch_texts(bucket: &Bucket, window: u64, limits: &FetchLimits, dir: &Path) -> Result<(), CheckpointError> {
    let Documents { full, .. } = Documents::read(bucket, window, limits).await?;
    let full = full.ok_or(CheckpointError::Absent { window })??;
    let files = full.file_manifest.files().filter(|(name, _)| !is_weights(name));
    let files = Manifest::new(files.map(|(name, hash)| (name.to_owned(), hash.to_owned())).collect());
    let objects = Objects::locate(bucket, window, Published::Full, &files).await?;
    objects.download(bucket, dir, limits, &|_| {}).await
}
