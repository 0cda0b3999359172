//! The command line, and where log lines go.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use grail_model::{Attention, DeviceWish, Mode, Numerics, NumericsError, Precision, PrecisionTuning};

/// Exit code for arguments or an environment that cannot be used (`EX_USAGE`).
pub const USAGE: u8 = 64;

/// Proves rollouts on one device for grail-supervisor, which starts it.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub task: Option<Task>,
    #[command(flatten)]
    pub serve: Option<Serve>,
}

/// What can be done beside serving a supervisor.
#[derive(Debug, clap::Subcommand)]
pub enum Task {
    /// Measures every mode beside a transformers baseline, and how far their proofs lie apart.
    Bench(crate::bench::Arguments),
    /// Answers one question about this machine's device, in this process alone; `scripts/gpu.sh` asks them all.
    Check(crate::check::Arguments),
}

/// Serving a supervisor.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// The supervisor's Unix socket for this worker.
    #[arg(long)]
    pub socket: PathBuf,
    /// The proof slot, for logs and the handshake.
    #[arg(long)]
    pub slot: u32,
    /// How batches are computed: exact (the validator's composition), packed (no padding) or packed-shared (the prompt of a
    /// group computed once).
    #[arg(long, default_value = "exact")]
    pub mode: Mode,
    /// What to compute on: cuda (the first visible GPU, and nothing else), cpu, or auto (a GPU where there is one).
    #[arg(long, value_name = "auto|cpu|cuda", default_value = "auto")]
    pub device: DeviceWish,
    /// What to compute in: auto (bf16 on CUDA, f32 on the CPU), f32 or bf16.
    #[arg(long, default_value = "auto")]
    pub dtype: Precision,
    /// CPU threads of libtorch; without it, one per core.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Threads that read the files of weights, at most 16; without it, as many as compute.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub readers: Option<u16>,
    /// 0 for libtorch's defaults, as validators have them; 1 without TF32, reduced-precision sums and cuDNN autotuning; 2
    /// with deterministic algorithms and eager attention too, which needs CUBLAS_WORKSPACE_CONFIG=:4096:8 (or :16:8).
    ///
    /// On CUDA the proof is computed in bf16, where TF32 plays next to no part (it concerns f32 products and is off by
    /// default): level 1 changes the sums inside bf16 products, little else. Level 2 repeats itself to the bit but leaves the
    /// kernels that validators use. Neither makes different GPUs agree.
    #[arg(long, value_name = "0|1|2", default_value = "0")]
    pub precision_tuning: PrecisionTuning,
    /// sdpa (libtorch's fused kernels; on CUDA its flash kernel, sequence by sequence and without a mask, in bf16 and f16) or eager
    /// (matmul, f32 softmax, matmul); without it the precision tuning decides.
    #[arg(long, value_name = "sdpa|eager")]
    pub attention: Option<Attention>,
}

impl Serve {
    /// Judges the numerics that are asked for against the environment, before libtorch is touched.
    ///
    /// # Errors
    /// When they cannot be had; the message has the remedy.
    pub fn numerics(&self) -> Result<Numerics, NumericsError> {
        Numerics::judge(self.precision_tuning, self.attention, variable)
    }
}

/// A variable of the environment.
pub fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Prints help, version or what is wrong with the arguments.
pub fn refuse(error: &clap::Error) -> ExitCode {
    // A closed standard error is no reason to fail in another way.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

/// One line per event on standard error; `RUST_LOG` chooses the level, `info` without it.
pub fn start_logging() {
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // The supervisor reads these lines and adds the time.
    tracing_subscriber::fmt()
        .log_internal_errors(false)
        .without_time()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(filter)
        .init();
}
