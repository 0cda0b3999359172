//! Which positions of a rollout a validator opens (grail-protocol 2.4).

use crate::derivation::hash_tokens;
use crate::hexadecimal::{HexError, nonempty_randomness_bytes};
use crate::prf::{OPEN_LABEL, prf_array};
use crate::python_random::PythonRandom;

/// Positions cannot be chosen from these inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// There is no sequence.
    #[error("There are no tokens to open positions of; give the whole sequence.")]
    NoTokens,
    /// The region ends before it begins.
    #[error("The completion would run from token {start} to {end}; give an end that is not before the start.")]
    Region {
        /// First position.
        start: usize,
        /// One past the last position.
        end: usize,
    },
    /// No position was asked for.
    #[error("Zero positions were asked for; ask for at least one.")]
    Nothing,
    /// The challenge randomness cannot be read.
    #[error(transparent)]
    Randomness(#[from] HexError),
}

/// The opened positions, absolute and ascending: `count` of `start..end`, or all of them if they are fewer
/// (grail-protocol 2.4). `tokens` is the whole sequence; `randomness` is the validator's, hex.
///
/// # Errors
/// [`ChallengeError`] for an empty sequence, a reversed region, a count of zero, or randomness that is empty or not hex.
pub fn open_positions<T: Copy + Into<i64>>(
    tokens: &[T],
    randomness: &str,
    start: usize,
    end: usize,
    count: usize,
) -> Result<Vec<usize>, ChallengeError> {
    if tokens.is_empty() {
        return Err(ChallengeError::NoTokens);
    }
    if count == 0 {
        return Err(ChallengeError::Nothing);
    }
    let length = end.checked_sub(start).ok_or(ChallengeError::Region { start, end })?;
    let seed = open_seed(&hash_tokens(tokens), randomness)?;
    let mut relative = choose(&mut PythonRandom::from_bytes(&seed), length, count.min(length));
    relative.sort_unstable();
    Ok(relative.into_iter().map(|position| start + position).collect())
}

/// The 32 bytes that seed the choice (grail-protocol 2.4).
///
/// # Errors
/// [`HexError`] when the randomness is empty or not hexadecimal.
pub fn open_seed(tokens_hash: &[u8; 32], randomness: &str) -> Result<[u8; 32], HexError> {
    let randomness = nonempty_randomness_bytes(randomness)?;
    Ok(prf_array(OPEN_LABEL, &[tokens_hash, &randomness]))
}

fn choose(random: &mut PythonRandom, length: usize, count: usize) -> Vec<usize> {
    // The reference compares in floating point: 320 positions are shuffled, 321 are sampled.
    if (count as f64) < length as f64 * 0.1 {
        return random.sample(length, count);
    }
    let mut positions: Vec<usize> = (0..length).collect();
    random.shuffle(&mut positions);
    positions.truncate(count);
    positions
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn impossible_inputs_are_refused() {
        assert_eq!(open_positions::<i64>(&[], "ab", 0, 4, 1), Err(ChallengeError::NoTokens));
        assert_eq!(open_positions(&[1_i64], "ab", 5, 4, 1), Err(ChallengeError::Region { start: 5, end: 4 }));
        assert_eq!(open_positions(&[1_i64], "ab", 0, 4, 0), Err(ChallengeError::Nothing));
        assert_eq!(open_positions(&[1_i64], "", 0, 4, 1), Err(ChallengeError::Randomness(HexError::Empty)));
        assert_eq!(open_positions(&[1_i64], "ab", 4, 4, 1), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn positions_are_distinct_ascending_and_inside(start in 0_usize..200, length in 0_usize..900, count in 1_usize..40) {
            let positions = open_positions(&[1_i64, 2, 3], "abcd", start, start + length, count).unwrap();
            prop_assert_eq!(positions.len(), count.min(length));
            prop_assert!(positions.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(positions.iter().all(|position| (start..start + length).contains(position)));
        }
    }
}
