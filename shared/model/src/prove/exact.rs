//! The reference's way: chunks of 16 in the given order, padded to their longest, logits of every position (GRAIL protocol 5).

use grail_protocol::constants::PROOF_BATCH_SIZE;
use tch::Tensor;

use super::readout::{Columns, Readout, Rows, eos_probabilities};
use super::{ExamineTerms, Examined, Proof, ProveError, Prover, Sequence};
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
        let (mut next, mut size) = (0, PROOF_BATCH_SIZE);
        while next < sequences.len() {
            let chunk = next..sequences.len().min(next + size);
            let mut deliver = |index, proof| {
                on_result(index, proof);
                next = index + 1;
            };
            match self.exact_chunk(model, sequences, chunk, terms, &mut deliver) {
                Ok(()) => {}
                // As the reference does: half of it for all the rest, never growing back, because that would change bits.
                Err(error) if error.is_out_of_memory() && size > 1 => {
                    // cuBLAS and cuDNN allocate beside libtorch's cache, and get nothing of what that keeps.
                    empty_cache(model.device())?;
                    size /= 2;
                    tracing::warn!(sequences = size, "Memory ran out; the rest of the job is computed in smaller batches.");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn exact_chunk(
        &mut self,
        model: &Model,
        sequences: &[Sequence],
        chunk: std::ops::Range<usize>,
        terms: Option<&ExamineTerms>,
        deliver: &mut dyn FnMut(usize, Proof),
    ) -> Result<(), ProveError> {
        let batch: Vec<&[u32]> = sequences[chunk.clone()].iter().map(|sequence| sequence.tokens).collect();
        let hidden = model.hidden(&batch)?;
        let logits = model.logits(&hidden)?;
        let readout = Readout::new(&logits, self.blocks.wide_rows, model.config().vocab_size, terms)?;
        for (row, index) in chunk.enumerate() {
            let sequence = &sequences[index];
            let (row, length) = (row as i64, sequence.tokens.len() as i64);
            let hidden = hidden.f_select(0, row)?.f_narrow(0, 0, length)?;
            let logits = logits.f_select(0, row)?.f_narrow(0, 0, length)?;
            let sketches = self.aside(|| -> Result<_, ProveError> {
                let rows = sketch::to_rows(&sketch::largest(&hidden)?)?;
                sketch::fold(rows.iter(), &sequence.coefficients).ok_or(ProveError::NotFinite { index })
            })?;
            let (logprobs, examined) = read(&logits, sequence, &readout, terms)?;
            let proof = Proof { sketches, logprobs, examined };
            proof.check(index)?;
            self.aside(|| deliver(index, proof));
        }
        Ok(())
    }
}

/// The numbers of one sequence from its logits `[L, vocabulary]`.
fn read(
    logits: &Tensor,
    sequence: &Sequence,
    readout: &Readout,
    terms: Option<&ExamineTerms>,
) -> Result<(Vec<f32>, Option<Examined>), ProveError> {
    let tokens: Vec<i64> = sequence.tokens.iter().map(|&token| i64::from(token)).collect();
    let length = tokens.len() as i64;
    let ids = Tensor::f_from_slice(&tokens)?.f_to(logits.device())?;
    let first = sequence.first_predicted() as i64;
    let mut columns = Columns::default();
    if first < length {
        // The token at position t is predicted by row t - 1.
        let (rows, chosen) = (logits.f_narrow(0, first - 1, length - first)?, ids.f_narrow(0, first, length - first)?);
        readout.read(&Rows { logits: &rows, chosen: &chosen, ids: &ids, first }, &mut columns)?;
    }
    let (logprobs, probabilities) = columns.to_host()?;
    let examined = terms
        .map(|terms| {
            let second_last = logits.f_narrow(0, length - 2, 1)?;
            let eos_probability = Vec::<f32>::try_from(eos_probabilities(&second_last, terms)?)?[0];
            Ok::<_, ProveError>(Examined { eos_probability, probabilities })
        })
        .transpose()?;
    Ok((sequence.with_unpredicted(logprobs, terms), examined))
}
