//! How a completion may end (grail-validation 7).

use half::bf16;
use serde_json::Value;

use crate::constants::MAX_NEW_TOKENS_PROTOCOL_CAP;
use crate::python_json::number::python_int;

/// Least probability of the end token at the place where it stands.
pub const MIN_EOS_PROBABILITY: f64 = 0.02;

/// The dtype in which a validator's softmax result is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsDtype {
    /// Rounded to bfloat16, as on CUDA.
    Bf16,
    /// Single precision, as on the CPU.
    F32,
}

/// Why a completion ended wrongly.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TerminationFailure {
    /// Longer than allowed.
    #[error("The completion has {length} tokens, more than the {limit} allowed.")]
    TooLong {
        /// Its length.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// Neither the limit nor the end token.
    #[error("The completion of {length} tokens ends with token {last}, not with the end token {eos:?}.")]
    NoEnd {
        /// Its length.
        length: u64,
        /// Its last token.
        last: i64,
        /// The tokenizer's end token, if it has one.
        eos: Option<i64>,
    },
    /// The end token was hardly ever due.
    #[error("The end token had a probability of {probability}, less than 0.02.")]
    Unlikely {
        /// The probability.
        probability: f32,
    },
}

/// The longest completion: `min(max_tokens, 8192)` if `max_tokens` reads as a positive integer, else 8192.
#[must_use]
pub fn completion_limit(generation_params: &Value) -> u64 {
    let asked = generation_params.get("max_tokens").and_then(python_int).and_then(|asked| u64::try_from(asked).ok());
    asked.filter(|asked| *asked > 0).map_or(MAX_NEW_TOKENS_PROTOCOL_CAP, |asked| asked.min(MAX_NEW_TOKENS_PROTOCOL_CAP))
}

/// The probability of the end token under one row of logits (the last but one of the sequence), in the logits' dtype; 0
/// if the row has no such token.
#[must_use]
pub fn eos_probability(logits: &[f32], eos: usize, dtype: LogitsDtype) -> f32 {
    let Some(chosen) = logits.get(eos) else { return 0.0 };
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let probability = (f64::from(chosen - largest).exp() / sum) as f32;
    match dtype {
        LogitsDtype::F32 => probability,
        LogitsDtype::Bf16 => bf16::from_f32(probability).to_f32(),
    }
}

/// Checks the end of a completion of `length` tokens whose last token is `last`.
///
/// # Errors
/// [`TerminationFailure`] with the rule that is broken.
pub fn check_termination(
    length: u64,
    limit: u64,
    last: i64,
    eos: Option<i64>,
    probability: f32,
) -> Result<(), TerminationFailure> {
    if length > limit {
        return Err(TerminationFailure::TooLong { length, limit });
    }
    if length == limit {
        return Ok(());
    }
    if Some(last) != eos {
        return Err(TerminationFailure::NoEnd { length, last, eos });
    }
    let likely = f64::from(probability) >= MIN_EOS_PROBABILITY;
    if likely { Ok(()) } else { Err(TerminationFailure::Unlikely { probability }) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_limit_reads_what_python_reads() {
        let limits =
            [json!({"max_tokens": "33"}), json!({"max_tokens": "abc"}), json!({"max_tokens": 0}), json!({}), json!(null)];
        assert_eq!(limits.each_ref().map(completion_limit), [33, 8192, 8192, 8192, 8192]);
    }

    #[test]
    fn bf16_rounds_the_probability_before_the_comparison() {
        // Two tokens with p = 0.01997: below 0.02 in f32, above once rounded to bf16.
        let logits = [0.0_f32, (0.019_97_f32 / (1.0 - 0.019_97)).ln()];
        let [f32, bf16] = [LogitsDtype::F32, LogitsDtype::Bf16].map(|dtype| eos_probability(&logits, 1, dtype));
        assert!(check_termination(40, 50, 1, Some(1), f32).is_err());
        assert!(check_termination(40, 50, 1, Some(1), bf16).is_ok());
    }

    #[test]
    fn a_full_completion_needs_no_end() {
        assert_eq!(check_termination(50, 50, 9, Some(1), 0.0), Ok(()));
        assert!(check_termination(51, 50, 1, Some(1), 1.0).is_err());
        assert!(check_termination(49, 50, 9, Some(1), 1.0).is_err());
        assert!(check_termination(49, 50, 9, None, 1.0).is_err());
    }
}
