//! Checkpoints that children refused.

use std::sync::Arc;

use grail_link::message::Revision;
use tokio::sync::watch;

/// The last checkpoint that a child refused since it was asked for, and why.
#[derive(Debug, Clone)]
pub(super) struct Refusals(Arc<watch::Sender<Option<(Revision, String)>>>);

impl Refusals {
    pub fn new() -> Self {
        Self(Arc::new(watch::channel(None).0))
    }

    /// A checkpoint is asked for (again).
    pub fn clear(&self) {
        self.0.send_replace(None);
    }

    /// A child refused it.
    pub fn tell(&self, revision: Revision, reason: String) {
        self.0.send_replace(Some((revision, reason)));
    }

    /// Waits until a child refuses `revision`, and says why.
    pub async fn of(&self, revision: &Revision) -> String {
        let mut refused = self.0.subscribe();
        let found = refused.wait_for(|last| last.as_ref().is_some_and(|(last, _)| last == revision)).await;
        match found.ok().and_then(|found| found.clone()) {
            Some((_, why)) => why,
            // Every child is down for good; none will ever refuse anything.
            None => std::future::pending().await,
        }
    }
}
