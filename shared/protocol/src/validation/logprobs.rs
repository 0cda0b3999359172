//! Whether claimed log-probabilities are the model's (grail-validation 8).

use serde_json::Value;

use super::statistics::{ascending, median};
use crate::constants::CHALLENGE_K;
use crate::python_json::number::raw_float;

/// Largest median deviation.
pub const MEDIAN_LIMIT: f64 = 0.10;

/// `exp(|model - claimed|) - 1` over the opened positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    /// Mean of the 16th and 17th smallest.
    pub median: f64,
    /// The largest.
    pub largest: f64,
}

/// Why log-probabilities are refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LogprobFailure {
    /// No list, or one of another length than the tokens.
    #[error("token_logprobs is no list of {tokens} numbers, one per token.")]
    List {
        /// Number of tokens.
        tokens: usize,
    },
    /// Fewer positions than the protocol opens.
    #[error("Only {resolved} of 32 opened positions could be compared.")]
    TooFew {
        /// Positions compared.
        resolved: usize,
    },
    /// A difference so large that Python's exponential raises.
    #[error("At position {position} the model has {model} and the claim is {claimed}, too far apart for an exponential.")]
    Overflow {
        /// Absolute position.
        position: usize,
        /// The model's log-probability.
        model: f64,
        /// The claimed one.
        claimed: f64,
    },
    /// The median is beyond the limit.
    #[error("The median deviation of the log-probabilities is {}, more than 0.10.", .deviation.median)]
    Median {
        /// The deviations.
        deviation: Deviation,
    },
}

/// `log_softmax(logits)[token]` in `f32`, the raw log-probability; `None` for a token beyond the row.
#[must_use]
pub fn log_probability(logits: &[f32], token: usize) -> Option<f32> {
    let chosen = logits.get(token)?;
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    Some((f64::from(chosen - largest) - sum.ln()) as f32)
}

/// The claimed values of a raw rollout, if they are a list of `tokens` numbers.
///
/// # Errors
/// [`LogprobFailure::List`] otherwise.
pub fn claimed_logprobs(rollout: &Value, tokens: usize) -> Result<Vec<f64>, LogprobFailure> {
    let list = rollout.get("token_logprobs").and_then(Value::as_array).filter(|list| list.len() == tokens);
    let numbers = list.and_then(|list| list.iter().map(raw_float).collect::<Option<Vec<f64>>>());
    numbers.ok_or(LogprobFailure::List { tokens })
}

/// Compares the opened positions: each is `(absolute position, model's log-probability, claimed one)`.
///
/// # Errors
/// [`LogprobFailure`] with the first rule that is broken.
pub fn check_logprobs(opened: &[(usize, f64, f64)]) -> Result<Deviation, LogprobFailure> {
    if opened.len() < CHALLENGE_K {
        return Err(LogprobFailure::TooFew { resolved: opened.len() });
    }
    let mut deviations = Vec::with_capacity(opened.len());
    for (position, model, claimed) in opened.iter().copied() {
        let difference = (model - claimed).abs();
        let deviation = difference.exp() - 1.0;
        // Python's exp raises where a finite argument overflows, but takes infinity itself.
        if difference.is_finite() && deviation.is_infinite() {
            return Err(LogprobFailure::Overflow { position, model, claimed });
        }
        deviations.push(deviation);
    }
    let sorted = ascending(deviations.into_iter());
    let largest = sorted.last().copied().unwrap_or(f64::NAN);
    let deviation = Deviation { median: median(&sorted).unwrap_or(f64::NAN), largest };
    if deviation.median <= MEDIAN_LIMIT { Ok(deviation) } else { Err(LogprobFailure::Median { deviation }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(bad: usize, claim: f64) -> Vec<(usize, f64, f64)> {
        (0..32).map(|position| (position, -1.0, if position < bad { claim } else { -1.0 })).collect()
    }

    #[test]
    fn half_minus_one_may_be_wrong() {
        assert!(check_logprobs(&opened(15, -9.0)).is_ok());
        assert!(check_logprobs(&opened(16, -9.0)).is_err());
        assert!(check_logprobs(&opened(3, f64::NEG_INFINITY)).is_ok());
        assert!(matches!(check_logprobs(&opened(1, -800.0)), Err(LogprobFailure::Overflow { position: 0, .. })));
        assert!(check_logprobs(&opened(32, f64::NAN)).is_err());
        assert!(matches!(check_logprobs(&[]), Err(LogprobFailure::TooFew { resolved: 0 })));
    }
}
