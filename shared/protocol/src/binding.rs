//! The commit binding: what the miner's hotkey signs for one rollout (grail-protocol 3.3).

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::commitment::hash_commitments;
use crate::constants::ACCEPTED_PROOF_VERSIONS;
use crate::derivation::hash_tokens;
use crate::hexadecimal::{HexError, randomness_bytes};
use crate::keys::{KeyScheme, verify};
use crate::python_json::number::python_int;

/// Domain of the binding.
pub const COMMIT_DOMAIN: &[u8] = b"grail-commit-v1";

/// Everything that one binding covers.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// SHA-256 of all tokens ([`hash_tokens`]).
    pub tokens_hash: &'a [u8; 32],
    /// `beacon.randomness`, hex.
    pub randomness: &'a str,
    /// `model.name` of the row.
    pub model_name: &'a str,
    /// `model.layer_index` of the row, -1 in every valid one.
    pub layer_index: i32,
    /// SHA-256 of the commitments ([`crate::commitment::hash_sketches`]).
    pub commitments_hash: &'a [u8; 32],
}

impl Binding<'_> {
    /// The bytes under the hash: the domain and five fields, each behind its length as a big-endian 32-bit word.
    ///
    /// # Errors
    /// [`HexError`] when the randomness is not hexadecimal.
    pub fn preimage(&self) -> Result<Vec<u8>, HexError> {
        let randomness = randomness_bytes(self.randomness)?;
        let layer = self.layer_index.to_be_bytes();
        let fields: [&[u8]; 5] = [self.tokens_hash, &randomness, self.model_name.as_bytes(), &layer, self.commitments_hash];
        let mut preimage = COMMIT_DOMAIN.to_vec();
        for field in fields {
            preimage.extend_from_slice(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
            preimage.extend_from_slice(field);
        }
        Ok(preimage)
    }

    /// The 32 bytes that `commit.signature` signs.
    ///
    /// # Errors
    /// [`HexError`] when the randomness is not hexadecimal.
    pub fn digest(&self) -> Result<[u8; 32], HexError> {
        Ok(Sha256::digest(self.preimage()?).into())
    }
}

/// Why a commit's signature does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitSignatureError {
    /// Neither v4 nor v5.
    #[error("proof_version is {found}, not v4 or v5.")]
    Version {
        /// The JSON found.
        found: String,
    },
    /// A field that the binding covers is absent or of another kind.
    #[error("{field} is missing or of the wrong kind, so the binding cannot be computed.")]
    Field {
        /// Path of the field.
        field: &'static str,
    },
    /// The beacon's randomness is not hexadecimal.
    #[error(transparent)]
    Randomness(#[from] HexError),
    /// The signature is not this hotkey's over this binding.
    #[error("signature does not hold for {address} over the binding of these tokens, commitments, randomness and model.")]
    Signature {
        /// The miner's address.
        address: String,
    },
}

/// The binding of a raw commit, as a validator recomputes it (grail-protocol 3.3).
///
/// # Errors
/// [`CommitSignatureError::Field`] or [`CommitSignatureError::Randomness`] for a commit that has none.
pub fn commit_digest(commit: &Value) -> Result<[u8; 32], CommitSignatureError> {
    let field = |field| CommitSignatureError::Field { field };
    let tokens = commit["tokens"].as_array().ok_or_else(|| field("tokens"))?;
    let tokens: Vec<i64> = tokens.iter().map(Value::as_i64).collect::<Option<_>>().ok_or_else(|| field("tokens"))?;
    let commitments = commit.get("commitments").filter(|value| value.is_array()).ok_or_else(|| field("commitments"))?;
    let randomness = commit["beacon"]["randomness"].as_str().ok_or_else(|| field("beacon.randomness"))?;
    let model_name = match commit["model"].get("name") {
        None => "",
        Some(name) => name.as_str().ok_or_else(|| field("model.name"))?,
    };
    let layer = commit["model"].get("layer_index").and_then(python_int).and_then(|layer| i32::try_from(layer).ok());
    let binding = Binding {
        tokens_hash: &hash_tokens(&tokens),
        randomness,
        model_name,
        layer_index: layer.ok_or_else(|| field("model.layer_index"))?,
        commitments_hash: &hash_commitments(commitments),
    };
    Ok(binding.digest()?)
}

/// Whether `commit.signature` is the signature of `address` over the commit's binding (grail-protocol 3.3). The address is
/// the miner's under validation, never one from the row.
///
/// # Errors
/// [`CommitSignatureError`] with the first thing that is wrong.
pub fn verify_commit(scheme: KeyScheme, address: &str, commit: &Value) -> Result<(), CommitSignatureError> {
    let version = &commit["proof_version"];
    if !version.as_str().is_some_and(|version| ACCEPTED_PROOF_VERSIONS.contains(&version)) {
        return Err(CommitSignatureError::Version { found: version.to_string().chars().take(40).collect() });
    }
    let digest = commit_digest(commit)?;
    let signature = commit["signature"].as_str().ok_or(CommitSignatureError::Field { field: "signature" })?;
    if verify(scheme, address, &digest, signature) {
        return Ok(());
    }
    Err(CommitSignatureError::Signature { address: address.chars().take(64).collect() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::keys::Hotkey;

    #[test]
    fn a_signed_commit_verifies_until_anything_changes() {
        let alice = Hotkey::from_uri("//Alice").unwrap();
        let mut commit = json!({
            "tokens": [1, 2, 3], "commitments": [{"sketch": 5}], "proof_version": "v5",
            "model": {"name": "m", "layer_index": -1}, "beacon": {"randomness": "ab"},
        });
        let digest = commit_digest(&commit).unwrap();
        commit["signature"] = hex::encode(alice.sign(&digest)).into();
        assert_eq!(verify_commit(KeyScheme::Sr25519, alice.address(), &commit), Ok(()));
        for (path, value) in [("tokens", json!([1, 2, 4])), ("commitments", json!([])), ("beacon", json!({"randomness": "ac"}))] {
            let mut changed = commit.clone();
            changed[path] = value;
            assert!(verify_commit(KeyScheme::Sr25519, alice.address(), &changed).is_err(), "{path}");
        }
    }
}
