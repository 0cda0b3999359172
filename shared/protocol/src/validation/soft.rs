//! How many soft failures reject a miner (grail-validation 4.6).

use super::Check;

/// Share of planned rollouts at which reward mismatches reject.
pub const REWARD_THRESHOLD: f64 = 0.20;
/// Share of planned rollouts at which suspicious distributions reject.
pub const DISTRIBUTION_THRESHOLD: f64 = 0.51;

/// The number of failures that rejects: `max(1, ceil(threshold * planned))`; `None` for a hard check.
#[must_use]
pub fn cutoff(check: Check, planned: usize) -> Option<usize> {
    let share = check.soft_threshold()? * planned as f64;
    Some((share.ceil() as usize).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cutoffs_of_the_specification() {
        let both = |planned| (cutoff(Check::Reward, planned), cutoff(Check::Distribution, planned));
        assert_eq!(both(16), (Some(4), Some(9)));
        assert_eq!(both(64), (Some(13), Some(33)));
        assert_eq!(both(0), (Some(1), Some(1)));
        assert_eq!(cutoff(Check::Proof, 16), None);
    }
}
