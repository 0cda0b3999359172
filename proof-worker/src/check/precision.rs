//! Step 5: does every mode compute at a level of the precision tuning, and does it repeat itself?

use anyhow::ensure;
use grail_model::Mode;

use super::{GROUP, Job, Outcome, Site, prove, prover, workload};

pub(super) fn check(site: &Site, job: &Job, level: &str) -> anyhow::Result<Outcome> {
    let attention = Site::tune(level)?;
    let work = workload(job)?;
    let model = site.load(&job.model)?.with_attention(attention);
    let mut told = Vec::new();
    for mode in [Mode::Exact, Mode::Packed, Mode::PackedShared] {
        let mut prover = prover(&model, mode);
        let first = prove(&mut prover, &model, &work.sequences, GROUP)?;
        let second = prove(&mut prover, &model, &work.sequences, GROUP)?;
        let repeats = first == second;
        println!("{mode}: {} sequences, the second time {}", first.len(), if repeats { "the same bits" } else { "other bits" });
        ensure!(repeats || level != "2", "{mode} at level 2 does not repeat itself to the bit");
        told.push(format!("{mode} {}", if repeats { "repeats itself" } else { "does not" }));
    }
    Ok(Outcome::Passed(format!("level {level}: {}", told.join(", "))))
}
