//! Inverse frequencies of the rotary embedding, operation by operation as transformers computes them: in f32 on the CPU,
//! whatever the model's type and device.

use std::f64::consts::PI;

use tch::{Device, Kind, TchError, Tensor};

use crate::config::{Rotary, RotaryScaling};

/// `1 / theta^(2i / head_dim)`, scaled: `[head_dim / 2]` f32 on the CPU.
pub(crate) fn inverse_frequencies(rotary: &Rotary, head_dim: i64) -> Result<Tensor, TchError> {
    let even = Tensor::f_arange_start_step(0, head_dim, 2, (Kind::Int64, Device::Cpu))?;
    let exponents = even.f_to_kind(Kind::Float)?.f_divide_scalar(head_dim)?;
    let plain = Tensor::f_pow_scalar(rotary.theta, &exponents)?.f_reciprocal()?;
    match rotary.scaling {
        RotaryScaling::Unscaled => Ok(plain),
        RotaryScaling::Linear { factor } => plain.f_divide_scalar(factor),
        RotaryScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
            llama3(&plain, factor, low_frequency_factor, high_frequency_factor, original_positions)
        }
    }
}

/// Python's `number / tensor` multiplies by the reciprocal, and so does this.
fn llama3(plain: &Tensor, factor: f64, low: f64, high: f64, original_positions: f64) -> Result<Tensor, TchError> {
    let (longest_kept, shortest_divided) = (original_positions / high, original_positions / low);
    let wavelengths = plain.f_reciprocal()?.f_mul_scalar(2.0 * PI)?;
    let is_low = wavelengths.f_gt(shortest_divided)?;
    let is_high = wavelengths.f_lt(longest_kept)?;
    let divided = plain.f_divide_scalar(factor)?.f_where_self(&is_low, plain)?;
    let turns = wavelengths.f_reciprocal()?.f_mul_scalar(original_positions)?;
    let smooth = turns.f_sub_scalar(low)?.f_divide_scalar(high - low)?;
    let rest = smooth.f_neg()?.f_add_scalar(1.0)?;
    let blended = rest.f_mul(&divided)?.f_divide_scalar(factor)?.f_add(&smooth.f_mul(&divided)?)?;
    let between = is_low.f_logical_or(&is_high)?.f_logical_not()?;
    blended.f_where_self(&between, &divided)
}
