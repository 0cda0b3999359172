//! What the worker does with a command: load, reload or change in place, prove, examine, or refuse with a reason and live on.
//!
//! ```text
//!            Reload ok                  Reload or Apply ok (in place)
//!  Empty ───────────────▶ Holding(revision) ───────────────▶ Holding(new revision)
//!    │ Reload refused         │ refused: old weights serve           │ copy broke off: the process ends
//!    ▼                        ▼                                      ▼
//!  Empty                  Holding(revision)                        exit 70
//! ```

use grail_link::message::{
    ApplyCommand, Examined, FromWorker, ProofJob, ProofSequence, ReloadCommand, Reloaded, Revision, SequenceProof, ToWorker,
    WorkerHello,
};
use grail_model::{
    ApplyError, AttentionKernel, ExamineTerms, LoadError, LoadOptions, Mode, Model, Numerics, Precision, Proof, ProveError,
    Prover, ReloadError, Runtime, Sequence,
};
use grail_process::clock;
use grail_protocol::commitment;

/// The worker's whole state: at most one model and the revision it was asked to hold.
pub struct Worker {
    options: LoadOptions,
    mode: Mode,
    numerics: Numerics,
    /// What heads of the usual shape are attended by, and what of the environment decides about TF32: what was said of it first.
    attention: AttentionKernel,
    tf32_overrides: Vec<String>,
    resident: Option<Resident>,
}

struct Resident {
    model: Model,
    prover: Prover,
    revision: Revision,
}

/// Something that only a new process can mend.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A reload or a change broke off in the middle.
    #[error("the reload of {revision} failed: {source}")]
    Unfit {
        /// The new revision.
        revision: Revision,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The device failed under a job; on CUDA the process can do nothing more with it.
    #[error("job {job} failed: {source}")]
    Device {
        /// The job.
        job: u64,
        /// What happened.
        source: ProveError,
    },
}

impl Worker {
    /// A worker without weights.
    pub fn new(
        runtime: &Runtime,
        precision: Precision,
        mode: Mode,
        numerics: Numerics,
        attention: AttentionKernel,
        tf32_overrides: Vec<String>,
    ) -> Self {
        let options = LoadOptions { device: runtime.device(), precision };
        Self { options, mode, numerics, attention, tf32_overrides, resident: None }
    }

    /// What the worker says of itself first.
    pub fn hello(&self, runtime: &Runtime, slot: u32) -> WorkerHello {
        WorkerHello {
            pid: std::process::id(),
            slot,
            device: runtime.device_label().to_owned(),
            device_name: runtime.model.clone(),
            driver: runtime.driver.clone(),
            libtorch: runtime.libtorch.clone(),
            dtype: self.options.precision.name_on(self.options.device).to_owned(),
            attention: self.attention.to_string(),
            precision_tuning: self.numerics.tuning().level(),
            tf32_overrides: self.tf32_overrides.clone(),
            mode: self.mode.name().to_owned(),
        }
    }

    /// Carries a command out; every answer goes through `send` as soon as it is known.
    ///
    /// # Errors
    /// When only a new process can go on.
    pub fn handle(&mut self, command: ToWorker, send: &mut dyn FnMut(FromWorker)) -> Result<(), Broken> {
        match command {
            ToWorker::Reload(command) => self.reload(&command, send),
            ToWorker::Apply(command) => self.apply(&command, send),
            ToWorker::Prove(job) => self.prove(&job, send),
        }
    }

    fn reload(&mut self, command: &ReloadCommand, send: &mut dyn FnMut(FromWorker)) -> Result<(), Broken> {
        let started = clock::monotonic();
        let revision = command.revision.clone();
        let taken = match self.take(command) {
            Err(source @ ReloadError::Unfit { .. }) => return Err(Broken::Unfit { revision, source: Box::new(source) }),
            taken => taken.map_err(|error| error.to_string()),
        };
        send(self.answer_reload(revision, taken, started.elapsed().as_secs_f64()));
        Ok(())
    }

    fn apply(&mut self, command: &ApplyCommand, send: &mut dyn FnMut(FromWorker)) -> Result<(), Broken> {
        let started = clock::monotonic();
        let revision = command.revision.clone();
        let applied = match &mut self.resident {
            Some(resident) if resident.revision == command.from => match resident.apply(command) {
                Err(source @ ApplyError::Unfit(_)) => return Err(Broken::Unfit { revision, source: Box::new(source) }),
                Err(error) => Err(error.to_string()),
                Ok(()) => {
                    resident.revision = revision.clone();
                    Ok(())
                }
            },
            Some(resident) => Err(format!("the changes start from {}, {} is resident", command.from, resident.revision)),
            None => Err(format!("the changes start from {}, no weights are resident", command.from)),
        };
        send(self.answer_reload(revision, applied, started.elapsed().as_secs_f64()));
        Ok(())
    }

    fn answer_reload(&self, revision: Revision, taken: Result<(), String>, seconds: f64) -> FromWorker {
        match (taken, &self.resident) {
            (Ok(()), Some(resident)) => {
                let reloaded = resident.describe(seconds);
                tracing::info!(%revision, weights_hash = reloaded.weights_hash, seconds, "The weights are resident.");
                FromWorker::Reloaded(reloaded)
            }
            (taken, _) => {
                let reason = taken.err().unwrap_or_else(|| "no weights are resident".to_owned());
                tracing::warn!(%revision, reason, "The weights are refused.");
                FromWorker::ReloadRefused { revision, reason }
            }
        }
    }

    /// Loads, or reloads in place. Unless the error is [`ReloadError::Unfit`], what was resident is so still.
    fn take(&mut self, command: &ReloadCommand) -> Result<(), ReloadError> {
        let revision = command.revision.clone();
        match &mut self.resident {
            Some(resident) => {
                resident.model.reload(&command.directory)?;
                resident.revision = revision;
            }
            None => {
                let model = Model::load(&command.directory, self.options).map_err(ReloadError::Refused)?;
                let model = model.with_attention(self.numerics.attention());
                let prover = Prover::new(&model, self.mode, grail_model::free_memory(model.device()));
                let attention = model
                    .attention_kernel()
                    .map_err(|source| ReloadError::Refused(LoadError::Torch { directory: command.directory.clone(), source }))?;
                tracing::info!(%model, mode = %self.mode, %attention, "The model is loaded.");
                if attention != self.attention {
                    // Every worker of the pool finds the same: it follows from the model's heads.
                    tracing::warn!(%attention, told = %self.attention, "The heads of this model are attended by another kernel than is usual.");
                }
                if self.mode != Mode::Exact {
                    tracing::info!(budget = %prover.budget(), "Batches are packed.");
                }
                self.resident = Some(Resident { model, prover, revision });
            }
        }
        Ok(())
    }

    fn prove(&mut self, job: &ProofJob, send: &mut dyn FnMut(FromWorker)) -> Result<(), Broken> {
        let started = clock::monotonic();
        let outcome = match self.ready_for(job) {
            Err(reason) => Err(reason),
            Ok(resident) => match compute(resident, job, send) {
                Ok(()) => Ok(resident.prover.take_time_beside()),
                Err(source @ ProveError::Torch(_)) if !source.is_out_of_memory() => {
                    return Err(Broken::Device { job: job.id, source });
                }
                Err(error) => Err(error.to_string()),
            },
        };
        send(match outcome {
            Ok(beside) => FromWorker::JobDone {
                job: job.id,
                seconds: started.elapsed().as_secs_f64(),
                seconds_beside: beside.as_secs_f64(),
            },
            Err(reason) => {
                tracing::warn!(job = job.id, reason, "The job is refused.");
                FromWorker::JobRefused { job: job.id, reason }
            }
        });
        Ok(())
    }

    /// What is resident, if it holds the job's revision and every sequence is one it can prove.
    fn ready_for(&mut self, job: &ProofJob) -> Result<&mut Resident, String> {
        let Some(resident) = &mut self.resident else {
            return Err(format!("revision {} is asked for, no weights are resident", job.revision));
        };
        if resident.revision != job.revision {
            return Err(format!("revision {} is asked for, {} is resident", job.revision, resident.revision));
        }
        for (index, sequence) in job.sequences.iter().enumerate() {
            if sequence.prompt_length as usize == sequence.tokens.len() {
                return Err(format!("sequence {index}: the completion is empty"));
            }
            if sequence.coefficients.contains(&i8::MIN) {
                return Err(format!("sequence {index}: a sketch coefficient is -128, want -127 to 127"));
            }
            resident.model.check_sequence(index, &borrow(sequence), 2).map_err(|error| error.to_string())?;
        }
        Ok(resident)
    }
}

impl Resident {
    fn apply(&mut self, command: &ApplyCommand) -> Result<(), ApplyError> {
        self.model.apply_files(&command.files, &command.revision.weights_hash)
    }

    fn describe(&self, seconds: f64) -> Reloaded {
        let config = self.model.config();
        let packed = self.prover.mode() != Mode::Exact;
        Reloaded {
            revision: self.revision.clone(),
            weights_hash: self.model.weights_hash().to_owned(),
            vocab_size: u32::try_from(config.vocab_size).unwrap_or(u32::MAX),
            max_positions: u32::try_from(config.max_position_embeddings).unwrap_or(u32::MAX),
            batch_bytes: packed.then(|| self.prover.budget().peak_bytes(config.max_position_embeddings) as u64),
            seconds,
        }
    }
}

fn borrow(sequence: &ProofSequence) -> Sequence<'_> {
    Sequence { tokens: &sequence.tokens, prompt_length: sequence.prompt_length as usize, coefficients: sequence.coefficients }
}

fn compute(resident: &mut Resident, job: &ProofJob, send: &mut dyn FnMut(FromWorker)) -> Result<(), ProveError> {
    let sequences: Vec<Sequence> = job.sequences.iter().map(borrow).collect();
    let terms = job.examine.map(|terms| ExamineTerms {
        temperature: terms.temperature,
        repetition_penalty: terms.repetition_penalty,
        eos_token_id: terms.eos_token_id,
    });
    let mut deliver = |index: usize, proof| send(FromWorker::Sequence(answer(job.id, index, proof)));
    resident.prover.prove(&resident.model, &sequences, terms.as_ref(), &mut deliver)
}

fn answer(job: u64, index: usize, proof: Proof) -> SequenceProof {
    let examined = proof
        .examined
        .map(|examined| Examined { eos_probability: examined.eos_probability, probabilities: examined.probabilities });
    SequenceProof {
        job,
        index: u32::try_from(index).unwrap_or(u32::MAX),
        commitments_hash: commitment::hash_sketches(&proof.sketches),
        sketches: proof.sketches,
        logprobs: proof.logprobs,
        examined,
    }
}
