//! Rewards of a group, normalised (grail-protocol 4.4, grail-environments 9).

const MIN_DEVIATION: f64 = 1e-8;

/// `(r - mean) / max(population deviation, 1e-8)` for every reward of a group; empty for an empty group.
#[must_use]
pub fn advantages(rewards: &[f64]) -> Vec<f64> {
    // Written so that a NaN deviation stays NaN, as in Python.
    normalised(rewards, |deviation| if deviation < MIN_DEVIATION { MIN_DEVIATION } else { deviation })
}

/// What a validator recomputes: the same, but `max(1e-8, population deviation)` in this order, where Python takes the first of two
/// that cannot be compared: a NaN deviation, as of an infinite reward, becomes 1e-8 (grail-validation 4.7).
#[must_use]
pub fn recomputed_advantages(rewards: &[f64]) -> Vec<f64> {
    normalised(rewards, |deviation| if deviation > MIN_DEVIATION { deviation } else { MIN_DEVIATION })
}

fn normalised(rewards: &[f64], divisor: impl FnOnce(f64) -> f64) -> Vec<f64> {
    let count = rewards.len() as f64;
    let mean = python_sum(rewards.iter().copied()) / count;
    let variance = python_sum(rewards.iter().map(|reward| (reward - mean) * (reward - mean))) / count;
    let divisor = divisor(variance.sqrt());
    rewards.iter().map(|reward| (reward - mean) / divisor).collect()
}

/// `sum()` of Python 3.12 and later, which the network runs: Neumaier's compensated sum.
#[must_use]
pub fn python_sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut high, mut low) = (0.0_f64, 0.0_f64);
    for value in values {
        let total = high + value;
        low += if high.abs() >= value.abs() { high - total + value } else { value - total + high };
        high = total;
    }
    if low.is_finite() { high + low } else { high }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_rewards_give_nothing() {
        assert_eq!(advantages(&[0.1; 16]), [0.0; 16]);
        assert!(advantages(&[]).is_empty());
        assert!(advantages(&[f64::NAN; 2]).iter().all(|advantage| advantage.is_nan()));
    }

    #[test]
    fn an_infinite_reward_is_nothing_for_the_miner_and_far_off_for_a_validator() {
        let mut rewards = [1.0; 16];
        rewards[3] = f64::INFINITY;
        assert!(advantages(&rewards).iter().all(|advantage| advantage.is_nan()));
        let recomputed = recomputed_advantages(&rewards);
        assert!(recomputed[3].is_nan() && recomputed[0] == f64::NEG_INFINITY);
    }

    proptest! {
        #[test]
        fn a_group_has_no_advantage_in_sum(rewards in proptest::collection::vec(0.0_f64..2.0, 1..40)) {
            prop_assert!(advantages(&rewards).iter().sum::<f64>().abs() < 1e-6);
            prop_assert_eq!(recomputed_advantages(&rewards), advantages(&rewards));
        }
    }
}
