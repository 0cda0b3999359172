//! What becomes of the requests under way once nothing is begun any more.

use super::lengths::Lengths;
use super::pace::Pace;

/// Tokens that a request makes in which time while the load falls: `seconds(tokens)` is the integral of the pace at the falling
/// load.
#[derive(Debug)]
pub struct Drain {
    /// Tokens and seconds, both rising.
    points: Vec<(f64, f64)>,
    /// Seconds per token at the end, for what is longer than anything seen.
    last: f64,
}

impl Drain {
    /// With `requests` under way now; `None` before anything was measured.
    pub fn of(lengths: &Lengths, pace: &Pace, requests: f64) -> Option<Self> {
        let (mut tokens, mut seconds, mut last) = (0.0, 0.0, pace.seconds_per_token(1.0)?);
        let mut points = vec![(0.0, 0.0)];
        for (step, share) in lengths.remaining() {
            last = pace.seconds_per_token((requests * share).max(1.0))?;
            tokens += step;
            seconds += step * last;
            points.push((tokens, seconds));
        }
        Some(Self { points, last })
    }

    /// Seconds until a request that begins now has made `tokens`.
    pub fn seconds_for(&self, tokens: f64) -> f64 {
        let after = self.points.partition_point(|(known, _)| *known < tokens).max(1);
        let (before, since) = self.points[after - 1];
        match self.points.get(after) {
            Some((beyond, until)) => since + (until - since) * (tokens - before) / (beyond - before),
            None => since + (tokens - before) * self.last,
        }
    }

    /// Tokens that a request makes within `seconds`.
    pub fn tokens_within(&self, seconds: f64) -> f64 {
        if seconds <= 0.0 {
            return 0.0;
        }
        let after = self.points.partition_point(|(_, known)| *known < seconds).max(1);
        let (before, since) = self.points[after - 1];
        match self.points.get(after) {
            Some((beyond, until)) => before + (beyond - before) * (seconds - since) / (until - since),
            None => before + (seconds - since) / self.last,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_directions_agree_and_rise(load in 1.0_f64..2000.0, tokens in 1.0_f64..4000.0) {
            let (mut lengths, mut pace) = (Lengths::default(), Pace::default());
            (0..20).for_each(|group| lengths.observe(100, &[100 + group * 40, 300, 700]));
            for at in [16.0, 64.0, 256.0, 1024.0] {
                pace.observe(at, 1000.0, 1000.0 * (0.01 + at / 12_000.0));
            }
            let drain = Drain::of(&lengths, &pace, load).unwrap();
            let seconds = drain.seconds_for(tokens);
            prop_assert!((drain.tokens_within(seconds) - tokens).abs() < 1e-6 * tokens);
            prop_assert!(drain.seconds_for(tokens + 10.0) > seconds);
            let steady = tokens * pace.seconds_per_token(load).unwrap();
            prop_assert!(seconds <= steady * (1.0 + 1e-9), "a falling load is never slower than a lasting one");
        }
    }
}
