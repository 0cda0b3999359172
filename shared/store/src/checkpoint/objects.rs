//! The objects of a manifest: found, downloaded side by side, verified (grail-checkpoints 4 and 8).

use std::io::{Read, Write};
use std::path::Path;

use flate2::read::GzDecoder;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

use super::disk::{blocking, check_room};
use super::error::local;
use super::event::{FetchEvent, Observer};
use super::keys::{delta_key, full_key};
use super::{CheckpointError, FetchLimits, Manifest};
use crate::bucket::{Bucket, BucketError, ObjectHead};

/// Files that are downloaded at the same time; each has some parts in memory.
const FILES_AT_ONCE: usize = 4;
/// Small questions that are asked at the same time.
const QUESTIONS_AT_ONCE: usize = 16;
/// Which of a checkpoint's two directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Published {
    Full,
    Delta,
}

impl Published {
    pub(super) fn key(self, window: u64, name: &str) -> String {
        match self {
            Self::Full => full_key(window, name),
            Self::Delta => delta_key(window, name),
        }
    }
}

/// The objects of one manifest.
pub(super) struct Objects {
    window: u64,
    sources: Vec<Source>,
}

struct Source {
    name: String,
    sha256: String,
    key: String,
    head: ObjectHead,
    gzip: bool,
}

impl Source {
    /// The object as it lies there, where the bucket says enough to know it again.
    fn subject(&self) -> Option<String> {
        let ObjectHead { size, etag, last_modified } = &self.head;
        let known = etag.is_some() || last_modified.is_some();
        known.then(|| format!("object {} {size} {etag:?} {last_modified:?} {}", self.key, self.sha256))
    }
}

impl Objects {
    /// Finds the object of every entry: under its name, or else compressed.
    pub(super) async fn locate(
        bucket: &Bucket,
        window: u64,
        published: Published,
        manifest: &Manifest,
    ) -> Result<Self, CheckpointError> {
        let entries: Vec<_> = manifest
            .files()
            .map(|(name, sha256)| locate(bucket, window, published, name.to_owned(), sha256.to_owned()))
            .collect();
        let sources = futures::stream::iter(entries).buffered(QUESTIONS_AT_ONCE).try_collect().await?;
        Ok(Self { window, sources })
    }

    /// Bytes of all objects as the bucket announces them.
    pub(super) fn bytes(&self) -> u64 {
        self.sources.iter().fold(0, |sum, source| sum.saturating_add(source.head.size))
    }

    /// Fails where one of them is known to be damaged and is still the same.
    pub(super) fn unrefused(&self, limits: &FetchLimits) -> Result<(), CheckpointError> {
        let refusal = self.sources.iter().find_map(|source| limits.refused.verdict(&source.subject()?));
        refusal.map_or(Ok(()), Err)
    }

    /// Downloads what is not there yet into `dir` and verifies every file. Where `dir` holds beginnings of files, they are
    /// gone on with.
    pub(super) async fn download(
        &self,
        bucket: &Bucket,
        dir: &Path,
        limits: &FetchLimits,
        observer: &Observer<'_>,
    ) -> Result<(), CheckpointError> {
        self.unrefused(limits)?;
        let (window, bytes) = (self.window, self.bytes());
        if bytes > limits.total_bytes {
            return Err(CheckpointError::TooLarge { window, size: bytes, limit: limits.total_bytes });
        }
        let there = self.sources.iter().filter_map(|source| dir.join(&source.name).metadata().ok()).map(|file| file.len()).sum();
        check_room(dir, bytes.saturating_sub(there))?;
        observer(FetchEvent::Download { window, files: self.sources.len(), bytes });
        let downloads: Vec<_> = self.sources.iter().map(|source| self.receive(bucket, source, dir, limits, observer)).collect();
        futures::stream::iter(downloads).buffer_unordered(FILES_AT_ONCE).try_collect().await
    }

    async fn receive(
        &self,
        bucket: &Bucket,
        source: &Source,
        dir: &Path,
        limits: &FetchLimits,
        observer: &Observer<'_>,
    ) -> Result<(), CheckpointError> {
        let path = dir.join(&source.name);
        let mut before: Option<String> = None;
        loop {
            let resumed = path.exists();
            let got = self.attempt(bucket, source, dir, limits, observer).await?;
            if got == source.sha256 {
                return Ok(());
            }
            std::fs::remove_file(&path).map_err(local(&path))?;
            match before.take() {
                // What lay there was no beginning of this object.
                None if resumed => {}
                // It may have been damaged on the way here only, and then nobody else refuses it.
                None => before = Some(got),
                Some(before) => return Err(self.refusal(source, before, got, limits)),
            }
        }
    }

    /// Twice the same wrong bytes are the object's; different ones are the way's.
    fn refusal(&self, source: &Source, before: String, got: String, limits: &FetchLimits) -> CheckpointError {
        let (window, name, want) = (self.window, source.name.clone(), source.sha256.clone());
        if before != got {
            return CheckpointError::Unsteady { window, name, before, got, want };
        }
        let error = CheckpointError::WrongHash { window, name, got, want };
        if let Some(subject) = source.subject() {
            limits.refused.remember(subject, &error);
        }
        error
    }

    async fn attempt(
        &self,
        bucket: &Bucket,
        source: &Source,
        dir: &Path,
        limits: &FetchLimits,
        observer: &Observer<'_>,
    ) -> Result<String, CheckpointError> {
        let path = dir.join(&source.name);
        let received = |bytes| observer(FetchEvent::Received { window: self.window, bytes });
        if !source.gzip {
            return Ok(bucket.download(&source.key, &path, &source.head, &received).await?.sha256);
        }
        // Manifest names never start with a dot, so this cannot be one of them.
        let packed = dir.join(format!(".{}.gz", source.name));
        let digest = bucket.download(&source.key, &packed, &source.head, &received).await?;
        let (limit, target) = (limits.total_bytes, path.clone());
        let unpacked = blocking(&path, move || gunzip(&packed, &target, limit)).await?;
        // Damaged on the way, or as it lies there: as with plain bytes, a second download tells.
        Ok(unpacked.unwrap_or_else(|why| format!("{} before unpacking, which fails ({why})", digest.sha256)))
    }
}

async fn locate(
    bucket: &Bucket,
    window: u64,
    published: Published,
    name: String,
    sha256: String,
) -> Result<Source, CheckpointError> {
    let key = published.key(window, &name);
    if let Some(head) = bucket.head(&key).await? {
        return Ok(Source { name, sha256, key, head, gzip: false });
    }
    let key = format!("{key}.gz");
    match bucket.head(&key).await? {
        Some(head) => Ok(Source { name, sha256, key, head, gzip: true }),
        None => Err(CheckpointError::MissingFile { window, name }),
    }
}

/// Unpacks `packed` into `target`, at most `limit` bytes, and removes it. Returns the SHA-256 of what it held, or why it cannot be
/// unpacked.
fn gunzip(packed: &Path, target: &Path, limit: u64) -> Result<Result<String, String>, CheckpointError> {
    let mut unpacked = GzDecoder::new(std::fs::File::open(packed).map_err(local(packed))?).take(limit.saturating_add(1));
    let mut file = std::fs::File::create(target).map_err(local(target))?;
    let (mut hasher, mut size, mut piece) = (Sha256::new(), 0_u64, vec![0; 1 << 20]);
    let unpacking = loop {
        match unpacked.read(&mut piece) {
            Ok(0) => break Ok(hex::encode(hasher.finalize())),
            Ok(read) => {
                size += read as u64;
                hasher.update(&piece[..read]);
                file.write_all(&piece[..read]).map_err(local(target))?;
            }
            Err(error) => break Err(error.to_string()),
        }
        if size > limit {
            break Err(format!("it unpacks to more than the {limit} bytes allowed"));
        }
    };
    std::fs::remove_file(packed).map_err(local(packed))?;
    Ok(unpacking)
}

/// A small object under its name or else compressed; `None` if there is neither.
pub(super) async fn small_object(bucket: &Bucket, key: &str, limit: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
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
