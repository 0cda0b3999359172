//! How well two proofs of the same rollout agree. The protocol's own tolerance is nearly as large as the range of sketches
//! (grail-validation 6), so a wrong model would pass it; these limits are far tighter (grail-local-tools 1).

use grail_protocol::sketch::distance;
use grail_settings::AgreementLimits;

/// What a worker claims about one rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// One sketch per token.
    pub sketches: Vec<u32>,
    /// One natural-log probability per completion token.
    pub logprobs: Vec<f32>,
}

/// Two claims compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Share of positions with the same sketch.
    pub identical_share: f64,
    /// 99th percentile of the sketch distances.
    pub distance_p99: u32,
    /// 99th percentile of the log-probabilities' absolute differences; infinite where one is no number.
    pub logprob_p99: f32,
}

impl Agreement {
    /// Compares two claims; `None` if they cannot be about the same rollout.
    pub fn between(one: &Claim, other: &Claim) -> Option<Self> {
        let same_shape = one.sketches.len() == other.sketches.len() && one.logprobs.len() == other.logprobs.len();
        let mut distances: Vec<u32> =
            one.sketches.iter().zip(&other.sketches).map(|(one, other)| distance(*one, *other)).collect();
        let delta =
            |(one, other): (&f32, &f32)| Some((one - other).abs()).filter(|delta| !delta.is_nan()).unwrap_or(f32::INFINITY);
        let mut deltas: Vec<f32> = one.logprobs.iter().zip(&other.logprobs).map(delta).collect();
        if !same_shape || distances.is_empty() || deltas.is_empty() {
            return None;
        }
        let identical = distances.iter().filter(|distance| **distance == 0).count();
        distances.sort_unstable();
        deltas.sort_unstable_by(f32::total_cmp);
        Some(Self {
            identical_share: identical as f64 / distances.len() as f64,
            distance_p99: distances[p99(distances.len())],
            logprob_p99: deltas[p99(deltas.len())],
        })
    }

    /// Whether all three figures are within the limits.
    pub fn is_within(&self, limits: &AgreementLimits) -> bool {
        self.identical_share >= limits.identical_share
            && self.distance_p99 <= limits.distance_p99
            && self.logprob_p99 <= limits.logprob_p99
    }
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{:.1} % identical sketches, distance p99 {}, log-prob difference p99 {:.4}",
            100.0 * self.identical_share,
            self.distance_p99,
            self.logprob_p99
        )
    }
}

/// Index of the 99th percentile (nearest rank) among `length` sorted values.
fn p99(length: usize) -> usize {
    (length * 99).div_ceil(100).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AgreementLimits = AgreementLimits { identical_share: 0.9, distance_p99: 300, logprob_p99: 0.1 };

    fn claim() -> Claim {
        Claim { sketches: (0..200).map(|place| place * 31 % 4000).collect(), logprobs: vec![-0.5; 150] }
    }

    #[test]
    fn equal_claims_agree_wholly() {
        let same = Agreement::between(&claim(), &claim()).unwrap();
        assert_eq!(same, Agreement { identical_share: 1.0, distance_p99: 0, logprob_p99: 0.0 });
        assert!(same.is_within(&LIMITS));
    }

    #[test]
    fn drift_is_within_and_other_weights_are_not() {
        let mut drifted = claim();
        for place in (0..200).step_by(20) {
            drifted.sketches[place] += 120;
        }
        drifted.logprobs[7] -= 0.02;
        let drift = Agreement::between(&claim(), &drifted).unwrap();
        assert_eq!((drift.identical_share, drift.distance_p99), (0.95, 120));
        assert!(drift.is_within(&LIMITS));
        let other = Claim { sketches: claim().sketches.iter().map(|sketch| sketch + 700).collect(), ..claim() };
        let apart = Agreement::between(&claim(), &other).unwrap();
        assert!(!apart.is_within(&LIMITS) && apart.distance_p99 == 700, "{apart}");
        let words = Claim { logprobs: vec![-1.5; 150], ..claim() };
        assert!(!Agreement::between(&claim(), &words).unwrap().is_within(&LIMITS), "sketches alone are not enough");
    }

    #[test]
    fn what_is_no_number_or_another_shape_never_agrees() {
        let broken = Claim { logprobs: vec![f32::NAN; 150], ..claim() };
        assert!(!Agreement::between(&claim(), &broken).unwrap().is_within(&LIMITS));
        let short = Claim { sketches: vec![1; 3], ..claim() };
        assert_eq!(Agreement::between(&claim(), &short), None);
        let empty = Claim { sketches: vec![], logprobs: vec![] };
        assert_eq!(Agreement::between(&empty, &empty), None);
    }

    #[test]
    fn the_percentile_is_the_nearest_rank() {
        assert_eq!([1, 99, 100, 101, 200].map(p99), [0, 98, 98, 99, 197]);
    }
}
