//! Whether a completion looks sampled from the model (grail-validation 9).

use std::collections::HashSet;

use serde_json::Value;

use super::statistics::{ascending, median, quantile};
use crate::python_json::number::python_float;

/// Fewest probabilities that can be judged.
pub const MIN_STEPS: usize = 30;
/// A median up to this is suspicious.
pub const MEDIAN_LIMIT: f64 = 0.30;
/// A smallest probability up to this is suspicious.
pub const MIN_LIMIT: f64 = 1e-5;
/// A 10 % quantile up to this is suspicious.
pub const Q10_LIMIT: f64 = 0.025;
/// The quantile is also taken over this many first tokens.
pub const INITIAL_STEPS: usize = 50;

/// How completions were sampled, as far as it changes probabilities; `top_k` and `top_p` are not applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits, 1 leaves them.
    pub temperature: f32,
    /// Weakens every token that occurred before, 1 does not.
    pub repetition_penalty: f32,
}

impl Sampling {
    /// Reads the checkpoint's `generation_params`; an absent or unreadable value is 1.
    #[must_use]
    pub fn from_json(generation_params: &Value) -> Self {
        let value = |key: &str| generation_params.get(key).and_then(python_float).unwrap_or(1.0) as f32;
        Self { temperature: value("temperature"), repetition_penalty: value("repetition_penalty") }
    }
}

/// The chosen-token probabilities of one completion, summed up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metrics {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// 10 % quantile, linearly interpolated.
    pub q10: f64,
    /// Smallest.
    pub min: f64,
    /// 10 % quantile of the first 50.
    pub initial_q10: f64,
}

/// Which rules a completion breaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspicion {
    /// Median at most 0.30.
    pub median_low: bool,
    /// Minimum at most 1e-5.
    pub min_low: bool,
    /// 10 % quantile at most 0.025.
    pub q10_low: bool,
    /// 10 % quantile of the first 50 at most 0.025.
    pub q10_low_initial: bool,
}

impl Suspicion {
    /// Whether any rule is broken.
    #[must_use]
    pub fn any(self) -> bool {
        self.median_low || self.min_low || self.q10_low || self.q10_low_initial
    }
}

impl Metrics {
    /// Sums up the probabilities of a completion; `None` below 30 of them, which fails as "insufficient".
    #[must_use]
    pub fn of(probabilities: &[f32]) -> Option<Self> {
        if probabilities.len() < MIN_STEPS {
            return None;
        }
        let sorted = ascending(probabilities.iter().copied().map(f64::from));
        let initial = ascending(probabilities.iter().take(INITIAL_STEPS).copied().map(f64::from));
        Some(Self {
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            median: median(&sorted)?,
            q10: quantile(&sorted, 0.1)?,
            min: *sorted.first()?,
            initial_q10: quantile(&initial, 0.1)?,
        })
    }

    /// The rules that are broken. A metric that is no number breaks its rule.
    #[must_use]
    pub fn suspicion(&self) -> Suspicion {
        let low = |value: f64, limit: f64| value.is_nan() || value <= limit;
        Suspicion {
            median_low: low(self.median, MEDIAN_LIMIT),
            min_low: low(self.min, MIN_LIMIT),
            q10_low: low(self.q10, Q10_LIMIT),
            q10_low_initial: low(self.initial_q10, Q10_LIMIT),
        }
    }
}

/// The probabilities of the completion's tokens. `logits` is row-major `[tokens.len()][vocabulary]` (bf16 logits widened to
/// `f32`); the completion is `tokens[prompt_length..]`. `None` if a shape does not fit, a token is outside the vocabulary,
/// or the prompt is empty (there is no row before the first token).
#[must_use]
pub fn chosen_probabilities(
    tokens: &[i64],
    prompt_length: usize,
    logits: &[f32],
    vocabulary: usize,
    sampling: Sampling,
) -> Option<Vec<f32>> {
    if prompt_length == 0 || prompt_length > tokens.len() || vocabulary == 0 {
        return None;
    }
    let rows = logits.chunks_exact(vocabulary);
    if rows.len() + 1 < tokens.len() {
        return None;
    }
    let ids: Vec<usize> =
        tokens.iter().map(|token| usize::try_from(*token).ok().filter(|id| *id < vocabulary)).collect::<Option<_>>()?;
    let mut seen: HashSet<usize> = ids[..prompt_length - 1].iter().copied().collect();
    let steps = rows.skip(prompt_length - 1).zip(prompt_length..ids.len());
    let probabilities = steps.map(|(row, position)| {
        seen.insert(ids[position - 1]);
        chosen_probability(row, &seen, ids[position], sampling)
    });
    Some(probabilities.collect())
}

/// One probability, from the row before the token and the ids that occurred before it; all arithmetic up to the softmax in
/// `f32`, as the reference's tensors have it.
fn chosen_probability(row: &[f32], seen: &HashSet<usize>, chosen: usize, sampling: Sampling) -> f32 {
    let mut logits = row.to_vec();
    if sampling.repetition_penalty != 1.0 {
        for id in seen {
            let logit = &mut logits[*id];
            *logit = if *logit < 0.0 { *logit * sampling.repetition_penalty } else { *logit / sampling.repetition_penalty };
        }
    }
    if sampling.temperature != 1.0 {
        logits.iter_mut().for_each(|logit| *logit /= sampling.temperature);
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    (f64::from(logits[chosen] - largest).exp() / sum) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, repetition_penalty: 1.0 };

    #[test]
    fn the_row_before_a_token_gives_its_probability() {
        let logits = [0.0, 3.0_f32.ln(), 1.0_f32.ln(), 0.0];
        let probabilities = chosen_probabilities(&[0, 1, 0], 1, &logits, 2, PLAIN).unwrap();
        assert!((probabilities[0] - 0.75).abs() < 1e-6 && (probabilities[1] - 0.5).abs() < 1e-6);
    }

    #[test]
    fn a_penalty_counts_the_prompt_and_each_id_once() {
        let sampling = Sampling { temperature: 1.0, repetition_penalty: 2.0 };
        let logits = [2.0, -2.0, 2.0, -2.0];
        let probabilities = chosen_probabilities(&[1, 1, 0], 2, &logits, 2, sampling).unwrap();
        let expected = 2.0_f64.exp() / (2.0_f64.exp() + (-4.0_f64).exp());
        assert!((f64::from(probabilities[0]) - expected).abs() < 1e-6);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        assert_eq!(chosen_probabilities(&[0, 9], 1, &[0.0; 4], 2, PLAIN), None);
        assert_eq!(chosen_probabilities(&[0, 1], 0, &[0.0; 4], 2, PLAIN), None);
        assert_eq!(chosen_probabilities(&[0, 1, 1], 1, &[0.0; 2], 2, PLAIN), None);
        assert!(Metrics::of(&[0.9; 29]).is_none());
        assert!(!Metrics::of(&[0.9; 30]).unwrap().suspicion().any());
        assert!(Metrics::of(&[f32::NAN; 30]).unwrap().suspicion().any());
    }
}
