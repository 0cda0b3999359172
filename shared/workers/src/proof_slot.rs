//! One proof slot: what its worker is started with, asked for and believed.

use std::ffi::OsString;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use grail_link::message::{
    ApplyCommand, FromWorker, ProofJob, ProofSequence, ReloadCommand, Reloaded, Revision, SequenceProof, ToWorker,
};
use grail_link::{Connection, FrameError, LinkError, Outbox};
use grail_process::clock;
use grail_protocol::commitment::hash_sketches;
use grail_protocol::constants::PRIME_Q;
use grail_settings::WorkerNumerics;
use grail_supervision::children::{
    Cause, ChildEvent, Event, Incoming, Kept, Life, LifePolicy, Opening, ProgressPolicy, RestartPolicy, broken, unexpected,
};
use tokio::sync::watch;

use super::agreement::on_its_device;
use super::job_queue::Pending;
use super::programs::ChildPrograms;
use super::proof::{Answer, ProofError, Proved, ProvedBatch};
use super::proof_shared::{Shared, Target};
use crate::plan::ProofSlot;

/// A job is tried on two workers: a second death is blamed on the job.
const TRIES: u8 = 2;
/// Sequences that a worker forwards at once; the first of them is answered when all are computed (grail-protocol 5).
const CHUNK: usize = 16;
/// More sequences than any job has.
const MAX_SEQUENCES: usize = 4096;

/// Longest time until a worker says hello, on the CPU …
const START_UP: Duration = Duration::from_secs(60);
/// … and on a GPU, where it loads CUDA's libraries, gigabytes of them from a cold disk, and without persistence mode the driver.
const COLD_START_UP: Duration = Duration::from_secs(240);

/// What the worker at a place of the pool is judged by.
pub(super) fn policy(place: usize, on_gpu: bool) -> LifePolicy {
    LifePolicy {
        restart: RestartPolicy::default(),
        stagger: Duration::from_millis(250) * u32::try_from(place).unwrap_or(u32::MAX).min(64),
        start_up: if on_gpu { COLD_START_UP } else { START_UP },
        cold_load: Duration::from_secs(900),
        warm_load: ProgressPolicy { floor: Duration::from_secs(60), ceiling: Duration::from_secs(900), factor: 10.0 },
        // The reference waits 600 s for a group's proofs (grail-miner 4).
        work: ProgressPolicy { floor: Duration::from_secs(10), ceiling: Duration::from_secs(600), factor: 8.0 },
        frozen: Duration::from_secs(4),
    }
}

/// Threads that each of so many workers reads its weights with: all of them read at once, when a checkpoint comes.
pub fn readers(workers: usize) -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    share(cores, workers)
}

fn share(cores: usize, workers: usize) -> u16 {
    u16::try_from(cores / workers.max(1)).unwrap_or(MOST_READERS).clamp(1, MOST_READERS)
}

/// More do not read faster from most disks and memories.
const MOST_READERS: u16 = 8;

/// What the worker of a slot is started with: arguments beside its socket, and variables.
pub fn started_with(
    slot: &ProofSlot,
    dtype: &str,
    threads: u32,
    readers: u16,
    numerics: WorkerNumerics,
    library_path: Option<&Path>,
) -> (Vec<OsString>, Vec<(OsString, OsString)>) {
    let mut arguments: Vec<OsString> = vec!["--slot".into(), slot.slot.to_string().into()];
    arguments.extend(["--device".into(), if slot.gpu.is_some() { "cuda" } else { "cpu" }.into()]);
    arguments.extend(["--dtype".into(), dtype.into()]);
    arguments.extend(["--threads".into(), threads.to_string().into()]);
    if slot.gpu.is_some() {
        // On the CPU the threads that compute are the cores that it is meant to have.
        arguments.extend(["--readers".into(), readers.to_string().into()]);
    }
    arguments.extend(["--mode".into(), numerics.mode.name().into()]);
    arguments.extend(["--precision-tuning".into(), numerics.precision_tuning.to_string().into()]);
    if numerics.force_eager_attention {
        arguments.extend(["--attention".into(), "eager".into()]);
    }
    // An empty list hides every GPU, so that a CPU slot can never open one.
    let mut environment: Vec<(OsString, OsString)> = vec![
        ("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()),
        ("CUDA_VISIBLE_DEVICES".into(), slot.gpu.clone().unwrap_or_default().into()),
        ("OMP_WAIT_POLICY".into(), "passive".into()),
    ];
    if numerics.precision_tuning == 2 {
        // cuBLAS reads it when it starts; without it products differ from run to run.
        environment.push(("CUBLAS_WORKSPACE_CONFIG".into(), ":4096:8".into()));
    }
    environment.extend(library_path.map(|folder| ("LD_LIBRARY_PATH".into(), in_front(folder))));
    (arguments, environment)
}

/// A folder in front of those that this process has: the driver's own libraries may lie in one of them.
fn in_front(folder: &Path) -> OsString {
    let mut path = OsString::from(folder);
    if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH").filter(|rest| !rest.is_empty()) {
        path.push(":");
        path.push(rest);
    }
    path
}

/// One slot's task. It alone changes the state of its worker.
pub(super) struct Slot {
    shared: Arc<Shared>,
    wanted: watch::Receiver<Target>,
    report: Arc<watch::Sender<Vec<Option<Revision>>>>,
    place: usize,
    slot: ProofSlot,
    gpus: Vec<String>,
    /// The job that the worker has. It outlives the worker.
    current: Option<Pending>,
}

impl Kept for Slot {
    type In = FromWorker;
    type Out = ToWorker;

    fn opening(&self) -> Opening<'_> {
        let settings = &self.shared.settings;
        let readers = readers(settings.slots.len());
        let library_path = settings.library_path.as_deref();
        let (arguments, environment) =
            started_with(&self.slot, &settings.dtype, settings.threads, readers, settings.numerics, library_path);
        Opening {
            spawner: &self.shared.spawner,
            program: settings.programs.path(ChildPrograms::ProofWorker),
            socket: settings.sockets.join(format!("proof-{}.sock", self.slot.slot)),
            arguments,
            environment,
        }
    }

    fn gpus(&self) -> &[String] {
        &self.gpus
    }

    fn grace(&self) -> Duration {
        self.shared.settings.grace
    }

    fn greet(&mut self, hello: FromWorker) -> Result<(), Cause> {
        match hello {
            FromWorker::Hello(hello) => {
                on_its_device(&self.slot, &hello).map_err(Cause::NoGpu)?;
                self.shared.agree(&hello).map_err(Cause::Differs)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Reloads when asked, works when there is work, until the worker fails.
    async fn serve(&mut self, link: Connection<FromWorker, ToWorker>, life: &Life) -> Cause {
        let mut worker = Worker::over(link);
        loop {
            match self.turn(&mut worker, life).await {
                Ok(()) => {}
                Err(cause) => return cause,
            }
        }
    }

    /// A job that the worker had when it ended goes back to the head of the queue, once.
    fn failing(&mut self, cause: &Cause, life: &Life) {
        let Some(mut pending) = self.current.take() else { return };
        pending.tries += 1;
        if *cause == Cause::Stopped || pending.tries >= TRIES {
            let why = if *cause == Cause::Stopped { "the pool was stopped" } else { "two workers ended while they had it" };
            let _ = pending.reply.send(Err(ProofError::Lost(why.into())));
        } else {
            life.board.event(ChildEvent::JobMoved { child: life.name.clone(), job: pending.job.id });
            self.shared.put(pending, true);
        }
    }

    fn vacated(&mut self, life: &Life) {
        self.report(None, life);
    }
}

impl Slot {
    /// The task of the slot at `place` of the pool.
    pub fn new(
        shared: Arc<Shared>,
        wanted: watch::Receiver<Target>,
        report: Arc<watch::Sender<Vec<Option<Revision>>>>,
        place: usize,
        slot: ProofSlot,
    ) -> Self {
        let gpus = slot.gpu.iter().cloned().collect();
        Self { shared, wanted, report, place, slot, gpus, current: None }
    }

    fn report(&self, held: Option<Revision>, life: &Life) {
        self.shared.board.child(&life.name, |child| child.revision = held.as_ref().map(ToString::to_string));
        self.report.send_modify(|slots| {
            if let Some(slot) = slots.get_mut(self.place) {
                *slot = held;
            }
        });
    }

    /// One reload, one job, or one wait.
    async fn turn(&mut self, worker: &mut Worker, life: &Life) -> Result<(), Cause> {
        if self.wanted.has_changed().unwrap_or(false) {
            worker.refused = None;
        }
        let Target { directory: wanted, change } = self.wanted.borrow_and_update().clone();
        if let Some(change) = change.filter(|change| worker.can_take(change)) {
            return self.change(worker, change, life).await;
        }
        if let Some(command) = wanted.filter(|command| worker.lacks(&command.revision)) {
            return self.load(worker, command, life).await;
        }
        let shared = self.shared.clone();
        let arrived = shared.arrived.notified();
        if let Some(pending) = shared.take(self.slot.slot) {
            return self.work(worker, pending, life).await;
        }
        tokio::select! {
            () = arrived => Ok(()),
            changed = self.wanted.changed() => changed.map_err(|_| Cause::Stopped),
            message = worker.incoming.receive() => Err(message.map_or_else(|cause| cause, |message| unexpected(&message))),
            // The queue may have been filled between the look and the wait.
            () = tokio::time::sleep(Duration::from_millis(200)) => Ok(()),
        }
    }

    async fn load(&self, worker: &mut Worker, command: ReloadCommand, life: &Life) -> Result<(), Cause> {
        let began = clock::monotonic();
        let revision = command.revision.clone();
        match self.ask_to_hold(worker, ToWorker::Reload(command), life).await? {
            Ok(reloaded) => self.settle(worker, revision, reloaded, began.elapsed(), life),
            // A checkpoint that a worker with other weights cannot take may still be one that a new worker can.
            Err(reason) if worker.resident.is_some() => {
                let why = format!("it could not take the checkpoint {revision} in place ({reason}); a new one will try");
                Err(Cause::WeightsUnfit(why))
            }
            // The worker lives and holds nothing. A checkpoint that cannot be loaded is no fault of the worker's.
            Err(reason) => {
                let child = life.name.clone();
                life.board.event(ChildEvent::Refused { child, revision: revision.to_string(), reason: reason.clone() });
                worker.refused = Some(revision.clone());
                self.shared.refusals.tell(self.place, revision, reason);
                life.tell(Event::Loaded);
                Ok(())
            }
        }
    }

    /// Takes the shorter way to a revision. A worker that refuses it holds what it held, and takes the whole later.
    async fn change(&self, worker: &mut Worker, command: ApplyCommand, life: &Life) -> Result<(), Cause> {
        let began = clock::monotonic();
        let revision = command.revision.clone();
        match self.ask_to_hold(worker, ToWorker::Apply(command), life).await? {
            Ok(reloaded) => self.settle(worker, revision, reloaded, began.elapsed(), life),
            Err(reason) => {
                tracing::warn!(child = life.name, %revision, reason, "The changes are refused; the whole checkpoint will be loaded.");
                worker.unchangeable = Some(revision);
                life.tell(Event::Loaded);
                Ok(())
            }
        }
    }

    /// Sends a reload or a change and waits for what comes of it: what is resident, or why not.
    async fn ask_to_hold(&self, worker: &mut Worker, message: ToWorker, life: &Life) -> Result<Result<Reloaded, String>, Cause> {
        self.report(None, life);
        life.tell(Event::Loading);
        worker.send(message).await?;
        grail_supervision::failpoint::pass("reloading").await;
        match worker.incoming.receive().await? {
            FromWorker::Reloaded(reloaded) => Ok(Ok(reloaded)),
            FromWorker::ReloadRefused { reason, .. } => Ok(Err(reason)),
            other => Err(unexpected(&other)),
        }
    }

    /// Believes what a worker says it holds if it is what was asked for.
    fn settle(
        &self,
        worker: &mut Worker,
        revision: Revision,
        reloaded: Reloaded,
        took: Duration,
        life: &Life,
    ) -> Result<(), Cause> {
        if reloaded.revision != revision || reloaded.weights_hash != revision.weights_hash {
            let held = reloaded.weights_hash;
            return Err(Cause::WeightsUnfit(format!("it holds weights {held} where {revision} was asked for")));
        }
        let (child, seconds) = (life.name.clone(), took.as_secs_f64());
        life.board.event(ChildEvent::Holds { child, revision: revision.to_string(), seconds });
        worker.resident = Some(revision.clone());
        self.report(Some(revision), life);
        life.tell(Event::Loaded);
        Ok(())
    }

    /// Does one job. An error means that the worker is lost, and leaves the job in `current`.
    async fn work(&mut self, worker: &mut Worker, pending: Pending, life: &Life) -> Result<(), Cause> {
        life.tell(Event::Work(units(&pending.job)));
        let job = self.current.insert(pending).job.clone();
        let answer = match worker.outbox.send(&ToWorker::Prove(job.clone())).await {
            // Nothing has left; the worker is none the wiser.
            Err(LinkError::Frame(error @ FrameError::TooLarge(_))) => Err(ProofError::Refused(error.to_string())),
            sent => {
                sent.map_err(broken)?;
                grail_supervision::failpoint::pass("proving").await;
                let proofs = worker.collect(job.id, life).await?;
                proofs.and_then(|proofs| check(&job, proofs, &life.name, self.slot.slot))
            }
        };
        let wrong = match &answer {
            Err(ProofError::Wrong { what, .. }) => Some(Cause::WrongProof(what.clone())),
            _ => None,
        };
        // Whoever waited may have given up meanwhile; then the proof is of no use.
        if let Some(pending) = self.current.take() {
            let _ = pending.reply.send(answer);
        }
        life.tell(Event::Idle);
        wrong.map_or(Ok(()), Err)
    }
}

/// What a worker computes before it answers anything: the tokens of its largest chunk, padded to the longest sequence.
fn units(job: &ProofJob) -> u64 {
    let padded = |chunk: &[ProofSequence]| chunk.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0) * chunk.len();
    job.sequences.chunks(CHUNK).map(padded).max().unwrap_or(0) as u64
}

/// The live side of a session: the link, and what the worker holds.
struct Worker {
    incoming: Incoming<FromWorker>,
    outbox: Outbox<ToWorker>,
    resident: Option<Revision>,
    refused: Option<Revision>,
    /// The revision that it cannot be changed to.
    unchangeable: Option<Revision>,
}

impl Worker {
    fn over(link: Connection<FromWorker, ToWorker>) -> Self {
        let Connection { inbox, outbox } = link;
        Self { incoming: Incoming::over(inbox), outbox, resident: None, refused: None, unchangeable: None }
    }

    fn can_take(&self, change: &ApplyCommand) -> bool {
        self.resident.as_ref() == Some(&change.from) && self.unchangeable.as_ref() != Some(&change.revision)
    }

    fn lacks(&self, revision: &Revision) -> bool {
        self.resident.as_ref() != Some(revision) && self.refused.as_ref() != Some(revision)
    }

    async fn send(&mut self, message: ToWorker) -> Result<(), Cause> {
        self.outbox.send(&message).await.map_err(broken)
    }

    async fn collect(&mut self, id: u64, life: &Life) -> Result<Result<Vec<SequenceProof>, ProofError>, Cause> {
        let mut proofs = Vec::new();
        loop {
            match self.incoming.receive().await? {
                FromWorker::Sequence(proof) if proof.job == id && proofs.len() < MAX_SEQUENCES => {
                    life.tell(Event::Advanced);
                    proofs.push(proof);
                }
                FromWorker::JobDone { job, .. } if job == id => return Ok(Ok(proofs)),
                FromWorker::JobRefused { job, reason } if job == id => return Ok(Err(ProofError::Refused(reason))),
                FromWorker::FrameRefused { reason } => return Ok(Err(ProofError::Refused(reason))),
                other => return Err(unexpected(&other)),
            }
        }
    }
}

/// Nothing a worker says is signed unseen: every length must fit and every hash is computed again here.
fn check(job: &ProofJob, mut proofs: Vec<SequenceProof>, name: &str, slot: u32) -> Answer {
    let wrong = |what: String| ProofError::Wrong { worker: name.to_owned(), what };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cores_are_shared_out_among_workers_that_read_at_once() {
        let cases = [((2, 1), 2), ((2, 2), 1), ((1, 4), 1), ((64, 4), 8), ((24, 8), 3), ((192, 1), 8), ((8, 0), 8)];
        for ((cores, workers), want) in cases {
            assert_eq!(share(cores, workers), want, "{cores} cores, {workers} workers");
        }
    }
}
