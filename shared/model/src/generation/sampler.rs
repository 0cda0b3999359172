//! Choosing one token for every row of a batch, without leaving the device but for the chosen ids.

use tch::{Device, Kind, TchError, Tensor};

use super::request::Sampling;

/// The sampling parameters of a batch as tensors, rebuilt only when rows join or leave.
#[derive(Debug)]
pub(super) struct Policies {
    /// `[B, 1]` f32; 1 for greedy rows.
    temperature: Tensor,
    /// `[B, 1]` f32.
    penalty: Tensor,
    /// `[B, 1]` f32.
    top_p: Tensor,
    /// `[B, 1]` i64, the vocabulary where off.
    top_k: Tensor,
    /// `[B]` bool.
    greedy: Tensor,
    any_penalty: bool,
    all_greedy: bool,
    /// How many of the most likely tokens must be looked at; `None` if no row leaves any out.
    widest: Option<i64>,
}

impl Policies {
    pub(super) fn of<'a>(
        rows: impl Iterator<Item = &'a Sampling> + Clone,
        vocab_size: i64,
        device: Device,
    ) -> Result<Self, TchError> {
        let column = |values: Vec<f32>| Tensor::f_from_slice(&values)?.f_unsqueeze(1)?.f_to(device);
        let kept = |sampling: &Sampling| sampling.top_k.map_or(vocab_size, |k| (k as i64).min(vocab_size));
        let truncates = |sampling: &Sampling| sampling.temperature > 0.0 && (sampling.top_p < 1.0 || kept(sampling) < vocab_size);
        let top_k: Vec<i64> = rows.clone().map(kept).collect();
        let greedy: Vec<bool> = rows.clone().map(|sampling| sampling.temperature == 0.0).collect();
        let sampled = rows.clone().filter(|sampling| sampling.temperature > 0.0);
        let temperature = |s: &Sampling| if s.temperature == 0.0 { 1.0 } else { s.temperature as f32 };
        Ok(Self {
            temperature: column(rows.clone().map(temperature).collect())?,
            penalty: column(rows.clone().map(|sampling| sampling.repetition_penalty as f32).collect())?,
            top_p: column(rows.clone().map(|sampling| sampling.top_p as f32).collect())?,
            top_k: Tensor::f_from_slice(&top_k)?.f_unsqueeze(1)?.f_to(device)?,
            all_greedy: greedy.iter().all(|&greedy| greedy),
            greedy: Tensor::f_from_slice(&greedy)?.f_to(device)?,
            any_penalty: rows.clone().any(|sampling| sampling.repetition_penalty != 1.0),
            widest: rows.clone().any(truncates).then(|| sampled.map(kept).max().unwrap_or(vocab_size)),
        })
    }
}

/// Ids `[B]` (i64, on the device) for logits `[B, vocabulary]`; -1 where a row of logits is not finite. `seen` is
/// `[B, vocabulary]` bool: the tokens of prompt and output. `uniforms` holds a number in [0, 1) per row.
pub(super) fn sample(logits: &Tensor, seen: &Tensor, policies: &Policies, uniforms: &[f32]) -> Result<Tensor, TchError> {
    let mut scores = logits.f_to_kind(Kind::Float)?;
    let finite = scores.f_isfinite()?.f_all_dim(-1, false)?;
    if policies.any_penalty {
        let penalised = scores.f_mul(&policies.penalty)?.f_where_self(&scores.f_lt(0)?, &scores.f_divide(&policies.penalty)?)?;
        scores = penalised.f_where_self(seen, &scores)?;
    }
    let mut chosen = scores.f_argmax(-1, false)?;
    if !policies.all_greedy {
        let drawn = draw(&scores.f_divide(&policies.temperature)?, policies, uniforms)?;
        chosen = chosen.f_where_self(&policies.greedy, &drawn)?;
    }
    chosen.f_masked_fill(&finite.f_logical_not()?, -1)
}

/// Inverse-transform sampling from the truncated distribution, as SGLang truncates: a token stays if the tokens before it
/// in order of probability hold at most `top_p`, and if it is among the first `top_k`.
fn draw(scores: &Tensor, policies: &Policies, uniforms: &[f32]) -> Result<Tensor, TchError> {
    let probabilities = scores.f_softmax(-1, None)?;
    let (weights, ids) = match policies.widest {
        None => (probabilities, None),
        Some(width) => {
            let (sorted, ids) = probabilities.f_topk(width, -1, true, true)?;
            let before = sorted.f_cumsum(-1, None)?.f_sub(&sorted)?;
            let ranks = Tensor::f_arange(width, (Kind::Int64, sorted.device()))?.f_unsqueeze(0)?;
            let kept = before.f_le_tensor(&policies.top_p)?.f_logical_and(&ranks.f_lt_tensor(&policies.top_k)?)?;
            (sorted.f_mul(&kept)?, Some(ids))
        }
    };
    let cumulative = weights.f_cumsum(-1, Kind::Double)?;
    let total = cumulative.f_slice(-1, -1, None, 1)?;
    // A number in [0, 1) of single precision times the total stays below the total, so the place exists and has weight.
    let target = Tensor::f_from_slice(uniforms)?.f_to(scores.device())?.f_to_kind(Kind::Double)?.f_unsqueeze(1)?.f_mul(&total)?;
    let place = cumulative.f_le_tensor(&target)?.f_sum_dim_intlist(&[-1i64][..], true, Kind::Int64)?;
    let place = place.f_clamp_max(cumulative.size()[1] - 1)?;
    ids.map_or_else(|| Ok(place.shallow_clone()), |ids| ids.f_gather(-1, &place, false))?.f_squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(sampling: &Sampling, logits: &[f32], seen: &[bool]) -> Vec<f64> {
        let draws = 4000;
        let logits = Tensor::from_slice(logits).unsqueeze(0);
        let seen = Tensor::from_slice(seen).unsqueeze(0);
        let policies = Policies::of(std::iter::once(sampling), logits.size()[1], Device::Cpu).unwrap();
        let mut counts = vec![0.0; logits.size()[1] as usize];
        for draw in 0..draws {
            let uniform = draw as f32 / draws as f32;
            let id = sample(&logits, &seen, &policies, &[uniform]).unwrap().int64_value(&[0]);
            counts[usize::try_from(id).unwrap()] += 1.0 / f64::from(draws);
        }
        counts
    }

    fn near(got: &[f64], want: &[f64]) {
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-3), "got {got:?}, want {want:?}");
    }

    /// Logits with probabilities 0.1, 0.5, 0.15, 0.25.
    fn logits() -> Vec<f32> {
        [0.1f32, 0.5, 0.15, 0.25].map(f32::ln).to_vec()
    }

    const UNSEEN: [bool; 4] = [false; 4];

    #[test]
    fn draws_follow_the_distribution_and_its_truncations() {
        let plain = Sampling::default();
        near(&shares(&plain, &logits(), &UNSEEN), &[0.1, 0.5, 0.15, 0.25]);
        let top_k = Sampling { top_k: Some(2), ..plain.clone() };
        near(&shares(&top_k, &logits(), &UNSEEN), &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        // The third token is reached with 0.75 before it, which is not more than 0.8; the fourth with 0.9, which is.
        let top_p = Sampling { top_p: 0.8, ..plain.clone() };
        near(&shares(&top_p, &logits(), &UNSEEN), &[0.0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9]);
        let greedy = Sampling { temperature: 0.0, ..plain.clone() };
        near(&shares(&greedy, &logits(), &UNSEEN), &[0.0, 1.0, 0.0, 0.0]);
        let cold = Sampling { temperature: 0.5, ..plain };
        let squares = [0.01, 0.25, 0.0225, 0.0625].map(|square| square / 0.345);
        near(&shares(&cold, &logits(), &UNSEEN), &squares);
    }

    #[test]
    fn the_penalty_applies_to_seen_tokens_only() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        // Negative logits are multiplied: 0.5 becomes 0.25.
        let want = [0.1, 0.25, 0.15, 0.25].map(|weight| weight / 0.75);
        near(&shares(&sampling, &logits(), &[false, true, false, false]), &want);
        let positive: Vec<f32> = [4.0f32, 1.0].map(f32::ln).to_vec();
        near(&shares(&sampling, &positive, &[true, false]), &[2.0 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn a_row_that_is_not_finite_is_named_not_sampled() {
        let policies = Policies::of(std::iter::repeat_n(&Sampling::default(), 2), 2, Device::Cpu).unwrap();
        let logits = Tensor::from_slice2(&[[0.0f32, f32::NAN], [0.0, 9.0]]);
        let seen = logits.isnan();
        let ids = Vec::<i64>::try_from(sample(&logits, &seen, &policies, &[0.5, 0.5]).unwrap()).unwrap();
        assert_eq!(ids, [-1, 1]);
    }
}
