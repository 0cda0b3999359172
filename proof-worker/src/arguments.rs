//! The command line, and where log lines go.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use grail_model::Precision;

/// Exit code for arguments that cannot be used (`EX_USAGE`).
const USAGE: u8 = 64;

/// Proves rollouts on one device for grail-supervisor, which starts it.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// The supervisor's Unix socket for this worker.
    #[arg(long)]
    pub socket: PathBuf,
    /// The proof slot, for logs and the handshake.
    #[arg(long)]
    pub slot: u32,
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
