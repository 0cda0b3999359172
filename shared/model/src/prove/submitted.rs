//! A batch under way, and its results when they are there: the same for every mode.

use tch::{Device, TchError, Tensor};

use super::layout::Place;
use super::readout::{Columns, nothing};
use super::{ExamineTerms, Examined, Proof, ProveError, Prover, Sequence};
use crate::copies::Download;
use crate::sketch;

/// A batch under way: all of it was asked for, nothing of it fetched.
pub(super) struct Submitted {
    /// Index of the first sequence.
    first: usize,
    places: Vec<Place>,
    /// `[T, 16]`, the largest activations of every row that has a place; log-probabilities and probabilities of completion tokens
    /// in the order of the sequences; the end-of-sequence probability of each sequence.
    results: Download<4>,
}

impl Submitted {
    /// Sends results on their way to the host.
    pub fn send(
        first: usize,
        places: Vec<Place>,
        largest: Tensor,
        columns: &Columns,
        eos: Option<Tensor>,
        device: Device,
    ) -> Result<Self, TchError> {
        let [logprobs, probabilities] = columns.join()?;
        let eos = eos.map_or_else(nothing, Ok)?;
        Ok(Self { first, places, results: Download::start([largest, logprobs, probabilities, eos], device)? })
    }
}

impl Prover {
    /// Waits for a batch's results and hands them over in order; `delivered` counts what was.
    pub(super) fn deliver(
        &mut self,
        sequences: &[Sequence],
        batch: Submitted,
        terms: Option<&ExamineTerms>,
        on_result: &mut dyn FnMut(usize, Proof),
        delivered: &mut usize,
    ) -> Result<(), ProveError> {
        let [largest, logprobs, probabilities, eos] = batch.results.finish()?;
        self.aside(|| {
            let rows = sketch::to_rows(&largest)?;
            let mut logprobs = Vec::<f32>::try_from(logprobs)?.into_iter();
            let mut probabilities = Vec::<f32>::try_from(probabilities)?.into_iter();
            let eos = Vec::<f32>::try_from(eos)?;
            for (offset, place) in batch.places.iter().enumerate() {
                let index = batch.first + offset;
                let sequence = &sequences[index];
                let of_place = rows[place.prompt.clone()].iter().chain(&rows[place.completion.clone()]);
                let sketches = sketch::fold(of_place, &sequence.coefficients).ok_or(ProveError::NotFinite { index })?;
                let count = sequence.predicted();
                let own = logprobs.by_ref().take(count).collect();
                let examined = terms.map(|_| Examined {
                    eos_probability: eos.get(offset).copied().unwrap_or(0.0),
                    probabilities: probabilities.by_ref().take(count).collect(),
                });
                let proof = Proof { sketches, logprobs: sequence.with_unpredicted(own, terms), examined };
                proof.check(index)?;
                on_result(index, proof);
                *delivered = index + 1;
            }
            Ok(())
        })
    }
}
