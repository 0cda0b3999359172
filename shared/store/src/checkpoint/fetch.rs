//! From the bucket to a verified directory (grail-checkpoints 4 and 8).

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

use super::cache::{METADATA, Partial, checkpoint_dir, verify_dir};
use super::error::local;
use super::keys::{self, delta_key, full_key};
use super::weights::weights_hash;
use super::{CheckpointError, Metadata, is_signed_by};
use crate::bucket::{Bucket, BucketError, FileDigest, ObjectHead};

/// Bytes of a metadata document at most.
const MAX_METADATA_BYTES: u64 = 4 << 20;
/// Bytes of a signature file at most.
const MAX_SIGNATURE_BYTES: u64 = 4096;
/// Files that are downloaded at the same time.
const FILES_AT_ONCE: usize = 8;

/// What a fetch may cost and whom it trusts.
#[derive(Clone, Debug)]
pub struct FetchLimits {
    /// Bytes of all files together, as announced by the bucket and again while unpacking.
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
    /// Its metadata, with everything that the trainer published.
    pub metadata: Metadata,
}

/// One object to download.
struct Source {
    name: String,
    sha256: String,
    key: String,
    size: u64,
    gzip: bool,
}

/// Brings FULL checkpoint `window` into `cache_root` and verifies it: every file against the manifest, the tensors against
/// `weights_hash`. A cached directory that still verifies is used as it is; any other is replaced.
///
/// # Errors
/// See [`CheckpointError`]; the cache holds no trace of a failed fetch.
pub async fn fetch_full(
    bucket: &Bucket,
    window: u64,
    cache_root: &Path,
    limits: &FetchLimits,
) -> Result<CachedCheckpoint, CheckpointError> {
    let dir = checkpoint_dir(cache_root, window);
    if let Some(metadata) = cached(&dir).await? {
        let metadata = with_terms(bucket, window, metadata, limits).await;
        return Ok(CachedCheckpoint { dir, window, metadata });
    }
    if !keys::is_ready(bucket, window).await? {
        return Err(CheckpointError::NotReady { window });
    }
    let metadata = fetch_metadata(bucket, window, limits).await?;
    let partial = Partial::create(cache_root, window)?;
    download(bucket, window, &metadata, partial.path(), limits).await?;
    let dir = finish(partial, window, metadata.clone()).await?;
    Ok(CachedCheckpoint { dir, window, metadata })
}

/// Metadata of FULL checkpoint `window`, verified as far as a document can be.
///
/// # Errors
/// [`CheckpointError::Unsupported`] where only a DELTA is published, [`CheckpointError::Absent`],
/// [`CheckpointError::Unverifiable`], [`CheckpointError::WrongSignature`].
pub async fn fetch_metadata(bucket: &Bucket, window: u64, limits: &FetchLimits) -> Result<Metadata, CheckpointError> {
    let key = full_key(window, METADATA);
    let Some(document) = small_object(bucket, &key, MAX_METADATA_BYTES).await? else {
        return Err(why_no_metadata(bucket, window).await?);
    };
    let mut metadata = Metadata::parse(&key, &document)?;
    metadata.check_full(window)?;
    metadata.window = Some(window);
    if let Some(trainer) = &limits.trainer {
        let signature = small_object(bucket, &full_key(window, "manifest.sig"), MAX_SIGNATURE_BYTES).await?.unwrap_or_default();
        if !is_signed_by(trainer, &document, &signature) {
            return Err(CheckpointError::WrongSignature { window, trainer: trainer.clone() });
        }
    }
    Ok(metadata)
}

async fn why_no_metadata(bucket: &Bucket, window: u64) -> Result<CheckpointError, CheckpointError> {
    if !bucket.list(&full_key(window, "")).await?.is_empty() {
        let why = "its FULL directory has no metadata.json".to_owned();
        return Ok(CheckpointError::Unverifiable { window, why });
    }
    let has_delta = !bucket.list(&delta_key(window, "")).await?.is_empty();
    Ok(if has_delta { CheckpointError::Unsupported { window } } else { CheckpointError::Absent { window } })
}

async fn cached(dir: &Path) -> Result<Option<Metadata>, CheckpointError> {
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

/// A directory made by another program may lack the mining terms; they are taken from the bucket if the files are the same.
async fn with_terms(bucket: &Bucket, window: u64, local: Metadata, limits: &FetchLimits) -> Metadata {
    if local.mining_terms().is_ok() {
        return local;
    }
    match fetch_metadata(bucket, window, limits).await {
        Ok(published) if published.file_manifest == local.file_manifest => published,
        _ => local,
    }
}

async fn download(
    bucket: &Bucket,
    window: u64,
    metadata: &Metadata,
    dir: &Path,
    limits: &FetchLimits,
) -> Result<(), CheckpointError> {
    let files = metadata.file_manifest.files().map(|(name, sha256)| locate(bucket, window, name.to_owned(), sha256.to_owned()));
    let files: Vec<_> = files.collect();
    let sources: Vec<Source> = futures::stream::iter(files).buffered(FILES_AT_ONCE).try_collect().await?;
    let size = sources.iter().fold(0_u64, |sum, source| sum.saturating_add(source.size));
    if size > limits.total_bytes {
        return Err(CheckpointError::TooLarge { window, size, limit: limits.total_bytes });
    }
    let downloads: Vec<_> = sources.iter().map(|source| receive(bucket, window, source, dir, limits)).collect();
    futures::stream::iter(downloads).buffer_unordered(FILES_AT_ONCE).try_collect().await
}

/// Finds the object of a manifest entry: under its name, or else compressed.
async fn locate(bucket: &Bucket, window: u64, name: String, sha256: String) -> Result<Source, CheckpointError> {
    let key = full_key(window, &name);
    let source = |key: String, head: ObjectHead, gzip: bool| Source { name: name.clone(), sha256, key, size: head.size, gzip };
    if let Some(head) = bucket.head(&key).await? {
        return Ok(source(key, head, false));
    }
    let compressed = format!("{key}.gz");
    match bucket.head(&compressed).await? {
        Some(head) => Ok(source(compressed, head, true)),
        None => Err(CheckpointError::MissingFile { window, name }),
    }
}

async fn receive(bucket: &Bucket, window: u64, source: &Source, dir: &Path, limits: &FetchLimits) -> Result<(), CheckpointError> {
    let path = dir.join(&source.name);
    let got = if source.gzip {
        // Manifest names never start with a dot, so this cannot be one of them.
        let packed = dir.join(format!(".{}.gz", source.name));
        bucket.get_to_file(&source.key, &packed, source.size).await?;
        let (limit, target) = (limits.total_bytes, path.clone());
        blocking(&path, move || gunzip(&packed, &target, limit).map_err(local(target))).await?
    } else {
        bucket.get_to_file(&source.key, &path, source.size).await?
    };
    if got.sha256 == source.sha256 {
        return Ok(());
    }
    Err(CheckpointError::WrongHash { window, name: source.name.clone(), got: got.sha256, want: source.sha256.clone() })
}

/// Unpacks `packed` into `target`, hashing, at most `limit` bytes; removes `packed`.
fn gunzip(packed: &Path, target: &Path, limit: u64) -> std::io::Result<FileDigest> {
    let mut unpacked = GzDecoder::new(std::fs::File::open(packed)?);
    let mut file = std::fs::File::create(target)?;
    let (mut hasher, mut size, mut piece) = (Sha256::new(), 0_u64, vec![0; 1 << 20]);
    loop {
        let read = unpacked.read(&mut piece)?;
        if read == 0 {
            break;
        }
        size += read as u64;
        if size > limit {
            return Err(std::io::Error::other(format!("it unpacks to more than the {limit} bytes allowed")));
        }
        hasher.update(&piece[..read]);
        file.write_all(&piece[..read])?;
    }
    file.sync_all()?;
    std::fs::remove_file(packed)?;
    Ok(FileDigest { size, sha256: hex::encode(hasher.finalize()) })
}

/// Checks the tensors, writes the local metadata and installs the directory.
async fn finish(partial: Partial, window: u64, metadata: Metadata) -> Result<PathBuf, CheckpointError> {
    let place = partial.path().to_owned();
    blocking(&place, move || {
        // An empty hash is what some publishers write for "none".
        if let Some(want) = metadata.weights_hash.as_ref().filter(|want| !want.is_empty()) {
            let got = weights_hash(partial.path())?;
            if !got.eq_ignore_ascii_case(want) {
                return Err(CheckpointError::WrongWeights { window, got, want: want.clone() });
            }
        }
        let path = partial.path().join(METADATA);
        let mut file = std::fs::File::create(&path).map_err(local(&path))?;
        file.write_all(metadata.to_json().as_bytes()).and_then(|()| file.sync_all()).map_err(local(&path))?;
        partial.install()
    })
    .await
}

/// Runs disk and hash work off the async threads.
async fn blocking<T: Send + 'static>(
    place: &Path,
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, CheckpointError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(local(place)(std::io::Error::other(error))),
    }
}

/// A small object under its name or else compressed; `None` if there is neither.
async fn small_object(bucket: &Bucket, key: &str, limit: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
    match bucket.get(key, limit).await {
        Ok(bytes) => return Ok(Some(bytes.to_vec())),
        Err(BucketError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let compressed = match bucket.get(&format!("{key}.gz"), limit).await {
        Ok(bytes) => bytes,
        Err(BucketError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut plain = Vec::new();
    let unpacked = GzDecoder::new(compressed.as_ref()).take(limit).read_to_end(&mut plain);
    unpacked.map_err(|error| CheckpointError::Metadata { place: format!("{key}.gz"), why: error.to_string() })?;
    Ok(Some(plain))
}
