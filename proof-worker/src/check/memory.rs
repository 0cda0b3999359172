//! Step 7: memory that somebody else has taken. Batches are halved; what cannot be computed at all is told as want of memory.

use anyhow::{Context, bail, ensure};
use grail_model::{Drift, Kind, Mode, Model, ProveError, Tensor};

use super::{GROUP, Job, Outcome, Site, longest, prove, prover, workload};
use crate::bench::device;

const MIB: u64 = 1 << 20;
/// So little is left where it is taken before anything was multiplied: less than cuBLAS takes for itself.
const LEFT: u64 = 24 * MIB;

pub(super) fn check(site: &Site, job: &Job, at_once: bool) -> anyhow::Result<Outcome> {
    if !site.on_gpu() {
        return Ok(Outcome::needs_a_gpu());
    }
    let work = workload(job)?;
    let model = site.load(&job.model)?;
    if at_once { before_the_first_product(site, &model, &work.sequences) } else { between_passes(site, &model, &work.sequences) }
}

fn before_the_first_product(
    site: &Site,
    model: &Model,
    sequences: &[grail_link::message::ProofSequence],
) -> anyhow::Result<Outcome> {
    let mut prover = prover(model, Mode::PackedShared);
    let free = grail_model::free_memory(site.device()).context("the device does not tell what is free")?;
    let _ballast = Tensor::f_zeros([free.saturating_sub(LEFT) as i64], (Kind::Uint8, site.device()))?;
    match prove(&mut prover, model, sequences, GROUP) {
        Ok(proofs) => Ok(Outcome::Passed(format!("{} proofs with {} MiB", proofs.len(), LEFT / MIB))),
        Err(error) => {
            println!("it says: {error:#}");
            match error.downcast_ref::<ProveError>() {
                Some(known) if known.is_out_of_memory() => Ok(Outcome::Passed("it is told as want of memory".into())),
                _ => bail!("want of memory is not known as such: {error:#}"),
            }
        }
    }
}

fn between_passes(site: &Site, model: &Model, sequences: &[grail_link::message::ProofSequence]) -> anyhow::Result<Outcome> {
    let mut told = Vec::new();
    for mode in [Mode::Exact, Mode::PackedShared] {
        let mut prover = prover(model, mode);
        let wanted = prove(&mut prover, model, sequences, GROUP)?;
        let longest = longest(sequences);
        let (before, predicted) = (prover.budget().tokens(longest), prover.budget().peak_bytes(longest));
        grail_model::empty_cache(site.device())?;
        let ballast = device::starve(site.device(), Some(predicted as f64 / MIB as f64))?;
        let got = prove(&mut prover, model, sequences, GROUP)?;
        drop(ballast);
        grail_model::empty_cache(site.device())?;
        let drift = Drift::between(&wanted, &got).context("proofs of other sequences")?;
        println!(
            "{mode} with a third of what it wants: {drift}; {before} tokens at once before, {} after",
            prover.budget().tokens(longest)
        );
        ensure!(got.len() == sequences.len(), "{mode}: {} proofs of {}", got.len(), sequences.len());
        told.push(format!("{mode} {:.1} % identical", drift.identical_sketches * 100.0));
    }
    Ok(Outcome::Passed(format!("with a third of the memory: {}", told.join(", "))))
}
