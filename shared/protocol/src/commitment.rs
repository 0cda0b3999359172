//! The digest of a rollout's commitments, which the binding signs (grail-protocol 3.1).

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::python_json::commit::write_sketches;
use crate::python_json::{Buffered, canonical_hash};
use crate::row::Commitments;

/// SHA-256 of the compact JSON of plain commitments, streamed (grail-protocol 3.1); one sketch per token.
#[must_use]
pub fn hash_sketches(sketches: &[u32]) -> [u8; 32] {
    let mut hasher = Buffered::new(Sha256::new());
    write_sketches(sketches, &mut hasher);
    hasher.into_inner().finalize().into()
}

/// SHA-256 of the compact JSON of any commitments; extra keys are part of it (grail-protocol 3.1).
#[must_use]
pub fn hash_commitments(commitments: &Value) -> [u8; 32] {
    canonical_hash(commitments)
}

/// The digest of commitments as a row carries them.
#[must_use]
pub fn hash(commitments: &Commitments) -> [u8; 32] {
    match commitments {
        Commitments::Sketches(sketches) => hash_sketches(sketches),
        Commitments::Other(value) => hash_commitments(value),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_empty_list_is_hashed_as_two_brackets() {
        let expected = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";
        assert_eq!(hex::encode(hash_sketches(&[])), expected);
    }

    proptest! {
        #[test]
        fn the_fast_path_equals_the_value_path(sketches in proptest::collection::vec(any::<u32>(), 0..2000)) {
            let value = Value::from(Commitments::Sketches(sketches.clone()));
            prop_assert_eq!(hash_sketches(&sketches), hash_commitments(&value));
        }
    }
}
