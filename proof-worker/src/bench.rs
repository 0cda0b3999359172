//! `grail-proof-worker bench`: rollouts per second of every mode beside a transformers baseline, in one run, alternating, and
//! how far the modes' proofs lie apart. Each mode is a real worker process behind its socket, so the figures hold everything.

mod baseline;
pub mod device;
mod report;
mod rival;
pub mod workload;

use std::path::{Path, PathBuf};

use anyhow::Context;
use grail_model::{Device, Drift, Mode, Precision, Proof, Runtime};
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
    /// One contestant after the other, each alone on the device, instead of all of them side by side in alternating rounds: on one
    /// GPU they would take each other's memory. `exact`, which the others are held against, must come first.
    #[arg(long)]
    in_turn: bool,
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
    let modes = &arguments.modes;
    if arguments.in_turn && modes.iter().position(|mode| *mode == Mode::Exact).is_some_and(|place| place > 0) {
        anyhow::bail!("--in-turn ends each mode before the next, and exact is what the others are held against: name it first");
    }
    let contest =
        Contest { arguments, device: &device, folder: folder.path(), model: &model, again: &again, workload: &workload };
    let mut results = Results::default();
    if arguments.in_turn {
        contest.run(!arguments.no_baseline, &[], &mut results).await?;
        for mode in modes {
            contest.run(false, std::slice::from_ref(mode), &mut results).await?;
        }
    } else {
        contest.run(!arguments.no_baseline, modes, &mut results).await?;
    }
    let Results { yardstick, rows, alone, .. } = results;
    let gemm = device::gemm_rate(device.device(), arguments.dtype.on(device.device()))?;
    Ok(Report::new(&device, &workload, yardstick, rows, alone, gemm, matches!(device.device(), Device::Cuda(_))))
}

/// What is measured, and by whom.
struct Contest<'a> {
    arguments: &'a Arguments,
    device: &'a Runtime,
    folder: &'a Path,
    model: &'a Path,
    /// Another model of the same shape.
    again: &'a Path,
    workload: &'a Workload,
}

/// What was measured so far.
#[derive(Default)]
struct Results {
    /// Wall time and processor time of each of the baseline's passes.
    yardstick: Option<(Vec<f64>, Vec<f64>)>,
    rows: Vec<Row>,
    /// What every mode is held against: the baseline's proofs, or the first mode's.
    reference: Option<Vec<Proof>>,
    exact: Option<Vec<Proof>>,
    /// From `exact` by itself, where only the batch is composed otherwise.
    alone: Option<Drift>,
}

impl Contest<'_> {
    /// Contestants side by side, in alternating rounds.
    async fn run(&self, with_baseline: bool, modes: &[Mode], results: &mut Results) -> anyhow::Result<()> {
        let Self { arguments, folder, model, workload, .. } = *self;
        let mut baseline = match with_baseline {
            true => Some(Baseline::start(arguments, model, workload, folder).await?),
            false => None,
        };
        let mut rivals = Vec::new();
        for mode in modes {
            let mut rival = BenchWorker::start(*mode, self.device.wish(), arguments.dtype, arguments.threads, folder).await?;
            rival.load(model).await?;
            rivals.push(rival);
        }
        // Untimed: pages are touched, kernels chosen.
        for rival in &mut rivals {
            rival.prove(workload, None).await?;
        }
        for round in 1..=arguments.rounds {
            eprintln!("round {round} of {}", arguments.rounds);
            if let Some(baseline) = &mut baseline {
                baseline.pass().await?;
            }
            for rival in &mut rivals {
                rival.prove(workload, None).await?;
                rival.keep()?;
            }
        }
        if let Some(mut baseline) = baseline {
            results.reference = Some(baseline.proofs(workload).await?);
            results.yardstick = Some((baseline.seconds.clone(), baseline.processor.clone()));
            baseline.stop().await;
        }
        if let Some(first) = rivals.first() {
            results.reference.get_or_insert_with(|| first.proofs.clone());
        }
        // A validator that forwards a sequence alone composes another batch too: so far apart are proofs that nobody doubts.
        if let Some(rival) = rivals.iter_mut().find(|rival| rival.mode == Mode::Exact) {
            let exact = rival.proofs.clone();
            rival.prove_by(1, workload, None).await?;
            results.alone = Drift::between(&exact, &rival.proofs);
            rival.proofs = exact.clone();
            results.exact = Some(exact);
        }
        for mut rival in rivals {
            let row = self.row(&mut rival, results).await?;
            results.rows.push(row);
            rival.stop().await;
        }
        Ok(())
    }

    /// What is left to measure of a mode after its rounds.
    async fn row(&self, rival: &mut BenchWorker, results: &Results) -> anyhow::Result<Row> {
        let from = |proofs: &Option<Vec<Proof>>, found: &[Proof]| proofs.as_ref().and_then(|known| Drift::between(known, found));
        let drift = from(&results.exact, &rival.proofs);
        let to_baseline = from(&results.reference, &rival.proofs);
        rival.prove(self.workload, Some(self.workload.terms())).await?;
        let examined = rival.last;
        rival.prove(self.workload, None).await?;
        let starved = match device::starve(self.device.device(), rival.predicted)? {
            Some(_ballast) => {
                rival.prove(self.workload, None).await?;
                from(&results.exact, &rival.proofs)
            }
            None => None,
        };
        let reload = rival.reload(self.again).await?;
        Ok(Row::new(rival, drift, to_baseline, starved, examined, reload))
    }
}

/// Passes a contestant's words on for as long as it has any.
async fn relay(pipe: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("{line}");
    }
}
