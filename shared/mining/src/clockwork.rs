//! When groups may start, when they must be done, and how long the end of a window takes. Pure: time is an argument.

use grail_protocol::constants::{DEADLINE_SLACK_SECONDS, WINDOW_LENGTH};
use grail_protocol::time_budget::TimeBudget;
use grail_protocol::window::window_start;

/// When groups may start and when they must be done. Times are Unix seconds.
#[derive(Debug, Clone)]
pub struct Clockwork {
    /// First block of the window.
    pub window: u64,
    /// Uploads after this are ignored by validators.
    pub deadline: f64,
}

impl Clockwork {
    /// Groups that are not durable by then are abandoned: what is left is for closing a file of `rollouts`, and for
    /// uploading it twice over.
    pub fn cut_off(&self, budget: &TimeBudget, closing: &ClosingTime, rollouts: usize) -> f64 {
        let upload = budget.upload_seconds().min(budget.block_seconds() * 2.0);
        self.deadline - 2.0 * upload - closing.expected(rollouts)
    }

    /// The reference's gate (grail-miner 4) and, for clocks faster than the network's, the deadline itself.
    pub fn admits(&self, budget: &TimeBudget, closing: &ClosingTime, rollouts: usize, block: u64, now: f64) -> bool {
        window_start(block) == self.window
            && budget.admits(block, self.window)
            && now + budget.generation_seconds().min(budget.block_seconds() * 6.0) < self.cut_off(budget, closing, rollouts)
    }

    /// The block of `now` by the clock, where the chain does not say: counted back from the window's end, whose time is known.
    /// Never before the window's first block.
    pub fn block_at(&self, now: f64, block_seconds: f64) -> u64 {
        let left = self.deadline + DEADLINE_SLACK_SECONDS - now;
        // Saturating: a clock far off gives the first block or the first after the window.
        let blocks_left = ((left / block_seconds).ceil().max(0.0) as u64).min(WINDOW_LENGTH);
        self.window + WINDOW_LENGTH - blocks_left
    }

    /// Milliseconds since the window opened.
    pub fn milliseconds_into(&self, now: f64, block_seconds: f64) -> i64 {
        let opened = self.deadline + DEADLINE_SLACK_SECONDS - WINDOW_LENGTH as f64 * block_seconds;
        ((now - opened) * 1000.0).max(0.0) as i64
    }
}

/// How long it takes from the last group to a file that has passed the gate. A late file is a lost window, so a slow close is
/// remembered at once and a fast one believed slowly.
#[derive(Debug, Clone)]
pub struct ClosingTime {
    seconds_per_rollout: f64,
}

impl Default for ClosingTime {
    /// Before anything was measured: slower than any host that mines (`make bench` measures 0.05 ms a rollout).
    fn default() -> Self {
        Self { seconds_per_rollout: 0.0005 }
    }
}

impl ClosingTime {
    const FIXED_SECONDS: f64 = 0.5;
    const MARGIN: f64 = 1.5;

    /// Seconds to plan for a file of `rollouts`.
    pub fn expected(&self, rollouts: usize) -> f64 {
        Self::FIXED_SECONDS + Self::MARGIN * self.seconds_per_rollout * rollouts as f64
    }

    /// A file of `rollouts` took `seconds`.
    pub fn observe(&mut self, rollouts: usize, seconds: f64) {
        let measured = seconds / rollouts.max(1) as f64;
        self.seconds_per_rollout = measured.max(0.8 * self.seconds_per_rollout + 0.2 * measured);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_respects_the_deadline_and_the_time_to_close() {
        let mut budget = TimeBudget::new(1.0, 3.0).unwrap();
        budget.observe_kept_group(2.0);
        budget.observe_upload(0.2);
        let (clockwork, closing) = (Clockwork { window: 30, deadline: 26.0 }, ClosingTime::default());
        assert!((clockwork.cut_off(&budget, &closing, 0) - 25.1).abs() < 1e-9);
        assert!((clockwork.cut_off(&budget, &closing, 4000) - 22.1).abs() < 1e-9);
        assert!(clockwork.admits(&budget, &closing, 4000, 52, 20.0));
        assert!(!clockwork.admits(&budget, &closing, 4000, 52, 20.2), "the group would end after the cut-off");
        assert!(!clockwork.admits(&budget, &closing, 0, 54, 10.0), "the reference's gate is closed");
        assert!(!clockwork.admits(&budget, &closing, 0, 60, 10.0), "another window");
    }

    #[test]
    fn one_long_group_does_not_close_the_gate_for_ever() {
        let mut budget = TimeBudget::new(12.0, 3.0).unwrap();
        budget.observe_dropped_group(3600.0);
        let clockwork = Clockwork { window: 0, deadline: 356.0 };
        assert!(clockwork.admits(&budget, &ClosingTime::default(), 0, 0, 0.0));
    }

    #[test]
    fn a_slow_close_is_remembered_and_a_fast_one_believed_slowly() {
        let mut closing = ClosingTime::default();
        closing.observe(1000, 10.0);
        assert!((closing.expected(1000) - 15.5).abs() < 1e-9);
        closing.observe(1000, 1.0);
        assert!((closing.expected(1000) - 12.8).abs() < 1e-9);
    }

    #[test]
    fn without_a_chain_the_clock_gives_the_block_and_so_closes_the_gate_in_time() {
        // The window opened at 1000 and ends at 1360.
        let clockwork = Clockwork { window: 600, deadline: 1356.0 };
        let blocks = [1000.0, 1011.9, 1012.0, 1300.0, 1359.9, 1360.0, 1e9, 0.0].map(|now| clockwork.block_at(now, 12.0));
        assert_eq!(blocks, [600, 600, 601, 625, 629, 630, 630, 600]);
        let budget = TimeBudget::new(12.0, 3.0).unwrap();
        let admits = |now: f64| clockwork.admits(&budget, &ClosingTime::default(), 0, clockwork.block_at(now, 12.0), now);
        assert!(admits(1010.0) && !admits(1300.0));
        assert_eq!(clockwork.milliseconds_into(1001.5, 12.0), 1500);
    }
}
