//! The reference's way: chunks of 16 in the given order, padded to their longest, logits of every position (GRAIL protocol 5).

use std::ops::Range;

use grail_protocol::constants::PROOF_BATCH_SIZE;
use tch::{TchError, Tensor};

use super::layout::Place;
use super::readout::{Columns, Readout, Rows, eos_probabilities};
use super::submitted::Submitted;
use super::{ExamineTerms, Proof, ProveError, Prover, Sequence};
use crate::copies::upload;
use crate::memory::empty_cache;
use crate::model::Model;
use crate::sketch;

impl Prover {
    pub(super) fn prove_exact(
        &mut self,
        model: &Model,
        sequences: &[Sequence],
        terms: Option<&ExamineTerms>,
        on_result: &mut dyn FnMut(usize, Proof),
    ) -> Result<(), ProveError> {
        let (mut submitted, mut delivered, mut size) = (0, 0, PROOF_BATCH_SIZE);
        let (mut under_way, mut ahead) = (None, self.ahead);
        while delivered < sequences.len() {
            let chunk = submitted..sequences.len().min(submitted + size);
            let step = match chunk.is_empty() {
                true => Ok(None),
                false => self.submit_chunk(model, sequences, chunk.clone(), terms).map(Some),
            };
            let beside_another = under_way.is_some();
            let fetched = match under_way.take() {
                Some(before) => self.deliver(sequences, before, terms, on_result, &mut delivered),
                None => Ok(()),
            };
            let step = match (fetched.and(step), ahead) {
                (Ok(Some(now)), false) => self.deliver(sequences, now, terms, on_result, &mut delivered).map(|()| None),
                (step, _) => step,
            };
            match step {
                Ok(next) => {
                    submitted = chunk.end;
                    under_way = next;
                }
                Err(error) if error.is_out_of_memory() && (beside_another || size > 1) => {
                    // cuBLAS and cuDNN allocate beside libtorch's cache, and get nothing of what that keeps.
                    empty_cache(model.device())?;
                    submitted = delivered;
                    if beside_another {
                        // The reference computes it by itself, and by itself it may fit.
                        ahead = false;
                        continue;
                    }
                    // As the reference does: half of it for all the rest, never growing back, because that would change bits.
                    size /= 2;
                    tracing::warn!(sequences = size, "Memory ran out; the rest of the job is computed in smaller batches.");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn submit_chunk(
        &mut self,
        model: &Model,
        sequences: &[Sequence],
        chunk: Range<usize>,
        terms: Option<&ExamineTerms>,
    ) -> Result<Submitted, ProveError> {
        let (first, device) = (chunk.start, model.device());
        let sequences = &sequences[chunk];
        let places = places(sequences);
        let tokens: Vec<i64> = sequences.iter().flat_map(|sequence| sequence.tokens).map(|&token| i64::from(token)).collect();
        let [tokens] = upload([&tokens], device)?;
        let batch: Vec<&[u32]> = sequences.iter().map(|sequence| sequence.tokens).collect();
        let hidden = model.hidden(&batch)?;
        let logits = model.logits(&hidden)?;
        let readout = Readout::new(&logits, self.blocks.wide_rows, model.config().vocab_size, terms)?;
        let (mut columns, mut largest, mut eos) = (Columns::default(), Vec::new(), Vec::new());
        for (row, (sequence, place)) in (0..).zip(sequences.iter().zip(&places)) {
            let length = place.len() as i64;
            let hidden = hidden.f_select(0, row)?.f_narrow(0, 0, length)?;
            let logits = logits.f_select(0, row)?.f_narrow(0, 0, length)?;
            largest.push(self.aside(|| sketch::largest(&hidden))?);
            let ids = tokens.f_narrow(0, place.prompt.start as i64, length)?;
            read(&logits, &ids, sequence.first_predicted() as i64, &readout, &mut columns)?;
            if let Some(terms) = terms {
                eos.push(eos_probabilities(&logits.f_narrow(0, length - 2, 1)?, terms)?);
            }
        }
        let largest = Tensor::f_cat(&largest, 0)?;
        let eos = terms.map(|_| Tensor::f_cat(&eos, 0)).transpose()?;
        Ok(Submitted::send(first, places, largest, &columns, eos, device)?)
    }
}

/// Where each sequence's results lie: end to end.
fn places(sequences: &[Sequence]) -> Vec<Place> {
    let mut end = 0;
    let place = |sequence: &Sequence| {
        let prompt = end..end + sequence.prompt_length;
        end += sequence.tokens.len();
        Place { completion: prompt.end..end, prompt }
    };
    sequences.iter().map(place).collect()
}

/// The numbers of one sequence from its logits `[L, vocabulary]` and its ids `[L]`.
fn read(logits: &Tensor, ids: &Tensor, first: i64, readout: &Readout, columns: &mut Columns) -> Result<(), TchError> {
    let length = ids.size1()?;
    if first >= length {
        return Ok(());
    }
    // The token at position t is predicted by row t - 1.
    let (logits, chosen) = (logits.f_narrow(0, first - 1, length - first)?, ids.f_narrow(0, first, length - first)?);
    readout.read(&Rows { logits: &logits, chosen: &chosen, ids, first }, columns)
}
