//! The fast way: sequences laid end to end, nothing computed for padding, logits only where a completion token needs one.
//!
//! A batch is submitted before the results of the one before it are fetched, so that on a device that works by itself the
//! next batch is packed and copied while this one is computed.

use std::collections::VecDeque;
use std::ops::Range;

use tch::{Device, TchError, Tensor};

use super::layout::{Layout, Place, batches};
use super::readout::{Columns, Readout, Rows, eos_probabilities};
use super::submitted::Submitted;
use super::{ExamineTerms, Proof, ProveError, Prover, Sequence};
use crate::copies::upload;
use crate::memory::{empty_cache, free_memory};
use crate::model::Model;
use crate::network::{Masks, Network};
use crate::sketch;

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
        let longest = sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
        while delivered < sequences.len() {
            let budget = self.budget.tokens(longest);
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
            let beside_another = under_way.is_some();
            let fetched = match under_way.take() {
                Some(before) => self.deliver(sequences, before, terms, on_result, &mut delivered),
                None => Ok(()),
            };
            match fetched.and(step) {
                Ok(next) => {
                    self.budget.went_well(|| free_memory(model.device()));
                    under_way = next;
                }
                // One sequence is tried by itself before it is given up.
                Err(error) if error.is_out_of_memory() && (beside_another || submitted - delivered > 1 && budget > 1) => {
                    // cuBLAS and cuDNN allocate beside libtorch's cache, and get nothing of what that keeps.
                    empty_cache(model.device())?;
                    self.budget.ran_out(tokens(&sequences[delivered..submitted]));
                    tracing::warn!(
                        tokens = self.budget.tokens(longest),
                        "Memory ran out; the batch is computed in smaller ones."
                    );
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
        range: Range<usize>,
        share: bool,
        terms: Option<&ExamineTerms>,
    ) -> Result<Submitted, ProveError> {
        let first = range.start;
        let sequences = &sequences[range];
        let device = model.device();
        let (layout, wanted) = self.aside(|| {
            let layout = Layout::of(sequences, share);
            let wanted = Wanted::of(sequences, &layout, terms);
            (layout, wanted)
        });
        // All that this batch needs, before its forward pass is enqueued.
        let inputs = wanted.upload(&layout, device)?;
        let network = &model.network;
        let masked = layout.places.iter().map(|place| Ok((place, network.masks(place.len() as i64, None)?)));
        let masked = masked.collect::<Result<Vec<_>, TchError>>()?;
        let block = self.blocks.hidden_rows as i64;
        let hidden = network.hidden_packed(&inputs.ids, &inputs.positions, block, &mut |layer, q, k, v| {
            attend(network, layer, &masked, q, k, v)
        })?;
        drop(masked);
        let columns = self.read(model, &hidden, &wanted, &inputs, terms)?;
        let eos = terms.map(|terms| eos_probabilities(&network.logits(&hidden.f_index_select(0, &inputs.ends)?)?, terms));
        let eos = eos.transpose()?;
        let largest = self.aside(|| largest(&hidden, block))?;
        Ok(Submitted::send(first, layout.places, largest, &columns, eos, device)?)
    }

    /// Log-probabilities of all completion tokens, in the order of the sequences.
    fn read(
        &self,
        model: &Model,
        hidden: &Tensor,
        wanted: &Wanted,
        inputs: &Inputs,
        terms: Option<&ExamineTerms>,
    ) -> Result<Columns, ProveError> {
        let mut columns = Columns::default();
        let readout = Readout::new(hidden, self.blocks.wide_rows, model.config().vocab_size, terms)?;
        let size = [self.blocks.logit_rows.min(wanted.rows.len()) as i64, model.config().vocab_size];
        let buffer = Tensor::f_empty(size, (hidden.kind(), hidden.device()))?;
        for chunk in wanted.chunks(self.blocks.logit_rows) {
            let (start, count) = (chunk.start as i64, chunk.len() as i64);
            let states = hidden.f_index_select(0, &inputs.rows.f_narrow(0, start, count)?)?;
            let logits = model.network.logits_into(&buffer.f_narrow(0, 0, count)?, &states)?;
            // A repetition penalty looks back into its own sequence, so rows are read sequence by sequence.
            for (sequence, part, first) in wanted.parts(&chunk) {
                let (from, count) = ((part.start - chunk.start) as i64, part.len() as i64);
                let rows = Rows {
                    logits: &logits.f_narrow(0, from, count)?,
                    chosen: &inputs.chosen.f_narrow(0, part.start as i64, count)?,
                    ids: &wanted.ids_of(sequence, &inputs.whole)?,
                    first: first as i64,
                };
                readout.read(&rows, &mut columns)?;
            }
        }
        Ok(columns)
    }
}

/// What a batch needs on the device.
struct Inputs {
    /// Packed ids, and the position of each in its sequence.
    ids: Tensor,
    positions: Tensor,
    /// As in [`Wanted`].
    rows: Tensor,
    chosen: Tensor,
    ends: Tensor,
    whole: Tensor,
}

/// The rows that completion tokens are read from, over all sequences of a batch, and what is needed to read them.
#[derive(Default)]
struct Wanted {
    /// Packed row that predicts each completion token.
    rows: Vec<i64>,
    /// The token.
    chosen: Vec<i64>,
    /// Per sequence: where its rows begin, and the position that the first of them predicts.
    starts: Vec<(usize, usize)>,
    /// In an examination, the packed row before each sequence's last token.
    ends: Vec<i64>,
    /// Under a repetition penalty, the ids of all sequences one after the other, and where each has its own.
    whole: Vec<i64>,
    places: Vec<Range<usize>>,
}

impl Wanted {
    fn of(sequences: &[Sequence], layout: &Layout, terms: Option<&ExamineTerms>) -> Self {
        let mut wanted = Self::default();
        let looks_back = terms.is_some_and(|terms| terms.repetition_penalty != 1.0);
        for (sequence, place) in sequences.iter().zip(&layout.places) {
            let first = sequence.first_predicted();
            wanted.starts.push((wanted.rows.len(), first));
            wanted.rows.extend((first..place.len()).map(|position| place.row(position - 1) as i64));
            wanted.chosen.extend(sequence.tokens.iter().skip(first).map(|&token| i64::from(token)));
            if terms.is_some() {
                wanted.ends.push(place.row(place.len() - 2) as i64);
            }
            let start = wanted.whole.len();
            if looks_back {
                wanted.whole.extend(sequence.tokens.iter().map(|&token| i64::from(token)));
            }
            wanted.places.push(start..wanted.whole.len());
        }
        wanted
    }

    fn upload(&self, layout: &Layout, device: Device) -> Result<Inputs, TchError> {
        let lists = [&layout.ids[..], &layout.positions, &self.rows, &self.chosen, &self.ends, &self.whole];
        let [ids, positions, rows, chosen, ends, whole] = upload(lists, device)?;
        Ok(Inputs { ids, positions, rows, chosen, ends, whole })
    }

    /// A sequence's part of `whole`.
    fn ids_of(&self, sequence: usize, whole: &Tensor) -> Result<Tensor, TchError> {
        let place = &self.places[sequence];
        whole.f_narrow(0, place.start as i64, place.len() as i64)
    }

    fn chunks(&self, most: usize) -> impl Iterator<Item = Range<usize>> {
        let all = self.rows.len();
        (0..all).step_by(most).map(move |start| start..all.min(start + most))
    }

    /// The parts of a chunk that belong to one sequence each: the sequence, its rows, and the position that the first predicts.
    fn parts(&self, chunk: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>, usize)> {
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
    let slice = |x: &Tensor, rows: &Range<usize>| x.f_narrow(2, rows.start as i64, rows.len() as i64);
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
