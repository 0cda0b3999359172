//! A pool of proof workers: one task per slot owns one worker; jobs wait in one queue and go to whichever worker is free
//! and holds the right revision. A job on a worker that dies goes back to the head of the queue, once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grail_link::message::{ExamineTerms, ProofJob, ProofSequence, ReloadCommand, Revision, WorkerHello};
use grail_process::Spawner;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::keep::keep;
use super::life::{Life, Muster};
use super::proof_slot::{Slot, policy};
use super::refusals::Refusals;
use super::session::Programs;
use crate::gpu::Gpus;
use crate::plan::ProofSlot;
use crate::status::Board;

/// How workers are started.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Where the programs are.
    pub programs: Programs,
    /// Folder of the sockets.
    pub sockets: std::path::PathBuf,
    /// Slots and their GPUs.
    pub slots: Vec<ProofSlot>,
    /// `auto`, `f32` or `bf16`.
    pub dtype: String,
    /// Threads of one worker on the CPU.
    pub threads: u32,
    /// Time a worker gets to end by itself.
    pub grace: Duration,
    /// What is known about its GPUs.
    pub gpus: Gpus,
}

/// The proof of one sequence, checked by the parent: lengths fit, and the hash is the one it computed itself.
#[derive(Debug, Clone)]
pub struct Proved {
    /// One sketch per token.
    pub sketches: Vec<u32>,
    /// One log-probability per completion token.
    pub logprobs: Vec<f32>,
    /// SHA-256 of the compact commitments text, recomputed here.
    pub commitments_hash: [u8; 32],
    /// Softmax at the end-of-sequence id in the second-last row; only of an examination.
    pub eos_probability: f32,
    /// Chosen-token probabilities under the sampling policy; only of an examination.
    pub probabilities: Vec<f32>,
}

/// Why a job gave no proof.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProofError {
    /// A worker looked at the job and refused it.
    #[error("the proof worker refused the job: {0}")]
    Refused(String),
    /// Two workers ended while they had the job, or the pool was stopped.
    #[error("the job was lost: {0}")]
    Lost(String),
    /// A worker answered with something that does not belong to the job.
    #[error("{worker} answered with a proof that must not be signed: {what}")]
    Wrong {
        /// The worker's name.
        worker: String,
        /// What does not fit.
        what: String,
    },
}

pub(super) type Answer = Result<Vec<Proved>, ProofError>;

pub(super) struct Pending {
    pub job: ProofJob,
    pub tries: u8,
    pub reply: oneshot::Sender<Answer>,
}

pub(super) struct Shared {
    queue: Mutex<VecDeque<Pending>>,
    pub arrived: Notify,
    /// What the first worker said it computes with; the others must agree.
    agreed: Mutex<Option<WorkerHello>>,
    pub refusals: Refusals,
    pub board: Board,
    pub spawner: Spawner,
    pub settings: WorkerSettings,
}

/// The pool. Dropping it ends the workers; [`ProofPool::stop`] waits until they are gone.
pub struct ProofPool {
    shared: Arc<Shared>,
    target: watch::Sender<Option<ReloadCommand>>,
    resident: watch::Receiver<Vec<Option<Revision>>>,
    next_job: std::sync::atomic::AtomicU64,
    stop: CancellationToken,
    slots: tokio::sync::Mutex<tokio::task::JoinSet<()>>,
    lives: Vec<(u32, Arc<Life>)>,
    muster: Arc<Muster>,
}

impl ProofPool {
    /// Starts a task per slot; the workers come up in the background.
    pub fn start(settings: WorkerSettings, spawner: Spawner, board: Board) -> Self {
        let slots = settings.slots.clone();
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            arrived: Notify::new(),
            agreed: Mutex::default(),
            refusals: Refusals::new(),
            board,
            spawner,
            settings,
        });
        let (target, wanted) = watch::channel(None);
        let (report, resident) = watch::channel(vec![None; slots.len()]);
        let report = Arc::new(report);
        let stop = CancellationToken::new();
        let muster = Muster::new("proof worker", slots.len());
        let mut tasks = tokio::task::JoinSet::new();
        let mut lives = Vec::new();
        for (place, slot) in slots.into_iter().enumerate() {
            let name = format!("proof-worker {}", slot.slot);
            let life = Life::new(name, policy(place), shared.board.clone(), muster.clone());
            lives.push((slot.slot, life.clone()));
            let task = Slot::new(shared.clone(), wanted.clone(), report.clone(), place, slot);
            let (gpus, stop) = (shared.settings.gpus.clone(), stop.clone());
            tasks.spawn(async move { keep(task, &life, &gpus, stop).await });
        }
        Self { shared, target, resident, next_job: Default::default(), stop, slots: tasks.into(), lives, muster }
    }

    /// Every worker shall hold these weights; idle ones reload at once, busy ones after their job. Asked again for weights that
    /// it refused, a worker tries again.
    pub fn reload(&self, command: ReloadCommand) {
        self.shared.refusals.clear();
        self.target.send_replace(Some(command));
    }

    /// Waits until at least one worker holds `revision`. The caller sets the time limit.
    pub async fn serving(&self, revision: &Revision) {
        let mut resident = self.resident.clone();
        let _ = resident.wait_for(|held| held.iter().flatten().any(|held| held == revision)).await;
    }

    /// Waits until a worker refuses `revision`, and says why. The caller sets the time limit.
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

    /// Proves one batch; the answer comes in the order of `sequences`. Dropping the future abandons the job.
    ///
    /// # Errors
    /// When a worker refuses it, two workers die over it, every worker is quarantined, or the answer does not fit.
    pub async fn prove(&self, revision: Revision, sequences: Vec<ProofSequence>, examine: Option<ExamineTerms>) -> Answer {
        let id = self.next_job.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let job = ProofJob { id, revision, sequences, examine };
        self.shared.put(Pending { job, tries: 0, reply }, false);
        tokio::select! {
            answer = answer => answer.unwrap_or_else(|_| Err(ProofError::Lost("the pool was stopped".into()))),
            () = self.none_left() => Err(ProofError::Lost("every proof worker is quarantined".into())),
        }
    }

    /// Ends every worker and waits until all are gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        while self.slots.lock().await.join_next().await.is_some() {}
    }

    /// Kills what [`ProofPool::stop`] has left, and waits until it is gone.
    pub async fn kill(&self) {
        self.slots.lock().await.shutdown().await;
    }

    /// Waits until every worker is quarantined.
    pub async fn none_left(&self) {
        self.muster.none_left().await;
    }

    /// Takes the worker of a slot out of service until the supervisor is restarted; its job goes to another one.
    pub fn quarantine(&self, slot: u32, why: &str) {
        let named = self.lives.iter().filter(|(number, _)| *number == slot);
        named.for_each(|(_, life)| life.condemn(why.to_owned()));
    }
}

impl Shared {
    pub fn put(&self, pending: Pending, first: bool) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if first {
            queue.push_front(pending)
        } else {
            queue.push_back(pending)
        }
        drop(queue);
        self.arrived.notify_waiters();
    }

    /// The next job that this revision can do; jobs nobody waits for any more are dropped on the way.
    pub fn take(&self, resident: &Revision) -> Option<Pending> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|pending| !pending.reply.is_closed());
        let place = queue.iter().position(|pending| pending.job.revision == *resident)?;
        queue.remove(place)
    }

    /// The first worker settles what the pool computes with; one that differs would make proofs the others cannot repeat.
    pub fn agree(&self, hello: &WorkerHello) -> Result<(), String> {
        let mut agreed = self.agreed.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = |hello: &WorkerHello| {
            let kind = hello.device.split(':').next().unwrap_or_default().to_owned();
            (kind, hello.dtype.clone(), hello.attention.clone(), hello.libtorch.clone())
        };
        match &*agreed {
            None => *agreed = Some(hello.clone()),
            Some(first) if facts(first) != facts(hello) => {
                return Err(format!("it computes with {:?}, the pool with {:?}", facts(hello), facts(first)));
            }
            Some(_) => {}
        }
        Ok(())
    }
}
