//! `grail-proof-worker bench`: rollouts per second of every mode beside a transformers baseline, in one run, alternating, and
//! how far the modes' proofs lie apart. Each mode is a real worker process behind its socket, so the figures hold everything.

mod baseline;
mod device;
mod report;
mod rival;
mod workload;

use std::path::PathBuf;

use anyhow::Context;
use grail_model::{Device, Drift, Mode, Precision};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use self::baseline::Baseline;
use self::report::{Report, Row};
use self::rival::BenchWorker;
use self::workload::Workload;

/// What is measured, and on what.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A checkpoint to measure; without it a random qwen2 model of the shape below is made.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    shape: workload::Shape,
    #[command(flatten)]
    group: workload::GroupShape,
    /// Rounds; in each, every contestant does the whole job once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..1000))]
    rounds: u32,
    /// CPU threads of each contestant.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// What to compute in: auto (bf16 on CUDA, f32 on the CPU), f32, bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: Precision,
    /// Modes to measure.
    #[arg(long, value_delimiter = ',', default_value = "exact,packed,packed-shared")]
    modes: Vec<Mode>,
    /// Python with torch and transformers for the baseline (`make setup` makes the default).
    #[arg(long, default_value = ".venv-reference/bin/python")]
    python: PathBuf,
    /// Leave the baseline out.
    #[arg(long)]
    no_baseline: bool,
    /// Print one JSON object on standard output; the table goes to standard error.
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
///
/// # Errors
/// When the model cannot be made or read, a contestant fails, or two of them disagree about what they were asked.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let report = runtime.block_on(measure(arguments))?;
    if arguments.json {
        eprintln!("{report}");
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}

async fn measure(arguments: &Arguments) -> anyhow::Result<Report> {
    let device = grail_model::startup(Some(arguments.threads));
    let folder = tempfile::tempdir().context("making a folder for the bench")?;
    let (model, again) = match &arguments.checkpoint {
        Some(directory) => (directory.clone(), directory.clone()),
        None => (
            workload::random_checkpoint(&arguments.shape, &folder.path().join("one"), 1)?,
            workload::random_checkpoint(&arguments.shape, &folder.path().join("two"), 2)?,
        ),
    };
    let workload = Workload::new(&model, &arguments.group)?;
    let mut baseline = match arguments.no_baseline {
        true => None,
        false => Some(Baseline::start(arguments, &model, &workload, folder.path()).await?),
    };
    let mut rivals = Vec::new();
    for mode in &arguments.modes {
        let mut rival = BenchWorker::start(*mode, device.wish(), arguments.dtype, arguments.threads, folder.path()).await?;
        rival.load(&model).await?;
        rivals.push(rival);
    }
    // Untimed: pages are touched, kernels chosen.
    for rival in &mut rivals {
        rival.prove(&workload, None).await?;
    }
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        if let Some(baseline) = &mut baseline {
            baseline.pass().await?;
        }
        for rival in &mut rivals {
            rival.prove(&workload, None).await?;
            rival.keep()?;
        }
    }
    let reference = match baseline.as_mut() {
        Some(baseline) => Some(baseline.proofs(&workload).await?),
        None => rivals.first().map(|first| first.proofs.clone()),
    };
    let exact = rivals.iter().find(|rival| rival.mode == Mode::Exact).map(|rival| rival.proofs.clone());
    // A validator that forwards a sequence alone composes another batch too: so far apart are proofs that nobody doubts.
    let mut alone = None;
    if let (Some(exact), Some(rival)) = (&exact, rivals.iter_mut().find(|rival| rival.mode == Mode::Exact)) {
        rival.prove_by(1, &workload, None).await?;
        alone = Drift::between(exact, &rival.proofs);
        rival.proofs = exact.clone();
    }
    let mut rows = Vec::new();
    for rival in &mut rivals {
        let drift = exact.as_ref().and_then(|exact| Drift::between(exact, &rival.proofs));
        let to_baseline = reference.as_ref().and_then(|reference| Drift::between(reference, &rival.proofs));
        rival.prove(&workload, Some(workload.terms())).await?;
        let examined = rival.last;
        rival.prove(&workload, None).await?;
        let starved = match device::starve(device.device(), rival.predicted)? {
            Some(_ballast) => {
                rival.prove(&workload, None).await?;
                exact.as_ref().and_then(|exact| Drift::between(exact, &rival.proofs))
            }
            None => None,
        };
        let reload = rival.reload(&again).await?;
        rows.push(Row::new(rival, drift, to_baseline, starved, examined, reload));
    }
    let yardstick = baseline.as_ref().map(|baseline| (baseline.seconds.clone(), baseline.processor.clone()));
    for rival in rivals {
        rival.stop().await;
    }
    if let Some(baseline) = baseline {
        baseline.stop().await;
    }
    let gemm = device::gemm_rate(device.device(), arguments.dtype.on(device.device()))?;
    Ok(Report::new(&device, &workload, yardstick, rows, alone, gemm, matches!(device.device(), Device::Cuda(_))))
}

/// Passes a contestant's words on for as long as it has any.
async fn relay(pipe: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("{line}");
    }
}
