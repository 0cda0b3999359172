//! An object into a file: parts side by side, written and hashed in order, gone on with where an earlier attempt stopped.
//!
//! ```text
//!  GET part 1 ─┐
//!  GET part 2 ─┼─▶ in order ─▶ writer thread: hash, append      what lies in the file is always a beginning of the object
//!  GET part 3 ─┘
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

use super::error::{BucketError, Request};
use super::{Bucket, ObjectHead, retry};

/// Size of a part. With [`PARTS_AT_ONCE`] it bounds the memory of one download.
const PART_BYTES: u64 = 8 << 20;
/// Parts that are asked for at the same time.
const PARTS_AT_ONCE: usize = 4;
/// Parts that wait for the disk.
const WAITING_PARTS: usize = 2;

/// What was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDigest {
    /// Bytes.
    pub size: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
}

/// Bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    length: u64,
}

fn parts(from: u64, size: u64) -> impl Iterator<Item = Part> {
    let step = usize::try_from(PART_BYTES).unwrap_or(usize::MAX);
    (from..size).step_by(step).map(move |offset| Part { offset, length: PART_BYTES.min(size - offset) })
}

impl Bucket {
    /// Reads the object that `object` describes into `path`, and says what the file holds. What lies there already is taken
    /// for the beginning of the object: the digest tells whether it was. After a failure what was received stays, for the
    /// next attempt. `received` is told the bytes of every part that is on its way to the disk, and of what lay there.
    ///
    /// At most six parts of 8 MiB are in memory.
    ///
    /// # Errors
    /// [`BucketError::Replaced`] when the object is another than described, [`BucketError::Local`] for the file, otherwise as
    /// [`Bucket::get`].
    pub async fn download(
        &self,
        key: &str,
        path: &Path,
        object: &ObjectHead,
        received: &(dyn Fn(u64) + Sync),
    ) -> Result<FileDigest, BucketError> {
        let (sender, mut queue) = tokio::sync::mpsc::channel::<Bytes>(WAITING_PARTS);
        let (owned, size) = (path.to_owned(), object.size);
        let opening = tokio::task::spawn_blocking(move || Growing::open(owned, size));
        let growing = opening.await.map_err(|error| local(path)(std::io::Error::other(error)))??;
        let have = growing.size;
        received(have);
        let writing = tokio::task::spawn_blocking(move || {
            let mut growing = growing;
            while let Some(part) = queue.blocking_recv() {
                growing.append(&part)?;
            }
            Ok::<_, BucketError>(growing)
        });
        let fetching = async {
            let wanted = parts(have, size).map(|part| self.part(key, part, object));
            let mut arriving = futures::stream::iter(wanted).buffered(PARTS_AT_ONCE);
            while let Some(part) = arriving.try_next().await? {
                received(part.len() as u64);
                if sender.send(part).await.is_err() {
                    // The writer has failed and says why.
                    break;
                }
            }
            Ok::<_, BucketError>(())
        };
        let fetched = fetching.await;
        drop(sender);
        let growing = writing.await.map_err(|error| local(path)(std::io::Error::other(error)))?;
        fetched?;
        Ok(growing?.finish())
    }

    /// One part, as often as it takes.
    async fn part(&self, key: &str, part: Part, object: &ObjectHead) -> Result<Bytes, BucketError> {
        let request = self.request("GetObject", key);
        retry::retry(&self.reads, &request, || self.part_once(&request, key, part, object)).await
    }

    async fn part_once(&self, request: &Request, key: &str, part: Part, object: &ObjectHead) -> Result<Bytes, BucketError> {
        let mut get = self.client.get_object().bucket(&self.name).key(key).set_if_match(object.etag.clone());
        if part.length < object.size {
            get = get.range(format!("bytes={}-{}", part.offset, part.offset + part.length - 1));
        }
        let answer = self.replied(request, get.send()).await?;
        let answer = answer.map_err(|error| BucketError::classify(request.clone(), &error))?;
        if answer.content_length().and_then(|length| u64::try_from(length).ok()).is_some_and(|length| length != part.length)
            || (answer.e_tag.is_some() && object.etag.is_some() && answer.e_tag != object.etag)
        {
            return Err(BucketError::Replaced(Box::new(request.clone())));
        }
        let mut body = answer.body;
        let mut bytes = BytesMut::new();
        while let Some(piece) = self.next_piece(request, &mut body).await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > part.length {
                return Err(BucketError::Replaced(Box::new(request.clone())));
            }
        }
        if bytes.len() as u64 != part.length {
            let detail = format!("the download broke off: {} of {} bytes", bytes.len(), part.length);
            return Err(BucketError::Unreachable { request: Box::new(request.clone()), detail });
        }
        Ok(bytes.freeze())
    }
}

/// A file that holds a beginning of an object, with the hash of it.
struct Growing {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    size: u64,
}

impl Growing {
    /// Opens what is there and hashes it. More than the object has cannot be a beginning of it and is discarded.
    fn open(path: PathBuf, limit: u64) -> Result<Self, BucketError> {
        let opened = File::options().read(true).append(true).create(true).open(&path);
        let file = opened.map_err(local(&path))?;
        if file.metadata().map_err(local(&path))?.len() > limit {
            file.set_len(0).map_err(local(&path))?;
        }
        let mut growing = Self { file, hasher: Sha256::new(), size: 0, path };
        let mut piece = vec![0; 1 << 20];
        loop {
            let read = growing.file.read(&mut piece).map_err(local(&growing.path))?;
            if read == 0 {
                return Ok(growing);
            }
            growing.hasher.update(&piece[..read]);
            growing.size += read as u64;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), BucketError> {
        self.file.write_all(bytes).map_err(local(&self.path))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn finish(self) -> FileDigest {
        FileDigest { size: self.size, sha256: hex::encode(self.hasher.finalize()) }
    }
}

fn local(path: &Path) -> impl Fn(std::io::Error) -> BucketError + '_ {
    |source| BucketError::Local { path: path.to_owned(), source }
}
