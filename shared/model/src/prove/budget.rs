//! How many tokens are computed at once: predicted from the model's shape and the free memory, halved when memory runs out all
//! the same, and grown back. Pure.

use std::fmt;

use crate::config::ModelConfig;
use crate::numerics::Attention;

/// Batches without trouble after which a halved budget is doubled again.
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
    /// For every pair of a query and a key of the same sequence, over all sequences: masks, which all are there at once.
    per_pair: usize,
    /// For every such pair of the longest sequence: what its attention takes, which is one sequence's at a time.
    per_pair_once: usize,
}

impl MemoryPlan {
    /// For a model that computes in values of `width` bytes.
    pub(crate) fn of(config: &ModelConfig, width: usize, attention: Attention, blocks: Blocks) -> Self {
        let size = |value: i64| usize::try_from(value).unwrap_or(0);
        let (hidden, inner, vocab) = (size(config.hidden_size), size(config.intermediate_size), size(config.vocab_size));
        let query = size(config.num_attention_heads * config.head_dim);
        let key_value = size(config.num_key_value_heads * config.head_dim);
        let slides = config.windows.iter().any(Option::is_some);
        let masked = slides || attention == Attention::Eager;
        // The residual; queries, keys and values in pieces and joined; the attention's output likewise; the rotation in f32; under
        // a mask keys and values once for every query head.
        let repeated = if masked { 2 * query } else { 0 };
        let attended =
            (hidden + 2 * (query + 2 * key_value) + 2 * query + repeated) * width + size(config.head_dim) * (12 + 2 * width);
        // At the end three copies of the hidden states, and the largest activations of each.
        let ending = 3 * hidden * width + 16 * 24;
        let layer = blocks.hidden_rows * (hidden * (12 + 2 * width) + 2 * inner * width);
        // Keys of 8 bytes, thrice, while the largest activations are chosen.
        let choosing = blocks.hidden_rows * hidden * 24;
        // f32 logits, their log-softmax, and both again under a sampling policy.
        let readout = blocks.logit_rows * (vocab + hidden) * width + blocks.wide_rows * vocab * 16;
        let widest = vocab.max(inner) * hidden * width;
        let library = if blocks.copies_weights { widest } else { GPU_WORKSPACE };
        let (per_pair, per_pair_once) = match attention {
            // Masks as numbers to be added. Scores, the same in f32 and their softmax in f32, or scores and softmax in f32.
            Attention::Eager => {
                let scores = if width == 4 { 8 } else { width + 8 };
                (width * (1 + usize::from(slides)), size(config.num_attention_heads) * scores)
            }
            // A mask of bools, of which the kernel makes numbers.
            Attention::Sdpa if slides => (1, width),
            Attention::Sdpa => (0, 0),
        };
        Self { fixed: layer.max(choosing).max(readout) + library, per_token: attended.max(ending), per_pair, per_pair_once }
    }

    /// Most bytes beside the weights while a batch of `tokens` is computed, of which no sequence has more than `longest`.
    pub fn peak(&self, tokens: usize, longest: usize) -> usize {
        let masks = self.per_pair.saturating_mul(longest);
        self.alone(longest).saturating_add(self.per_token.saturating_add(masks).saturating_mul(tokens))
    }

    /// What does not grow with the number of sequences.
    fn alone(&self, longest: usize) -> usize {
        self.fixed.saturating_add(self.per_pair_once.saturating_mul(longest).saturating_mul(longest))
    }

    /// Tokens of sequences up to `longest` whose batch fits into `free` bytes with a margin.
    fn fitting(&self, free: u64, longest: usize) -> usize {
        let usable = (free as f64 * SHARE_OF_FREE) as usize;
        let masks = self.per_pair.saturating_mul(longest);
        usable.saturating_sub(self.alone(longest)) / self.per_token.saturating_add(masks).max(1)
    }
}

/// The tokens that may be computed at once.
#[derive(Debug, Clone)]
pub struct TokenBudget {
    plan: MemoryPlan,
    free: Option<u64>,
    /// More tokens gain nothing.
    enough: usize,
    /// Tokens of short sequences.
    most: usize,
    now: usize,
    good: u32,
}

impl TokenBudget {
    /// From the bytes that are free on the device beside the weights; `None` where nobody can say.
    pub(crate) fn new(plan: MemoryPlan, free: Option<u64>, most_tokens: usize) -> Self {
        let enough = most_tokens.max(FEWEST_TOKENS);
        let mut budget = Self { plan, free, enough, most: enough, now: enough, good: 0 };
        budget.most = budget.fitting(1);
        budget.now = budget.most;
        budget
    }

    fn fitting(&self, longest: usize) -> usize {
        let fitting = self.free.map_or(self.enough, |free| self.plan.fitting(free, longest));
        fitting.clamp(FEWEST_TOKENS, self.enough)
    }

    /// Tokens of the next batch, at most, where no sequence has more than `longest` (one sequence is always tried).
    pub fn tokens(&self, longest: usize) -> usize {
        self.now.min(self.fitting(longest))
    }

    /// Most bytes beside the weights under this budget, where no sequence has more than `longest`; sequences that do not fit by
    /// themselves are left out.
    pub fn peak_bytes(&self, longest: usize) -> usize {
        let longest = longest.min(self.most);
        let lengths = std::iter::successors(Some(1usize), |length| length.checked_mul(2)).take_while(|length| *length < longest);
        let fits = |length: &usize| self.fitting(*length) >= *length;
        let peak = |length: usize| self.plan.peak(self.most.min(self.fitting(length)), length);
        lengths.chain([longest]).filter(fits).map(peak).max().unwrap_or(0)
    }

    /// A batch went well.
    pub(crate) fn went_well(&mut self) {
        self.good += 1;
        if self.now < self.most && self.good >= GOOD_BATCHES {
            self.now = (self.now * 2).min(self.most);
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
        const LENGTHS: [usize; 2] = [1, 4096];
        let [short, long] = LENGTHS.map(|length| (self.most.min(self.fitting(length)), self.peak_bytes(length) as f64 / MIB));
        write!(f, "up to {} tokens at once, at most {:.0} MiB beside the weights", short.0, short.1)?;
        if short == long {
            return Ok(());
        }
        write!(f, "; of sequences of {} tokens up to {}, at most {:.0} MiB", LENGTHS[1], long.0, long.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Architecture;
    use crate::fixtures;
    use proptest::prelude::*;

    const PLAN: MemoryPlan = MemoryPlan { fixed: 1000, per_token: 10, per_pair: 0, per_pair_once: 0 };
    /// Beside it two bytes of mask for a pair, and 30 of scores.
    const MASKED: MemoryPlan = MemoryPlan { per_pair: 2, per_pair_once: 30, ..PLAN };

    #[test]
    fn memory_that_ran_out_halves_the_budget_which_grows_back_to_what_it_was() {
        let mut budget = TokenBudget::new(PLAN, None, 8192);
        budget.ran_out(6000);
        assert_eq!(budget.tokens(600), 3000);
        budget.ran_out(3000);
        assert_eq!(budget.tokens(600), 1500);
        (0..GOOD_BATCHES).for_each(|_| budget.went_well());
        assert_eq!(budget.tokens(600), 3000);
        (0..2 * GOOD_BATCHES).for_each(|_| budget.went_well());
        assert_eq!(budget.tokens(600), 8192);
    }

    #[test]
    fn masks_and_scores_of_eager_attention_are_counted_by_the_pair() {
        let read = |document: &serde_json::Map<String, serde_json::Value>| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("config.json"), serde_json::Value::Object(document.clone()).to_string()).unwrap();
            ModelConfig::read(folder.path()).unwrap()
        };
        let plan = |family, width, attention| {
            let config = read(&fixtures::family(family));
            MemoryPlan::of(&config, width, attention, Blocks::on(true, config.vocab_size))
        };
        // Four heads. 100 tokens of one sequence are 10,000 pairs.
        let [sdpa, eager] = [Attention::Sdpa, Attention::Eager].map(|attention| plan(Architecture::Qwen2, 2, attention));
        let repeated = 100 * 2 * 32 * 2;
        assert_eq!(eager.peak(100, 100) - sdpa.peak(100, 100), 10_000 * 2 + 10_000 * 4 * (2 + 4 + 4) + repeated);
        // Two of them: both masks, the scores of one at a time.
        assert_eq!(eager.peak(200, 100) - sdpa.peak(200, 100), 20_000 * 2 + 10_000 * 4 * (2 + 4 + 4) + 2 * repeated);
        let [sdpa, eager] = [Attention::Sdpa, Attention::Eager].map(|attention| plan(Architecture::Qwen2, 4, attention));
        assert_eq!(eager.peak(100, 100) - sdpa.peak(100, 100), 10_000 * 4 + 10_000 * 4 * (4 + 4) + 2 * repeated);
        assert_eq!(sdpa.peak(100, 100), sdpa.peak(100, 1), "without a mask lengths do not matter");
        // A layer that slides has a mask of its own, and under SDPA it is the only one.
        let [sdpa, eager] = [Attention::Sdpa, Attention::Eager].map(|attention| plan(Architecture::Qwen3, 2, attention));
        assert_eq!(eager.peak(100, 100) - eager.peak(100, 0), 10_000 * 2 * 2 + 10_000 * 4 * 10);
        assert_eq!(sdpa.peak(100, 100) - sdpa.peak(100, 0), 10_000 + 10_000 * 2);
    }

    #[test]
    fn long_sequences_leave_room_for_fewer_tokens_under_a_mask() {
        let budget = TokenBudget::new(MASKED, Some(10_000_000), 1 << 20);
        let tokens = [1, 100, 400].map(|longest| budget.tokens(longest));
        assert_eq!(tokens, [(8_000_000 - 1030) / 12, (8_000_000 - 301_000) / 210, (8_000_000 - 4_801_000) / 810]);
        assert_eq!(budget.tokens(600), FEWEST_TOKENS, "one sequence is tried all the same");
    }

    proptest! {
        #[test]
        fn what_is_planned_fits_into_what_is_free(free in 10_000u64..10_000_000, longest in 1usize..300) {
            for plan in [PLAN, MASKED] {
                let budget = TokenBudget::new(plan, Some(free), 1 << 20);
                let fits = budget.peak_bytes(longest) as u64 <= free;
                prop_assert!(fits || budget.tokens(longest) == FEWEST_TOKENS, "{plan:?}: {}", budget.peak_bytes(longest));
            }
        }
    }
}
