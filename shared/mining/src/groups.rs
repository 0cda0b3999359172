//! One group from its index to sixteen signed rows (DESIGN "How one rollout travels").
//!
//! ```text
//!  index → seed → task → prompt ids → 16 completions ‖ rewards → proof job → judged → advantages → signatures
//! ```
//!
//! A group is kept whole or dropped whole. Whatever a validator would refuse is refused here first.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use grail_environments::{Evaluation, Prompt, Unjudged};
use grail_link::message::{ExamineTerms, ProofSequence, Revision};
use grail_process::clock;
use grail_protocol::advantage::advantages;
use grail_protocol::binding::Binding;
use grail_protocol::constants::{CHALLENGE_K, LAYER_INDEX, PROOF_VERSION, ROLLOUTS_PER_PROBLEM};
use grail_protocol::derivation::{challenge_text, environment_seed, hash_tokens, nonce};
use grail_protocol::keys::Hotkey;
use grail_protocol::row::{Commit, Commitments, ModelReference, Rollout, WindowRow};
use grail_protocol::validation::distribution::Metrics;
use grail_subnet::terms::Terms;
use grail_workers::completions::{Completion, Completions, fits};
use grail_workers::{Generator, ProofError, ProofPool, Proved, ProvedBatch};

use crate::status::Board;

/// The validator wants 0.02 of its own forward pass; the margin is for the drift between two machines.
const MIN_EOS_PROBABILITY: f32 = 0.025;
/// With at most half of each group failing the distribution check, no choice of groups reaches its limit of 51 %.
const MAX_UNLIKELY_ROLLOUTS: usize = ROLLOUTS_PER_PROBLEM / 2;

/// What is fixed for one window.
pub struct WindowFacts {
    /// First block.
    pub window: u64,
    /// Its hash, with `0x`.
    pub block_hash: String,
    /// The miner's randomness, hex without `0x`.
    pub randomness: String,
    /// Whether a drand round went into it.
    pub use_drand: bool,
    /// The sixteen coefficients of that randomness.
    pub coefficients: [i8; 16],
}

/// Everything a group needs.
pub struct MinerResources {
    /// The key; it signs here and nowhere else.
    pub hotkey: Arc<Hotkey>,
    /// Client of the generation server.
    pub completions: Completions,
    /// Who serves.
    pub generator: Generator,
    /// Who proves.
    pub proofs: ProofPool,
    /// Where progress is shown.
    pub board: Board,
    /// Longest prompt plus completion.
    pub max_model_length: u32,
}

/// Why a group is not in the file. Its index is consumed all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// The prompt does not fit; it is never clamped.
    #[error("prompt too long")]
    PromptTooLong,
    /// A completion of fewer than 32 tokens cannot be proved.
    #[error("short completion")]
    ShortCompletion,
    /// A completion ended by another stop id, or with an end the validator finds unlikely.
    #[error("end of sequence")]
    Termination,
    /// Too many completions look unlikely under the published policy.
    #[error("unlikely tokens")]
    Distribution,
    /// The generation server failed.
    #[error("generation failed")]
    Generation(String),
    /// The weights changed under way.
    #[error("revision changed")]
    Revision,
    /// No proof.
    #[error("proof failed")]
    Proof(String),
    /// The prompt could not be made.
    #[error("prompt failed")]
    Prompt(String),
    /// The gate found something that a validator would refuse.
    #[error("held back by the gate")]
    Gate(String),
    /// It was proved by a worker that is not believed any more.
    #[error("worker not believed")]
    Distrusted,
    /// The group's own task failed, which is a mistake of this program.
    #[error("internal failure")]
    Internal(String),
    /// Of a completion it is not certain what the network gives for it, and no reward is guessed.
    #[error("{0}")]
    Unjudged(Unjudged),
    /// The deadline came first.
    #[error("too late")]
    TooLate,
}

impl Dropped {
    /// The cause under which drops are counted, and the detail for the log.
    pub fn detail(&self) -> &str {
        match self {
            Self::Generation(why) | Self::Proof(why) | Self::Prompt(why) | Self::Gate(why) | Self::Internal(why) => why,
            _ => "",
        }
    }
}

/// A finished group.
#[derive(Debug)]
pub struct Group {
    /// The problem index.
    pub index: i64,
    /// Proof slot of the worker that proved it.
    pub worker: u32,
    /// Sixteen signed rows.
    pub rows: Vec<WindowRow>,
}

/// What a group tells the schedule while it is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// Its prompt has so many tokens.
    Prompted(u32),
    /// One of its completions ended, after so many tokens.
    Completed(u32),
}

/// Where a group tells its milestones.
pub trait Telling: Fn(Milestone) + Send {}
impl<F: Fn(Milestone) + Send> Telling for F {}

/// Makes one group. Dropping the future abandons it everywhere.
///
/// # Errors
/// Why it must not be uploaded.
pub async fn make(
    resources: Arc<MinerResources>,
    terms: Arc<Terms>,
    facts: Arc<WindowFacts>,
    index: i64,
    block: u64,
    tell: impl Telling,
) -> Result<Group, Dropped> {
    let seed = environment_seed(resources.hotkey.address(), &facts.block_hash, index);
    let prompt = terms.chat.prompt(&terms.environment, seed).await.map_err(|error| Dropped::Prompt(error.to_string()))?;
    tell(Milestone::Prompted(prompt.ids.len() as u32));
    let rollouts = generate(&resources, &terms, &prompt, &tell).await?;
    resources.board.window(|window| window.generated += 1);
    check_completions(&terms, &rollouts)?;
    let ProvedBatch { worker, revision, proofs } = prove(&resources, &terms, &facts, &prompt, &rollouts).await?;
    fence(&terms.revision, &rollouts, &revision)?;
    check_proofs(terms.params.max_new_tokens, &rollouts, &proofs)?;
    resources.board.window(|window| window.proved += 1);
    grail_supervision::failpoint::pass("signing").await;
    let maker = RowMaker { resources: &resources, terms: &terms, facts: &facts, index, block, prompt: &prompt };
    let rows = maker.rows(rollouts, proofs)?;
    Ok(Group { index, worker, rows })
}

/// A completion with its score.
struct Scored {
    completion: Completion,
    evaluation: Evaluation,
}

async fn generate(
    resources: &MinerResources,
    terms: &Terms,
    prompt: &Prompt,
    tell: &impl Telling,
) -> Result<Vec<Scored>, Dropped> {
    let replicas = resources.generator.replicas();
    // The server that was there when the group was begun may have ended since: its successor is waited for, as the requests do.
    let found = replicas.awaited(&terms.revision).await;
    let found = found.ok_or_else(|| Dropped::Generation("no server will ever hold these weights".into()))?;
    // Whichever of them gets the group, its prompt fits.
    let serving = replicas.serving();
    let ours = serving.iter().filter(|serving| serving.revision == terms.revision);
    let context = ours.map(|serving| serving.context_length).fold(found.context_length, u32::min);
    let longest = u64::from(resources.max_model_length.min(context));
    if !fits(prompt.ids.len(), terms.params.max_new_tokens, longest) {
        return Err(Dropped::PromptTooLong);
    }
    if let Some(id) = prompt.ids.iter().find(|id| **id >= terms.vocab_size) {
        // SGLang dies of such an id (generation-servers 0).
        return Err(Dropped::Prompt(format!("the tokenizer gives id {id}, the model has {}", terms.vocab_size)));
    }
    let home = replicas.home();
    let requests = (0..ROLLOUTS_PER_PROBLEM).map(|place| {
        let answer = resources.completions.complete(&home, &prompt.ids, &terms.params, &terms.revision);
        async move { (place, answer.await) }
    });
    let mut requests: FuturesUnordered<_> = requests.collect();
    let mut scored = BTreeMap::new();
    while let Some((place, answer)) = requests.next().await {
        grail_supervision::failpoint::pass("generating").await;
        let completion = answer.map_err(|error| match error {
            grail_workers::completions::CompletionError::OtherRevision { .. } => Dropped::Revision,
            error @ grail_workers::completions::CompletionError::Failed { .. } => Dropped::Generation(error.to_string()),
        })?;
        if completion.ids.iter().any(|id| *id >= terms.vocab_size) {
            return Err(Dropped::Generation("a completion holds an id outside the vocabulary".into()));
        }
        tell(Milestone::Completed(completion.ids.len() as u32));
        // Scored as it arrives, while the others are still under way.
        let text = terms.chat.text(&completion.ids).await.map_err(|error| Dropped::Generation(error.to_string()))?;
        let evaluation = terms.environment.evaluate(&prompt.task, &text, terms.mode).map_err(Dropped::Unjudged)?;
        scored.insert(place, Scored { completion, evaluation });
    }
    Ok(scored.into_values().collect())
}

fn check_completions(terms: &Terms, rollouts: &[Scored]) -> Result<(), Dropped> {
    let lengths = || rollouts.iter().map(|rollout| rollout.completion.ids.len());
    if lengths().any(|length| length < CHALLENGE_K) {
        return Err(Dropped::ShortCompletion);
    }
    let ends_well =
        |ids: &[u32]| ids.len() as u64 == terms.params.max_new_tokens || ids.last() == Some(&terms.chat.eos_token_id());
    if rollouts.iter().all(|rollout| ends_well(&rollout.completion.ids)) { Ok(()) } else { Err(Dropped::Termination) }
}

async fn prove(
    resources: &MinerResources,
    terms: &Terms,
    facts: &WindowFacts,
    prompt: &Prompt,
    rollouts: &[Scored],
) -> Result<ProvedBatch, Dropped> {
    let sequence = |rollout: &Scored| ProofSequence {
        tokens: prompt.ids.iter().chain(&rollout.completion.ids).copied().collect(),
        prompt_length: prompt.ids.len() as u32,
        coefficients: facts.coefficients,
    };
    let examine = ExamineTerms {
        temperature: terms.params.temperature,
        repetition_penalty: terms.params.repetition_penalty,
        eos_token_id: terms.chat.eos_token_id(),
    };
    let sequences = rollouts.iter().map(sequence).collect();
    let proofs = resources.proofs.prove(terms.revision.clone(), sequences, Some(examine)).await;
    proofs.map_err(|error| match error {
        ProofError::Superseded(_) => Dropped::Revision,
        error => Dropped::Proof(error.to_string()),
    })
}

/// Nothing is signed whose completions or proof were made with other weights than the window's.
fn fence(wanted: &Revision, rollouts: &[Scored], proved_with: &Revision) -> Result<(), Dropped> {
    let text = wanted.to_string();
    let same = proved_with == wanted && rollouts.iter().all(|rollout| rollout.completion.weight_version == text);
    if same { Ok(()) } else { Err(Dropped::Revision) }
}

/// Every limit is written so that what is no number fails it. `longest` is the length at which a completion needs no end.
fn check_proofs(longest: u64, rollouts: &[Scored], proofs: &[Proved]) -> Result<(), Dropped> {
    if let Some(value) = proofs.iter().flat_map(|proof| &proof.probabilities).find(|value| !value.is_finite()) {
        return Err(Dropped::Proof(format!("the probability of a token is {value}")));
    }
    for (rollout, proof) in rollouts.iter().zip(proofs) {
        let full = rollout.completion.ids.len() as u64 == longest;
        let likely = proof.eos_probability >= MIN_EOS_PROBABILITY;
        if !(full || likely) {
            return Err(Dropped::Termination);
        }
    }
    let unlikely =
        proofs.iter().filter(|proof| Metrics::of(&proof.probabilities).is_none_or(|metrics| metrics.suspicion().any()));
    if unlikely.count() > MAX_UNLIKELY_ROLLOUTS { Err(Dropped::Distribution) } else { Ok(()) }
}

struct RowMaker<'a> {
    resources: &'a MinerResources,
    terms: &'a Terms,
    facts: &'a WindowFacts,
    index: i64,
    block: u64,
    prompt: &'a Prompt,
}

impl RowMaker<'_> {
    fn rows(&self, rollouts: Vec<Scored>, proofs: Vec<Proved>) -> Result<Vec<WindowRow>, Dropped> {
        let rewards: Vec<f64> = rollouts.iter().map(|rollout| rollout.evaluation.reward).collect();
        let places = rollouts.into_iter().zip(proofs).zip(advantages(&rewards)).zip(0..);
        places.map(|(((rollout, proof), advantage), place)| self.row(place, rollout, proof, advantage)).collect()
    }

    fn row(&self, place: u32, rollout: Scored, proof: Proved, advantage: f64) -> Result<WindowRow, Dropped> {
        let Self { resources, terms, facts, .. } = self;
        let unfit = |what: &str| Dropped::Proof(format!("{what} does not fit the protocol's types"));
        let nonce = nonce(self.index, place).ok_or_else(|| unfit("the nonce"))?;
        let commit = self.commit(&rollout, proof, advantage)?;
        let challenge = challenge_text(&facts.block_hash, nonce);
        let signature = hex::encode(resources.hotkey.sign(challenge.as_bytes()));
        Ok(WindowRow {
            window_start: i64::try_from(facts.window).map_err(|_| unfit("the window"))?,
            block: i64::try_from(self.block).map_err(|_| unfit("the block"))?,
            nonce,
            block_hash: facts.block_hash.clone(),
            randomness: facts.randomness.clone(),
            use_drand: facts.use_drand,
            rollout_group: self.index,
            rollout_index: place.cast_signed(),
            total_in_group: ROLLOUTS_PER_PROBLEM as i32,
            checkpoint_window: i64::try_from(terms.revision.window).map_err(|_| unfit("the checkpoint's window"))?,
            commit,
            timestamp: clock::unix_seconds(),
            challenge,
            hotkey: resources.hotkey.address().to_owned(),
            signature,
        })
    }

    fn commit(&self, rollout: &Scored, proof: Proved, advantage: f64) -> Result<Commit, Dropped> {
        let unfit = |_| Dropped::Proof("a token id does not fit the protocol's types".into());
        let ids = self.prompt.ids.iter().chain(&rollout.completion.ids);
        let tokens: Vec<i32> = ids.map(|id| i32::try_from(*id)).collect::<Result<_, _>>().map_err(unfit)?;
        let binding = Binding {
            tokens_hash: &hash_tokens(&tokens),
            randomness: &self.facts.randomness,
            model_name: &self.terms.model_name,
            layer_index: LAYER_INDEX,
            commitments_hash: &proof.commitments_hash,
        };
        let digest = binding.digest().map_err(|error| Dropped::Proof(error.to_string()))?;
        let prompt_length = self.prompt.ids.len();
        let mut token_logprobs = vec![0.0; prompt_length];
        token_logprobs.extend(proof.logprobs);
        Ok(Commit {
            tokens,
            commitments: Commitments::Sketches(proof.sketches),
            proof_version: PROOF_VERSION.into(),
            model: ModelReference { name: self.terms.model_name.clone(), layer_index: LAYER_INDEX },
            signature: hex::encode(self.resources.hotkey.sign(&digest)),
            beacon: serde_json::json!({ "randomness": self.facts.randomness }),
            rollout: Rollout {
                total_reward: rollout.evaluation.reward,
                advantage,
                success: rollout.evaluation.success,
                token_logprobs,
                prompt_length: prompt_length as i32,
                completion_length: rollout.completion.ids.len() as i32,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(length: usize, version: &str) -> Scored {
        Scored {
            completion: Completion { ids: vec![1; length], weight_version: version.into() },
            evaluation: Evaluation { reward: 0.0, success: false, components: Vec::new() },
        }
    }

    #[test]
    fn what_is_no_number_fails_every_limit_of_a_proof() {
        let judged = |length, eos_probability, probability| {
            let mut probabilities = vec![0.9; 40];
            probabilities[7] = probability;
            let proof = Proved { sketches: vec![], logprobs: vec![], commitments_hash: [0; 32], eos_probability, probabilities };
            check_proofs(60, &[scored(length, "")], &[proof])
        };
        assert_eq!((judged(40, 0.025, 0.9), judged(60, 0.0, 0.9)), (Ok(()), Ok(())), "a full one needs no end");
        for eos in [0.0249, f32::NAN, f32::NEG_INFINITY] {
            assert_eq!(judged(40, eos, 0.9), Err(Dropped::Termination), "{eos}");
        }
        for probability in [f32::NAN, f32::INFINITY] {
            assert!(matches!(judged(40, 0.9, probability), Err(Dropped::Proof(why)) if why.contains("probability")));
        }
    }

    #[test]
    fn only_equal_revisions_pass_the_fence() {
        let revision = |window| Revision { window, weights_hash: "ab".into() };
        let scored = |version: &Revision| scored(1, &version.to_string());
        let (old, new) = (revision(0), revision(30));
        assert_eq!(fence(&new, &[scored(&new), scored(&new)], &new), Ok(()));
        assert_eq!(fence(&new, &[scored(&new), scored(&old)], &new), Err(Dropped::Revision), "one old completion");
        assert_eq!(fence(&new, &[scored(&new)], &old), Err(Dropped::Revision), "an old proof");
    }
}
