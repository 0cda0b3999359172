//! The server itself, on top of s3s.

use std::net::SocketAddr;
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

use super::{LocalBucketSettings, LocalServerError};

/// Connections served at the same time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 256;
/// Time for a client to send its request's headers.
const HEADER_LIMIT: Duration = Duration::from_secs(15);

/// Listens and serves. The server stops when the task is aborted.
pub(super) async fn start(settings: &LocalBucketSettings) -> Result<(SocketAddr, JoinHandle<()>), LocalServerError> {
    create_folders(settings)?;
    let service = service_of(settings)?;
    let refused = |source| LocalServerError::Address { address: settings.address, source };
    let listener = TcpListener::bind(settings.address).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok((address, tokio::spawn(accept(listener, service))))
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

fn service_of(settings: &LocalBucketSettings) -> Result<S3Service, LocalServerError> {
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
