//! One window file to the bucket, and the proof that it is there.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use grail_process::clock;
use grail_protocol::constants::MAX_FILE_BYTES;
use grail_store::bucket::{Bucket, BucketError, RetryPolicy};
use sha2::{Digest, Sha256};

/// How often a file is sent that the bucket turns out not to hold.
const SENDINGS: u32 = 3;

/// A finished file that is to be uploaded.
#[derive(Debug)]
pub struct WindowObject<'a> {
    /// Object key.
    pub key: &'a str,
    /// The file.
    pub path: &'a Path,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

/// Why a window is not in the bucket, as far as can be told.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There was no time to begin.
    #[error("the deadline was {late:.1} s ago when the upload was to begin")]
    TooLate {
        /// Seconds since the deadline.
        late: f64,
    },
    /// The bucket refused or did not answer.
    #[error("the upload failed: {0}")]
    Bucket(#[from] BucketError),
    /// What lies in the bucket is not what was sent; it was removed again.
    #[error("the object read back is not the file that was sent ({0}); it was removed, so that no validator judges it")]
    Different(String),
    /// A validator will treat the object as absent.
    #[error("the object's time of {late:.1} s after the deadline makes validators ignore it")]
    Ignored {
        /// Seconds after the deadline.
        late: f64,
    },
}

/// Uploads, then asks the bucket what it holds. Only after that may anybody say "uploaded". What the bucket does not hold, or
/// holds otherwise, is sent again while that fits. `deadline` is in Unix seconds; no attempt goes on beyond it.
///
/// # Errors
/// See [`UploadError`].
pub async fn upload(bucket: &Bucket, object: &WindowObject<'_>, deadline: f64) -> Result<Duration, UploadError> {
    let mut different = None;
    for sending in 1..=SENDINGS {
        let begun = clock::monotonic();
        match send(bucket, object, deadline).await {
            Ok(spent) => return Ok(spent),
            Err(UploadError::Different(what)) => {
                let again = clock::unix_seconds() + 2.0 * begun.elapsed().as_secs_f64() < deadline;
                tracing::warn!(sending, what, again, "The bucket does not hold the file that was sent.");
                different = Some(what);
                if !again {
                    break;
                }
            }
            // An earlier sending has left something else there; it must not be judged.
            Err(error) if different.is_some() => {
                bucket.delete(object.key).await?;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
    }
    bucket.delete(object.key).await?;
    Err(UploadError::Different(different.unwrap_or_default()))
}

/// One sending and its confirmation.
async fn send(bucket: &Bucket, object: &WindowObject<'_>, deadline: f64) -> Result<Duration, UploadError> {
    let begun = clock::monotonic();
    let left = deadline - clock::unix_seconds();
    let overall = Duration::try_from_secs_f64(left).map_err(|_| UploadError::TooLate { late: -left })?;
    crate::failpoint::pass("uploading").await;
    bucket.put_file(object.key, object.path, &RetryPolicy::within(overall)).await?;
    let spent = begun.elapsed();
    crate::failpoint::pass("read-back").await;
    confirm(bucket, object, deadline).await?.map_err(UploadError::Different)?;
    Ok(spent)
}

/// HEAD and GET, as a validator would.
async fn confirm(bucket: &Bucket, object: &WindowObject<'_>, deadline: f64) -> Result<Result<(), String>, UploadError> {
    let Some(head) = bucket.head(object.key).await? else { return Ok(Err("it is absent".into())) };
    if head.size != object.size {
        return Ok(Err(format!("{} bytes instead of {}", head.size, object.size)));
    }
    if let Some(late) = head.last_modified.map(|time| unix_seconds(time) - deadline).filter(|late| *late > 0.0) {
        return Err(UploadError::Ignored { late });
    }
    let bytes = bucket.get(object.key, MAX_FILE_BYTES).await?;
    let same = <[u8; 32]>::from(Sha256::digest(&bytes)) == object.sha256;
    Ok(if same { Ok(()) } else { Err("its SHA-256 differs".into()) })
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
