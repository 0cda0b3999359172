//! How long work may stand still: a limit that follows what this child was seen to do (pure).
//!
//! Health is forward progress. While work is pending, the counter that the work moves must move: sequences answered by a proof
//! worker, completions answered by a generation server. How often depends on the host and on the size of the work, so the limit
//! is a multiple of the longest waits that were measured, per unit of pending work (tokens, as a rule). Before anything was
//! measured the ceiling holds: a long first prefill is not a hang.

use std::collections::VecDeque;
use std::time::Duration;

/// Rounds that are remembered.
const REMEMBERED: usize = 64;
/// So many movements make a round even where the work never pauses; a group has as many rollouts.
const ROUND: u32 = 16;
/// The share of rounds whose longest wait was shorter than what the limit starts from.
const QUANTILE: f64 = 0.95;

/// What limits are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProgressPolicy {
    /// No limit is shorter: a loaded host makes everything slow.
    pub floor: Duration,
    /// No limit is longer; it also holds until something was measured.
    pub ceiling: Duration,
    /// Times the longest usual wait.
    pub factor: f64,
}

/// Measures one kind of work of one child. Times are durations since any fixed instant.
#[derive(Debug, Clone)]
pub struct Progress {
    policy: ProgressPolicy,
    /// Longest wait of each of the last rounds, in seconds per unit.
    rounds: VecDeque<f64>,
    pending: Option<Pending>,
    moves: u64,
}

#[derive(Debug, Clone)]
struct Pending {
    units: u64,
    moved: Duration,
    longest: f64,
    moves: u32,
}

impl Progress {
    /// Nothing pending, nothing measured.
    pub fn new(policy: ProgressPolicy) -> Self {
        Self { policy, rounds: VecDeque::new(), pending: None, moves: 0 }
    }

    /// Work of `units` until the next movement is handed over. With work pending already, only the larger size counts on: more
    /// work is no reason to wait longer for the work that is there.
    pub fn begin(&mut self, now: Duration, units: u64) {
        let units = units.max(1);
        match &mut self.pending {
            Some(pending) => pending.units = pending.units.max(units),
            None => self.pending = Some(Pending { units, moved: now, longest: 0.0, moves: 0 }),
        }
    }

    /// The counter moved.
    pub fn advanced(&mut self, now: Duration) {
        self.moves += 1;
        let Some(pending) = &mut self.pending else { return };
        let wait = now.saturating_sub(pending.moved).as_secs_f64() / pending.units as f64;
        pending.longest = pending.longest.max(wait);
        pending.moved = now;
        pending.moves += 1;
        if pending.moves >= ROUND {
            let longest = std::mem::take(&mut pending.longest);
            pending.moves = 0;
            self.remember(longest);
        }
    }

    /// Nothing is pending any more.
    pub fn idle(&mut self) {
        // A round without movement measured nothing: its work was taken back.
        if let Some(Pending { longest, moves: 1.., .. }) = self.pending.take() {
            self.remember(longest);
        }
    }

    fn remember(&mut self, longest: f64) {
        if self.rounds.len() == REMEMBERED {
            self.rounds.pop_front();
        }
        self.rounds.push_back(longest);
    }

    /// How long the pending work (or a unit of work, if none is) may stand still.
    pub fn limit(&self) -> Duration {
        let mut rounds: Vec<f64> = self.rounds.iter().copied().collect();
        rounds.sort_by(f64::total_cmp);
        let rank = (QUANTILE * rounds.len() as f64).ceil() as usize;
        let Some(usual) = rank.checked_sub(1).and_then(|place| rounds.get(place)) else { return self.policy.ceiling };
        let units = self.pending.as_ref().map_or(1, |pending| pending.units) as f64;
        let limit = Duration::try_from_secs_f64(self.policy.factor * usual * units).unwrap_or(self.policy.ceiling);
        limit.max(self.policy.floor).min(self.policy.ceiling)
    }

    /// Movements since the beginning, over all lives.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// How long pending work has stood still, once that is longer than the limit.
    pub fn overdue(&self, now: Duration) -> Option<Duration> {
        let still = now.saturating_sub(self.pending.as_ref()?.moved);
        (still > self.limit()).then_some(still)
    }

    /// The child is gone, and its work with it. What was measured stays: the next life runs on the same host.
    pub fn forget_pending(&mut self) {
        self.pending = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: ProgressPolicy =
        ProgressPolicy { floor: Duration::from_secs(10), ceiling: Duration::from_secs(600), factor: 8.0 };

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Jobs of one chunk: one long wait, then fifteen answers at once.
    fn jobs(progress: &mut Progress, count: u32, units: u64, wait: f64) -> Duration {
        let mut now = Duration::ZERO;
        for _ in 0..count {
            progress.begin(now, units);
            now += seconds(wait);
            (0..16).for_each(|_| progress.advanced(now));
            progress.idle();
        }
        now
    }

    #[test]
    fn a_first_piece_of_work_has_all_the_time_there_is() {
        let mut progress = Progress::new(POLICY);
        progress.begin(Duration::ZERO, 131_072);
        assert_eq!(progress.limit(), POLICY.ceiling);
        assert_eq!(progress.overdue(POLICY.ceiling), None);
        assert_eq!(progress.overdue(seconds(601.0)), Some(seconds(601.0)));
    }

    #[test]
    fn the_limit_follows_what_was_measured_and_the_size_of_what_is_pending() {
        let mut progress = Progress::new(POLICY);
        let now = jobs(&mut progress, 20, 1000, 2.0);
        progress.begin(now, 1000);
        assert!((progress.limit().as_secs_f64() - 16.0).abs() < 1e-6, "{:?}", progress.limit());
        progress.begin(now, 40_000);
        assert_eq!(progress.limit(), POLICY.ceiling, "forty times the prefill is no hang before its time");
        assert_eq!(progress.overdue(now + seconds(500.0)), None);
    }

    #[test]
    fn fast_work_is_given_the_floor() {
        let mut progress = Progress::new(POLICY);
        let now = jobs(&mut progress, 3, 3000, 0.4);
        progress.begin(now, 3000);
        assert_eq!(progress.limit(), POLICY.floor);
        assert_eq!(progress.overdue(now + seconds(10.1)), Some(seconds(10.1)));
    }

    #[test]
    fn one_slow_round_in_a_hundred_does_not_set_the_limit_and_work_taken_back_measures_nothing() {
        let mut progress = Progress::new(POLICY);
        jobs(&mut progress, 1, 1000, 60.0);
        jobs(&mut progress, 63, 1000, 2.0);
        progress.begin(Duration::ZERO, 1000);
        progress.idle();
        assert!(progress.limit() < seconds(20.0), "{:?}", progress.limit());
    }

    #[test]
    fn work_that_never_pauses_is_measured_too() {
        let mut progress = Progress::new(POLICY);
        progress.begin(Duration::ZERO, 1);
        (1..=160).for_each(|second| progress.advanced(seconds(f64::from(second) * 3.0)));
        assert_eq!(progress.limit(), seconds(24.0));
        assert_eq!(progress.moves(), 160);
    }

    proptest! {
        #[test]
        fn the_limit_stays_between_floor_and_ceiling_and_falls_due_once(
            waits in proptest::collection::vec((0.0..2000.0f64, 1u64..200_000), 0..200),
            units in 1u64..1_000_000,
        ) {
            let mut progress = Progress::new(POLICY);
            let mut now = Duration::ZERO;
            for (wait, units) in waits {
                progress.begin(now, units);
                now += seconds(wait);
                progress.advanced(now);
                progress.idle();
                prop_assert_eq!(progress.overdue(now + POLICY.ceiling * 2), None, "nothing is pending");
            }
            progress.begin(now, units);
            let limit = progress.limit();
            prop_assert!(limit >= POLICY.floor && limit <= POLICY.ceiling);
            prop_assert_eq!(progress.overdue(now + limit), None);
            prop_assert!(progress.overdue(now + limit + Duration::from_millis(1)).is_some());
        }
    }
}
