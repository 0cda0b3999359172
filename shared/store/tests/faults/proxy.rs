//! A proxy that spoils some of the answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::task::JoinHandle;

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 500.
    Internal,
    /// 503, as S3 and R2 throttle.
    SlowDown,
    /// 403, as S3 answers a clock that is 20 minutes ahead.
    Skewed,
    /// The connection is closed instead of an answer.
    Reset,
    /// The body ends after half.
    Truncated,
    /// The answer names another object's tag.
    WrongTag,
    /// No answer at all.
    Silent,
}

#[derive(Default)]
struct Shared {
    upstream: String,
    faults: Mutex<VecDeque<Fault>>,
    counts: Mutex<BTreeMap<String, u32>>,
    refuses_checksums: AtomicBool,
    /// Objects with this in their path change a byte on the way, each time another one.
    unsteady: Mutex<Option<&'static str>>,
    altered: AtomicUsize,
    client: reqwest::Client,
}

impl Shared {
    fn on_the_way(&self, uri: &str, bytes: Bytes) -> Bytes {
        if bytes.is_empty() || self.unsteady.lock().unwrap().is_none_or(|part| !uri.contains(part)) {
            return bytes;
        }
        let mut bytes = bytes.to_vec();
        let place = self.altered.fetch_add(1, Ordering::Relaxed) % bytes.len();
        bytes[place] ^= 1;
        bytes.into()
    }
}

/// A running proxy; it stops when dropped.
pub struct Proxy {
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Proxy {
    pub async fn start(upstream: String) -> Self {
        let shared = Arc::new(Shared { upstream, ..Shared::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(pass).with_state(shared.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, serving }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Spoils the next requests, in this order.
    pub fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.faults.lock().unwrap().extend(faults);
    }

    /// From now on answers 501 to whatever carries one of the newer SDKs' checksums.
    pub fn refuse_checksums(&self) {
        self.shared.refuses_checksums.store(true, Ordering::Relaxed);
    }

    /// From now on the bytes of what has `part` in its path differ with every download; `None`: they are those that are stored.
    pub fn unsteady(&self, part: Option<&'static str>) {
        *self.shared.unsteady.lock().unwrap() = part;
    }

    /// Requests of this method since it was asked last.
    pub fn take_count(&self, method: &str) -> u32 {
        std::mem::take(&mut *self.shared.counts.lock().unwrap()).remove(method).unwrap_or(0)
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    // Read whole, so that the answer is not taken for one to half a request.
    let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
    *shared.counts.lock().unwrap().entry(parts.method.to_string()).or_insert(0) += 1;
    let fault = shared.faults.lock().unwrap().pop_front();
    match fault {
        Some(Fault::Internal) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        Some(Fault::SlowDown) => refusal(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        Some(Fault::Skewed) => skewed(),
        Some(Fault::Reset) => Response::new(broken_body(Bytes::new())),
        Some(Fault::Silent) => std::future::pending().await,
        _ if shared.refuses_checksums.load(Ordering::Relaxed) && has_checksum(&parts.headers) => {
            refusal(StatusCode::NOT_IMPLEMENTED, "NotImplemented")
        }
        fault => forward(&shared, &parts.method, parts.uri.to_string(), parts.headers, body, fault).await,
    }
}

fn has_checksum(headers: &HeaderMap) -> bool {
    let encoded = headers.get("content-encoding").is_some_and(|value| value.to_str().unwrap().contains("aws-chunked"));
    encoded
        || headers.keys().any(|name| {
            name.as_str().starts_with("x-amz-checksum")
                || name.as_str().starts_with("x-amz-sdk-checksum")
                || name == "x-amz-trailer"
        })
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>A bad day.</Message></Error>");
    Response::builder().status(status).header("content-type", "application/xml").body(Body::from(text)).unwrap()
}

fn skewed() -> Response<Body> {
    let mut response = refusal(StatusCode::FORBIDDEN, "RequestTimeTooSkewed");
    let earlier = aws_smithy_types::DateTime::from(grail_process::clock::system() - Duration::from_secs(1200));
    let date = earlier.fmt(aws_smithy_types::date_time::Format::HttpDate).unwrap();
    response.headers_mut().insert("date", date.parse().unwrap());
    response
}

/// A body that ends with a closed connection.
fn broken_body(first: Bytes) -> Body {
    let pieces = [Ok(first), Err(std::io::Error::other("the proxy breaks off"))];
    Body::from_stream(futures::stream::iter(pieces))
}

async fn forward(
    shared: &Shared,
    method: &Method,
    uri: String,
    headers: HeaderMap,
    body: Bytes,
    fault: Option<Fault>,
) -> Response<Body> {
    let url = format!("{}{uri}", shared.upstream);
    // With the host that was signed.
    let answer = shared.client.request(method.clone(), url).headers(headers).body(body).send().await.unwrap();
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers().iter().filter(|(name, _)| *name != "transfer-encoding") {
        let value = if fault == Some(Fault::WrongTag) && name == "etag" { "\"another\"".parse().unwrap() } else { value.clone() };
        response = response.header(name, value);
    }
    let bytes = shared.on_the_way(&uri, answer.bytes().await.unwrap());
    let body = if fault == Some(Fault::Truncated) { broken_body(bytes.slice(..bytes.len() / 2)) } else { Body::from(bytes) };
    response.body(body).unwrap()
}
