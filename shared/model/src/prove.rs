//! Proofs: sketches and log-probabilities of finished rollouts, and what a validator wants to know beyond them.

use grail_protocol::constants::{PROOF_BATCH_SIZE, PROOF_TOPK};
use tch::{Kind, TchError, Tensor};

use crate::model::Model;
use crate::sketch;

/// Logits held at once in f32, at most (256 MiB), so that a long sequence over a large vocabulary fits anywhere.
const LOGITS_AT_ONCE: i64 = 1 << 26;
/// Rows of logits at once, at most: the reference's chunk.
const MAX_ROWS: i64 = 512;

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

/// The sampling policy for [`Model::examine`] (GRAIL protocol 6.4, rows 5 and 9).
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
    /// Whether the device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        // libtorch's error types do not reach this side of its C interface, only their text does.
        matches!(self, Self::Torch(error) if ["out of memory", "can't allocate memory"].iter().any(|text| error.to_string().contains(text)))
    }
}

impl Model {
    /// Proves sequences in the given order, in chunks of 16 that are padded to their longest, and hands over each proof with
    /// its index as soon as it is there (GRAIL protocol 5). If memory runs out the chunk is halved for the rest.
    ///
    /// # Errors
    /// When a sequence does not fit the model, the model computes nonsense, or libtorch fails. Proofs handed over before are
    /// good.
    pub fn prove(&self, sequences: &[Sequence], on_result: &mut dyn FnMut(usize, Proof)) -> Result<(), ProveError> {
        self.prove_in_chunks(sequences, None, on_result)
    }

    /// [`Model::prove`], with end-of-sequence and chosen-token probabilities for every sequence.
    ///
    /// # Errors
    /// As [`Model::prove`], and when the policy is out of range or a sequence has fewer than 2 tokens.
    pub fn examine(
        &self,
        sequences: &[Sequence],
        terms: &ExamineTerms,
        on_result: &mut dyn FnMut(usize, Proof),
    ) -> Result<(), ProveError> {
        self.check_terms(terms)?;
        self.prove_in_chunks(sequences, Some(terms), on_result)
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

    fn prove_in_chunks(
        &self,
        sequences: &[Sequence],
        terms: Option<&ExamineTerms>,
        on_result: &mut dyn FnMut(usize, Proof),
    ) -> Result<(), ProveError> {
        let _guard = tch::no_grad_guard();
        let hidden_size = self.config().hidden_size;
        if hidden_size < PROOF_TOPK as i64 {
            return Err(ProveError::TooNarrow { hidden_size });
        }
        let shortest = if terms.is_some() { 2 } else { 1 };
        for (index, sequence) in sequences.iter().enumerate() {
            self.check_sequence(index, sequence, shortest)?;
        }
        let (mut next, mut size) = (0, PROOF_BATCH_SIZE);
        while next < sequences.len() {
            let chunk = next..sequences.len().min(next + size);
            let mut deliver = |index, proof| {
                on_result(index, proof);
                next = index + 1;
            };
            match self.prove_chunk(sequences, chunk, terms, &mut deliver) {
                Ok(()) => {}
                Err(error) if error.is_out_of_memory() && size > 1 => size /= 2,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn prove_chunk(
        &self,
        sequences: &[Sequence],
        chunk: std::ops::Range<usize>,
        terms: Option<&ExamineTerms>,
        deliver: &mut dyn FnMut(usize, Proof),
    ) -> Result<(), ProveError> {
        let batch: Vec<&[u32]> = sequences[chunk.clone()].iter().map(|sequence| sequence.tokens).collect();
        let hidden = self.hidden(&batch)?;
        for (row, index) in chunk.enumerate() {
            let sequence = &sequences[index];
            let hidden = hidden.f_select(0, row as i64)?.f_narrow(0, 0, sequence.tokens.len() as i64)?;
            let sketches = sketch::sketches(&hidden, &sequence.coefficients)?.ok_or(ProveError::NotFinite { index })?;
            let (logprobs, probabilities) = self.token_probabilities(&hidden, sequence, terms)?;
            let examined = match terms {
                None => None,
                Some(terms) => Some(Examined { eos_probability: self.eos_probability(&hidden, terms)?, probabilities }),
            };
            if logprobs.iter().any(|logprob| logprob.is_nan()) {
                return Err(ProveError::NotFinite { index });
            }
            deliver(index, Proof { sketches, logprobs, examined });
        }
        Ok(())
    }

    /// Log-probabilities of the completion tokens and, under terms, their probabilities; `hidden` is `[tokens, width]`.
    fn token_probabilities(
        &self,
        hidden: &Tensor,
        sequence: &Sequence,
        terms: Option<&ExamineTerms>,
    ) -> Result<(Vec<f32>, Vec<f32>), TchError> {
        let tokens: Vec<i64> = sequence.tokens.iter().map(|&token| i64::from(token)).collect();
        let ids = Tensor::f_from_slice(&tokens)?.f_to(self.device())?;
        let (mut logprobs, mut probabilities) = (Vec::new(), Vec::new());
        let mut start = sequence.prompt_length as i64;
        if start == 0 && terms.is_none() {
            // No logits precede the first token; the reference gives it no probability.
            logprobs.push(f32::NEG_INFINITY);
        }
        if start == 0 {
            start = 1;
        }
        let step = (LOGITS_AT_ONCE / self.config().vocab_size).clamp(1, MAX_ROWS);
        while start < tokens.len() as i64 {
            let rows = step.min(tokens.len() as i64 - start);
            // The token at position t is predicted by row t - 1.
            let logits = self.network.logits(&hidden.f_narrow(0, start - 1, rows)?)?.f_to_kind(Kind::Float)?;
            let chosen = ids.f_narrow(0, start, rows)?.f_unsqueeze(1)?;
            logprobs.extend(gathered(&logits.f_log_softmax(-1, None)?, &chosen)?);
            if let Some(terms) = terms {
                let tempered = temper(logits, &ids, start, terms)?;
                probabilities.extend(gathered(&tempered.f_softmax(-1, None)?, &chosen)?);
            }
            start += rows;
        }
        Ok((logprobs, probabilities))
    }

    fn eos_probability(&self, hidden: &Tensor, terms: &ExamineTerms) -> Result<f32, TchError> {
        let second_last = hidden.f_narrow(0, hidden.size()[0] - 2, 1)?;
        let probabilities = self.network.logits(&second_last)?.f_softmax(-1, None)?;
        Ok(probabilities.f_double_value(&[0, i64::from(terms.eos_token_id)])? as f32)
    }
}

/// The values of `rows` (`[R, vocabulary]`) at `chosen` (`[R, 1]`), on the host.
fn gathered(rows: &Tensor, chosen: &Tensor) -> Result<Vec<f32>, TchError> {
    Vec::<f32>::try_from(rows.f_gather(-1, chosen, false)?.f_squeeze_dim(1)?)
}

/// Repetition penalty over all tokens before each row's position, then temperature (GRAIL protocol 6.4, row 9). Row `r` of
/// `logits` predicts position `start + r` of `ids`.
fn temper(mut logits: Tensor, ids: &Tensor, start: i64, terms: &ExamineTerms) -> Result<Tensor, TchError> {
    if terms.repetition_penalty != 1.0 {
        let rows = logits.size()[0];
        let columns = start + rows - 1;
        let positions = Tensor::f_arange_start(start, start + rows, (Kind::Int64, ids.device()))?.f_unsqueeze(1)?;
        let before = Tensor::f_arange(columns, (Kind::Int64, ids.device()))?.f_unsqueeze(0)?.f_lt_tensor(&positions)?;
        // Where a row has fewer predecessors the first token fills up: it precedes every row, and writing a value twice is
        // writing it once.
        let first = ids.f_narrow(0, 0, 1)?.f_unsqueeze(0)?.f_expand([rows, columns], false)?;
        let all = ids.f_narrow(0, 0, columns)?.f_unsqueeze(0)?.f_expand([rows, columns], false)?;
        let seen = all.f_where_self(&before, &first)?;
        let scores = logits.f_gather(-1, &seen, false)?;
        let multiplied = scores.f_mul_scalar(terms.repetition_penalty)?;
        let penalised = multiplied.f_where_self(&scores.f_lt(0)?, &scores.f_divide_scalar(terms.repetition_penalty)?)?;
        logits = logits.f_scatter_(-1, &seen, &penalised)?;
    }
    if terms.temperature == 1.0 { Ok(logits) } else { logits.f_divide_scalar(terms.temperature) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::model::{LoadOptions, Precision};
    use safetensors::Dtype;
    use tch::Device;

    fn model() -> Model {
        let directory = fixtures::checkpoint(21, Dtype::F32);
        Model::load(directory.path(), LoadOptions { device: Device::Cpu, precision: Precision::F32 }).unwrap()
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
        model.prove(&sequences, &mut |index, proof| proofs.push((index, proof))).unwrap();
        assert!(proofs.iter().map(|(index, _)| *index).eq(0..19));
        let mut alone = Vec::new();
        model.prove(&sequences[18..], &mut |_, proof| alone.push(proof)).unwrap();
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
        model.examine(&[sequence(&tokens, 6)], &terms, &mut |_, proof| proofs.push(proof)).unwrap();
        let examined = proofs[0].examined.clone().unwrap();
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
            let error = model.prove(&[sequence(&[1, 2], 1), bad], &mut |_, _| panic!("nothing is proved")).unwrap_err();
            assert!(error.to_string().contains(word) && error.to_string().contains("sequence 1"), "{error}");
        }
    }
}
