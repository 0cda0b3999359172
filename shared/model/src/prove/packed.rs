//! The fast way: sequences laid end to end, nothing computed for padding, logits only where a completion token needs one.
//!
//! A batch is submitted before the results of the one before it are fetched, so that on a device that works by itself the
//! next batch is packed and copied while this one is computed.

use std::collections::VecDeque;

use tch::{Device, TchError, Tensor};

use super::layout::{Layout, Place, batches};
use super::readout::{Columns, Readout, Rows, eos_probabilities};
use super::{ExamineTerms, Examined, Proof, ProveError, Prover, Sequence};
use crate::memory::{empty_cache, free_memory};
use crate::model::Model;
use crate::network::{Masks, Network};
use crate::sketch;

/// A batch under way: what the device was asked for, nothing of it fetched.
struct Submitted {
    /// Index of the first sequence.
    first: usize,
    places: Vec<Place>,
    /// `[T, 16]`: the largest activations of every packed row.
    largest: Tensor,
    columns: Columns,
    /// `[sequences]`
    eos: Option<Tensor>,
}

impl Prover {
    pub(super) fn prove_packed(
        &mut self,
        model: &Model,
        sequences: &[Sequence],
        share: bool,
        terms: Option<&ExamineTerms>,
        on_result: &mut dyn FnMut(usize, Proof),
    ) -> Result<(), ProveError> {
        let (mut submitted, mut delivered) = (0, 0);
        let (mut planned, mut planned_for) = (VecDeque::new(), 0);
        let mut under_way = None;
        while delivered < sequences.len() {
            let budget = self.budget.tokens();
            if budget != planned_for {
                planned = self.aside(|| batches(&sequences[submitted..], share, budget)).into();
                planned.iter_mut().for_each(|batch| *batch = batch.start + submitted..batch.end + submitted);
                planned_for = budget;
            }
            let step = match planned.pop_front() {
                Some(batch) => {
                    submitted = batch.end;
                    self.submit(model, sequences, batch, share, terms).map(Some)
                }
                None => Ok(None),
            };
            let fetched = match under_way.take() {
                Some(before) => self.deliver(sequences, before, terms, on_result, &mut delivered),
                None => Ok(()),
            };
            match fetched.and(step) {
                Ok(next) => {
                    self.budget.went_well(|| free_memory(model.device()));
                    under_way = next;
                }
                Err(error) if error.is_out_of_memory() && submitted - delivered > 1 && budget > 1 => {
                    // cuBLAS and cuDNN allocate beside libtorch's cache, and get nothing of what that keeps.
                    empty_cache(model.device())?;
                    self.budget.ran_out(tokens(&sequences[delivered..submitted]));
                    tracing::warn!(tokens = self.budget.tokens(), "Memory ran out; the batch is computed in smaller ones.");
                    (submitted, planned_for) = (delivered, 0);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn submit(
        &mut self,
        model: &Model,
        sequences: &[Sequence],
        range: std::ops::Range<usize>,
        share: bool,
        terms: Option<&ExamineTerms>,
    ) -> Result<Submitted, ProveError> {
        let first = range.start;
        let sequences = &sequences[range];
        let layout = self.aside(|| Layout::of(sequences, share));
        let device = model.device();
        let (ids, positions) = (to_device(&layout.ids, device)?, to_device(&layout.positions, device)?);
        let network = &model.network;
        let masked = layout.places.iter().map(|place| Ok((place, network.masks(place.len() as i64, None)?)));
        let masked = masked.collect::<Result<Vec<_>, TchError>>()?;
        let hidden = network.hidden_packed(&ids, &positions, self.blocks.hidden_rows as i64, &mut |layer, q, k, v| {
            attend(network, layer, &masked, q, k, v)
        })?;
        drop(masked);
        let columns = self.read(model, &hidden, sequences, &layout, terms)?;
        let eos = terms.map(|terms| {
            let rows: Vec<i64> = layout.places.iter().map(|place| place.row(place.len() - 2) as i64).collect();
            eos_probabilities(&network.logits(&hidden.f_index_select(0, &to_device(&rows, device)?)?)?, terms)
        });
        let eos = eos.transpose()?;
        let block = self.blocks.hidden_rows as i64;
        let largest = self.aside(|| largest(&hidden, block))?;
        Ok(Submitted { first, places: layout.places, largest, columns, eos })
    }

    /// Log-probabilities of all completion tokens, in the order of the sequences.
    fn read(
        &self,
        model: &Model,
        hidden: &Tensor,
        sequences: &[Sequence],
        layout: &Layout,
        terms: Option<&ExamineTerms>,
    ) -> Result<Columns, ProveError> {
        let device = model.device();
        let mut columns = Columns::default();
        let readout = Readout::new(hidden, self.blocks.wide_rows, model.config().vocab_size, terms)?;
        let wanted = Wanted::of(sequences, layout);
        let (rows, chosen) = (to_device(&wanted.rows, device)?, to_device(&wanted.chosen, device)?);
        let size = [self.blocks.logit_rows.min(wanted.rows.len()) as i64, model.config().vocab_size];
        let buffer = Tensor::f_empty(size, (hidden.kind(), device))?;
        for chunk in wanted.chunks(self.blocks.logit_rows) {
            let (start, count) = (chunk.start as i64, chunk.len() as i64);
            let states = hidden.f_index_select(0, &rows.f_narrow(0, start, count)?)?;
            let logits = model.network.logits_into(&buffer.f_narrow(0, 0, count)?, &states)?;
            // A repetition penalty looks back into its own sequence, so rows are read sequence by sequence.
            for (sequence, part, first) in wanted.parts(&chunk) {
                let ids = match terms {
                    Some(terms) if terms.repetition_penalty != 1.0 => {
                        to_device(&sequences[sequence].tokens.iter().map(|&token| i64::from(token)).collect::<Vec<_>>(), device)?
                    }
                    _ => Tensor::new(),
                };
                let (from, count) = ((part.start - chunk.start) as i64, part.len() as i64);
                let rows = Rows {
                    logits: &logits.f_narrow(0, from, count)?,
                    chosen: &chosen.f_narrow(0, part.start as i64, count)?,
                    ids: &ids,
                    first: first as i64,
                };
                readout.read(&rows, &mut columns)?;
            }
        }
        Ok(columns)
    }

    /// Fetches a batch's results and hands them over in order.
    fn deliver(
        &mut self,
        sequences: &[Sequence],
        batch: Submitted,
        terms: Option<&ExamineTerms>,
        on_result: &mut dyn FnMut(usize, Proof),
        delivered: &mut usize,
    ) -> Result<(), ProveError> {
        // Waits for the device.
        let (logprobs, probabilities) = batch.columns.to_host()?;
        let eos = batch.eos.map(Vec::<f32>::try_from).transpose()?.unwrap_or_default();
        self.aside(|| {
            let rows = sketch::to_rows(&batch.largest)?;
            let (mut logprobs, mut probabilities) = (logprobs.into_iter(), probabilities.into_iter());
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

/// The rows that completion tokens are read from, over all sequences of a batch.
struct Wanted {
    /// Packed row that predicts each completion token.
    rows: Vec<i64>,
    /// The token.
    chosen: Vec<i64>,
    /// Per sequence: where its rows begin, and the position that the first of them predicts.
    starts: Vec<(usize, usize)>,
}

impl Wanted {
    fn of(sequences: &[Sequence], layout: &Layout) -> Self {
        let mut wanted = Self { rows: Vec::new(), chosen: Vec::new(), starts: Vec::new() };
        for (sequence, place) in sequences.iter().zip(&layout.places) {
            let first = sequence.first_predicted();
            wanted.starts.push((wanted.rows.len(), first));
            wanted.rows.extend((first..place.len()).map(|position| place.row(position - 1) as i64));
            wanted.chosen.extend(sequence.tokens.iter().skip(first).map(|&token| i64::from(token)));
        }
        wanted
    }

    fn chunks(&self, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let all = self.rows.len();
        (0..all).step_by(most).map(move |start| start..all.min(start + most))
    }

    /// The parts of a chunk that belong to one sequence each: the sequence, its rows, and the position that the first predicts.
    fn parts(&self, chunk: &std::ops::Range<usize>) -> impl Iterator<Item = (usize, std::ops::Range<usize>, usize)> {
        let ends = self.starts.iter().skip(1).map(|&(start, _)| start).chain([self.rows.len()]);
        self.starts.iter().zip(ends).enumerate().filter_map(move |(sequence, (&(begin, first), end))| {
            let part = begin.max(chunk.start)..end.min(chunk.end);
            (!part.is_empty()).then(|| (sequence, part.clone(), first + part.start - begin))
        })
    }
}

fn tokens(sequences: &[Sequence]) -> usize {
    sequences.iter().map(|sequence| sequence.tokens.len()).sum()
}

fn to_device(values: &[i64], device: Device) -> Result<Tensor, TchError> {
    Tensor::f_from_slice(values)?.f_to(device)
}

/// In blocks, because the integer keys that CUDA chooses by are four times as wide as the hidden states.
fn largest(hidden: &Tensor, block: i64) -> Result<Tensor, TchError> {
    let all = hidden.size()[0];
    let blocks = (0..all).step_by(block.max(1) as usize);
    let found: Vec<Tensor> = blocks
        .map(|start| sketch::largest(&hidden.f_narrow(0, start, block.min(all - start))?))
        .collect::<Result<_, TchError>>()?;
    Tensor::f_cat(&found, 0)
}

/// Causal attention of a layer within each sequence: queries `[1, heads, T, d]`, keys and values `[1, kv heads, T, d]` to
/// `[1, T, heads * d]`.
///
/// A sequence whose prompt lies elsewhere is put together for the call, queries included: the kernel then computes exactly
/// what it computes for a whole sequence, at the price of the prompt's few rows.
fn attend(
    network: &Network,
    layer: usize,
    places: &[(&Place, Masks)],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<Tensor, TchError> {
    let slice = |x: &Tensor, rows: &std::ops::Range<usize>| x.f_narrow(2, rows.start as i64, rows.len() as i64);
    let mut parts = Vec::with_capacity(places.len());
    for (place, masks) in places {
        if place.is_whole() {
            let all = place.prompt.start..place.completion.end;
            parts.push(network.attend(layer, &slice(q, &all)?, &slice(k, &all)?, &slice(v, &all)?, masks)?);
        } else {
            let whole = |x: &Tensor| Tensor::f_cat(&[slice(x, &place.prompt)?, slice(x, &place.completion)?], 2);
            let out = network.attend(layer, &whole(q)?, &whole(k)?, &whole(v)?, masks)?;
            parts.push(out.f_narrow(1, place.prompt.len() as i64, place.completion.len() as i64)?);
        }
    }
    Tensor::f_cat(&parts, 1)
}
