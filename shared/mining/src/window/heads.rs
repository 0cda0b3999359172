//! The chain's newest block as the window loop sees it, and the block by the clock where the chain says nothing new. A head is
//! believed only within what the clock allows: one absurd number would be the last window for ever. Pure: time is an argument.

use grail_protocol::constants::WINDOW_LENGTH;

use crate::events::{ChainAnswersAgain, ChainSilent};

/// Blocks without a new head after which the head is taken for stale.
const STALE_BLOCKS: f64 = 5.0;
/// Blocks by which a head may be ahead of the clock: the one before may have been told late.
const EARLY_BLOCKS: f64 = 2.0;
/// Share of the time that so many blocks take, which must have passed between two of them by their own times.
const LEAST_SHARE: f64 = 0.5;

/// What is known of the newest block.
#[derive(Debug, Clone)]
pub struct Heads {
    block_seconds: f64,
    /// Number, and when it was seen first, in Unix seconds.
    newest: Option<(u64, f64)>,
    /// When heads began to be asked for.
    asked: Option<f64>,
    answers: bool,
    stale: bool,
    /// What was not believed last.
    doubted: Option<u64>,
}

/// What an operator should know.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadUpdate {
    /// No new block for several block times.
    Silent(ChainSilent),
    /// There is one again.
    Again(ChainAnswersAgain),
}

impl Heads {
    /// Nothing is known yet. Blocks come every `block_seconds` where nothing is late.
    pub fn new(block_seconds: f64) -> Self {
        Self { block_seconds, newest: None, asked: None, answers: false, stale: false, doubted: None }
    }

    /// Whether the clock allows a head. What it does not allow, the first head of all included, has to show its time: a node may have
    /// lagged before.
    pub fn allows(&self, now: f64, block: u64) -> bool {
        let passed = |since: f64| (now - since).max(0.0) / self.block_seconds + EARLY_BLOCKS;
        self.newest.is_some_and(|(known, since)| block as f64 <= known as f64 + passed(since))
    }

    /// Why a head must not be believed that the clock does not allow, by its own `time`, and by that of the newest block that is known,
    /// where the chain tells that.
    pub fn refuses(&self, now: f64, (block, time): (u64, f64), known_time: Option<f64>) -> Option<String> {
        let ahead = time - now;
        let window = WINDOW_LENGTH as f64 * self.block_seconds;
        let near = ahead <= window;
        if !near {
            return Some(format!("the node tells block {block}, whose time is {ahead:.0} s from now"));
        }
        let (known, known_time) = self.newest.map(|(known, _)| known).zip(known_time)?;
        let (blocks, seconds) = (block.saturating_sub(known), time - known_time);
        let needed = LEAST_SHARE * blocks as f64 * self.block_seconds;
        let slow_enough = seconds >= needed;
        (!slow_enough).then(|| format!("the node tells block {block}, {blocks} blocks but {seconds:.0} s after block {known}"))
    }

    /// A head is not believed. Whether that is news.
    pub fn doubt(&mut self, block: u64) -> bool {
        self.doubted.replace(block) != Some(block)
    }

    /// The chain was asked: it names a block, or says why it cannot. Tells once when the newest block is stale, and once when that
    /// is over.
    pub fn heard(&mut self, now: f64, answer: Result<u64, String>) -> Option<HeadUpdate> {
        let asked = *self.asked.get_or_insert(now);
        self.answers = answer.is_ok();
        let (known, since) = self.newest.map_or((None, asked), |(number, since)| (Some(number), since));
        // The same block again, or a lower one of a node that lags, is no new one.
        if let Ok(block) = &answer
            && known.is_none_or(|known| *block > known)
        {
            self.newest = Some((*block, now));
            let again = ChainAnswersAgain { block: *block, seconds: now - since };
            return std::mem::take(&mut self.stale).then_some(HeadUpdate::Again(again));
        }
        let seconds = now - since;
        if self.stale || seconds <= STALE_BLOCKS * self.block_seconds {
            return None;
        }
        self.stale = true;
        let why = answer.err().unwrap_or_else(|| "the node tells the same block".into());
        Some(HeadUpdate::Silent(ChainSilent { block: known, seconds, why }))
    }

    /// Whether the newest block is stale.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// The newest block that is known, and when it was seen first, in Unix seconds.
    pub fn newest(&self) -> Option<(u64, f64)> {
        self.newest
    }

    /// The present block: the chain's, or where it gives no answer or a stale one, at least that of the clock.
    pub fn block(&self, by_clock: u64) -> u64 {
        match self.newest {
            Some((block, _)) if self.answers && !self.stale => block,
            Some((block, _)) => block.max(by_clock),
            None => by_clock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> Result<u64, String> {
        Err("no node answers".into())
    }

    #[test]
    fn silence_is_told_once_with_its_age_and_its_end_once() {
        let mut heads = Heads::new(12.0);
        assert_eq!(heads.heard(1000.0, Ok(600)), None);
        assert_eq!(heads.heard(1012.0, Ok(601)), None);
        assert_eq!(heads.heard(1072.0, Ok(601)), None, "five blocks are not yet too many");
        let silent = ChainSilent { block: Some(601), seconds: 61.0, why: "no node answers".into() };
        assert_eq!(heads.heard(1073.0, down()), Some(HeadUpdate::Silent(silent)));
        assert_eq!(heads.heard(1100.0, down()), None);
        assert_eq!(heads.heard(1101.0, Ok(601)), None, "the same block again is not news");
        assert_eq!(heads.heard(1102.0, Ok(590)), None, "nor is a node that lags");
        assert!(heads.is_stale());
        let again = ChainAnswersAgain { block: 608, seconds: 91.0 };
        assert_eq!(heads.heard(1103.0, Ok(608)), Some(HeadUpdate::Again(again)));
        assert_eq!((heads.is_stale(), heads.newest()), (false, Some((608, 1103.0))));
    }

    #[test]
    fn a_chain_that_never_answered_is_told_too() {
        let mut heads = Heads::new(1.0);
        assert_eq!(heads.heard(10.0, down()), None);
        assert!(matches!(heads.heard(15.5, down()), Some(HeadUpdate::Silent(ChainSilent { block: None, .. }))));
        assert_eq!(heads.block(630), 630);
    }

    #[test]
    fn a_head_is_believed_within_what_the_clock_allows_or_by_its_own_time() {
        let mut heads = Heads::new(12.0);
        assert!(!heads.allows(1000.0, 600), "the first one has to show its time");
        assert_eq!(heads.refuses(1000.0, (600, 990.0), None), None);
        heads.heard(1000.0, Ok(600));
        assert!(heads.allows(1000.0, 602) && !heads.allows(1000.0, 603) && heads.allows(1012.0, 603));
        assert!(heads.allows(1000.0, 3) && !heads.allows(1e9, u64::MAX), "a lower one is no danger");
        // The node had lagged by an hour.
        assert_eq!(heads.refuses(1005.0, (900, 1000.0), Some(1000.0 - 3600.0)), None);
        assert_eq!(heads.refuses(1005.0, (900, 1000.0), None), None, "it has forgotten the time of block 600");
        for (block, time, known) in
            [(900, 1000.0, Some(990.0)), (1 << 60, 1e12, Some(990.0)), (900, 1400.0, None), (900, f64::NAN, None)]
        {
            assert!(heads.refuses(1005.0, (block, time), known).unwrap().contains(&format!("block {block}")), "{time} {known:?}");
        }
        assert!(heads.doubt(1 << 60) && !heads.doubt(1 << 60) && heads.doubt(5), "each is told once");
    }

    #[test]
    fn the_clock_goes_on_from_a_stale_head_and_never_back() {
        let mut heads = Heads::new(1.0);
        heads.heard(10.0, Ok(610));
        assert_eq!(heads.block(612), 610, "the chain counts while it speaks: blocks may be late");
        heads.heard(16.0, down());
        assert_eq!((heads.block(616), heads.block(605)), (616, 610));
    }
}
