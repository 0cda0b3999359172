//! Step 7: memory that somebody else has taken. Batches are halved; what cannot be computed at all is told as want of memory.

use anyhow::{Context, bail, ensure};
use grail_model::{Drift, Kind, Mode, Model, ProveError, Tensor};

use super::{GROUP, Job, Outcome, Site, longest, prove, prover, workload};
use crate::bench::workload::Workload;

const MIB: u64 = 1 << 20;
/// So little is left where it is taken before anything was multiplied: less than cuBLAS takes for itself.
const LEFT: u64 = 24 * MIB;
/// The driver gives memory in pieces; what it cannot give whole is asked for in smaller steps.
const STEP: u64 = 32 * MIB;
const STEPS: u64 = 16;

pub(super) fn check(site: &Site, job: &Job, at_once: bool) -> anyhow::Result<Outcome> {
    if !site.on_gpu() {
        return Ok(Outcome::needs_a_gpu());
    }
    let work = workload(job)?;
    let model = site.load(&job.model)?;
    if at_once { before_the_first_product(site, &model, &work) } else { between_passes(site, &model, &work) }
}

/// Takes what is free on the device but for `left` bytes; dropping it gives it back.
fn ballast(site: &Site, left: u64) -> anyhow::Result<Tensor> {
    grail_model::empty_cache(site.device())?;
    let free = grail_model::free_memory(site.device()).context("the device does not tell what is free")?;
    let take = |step: u64| {
        let bytes = free.saturating_sub(left + step * STEP);
        Tensor::f_empty([bytes as i64], (Kind::Uint8, site.device())).ok()
    };
    let taken = (0..STEPS).find_map(take).context("the device does not give what it says is free")?;
    let rest = grail_model::free_memory(site.device()).unwrap_or(0);
    println!("{} MiB were free, {} MiB are left", free / MIB, rest / MIB);
    Ok(taken)
}

fn before_the_first_product(site: &Site, model: &Model, work: &Workload) -> anyhow::Result<Outcome> {
    let mut prover = prover(model, Mode::PackedShared);
    let _ballast = ballast(site, LEFT)?;
    match prove(&mut prover, model, &work.sequences, GROUP) {
        Ok(proofs) => Ok(Outcome::Passed(format!("{} proofs with next to no memory", proofs.len()))),
        Err(error) => {
            println!("it says: {error:#}");
            match error.downcast_ref::<ProveError>() {
                Some(known) if known.is_out_of_memory() => Ok(Outcome::Passed("it is told as want of memory".into())),
                _ => bail!("want of memory is not known as such: {error:#}"),
            }
        }
    }
}

fn between_passes(site: &Site, model: &Model, work: &Workload) -> anyhow::Result<Outcome> {
    let mut told = Vec::new();
    for mode in [Mode::Exact, Mode::PackedShared] {
        let mut prover = prover(model, mode);
        grail_model::take_peak(site.device())?;
        let wanted = prove(&mut prover, model, &work.sequences, GROUP)?;
        let peak = grail_model::take_peak(site.device())?.context("the device does not tell what was taken")?;
        let longest = longest(&work.sequences);
        let (took, before) = (peak.saturating_sub(work.weight_bytes), prover.budget().tokens(longest));
        let ballast = ballast(site, took / 3)?;
        let got = prove(&mut prover, model, &work.sequences, GROUP)?;
        drop(ballast);
        let drift = Drift::between(&wanted, &got).context("proofs of other sequences")?;
        let after = prover.budget().tokens(longest);
        println!(
            "{mode} with a third of the {} MiB that it took: {drift}; {before} tokens at once before, {after} after",
            took / MIB
        );
        ensure!(got.len() == wanted.len(), "{mode}: {} proofs of {}", got.len(), wanted.len());
        told.push(format!("{mode} {:.1} % identical", drift.identical_sketches * 100.0));
    }
    Ok(Outcome::Passed(format!("with a third of the memory: {}", told.join(", "))))
}
