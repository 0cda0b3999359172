//! An S3 server over a folder, for machines that have no bucket: demonstrations, tests and offline development.
//!
//! An object is written to a temporary file and renamed, so a reader sees the old bytes or the new ones and never a part.
//! Everything a bucket holds is a plain file `<folder>/<bucket>/<key>`.
//!
//! Only with the feature `local-server`, which what a host installs is built without: there it says so instead of starting.

#[cfg_attr(not(feature = "local-server"), path = "local_server/absent.rs")]
mod service;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

use crate::bucket::Secret;

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
    /// This program has none.
    #[error(
        "this program was built for hosts, without the local bucket server that would serve {folder}: name a bucket in [storage] \
         (bucket, account_id and both key pairs), or take a program of `cargo build`"
    )]
    NotBuilt {
        /// The folder.
        folder: PathBuf,
    },
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
        let (address, accepting) = service::start(settings).await?;
        tracing::info!(%address, folder = %settings.folder.display(), "A local bucket server stands in for R2: S3 over a folder, on loopback.");
        Ok(Self { address, accepting })
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
