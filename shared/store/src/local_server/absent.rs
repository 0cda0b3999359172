//! In the place of the server in what a host installs.

use std::net::SocketAddr;

use tokio::task::JoinHandle;

use super::{LocalBucketSettings, LocalServerError};

pub(super) async fn start(settings: &LocalBucketSettings) -> Result<(SocketAddr, JoinHandle<()>), LocalServerError> {
    Err(LocalServerError::NotBuilt { folder: settings.folder.clone() })
}
