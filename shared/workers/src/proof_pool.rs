//! A pool of proof workers: one task per slot owns one worker; jobs wait in one queue and go to whichever worker is free
//! and holds the right revision. A job on a worker that dies goes back to the head of the queue, once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use grail_link::message::{ApplyCommand, ExamineTerms, ProofJob, ProofSequence, ReloadCommand, Revision};
use grail_process::Spawner;
use grail_supervision::board::Board;
use grail_supervision::children::{Life, Team};
use tokio::sync::{Notify, Semaphore, oneshot, watch};

use super::job_queue::Pending;
use super::proof::{Answer, ProofError};
use super::proof_shared::{Shared, Target, WorkerSettings};
use super::proof_slot::{Slot, policy};
use super::refusals::Refusals;

/// Jobs that may be waiting or under way, for each slot; whoever has more waits for a place.
const JOBS_PER_SLOT: usize = 16;

/// The pool. Dropping it ends the workers; [`ProofPool::stop`] waits until they are gone.
pub struct ProofPool {
    shared: Arc<Shared>,
    target: watch::Sender<Target>,
    resident: watch::Receiver<Vec<Option<Revision>>>,
    credits: Semaphore,
    next_job: std::sync::atomic::AtomicU64,
    team: Team,
    pub(super) lives: Vec<(u32, Arc<Life>)>,
}

impl ProofPool {
    /// Starts a task per slot; the workers come up in the background.
    pub fn start(settings: WorkerSettings, spawner: Spawner, board: Board) -> Self {
        let slots = settings.slots.clone();
        let (target, wanted) = watch::channel(Target::default());
        let (report, resident) = watch::channel(vec![None; slots.len()]);
        let report = Arc::new(report);
        let credits = Semaphore::new(slots.len() * JOBS_PER_SLOT);
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            arrived: Notify::new(),
            agreement: Mutex::default(),
            refusals: Refusals::new(slots.len()),
            board,
            spawner,
            settings,
            held: report.clone(),
        });
        let mut team = Team::new("proof worker", slots.len());
        let mut lives = Vec::new();
        for (place, slot) in slots.into_iter().enumerate() {
            let (number, name) = (slot.slot, format!("proof-worker {}", slot.slot));
            let policy = policy(place, slot.gpu.is_some());
            let worker = Slot::new(shared.clone(), wanted.clone(), report.clone(), place, slot);
            lives.push((number, team.keep(worker, name, policy, &shared.board, shared.settings.gpus.clone())));
        }
        Self { shared, target, resident, credits, next_job: Default::default(), team, lives }
    }

    /// Every worker shall hold these weights; idle ones reload at once, busy ones after their job. Asked again for weights that
    /// it refused, a worker tries again. Jobs for other weights that were not begun end with [`ProofError::Superseded`].
    pub fn reload(&self, command: ReloadCommand) {
        self.shared.refusals.clear();
        self.shared.queue().supersede(&command.revision);
        self.target.send_modify(|target| {
            target.change.take_if(|change| change.revision != command.revision);
            target.directory = Some(command);
        });
    }

    /// Workers that hold the revision that a change starts from shall apply it; idle ones at once, busy ones after their job.
    /// All others wait for [`ProofPool::reload`], as do those that refuse the change.
    pub fn apply(&self, change: ApplyCommand) {
        self.shared.refusals.clear();
        self.shared.queue().supersede(&change.revision);
        self.target.send_replace(Target { directory: None, change: Some(change) });
    }

    /// Waits until at least one worker holds `revision`. The caller sets the time limit.
    pub async fn serving(&self, revision: &Revision) {
        let mut resident = self.resident.clone();
        let _ = resident.wait_for(|held| held.iter().flatten().any(|held| held == revision)).await;
    }

    /// Waits until every worker refuses `revision`, and says why. The caller sets the time limit.
    pub async fn refusing(&self, revision: &Revision) -> String {
        self.shared.refusals.of(revision).await
    }

    /// Waits until every worker that is not quarantined holds `revision`, which spares a validation the difference between
    /// one and two cores; gives up when the first has it and `patience` is over.
    pub async fn all_serving(&self, revision: &Revision, patience: Duration) {
        let mut resident = self.resident.clone();
        let all = resident.wait_for(|held| held.iter().all(|held| held.as_ref() == Some(revision)));
        let _ = tokio::time::timeout(patience, all).await;
    }

    /// Proves one batch; the answer comes in the order of `sequences`. Waits while the pool has its fill of jobs. Dropping the
    /// future abandons the job.
    ///
    /// # Errors
    /// When a worker refuses it, two workers die over it, the answer does not fit, or the pool has gone over to other weights.
    pub async fn prove(&self, revision: Revision, sequences: Vec<ProofSequence>, examine: Option<ExamineTerms>) -> Answer {
        self.submit(revision, sequences, examine, Vec::new()).await
    }

    /// Proves one batch on a slot that is not in `not`. Where no other slot holds the weights any of them does it: the answer
    /// says which one did. Goes before other jobs, because somebody is in doubt about them.
    ///
    /// # Errors
    /// As [`ProofPool::prove`].
    pub async fn prove_elsewhere(&self, not: Vec<u32>, revision: Revision, sequences: Vec<ProofSequence>) -> Answer {
        self.submit(revision, sequences, None, not).await
    }

    async fn submit(
        &self,
        revision: Revision,
        sequences: Vec<ProofSequence>,
        examine: Option<ExamineTerms>,
        not: Vec<u32>,
    ) -> Answer {
        let stopped = || ProofError::Lost("the pool was stopped".into());
        let _credit = self.credits.acquire().await.map_err(|_| stopped())?;
        let id = self.next_job.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let job = ProofJob { id, revision, sequences, examine };
        let first = !not.is_empty();
        self.shared.put(Pending { job, not, tries: 0, reply }, first);
        tokio::select! {
            answer = answer => answer.unwrap_or_else(|_| Err(stopped())),
            () = self.none_left() => Err(ProofError::Lost("every proof worker is quarantined".into())),
        }
    }

    /// Takes the worker of a slot out of service until the supervisor is restarted. What it was doing goes to another one.
    /// The last slot that holds weights stays: without it nothing could be mined. Says whether the slot is out of service.
    pub fn quarantine(&self, slot: u32, why: &str) -> bool {
        let others = self.shared.holders().iter().any(|(holder, held)| *holder != slot && held.is_some());
        if others {
            let named = self.lives.iter().filter(|(number, _)| *number == slot);
            named.for_each(|(_, life)| life.condemn(why.to_owned()));
        }
        others
    }

    /// Replaces the workers of these slots by new processes, which read the weights again: of two that disagree either may hold
    /// damaged ones, and neither can say so.
    pub fn renew(&self, slots: &[u32], why: &str) {
        let named = self.lives.iter().filter(|(number, _)| slots.contains(number));
        named.for_each(|(_, life)| life.doubt(why.to_owned()));
    }

    /// Ends every worker and waits until all are gone.
    pub async fn stop(&self) {
        self.team.stop().await;
    }

    /// Kills what [`ProofPool::stop`] has left, and waits until it is gone.
    pub async fn kill(&self) {
        self.team.kill().await;
    }

    /// Waits until every worker is quarantined.
    pub async fn none_left(&self) {
        self.team.none_left().await;
    }
}

#[cfg(test)]
#[path = "proof_pool_tests.rs"]
mod tests;
