//! A pool of proof workers: one task per slot owns one worker; jobs wait in one queue and go to whichever worker is free
//! and holds the right revision. A job on a worker that dies goes back to the head of the queue, once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grail_link::Connection;
use grail_link::message::{
    ExamineTerms, FromWorker, ProofJob, ProofSequence, ReloadCommand, Revision, SequenceProof, ToWorker, WorkerHello,
};
use grail_process::{Child, Spawner, clock};
use grail_protocol::commitment::hash_sketches;
use grail_protocol::constants::PRIME_Q;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::keep::{Ended, Kept, Refusals, keep};
use super::life_cycle::ChildState;
use super::session::{self, ChildPrograms, Incoming, Opening, Programs, Session};
use crate::plan::ProofSlot;
use crate::status::Board;

/// Longest time of one job; the reference waits as long for a group's proofs (grail-miner 4).
const JOB_LIMIT: Duration = Duration::from_secs(600);
/// Longest time of a model load or reload.
const RELOAD_LIMIT: Duration = Duration::from_secs(900);
/// A job is tried on two workers: a second death is blamed on the job.
const TRIES: u8 = 2;
/// Jobs that may be waiting or under way, for each slot; whoever has more waits for a place.
const JOBS_PER_SLOT: usize = 16;

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

/// The proofs of one job, with where they come from.
#[derive(Debug, Clone)]
pub struct ProvedBatch {
    /// Proof slot of the worker that made them.
    pub worker: u32,
    /// The weights it held.
    pub revision: Revision,
    /// In the order of the job's sequences.
    pub proofs: Vec<Proved>,
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
    /// The pool went over to other weights before the job was begun.
    #[error("the pool holds other weights than {0} by now")]
    Superseded(Revision),
    /// A worker answered with something that does not belong to the job.
    #[error("{worker} answered with a proof that must not be signed: {what}")]
    Wrong {
        /// The worker's name.
        worker: String,
        /// What does not fit.
        what: String,
    },
}

type Answer = Result<ProvedBatch, ProofError>;

struct Pending {
    job: ProofJob,
    /// Slots that shall not do it as long as another one can.
    not: Vec<u32>,
    tries: u8,
    reply: oneshot::Sender<Answer>,
}

struct Shared {
    queue: Mutex<VecDeque<Pending>>,
    arrived: Notify,
    /// What the first worker said it computes with; the others must agree.
    agreed: Mutex<Option<WorkerHello>>,
    refusals: Refusals,
    board: Board,
    spawner: Spawner,
    settings: WorkerSettings,
    /// What each slot holds, in the order of the settings' slots.
    held: Arc<watch::Sender<Vec<Option<Revision>>>>,
    /// What every slot shall hold.
    target: Mutex<Option<Revision>>,
    /// Slots that are taken out of service, and why.
    banished: watch::Sender<BTreeMap<u32, String>>,
}

/// The pool. Dropping it ends the workers; [`ProofPool::stop`] waits until they are gone.
pub struct ProofPool {
    shared: Arc<Shared>,
    target: watch::Sender<Option<ReloadCommand>>,
    resident: watch::Receiver<Vec<Option<Revision>>>,
    credits: Semaphore,
    next_job: std::sync::atomic::AtomicU64,
    stop: CancellationToken,
    slots: tokio::sync::Mutex<tokio::task::JoinSet<()>>,
}

impl ProofPool {
    /// Starts a task per slot; the workers come up in the background.
    pub fn start(settings: WorkerSettings, spawner: Spawner, board: Board) -> Self {
        let slots = settings.slots.clone();
        let (target, wanted) = watch::channel(None);
        let (report, resident) = watch::channel(vec![None; slots.len()]);
        let report = Arc::new(report);
        let credits = Semaphore::new(slots.len() * JOBS_PER_SLOT);
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            arrived: Notify::new(),
            agreed: Mutex::default(),
            refusals: Refusals::new(),
            board,
            spawner,
            settings,
            held: report.clone(),
            target: Mutex::default(),
            banished: watch::channel(BTreeMap::new()).0,
        });
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        for (place, slot) in slots.into_iter().enumerate() {
            let name = format!("proof-worker {}", slot.slot);
            let task = Slot { shared: shared.clone(), wanted: wanted.clone(), report: report.clone(), place, slot, name };
            tasks.spawn(keep(task, stop.clone()));
        }
        Self { shared, target, resident, credits, next_job: Default::default(), stop, slots: tasks.into() }
    }

    /// Every worker shall hold these weights; idle ones reload at once, busy ones after their job. Asked again for weights that
    /// it refused, a worker tries again. Jobs for other weights that were not begun end with [`ProofError::Superseded`].
    pub fn reload(&self, command: ReloadCommand) {
        self.shared.refusals.clear();
        self.shared.supersede(&command.revision);
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
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Takes the worker of a slot out of service until the supervisor is restarted. What it was doing goes to another one.
    /// The last slot that holds weights stays: without it nothing could be mined. Says whether the slot is out of service.
    pub fn quarantine(&self, slot: u32, why: &str) -> bool {
        let others = self.shared.holders().iter().any(|(holder, held)| *holder != slot && held.is_some());
        if others {
            self.shared.banished.send_modify(|banished| {
                banished.entry(slot).or_insert_with(|| why.to_owned());
            });
        }
        others
    }

    /// Ends every worker and waits until all are gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        while self.slots.lock().await.join_next().await.is_some() {}
    }
}

impl Shared {
    fn put(&self, pending: Pending, first: bool) {
        // A job that came too late for its weights would wait for ever.
        if self.target().is_some_and(|target| target != pending.job.revision) {
            let superseded = ProofError::Superseded(pending.job.revision);
            let _ = pending.reply.send(Err(superseded));
            return;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if first {
            queue.push_front(pending)
        } else {
            queue.push_back(pending)
        }
        drop(queue);
        self.arrived.notify_waiters();
    }

    fn target(&self) -> Option<Revision> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The pool goes over to `revision`: jobs for others that were not begun end.
    fn supersede(&self, revision: &Revision) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(revision.clone());
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, ended) = std::mem::take(&mut *queue).into_iter().partition(|pending| pending.job.revision == *revision);
        *queue = kept;
        drop(queue);
        for pending in Vec::from(ended) {
            let superseded = ProofError::Superseded(pending.job.revision);
            let _ = pending.reply.send(Err(superseded));
        }
    }

    /// Each slot with the weights that it holds.
    fn holders(&self) -> Vec<(u32, Option<Revision>)> {
        self.settings.slots.iter().map(|slot| slot.slot).zip(self.held.borrow().iter().cloned()).collect()
    }

    /// The next job that this slot can do with these weights; jobs nobody waits for any more are dropped on the way.
    fn take(&self, resident: &Revision, slot: u32) -> Option<Pending> {
        let holders = self.holders();
        let elsewhere = |not: &[u32]| holders.iter().any(|(slot, held)| !not.contains(slot) && held.as_ref() == Some(resident));
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|pending| !pending.reply.is_closed());
        let can =
            |pending: &Pending| pending.job.revision == *resident && (!pending.not.contains(&slot) || !elsewhere(&pending.not));
        let place = queue.iter().position(can)?;
        queue.remove(place)
    }

    /// The first worker settles what the pool computes with; one that differs would make proofs the others cannot repeat.
    fn agree(&self, hello: &WorkerHello) -> Result<(), String> {
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

/// One slot's task. It alone changes the state of its worker.
struct Slot {
    shared: Arc<Shared>,
    wanted: watch::Receiver<Option<ReloadCommand>>,
    report: Arc<watch::Sender<Vec<Option<Revision>>>>,
    place: usize,
    slot: ProofSlot,
    name: String,
}

impl Kept for Slot {
    fn name(&self) -> &str {
        &self.name
    }

    fn board(&self) -> &Board {
        &self.shared.board
    }

    fn vacated(&mut self) {
        self.report(None);
    }

    async fn session(&mut self, stop: &CancellationToken) -> Ended {
        let opened = tokio::select! {
            opened = session::open::<FromWorker, ToWorker>(self.opening()) => opened,
            () = stop.cancelled() => return Ended::Stopped,
        };
        let Session { mut child, link, hello } = match opened {
            Ok(session) => session,
            Err(error) => return error.ended(),
        };
        let FromWorker::Hello(hello) = hello else { return Ended::Died("its first message was no hello".into()) };
        if let Err(why) = self.shared.agree(&hello) {
            return Ended::Unfit(why);
        }
        self.shared.board.child(&self.name, |shown| shown.pid = Some(child.pid()));
        self.show(ChildState::Ready, None);
        let mut worker = Worker::over(link);
        let banished = self.banished();
        let ended = tokio::select! {
            ended = self.serve(&mut worker) => ended,
            status = child.exited() => Ended::Died(format!("it ended ({status})")),
            why = banished => Ended::Unfit(why),
            () = stop.cancelled() => Ended::Stopped,
        };
        self.give_back(&mut worker, &ended);
        self.end(child).await;
        ended
    }
}

impl Slot {
    fn report(&self, held: Option<Revision>) {
        self.shared.board.child(&self.name, |child| child.revision = held.as_ref().map(ToString::to_string));
        self.report.send_modify(|slots| {
            if let Some(slot) = slots.get_mut(self.place) {
                *slot = held;
            }
        });
    }

    fn opening(&self) -> Opening<'_> {
        let settings = &self.shared.settings;
        let mut arguments = vec!["--slot".into(), self.slot.slot.to_string().into()];
        arguments.extend(["--dtype".into(), settings.dtype.clone().into()]);
        arguments.extend(["--threads".into(), settings.threads.to_string().into()]);
        Opening {
            spawner: &self.shared.spawner,
            name: &self.name,
            program: settings.programs.path(ChildPrograms::ProofWorker),
            socket: settings.sockets.join(format!("proof-{}.sock", self.slot.slot)),
            arguments,
            // An empty list hides every GPU, so that a CPU slot can never open one.
            environment: vec![
                ("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()),
                ("CUDA_VISIBLE_DEVICES".into(), self.slot.gpu.clone().unwrap_or_default().into()),
                ("OMP_WAIT_POLICY".into(), "passive".into()),
            ],
        }
    }

    /// Waits until the slot is taken out of service, and says why.
    fn banished(&self) -> impl Future<Output = String> + use<> {
        let (slot, mut banished) = (self.slot.slot, self.shared.banished.subscribe());
        async move {
            let found = banished.wait_for(|banished| banished.contains_key(&slot)).await.ok();
            match found.and_then(|banished| banished.get(&slot).cloned()) {
                Some(why) => why,
                None => std::future::pending().await,
            }
        }
    }

    async fn end(&self, mut child: Child) {
        child.stop(self.shared.settings.grace).await;
        self.shared.board.child(&self.name, |shown| shown.pid = None);
    }

    /// A job that the worker had when it ended goes back to the head of the queue, once.
    fn give_back(&self, worker: &mut Worker, ended: &Ended) {
        let Some(mut pending) = worker.current.take() else { return };
        pending.tries += 1;
        let why = match ended {
            Ended::Stopped => "the pool was stopped".to_owned(),
            Ended::Died(why) | Ended::Unfit(why) => why.clone(),
        };
        if matches!(ended, Ended::Stopped) || pending.tries >= TRIES {
            let _ = pending.reply.send(Err(ProofError::Lost(why)));
        } else {
            tracing::info!(child = %self.name, job = pending.job.id, "The worker's job goes to another one.");
            self.shared.put(pending, true);
        }
    }

    /// Reloads when asked, works when there is work, until the worker fails.
    async fn serve(&mut self, worker: &mut Worker) -> Ended {
        loop {
            if self.wanted.has_changed().unwrap_or(false) {
                worker.refused = None;
            }
            let wanted = self.wanted.borrow_and_update().clone();
            if let Some(command) = wanted.filter(|command| worker.lacks(&command.revision)) {
                if let Err(why) = self.load(worker, command).await {
                    return Ended::Died(why);
                }
                continue;
            }
            let arrived = self.shared.arrived.notified();
            let next = worker.resident.as_ref().and_then(|resident| self.shared.take(resident, self.slot.slot));
            if let Some(pending) = next {
                self.show(ChildState::Busy, None);
                if let Err(why) = worker.work(pending, &self.name, self.slot.slot).await {
                    return Ended::Died(why);
                }
                self.show(ChildState::Ready, None);
                continue;
            }
            tokio::select! {
                () = arrived => {}
                changed = self.wanted.changed() => if changed.is_err() { return Ended::Stopped },
                message = worker.incoming.recv() => return Ended::Died(session::unexpected(message)),
                // The queue may have been filled between the look and the wait.
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    async fn load(&self, worker: &mut Worker, command: ReloadCommand) -> Result<(), String> {
        self.show(ChildState::Starting, None);
        self.report(None);
        let revision = command.revision.clone();
        worker.send(ToWorker::Reload(command)).await?;
        crate::failpoint::pass("reloading").await;
        let reloaded = match worker.receive(RELOAD_LIMIT).await? {
            FromWorker::Reloaded(reloaded) => reloaded,
            // The worker lives and holds what it held. A checkpoint that cannot be loaded is no fault of the worker's.
            // A checkpoint that a worker with other weights cannot take may still be one that a new worker can.
            FromWorker::ReloadRefused { reason, .. } if worker.resident.is_some() => {
                return Err(format!("it could not take the checkpoint {revision} in place ({reason}); a new one will try"));
            }
            FromWorker::ReloadRefused { reason, .. } => {
                tracing::error!(child = %self.name, %revision, reason, "The worker refused the checkpoint.");
                worker.refused = Some(revision.clone());
                self.shared.refusals.tell(revision, reason);
                self.report(worker.resident.clone());
                self.show(ChildState::Ready, None);
                return Ok(());
            }
            other => return Err(session::unexpected(Some(Ok(other)))),
        };
        if reloaded.revision != revision || reloaded.weights_hash != revision.weights_hash {
            return Err(format!("it holds weights {} where {revision} was asked for", reloaded.weights_hash));
        }
        tracing::info!(child = %self.name, %revision, seconds = reloaded.seconds, "The worker holds the checkpoint.");
        worker.resident = Some(revision.clone());
        self.report(Some(revision));
        self.show(ChildState::Ready, None);
        Ok(())
    }
}

/// The live side of a session: the link, what the worker holds and what it is doing.
struct Worker {
    incoming: Incoming<FromWorker>,
    outbox: grail_link::Outbox<ToWorker>,
    resident: Option<Revision>,
    refused: Option<Revision>,
    current: Option<Pending>,
}

impl Worker {
    fn over(link: Connection<FromWorker, ToWorker>) -> Self {
        let Connection { inbox, outbox } = link;
        let incoming = session::forward(inbox);
        Self { incoming, outbox, resident: None, refused: None, current: None }
    }

    fn lacks(&self, revision: &Revision) -> bool {
        self.resident.as_ref() != Some(revision) && self.refused.as_ref() != Some(revision)
    }

    async fn send(&mut self, message: ToWorker) -> Result<(), String> {
        self.outbox.send(&message).await.map_err(|error| error.to_string())
    }

    async fn receive(&mut self, limit: Duration) -> Result<FromWorker, String> {
        match tokio::time::timeout(limit, self.incoming.recv()).await {
            Ok(Some(Ok(message))) => Ok(message),
            Ok(other) => Err(session::unexpected(other)),
            Err(_) => Err(format!("it gave no answer within {} s", limit.as_secs())),
        }
    }

    /// Does one job. An error means that the worker is lost, and leaves the job in `current`.
    async fn work(&mut self, pending: Pending, name: &str, slot: u32) -> Result<(), String> {
        let message = ToWorker::Prove(pending.job.clone());
        self.current = Some(pending);
        self.send(message).await?;
        crate::failpoint::pass("proving").await;
        let answer = match self.collect().await? {
            Ok(proofs) => self.check(proofs, name, slot),
            Err(refused) => Err(refused),
        };
        let wrong = match &answer {
            Err(error @ ProofError::Wrong { .. }) => Some(error.to_string()),
            _ => None,
        };
        // Whoever waited may have given up meanwhile; then the proof is of no use.
        if let Some(pending) = self.current.take() {
            let _ = pending.reply.send(answer);
        }
        wrong.map_or(Ok(()), Err)
    }

    async fn collect(&mut self) -> Result<Result<Vec<SequenceProof>, ProofError>, String> {
        let id = self.current.as_ref().map(|pending| pending.job.id);
        let limit = clock::monotonic() + JOB_LIMIT;
        let mut proofs = Vec::new();
        loop {
            match self.receive(limit.saturating_duration_since(clock::monotonic())).await? {
                FromWorker::Sequence(proof) if Some(proof.job) == id && proofs.len() < 4096 => proofs.push(proof),
                FromWorker::JobDone { job, .. } if Some(job) == id => return Ok(Ok(proofs)),
                FromWorker::JobRefused { job, reason } if Some(job) == id => return Ok(Err(ProofError::Refused(reason))),
                other => return Err(session::unexpected(Some(Ok(other)))),
            }
        }
    }

    /// Nothing a worker says is signed unseen: every length must fit and every hash is computed again here.
    fn check(&self, mut proofs: Vec<SequenceProof>, name: &str, slot: u32) -> Answer {
        let wrong = |what: String| ProofError::Wrong { worker: name.to_owned(), what };
        let job = self.current.as_ref().map(|pending| &pending.job).ok_or_else(|| wrong("no job is under way".into()))?;
        proofs.sort_by_key(|proof| proof.index);
        if proofs.len() != job.sequences.len() || proofs.iter().zip(0..).any(|(proof, index)| proof.index != index) {
            return Err(wrong(format!("{} proofs for {} sequences", proofs.len(), job.sequences.len())));
        }
        let checked = job
            .sequences
            .iter()
            .zip(proofs)
            .map(|(sequence, proof)| check_sequence(sequence, job.examine.is_some(), proof).map_err(&wrong));
        // The worker refuses a job for other weights than it holds, so the job's are its own.
        Ok(ProvedBatch { worker: slot, revision: job.revision.clone(), proofs: checked.collect::<Result<_, _>>()? })
    }
}

fn check_sequence(sequence: &ProofSequence, examined: bool, proof: SequenceProof) -> Result<Proved, String> {
    let completion = sequence.tokens.len().saturating_sub(sequence.prompt_length as usize);
    if proof.sketches.len() != sequence.tokens.len() || proof.logprobs.len() != completion {
        return Err(format!(
            "{} sketches and {} log-probabilities for {} tokens and {completion} completion tokens",
            proof.sketches.len(),
            proof.logprobs.len(),
            sequence.tokens.len()
        ));
    }
    if proof.sketches.iter().any(|sketch| *sketch >= PRIME_Q) || proof.logprobs.iter().any(|value| !value.is_finite()) {
        return Err("a sketch or log-probability that is no number of the protocol".into());
    }
    let commitments_hash = hash_sketches(&proof.sketches);
    if commitments_hash != proof.commitments_hash {
        return Err("its commitments hash differs from the one computed here".into());
    }
    let (eos_probability, probabilities) = match (examined, proof.examined) {
        (false, _) => (0.0, Vec::new()),
        (true, Some(seen)) if seen.probabilities.len() == completion => (seen.eos_probability, seen.probabilities),
        (true, _) => return Err("the examination that was asked for is missing".into()),
    };
    Ok(Proved { sketches: proof.sketches, logprobs: proof.logprobs, commitments_hash, eos_probability, probabilities })
}
