//! How far two ways of computing the same proofs lie apart (GRAIL local tools 1). Pure.

use std::fmt;

use grail_protocol::sketch::distance;
use serde::Serialize;

use super::Proof;

/// Differences between two lists of proofs of the same sequences.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    /// Sketches compared, prompts included.
    pub positions: usize,
    /// Share of them that are equal, 0 to 1.
    pub identical_sketches: f64,
    /// 99th percentile of the sketch distance.
    pub sketch_p99: u32,
    /// Largest sketch distance.
    pub sketch_max: u32,
    /// 99th percentile of the log-probabilities' absolute difference.
    pub logprob_p99: f64,
    /// Largest of them.
    pub logprob_max: f64,
    /// Median of `exp(|difference|) - 1`, as validators take it (GRAIL protocol 6.4, row 8), over all completion tokens.
    pub importance_median: f64,
}

impl Drift {
    /// Compares proof by proof; `None` where the lists do not describe the same sequences.
    pub fn between(one: &[Proof], other: &[Proof]) -> Option<Self> {
        let matching = one.len() == other.len()
            && one.iter().zip(other).all(|(a, b)| a.sketches.len() == b.sketches.len() && a.logprobs.len() == b.logprobs.len());
        if !matching {
            return None;
        }
        let pairs = one.iter().zip(other);
        let sketches = pairs.clone().flat_map(|(a, b)| a.sketches.iter().zip(&b.sketches));
        let mut distances: Vec<u32> = sketches.map(|(&a, &b)| distance(a, b)).collect();
        let logprobs = pairs.flat_map(|(a, b)| a.logprobs.iter().zip(&b.logprobs));
        let mut deltas: Vec<f64> = logprobs.map(|(a, b)| f64::from(a - b).abs()).collect();
        distances.sort_unstable();
        deltas.sort_by(f64::total_cmp);
        let identical = distances.iter().filter(|&&distance| distance == 0).count();
        Some(Self {
            positions: distances.len(),
            identical_sketches: identical as f64 / distances.len().max(1) as f64,
            sketch_p99: quantile(&distances, 0.99).unwrap_or(0),
            sketch_max: distances.last().copied().unwrap_or(0),
            logprob_p99: quantile(&deltas, 0.99).unwrap_or(0.0),
            logprob_max: deltas.last().copied().unwrap_or(0.0),
            importance_median: quantile(&deltas, 0.5).unwrap_or(0.0).exp_m1(),
        })
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} % identical sketches of {}, distance p99 {} max {}, log-prob |delta| p99 {:.4} max {:.4}, importance median {:.5}",
            self.identical_sketches * 100.0,
            self.positions,
            self.sketch_p99,
            self.sketch_max,
            self.logprob_p99,
            self.logprob_max,
            self.importance_median
        )
    }
}

/// The value that a share of the sorted values does not exceed.
fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(sketches: Vec<u32>, logprobs: Vec<f32>) -> Proof {
        Proof { sketches, logprobs, examined: None }
    }

    #[test]
    fn counts_distances_around_the_circle_and_deltas() {
        let one = [proof((0..100).collect(), vec![-1.0; 100])];
        let mut other = one.clone();
        other[0].sketches[0] = (1 << 31) - 2;
        other[0].logprobs[7] = -1.5;
        let drift = Drift::between(&one, &other).unwrap();
        assert_eq!((drift.positions, drift.sketch_max, drift.sketch_p99), (100, 1, 0));
        assert_eq!((drift.identical_sketches, drift.logprob_max, drift.importance_median), (0.99, 0.5, 0.0));
        assert_eq!(Drift::between(&one, &[proof(vec![1], vec![])]), None);
    }
}
