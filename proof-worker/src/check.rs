//! `grail-proof-worker check STEP`: one question about this machine's device, answered by one process that starts no other, so that
//! it works where little does: in a sandbox, beside a driver that half answers, with nothing but libtorch.
//!
//! Standard output has what was found, and at last one line: `passed: …`, `left out: …` or `FAILED: …`. Exit codes: 0 passed,
//! 3 left out, because something that the step needs is not here, 1 failed.

mod attention;
mod correctness;
mod fidelity;
mod memory;
mod precision;
mod speed;
mod sticky;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use grail_link::message::ProofSequence;
use grail_model::{
    Attention, Device, DeviceWish, LoadOptions, Mode, Model, Numerics, Precision, Proof, Prover, Runtime, Sequence,
};
use grail_process::clock;

use crate::bench::workload::{GroupShape, Shape, Workload, random_weights, write_weights};

/// Exit code of a step that needs something that is not here.
const LEFT_OUT: u8 = 3;

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    step: Step,
    /// CPU threads of libtorch; without it, one per core.
    #[arg(long, global = true)]
    threads: Option<usize>,
    /// What to compute in: auto (bf16 on CUDA, f32 on the CPU), f32, bf16 or f16.
    #[arg(long, global = true, default_value = "auto")]
    dtype: Precision,
}

#[derive(Debug, clap::Subcommand)]
enum Step {
    /// What libtorch finds on this machine, and how long that takes.
    Hello {
        /// The device that it shall be.
        #[arg(long, value_parser = ["cpu", "cuda"])]
        want: Option<String>,
    },
    /// Makes a random model for the other steps.
    Model {
        /// The folder.
        #[arg(long)]
        model: PathBuf,
        #[command(flatten)]
        shape: Shape,
    },
    /// A tiny model on the device: hashes, a change and its way back, sketches and log-probabilities beside the CPU's.
    Correctness,
    /// Which attention kernel libtorch takes, what it costs, and what lengths cost that it has not seen.
    Attention {
        /// As libtorch comes, cuDNN's kernel among those that it may take, instead of as proofs are made.
        #[arg(long)]
        as_it_comes: bool,
    },
    /// Every mode beside one sequence at a time; and hidden states in a file, for a comparison with transformers.
    Fidelity {
        #[command(flatten)]
        job: Job,
        /// Where hidden states go (safetensors).
        #[arg(long)]
        states: Option<PathBuf>,
    },
    /// Every mode at a level of the precision tuning, twice.
    Precision {
        #[command(flatten)]
        job: Job,
        /// 0, 1 or 2.
        #[arg(long)]
        level: String,
    },
    /// One mode: load, memory as predicted and as taken, tokens per second, share of what matrix products reach.
    Speed {
        #[command(flatten)]
        job: Job,
        /// The mode.
        #[arg(long)]
        mode: Mode,
        /// Timed passes.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..1000))]
        passes: u32,
    },
    /// What happens when memory runs out.
    Memory {
        #[command(flatten)]
        job: Job,
        /// Take the memory before anything was multiplied.
        #[arg(long)]
        at_once: bool,
    },
    /// A device-side assertion, after which the process can do nothing more with its device: what it says and how it ends.
    Sticky,
}

/// A model and rollouts for it.
#[derive(Debug, clap::Args)]
struct Job {
    /// The model's folder, as `check model` makes it.
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    group: GroupShape,
}

/// How a step went, in words.
enum Outcome {
    Passed(String),
    LeftOut(String),
}

impl Outcome {
    fn needs_a_gpu() -> Self {
        Self::LeftOut("needs a GPU".into())
    }
}

/// Answers, and turns the outcome into an exit code.
pub fn main(arguments: &Arguments) -> ExitCode {
    match answer(arguments) {
        Ok(Outcome::Passed(what)) => {
            println!("passed: {what}");
            ExitCode::SUCCESS
        }
        Ok(Outcome::LeftOut(why)) => {
            println!("left out: {why}");
            ExitCode::from(LEFT_OUT)
        }
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let begun = clock::monotonic();
    let wish = match &arguments.step {
        Step::Hello { want: Some(want) } if want == "cuda" => DeviceWish::Cuda,
        _ => DeviceWish::Auto,
    };
    let runtime = grail_model::startup_on(wish, arguments.threads)?;
    let site = Site { runtime, precision: arguments.dtype };
    println!("{}, {} after {:.2} s", site.runtime, site.runtime.model, begun.elapsed().as_secs_f64());
    // Everything is computed as a worker computes it, unless the step is about something else.
    if !matches!(&arguments.step, Step::Precision { .. } | Step::Attention { as_it_comes: true }) {
        Site::tune("0")?;
    }
    match &arguments.step {
        Step::Hello { want } => hello(&site.runtime, want.as_deref()),
        Step::Model { model, shape } => {
            let named = random_weights(shape, model, 1, site.runtime.device())?;
            write_weights(&named, model)?;
            Ok(Outcome::Passed(format!("{} tensors at {}", named.len(), model.display())))
        }
        Step::Correctness => correctness::check(&site),
        Step::Attention { .. } => attention::check(&site),
        Step::Fidelity { job, states } => fidelity::check(&site, job, states.as_deref()),
        Step::Precision { job, level } => precision::check(&site, job, level),
        Step::Speed { job, mode, passes } => speed::check(&site, job, *mode, *passes),
        Step::Memory { job, at_once } => memory::check(&site, job, *at_once),
        Step::Sticky => sticky::check(&site),
    }
}

fn hello(runtime: &Runtime, want: Option<&str>) -> anyhow::Result<Outcome> {
    let device = if runtime.cuda { "cuda" } else { "cpu" };
    if let Some(free) = grail_model::free_memory(runtime.device()) {
        println!("{} MiB free on {}", free >> 20, runtime.device_label());
    }
    match want {
        Some(want) if want != device => bail!("libtorch computes on {device} and was to compute on {want}"),
        _ => Ok(Outcome::Passed(format!("computes on {} ({})", runtime.device_label(), runtime.model))),
    }
}

/// Where a step runs.
struct Site {
    runtime: Runtime,
    precision: Precision,
}

impl Site {
    fn device(&self) -> Device {
        self.runtime.device()
    }

    fn on_gpu(&self) -> bool {
        self.runtime.cuda
    }

    fn load(&self, directory: &Path) -> anyhow::Result<Model> {
        self.load_as(directory, self.device(), self.precision)
    }

    fn load_as(&self, directory: &Path, device: Device, precision: Precision) -> anyhow::Result<Model> {
        Model::load(directory, LoadOptions { device, precision }).with_context(|| format!("loading {}", directory.display()))
    }

    /// The numerics of a level, in force for the rest of this process.
    fn tune(level: &str) -> anyhow::Result<Attention> {
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let numerics = Numerics::judge(level.parse().map_err(anyhow::Error::msg)?, None, variable)?;
        println!("level {level}: {}", numerics.apply()?);
        Ok(numerics.attention())
    }
}

/// The rollouts of a job.
fn workload(job: &Job) -> anyhow::Result<Workload> {
    Workload::new(&job.model, &job.group).with_context(|| format!("{}: no model; make one with check model", job.model.display()))
}

/// A prover that knows what is free.
/// Tokens of the longest sequence.
fn longest(sequences: &[ProofSequence]) -> usize {
    sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0)
}

fn prover(model: &Model, mode: Mode) -> Prover {
    Prover::new(model, mode, grail_model::free_memory(model.device()))
}

/// Proofs of all sequences, `at_once` in a call.
fn prove(prover: &mut Prover, model: &Model, sequences: &[ProofSequence], at_once: usize) -> anyhow::Result<Vec<Proof>> {
    let mut proofs = Vec::with_capacity(sequences.len());
    for chunk in sequences.chunks(at_once) {
        let borrowed: Vec<Sequence> = chunk
            .iter()
            .map(|sequence| Sequence {
                tokens: &sequence.tokens,
                prompt_length: sequence.prompt_length as usize,
                coefficients: sequence.coefficients,
            })
            .collect();
        prover.prove(model, &borrowed, None, &mut |_, proof| proofs.push(proof))?;
    }
    Ok(proofs)
}

/// Sequences that the supervisor sends as one job.
const GROUP: usize = 16;
