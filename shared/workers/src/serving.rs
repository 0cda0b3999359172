//! Which server answers with which weights.

use grail_link::message::Revision;
use grail_secrets::Address;
use tokio::sync::watch;

/// A server that answers with known weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// The weights.
    pub revision: Revision,
    /// `http://127.0.0.1:port`, or where the operator says.
    pub url: Address,
    /// Longest prompt plus completion, in tokens.
    pub context_length: u32,
}

impl Serving {
    /// Waits until somebody serves `revision`; `None` when nobody ever will.
    pub async fn awaited(mut servings: watch::Receiver<Option<Self>>, revision: &Revision) -> Option<Self> {
        let found = servings.wait_for(|now| now.as_ref().is_some_and(|now| now.revision == *revision)).await;
        found.ok().and_then(|found| found.clone())
    }
}
