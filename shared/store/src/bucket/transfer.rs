//! Files and bytes to a bucket, streamed.

use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, Length};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::error::BucketError;
use super::{Bucket, RetryPolicy, retry, within};

/// Parts that are sent at the same time.
const PARTS_AT_ONCE: usize = 4;
/// Time to abort a failed multipart upload: it tidies up, and whoever waits has no time left.
const ABORT_LIMIT: Duration = Duration::from_secs(3);

/// A slice of a file: one part of a multipart upload.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// From 1.
    pub number: i32,
    pub offset: u64,
    pub length: u64,
}

pub(super) fn parts_of(size: u64, part_bytes: u64) -> Vec<Part> {
    let starts = (0..size).step_by(usize::try_from(part_bytes.max(1)).unwrap_or(usize::MAX));
    (1..).zip(starts).map(|(number, offset)| Part { number, offset, length: part_bytes.min(size - offset) }).collect()
}

fn local(path: &Path) -> impl Fn(std::io::Error) -> BucketError + '_ {
    |source| BucketError::Local { path: path.to_owned(), source }
}

/// Where the bytes of an upload are.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    File(&'a Path),
    Memory(&'a Bytes),
}

impl Source<'_> {
    async fn part(&self, part: Part) -> Result<ByteStream, BucketError> {
        match self {
            Self::File(path) => slice(path, part).await,
            Self::Memory(bytes) => {
                let (start, length) = (part.offset as usize, part.length as usize);
                Ok(ByteStream::from(bytes.slice(start..start + length)))
            }
        }
    }
}

impl Bucket {
    /// Writes a file: one PUT up to the part size (50 MiB), equal parts above it. A failed multipart upload is aborted, so
    /// that nothing is left to pay for.
    ///
    /// # Errors
    /// [`BucketError::Local`] for the file, otherwise as [`Bucket::put`]. `policy.overall` bounds all of it.
    pub async fn put_file(&self, key: &str, path: &Path, policy: &RetryPolicy) -> Result<(), BucketError> {
        let size = tokio::fs::metadata(path).await.map_err(local(path))?.len();
        self.put_source(key, Source::File(path), size, policy).await
    }

    /// Writes bytes as [`Bucket::put_file`] writes a file.
    ///
    /// # Errors
    /// As [`Bucket::put`]. `policy.overall` bounds all of it.
    pub async fn put_bytes(&self, key: &str, bytes: &Bytes, policy: &RetryPolicy) -> Result<(), BucketError> {
        self.put_source(key, Source::Memory(bytes), bytes.len() as u64, policy).await
    }

    async fn put_source(&self, key: &str, source: Source<'_>, size: u64, policy: &RetryPolicy) -> Result<(), BucketError> {
        if size > self.limits.part_bytes {
            return self.put_in_parts(key, source, size, policy).await;
        }
        let whole = Part { number: 1, offset: 0, length: size };
        let request = self.request("PutObject", key);
        retry::retry(policy, &request, || async { self.put_once(key, source.part(whole).await?).await }).await?;
        self.meter.add(size);
        Ok(())
    }

    async fn put_in_parts(&self, key: &str, source: Source<'_>, size: u64, policy: &RetryPolicy) -> Result<(), BucketError> {
        let end = tokio::time::Instant::now() + policy.overall;
        let upload = self.create_parts(key, policy).await?;
        // Each part has its own attempts, so the time for all of them is kept here.
        let parts = parts_of(size, self.limits.part_bytes);
        let sent = tokio::time::timeout_at(end, self.send_parts(key, &upload, source, parts, Vec::new(), policy)).await;
        let result = sent.unwrap_or_else(|_| Err(retry::out_of_time(&self.request("UploadPart", key), policy)));
        if result.is_err() {
            self.tidy_up(key, &upload).await;
        }
        result
    }

    /// Begins a multipart upload and returns its id.
    pub(super) async fn create_parts(&self, key: &str, policy: &RetryPolicy) -> Result<String, BucketError> {
        let request = self.request("CreateMultipartUpload", key);
        let created = retry::retry(policy, &request, || async {
            let sent = self.client.create_multipart_upload().bucket(&self.name).key(key).send();
            self.replied(&request, sent).await?.map_err(|error| BucketError::classify(request.clone(), &error))
        });
        Ok(created.await?.upload_id.unwrap_or_default())
    }

    /// Ends a multipart upload that nobody wants any more, so that nothing is left to pay for. One that is not there is ended.
    ///
    /// # Errors
    /// Any class but `NotFound`.
    pub async fn abort_parts(&self, key: &str, upload: &str) -> Result<(), BucketError> {
        let request = self.request("AbortMultipartUpload", key);
        let abort = self.client.abort_multipart_upload().bucket(&self.name).key(key).upload_id(upload).send();
        match within(ABORT_LIMIT, &request, abort).await?.map_err(|error| BucketError::classify(request, &error)) {
            Ok(_) | Err(BucketError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// As [`Bucket::abort_parts`], where nobody can do anything about a failure.
    pub(super) async fn tidy_up(&self, key: &str, upload: &str) {
        if let Err(error) = self.abort_parts(key, upload).await {
            tracing::warn!(%error, "A multipart upload could not be aborted.");
        }
    }

    /// Sends `parts`, and makes the object of `before` and them.
    pub(super) async fn send_parts(
        &self,
        key: &str,
        upload: &str,
        source: Source<'_>,
        parts: Vec<Part>,
        before: Vec<CompletedPart>,
        policy: &RetryPolicy,
    ) -> Result<(), BucketError> {
        let sent = futures::stream::iter(parts.into_iter().map(|part| self.send_part(key, upload, source, part, policy)));
        let sent: Vec<CompletedPart> = sent.buffered(PARTS_AT_ONCE).try_collect().await?;
        let parts: Vec<CompletedPart> = before.into_iter().chain(sent).collect();
        let request = self.request("CompleteMultipartUpload", key);
        retry::retry(policy, &request, || async {
            let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.clone())).build();
            let complete = self.client.complete_multipart_upload().bucket(&self.name).key(key).upload_id(upload);
            let answer = self.sent(&request, complete.multipart_upload(parts).send()).await?;
            answer.map_err(|error| BucketError::classify(request.clone(), &error))
        })
        .await?;
        Ok(())
    }

    pub(super) async fn send_part(
        &self,
        key: &str,
        upload: &str,
        source: Source<'_>,
        part: Part,
        policy: &RetryPolicy,
    ) -> Result<CompletedPart, BucketError> {
        let request = self.request("UploadPart", key);
        let answer = retry::retry(policy, &request, || async {
            let body = source.part(part).await?;
            let upload = self.client.upload_part().bucket(&self.name).key(key).upload_id(upload);
            let answer = self.sent(&request, upload.part_number(part.number).body(body).send()).await?;
            answer.map_err(|error| BucketError::classify(request.clone(), &error))
        });
        let e_tag = answer.await?.e_tag;
        self.meter.add(part.length);
        Ok(CompletedPart::builder().part_number(part.number).set_e_tag(e_tag).build())
    }
}

async fn slice(path: &Path, part: Part) -> Result<ByteStream, BucketError> {
    let builder = ByteStream::read_from().path(path).offset(part.offset).length(Length::Exact(part.length));
    builder.build().await.map_err(|error| local(path)(std::io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::parts_of;

    #[test]
    fn parts_are_equal_and_cover_the_file() {
        let parts = parts_of(120, 50);
        let shape: Vec<_> = parts.iter().map(|part| (part.number, part.offset, part.length)).collect();
        assert_eq!(shape, [(1, 0, 50), (2, 50, 50), (3, 100, 20)]);
    }
}
