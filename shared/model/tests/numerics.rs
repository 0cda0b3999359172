//! The switches of libtorch are the process's, so this program has one test, which goes through the levels upwards.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use grail_model::{Attention, Device, Kind, Numerics, PrecisionTuning, Switches, Tensor, startup};

fn judged(tuning: PrecisionTuning, attention: Option<Attention>) -> Numerics {
    Numerics::judge(tuning, attention, |_| Some(":4096:8".to_owned())).unwrap()
}

/// An operation that has no deterministic form on any device.
fn undeterministic() -> Result<Tensor, grail_model::TchError> {
    let positions = Tensor::from_slice(&[0i64, 1]);
    Tensor::zeros([4], (Kind::Float, Device::Cpu)).f_put_(&positions, &Tensor::from_slice(&[1f32, 2.0]), false)
}

#[test]
fn every_level_sets_its_switches_and_reads_them_back() {
    startup(Some(1));
    let defaults = Switches::read().unwrap();
    let text = defaults.to_string();
    for part in [
        "TF32 off in matmul and on in cuDNN",
        "sums of bf16 reduced and of f16 reduced",
        "deterministic algorithms off",
        "flash on",
    ] {
        assert!(text.contains(part), "want {part:?} in {text}");
    }
    let standard = judged(PrecisionTuning::Standard, None).apply().unwrap().to_string();
    assert_eq!(
        standard,
        text.replace("memory-efficient on, cuDNN on", "memory-efficient on, cuDNN off"),
        "cuDNN's attention alone"
    );
    assert_eq!(undeterministic().unwrap().numel(), 4);

    let text = judged(PrecisionTuning::FullPrecision, None).apply().unwrap().to_string();
    for part in [
        "TF32 off in matmul and off in cuDNN",
        "f32 matmul highest",
        "sums of bf16 full and of f16 full",
        "cuDNN deterministic on and autotune off",
        "deterministic algorithms off",
        "SDP flash on, memory-efficient on, cuDNN off, math on",
    ] {
        assert!(text.contains(part), "want {part:?} in {text}");
    }

    let text = judged(PrecisionTuning::Standard, Some(Attention::Eager)).apply().unwrap().to_string();
    assert!(text.contains("SDP flash off, memory-efficient off, cuDNN off, math on, its sums reduced off"), "{text}");
    assert!(text.contains("deterministic algorithms off"), "{text}");

    let text = judged(PrecisionTuning::Deterministic, None).apply().unwrap().to_string();
    assert!(text.contains("deterministic algorithms on"), "{text}");
    let error = undeterministic().unwrap_err().to_string();
    assert!(error.contains("does not have a deterministic implementation"), "{error}");
}
