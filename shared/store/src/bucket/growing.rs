//! An object that is sent while it is still being made: equal parts leave as soon as their bytes are there, and nobody sees
//! anything of it before the last one.

use std::fmt;

use aws_sdk_s3::types::CompletedPart;
use bytes::Bytes;
use twox_hash::XxHash3_128;

use super::transfer::{Part, Source, parts_of};
use super::{Bucket, BucketError, RetryPolicy, retry};

/// The beginning of an object, in its bucket. Dropped before [`GrowingObject::finish`] has made it whole, it is aborted in the
/// background: it would cost storage for ever.
pub struct GrowingObject {
    bucket: Bucket,
    key: String,
    upload: String,
    part_bytes: usize,
    sent: Vec<SentPart>,
    whole: bool,
}

struct SentPart {
    part: CompletedPart,
    /// XXH3-128 of its bytes.
    digest: u128,
}

impl fmt::Debug for GrowingObject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GrowingObject").field("key", &self.key).field("parts", &self.sent.len()).finish_non_exhaustive()
    }
}

impl Bucket {
    /// Begins an object of equal parts of `part_bytes` (S3 wants at least 5 MiB), of which the last may be shorter.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn grow(&self, key: &str, part_bytes: usize, policy: &RetryPolicy) -> Result<GrowingObject, BucketError> {
        let upload = self.create_parts(key, policy).await?;
        let (bucket, key, part_bytes) = (self.clone(), key.to_owned(), part_bytes.max(1));
        Ok(GrowingObject { bucket, key, upload, part_bytes, sent: Vec::new(), whole: false })
    }
}

impl GrowingObject {
    /// What [`Bucket::abort_parts`] ends it by, should this value be lost.
    pub fn upload_id(&self) -> &str {
        &self.upload
    }

    /// Bytes of the object that are in the bucket.
    pub fn sent_bytes(&self) -> usize {
        self.sent.len() * self.part_bytes
    }

    /// Sends the next `part_bytes` bytes.
    ///
    /// # Errors
    /// As [`Bucket::put`]; the part may be sent again.
    pub async fn send(&mut self, bytes: &Bytes, policy: &RetryPolicy) -> Result<(), BucketError> {
        let part = Part { number: self.sent.len() as i32 + 1, offset: 0, length: bytes.len() as u64 };
        let sent = self.bucket.send_part(&self.key, &self.upload, Source::Memory(bytes), part, policy).await?;
        self.sent.push(SentPart { part: sent, digest: XxHash3_128::oneshot(bytes) });
        Ok(())
    }

    /// Whether the object that `bytes` are begins with what was sent.
    pub fn begins(&self, bytes: &[u8]) -> bool {
        let mut parts = bytes.chunks_exact(self.part_bytes);
        self.sent.iter().all(|sent| parts.next().is_some_and(|part| XxHash3_128::oneshot(part) == sent.digest))
    }

    /// Sends what is left of `bytes`, which are the whole object, and makes it visible.
    ///
    /// # Errors
    /// As [`Bucket::put`]. `policy.overall` bounds all of it.
    pub async fn finish(mut self, bytes: &Bytes, policy: &RetryPolicy) -> Result<(), BucketError> {
        let parts = parts_of(bytes.len() as u64, self.part_bytes as u64).into_iter().skip(self.sent.len()).collect();
        let before = self.sent.iter().map(|sent| sent.part.clone()).collect();
        let sent = self.bucket.send_parts(&self.key, &self.upload, Source::Memory(bytes), parts, before, policy);
        let result = tokio::time::timeout(policy.overall, sent).await;
        let request = || self.bucket.request("UploadPart", &self.key);
        let result = result.unwrap_or_else(|_| Err(retry::out_of_time(&request(), policy)));
        self.whole = result.is_ok();
        result
    }
}

impl Drop for GrowingObject {
    fn drop(&mut self) {
        if self.whole {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (bucket, key, upload) = (self.bucket.clone(), std::mem::take(&mut self.key), std::mem::take(&mut self.upload));
            runtime.spawn(async move { bucket.tidy_up(&key, &upload).await });
        }
    }
}
