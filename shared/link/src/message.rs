//! What supervisor and children say to each other: one enum per direction.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which weights: the window of the checkpoint and the XXH3-128 of its tensors (grail-checkpoints 6).
///
/// Every completion and every proof carries the revision it was made with; a rollout whose two revisions differ is never signed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Revision {
    /// Window of the checkpoint.
    pub window: u64,
    /// 32 hex digits.
    pub weights_hash: String,
}

impl fmt::Display for Revision {
    /// The text that goes to a generation server as `weight_version`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.window, self.weights_hash)
    }
}

/// Take these weights: the first one loads a model, a later one copies into the resident tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadCommand {
    /// What the directory holds.
    pub revision: Revision,
    /// A complete, verified checkpoint directory.
    pub directory: PathBuf,
    /// File name to SHA-256 of every file of the directory.
    pub manifest: BTreeMap<String, String>,
}

/// Go from one revision to another by what changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyCommand {
    /// What must be resident.
    pub from: Revision,
    /// What is resident afterwards.
    pub revision: Revision,
    /// Files to apply in this order: safetensors with `T.positions` (u32, ascending, flat, row-major) and `T.values` for every
    /// changed tensor `T`.
    pub files: Vec<PathBuf>,
}

/// Supervisor to proof worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Load or reload; answered by [`FromWorker::Reloaded`] or [`FromWorker::ReloadRefused`].
    Reload(ReloadCommand),
    /// Change the resident tensors in place; answered like a reload.
    Apply(ApplyCommand),
    /// Prove (or examine) a batch; answered by one [`FromWorker::Sequence`] each, then [`FromWorker::JobDone`], or by
    /// [`FromWorker::JobRefused`] alone.
    Prove(ProofJob),
}

/// A batch of rollouts, forwarded in chunks of 16 in the given order (grail-protocol 5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProofJob {
    /// Names the job in every answer.
    pub id: u64,
    /// The weights it needs; a worker that holds others refuses the job.
    pub revision: Revision,
    /// The rollouts, in order.
    pub sequences: Vec<ProofSequence>,
    /// What a validator wants to know beyond the proof.
    pub examine: Option<ExamineTerms>,
}

/// One rollout to be proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofSequence {
    /// Prompt ids, then completion ids.
    pub tokens: Vec<u32>,
    /// Number of prompt tokens.
    pub prompt_length: u32,
    /// The 16 sketch coefficients of the rollout's beacon, each in -127..=127.
    pub coefficients: [i8; 16],
}

/// The sampling policy that termination and distribution are judged by (grail-validation 7 and 9).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExamineTerms {
    /// Sampling temperature.
    pub temperature: f64,
    /// Repetition penalty over all tokens before a position.
    pub repetition_penalty: f64,
    /// The tokenizer's single end-of-sequence id.
    pub eos_token_id: u32,
}

/// Proof worker to supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// First message: who is there.
    Hello(WorkerHello),
    /// The weights are resident.
    Reloaded(Reloaded),
    /// The weights could not be taken; what was resident before still serves.
    ReloadRefused {
        /// What was asked for.
        revision: Revision,
        /// Why not.
        reason: String,
    },
    /// The result of one sequence of a job, sent as soon as it is there.
    Sequence(SequenceProof),
    /// Every sequence of the job was answered.
    JobDone {
        /// The job.
        job: u64,
        /// Wall time of the job in the worker, seconds.
        seconds: f64,
        /// Of it, host time that went into anything but the forward pass: packing, sketches, hashes, handing over.
        seconds_beside: f64,
    },
    /// A frame that was too large to be read was dropped; whatever it asked for will not be done. The worker lives.
    FrameRefused {
        /// Its size and the limit.
        reason: String,
    },
    /// The job cannot be done by this or any worker; the worker lives.
    JobRefused {
        /// The job.
        job: u64,
        /// Why not.
        reason: String,
    },
}

/// What identifies a worker, and what a pool of workers must agree on: everything but pid, slot and the device's index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerHello {
    /// Process id, compared with the one that was started.
    pub pid: u32,
    /// Proof slot.
    pub slot: u32,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Why it computes on the CPU, in the loader's or libtorch's words; `None` on a GPU.
    pub device_reason: Option<String>,
    /// The device's own name, such as `NVIDIA H200`; on the CPU the instruction set of the kernels, such as `cpu AVX512`.
    pub device_name: String,
    /// Version of the CUDA driver, such as `13.0`; `None` on the CPU.
    pub driver: Option<String>,
    /// libtorch's version, as the loaded library states it.
    pub libtorch: String,
    /// `f32` or `bf16`: what the forward pass computes in.
    pub dtype: String,
    /// Attention kernel that libtorch's dispatcher takes, such as `flash` or `cpu-flash`, or `eager`.
    pub attention: String,
    /// Level of the precision tuning: 0, 1 or 2.
    pub precision_tuning: u8,
    /// Variables of the environment that decide about TF32, such as `NVIDIA_TF32_OVERRIDE=1`.
    pub tf32_overrides: Vec<String>,
    /// How sequences are put together for the forward pass, `exact` or `packed`.
    pub mode: String,
}

/// What is resident after a reload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What was asked for.
    pub revision: Revision,
    /// XXH3-128 of what is resident now.
    pub weights_hash: String,
    /// Vocabulary of the model's config: token ids are below it.
    pub vocab_size: u32,
    /// Longest sequence.
    pub max_positions: u32,
    /// Most bytes beside the weights that a packed batch takes; `None` where batches are composed as the reference does, whatever
    /// they take.
    pub batch_bytes: Option<u64>,
    /// Wall time, seconds.
    pub seconds: f64,
}

/// The proof of one sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceProof {
    /// The job.
    pub job: u64,
    /// Index of the sequence in the job.
    pub index: u32,
    /// One sketch per token, prompt included, in `[0, 2^31 - 1)`.
    pub sketches: Vec<u32>,
    /// Natural-log probability of each completion token, raw logits at temperature 1.
    pub logprobs: Vec<f32>,
    /// SHA-256 of the compact commitments text; the parent recomputes it before it signs.
    pub commitments_hash: [u8; 32],
    /// Present when the job asked for it.
    pub examined: Option<Examined>,
}

/// What termination and distribution need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Examined {
    /// Softmax of the second-last logits row at the end-of-sequence id, in the logits' dtype.
    pub eos_probability: f32,
    /// Probability of each chosen completion token under penalty and temperature.
    pub probabilities: Vec<f32>,
}

/// Supervisor to generation launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToLauncher {
    /// The first starts the server, a later one updates its weights; answered by [`FromLauncher::Serving`] or
    /// [`FromLauncher::ReloadRefused`].
    Reload(ReloadCommand),
}

/// Generation launcher to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromLauncher {
    /// First message.
    Hello {
        /// Process id, compared with the one that was started.
        pid: u32,
        /// `embedded`, later `sglang` or `vllm`.
        backend: String,
    },
    /// The server answers requests with these weights, as its own `weight_version` confirms.
    Serving {
        /// The weights.
        revision: Revision,
        /// `http://127.0.0.1:port`.
        url: String,
        /// Longest prompt plus completion.
        context_length: u32,
    },
    /// The weights could not be taken; what was resident before still serves.
    ReloadRefused {
        /// What was asked for.
        revision: Revision,
        /// Why not.
        reason: String,
    },
}

/// What a [reader](FromReader) is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// The prompt ids for this user message.
    Prompt(String),
    /// The text of these ids, special tokens kept.
    Text(Vec<u32>),
}

/// Supervisor to the reader of a checkpoint's template and tokenizer: questions, answered one by one in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToReader {
    /// Several at once, so that a wave of them costs few messages.
    pub questions: Vec<Question>,
}

/// Reader to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromReader {
    /// Template and tokenizer are loaded, and have made a prompt.
    Opened {
        /// The id of the token that ends a turn.
        eos_token_id: u32,
    },
    /// They cannot be used. The reader ends.
    Refused {
        /// Why.
        reason: String,
    },
    /// To a [`Question::Prompt`].
    Prompt(Vec<u32>),
    /// To a [`Question::Text`].
    Text(String),
    /// To either, where template or tokenizer refuse.
    Failed {
        /// Why.
        reason: String,
    },
}
