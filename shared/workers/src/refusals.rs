//! Checkpoints that children refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use grail_link::message::Revision;
use tokio::sync::watch;

/// The last checkpoint that each child of a kind refused since it was asked for, and why.
#[derive(Debug, Clone)]
pub(super) struct Refusals {
    by_child: Arc<watch::Sender<BTreeMap<usize, (Revision, String)>>>,
    children: usize,
}

impl Refusals {
    /// Of so many children.
    pub fn new(children: usize) -> Self {
        Self { by_child: Arc::new(watch::channel(BTreeMap::new()).0), children }
    }

    /// A checkpoint is asked for (again).
    pub fn clear(&self) {
        self.by_child.send_replace(BTreeMap::new());
    }

    /// The child at this place refused it.
    pub fn tell(&self, child: usize, revision: Revision, reason: String) {
        self.by_child.send_modify(|refusals| {
            refusals.insert(child, (revision, reason));
        });
    }

    /// Waits until every child refuses `revision`, and says why one does: as long as another may take it, nothing is lost.
    pub async fn of(&self, revision: &Revision) -> String {
        let mut refused = self.by_child.subscribe();
        let all = |refusals: &BTreeMap<usize, (Revision, String)>| {
            refusals.values().filter(|(refused, _)| refused == revision).count() >= self.children
        };
        let found = refused.wait_for(all).await;
        match found.ok().and_then(|refusals| refusals.values().next().cloned()) {
            Some((_, why)) => why,
            // Every child is down for good; none will ever refuse anything.
            None => std::future::pending().await,
        }
    }
}
