//! Mean and spread of a duration.

/// Share of the newest sample once there are enough of them.
const NEWEST_SHARE: f64 = 0.1;

/// Least standard deviation, of the mean: a few samples that happen to agree promise nothing.
const LEAST_DEVIATION: f64 = 0.5;

/// Moving mean and variance of a duration in seconds; the first samples weigh alike, later ones fade.
#[derive(Debug, Clone, Default)]
pub struct Spread {
    mean: f64,
    variance: f64,
    samples: u32,
}

impl Spread {
    /// It took `seconds`. What is no duration is ignored.
    pub fn observe(&mut self, seconds: f64) {
        if !(seconds.is_finite() && seconds >= 0.0) {
            return;
        }
        self.samples = self.samples.saturating_add(1);
        let share = NEWEST_SHARE.max(1.0 / f64::from(self.samples));
        let away = seconds - self.mean;
        self.mean += share * away;
        self.variance = (1.0 - share) * (self.variance + share * away * away);
    }

    /// Mean plus `deviations` standard deviations, in seconds; `None` before the first sample.
    pub fn at(&self, deviations: f64) -> Option<f64> {
        (self.samples > 0).then(|| self.mean + self.deviations(deviations))
    }

    /// So many standard deviations, each at least half the mean, in seconds.
    pub fn deviations(&self, count: f64) -> f64 {
        count * self.variance.sqrt().max(LEAST_DEVIATION * self.mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_spread_are_those_of_the_samples() {
        let mut spread = Spread::default();
        assert_eq!(spread.at(0.0), None);
        for seconds in [1.0, 3.0, f64::NAN, -1.0] {
            spread.observe(seconds);
        }
        assert_eq!((spread.at(0.0), spread.at(2.0)), (Some(2.0), Some(4.0)));
        (0..200).for_each(|_| spread.observe(2.0));
        assert_eq!(spread.at(2.0), Some(4.0), "never less than half the mean");
    }
}
