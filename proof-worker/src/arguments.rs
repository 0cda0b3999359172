//! The command line, and where log lines go.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use grail_model::{Mode, Precision};

/// Exit code for arguments that cannot be used (`EX_USAGE`).
const USAGE: u8 = 64;

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
    /// What to compute in: auto (bf16 on CUDA, f32 on the CPU), f32 or bf16.
    #[arg(long, default_value = "auto")]
    pub dtype: Precision,
    /// CPU threads of libtorch; without it, one per core.
    #[arg(long)]
    pub threads: Option<usize>,
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
    tracing_subscriber::fmt().without_time().with_writer(std::io::stderr).with_ansi(false).with_env_filter(filter).init();
}
