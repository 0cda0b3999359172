//! Checks over the sixteen rollouts of one group (grail-validation 4.7).

use serde_json::Value;

use crate::advantage::{python_sum, recomputed_advantages};
use crate::constants::ROLLOUTS_PER_PROBLEM;
use crate::python_json::number::raw_float;

/// Largest absolute sum of a group's advantages.
pub const SUM_TOLERANCE: f64 = 0.01;
/// Largest deviation of one advantage from its recomputation.
pub const ELEMENT_TOLERANCE: f64 = 1e-3;

/// What the group checks look at in one rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupMember {
    /// Claimed reward.
    pub reward: f64,
    /// Claimed advantage.
    pub advantage: f64,
    /// `commit.env.seed`, which nobody transports; absent in all rows is one value.
    pub environment_seed: Option<Value>,
}

impl GroupMember {
    /// Reads a raw commit; a number that is none becomes NaN.
    #[must_use]
    pub fn from_commit(commit: &Value) -> Self {
        let number = |key: &str| commit["rollout"].get(key).and_then(raw_float).unwrap_or(f64::NAN);
        Self {
            reward: number("total_reward"),
            advantage: number("advantage"),
            environment_seed: commit["env"].get("seed").cloned(),
        }
    }
}

/// Why a group rejects its miner.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GroupFailure {
    /// Not sixteen rollouts.
    #[error("The group has {size} rollouts, not 16.")]
    Size {
        /// Rollouts found.
        size: usize,
    },
    /// The advantages do not cancel.
    #[error("The advantages of the group sum to {sum}, further from 0 than 0.01.")]
    Sum {
        /// The sum.
        sum: f64,
    },
    /// One advantage does not follow from the rewards.
    #[error("Advantage {index} of the group is {claimed}, but the claimed rewards give {recomputed}.")]
    Element {
        /// Which rollout.
        index: usize,
        /// Its claim.
        claimed: f64,
        /// What the rewards give.
        recomputed: f64,
    },
    /// The rollouts name different seeds.
    #[error("The rollouts of the group name different environment seeds.")]
    Seeds,
}

/// Checks one group. NaN passes every comparison, as in the reference.
///
/// # Errors
/// [`GroupFailure`] with the first rule that is broken.
pub fn check_group(members: &[GroupMember]) -> Result<(), GroupFailure> {
    if members.len() != ROLLOUTS_PER_PROBLEM {
        return Err(GroupFailure::Size { size: members.len() });
    }
    let sum = python_sum(members.iter().map(|member| member.advantage));
    if sum.abs() > SUM_TOLERANCE {
        return Err(GroupFailure::Sum { sum });
    }
    let rewards: Vec<f64> = members.iter().map(|member| member.reward).collect();
    for (index, (member, recomputed)) in members.iter().zip(recomputed_advantages(&rewards)).enumerate() {
        if (member.advantage - recomputed).abs() > ELEMENT_TOLERANCE {
            return Err(GroupFailure::Element { index, claimed: member.advantage, recomputed });
        }
    }
    let seeds_agree = members.windows(2).all(|pair| pair[0].environment_seed == pair[1].environment_seed);
    if seeds_agree { Ok(()) } else { Err(GroupFailure::Seeds) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::advantage::advantages;

    #[test]
    fn an_infinite_reward_fails_and_a_reward_that_is_none_passes_as_on_the_network() {
        let members = |reward: f64, advantage: f64| -> Vec<GroupMember> {
            let of = |place| GroupMember { reward: if place == 3 { reward } else { 1.0 }, advantage, environment_seed: None };
            (0..16).map(of).collect()
        };
        assert!(matches!(check_group(&members(f64::INFINITY, 0.0)), Err(GroupFailure::Element { index: 0, .. })));
        assert!(matches!(check_group(&members(f64::NEG_INFINITY, 0.0)), Err(GroupFailure::Element { index: 0, .. })));
        assert_eq!(check_group(&members(f64::NAN, 0.0)), Ok(()));
        assert_eq!(check_group(&members(1.0, f64::NAN)), Ok(()));
    }

    proptest! {
        #[test]
        fn what_the_miner_computes_passes(rewards in proptest::collection::vec(0.0_f64..2.0, 16)) {
            let member = |(reward, advantage)| GroupMember { reward, advantage, environment_seed: None };
            let members: Vec<GroupMember> = rewards.iter().copied().zip(advantages(&rewards)).map(member).collect();
            prop_assert_eq!(check_group(&members), Ok(()));
            prop_assert_eq!(check_group(&members[1..]), Err(GroupFailure::Size { size: 15 }));
        }
    }
}
