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

/// A level that lies farther from the others' line than this share is no accident, and is believed.
const NOISE: f64 = 0.08;

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

    /// Tokens per second of the server with `load` requests in flight, for comparing loads: they were measured in different windows,
    /// of which some go slower than others by more than the loads differ. A decode step takes a time of its own and some for each
    /// request, so what was measured is drawn towards such a line, as far as chance explains the distance.
    pub fn tokens_per_second(&self, load: f64) -> Option<f64> {
        let measured = self.seconds_per_token(load)?;
        let (step, each) = self.line()?;
        Some(load / (step + each * load).clamp(measured * (1.0 - NOISE), measured * (1.0 + NOISE)))
    }

    /// Seconds of a step, and of each request in it, by least squares. A level weighs as much as was seen of it.
    fn line(&self) -> Option<(f64, f64)> {
        let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            self.levels.values().zip(&self.points).map(|(level, (load, pace))| level.weight * of(*load, *pace)).sum()
        };
        let weight = sum(&|_, _| 1.0);
        let (load, pace) = (sum(&|load, _| load) / weight, sum(&|_, pace| pace) / weight);
        let spread = sum(&|x, _| (x - load) * (x - load));
        let each = if spread > 0.0 { (sum(&|x, y| (x - load) * (y - pace)) / spread).max(0.0) } else { 0.0 };
        (weight > 0.0).then_some((pace - each * load, each))
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
        close(pace.tokens_per_second(128.0), 3200.0 / 0.92);
    }

    #[test]
    fn a_level_of_slow_windows_is_drawn_to_the_line_of_the_others_and_a_cliff_is_believed() {
        let with = |middle: f64, last: f64| {
            let mut pace = Pace::default();
            for (load, slower) in [(64.0, 1.0), (256.0, 1.0), (512.0, middle), (1024.0, last)] {
                (0..500).for_each(|_| pace.observe(load, 1000.0, 1000.0 * (0.01 + load / 10_000.0) * slower));
            }
            (pace.tokens_per_second(512.0).unwrap(), pace.tokens_per_second(1024.0).unwrap())
        };
        let ((smooth, full), (slow, _), (_, cliff)) = (with(1.0, 1.0), with(1.05, 1.0), with(1.0, 2.0));
        assert!((smooth - 512.0 / 0.0612).abs() < 1.0, "{smooth}");
        assert!(slow > smooth / 1.04 && slow < smooth, "{slow} of {smooth}");
        assert!(cliff < full / 1.8, "{cliff} of {full}");
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
