//! Step 4: how far the modes lie from one sequence at a time, which no composition of a batch touches; and what transformers is
//! compared with.

use std::path::Path;

use anyhow::Context;
use grail_model::{Device, Drift, Kind, Mode, Model, Tensor};

use super::{GROUP, Job, Outcome, Site, prove, prover, workload};

pub(super) fn check(site: &Site, job: &Job, states: Option<&Path>) -> anyhow::Result<Outcome> {
    let work = workload(job)?;
    let model = site.load(&job.model)?;
    println!("{model}; {} sequences, {} tokens", work.sequences.len(), work.tokens());
    let alone = prove(&mut prover(&model, Mode::Exact), &model, &work.sequences, 1)?;
    let mut told = Vec::new();
    for mode in [Mode::Exact, Mode::Packed, Mode::PackedShared] {
        let proofs = prove(&mut prover(&model, mode), &model, &work.sequences, GROUP)?;
        let drift = Drift::between(&alone, &proofs).context("proofs of other sequences")?;
        println!("{mode} from one sequence at a time: {drift}");
        told.push(format!("{mode} {:.1} %", drift.identical_sketches * 100.0));
    }
    if let Some(path) = states {
        let batch: Vec<&[u32]> = work.sequences.iter().take(GROUP).map(|sequence| sequence.tokens.as_slice()).collect();
        write(&model, &batch, path)?;
    }
    Ok(Outcome::Passed(format!("sketches identical to one sequence at a time: {}", told.join(", "))))
}

/// Hidden states of a batch, and of each of its sequences alone, with what they are of.
fn write(model: &Model, batch: &[&[u32]], path: &Path) -> anyhow::Result<()> {
    let host = |tensor: Tensor| tensor.f_to(Device::Cpu);
    let mut named = vec![("batch".to_owned(), host(model.hidden(batch)?)?)];
    for (row, tokens) in batch.iter().enumerate() {
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        named.push((format!("ids.{row}"), Tensor::f_from_slice(&ids)?.f_to_kind(Kind::Int64)?));
        named.push((format!("alone.{row}"), host(model.hidden(&[tokens])?)?));
    }
    Tensor::write_safetensors(&named, path).context("writing hidden states")
}
