//! Random numbers of a simulated host; the same seed gives the same windows.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A stream of draws.
#[derive(Debug)]
pub struct Draws(StdRng);

impl Draws {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Uniform in [0, 1).
    pub fn share(&mut self) -> f64 {
        self.0.random_range(0.0..1.0)
    }

    /// True with this chance.
    pub fn happens(&mut self, chance: f64) -> bool {
        self.share() < chance
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.share(), self.share());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// Log-normal with mean 1.
    pub fn jitter(&mut self, sigma: f64) -> f64 {
        (sigma * self.normal() - sigma * sigma / 2.0).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_has_mean_one_and_is_repeatable() {
        let mut draws = Draws::new(7);
        let all: Vec<f64> = (0..20_000).map(|_| draws.jitter(0.5)).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert_eq!(Draws::new(7).jitter(0.5).to_bits(), all[0].to_bits());
    }
}
