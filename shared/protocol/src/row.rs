//! One row of a window file, as the miner writes it and as a reader restores it (grail-protocol 3.5, grail-miner 7).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::python_json::number::float_value;

/// One rollout with its proof and signatures. Field order is the column order of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowRow {
    /// First block of the window, a multiple of 30.
    pub window_start: i64,
    /// Chain block that was read before the group was generated.
    pub block: i64,
    /// `rollout_group * 16 + rollout_index`, unique in the file.
    pub nonce: i64,
    /// Hash of block `window_start`, lower-case hex **with** `0x`.
    pub block_hash: String,
    /// The miner's combined window randomness, hex without `0x`.
    pub randomness: String,
    /// Whether a drand round went into `randomness`.
    pub use_drand: bool,
    /// The problem index; gaps are normal, renumbering is not.
    pub rollout_group: i64,
    /// 0..15 within the group.
    pub rollout_index: i32,
    /// Always 16.
    pub total_in_group: i32,
    /// Window of the checkpoint that generated and proved this row.
    pub checkpoint_window: i64,
    /// Tokens, sketches, binding signature and rewards.
    pub commit: Commit,
    /// Unix seconds.
    pub timestamp: f64,
    /// `|<block_hash>|<nonce>`.
    pub challenge: String,
    /// The miner's SS58 address.
    pub hotkey: String,
    /// Signature over the UTF-8 bytes of `challenge`, 128 hex digits.
    pub signature: String,
}

/// What is proved about one rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    /// Prompt ids followed by completion ids.
    pub tokens: Vec<i32>,
    /// One commitment per token.
    pub commitments: Commitments,
    /// `v5`.
    pub proof_version: String,
    /// Name and layer that enter the binding.
    pub model: ModelReference,
    /// Signature over the 32 bytes of the commit binding, 128 hex digits.
    pub signature: String,
    /// `{"randomness": "<hex>"}`; kept as JSON because the file carries it as text.
    pub beacon: Value,
    /// Rewards, log-probabilities and lengths.
    pub rollout: Rollout,
}

impl Commit {
    /// The commit as JSON, as a reader of the file restores it and as the checks take it. Log-probabilities are widened to
    /// `f64`; floats that are not finite become the words `NaN`, `Infinity`, `-Infinity`, which the checks read as such.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let rollout = &self.rollout;
        let logprobs: Vec<Value> = rollout.token_logprobs.iter().map(|logprob| float_value(f64::from(*logprob))).collect();
        serde_json::json!({
            "tokens": self.tokens,
            "commitments": self.commitments,
            "proof_version": self.proof_version,
            "model": {"name": self.model.name, "layer_index": self.model.layer_index},
            "signature": self.signature,
            "beacon": self.beacon,
            "rollout": {
                "total_reward": float_value(rollout.total_reward),
                "advantage": float_value(rollout.advantage),
                "success": rollout.success,
                "token_logprobs": logprobs,
                "prompt_length": rollout.prompt_length,
                "completion_length": rollout.completion_length,
            },
        })
    }
}

/// The model a proof speaks of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReference {
    /// `model_name` of the checkpoint's metadata; inside the binding, never compared.
    pub name: String,
    /// Always -1: the last hidden state after the final norm.
    pub layer_index: i32,
}

/// The outcome of one rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Scalar reward of the environment.
    pub total_reward: f64,
    /// Reward normalised over the group of 16.
    pub advantage: f64,
    /// The environment's success flag.
    pub success: bool,
    /// Zeros for the prompt, then one natural-log probability per completion token.
    pub token_logprobs: Vec<f32>,
    /// Number of prompt tokens.
    pub prompt_length: i32,
    /// Number of completion tokens.
    pub completion_length: i32,
}

/// The commitments of one rollout. A window holds millions of them, so the normal form is one integer each; anything else
/// that a foreign file may hold is kept as it was read, for the checks that must refuse it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Value", into = "Value")]
pub enum Commitments {
    /// `[{"sketch": n}, …]` with every n in `[0, 2^32)`.
    Sketches(Vec<u32>),
    /// Any other JSON value.
    Other(Value),
}

impl From<Value> for Commitments {
    fn from(value: Value) -> Self {
        let sketches = value.as_array().and_then(|items| items.iter().map(plain_sketch).collect());
        sketches.map_or_else(|| Self::Other(value), Self::Sketches)
    }
}

fn plain_sketch(item: &Value) -> Option<u32> {
    let object = item.as_object().filter(|object| object.len() == 1)?;
    object.get("sketch")?.as_u64().and_then(|sketch| u32::try_from(sketch).ok())
}

impl From<Commitments> for Value {
    fn from(commitments: Commitments) -> Self {
        match commitments {
            Commitments::Sketches(sketches) => {
                sketches.into_iter().map(|sketch| serde_json::json!({ "sketch": sketch })).collect()
            }
            Commitments::Other(value) => value,
        }
    }
}
