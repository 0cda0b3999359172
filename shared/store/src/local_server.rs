//! An S3 server over a folder, for machines that have no bucket: demonstrations, tests and offline development.
//!
//! An object is written to a temporary file and renamed, so a reader sees the old bytes or the new ones and never a part.
//! Everything a bucket holds is a plain file `<folder>/<bucket>/<key>`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{SecretKey, SimpleAuth};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::bucket::Secret;

/// Connections served at the same time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 256;
/// Time for a client to send its request's headers.
const HEADER_LIMIT: Duration = Duration::from_secs(15);

/// An access key pair.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: Secret,
}

/// What to serve and to whom.
#[derive(Clone, Debug)]
pub struct LocalBucketSettings {
    /// Folder that holds a subfolder per bucket; created if absent.
    pub folder: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub address: SocketAddr,
    /// The pair that may do everything.
    pub writer: KeyPair,
    /// A pair that may only read, like the one a miner publishes on chain.
    pub reader: Option<KeyPair>,
    /// Buckets to create.
    pub buckets: Vec<String>,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum LocalServerError {
    /// A bucket's name is not a plain folder name.
    #[error("\"{0}\" cannot be a bucket: use 3 to 63 lower-case letters, digits, dots and hyphens")]
    BucketName(String),
    /// The folder cannot be used.
    #[error("{path} cannot hold buckets: {source}. Check the path, its permissions and the free space")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("port {} of {} cannot be listened on: {source}. Stop the program that uses it, or choose another port", .address.port(), .address.ip())]
    Address {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct LocalBucketServer {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl LocalBucketServer {
    /// Starts a server with one key pair.
    ///
    /// # Errors
    /// See [`LocalServerError`].
    pub async fn start(
        folder: &Path,
        address: SocketAddr,
        access_key_id: &str,
        secret_access_key: &str,
        buckets: &[&str],
    ) -> Result<Self, LocalServerError> {
        let writer = KeyPair { access_key_id: access_key_id.into(), secret_access_key: Secret::new(secret_access_key) };
        let buckets = buckets.iter().map(|bucket| (*bucket).to_owned()).collect();
        Self::start_with(&LocalBucketSettings { folder: folder.to_owned(), address, writer, reader: None, buckets }).await
    }

    /// Starts a server.
    ///
    /// # Errors
    /// See [`LocalServerError`].
    pub async fn start_with(settings: &LocalBucketSettings) -> Result<Self, LocalServerError> {
        create_folders(settings)?;
        let service = service(settings)?;
        let refused = |source| LocalServerError::Address { address: settings.address, source };
        let listener = TcpListener::bind(settings.address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        tracing::info!(%address, folder = %settings.folder.display(), "A local bucket server stands in for R2: S3 over a folder, on loopback.");
        Ok(Self { address, accepting: tokio::spawn(accept(listener, service)) })
    }

    /// The URL for [`crate::bucket::BucketSettings::endpoint`].
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops and waits until the port is free and every connection closed.
    pub async fn stop(mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for LocalBucketServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn create_folders(settings: &LocalBucketSettings) -> Result<(), LocalServerError> {
    for bucket in &settings.buckets {
        if !s3s::path::check_bucket_name(bucket) {
            return Err(LocalServerError::BucketName(bucket.clone()));
        }
        let path = settings.folder.join(bucket);
        std::fs::create_dir_all(&path).map_err(|source| LocalServerError::Folder { path, source })?;
    }
    Ok(())
}

fn service(settings: &LocalBucketSettings) -> Result<S3Service, LocalServerError> {
    let unusable = |source| LocalServerError::Folder { path: settings.folder.clone(), source };
    let folder =
        s3s_fs::FileSystem::new(&settings.folder).map_err(|error| unusable(std::io::Error::other(format!("{error:?}"))))?;
    let mut keys = SimpleAuth::new();
    for pair in [Some(&settings.writer), settings.reader.as_ref()].into_iter().flatten() {
        keys.register(pair.access_key_id.clone(), SecretKey::from(pair.secret_access_key.reveal()));
    }
    let mut builder = S3ServiceBuilder::new(folder);
    builder.set_auth(keys);
    builder.set_access(WriterOnly { writer: settings.writer.access_key_id.clone() });
    Ok(builder.build())
}

/// Lets the writer do everything and any other known key read.
struct WriterOnly {
    writer: String,
}

#[async_trait::async_trait]
impl S3Access for WriterOnly {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = context.credentials() else {
            return Err(s3_error!(AccessDenied, "Signature is required"));
        };
        let reads = matches!(context.method().as_str(), "GET" | "HEAD");
        if reads || credentials.access_key == self.writer {
            return Ok(());
        }
        Err(s3_error!(AccessDenied, "This key pair may only read"))
    }
}

/// Serves connections until aborted; aborting it aborts them too, for they live in its set.
async fn accept(listener: TcpListener, service: S3Service) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                connections.spawn(async move {
                    serve(stream, service).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "A connection to the local bucket server could not be accepted.");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, service: S3Service) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "A connection to the local bucket server ended.");
    }
}
