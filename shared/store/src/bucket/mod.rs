//! One bucket of an S3 service: path-style addressing, SigV4, no checksum headers beyond the required ones, so that every
//! S3 look-alike accepts the requests (grail-miner 2).

mod bounded;
mod download;
mod error;
mod growing;
mod retry;
mod transfer;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_async::time::TimeSource;
use aws_smithy_http_client::{Builder, tls};
use bytes::{Bytes, BytesMut};
use grail_process::{Meter, clock};
use grail_secrets::Address;

pub use download::FileDigest;
pub use error::{BucketError, Request};
pub use grail_secrets::Secret;
pub use growing::GrowingObject;
pub use retry::RetryPolicy;

/// Keys that one listing may return; a bucket with more is not this network's.
const MAX_LISTED_KEYS: usize = 200_000;
/// Pages of one listing, and bytes of all its keys. A page has a thousand keys at most, and need not have any.
const MAX_PAGES: usize = 1000;
const MAX_KEY_BYTES: usize = 64 << 20;
/// Prefix of the small object that [`Bucket::probe_write`] writes and removes.
const PROBE_PREFIX: &str = "grail/preflight-";

/// Where a bucket is and who asks.
#[derive(Clone, Debug)]
pub struct BucketSettings {
    /// `http://` or `https://` URL of the service, without bucket.
    pub endpoint: String,
    /// Region for the signature; R2 takes `us-east-1` as an alias of `auto`.
    pub region: String,
    /// Bucket name.
    pub bucket: String,
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: Secret,
    /// Time and size limits.
    pub limits: TransferLimits,
}

/// Limits of single requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferLimits {
    /// Time to connect.
    pub connect: Duration,
    /// Time to the answer's headers, and between two pieces of its body.
    pub reply: Duration,
    /// Time for one attempt to send an object or a part.
    pub send: Duration,
    /// Objects above this size are sent in parts of this size (S3 wants at least 5 MiB).
    pub part_bytes: u64,
}

impl Default for TransferLimits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(3), reply: seconds(30), send: seconds(90), part_bytes: 50 * 1024 * 1024 }
    }
}

/// The time that requests are signed with: a wall clock that is set by an hour must not make every signature too old.
#[derive(Debug)]
struct HostTime;

impl TimeSource for HostTime {
    fn now(&self) -> SystemTime {
        clock::system()
    }
}

/// What a bucket says about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectHead {
    /// Bytes.
    pub size: u64,
    /// Entity tag, with its quotes.
    pub etag: Option<String>,
    /// Time of the last write by the service's clock.
    pub last_modified: Option<SystemTime>,
}

/// A client for one bucket. Cloning is cheap and shares connections.
#[derive(Clone)]
pub struct Bucket {
    client: Client,
    endpoint: Address,
    name: String,
    limits: TransferLimits,
    reads: RetryPolicy,
    meter: Meter,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Bucket").field("endpoint", &self.endpoint).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bucket {
    /// Makes a client; nothing is sent yet.
    ///
    /// # Errors
    /// [`BucketError::Settings`] for an endpoint that is no URL, or an empty name or key; [`BucketError::NoCertificates`].
    pub fn new(settings: &BucketSettings) -> Result<Self, BucketError> {
        let secure = check_settings(settings)?;
        // The client would panic.
        if secure && rustls_native_certs::load_native_certs().certs.is_empty() {
            return Err(BucketError::NoCertificates);
        }
        let secret = settings.secret_access_key.reveal();
        let credentials = Credentials::new(&settings.access_key_id, secret, None, None, "settings");
        // Sending counts as waiting for the reply in this client, so its own read limit must allow a whole upload; the
        // shorter limits are set around each request.
        let timeouts =
            TimeoutConfig::builder().connect_timeout(settings.limits.connect).read_timeout(settings.limits.send).build();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http_client(secure))
            .time_source(HostTime)
            .endpoint_url(&settings.endpoint)
            .region(Region::new(settings.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .timeout_config(timeouts)
            .interceptor(bounded::SmallAnswers)
            // Repetition is decided in one place, by a `RetryPolicy`.
            .retry_config(RetryConfig::disabled())
            .build();
        Ok(Self {
            client: Client::from_conf(config),
            endpoint: settings.endpoint.as_str().into(),
            name: settings.bucket.clone(),
            limits: settings.limits.clone(),
            reads: RetryPolicy::default(),
            meter: Meter::default(),
        })
    }

    /// The same client, which counts the bytes that it has sent.
    #[must_use]
    pub fn metered(&self, meter: &Meter) -> Self {
        Self { meter: meter.clone(), ..self.clone() }
    }

    /// Bucket name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Endpoint URL.
    pub fn endpoint(&self) -> &str {
        self.endpoint.reveal()
    }

    /// Writes an object in one request, repeated as `policy` says.
    ///
    /// # Errors
    /// Every class of [`BucketError`] but `NotFound` and `TooLarge`.
    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>, policy: &RetryPolicy) -> Result<(), BucketError> {
        let bytes = bytes.into();
        retry::retry(policy, &self.request("PutObject", key), || self.put_once(key, ByteStream::from(bytes.clone()))).await
    }

    /// Reads an object of at most `limit` bytes.
    ///
    /// # Errors
    /// [`BucketError::NotFound`], [`BucketError::TooLarge`], or any other class.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Bytes, BucketError> {
        let request = self.request("GetObject", key);
        retry::retry(&self.reads, &request, || async {
            let mut bytes = BytesMut::new();
            let mut body = self.open(key, limit).await?;
            while let Some(piece) = self.next_piece(&request, &mut body).await? {
                if (bytes.len() + piece.len()) as u64 > limit {
                    return Err(BucketError::TooLarge { request: Box::new(request.clone()), limit });
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        })
        .await
    }

    /// What the bucket says about `key`, or `None` if there is no such object.
    ///
    /// # Errors
    /// Any class but `NotFound`.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectHead>, BucketError> {
        let request = self.request("HeadObject", key);
        let head = retry::retry(&self.reads, &request, || async {
            let sent = self.client.head_object().bucket(&self.name).key(key).send();
            self.replied(&request, sent).await?.map_err(|error| BucketError::classify(request.clone(), &error))
        });
        match head.await {
            Ok(head) => Ok(Some(ObjectHead {
                size: head.content_length().and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                etag: head.e_tag().map(str::to_owned),
                last_modified: head.last_modified().and_then(|time| SystemTime::try_from(*time).ok()),
            })),
            Err(BucketError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every key that starts with `prefix`, over all pages, in the service's (lexicographic) order.
    ///
    /// # Errors
    /// Any class; a listing of more than 200,000 keys, 64 MiB of them or 1,000 pages is refused.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, BucketError> {
        let request = self.request("ListObjectsV2", prefix);
        let (mut keys, mut bytes) = (Vec::new(), 0);
        let mut continuation = None;
        for _ in 0..MAX_PAGES {
            let page = retry::retry(&self.reads, &request, || async {
                let listing = self.client.list_objects_v2().bucket(&self.name).prefix(prefix);
                let sent = listing.set_continuation_token(continuation.clone()).send();
                self.replied(&request, sent).await?.map_err(|error| BucketError::classify(request.clone(), &error))
            })
            .await?;
            keys.extend(page.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
            bytes += page.contents().iter().filter_map(|object| object.key()).map(str::len).sum::<usize>();
            let next = page.next_continuation_token().map(str::to_owned);
            if keys.len() > MAX_LISTED_KEYS || bytes > MAX_KEY_BYTES {
                return Err(endless(
                    request,
                    format!("it has more than {MAX_LISTED_KEYS} keys, or {MAX_KEY_BYTES} bytes of them"),
                ));
            }
            if next.is_none() || next == continuation || !page.is_truncated().unwrap_or(false) {
                return Ok(keys);
            }
            continuation = next;
        }
        Err(endless(request, format!("it has more than {MAX_PAGES} pages")))
    }

    /// Removes an object; removing what is not there succeeds.
    ///
    /// # Errors
    /// Any class but `NotFound`.
    pub async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let request = self.request("DeleteObject", key);
        let deleted = retry::retry(&self.reads, &request, || async {
            let sent = self.client.delete_object().bucket(&self.name).key(key).send();
            self.replied(&request, sent).await?.map_err(|error| BucketError::classify(request.clone(), &error))
        });
        match deleted.await {
            Ok(_) | Err(BucketError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Preflight: writes a small object, reads it back and removes it.
    ///
    /// # Errors
    /// Says what an operator has to mend: [`BucketError::Unreachable`], [`BucketError::NoBucket`],
    /// [`BucketError::Denied`], or [`BucketError::ReadOnly`] when only the write is denied.
    pub async fn probe_write(&self) -> Result<(), BucketError> {
        // Never a pid: of two containers each has a process 1, and the one would remove what the other reads.
        let key = format!("{PROBE_PREFIX}{:016x}", rand::random::<u64>());
        let content = Bytes::from_static(b"grail-supervisor writes this to see whether it may.\n");
        match self.put(&key, content.clone(), &RetryPolicy::within(self.limits.reply)).await {
            Err(BucketError::Denied { request, detail }) if self.list(PROBE_PREFIX).await.is_ok() => {
                return Err(BucketError::ReadOnly { request, detail });
            }
            result => result?,
        }
        let read = self.get(&key, 1024).await;
        self.delete(&key).await?;
        if read? == content { Ok(()) } else { Err(BucketError::ReadBack(Box::new(self.request("GetObject", &key)))) }
    }

    fn request(&self, operation: &'static str, key: &str) -> Request {
        Request { operation, key: key.to_owned(), bucket: self.name.clone(), endpoint: self.endpoint.clone() }
    }

    async fn put_once(&self, key: &str, body: ByteStream) -> Result<(), BucketError> {
        let request = self.request("PutObject", key);
        let sent = self.client.put_object().bucket(&self.name).key(key).body(body).send();
        self.sent(&request, sent).await?.map_err(|error| BucketError::classify(request, &error))?;
        Ok(())
    }

    /// Starts a GET and checks the announced size.
    async fn open(&self, key: &str, limit: u64) -> Result<ByteStream, BucketError> {
        let request = self.request("GetObject", key);
        let sent = self.client.get_object().bucket(&self.name).key(key).send();
        let object = self.replied(&request, sent).await?.map_err(|error| BucketError::classify(request.clone(), &error))?;
        if object.content_length().is_some_and(|size| u64::try_from(size).is_ok_and(|size| size > limit)) {
            return Err(BucketError::TooLarge { request: Box::new(request), limit });
        }
        Ok(object.body)
    }

    async fn next_piece(&self, request: &Request, body: &mut ByteStream) -> Result<Option<Bytes>, BucketError> {
        let broken = |detail: String| BucketError::Unreachable { request: Box::new(request.clone()), detail };
        self.replied(request, body.try_next()).await?.map_err(|error| broken(format!("the download broke off: {error}")))
    }

    /// Waits for an answer no longer than the limit for replies.
    async fn replied<T>(&self, request: &Request, answer: impl Future<Output = T>) -> Result<T, BucketError> {
        within(self.limits.reply, request, answer).await
    }

    /// Waits for an upload no longer than the limit for sending.
    async fn sent<T>(&self, request: &Request, answer: impl Future<Output = T>) -> Result<T, BucketError> {
        within(self.limits.send, request, answer).await
    }
}

/// A listing that is no bucket's of this network.
fn endless(request: Request, detail: String) -> BucketError {
    BucketError::Other { request: Box::new(request), status: 0, detail }
}

async fn within<T>(limit: Duration, request: &Request, answer: impl Future<Output = T>) -> Result<T, BucketError> {
    tokio::time::timeout(limit, answer).await.map_err(|_| BucketError::Unreachable {
        request: Box::new(request.clone()),
        detail: format!("no answer within {:.1} s", limit.as_secs_f64()),
    })
}

/// Whether the endpoint wants TLS.
fn check_settings(settings: &BucketSettings) -> Result<bool, BucketError> {
    let wrong = |why: &str| Err(BucketError::Settings(format!("{why} (bucket \"{}\")", settings.bucket)));
    let host = settings.endpoint.strip_prefix("https://").or_else(|| settings.endpoint.strip_prefix("http://"));
    if host.is_none_or(str::is_empty) {
        return wrong(&format!(
            "the endpoint \"{}\" must begin with http:// or https://",
            Address::from(settings.endpoint.as_str())
        ));
    }
    if settings.bucket.trim().is_empty() || settings.region.trim().is_empty() {
        return wrong("bucket and region must not be empty");
    }
    if settings.access_key_id.trim().is_empty() || settings.secret_access_key.reveal().trim().is_empty() {
        return wrong("access key id and secret access key must not be empty");
    }
    Ok(settings.endpoint.starts_with("https://"))
}

/// Plain HTTP is for loopback services and needs no certificates on the machine.
fn http_client(secure: bool) -> SharedHttpClient {
    if secure {
        Builder::new().tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring)).build_https()
    } else {
        Builder::new().build_http()
    }
}
