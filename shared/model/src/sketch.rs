//! Sketches of all positions of many sequences at once (GRAIL protocol 2.5, 2.6).
//!
//! ```text
//!  hidden [L, width] ──largest──▶ [L, 16] in f32, by ascending index ──fold, per sequence──▶ one sketch per position
//! ```

use std::convert::Infallible;
use std::num::NonZero;
use std::sync::Mutex;

use grail_protocol::constants::PROOF_TOPK;
use grail_protocol::sketch::{Activation, Coefficients, bucket, largest_activations, reduce};
use half::{bf16, f16};
use tch::{Device, Kind, TchError, Tensor};

use crate::weight_file::{in_parallel, lock};

/// The 16 activations of largest magnitude of every row of `hidden` (`[L, width]`), in f32 and in ascending order of their
/// index: `[L, 16]` on the same device. Magnitudes are compared in the type of `hidden`; of equal ones the lowest index wins.
pub(crate) fn largest(hidden: &Tensor) -> Result<Tensor, TchError> {
    if hidden.device() == Device::Cpu { largest_on_cpu(hidden) } else { largest_by_keys(hidden) }
}

/// One sketch per row of 16 activations, each in `[0, 2^31 - 1)`; `None` if an activation is NaN or infinite. A row that holds
/// one anywhere has it among its 16 largest.
pub(crate) fn fold<'a>(rows: impl Iterator<Item = &'a [f32; PROOF_TOPK]>, coefficients: &Coefficients) -> Option<Vec<u32>> {
    let one = |row: &[f32; PROOF_TOPK]| {
        let finite = row.iter().all(|value| value.is_finite());
        let terms = row.iter().zip(coefficients).map(|(&value, &coefficient)| bucket(value) * i32::from(coefficient));
        finite.then(|| reduce(terms.sum()))
    };
    rows.map(one).collect()
}

/// Scans every row once, which is some twenty times as fast as libtorch's `topk` there.
fn largest_on_cpu(hidden: &Tensor) -> Result<Tensor, TchError> {
    let (rows, width) = hidden.size2()?;
    let width = usize::try_from(width).unwrap_or(1).max(1);
    let found = match hidden.kind() {
        // tch gives bf16 the kind of f16, so both are copied as plain 16-bit words.
        Kind::BFloat16 => scan(&words(hidden)?, width, |word: i16| bf16::from_bits(word.cast_unsigned())),
        Kind::Half => scan(&words(hidden)?, width, |word: i16| f16::from_bits(word.cast_unsigned())),
        _ => {
            let mut values = vec![0.0f32; hidden.numel()];
            hidden.f_contiguous()?.f_copy_data(&mut values, hidden.numel())?;
            scan(&values, width, |value| value)
        }
    };
    Tensor::f_from_slice(&found)?.f_view((rows, PROOF_TOPK as i64))
}

fn words(hidden: &Tensor) -> Result<Vec<i16>, TchError> {
    let mut words = vec![0; hidden.numel()];
    hidden.f_contiguous()?.f_view_dtype(Kind::Int16)?.f_copy_data(&mut words, hidden.numel())?;
    Ok(words)
}

/// Rows are shared out among libtorch's number of threads.
fn scan<W: Copy + Sync, A: Activation>(values: &[W], width: usize, read: impl Fn(W) -> A + Sync) -> Vec<f32> {
    let rows = values.len() / width;
    let mut found = vec![0.0f32; rows * PROOF_TOPK];
    let threads = usize::try_from(tch::get_num_threads()).ok().and_then(NonZero::new).map_or(1, NonZero::get);
    let share = rows.div_ceil(threads).max(1);
    let parts: Vec<_> =
        values.chunks(share * width).zip(found.chunks_mut(share * PROOF_TOPK)).map(|part| Mutex::new(Some(part))).collect();
    let scanned = in_parallel(threads, parts.len(), |index, _| {
        let Some((values, found)) = lock(&parts[index]).take() else { return Ok::<_, Infallible>(()) };
        let mut row = Vec::with_capacity(width);
        for (values, found) in values.chunks_exact(width).zip(found.chunks_exact_mut(PROOF_TOPK)) {
            row.clear();
            row.extend(values.iter().map(|&value| read(value)));
            // A model narrower than a sketch is refused before it is forwarded.
            let Ok(places) = largest_activations(&row) else { continue };
            found.iter_mut().zip(places).for_each(|(found, place)| *found = row[place].widen());
        }
        Ok(())
    });
    let Ok(()) = scanned;
    drop(parts);
    found
}

/// libtorch's `topk` promises no order among equals, so magnitude and index go into one integer key without equals.
fn largest_by_keys(hidden: &Tensor) -> Result<Tensor, TchError> {
    let (_, width) = hidden.size2()?;
    let bits = if hidden.kind() == Kind::Float { Kind::Int } else { Kind::Int16 };
    // The bits of a magnitude, read as an integer, sort as the magnitude does, with infinity and then NaN on top.
    let magnitude = hidden.f_abs()?.f_contiguous()?.f_view_dtype(bits)?.f_to_kind(Kind::Int64)?;
    let from_the_end = Tensor::f_arange_start_step(width - 1, -1, -1, (Kind::Int64, hidden.device()))?;
    let keys = magnitude.f_bitwise_left_shift_tensor_scalar(32)?.f_add(&from_the_end)?;
    let (_, largest) = keys.f_topk(PROOF_TOPK as i64, -1, true, false)?;
    let (indices, _) = largest.f_sort(-1, false)?;
    hidden.f_gather(-1, &indices, false)?.f_to_kind(Kind::Float)
}

/// Rows of 16 on the host.
pub(crate) fn to_rows(largest: &Tensor) -> Result<Vec<[f32; PROOF_TOPK]>, TchError> {
    let flat = Vec::<f32>::try_from(largest.f_contiguous()?.f_view([-1i64])?)?;
    Ok(flat.as_chunks::<PROOF_TOPK>().0.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use grail_protocol::sketch::sketch;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    const ROWS: usize = 64;
    const WIDTH: usize = 48;

    fn compare<A: Activation>(kind: Kind, values: &[f32], narrow: impl Fn(f32) -> A) {
        let hidden = Tensor::from_slice(values).view((ROWS as i64, WIDTH as i64)).to_kind(kind);
        let coefficients: Coefficients = std::array::from_fn(|index| (index as i8 - 8) * 15);
        let want: Vec<u32> = values
            .chunks(WIDTH)
            .map(|row| sketch(&row.iter().map(|&value| narrow(value)).collect::<Vec<_>>(), &coefficients).unwrap())
            .collect();
        for found in [largest(&hidden).unwrap(), largest_by_keys(&hidden).unwrap()] {
            assert_eq!(fold(to_rows(&found).unwrap().iter(), &coefficients).unwrap(), want);
        }
    }

    #[test]
    fn equals_the_scalar_rule_with_many_ties_on_either_path() {
        let mut random = StdRng::seed_from_u64(3);
        // Few distinct magnitudes make ties at the 16/17 border the rule.
        let ties: Vec<f32> = (0..ROWS * WIDTH).map(|_| random.random_range(-9..9) as f32 * 25.0).collect();
        let spread: Vec<f32> = (0..ROWS * WIDTH).map(|_| random.random_range(-500.0f32..500.0)).collect();
        for values in [ties, spread] {
            compare(Kind::Float, &values, |value| value);
            compare(Kind::BFloat16, &values, bf16::from_f32);
            compare(Kind::Half, &values, f16::from_f32);
        }
    }

    #[test]
    fn a_row_that_is_not_finite_gives_no_sketches() {
        let hidden = Tensor::zeros([2, 32], (Kind::BFloat16, Device::Cpu));
        let _ = hidden.select(0, 1).narrow(0, 31, 1).fill_(f64::NEG_INFINITY);
        for found in [largest(&hidden).unwrap(), largest_by_keys(&hidden).unwrap()] {
            assert_eq!(fold(to_rows(&found).unwrap().iter(), &[1; PROOF_TOPK]), None);
        }
    }
}
