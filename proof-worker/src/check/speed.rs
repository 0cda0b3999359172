//! Step 6: what one mode does in a second, beside what the device multiplies, and what it takes.

use grail_model::Mode;
use grail_process::clock;

use super::{GROUP, Job, Outcome, Site, longest, prove, prover, workload};
use crate::bench::device;

const MIB: f64 = (1 << 20) as f64;

pub(super) fn check(site: &Site, job: &Job, mode: Mode, passes: u32) -> anyhow::Result<Outcome> {
    let work = workload(job)?;
    let begun = clock::monotonic();
    let model = site.load(&job.model)?;
    let loaded = begun.elapsed().as_secs_f64();
    println!(
        "{model}; loaded and hashed in {loaded:.2} s, {:.2} GB/s; {}",
        work.weight_bytes as f64 / 1e9 / loaded,
        model.weights_hash()
    );
    let mut prover = prover(&model, mode);
    println!("{}", prover.budget());
    // Untimed: pages are touched, kernels loaded. What the weights took is no part of a batch's peak.
    grail_model::take_peak(site.device())?;
    prove(&mut prover, &model, &work.sequences, GROUP)?;
    // For whoever samples the device's use beside this.
    let (from, begun) = (clock::unix_seconds(), clock::monotonic());
    for _ in 0..passes {
        prove(&mut prover, &model, &work.sequences, GROUP)?;
    }
    let seconds = begun.elapsed().as_secs_f64() / f64::from(passes);
    println!("timed from {from:.2} to {:.2}", clock::unix_seconds());
    // Before the matrix products, which take memory too.
    let peak = grail_model::take_peak(site.device())?;
    // On the CPU this is about the steps, not about figures.
    let side = if site.on_gpu() { 8192 } else { 512 };
    let rate = device::gemm_rate_of(side, site.device(), site.precision.on(site.device()))?;
    let tokens = work.tokens() as f64 / seconds;
    let share = work.operations() / seconds / rate * 100.0;
    if let Some(peak) = peak {
        let predicted = prover.budget().peak_bytes(longest(&work.sequences));
        let (predicted, taken) = (predicted as f64 / MIB, (peak as f64 - work.weight_bytes as f64) / MIB);
        println!("memory beside the weights: {taken:.0} MiB at most, {predicted:.0} MiB predicted at most");
    }
    println!("{:.1} TFLOP/s in matrix products alone", rate / 1e12);
    Ok(Outcome::Passed(format!(
        "{mode}: {tokens:.0} tokens/s, {:.2} rollouts/s, {share:.0} % of the matrix rate",
        work.sequences.len() as f64 / seconds
    )))
}
