//! Proofs: sketches and log-probabilities of finished rollouts, and what a validator wants to know beyond them.
//!
//! ```text
//!  sequences ──┬─ exact   chunks of 16, padded, logits of all positions      to the bit what transformers has on the CPU
//!              └─ packed  batches under a token budget, no padding,          the same numbers but for the last bits,
//!                         logits of completion positions only                at a multiple of the speed
//! ```

mod budget;
mod drift;
mod exact;
mod layout;
mod packed;
mod readout;
mod submitted;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use grail_protocol::constants::PROOF_TOPK;
use tch::TchError;

use self::budget::Blocks;
pub use self::budget::{MemoryPlan, TokenBudget};
pub use self::drift::Drift;
use crate::device_error::is_out_of_memory;
use crate::model::Model;

/// One rollout to be proved.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Prompt ids, then completion ids.
    pub tokens: &'a [u32],
    /// Number of prompt tokens.
    pub prompt_length: usize,
    /// The 16 sketch coefficients of its beacon, each in -127..=127 (GRAIL protocol 2.3).
    pub coefficients: [i8; PROOF_TOPK],
}

impl Sequence<'_> {
    fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_length]
    }

    /// The first position whose token is given a probability: no logits precede position 0.
    fn first_predicted(&self) -> usize {
        self.prompt_length.max(1)
    }

    /// Completion tokens that are given a probability.
    fn predicted(&self) -> usize {
        self.tokens.len().saturating_sub(self.first_predicted())
    }

    /// Without a prompt the reference gives the first token minus infinity; in an examination it is left out.
    fn with_unpredicted(&self, logprobs: Vec<f32>, terms: Option<&ExamineTerms>) -> Vec<f32> {
        if self.prompt_length > 0 || terms.is_some() {
            return logprobs;
        }
        std::iter::once(f32::NEG_INFINITY).chain(logprobs).collect()
    }
}

/// The sampling policy for [`Prover::prove`] (GRAIL protocol 6.4, rows 5 and 9).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExamineTerms {
    /// Sampling temperature, above 0.
    pub temperature: f64,
    /// Repetition penalty over all tokens before a position, above 0; 1 is none.
    pub repetition_penalty: f64,
    /// The tokenizer's end-of-sequence id.
    pub eos_token_id: u32,
}

/// What the model says of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    /// One sketch per token, prompt included, in `[0, 2^31 - 1)`.
    pub sketches: Vec<u32>,
    /// Natural-log probability of each completion token: raw logits in f32, no temperature, no penalty (GRAIL protocol 5).
    pub logprobs: Vec<f32>,
    /// Present when the sequence was examined.
    pub examined: Option<Examined>,
}

impl Proof {
    /// Nothing that is not a number may be signed. (Sketches were judged when they were made.)
    fn check(&self, index: usize) -> Result<(), ProveError> {
        if self.logprobs.iter().any(|logprob| logprob.is_nan()) { Err(ProveError::NotFinite { index }) } else { Ok(()) }
    }
}

/// What termination and distribution are judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct Examined {
    /// Softmax of the second-last row of logits at the end-of-sequence id, computed in the logits' type.
    pub eos_probability: f32,
    /// Probability of each completion token under penalty and temperature, f32.
    pub probabilities: Vec<f32>,
}

/// Why a proof cannot be made. Indices count from 0.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// The sequence cannot be forwarded or split as asked.
    #[error(
        "sequence {index}: {tokens} tokens with a prompt of {prompt_length}, want 1 to {longest} tokens and a prompt within them"
    )]
    Length {
        /// The sequence.
        index: usize,
        /// Its tokens.
        tokens: usize,
        /// Its prompt length.
        prompt_length: usize,
        /// The model's limit.
        longest: usize,
    },
    /// A token id that the model does not have.
    #[error("sequence {index}: token {token} at position {position} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The sequence.
        index: usize,
        /// Position in the sequence.
        position: usize,
        /// The id.
        token: u32,
        /// The model's number of ids.
        vocab_size: i64,
    },
    /// The policy is no policy.
    #[error("{field} = {value} cannot be examined with: {reason}")]
    Terms {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What is wanted.
        reason: &'static str,
    },
    /// The model computed NaN or infinity; nothing of it may be signed.
    #[error("sequence {index}: the model computed NaN or infinity; the checkpoint has diverged, or the device is defective")]
    NotFinite {
        /// The sequence.
        index: usize,
    },
    /// The model is narrower than a sketch.
    #[error("a hidden state of {hidden_size} values is narrower than a sketch ({PROOF_TOPK} values)")]
    TooNarrow {
        /// The model's width.
        hidden_size: i64,
    },
    /// libtorch failed.
    #[error("libtorch failed: {0}")]
    Torch(#[from] TchError),
}

impl ProveError {
    /// Whether the device, its libraries or the host ran out of memory: a smaller batch may do.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Torch(error) if is_out_of_memory(error))
    }
}

/// How batches are composed and computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The reference's composition: on the CPU the same bits as transformers on the same libtorch.
    #[default]
    Exact,
    /// Sequences laid end to end.
    Packed,
    /// As [`Mode::Packed`], with the prompt that neighbours have in common computed once.
    PackedShared,
}

impl Mode {
    /// `exact`, `packed` or `packed-shared`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Packed => "packed",
            Self::PackedShared => "packed-shared",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Exact, Self::Packed, Self::PackedShared];
        let found = all.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("{text:?} is no mode: use exact, packed or packed-shared"))
    }
}

/// Makes proofs in one mode and remembers what the device can hold.
#[derive(Debug)]
pub struct Prover {
    mode: Mode,
    blocks: Blocks,
    budget: TokenBudget,
    /// Whether a chunk of [`Mode::Exact`] is submitted before the results of the one before it are waited for: of use where the
    /// device computes by itself, and a delay where the host does.
    ahead: bool,
    /// Host time spent on anything but the forward pass.
    beside: Duration,
}

impl Prover {
    /// A prover for `model`; `free` is the device's free memory beside the weights in bytes, where it is known.
    pub fn new(model: &Model, mode: Mode, free: Option<u64>) -> Self {
        let config = model.config();
        let cuda = model.device().is_cuda();
        let blocks = Blocks::on(cuda, config.vocab_size);
        let plan = MemoryPlan::of(config, model.network.kind().elt_size_in_bytes(), model.network.attention, blocks);
        Self { mode, blocks, budget: TokenBudget::new(plan, free, blocks.most_tokens), ahead: cuda, beside: Duration::ZERO }
    }

    /// How batches are composed.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the packed modes compute at once.
    pub fn budget(&self) -> &TokenBudget {
        &self.budget
    }

    /// Host time since the last call that went into packing, sketching and handing over rather than into the forward pass.
    pub fn take_time_beside(&mut self) -> Duration {
        std::mem::take(&mut self.beside)
    }

    /// Proves sequences and hands over each proof with its index, in order, as soon as it is there; with `terms` each has
    /// end-of-sequence and chosen-token probabilities. If memory runs out the rest is computed in smaller batches.
    ///
    /// # Errors
    /// When a sequence does not fit the model, the policy is out of range, the model computes nonsense, or libtorch fails.
    /// Proofs handed over before are good.
    pub fn prove(
        &mut self,
        model: &Model,
        sequences: &[Sequence],
        terms: Option<&ExamineTerms>,
        on_result: &mut dyn FnMut(usize, Proof),
    ) -> Result<(), ProveError> {
        let _guard = tch::no_grad_guard();
        model.check_job(sequences, terms)?;
        match self.mode {
            Mode::Exact => self.prove_exact(model, sequences, terms, on_result),
            Mode::Packed => self.prove_packed(model, sequences, false, terms, on_result),
            Mode::PackedShared => self.prove_packed(model, sequences, true, terms, on_result),
        }
    }

    /// Runs something that is no part of the forward pass and counts its time.
    fn aside<R>(&mut self, work: impl FnOnce() -> R) -> R {
        #[allow(clippy::disallowed_methods, reason = "a duration on this thread; nothing is decided by it")]
        let begun = Instant::now();
        let done = work();
        self.beside += begun.elapsed();
        done
    }
}

impl Model {
    fn check_job(&self, sequences: &[Sequence], terms: Option<&ExamineTerms>) -> Result<(), ProveError> {
        let hidden_size = self.config().hidden_size;
        if hidden_size < PROOF_TOPK as i64 {
            return Err(ProveError::TooNarrow { hidden_size });
        }
        terms.map_or(Ok(()), |terms| self.check_terms(terms))?;
        let shortest = if terms.is_some() { 2 } else { 1 };
        sequences.iter().enumerate().try_for_each(|(index, sequence)| self.check_sequence(index, sequence, shortest))
    }

    fn check_terms(&self, terms: &ExamineTerms) -> Result<(), ProveError> {
        let positive = |field, value: f64| {
            let legal = value.is_finite() && value > 0.0;
            if legal { Ok(()) } else { Err(ProveError::Terms { field, value, reason: "want a finite number above 0" }) }
        };
        positive("temperature", terms.temperature)?;
        positive("repetition_penalty", terms.repetition_penalty)?;
        if i64::from(terms.eos_token_id) >= self.config().vocab_size {
            let (field, value) = ("eos_token_id", f64::from(terms.eos_token_id));
            return Err(ProveError::Terms { field, value, reason: "it is outside the vocabulary" });
        }
        Ok(())
    }

    /// Judges what came from outside, before any of it reaches libtorch.
    ///
    /// # Errors
    /// [`ProveError::Length`] and [`ProveError::Token`] with the first offender.
    pub fn check_sequence(&self, index: usize, sequence: &Sequence, shortest: usize) -> Result<(), ProveError> {
        let (tokens, prompt_length) = (sequence.tokens.len(), sequence.prompt_length);
        let longest = self.config().max_position_embeddings;
        if tokens < shortest || tokens > longest || prompt_length > tokens {
            return Err(ProveError::Length { index, tokens, prompt_length, longest });
        }
        let vocab_size = self.config().vocab_size;
        let stray = sequence.tokens.iter().enumerate().find(|&(_, &token)| i64::from(token) >= vocab_size);
        match stray {
            Some((position, &token)) => Err(ProveError::Token { index, position, token, vocab_size }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Architecture;
    use crate::fixtures;
    use crate::model::{LoadOptions, Precision};
    use safetensors::Dtype;
    use tch::Device;

    fn model() -> Model {
        model_of(Architecture::Qwen2)
    }

    fn model_of(family: Architecture) -> Model {
        let directory = fixtures::checkpoint_of(&fixtures::family(family), 21, Dtype::F32);
        Model::load(directory.path(), LoadOptions { device: Device::Cpu, precision: Precision::F32 }).unwrap()
    }

    fn prover(model: &Model, mode: Mode) -> Prover {
        Prover::new(model, mode, None)
    }

    fn exact(model: &Model) -> Prover {
        prover(model, Mode::Exact)
    }

    fn sequence(tokens: &[u32], prompt_length: usize) -> Sequence<'_> {
        Sequence { tokens, prompt_length, coefficients: std::array::from_fn(|index| index as i8 - 7) }
    }

    #[test]
    fn proofs_come_in_order_one_per_sequence_whatever_the_chunk() {
        let model = model();
        let rows: Vec<Vec<u32>> = (0..19).map(|row| (0..20 + row).map(|position| (row * 7 + position) % 96).collect()).collect();
        let sequences: Vec<Sequence> = rows.iter().map(|tokens| sequence(tokens, 5)).collect();
        let mut proofs = Vec::new();
        exact(&model).prove(&model, &sequences, None, &mut |index, proof| proofs.push((index, proof))).unwrap();
        assert!(proofs.iter().map(|(index, _)| *index).eq(0..19));
        let mut alone = Vec::new();
        exact(&model).prove(&model, &sequences[18..], None, &mut |_, proof| alone.push(proof)).unwrap();
        for ((_, proof), tokens) in proofs.iter().zip(&rows) {
            assert_eq!((proof.sketches.len(), proof.logprobs.len()), (tokens.len(), tokens.len() - 5));
            assert!(proof.logprobs.iter().all(|logprob| *logprob < 0.0));
        }
        let near = |(one, other): (&f32, &f32)| (one - other).abs() < 1e-4;
        assert!(proofs[18].1.logprobs.iter().zip(&alone[0].logprobs).all(near));
    }

    #[test]
    fn examined_probabilities_are_the_plain_rule_position_by_position() {
        let model = model();
        let tokens: Vec<u32> = (0..40).map(|position| position * position % 96).collect();
        let terms = ExamineTerms { temperature: 0.7, repetition_penalty: 1.3, eos_token_id: 2 };
        let mut proofs = Vec::new();
        for mode in [Mode::Exact, Mode::Packed] {
            let take = &mut |_, proof| proofs.push(proof);
            prover(&model, mode).prove(&model, &[sequence(&tokens, 6)], Some(&terms), take).unwrap();
        }
        let [examined, packed] = [0, 1].map(|index: usize| proofs[index].examined.clone().unwrap());
        assert!(examined.probabilities.iter().zip(&packed.probabilities).all(|(one, other)| (one - other).abs() < 1e-5));
        assert!((examined.eos_probability - packed.eos_probability).abs() < 1e-5);
        let hidden = model.hidden(&[&tokens]).unwrap().select(0, 0);
        let logits = Vec::<Vec<f32>>::try_from(model.logits(&hidden).unwrap()).unwrap();
        let softmax = |row: &[f64], id: u32| {
            let total: f64 = row.iter().map(|logit| logit.exp()).sum();
            row[id as usize].exp() / total
        };
        for (got, position) in examined.probabilities.iter().zip(6..) {
            let mut row: Vec<f64> = logits[position - 1].iter().map(|&logit| f64::from(logit)).collect();
            for id in std::collections::BTreeSet::from_iter(&tokens[..position]) {
                let logit = &mut row[*id as usize];
                *logit = if *logit < 0.0 { *logit * 1.3 } else { *logit / 1.3 };
            }
            row.iter_mut().for_each(|logit| *logit /= 0.7);
            assert!((f64::from(*got) - softmax(&row, tokens[position])).abs() < 1e-5);
        }
        assert_eq!(examined.probabilities.len(), 34);
        let row: Vec<f64> = logits[38].iter().map(|&logit| f64::from(logit)).collect();
        assert!((f64::from(examined.eos_probability) - softmax(&row, 2)).abs() < 1e-5);
    }

    #[test]
    fn what_does_not_fit_the_model_is_refused_before_it_is_forwarded() {
        let model = model();
        let long = vec![1; 129];
        let cases = [
            (sequence(&[], 0), "0 tokens"),
            (sequence(&[1, 2], 3), "prompt of 3"),
            (sequence(&long, 3), "129 tokens"),
            (sequence(&[1, 96], 1), "token 96 at position 1"),
        ];
        for (bad, word) in cases {
            let both = [sequence(&[1, 2], 1), bad];
            let error = exact(&model).prove(&model, &both, None, &mut |_, _| panic!("nothing is proved")).unwrap_err();
            assert!(error.to_string().contains(word) && error.to_string().contains("sequence 1"), "{error}");
        }
    }

    /// A group of 16 of one prompt, then sequences of other prompts, one of them without.
    fn mixed() -> Vec<(Vec<u32>, usize)> {
        let group =
            (0..16u32).map(|row| ((0..9).map(|p| p * 5 % 96).chain((0..4 + row * 3).map(|p| (p * p + row) % 96)).collect(), 9));
        let others = [(0..30).collect(), (40..90).collect(), (5..77).collect()];
        group.chain(others.into_iter().zip([0, 12, 70])).collect()
    }

    /// The sequence of [`mixed`] that has no prompt has a first log-probability that no difference can be made of.
    fn finite(proofs: &[Proof]) -> Vec<Proof> {
        let mut proofs = proofs.to_vec();
        proofs[16].logprobs[0] = 0.0;
        proofs
    }

    fn prove(model: &Model, prover: &mut Prover, rows: &[(Vec<u32>, usize)], terms: Option<&ExamineTerms>) -> Vec<Proof> {
        let sequences: Vec<Sequence> = rows.iter().map(|(tokens, prompt)| sequence(tokens, *prompt)).collect();
        let mut proofs = Vec::new();
        let take = &mut |index, proof| {
            assert_eq!(index, proofs.len());
            proofs.push(proof);
        };
        prover.prove(model, &sequences, terms, take).unwrap();
        proofs
    }

    #[test]
    fn packed_modes_give_the_numbers_of_exact_whatever_the_budget() {
        Architecture::ALL.into_iter().for_each(packed_modes_give_the_numbers_of_exact);
    }

    fn packed_modes_give_the_numbers_of_exact(family: Architecture) {
        let model = model_of(family);
        let rows = mixed();
        let want = prove(&model, &mut exact(&model), &rows, None);
        for mode in [Mode::Packed, Mode::PackedShared] {
            for tokens in [1, 37, 300, 100_000] {
                let mut prover = prover(&model, mode);
                prover.budget.ran_out(2 * tokens);
                let got = prove(&model, &mut prover, &rows, None);
                assert_eq!(got[16].logprobs[0], f32::NEG_INFINITY, "{mode}");
                let drift = Drift::between(&finite(&want), &finite(&got)).unwrap();
                assert!(
                    drift.identical_sketches > 0.99 && drift.logprob_max < 1e-4,
                    "{family:?}, {mode}, {tokens} tokens: {drift}"
                );
            }
        }
    }

    #[test]
    fn exact_gives_the_same_proofs_in_the_same_order_when_it_submits_ahead() {
        let model = model();
        let rows: Vec<(Vec<u32>, usize)> = (0..3).flat_map(|_| mixed()).collect();
        let terms = ExamineTerms { temperature: 0.7, repetition_penalty: 1.3, eos_token_id: 2 };
        for terms in [None, Some(&terms)] {
            let want = prove(&model, &mut exact(&model), &rows, terms);
            let mut ahead = exact(&model);
            ahead.ahead = true;
            assert_eq!(prove(&model, &mut ahead, &rows, terms), want);
        }
    }

    #[test]
    fn proofs_by_rows_are_those_under_a_mask_but_for_the_last_bits() {
        for family in Architecture::ALL {
            let rows = mixed();
            let masked = model_of(family);
            let want = prove(&masked, &mut exact(&masked), &rows, None);
            let by_rows = masked.attending_by_rows(true);
            let got = prove(&by_rows, &mut exact(&by_rows), &rows, None);
            let drift = Drift::between(&finite(&want), &finite(&got)).unwrap();
            assert!(drift.identical_sketches > 0.99 && drift.logprob_max < 1e-4, "{family:?}: {drift}");
        }
    }

    #[test]
    fn packed_modes_examine_as_exact_does() {
        let model = model();
        let rows = mixed();
        let terms = ExamineTerms { temperature: 0.7, repetition_penalty: 1.3, eos_token_id: 2 };
        let want = prove(&model, &mut exact(&model), &rows, Some(&terms));
        for mode in [Mode::Packed, Mode::PackedShared] {
            let got = prove(&model, &mut prover(&model, mode), &rows, Some(&terms));
            for (want, got) in want.iter().zip(got) {
                let (want, got) = (want.examined.as_ref().unwrap(), got.examined.unwrap());
                let near = |(one, other): (&f32, &f32)| (one - other).abs() < 1e-5;
                assert!(want.probabilities.len() == got.probabilities.len());
                assert!(want.probabilities.iter().zip(&got.probabilities).all(near), "{mode}");
                assert!(near((&want.eos_probability, &got.eos_probability)), "{mode}");
            }
        }
    }
}
