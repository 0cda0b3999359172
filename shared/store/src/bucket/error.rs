//! What can go wrong with a bucket, in the classes that call for different remedies.

use std::fmt;
use std::path::PathBuf;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use grail_process::{clock, with_causes};
use grail_secrets::Address;

use super::bounded::{ANSWER_BYTES, was_too_long};

/// Characters of a service's words that are kept.
const WORDS: usize = 300;

/// One request, named in every error it causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// S3's name of the operation, e.g. `PutObject`.
    pub operation: &'static str,
    /// Key or prefix.
    pub key: String,
    /// Bucket name.
    pub bucket: String,
    /// Endpoint URL.
    pub endpoint: Address,
}

impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of \"{}\" in bucket \"{}\" at {}", self.operation, self.key, self.bucket, self.endpoint)
    }
}

/// Why a bucket operation failed.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The settings cannot describe a bucket.
    #[error("the bucket settings are wrong: {0}")]
    Settings(String),
    /// Nothing on this machine says which servers can be trusted.
    #[error(
        "this machine has no CA certificates, so that no https endpoint can be trusted. Install the package ca-certificates, or name a \
         bundle by SSL_CERT_FILE"
    )]
    NoCertificates,
    /// There is no object under the key.
    #[error("{0} failed: there is no such object. Check the key, or wait until its writer has finished")]
    NotFound(Box<Request>),
    /// There is no such bucket.
    #[error("{0} failed: there is no such bucket. Check the bucket's name and that the account owns it")]
    NoBucket(Box<Request>),
    /// The credentials were refused.
    #[error("{request} was denied ({detail}). Check the access key pair, its permissions and this machine's clock")]
    Denied {
        /// The request that was denied.
        request: Box<Request>,
        /// The service's answer.
        detail: String,
    },
    /// The service refuses a request for the time it was signed at.
    #[error(
        "{request} was refused: the service's clock and this machine's are too far apart ({}). Set this machine's clock: \
         timedatectl set-ntp true", skew_text(*.skew_seconds)
    )]
    Clock {
        /// The request that was refused.
        request: Box<Request>,
        /// Seconds that this machine's clock is ahead of the service's; `None` where its answer has no date.
        skew_seconds: Option<f64>,
    },
    /// The bucket can be read with these credentials but not written.
    #[error("{request} was denied ({detail}), although the bucket can be read: the key pair is read-only. Use the write pair")]
    ReadOnly {
        /// The write that was denied.
        request: Box<Request>,
        /// The service's answer.
        detail: String,
    },
    /// No answer: refused, unresolved, TLS failure or time-out.
    #[error("{request} failed: the endpoint cannot be reached ({detail}). Check the endpoint's address, the network and DNS")]
    Unreachable {
        /// The request that got no answer.
        request: Box<Request>,
        /// The transport's reason.
        detail: String,
    },
    /// The service asks to slow down.
    #[error("{request} was throttled ({detail}). Retry later and less often")]
    Throttled {
        /// The request that was throttled.
        request: Box<Request>,
        /// The service's answer.
        detail: String,
    },
    /// The object is larger than the caller allows.
    #[error("{request} refused: the object has more than the {limit} bytes allowed here. Raise the limit if that is expected")]
    TooLarge {
        /// The request whose object is too large.
        request: Box<Request>,
        /// Bytes allowed.
        limit: u64,
    },
    /// The bytes read back are not the bytes written.
    #[error("{0} gave other bytes than were just written. Do not use this bucket: it is cached or shared")]
    ReadBack(Box<Request>),
    /// The object is another one than when the reading began.
    #[error("{0} failed: the object was replaced while it was read. Read it again")]
    Replaced(Box<Request>),
    /// A local file could not be read or written.
    #[error("{path}: {source}. Check the path, its permissions and the free space")]
    Local {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Any other answer.
    #[error("{request} failed with status {status}: {detail}. Check the endpoint's own logs")]
    Other {
        /// The request that failed.
        request: Box<Request>,
        /// HTTP status, 0 where there was none.
        status: u16,
        /// The service's answer.
        detail: String,
    },
}

impl BucketError {
    /// Whether the same request may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Throttled { .. } => true,
            // S3 may find out that it failed after it has said 200; then the error is in the body.
            Self::Other { status, .. } => *status >= 500 || *status == 200,
            _ => false,
        }
    }

    /// Whether the service asked to slow down.
    pub fn is_throttled(&self) -> bool {
        matches!(self, Self::Throttled { .. })
    }

    pub(super) fn classify<E>(request: Request, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let request = Box::new(request);
        let (status, code) = match error {
            SdkError::ServiceError(answer) => (answer.raw().status().as_u16(), answer.err().code().unwrap_or_default()),
            SdkError::ResponseError(answer) => (answer.raw().status().as_u16(), ""),
            SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => {
                return Self::Unreachable { request, detail: brief(error) };
            }
            _ => return Self::Other { request, status: 0, detail: brief(error) },
        };
        // Whatever a service says, it is shown and kept on record.
        let cut = |text: &str| text.chars().take(WORDS).collect::<String>();
        let detail = match error.message() {
            Some(message) => format!("{} {}, status {status}", cut(code), cut(message)),
            None if was_too_long(error) => format!("its answer has more than {ANSWER_BYTES} bytes, status {status}"),
            None => format!("{} status {status}", cut(code)),
        };
        match (status, code) {
            (_, "RequestTimeTooSkewed") => Self::Clock { request, skew_seconds: error.raw_response().and_then(skew_seconds) },
            (_, "NoSuchBucket") => Self::NoBucket(request),
            (404, _) => Self::NotFound(request),
            (412 | 416, _) => Self::Replaced(request),
            (429, _) | (_, "SlowDown" | "RequestLimitExceeded" | "Throttling" | "ThrottlingException") => {
                Self::Throttled { request, detail }
            }
            (401 | 403, _) | (_, "NotSignedUp" | "AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
                Self::Denied { request, detail }
            }
            _ => Self::Other { request, status, detail },
        }
    }
}

/// What this machine's clock is ahead of the service's, by the date of its answer.
fn skew_seconds(answer: &HttpResponse) -> Option<f64> {
    let date = DateTime::from_str(answer.headers().get("date")?, Format::HttpDate).ok()?;
    Some(clock::unix_seconds() - date.as_secs_f64())
}

fn skew_text(seconds: Option<f64>) -> String {
    match seconds {
        Some(seconds) if seconds < 0.0 => format!("this machine's is {:.0} s behind", -seconds),
        Some(seconds) => format!("this machine's is {seconds:.0} s ahead"),
        None => "by more than it allows, usually 15 minutes".into(),
    }
}

/// An error's text with those of its causes, cut: a context of the SDK would repeat whole responses.
fn brief(error: &(dyn std::error::Error + 'static)) -> String {
    with_causes(error).chars().take(WORDS).collect()
}
