//! What a validator does to a window file, in its order, as pure rules (grail-validation).
//!
//! ```text
//!  rows ─▶ structure ─▶ selection ─▶ per row: head ─▶ pipeline (nine checks) ─▶ verdict ─▶ group ─▶ metrics
//! ```
//!
//! [`window::judge`] walks the whole way; each step can be used alone.

pub mod distribution;
pub mod group;
pub mod head;
pub mod logprobs;
pub mod pipeline;
pub mod proof;
pub mod reward;
pub mod schema;
pub mod selection;
pub mod sequence;
pub mod soft;
mod statistics;
pub mod structure;
pub mod termination;
pub mod verdict;
pub mod window;

/// One check of the pipeline (grail-validation 4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// The commit has the required fields.
    Schema,
    /// Every token is an id of the model, and they fit its context.
    Tokens,
    /// The prompt is the canonical one.
    Prompt,
    /// Version, signature and sketches hold.
    Proof,
    /// The completion ended as a completion may.
    Termination,
    /// The environment could evaluate the completion.
    Evaluation,
    /// The claimed reward is the recomputed one. Soft.
    Reward,
    /// The claimed log-probabilities are the model's.
    Logprobs,
    /// The completion looks sampled from the model. Soft.
    Distribution,
}

impl Check {
    /// All checks in the order in which they run.
    pub const ORDER: [Self; 9] = [
        Self::Schema,
        Self::Tokens,
        Self::Prompt,
        Self::Proof,
        Self::Termination,
        Self::Evaluation,
        Self::Reward,
        Self::Logprobs,
        Self::Distribution,
    ];

    /// The reference's name of the check, as in `hard:proof_valid`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Schema => "schema_valid",
            Self::Tokens => "tokens_valid",
            Self::Prompt => "env_prompt_valid",
            Self::Proof => "proof_valid",
            Self::Termination => "termination_valid",
            Self::Evaluation => "env_eval_valid",
            Self::Reward => "reward_valid",
            Self::Logprobs => "logprobs_valid",
            Self::Distribution => "token_distribution_valid",
        }
    }

    /// The check of a name.
    #[must_use]
    pub fn from_key(key: &str) -> Option<Self> {
        Self::ORDER.into_iter().find(|check| check.key() == key)
    }

    /// The share of planned rollouts that may not fail a soft check; `None` for a hard one, of which none may fail.
    #[must_use]
    pub fn soft_threshold(self) -> Option<f64> {
        match self {
            Self::Reward => Some(soft::REWARD_THRESHOLD),
            Self::Distribution => Some(soft::DISTRIBUTION_THRESHOLD),
            _ => None,
        }
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.key())
    }
}
