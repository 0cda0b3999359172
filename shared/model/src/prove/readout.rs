//! From logits to the numbers of a proof, a bounded number of rows at a time: f32 logits of a large vocabulary are the widest
//! thing of the whole pass.

use tch::{Device, Kind, TchError, Tensor};

use super::ExamineTerms;

/// Log-probabilities and, under terms, probabilities of chosen tokens, in pieces on the device.
#[derive(Debug, Default)]
pub(super) struct Columns {
    logprobs: Vec<Tensor>,
    probabilities: Vec<Tensor>,
}

impl Columns {
    /// All log-probabilities, then all probabilities, still on the device.
    pub fn join(&self) -> Result<[Tensor; 2], TchError> {
        let joined = |pieces: &[Tensor]| if pieces.is_empty() { nothing() } else { Tensor::f_cat(pieces, 0) };
        Ok([joined(&self.logprobs)?, joined(&self.probabilities)?])
    }
}

/// No numbers, where none were asked for.
pub(super) fn nothing() -> Result<Tensor, TchError> {
    Tensor::f_zeros([0], (Kind::Float, Device::Cpu))
}

/// Which rows of logits are read, and what they predict.
pub(super) struct Rows<'a> {
    /// `[R, vocabulary]` in the model's type.
    pub logits: &'a Tensor,
    /// `[R]` i64: the tokens that were chosen.
    pub chosen: &'a Tensor,
    /// Ids `[L]` of the rows' sequence, and the position that the first row predicts.
    pub ids: &'a Tensor,
    pub first: i64,
}

/// Reads rows of logits through buffers that are used again and again.
pub(super) struct Readout<'a> {
    terms: Option<&'a ExamineTerms>,
    /// `[rows, vocabulary]` in f32: logits, and what is made of them.
    wide: Tensor,
    result: Tensor,
}

impl<'a> Readout<'a> {
    /// Buffers for `rows` rows at a time.
    pub fn new(like: &Tensor, rows: usize, vocab_size: i64, terms: Option<&'a ExamineTerms>) -> Result<Self, TchError> {
        let buffer = || Tensor::f_empty([rows as i64, vocab_size], (Kind::Float, like.device()));
        Ok(Self { terms, wide: buffer()?, result: buffer()? })
    }

    /// Adds the rows' numbers to `columns`.
    pub fn read(&self, rows: &Rows, columns: &mut Columns) -> Result<(), TchError> {
        let (all, step) = (rows.logits.size()[0], self.wide.size()[0]);
        for start in (0..all).step_by(step as usize) {
            let count = step.min(all - start);
            let chosen = rows.chosen.f_narrow(0, start, count)?.f_unsqueeze(1)?;
            let mut wide = self.wide.f_narrow(0, 0, count)?;
            let result = self.result.f_narrow(0, 0, count)?;
            wide.f_copy_(&rows.logits.f_narrow(0, start, count)?)?;
            columns.logprobs.push(gather(&wide.f_log_softmax_int_out(&result, -1, None)?, &chosen)?);
            if let Some(terms) = self.terms {
                temper(&mut wide, rows.ids, rows.first + start, terms)?;
                columns.probabilities.push(gather(&wide.f_softmax_int_out(&result, -1, None)?, &chosen)?);
            }
        }
        Ok(())
    }
}

/// The values of `rows` (`[R, vocabulary]`) at `chosen` (`[R, 1]`).
fn gather(rows: &Tensor, chosen: &Tensor) -> Result<Tensor, TchError> {
    rows.f_gather(-1, chosen, false)?.f_squeeze_dim(1)
}

/// Softmax at the end-of-sequence id of rows of logits `[R, vocabulary]`, computed in their type (GRAIL protocol 6.4, row 5).
pub(super) fn eos_probabilities(logits: &Tensor, terms: &ExamineTerms) -> Result<Tensor, TchError> {
    logits.f_softmax(-1, None)?.f_select(1, i64::from(terms.eos_token_id))?.f_to_kind(Kind::Float)
}

/// Repetition penalty over all tokens before each row's position, then temperature, in place (GRAIL protocol 6.4, row 9). Row
/// `r` of `logits` predicts position `start + r` of `ids`.
fn temper(logits: &mut Tensor, ids: &Tensor, start: i64, terms: &ExamineTerms) -> Result<(), TchError> {
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
        let _ = logits.f_scatter_(-1, &seen, &penalised)?;
    }
    if terms.temperature != 1.0 {
        let _ = logits.f_divide_scalar_(terms.temperature)?;
    }
    Ok(())
}
