//! Which miners a validator looks at, and which of their rollouts (grail-validation 3 and 4.3).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use sha2::{Digest, Sha256};

use crate::python_random::PythonRandom;

/// Share of active miners that are looked at.
pub const MINER_SAMPLE_RATE: f64 = 0.25;
/// Fewest miners that are looked at, if there are as many.
pub const MIN_MINERS: usize = 2;
/// Most miners that are looked at.
pub const MAX_MINERS: usize = 35;
/// Windows over which selections and availability are counted.
pub const SELECTION_WINDOWS: usize = 12;
/// Windows during which a failure keeps a miner from being selected.
pub const FAILURE_WINDOWS: usize = 14;
/// Up to this many rollouts all are checked.
pub const CHECK_ALL_ROLLOUTS: usize = 20;
/// Share of groups that are checked.
pub const GROUP_SAMPLE_RATE: f64 = 0.10;
/// Most groups that are checked, 64 rollouts.
pub const MAX_GROUPS: usize = 4;

/// How many of `active` miners are looked at: a quarter, rounded up, at least 2 and at most 35.
#[must_use]
pub fn miner_sample_size(active: usize) -> usize {
    let share = (MINER_SAMPLE_RATE * active as f64).ceil() as usize;
    share.clamp(MIN_MINERS, MAX_MINERS).min(active)
}

/// The miners that are looked at: those selected least often, ties by the SHA-256 of `<window hash>:<hotkey>`. `active` holds
/// no miner with a recent failure.
#[must_use]
pub fn select_miners(active: &[String], selections: &HashMap<String, u64>, window_hash: &str) -> Vec<String> {
    let rank =
        |hotkey: &&String| (selections.get(*hotkey).copied().unwrap_or(0), digest_number(&format!("{window_hash}:{hotkey}")));
    let mut ranked: Vec<&String> = active.iter().collect();
    ranked.sort_by_cached_key(rank);
    ranked.into_iter().take(miner_sample_size(active.len())).cloned().collect()
}

/// The first 8 bytes of a text's SHA-256 as a big-endian integer.
fn digest_number(text: &str) -> u64 {
    let digest = Sha256::digest(text);
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// How often each member was in one of the last sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollingCounts {
    length: usize,
    sets: VecDeque<BTreeSet<String>>,
    counts: BTreeMap<String, u64>,
}

impl RollingCounts {
    /// Counts over the last `length` sets; at least one.
    #[must_use]
    pub fn new(length: usize) -> Self {
        Self { length: length.max(1), sets: VecDeque::new(), counts: BTreeMap::new() }
    }

    /// Adds the newest set and forgets the one that falls out of the range.
    pub fn push(&mut self, set: BTreeSet<String>) {
        if self.sets.len() == self.length
            && let Some(oldest) = self.sets.pop_front()
        {
            for member in oldest {
                self.decrement(&member);
            }
        }
        for member in &set {
            *self.counts.entry(member.clone()).or_default() += 1;
        }
        self.sets.push_back(set);
    }

    fn decrement(&mut self, member: &str) {
        let Some(count) = self.counts.get_mut(member) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.counts.remove(member);
        }
    }

    /// In how many of the last sets the member was.
    #[must_use]
    pub fn count(&self, member: &str) -> u64 {
        self.counts.get(member).copied().unwrap_or(0)
    }

    /// All members that are in at least one set.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }
}

/// How many of `groups` groups are checked: a tenth, rounded down, at least 1 and at most 4.
#[must_use]
pub fn groups_to_check(groups: usize) -> usize {
    let share = (GROUP_SAMPLE_RATE * groups as f64) as usize;
    share.min(groups).clamp(1, MAX_GROUPS)
}

/// The integer that seeds the choice of groups.
#[must_use]
pub fn group_seed(hotkey: &str, challenge_randomness: &str) -> u64 {
    digest_number(&format!("{hotkey}:{challenge_randomness}"))
}

/// Which of `groups` groups, in the order of their digests, are checked; in the order drawn.
#[must_use]
pub fn select_group_places(hotkey: &str, challenge_randomness: &str, groups: usize) -> Vec<usize> {
    PythonRandom::from_integer(group_seed(hotkey, challenge_randomness)).sample(groups, groups_to_check(groups))
}

/// The digest of every group: SHA-256 over its rows' commit digests in file order. `groups` is the group of each row and
/// `commit_digest` gives the SHA-256 of the canonical JSON of a row's commit
/// ([`crate::python_json::commit::hash_commit`]).
#[must_use]
pub fn group_digests(groups: &[i64], mut commit_digest: impl FnMut(usize) -> [u8; 32]) -> BTreeMap<i64, [u8; 32]> {
    let mut hashers: BTreeMap<i64, Sha256> = BTreeMap::new();
    for (row, group) in groups.iter().enumerate() {
        hashers.entry(*group).or_default().update(commit_digest(row));
    }
    hashers.into_iter().map(|(group, hasher)| (group, hasher.finalize().into())).collect()
}

/// The rows that are checked, ascending: all of up to 20, else those of the groups drawn.
#[must_use]
pub fn select_rows(
    hotkey: &str,
    challenge_randomness: &str,
    groups: &[i64],
    commit_digest: impl FnMut(usize) -> [u8; 32],
) -> Vec<usize> {
    if groups.len() <= CHECK_ALL_ROLLOUTS {
        return (0..groups.len()).collect();
    }
    let mut by_digest: Vec<([u8; 32], i64)> =
        group_digests(groups, commit_digest).into_iter().map(|(group, digest)| (digest, group)).collect();
    by_digest.sort_unstable();
    let places = select_group_places(hotkey, challenge_randomness, by_digest.len());
    let chosen: BTreeSet<i64> = places.into_iter().filter_map(|place| by_digest.get(place)).map(|(_, group)| *group).collect();
    (0..groups.len()).filter(|row| chosen.contains(&groups[*row])).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_their_floors_and_caps() {
        assert_eq!([0, 1, 2, 9, 140, 141, 500].map(miner_sample_size), [0, 1, 2, 3, 35, 35, 35]);
        assert_eq!([1, 2, 19, 20, 39, 40, 300].map(groups_to_check), [1, 1, 1, 2, 3, 4, 4]);
    }

    #[test]
    fn up_to_twenty_rows_are_all_checked_without_a_digest() {
        assert_eq!(select_rows("5x", "ab", &[0; 20], |_| panic!("not needed")), (0..20).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn whole_groups_are_chosen(groups in proptest::collection::vec(0_i64..60, 21..200), salt in any::<u8>()) {
            let rows = select_rows("5x", "ab", &groups, |row| [u8::try_from(row % 251).unwrap() ^ salt; 32]);
            let chosen: BTreeSet<i64> = rows.iter().map(|row| groups[*row]).collect();
            let distinct: BTreeSet<i64> = groups.iter().copied().collect();
            prop_assert_eq!(chosen.len(), groups_to_check(distinct.len()));
            let expected: Vec<usize> = (0..groups.len()).filter(|row| chosen.contains(&groups[*row])).collect();
            prop_assert_eq!(rows, expected);
        }

        #[test]
        fn a_rolling_count_is_the_number_of_sets(sets in proptest::collection::vec(proptest::collection::btree_set("[a-d]", 0..4), 0..30)) {
            let mut rolling = RollingCounts::new(5);
            for (index, set) in sets.iter().enumerate() {
                rolling.push(set.clone());
                for member in ["a", "b", "c", "d"] {
                    let recent = &sets[index.saturating_sub(4)..=index];
                    let expected = recent.iter().filter(|set| set.contains(member)).count() as u64;
                    prop_assert_eq!(rolling.count(member), expected);
                }
            }
        }
    }
}
