//! Keeps one child alive: session after session, with the waits and the end that the life cycle decides.

use grail_link::message::Revision;
use grail_process::clock;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::life_cycle::{ChildState, LifeCycle, Next, RestartPolicy};
use crate::status::Board;

/// How a session with a child ended.
pub(super) enum Ended {
    /// The supervisor wants it so.
    Stopped,
    /// It died, hung or spoke nonsense; it is started again.
    Died(String),
    /// A restart cannot mend it; it stays down.
    Unfit(String),
}

/// A child that is kept: the task that runs [`keep`] is the only one that changes its state.
pub(super) trait Kept: Send {
    /// The child's name.
    fn name(&self) -> &str;
    /// Where its state is shown.
    fn board(&self) -> &Board;
    /// One life, from spawn to end.
    fn session(&mut self, stop: &CancellationToken) -> impl Future<Output = Ended> + Send;
    /// The child is gone; whatever it held is held no more.
    fn vacated(&mut self);

    /// Shows a state.
    fn show(&self, state: ChildState, why: Option<String>) {
        self.board().child(self.name(), |child| child.enter(state, why));
    }
}

/// Runs sessions until the child is stopped or quarantined.
pub(super) async fn keep(mut child: impl Kept, stop: CancellationToken) {
    let mut life = LifeCycle::new(RestartPolicy::default());
    let zero = clock::monotonic();
    loop {
        life.started(zero.elapsed());
        child.show(ChildState::Starting, None);
        let ended = child.session(&stop).await;
        child.vacated();
        let (why, next) = match ended {
            Ended::Stopped => return child.show(ChildState::Absent, None),
            Ended::Unfit(why) => (why, Next::Quarantine),
            Ended::Died(why) => (why, life.ended(zero.elapsed(), rand::random())),
        };
        let Next::RestartAfter(wait) = next else {
            tracing::error!(child = child.name(), why, "The child is quarantined; mend the cause and restart the supervisor.");
            return child.show(ChildState::Quarantined, Some(why));
        };
        tracing::warn!(child = child.name(), why, wait_ms = wait.as_millis() as u64, "The child ended and will be restarted.");
        child.show(ChildState::Backoff, Some(why));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return child.show(ChildState::Absent, None),
        }
    }
}

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
