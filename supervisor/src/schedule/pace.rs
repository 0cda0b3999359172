//! How fast the generation server goes at which load.

use std::collections::BTreeMap;

/// What an older sample still weighs after a newer one of the same load.
const FADING: f64 = 0.998;
/// Loads within a quarter of a doubling count as one.
const LEVELS_PER_DOUBLING: f64 = 4.0;

#[derive(Debug, Clone, Copy, Default)]
struct Level {
    weight: f64,
    load: f64,
    request_seconds: f64,
    tokens: f64,
}

/// Seconds per token of one request, by requests in flight. Measured as it comes back, so queueing and prefill are in it.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    levels: BTreeMap<i32, Level>,
    /// Mean load and seconds per token of each level, by load.
    points: Vec<(f64, f64)>,
}

impl Pace {
    /// Requests made `tokens` tokens in `request_seconds` (the sum over the requests), with `load` requests in flight on average.
    pub fn observe(&mut self, load: f64, tokens: f64, request_seconds: f64) {
        if !(load >= 1.0 && tokens >= 1.0 && request_seconds > 0.0 && (load + tokens + request_seconds).is_finite()) {
            return;
        }
        let level = self.levels.entry((load.log2() * LEVELS_PER_DOUBLING).round() as i32).or_default();
        level.weight = FADING * level.weight + 1.0;
        level.load = FADING * level.load + load;
        level.request_seconds = FADING * level.request_seconds + request_seconds;
        level.tokens = FADING * level.tokens + tokens;
        self.points =
            self.levels.values().map(|level| (level.load / level.weight, level.request_seconds / level.tokens)).collect();
    }

    /// Seconds per token of one request among `load`: between measured loads by interpolation, below them as at the lowest,
    /// above them as if more requests brought no more tokens.
    pub fn seconds_per_token(&self, load: f64) -> Option<f64> {
        let after = self.points.partition_point(|(known, _)| *known <= load);
        match (after.checked_sub(1).and_then(|before| self.points.get(before)), self.points.get(after)) {
            (Some((low, slow)), Some((high, fast))) => Some(slow + (fast - slow) * (load - low) / (high - low)),
            (Some((known, pace)), None) => Some(pace * load / known),
            (None, Some((_, pace))) => Some(*pace),
            (None, None) => None,
        }
    }

    /// Tokens per second of the server with `load` requests in flight.
    pub fn tokens_per_second(&self, load: f64) -> Option<f64> {
        Some(load / self.seconds_per_token(load)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_measured_loads_is_interpolated_and_beyond_them_nothing_is_promised() {
        let mut pace = Pace::default();
        assert_eq!(pace.seconds_per_token(4.0), None);
        pace.observe(16.0, 1000.0, 10.0);
        pace.observe(64.0, 1000.0, 20.0);
        let close = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-9, "{a:?} {b}");
        close(pace.seconds_per_token(1.0), 0.01);
        close(pace.seconds_per_token(40.0), 0.015);
        close(pace.seconds_per_token(128.0), 0.04);
        close(pace.tokens_per_second(64.0), 3200.0);
        close(pace.tokens_per_second(128.0), 3200.0);
    }

    #[test]
    fn nonsense_teaches_nothing() {
        let mut pace = Pace::default();
        for (load, tokens, seconds) in [(0.0, 10.0, 1.0), (f64::NAN, 10.0, 1.0), (4.0, 0.0, 1.0), (4.0, 10.0, f64::INFINITY)] {
            pace.observe(load, tokens, seconds);
        }
        assert_eq!(pace.tokens_per_second(4.0), None);
    }
}
