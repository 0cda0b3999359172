//! Random numbers of a simulated host; the same seed gives the same windows.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A stream of draws.
#[derive(Debug)]
pub struct Draws(StdRng);

impl Draws {
    /// Those of one thing in one window, whatever else was drawn: every way of mining meets the same windows, problems and troubles.
    pub fn of(seed: u64, window: u64, thing: u64) -> Self {
        let mut bytes = [0; 32];
        for (place, part) in bytes.chunks_exact_mut(8).zip([seed, window, thing]) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        Self(StdRng::from_seed(bytes))
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
        let mut draws = Draws::of(7, 0, 0);
        let all: Vec<f64> = (0..20_000).map(|_| draws.jitter(0.5)).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert_eq!(Draws::of(7, 1, 2).jitter(0.5).to_bits(), Draws::of(7, 1, 2).jitter(0.5).to_bits());
        assert_ne!(Draws::of(7, 1, 2).share().to_bits(), Draws::of(7, 2, 1).share().to_bits());
    }
}
