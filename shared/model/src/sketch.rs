//! Sketches of all positions of a sequence at once, on the model's device (GRAIL protocol 2.5, 2.6).

use grail_protocol::constants::{PRIME_Q, PROOF_TOPK};
use tch::{Kind, TchError, Tensor};

/// The smallest f32 of each bucket 1 to 7, as bits: bucket `n` begins at `2^(1.25 n) - 1`. A table, so that no device's
/// logarithm decides; bf16 values widen to f32 exactly, so it serves both types.
const BUCKETS: [u32; 7] = [0x3fb0_6fe1, 0x4095_04f4, 0x4147_44fd, 0x41f8_0000, 0x4296_37f1, 0x4334_04f4, 0x43d6_c4fd];

/// One sketch per row of `hidden` (`[L, width]`, bf16 or f32), each in `[0, 2^31 - 1)`; `None` if a row holds NaN or infinity.
///
/// The 16 largest magnitudes are compared in the type of `hidden`, and at equal magnitude the lowest index wins: libtorch's
/// `topk` promises no order among equals, so magnitude and index go into one integer key without equals.
pub(crate) fn sketches(hidden: &Tensor, coefficients: &[i8; PROOF_TOPK]) -> Result<Option<Vec<u32>>, TchError> {
    let (_, width) = hidden.size2()?;
    let device = hidden.device();
    let bits = if hidden.kind() == Kind::Float { Kind::Int } else { Kind::Int16 };
    // The bits of a magnitude, read as an integer, sort as the magnitude does, with infinity and then NaN on top.
    let magnitude = hidden.f_abs()?.f_contiguous()?.f_view_dtype(bits)?.f_to_kind(Kind::Int64)?;
    let from_the_end = Tensor::f_arange_start_step(width - 1, -1, -1, (Kind::Int64, device))?;
    let keys = magnitude.f_bitwise_left_shift_tensor_scalar(32)?.f_add(&from_the_end)?;
    let (_, largest) = keys.f_topk(PROOF_TOPK as i64, -1, true, false)?;
    let (indices, _) = largest.f_sort(-1, false)?;
    let values = hidden.f_gather(-1, &indices, false)?.f_to_kind(Kind::Float)?;
    // A non-finite activation is always among the 16 largest.
    if !bool::try_from(values.f_isfinite()?.f_all()?)? {
        return Ok(None);
    }
    let bounds = Tensor::f_from_slice(&BUCKETS.map(f32::from_bits))?.f_to(device)?;
    let buckets = values.f_abs()?.f_bucketize(&bounds, false, true)?.f_mul(&values.f_sign()?.f_to_kind(Kind::Int64)?)?;
    let coefficients = Tensor::f_from_slice(&coefficients.map(i64::from))?.f_to(device)?;
    let sums = buckets.f_mul(&coefficients)?.f_sum_dim_intlist(&[-1i64][..], false, Kind::Int64)?;
    let sums = Vec::<i64>::try_from(sums)?;
    // Each sum is within 16 * 7 * 127, so the remainder fits.
    Ok(Some(sums.into_iter().map(|sum| sum.rem_euclid(i64::from(PRIME_Q)) as u32).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use grail_protocol::sketch::{Activation, sketch};
    use half::bf16;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use tch::Device;

    const ROWS: usize = 64;
    const WIDTH: usize = 48;

    fn compare<A: Activation>(kind: Kind, values: &[f32], narrow: impl Fn(f32) -> A) {
        let hidden = Tensor::from_slice(values).view((ROWS as i64, WIDTH as i64)).to_kind(kind);
        let coefficients: [i8; PROOF_TOPK] = std::array::from_fn(|index| (index as i8 - 8) * 15);
        let got = sketches(&hidden, &coefficients).unwrap().unwrap();
        for (row, got) in values.chunks(WIDTH).zip(got) {
            let row: Vec<A> = row.iter().map(|&value| narrow(value)).collect();
            assert_eq!(got, sketch(&row, &coefficients).unwrap());
        }
    }

    #[test]
    fn equals_the_scalar_rule_with_many_ties() {
        let mut random = StdRng::seed_from_u64(3);
        // Few distinct magnitudes make ties at the 16/17 border the rule.
        let values: Vec<f32> = (0..ROWS * WIDTH).map(|_| random.random_range(-9..9) as f32 * 25.0).collect();
        compare(Kind::Float, &values, |value| value);
        compare(Kind::BFloat16, &values, bf16::from_f32);
        let values: Vec<f32> = (0..ROWS * WIDTH).map(|_| random.random_range(-500.0f32..500.0)).collect();
        compare(Kind::Float, &values, |value| value);
        compare(Kind::BFloat16, &values, bf16::from_f32);
    }

    #[test]
    fn a_row_that_is_not_finite_gives_no_sketches() {
        let hidden = Tensor::zeros([2, 32], (Kind::BFloat16, Device::Cpu));
        let _ = hidden.select(0, 1).narrow(0, 31, 1).fill_(f64::NEG_INFINITY);
        assert_eq!(sketches(&hidden, &[1; PROOF_TOPK]).unwrap(), None);
    }
}
