//! The proof of one rollout: version, signature, checkpoint, sketches (grail-validation 6).

use serde_json::Value;

use crate::binding::{CommitSignatureError, verify_commit};
use crate::constants::{CHALLENGE_K, LAYER_INDEX};
use crate::keys::KeyScheme;
use crate::python_json::number::python_int;
use crate::sketch::{claimed_sketch, distance, tolerance};

/// One opened position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Absolute position in the sequence.
    pub position: usize,
    /// The sketch of the row, if it is one.
    pub claimed: Option<u32>,
    /// Distance to the own sketch around the circle of 2^31 - 1.
    pub distance: Option<u32>,
    /// Largest distance that passes.
    pub tolerance: u32,
}

impl Opened {
    /// Compares a commitment with the own sketch at an absolute position.
    #[must_use]
    pub fn compare(position: usize, commitment: &Value, own: u32) -> Self {
        let claimed = claimed_sketch(commitment);
        Self { position, claimed, distance: claimed.map(|claimed| distance(claimed, own)), tolerance: tolerance(position) }
    }

    /// Whether the position passes.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.distance.is_some_and(|distance| distance <= self.tolerance)
    }
}

/// Why a proof is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofFailure {
    /// The commitments are no list with one entry per token.
    #[error("commitments is not a list of {tokens} entries.")]
    Commitments {
        /// Number of tokens.
        tokens: usize,
    },
    /// Too short to open 32 positions.
    #[error("The completion has {length} tokens, fewer than the 32 that are opened.")]
    Short {
        /// Its length.
        length: usize,
    },
    /// Version or signature.
    #[error(transparent)]
    Signature(#[from] CommitSignatureError),
    /// Made with another checkpoint.
    #[error("The row was made with the checkpoint of window {found}, but the loaded one is of window {expected}.")]
    CheckpointWindow {
        /// Window of the row.
        found: i64,
        /// Window of the loaded checkpoint.
        expected: i64,
    },
    /// Another layer than the last.
    #[error("model.layer_index is {found}, not -1.")]
    Layer {
        /// The JSON found.
        found: String,
    },
    /// There was no forward pass to compare with.
    #[error("The model's own sketches are not available: {why}.")]
    NotExamined {
        /// What went wrong.
        why: String,
    },
    /// A sketch is missing, no integer in range, or too far away.
    #[error("The sketch at position {} does not hold: claimed {:?}, distance {:?}, tolerance {}.",
        .opened.position, .opened.claimed, .opened.distance, .opened.tolerance)]
    Sketch {
        /// The first such position.
        opened: Opened,
    },
}

/// Everything of the proof that needs no model: commitments, length, version, signature, checkpoint window, layer.
///
/// # Errors
/// [`ProofFailure`] with the first rule that is broken.
pub fn check_claims(
    scheme: KeyScheme,
    address: &str,
    commit: &Value,
    completion_length: usize,
    checkpoint_window: Option<i64>,
) -> Result<(), ProofFailure> {
    let tokens = commit["tokens"].as_array().map_or(0, Vec::len);
    if tokens == 0 || commit["commitments"].as_array().map(Vec::len) != Some(tokens) {
        return Err(ProofFailure::Commitments { tokens });
    }
    if completion_length < CHALLENGE_K {
        return Err(ProofFailure::Short { length: completion_length });
    }
    verify_commit(scheme, address, commit)?;
    // A window that does not read as an integer is ignored, as in the reference.
    let claimed = commit["model"].get("checkpoint_window").and_then(python_int);
    if let (Some(found), Some(expected)) = (claimed, checkpoint_window)
        && found != expected
    {
        return Err(ProofFailure::CheckpointWindow { found, expected });
    }
    let layer = &commit["model"]["layer_index"];
    if layer.as_f64() != Some(f64::from(LAYER_INDEX)) {
        return Err(ProofFailure::Layer { found: layer.to_string().chars().take(40).collect() });
    }
    Ok(())
}

/// Compares the commitments at the opened positions with the own sketches, one per token of the sequence.
#[must_use]
pub fn open(commit: &Value, own: &[u32], positions: &[usize]) -> Vec<Opened> {
    let compare = |position: usize| {
        let own = own.get(position).copied();
        own.map(|own| Opened::compare(position, &commit["commitments"][position], own)).unwrap_or(Opened {
            position,
            claimed: None,
            distance: None,
            tolerance: tolerance(position),
        })
    };
    positions.iter().copied().map(compare).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::constants::PRIME_Q;

    #[test]
    fn a_sketch_is_an_integer_below_the_modulus() {
        let refused =
            [json!({}), json!({"sketch": "5"}), json!({"sketch": 5.0}), json!({"sketch": -5}), json!({"sketch": PRIME_Q})];
        for commitment in refused {
            assert!(!Opened::compare(0, &commitment, 5).holds(), "{commitment}");
        }
        assert!(Opened::compare(0, &json!({"sketch": 6005}), 5).holds());
        assert!(!Opened::compare(0, &json!({"sketch": 6006}), 5).holds());
        assert!(Opened::compare(0, &json!({"sketch": PRIME_Q - 1}), 5).holds());
    }

    #[test]
    fn a_position_without_an_own_sketch_fails() {
        assert!(!open(&json!({"commitments": [{"sketch": 1}]}), &[], &[0])[0].holds());
    }
}
