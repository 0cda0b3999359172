//! What the checked rollouts of one miner add up to (grail-validation 4.6 to 4.8).

use std::collections::{BTreeMap, HashSet};

use super::Check;
use super::head::HeadFailure;
use super::pipeline::RowVerdict;
use super::soft::cutoff;

/// Why a miner's window is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A row's head; the reference gives no reason text.
    #[error("A row is not this window's or is not signed: {0}")]
    Head(HeadFailure),
    /// A hard check of one rollout.
    #[error("A rollout failed {check}: {why}")]
    Hard {
        /// The check.
        check: Check,
        /// What it was about.
        why: String,
    },
    /// Too many soft failures.
    #[error("{count} rollouts failed {check}, which rejects.")]
    Soft {
        /// The check.
        check: Check,
        /// Failures so far.
        count: usize,
    },
    /// A group does not fit together; the reference gives no reason text.
    #[error("A group does not fit together: {0}")]
    Group(String),
}

impl Rejection {
    /// The reference's `failure_reason`: `hard:<check>`, `soft:<check>`, or none.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Hard { check, .. } => Some(format!("hard:{check}")),
            Self::Soft { check, .. } => Some(format!("soft:{check}")),
            Self::Head(_) | Self::Group(_) => None,
        }
    }

    /// Whether one rollout alone rejected.
    #[must_use]
    pub fn is_hard(&self) -> bool {
        matches!(self, Self::Head(_) | Self::Hard { .. })
    }

    /// Whether a soft gate rejected.
    #[must_use]
    pub fn is_soft(&self) -> bool {
        matches!(self, Self::Soft { .. })
    }
}

/// The running account of one miner's checked rollouts. After a rejection nothing is counted any more.
#[derive(Clone, Debug, Default)]
pub struct MinerAccount {
    planned: usize,
    checked: usize,
    valid: usize,
    successful: usize,
    invalid_signatures: usize,
    processing_errors: usize,
    prompt_valid: usize,
    prompt_mismatches: usize,
    soft_failures: BTreeMap<Check, usize>,
    digests: HashSet<String>,
    rejection: Option<Rejection>,
}

impl MinerAccount {
    /// An account for `planned` selected rollouts.
    #[must_use]
    pub fn new(planned: usize) -> Self {
        Self { planned, ..Self::default() }
    }

    /// Whether the miner is rejected, and why.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        self.rejection.as_ref()
    }

    /// A row whose head failed.
    pub fn on_head_failure(&mut self, failure: HeadFailure) {
        if self.rejection.is_some() {
            return;
        }
        self.checked += 1;
        self.invalid_signatures += usize::from(failure.is_signature());
        self.rejection = Some(Rejection::Head(failure));
    }

    /// A row that could not be judged: checked, neither valid nor failed.
    pub fn on_processing_error(&mut self) {
        if self.rejection.is_none() {
            self.checked += 1;
            self.processing_errors += 1;
        }
    }

    /// A rollout with its verdict, the digest of its completion and the miner's claim of success.
    pub fn on_rollout(&mut self, verdict: &RowVerdict, completion_digest: Option<String>, success: bool) {
        if self.rejection.is_some() {
            return;
        }
        self.checked += 1;
        match verdict.passed(Check::Prompt) {
            Some(true) => self.prompt_valid += 1,
            Some(false) => self.prompt_mismatches += 1,
            None => {}
        }
        if let Some(check) = verdict.first_failed_hard() {
            let why = verdict.failure.clone().unwrap_or_else(|| "it did not run".to_owned());
            self.rejection = Some(Rejection::Hard { check, why });
            return;
        }
        for check in verdict.soft_failures() {
            let count = self.soft_failures.entry(check).or_default();
            *count += 1;
            if cutoff(check, self.planned).is_some_and(|cutoff| *count >= cutoff) {
                self.rejection = Some(Rejection::Soft { check, count: *count });
                return;
            }
        }
        self.valid += 1;
        self.successful += usize::from(success);
        self.digests.extend(completion_digest);
    }

    /// A checked group that does not fit together.
    pub fn on_group_failure(&mut self, why: String) {
        if self.rejection.is_none() {
            self.rejection = Some(Rejection::Group(why));
        }
    }

    /// Rollouts looked at.
    #[must_use]
    pub fn checked(&self) -> usize {
        self.checked
    }

    /// Rollouts that passed all hard checks before any rejection.
    #[must_use]
    pub fn valid(&self) -> usize {
        self.valid
    }

    /// Distinct completions among the valid ones.
    #[must_use]
    pub fn unique(&self) -> usize {
        self.digests.len()
    }

    /// Row signatures that did not hold.
    #[must_use]
    pub fn invalid_signatures(&self) -> usize {
        self.invalid_signatures
    }

    /// Rows that could not be judged.
    #[must_use]
    pub fn processing_errors(&self) -> usize {
        self.processing_errors
    }

    /// Soft failures by check; absent means none.
    #[must_use]
    pub fn soft_failures(&self) -> &BTreeMap<Check, usize> {
        &self.soft_failures
    }

    /// The metrics of the window for a file of `total` rollouts; all zero after a rejection.
    #[must_use]
    pub fn metrics(&self, total: usize) -> WindowMetrics {
        if self.rejection.is_some() {
            return WindowMetrics { had_failure: true, ..WindowMetrics::default() };
        }
        let mut metrics = WindowMetrics::estimated(total, self.checked, self.valid, self.unique(), self.successful);
        metrics.prompt_valid = self.prompt_valid;
        metrics.prompt_mismatch = self.prompt_mismatches;
        metrics
    }
}

/// What a window is worth (grail-validation 4.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowMetrics {
    /// Rollouts of the file.
    pub total: usize,
    /// Rollouts checked.
    pub checked: usize,
    /// Valid ones among the checked.
    pub valid: usize,
    /// Estimate for the file.
    pub estimated_valid: u64,
    /// Distinct valid completions among the checked.
    pub unique: usize,
    /// Estimate for the file; the score's base.
    pub estimated_unique: u64,
    /// Valid ones that the miner calls successful.
    pub successful: usize,
    /// Estimate for the file.
    pub estimated_successful: u64,
    /// Checked rollouts with the canonical prompt.
    pub prompt_valid: usize,
    /// Checked rollouts with another prompt.
    pub prompt_mismatch: usize,
    /// Whether the window counts as a failure.
    pub had_failure: bool,
}

impl WindowMetrics {
    /// Metrics with the estimates `trunc(total * (x / checked))`, where every valid rollout had the canonical prompt.
    #[must_use]
    pub fn estimated(total: usize, checked: usize, valid: usize, unique: usize, successful: usize) -> Self {
        Self {
            total,
            checked,
            valid,
            estimated_valid: estimate(total, valid, checked),
            unique,
            estimated_unique: estimate(total, unique, checked),
            successful,
            estimated_successful: estimate(total, successful, checked),
            prompt_valid: valid,
            prompt_mismatch: 0,
            had_failure: false,
        }
    }
}

/// `trunc(total * (part / checked))`, 0 if nothing was checked.
#[must_use]
pub fn estimate(total: usize, part: usize, checked: usize) -> u64 {
    if checked == 0 {
        return 0;
    }
    (total as f64 * (part as f64 / checked as f64)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(failed: &[Check]) -> RowVerdict {
        let results = Check::ORDER.into_iter().map(|check| (check, !failed.contains(&check))).collect();
        RowVerdict { results, ..RowVerdict::default() }
    }

    #[test]
    fn the_fourth_wrong_reward_of_sixteen_rejects() {
        let mut account = MinerAccount::new(16);
        for _ in 0..3 {
            account.on_rollout(&verdict(&[Check::Reward]), Some("a".into()), true);
        }
        assert_eq!((account.rejection(), account.valid(), account.unique()), (None, 3, 1));
        account.on_rollout(&verdict(&[Check::Reward, Check::Distribution]), None, true);
        assert_eq!(account.rejection().unwrap().reason().as_deref(), Some("soft:reward_valid"));
        // The gate closes before the next counter moves, and the rollout itself is not valid.
        assert_eq!((account.soft_failures().len(), account.valid(), account.checked()), (1, 3, 4));
        assert!(account.metrics(16).had_failure && account.metrics(16).total == 0);
    }

    #[test]
    fn a_hard_failure_ends_the_account() {
        let mut account = MinerAccount::new(2);
        account.on_rollout(&verdict(&[Check::Logprobs]), None, false);
        account.on_rollout(&verdict(&[]), None, false);
        assert_eq!(account.checked(), 1);
        assert_eq!(account.rejection().unwrap().reason().as_deref(), Some("hard:logprobs_valid"));
    }

    #[test]
    fn estimates_are_cut_not_rounded() {
        assert_eq!([estimate(20, 15, 16), estimate(4992, 3, 16), estimate(5, 1, 0)], [18, 936, 0]);
    }
}
