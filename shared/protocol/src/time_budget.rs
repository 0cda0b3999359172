//! Whether another group still fits into the window: the reference's gate on moving averages (grail-miner 4).

use crate::constants::WINDOW_LENGTH;

/// Safety margin of the reference, in blocks (grail-miner 4, `GRAIL_MINER_SAFETY_BLOCKS`).
pub const DEFAULT_SAFETY_BLOCKS: f64 = 3.0;
/// Longest generation time that a kept group adds to the average, in seconds (grail-miner 4).
pub const GENERATION_SAMPLE_CAP_SECONDS: f64 = 360.0;

const NEWEST_SHARE: f64 = 0.2;
const GENERATION_BLOCKS_AT_FIRST: f64 = 6.0;
const UPLOAD_BLOCKS_AT_FIRST: f64 = 1.0;

/// A time budget was asked for with values that no window has.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TimeBudgetError {
    /// The block time is not a positive number of seconds.
    #[error("The nominal block time is {seconds} s; give a positive number of seconds.")]
    BlockTime {
        /// The value given.
        seconds: f64,
    },
    /// The safety margin is negative or no number.
    #[error("The safety margin is {blocks} blocks; give zero or more.")]
    SafetyBlocks {
        /// The value given.
        blocks: f64,
    },
}

/// Moving averages of block time, generation and upload, in seconds; they outlive a window (grail-miner 4).
#[derive(Clone, Debug, PartialEq)]
pub struct TimeBudget {
    safety_blocks: f64,
    block_seconds: f64,
    generation_seconds: Option<f64>,
    upload_seconds: Option<f64>,
    last_block: Option<(u64, f64)>,
}

impl TimeBudget {
    /// A budget that knows nothing yet but the nominal block time in seconds and the safety margin in blocks.
    ///
    /// # Errors
    /// [`TimeBudgetError`] for a block time that is not positive or a margin that is negative.
    pub fn new(nominal_block_seconds: f64, safety_blocks: f64) -> Result<Self, TimeBudgetError> {
        if !(nominal_block_seconds.is_finite() && nominal_block_seconds > 0.0) {
            return Err(TimeBudgetError::BlockTime { seconds: nominal_block_seconds });
        }
        if !(safety_blocks.is_finite() && safety_blocks >= 0.0) {
            return Err(TimeBudgetError::SafetyBlocks { blocks: safety_blocks });
        }
        Ok(Self {
            safety_blocks,
            block_seconds: nominal_block_seconds,
            generation_seconds: None,
            upload_seconds: None,
            last_block: None,
        })
    }

    /// The chain was seen at `block` at `seconds` of a monotonic clock; a new block moves the block average.
    pub fn observe_block(&mut self, block: u64, seconds: f64) {
        let Some((last, since)) = self.last_block else {
            self.last_block = Some((block, seconds));
            return;
        };
        if block <= last {
            return;
        }
        self.last_block = Some((block, seconds));
        let each = (seconds - since) / (block - last) as f64;
        if each.is_finite() && each > 0.0 {
            self.block_seconds = blend(self.block_seconds, each);
        }
    }

    /// A group (or batch) that was kept took `seconds` to generate; counted up to 360 s.
    pub fn observe_kept_group(&mut self, seconds: f64) {
        self.observe_generation(seconds.min(GENERATION_SAMPLE_CAP_SECONDS));
    }

    /// A group that was dropped for shortness took `seconds` to generate; counted in full, as the reference does.
    pub fn observe_dropped_group(&mut self, seconds: f64) {
        self.observe_generation(seconds);
    }

    fn observe_generation(&mut self, seconds: f64) {
        if is_duration(seconds) {
            self.generation_seconds = Some(self.generation_seconds.map_or(seconds, |average| blend(average, seconds)));
        }
    }

    /// A successful upload took `seconds`.
    pub fn observe_upload(&mut self, seconds: f64) {
        if is_duration(seconds) {
            self.upload_seconds = Some(self.upload_seconds.map_or(seconds, |average| blend(average, seconds)));
        }
    }

    /// Average seconds of a block.
    #[must_use]
    pub fn block_seconds(&self) -> f64 {
        self.block_seconds
    }

    /// Expected seconds of the next generation.
    #[must_use]
    pub fn generation_seconds(&self) -> f64 {
        self.generation_seconds.unwrap_or(GENERATION_BLOCKS_AT_FIRST * self.block_seconds)
    }

    /// Expected seconds of the upload.
    #[must_use]
    pub fn upload_seconds(&self) -> f64 {
        self.upload_seconds.unwrap_or(UPLOAD_BLOCKS_AT_FIRST * self.block_seconds)
    }

    /// Blocks that one more group, the upload and the safety margin need, 1..=29.
    #[must_use]
    pub fn needed_blocks(&self) -> u64 {
        let seconds = self.generation_seconds() + self.upload_seconds() + self.safety_blocks * self.block_seconds;
        let blocks = (seconds / self.block_seconds).ceil();
        // Saturating: the clamp makes anything out of range one of its ends.
        (blocks as u64).clamp(1, WINDOW_LENGTH - 1)
    }

    /// Whether a group may start at `block` of the window that begins at `window_start`: more blocks are left than needed.
    #[must_use]
    pub fn admits(&self, block: u64, window_start: u64) -> bool {
        window_start.saturating_add(WINDOW_LENGTH).saturating_sub(block) > self.needed_blocks()
    }
}

fn is_duration(seconds: f64) -> bool {
    seconds.is_finite() && seconds >= 0.0
}

fn blend(average: f64, newest: f64) -> f64 {
    NEWEST_SHARE * newest + (1.0 - NEWEST_SHARE) * average
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fresh() -> TimeBudget {
        TimeBudget::new(12.0, DEFAULT_SAFETY_BLOCKS).unwrap()
    }

    #[test]
    fn a_fresh_budget_starts_groups_in_the_first_twenty_blocks() {
        assert_eq!(fresh().needed_blocks(), 10);
        assert!(fresh().admits(36_019, 36_000));
        assert!(!fresh().admits(36_020, 36_000));
    }

    #[test]
    fn generation_samples_move_the_need_as_the_reference_measured() {
        let mut budget = fresh();
        for (sample, average, needed) in [(40.0, 40.0, 8), (60.0, 44.0, 8), (100.0, 55.2, 9), (360.0, 116.16, 14)] {
            budget.observe_kept_group(sample);
            assert!((budget.generation_seconds() - average).abs() < 1e-9);
            assert_eq!(budget.needed_blocks(), needed);
        }
        let mut hopeless = fresh();
        hopeless.observe_dropped_group(3600.0);
        assert_eq!(hopeless.needed_blocks(), 29);
        assert!(hopeless.admits(36_000, 36_000));
        assert!(!hopeless.admits(36_001, 36_000));
    }

    #[test]
    fn only_a_new_block_moves_the_block_average() {
        let mut budget = fresh();
        budget.observe_block(100, 0.0);
        budget.observe_block(100, 5.0);
        budget.observe_block(102, 12.0);
        assert!((budget.block_seconds() - (0.2 * 6.0 + 0.8 * 12.0)).abs() < 1e-12);
    }

    #[test]
    fn impossible_settings_are_refused() {
        assert!(TimeBudget::new(0.0, 3.0).is_err());
        assert!(TimeBudget::new(12.0, f64::NAN).is_err());
    }

    proptest! {
        #[test]
        fn the_need_stays_within_the_window(
            samples in proptest::collection::vec((0_u8..4, 0.0_f64..1e7), 0..40),
            nominal in 0.001_f64..1000.0,
            safety in 0.0_f64..100.0,
        ) {
            let mut budget = TimeBudget::new(nominal, safety).unwrap();
            for (index, (kind, seconds)) in samples.into_iter().enumerate() {
                match kind {
                    0 => budget.observe_block(index as u64, seconds),
                    1 => budget.observe_kept_group(seconds),
                    2 => budget.observe_dropped_group(seconds),
                    _ => budget.observe_upload(seconds),
                }
                prop_assert!((1..=29).contains(&budget.needed_blocks()));
                prop_assert!(!budget.admits(30, 0));
            }
        }
    }
}
