//! The children of one kind, each kept by a task of its own.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::keep::{Kept, keep};
use super::life::{InService, Life};
use super::life_cycle::LifePolicy;
use crate::board::Board;
use crate::gpu::Gpus;
use crate::host::Children;

/// Children of one kind. Dropping it kills them; [`Team::stop`] waits until they are gone.
pub struct Team {
    kind: &'static str,
    in_service: Arc<InService>,
    stop: CancellationToken,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Team {
    /// So many children of a kind, none of which is started yet.
    pub fn new(kind: &'static str, count: usize) -> Self {
        Self { kind, in_service: InService::new(kind, count), stop: CancellationToken::new(), tasks: Default::default() }
    }

    /// Keeps a child from now on, until it is stopped or quarantined.
    pub fn keep(
        &mut self,
        child: impl Kept + Sync + 'static,
        name: String,
        policy: LifePolicy,
        board: &Board,
        gpus: Gpus,
    ) -> Arc<Life> {
        let life = Life::new(name, policy, board.clone(), self.in_service.clone());
        let (lived, stop) = (life.clone(), self.stop.clone());
        self.tasks.get_mut().spawn(async move { keep(child, &lived, &gpus, stop).await });
        life
    }

    /// Has a child attended to that somebody else runs, until the token is cancelled.
    pub fn attend<F: Future<Output = ()> + Send + 'static>(&mut self, task: impl FnOnce(CancellationToken) -> F) {
        self.tasks.get_mut().spawn(task(self.stop.clone()));
    }

    /// Waits until every child is quarantined.
    pub async fn none_left(&self) {
        self.in_service.none_left().await;
    }

    /// Ends every child and waits until all are gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        while self.tasks.lock().await.join_next().await.is_some() {}
    }

    /// Kills what [`Team::stop`] has left, and waits until it is gone.
    pub async fn kill(&self) {
        self.tasks.lock().await.shutdown().await;
    }
}

/// For a workload with children of one kind.
impl Children for Arc<Team> {
    async fn none_left(&self) -> String {
        Team::none_left(self).await;
        format!("every {}", self.kind)
    }

    async fn stop(&self) {
        Team::stop(self).await;
    }

    async fn kill(&self) {
        Team::kill(self).await;
    }
}
