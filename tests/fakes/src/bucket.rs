//! S3 that lies: a proxy in front of the repository's own local S3 server. Requests pass unchanged, headers and all, so that
//! signatures hold; a cue decides which of them are answered otherwise.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use grail_store::bucket::Secret;
use grail_store::local_server::{KeyPair, LocalBucketServer, LocalBucketSettings};

use crate::http::{Reply, serve};

/// The miner's bucket, as the supervisor names it on its own local server.
pub const MINER_BUCKET: &str = "grail-miner";
const TRAINER_BUCKET: &str = "grail-trainer";
/// Access key id and secret that may write.
pub const WRITE_PAIR: (&str, &str) = ("local-write", "local-write-secret");
/// Access key id and secret that may read.
pub const READ_PAIR: (&str, &str) = ("local-read", "local-read-secret");
const BODY_LIMIT: usize = 350 << 20;

/// Which requests are lied about.
#[derive(Debug, Clone)]
pub struct BucketCue {
    /// `PUT`, `GET`, `HEAD`, `POST` or `DELETE`.
    pub method: Method,
    /// A part of the path with its query.
    pub path: &'static str,
    /// How many requests.
    pub count: u32,
    /// How.
    pub lie: BucketLie,
}

/// How the bucket fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketLie {
    /// The answer comes late by so many milliseconds.
    Slow(u64),
    /// Status 503 with the code `SlowDown`.
    SlowDown,
    /// Status 500.
    Status500,
    /// Status 403 with the code `AccessDenied`.
    Denied,
    /// The connection breaks while the request's body is under way; nothing is stored.
    CutRequest,
    /// The request is carried out, and the connection breaks before the answer.
    CutAnswer,
    /// The connection breaks in the middle of the answer's body.
    HalfAnAnswer,
    /// One byte of the answer's body is another.
    OtherBytes,
    /// The answer's body is shorter, and its length says so.
    Truncated,
    /// Status 200 with an error document inside; nothing is stored.
    ErrorInside,
    /// Status 200; nothing is stored.
    Lost,
    /// Status 200; what is stored differs in one byte.
    StoredDamaged,
    /// Status 404.
    Absent,
    /// No answer, ever.
    Hang,
}

#[derive(Debug, Default)]
struct Instructions {
    cues: Vec<BucketCue>,
    lies: Vec<(BucketLie, String)>,
}

/// A lying S3 server over a folder, with an honest one behind it. Both end when it is dropped.
#[derive(Debug)]
pub struct LyingBucket {
    address: SocketAddr,
    honest: String,
    told: Arc<Mutex<Instructions>>,
    _runtime: tokio::runtime::Runtime,
}

impl LyingBucket {
    /// Starts both servers over `folder`.
    ///
    /// # Errors
    /// When the folder or a port cannot be used.
    pub fn start(folder: &Path, cues: Vec<BucketCue>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let pair = |(id, secret): (&str, &str)| KeyPair { access_key_id: id.into(), secret_access_key: Secret::new(secret) };
        let settings = LocalBucketSettings {
            folder: folder.to_owned(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            writer: pair(WRITE_PAIR),
            reader: Some(pair(READ_PAIR)),
            buckets: vec![MINER_BUCKET.into(), TRAINER_BUCKET.into()],
        };
        let told = Arc::new(Mutex::new(Instructions { cues, lies: Vec::new() }));
        let (server, listener) = runtime.block_on(async {
            let server = LocalBucketServer::start_with(&settings).await?;
            anyhow::Ok((server, tokio::net::TcpListener::bind("127.0.0.1:0").await?))
        })?;
        let (address, honest) = (listener.local_addr()?, server.endpoint());
        let proxy = Arc::new(Proxy {
            client: reqwest::Client::builder().no_proxy().build()?,
            honest: honest.clone(),
            folder: folder.to_owned(),
            told: told.clone(),
            _server: server,
        });
        static TOLD: Once = Once::new();
        TOLD.call_once(|| eprintln!("Lying S3 proxies stand in for R2, each in front of a local server that is honest."));
        runtime.spawn(serve(listener, move |request| proxy.clone().answer(request)));
        Ok(Self { address, honest, told, _runtime: runtime })
    }

    /// Where the lies are told.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the same bucket is honest.
    pub fn honest_endpoint(&self) -> String {
        self.honest.clone()
    }

    /// From now on these lies, and no others.
    pub fn lie(&self, cues: Vec<BucketCue>) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).cues = cues;
    }

    /// The lies that were told, each with its request.
    pub fn lies(&self) -> Vec<(BucketLie, String)> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).lies.clone()
    }
}

struct Proxy {
    client: reqwest::Client,
    honest: String,
    folder: PathBuf,
    told: Arc<Mutex<Instructions>>,
    _server: LocalBucketServer,
}

impl Proxy {
    async fn answer(self: Arc<Self>, request: Request<hyper::body::Incoming>) -> Reply {
        let asked = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
        let lie = self.due(request.method(), &asked);
        let (parts, body) = request.into_parts();
        match lie {
            Some(BucketLie::Slow(milliseconds)) => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
            Some(BucketLie::SlowDown) => return error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
            Some(BucketLie::Status500) => return error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            Some(BucketLie::Denied) => return error(StatusCode::FORBIDDEN, "AccessDenied"),
            Some(BucketLie::ErrorInside) => {
                let _ = to_bytes(Body::new(body), BODY_LIMIT).await;
                return error(StatusCode::OK, "InternalError");
            }
            Some(BucketLie::Absent) => return Reply::Full(StatusCode::NOT_FOUND, HeaderMap::new(), Bytes::new()),
            Some(BucketLie::CutRequest) => return Reply::Cut,
            Some(BucketLie::Hang) => return Reply::Hang,
            Some(BucketLie::Lost) => {
                let _ = to_bytes(Body::new(body), BODY_LIMIT).await;
                return Reply::Full(StatusCode::OK, HeaderMap::new(), Bytes::new());
            }
            _ => {}
        }
        let Ok(body) = to_bytes(Body::new(body), BODY_LIMIT).await else { return Reply::Cut };
        let path = parts.uri.path().to_owned();
        match self.pass_on(parts, body).await {
            Ok((status, headers, bytes)) => self.altered(lie, &path, status, headers, bytes),
            Err(_) => Reply::Cut,
        }
    }

    /// The lie about this request, if one is due.
    fn due(&self, method: &Method, path: &str) -> Option<BucketLie> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let cue = told.cues.iter_mut().find(|cue| cue.count > 0 && cue.method == *method && path.contains(cue.path))?;
        cue.count -= 1;
        let lie = cue.lie;
        told.lies.push((lie, format!("{method} {path}")));
        Some(lie)
    }

    async fn pass_on(&self, parts: axum::http::request::Parts, body: Bytes) -> anyhow::Result<(StatusCode, HeaderMap, Bytes)> {
        let target = parts.uri.path_and_query().context("a request has a path")?;
        let mut headers = parts.headers;
        headers.remove(CONNECTION);
        let sent = self.client.request(parts.method, format!("{}{target}", self.honest)).headers(headers).body(body).send();
        let answer = sent.await?;
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        headers.remove(TRANSFER_ENCODING);
        headers.remove(CONNECTION);
        Ok((status, headers, answer.bytes().await?))
    }

    fn altered(&self, lie: Option<BucketLie>, path: &str, status: StatusCode, mut headers: HeaderMap, bytes: Bytes) -> Reply {
        match lie {
            Some(BucketLie::CutAnswer) => Reply::Cut,
            Some(BucketLie::HalfAnAnswer) => Reply::Half(status, headers, bytes),
            Some(BucketLie::OtherBytes) => Reply::Full(status, headers, flipped(&bytes).into()),
            Some(BucketLie::Truncated) => {
                headers.remove(CONTENT_LENGTH);
                Reply::Full(status, headers, bytes.slice(..bytes.len() / 2))
            }
            Some(BucketLie::StoredDamaged) => {
                let stored = self.folder.join(path.trim_start_matches('/'));
                let damaged = std::fs::read(&stored).and_then(|bytes| std::fs::write(&stored, flipped(&bytes)));
                if damaged.is_ok() { Reply::Full(status, headers, bytes) } else { Reply::Cut }
            }
            _ => Reply::Full(status, headers, bytes),
        }
    }
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x40;
    }
    bytes
}

fn error(status: StatusCode, code: &str) -> Reply {
    let document = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>the script says so</Message></Error>");
    Reply::text(status, "application/xml", document)
}
