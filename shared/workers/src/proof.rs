//! What proof workers answer, as far as it may be signed.

use grail_link::message::Revision;

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

pub(super) type Answer = Result<ProvedBatch, ProofError>;
