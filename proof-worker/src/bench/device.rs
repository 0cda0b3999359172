//! The device itself: how fast it multiplies matrices, which a forward pass is held against, and how to leave little of it.

use grail_model::{Device, Kind, Tensor};
use grail_process::clock;

/// Floating-point operations per second of a large matrix product in `kind`; the best of several.
pub fn gemm_rate(device: Device, kind: Kind) -> anyhow::Result<f64> {
    gemm_rate_of(if device.is_cuda() { 8192 } else { 2048 }, device, kind)
}

/// The same of square matrices of this side.
pub fn gemm_rate_of(side: i64, device: Device, kind: Kind) -> anyhow::Result<f64> {
    let make = || Tensor::f_randn([side, side], (Kind::Float, device))?.f_to_kind(kind);
    let (one, other) = (make()?, make()?);
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let begun = clock::monotonic();
        // Reading one value waits for the device.
        one.f_matmul(&other)?.f_double_value(&[0, 0])?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(2.0 * (side as f64).powi(3) / best)
}

/// Takes so much of a GPU's memory that a third of the `predicted` MiB is left; dropping the tensor gives it back. `None` on the
/// CPU, and where nothing was predicted.
pub fn starve(device: Device, predicted: Option<f64>) -> anyhow::Result<Option<Tensor>> {
    const MIB: f64 = (1 << 20) as f64;
    let (true, Some(predicted), Some(free)) = (device.is_cuda(), predicted, grail_model::free_memory(device)) else {
        return Ok(None);
    };
    let taken = free as f64 - predicted * MIB / 3.0;
    Ok(Some(Tensor::f_zeros([taken.max(0.0) as i64], (Kind::Uint8, device))?))
}
