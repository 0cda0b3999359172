//! How many tokens are computed at once: predicted from the model's shape and the free memory, halved when memory runs out all
//! the same, and grown by what is free then. Pure.

use std::fmt;

use crate::config::ModelConfig;

/// Batches without trouble after which a budget that is not the largest may be doubled.
const GOOD_BATCHES: u32 = 8;
/// Share of the free memory that a batch may take; the rest is for fragmentation and for neighbours on the device.
const SHARE_OF_FREE: f64 = 0.8;
/// A batch smaller than this is not worth its kernel calls.
const FEWEST_TOKENS: usize = 256;
const MIB: f64 = (1 << 20) as f64;

/// Sizes that the packed pass works in on one kind of device. Rows of hidden states, of logits in the model's type, and of
/// logits in f32 that are in memory at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub hidden_rows: usize,
    pub logit_rows: usize,
    pub wide_rows: usize,
    /// More tokens at once gain nothing.
    pub most_tokens: usize,
    /// Whether the library multiplies with a rearranged copy of the weights.
    pub copies_weights: bool,
}

/// What libtorch's libraries take for themselves on a GPU.
const GPU_WORKSPACE: usize = 256 << 20;

impl Blocks {
    /// Blocks that stay in a core's cache on the CPU, and that fill a GPU on CUDA. `vocab_size` bounds the logits.
    pub fn on(cuda: bool, vocab_size: i64) -> Self {
        let vocab = usize::try_from(vocab_size).unwrap_or(1).max(1);
        let rows = |elements: usize, most: usize| (elements / vocab).clamp(1, most);
        if cuda {
            Self {
                hidden_rows: 1 << 14,
                logit_rows: rows(1 << 28, 4096),
                wide_rows: rows(1 << 27, 4096),
                most_tokens: 1 << 16,
                copies_weights: false,
            }
        } else {
            Self {
                hidden_rows: 1024,
                logit_rows: rows(1 << 26, 1024),
                wide_rows: rows(1 << 20, 256),
                most_tokens: 1 << 13,
                copies_weights: true,
            }
        }
    }
}

/// What a batch takes beside the weights, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    fixed: usize,
    per_token: usize,
}

impl MemoryPlan {
    /// For a model that computes in values of `width` bytes.
    pub(crate) fn of(config: &ModelConfig, width: usize, blocks: Blocks) -> Self {
        let size = |value: i64| usize::try_from(value).unwrap_or(0);
        let (hidden, inner, vocab) = (size(config.hidden_size), size(config.intermediate_size), size(config.vocab_size));
        let query = size(config.num_attention_heads * config.head_dim);
        let key_value = size(config.num_key_value_heads * config.head_dim);
        // The residual; queries, keys and values in pieces and joined; the attention's output likewise; the rotation in f32.
        let attention = (hidden + 2 * (query + 2 * key_value) + 2 * query) * width + size(config.head_dim) * (12 + 2 * width);
        // At the end three copies of the hidden states, and the largest activations of each.
        let ending = 3 * hidden * width + 16 * 24;
        let layer = blocks.hidden_rows * (hidden * (12 + 2 * width) + 2 * inner * width);
        // Keys of 8 bytes, thrice, while the largest activations are chosen.
        let choosing = blocks.hidden_rows * hidden * 24;
        // f32 logits, their log-softmax, and both again under a sampling policy.
        let readout = blocks.logit_rows * (vocab + hidden) * width + blocks.wide_rows * vocab * 16;
        let widest = vocab.max(inner) * hidden * width;
        let library = if blocks.copies_weights { widest } else { GPU_WORKSPACE };
        Self { fixed: layer.max(choosing).max(readout) + library, per_token: attention.max(ending) }
    }

    /// Most bytes beside the weights while a batch of `tokens` is computed.
    pub fn peak(&self, tokens: usize) -> usize {
        self.fixed.saturating_add(self.per_token.saturating_mul(tokens))
    }

    /// Tokens whose batch fits into `free` bytes with a margin.
    fn fitting(&self, free: u64) -> usize {
        let usable = (free as f64 * SHARE_OF_FREE) as usize;
        usable.saturating_sub(self.fixed) / self.per_token.max(1)
    }

    /// Tokens that fit into `free` bytes more than a batch has taken, whose memory this process still holds.
    fn fitting_beside(&self, free: u64) -> usize {
        (free as f64 * SHARE_OF_FREE) as usize / self.per_token.max(1)
    }
}

/// The tokens that may be computed at once.
#[derive(Debug, Clone)]
pub struct TokenBudget {
    plan: MemoryPlan,
    /// More is of no use.
    ceiling: usize,
    /// The most that was allowed so far.
    most: usize,
    now: usize,
    good: u32,
}

impl TokenBudget {
    /// From the bytes that are free on the device beside the weights; `None` where nobody can say.
    pub(crate) fn new(plan: MemoryPlan, free: Option<u64>, most_tokens: usize) -> Self {
        let fitting = free.map_or(most_tokens, |free| plan.fitting(free));
        let ceiling = most_tokens.max(FEWEST_TOKENS);
        let most = fitting.clamp(FEWEST_TOKENS, ceiling);
        Self { plan, ceiling, most, now: most, good: 0 }
    }

    /// Tokens of the next batch, at most (one sequence is always tried).
    pub fn tokens(&self) -> usize {
        self.now
    }

    /// Most bytes beside the weights under this budget.
    pub fn peak_bytes(&self) -> usize {
        self.plan.peak(self.most)
    }

    /// A batch went well. Now and then the next ones may be larger, by what `free` measures then: what was free when the model was
    /// loaded tells nothing of now. Where nobody can say, the budget grows as if all were.
    pub(crate) fn went_well(&mut self, free: impl FnOnce() -> Option<u64>) {
        self.good += 1;
        if self.now < self.ceiling && self.good >= GOOD_BATCHES {
            let more = free().map_or(self.ceiling, |free| self.plan.fitting_beside(free));
            self.now = (self.now * 2).min(self.now.saturating_add(more)).min(self.ceiling);
            self.most = self.most.max(self.now);
            self.good = 0;
        }
    }

    /// Memory ran out over a batch of `tokens`.
    pub(crate) fn ran_out(&mut self, tokens: usize) {
        self.now = (tokens.min(self.now) / 2).max(1);
        self.good = 0;
    }
}

impl fmt::Display for TokenBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up to {} tokens at once, at most {:.0} MiB beside the weights", self.most, self.peak_bytes() as f64 / MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAN: MemoryPlan = MemoryPlan { fixed: 1000, per_token: 10 };

    #[test]
    fn memory_that_ran_out_halves_the_budget_which_grows_back_to_what_it_was() {
        let mut budget = TokenBudget::new(PLAN, None, 8192);
        budget.ran_out(6000);
        assert_eq!(budget.tokens(), 3000);
        budget.ran_out(3000);
        assert_eq!(budget.tokens(), 1500);
        (0..GOOD_BATCHES).for_each(|_| budget.went_well(|| None));
        assert_eq!(budget.tokens(), 3000);
        (0..2 * GOOD_BATCHES).for_each(|_| budget.went_well(|| None));
        assert_eq!(budget.tokens(), 8192);
    }

    #[test]
    fn a_budget_grows_by_what_is_free_then_and_not_by_what_was() {
        // Another process held the memory while the model was loaded.
        let mut budget = TokenBudget::new(PLAN, Some(0), 8192);
        assert_eq!(budget.tokens(), FEWEST_TOKENS);
        let mut measured = 0;
        let mut grow = |free: u64| {
            (0..GOOD_BATCHES).for_each(|_| {
                budget.went_well(|| {
                    measured += 1;
                    Some(free)
                });
            });
            (budget.tokens(), budget.peak_bytes())
        };
        assert_eq!(grow(0).0, FEWEST_TOKENS, "it still does");
        assert_eq!(grow(1250).0, FEWEST_TOKENS + 100, "10 bytes a token, and four fifths of what is free");
        assert_eq!(grow(1 << 30).0, 2 * (FEWEST_TOKENS + 100), "twice at most");
        let (tokens, peak) = (0..10).map(|_| grow(1 << 30)).last().unwrap();
        assert_eq!((tokens, peak), (8192, PLAN.peak(8192)));
        let so_far = measured;
        (0..3 * GOOD_BATCHES).for_each(|_| budget.went_well(|| unreachable!("the largest budget needs no measuring")));
        assert!((4..=14).contains(&so_far), "measured {so_far} times, once in {GOOD_BATCHES} batches");
    }

    proptest! {
        #[test]
        fn what_is_planned_fits_into_what_is_free(free in 10_000u64..10_000_000) {
            let budget = TokenBudget::new(PLAN, Some(free), 1 << 20);
            prop_assert!(budget.peak_bytes() as u64 <= free || budget.tokens() == FEWEST_TOKENS);
        }
    }
}
