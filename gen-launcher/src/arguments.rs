//! The command line of both faces, and where log lines go.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use grail_model::Precision;

/// Exit code for arguments that cannot be used (`EX_USAGE`).
const USAGE: u8 = 64;

/// Starts and watches a generation server for grail-supervisor, or is one.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    server: Option<Server>,
    #[command(flatten)]
    launcher: LauncherFlags,
}

#[derive(Debug, Subcommand)]
enum Server {
    /// Be the embedded engine: an HTTP server with SGLang's contract over libtorch.
    Embedded(EmbeddedArguments),
}

#[derive(Debug, Args)]
struct LauncherFlags {
    /// The supervisor's Unix socket for the launcher.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Which server to start.
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    #[command(flatten)]
    engine: EngineArguments,
    /// Seconds a server may take until it answers.
    #[arg(long, default_value_t = 300)]
    ready_timeout: u64,
    /// Folder where the server is written down while it runs, so that a later supervisor finds it.
    #[arg(long, env = "GRAIL_CHILD_RECORDS")]
    records: Option<PathBuf>,
}

/// The servers that can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The engine in this program.
    Embedded,
    /// SGLang; not started by this version.
    Sglang,
    /// vLLM; not started by this version.
    Vllm,
}

/// What the launcher passes to the embedded engine.
#[derive(Debug, Clone, Args)]
pub struct EngineArguments {
    /// What to compute in: auto (bf16 on CUDA, f32 on the CPU), f32 or bf16.
    #[arg(long, default_value = "auto", value_parser = precision)]
    pub dtype: String,
    /// CPU threads of libtorch; without it, one per core.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Requests sampled at once; further ones wait.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_running_requests: u32,
    /// Seed of the random numbers of requests without a `sampling_seed`; random without it.
    #[arg(long)]
    pub random_seed: Option<u64>,
}

impl EngineArguments {
    /// The type to compute in.
    pub fn precision(&self) -> Precision {
        self.dtype.parse().unwrap_or_default()
    }
}

/// Arguments of the embedded engine.
#[derive(Debug, Args)]
pub struct EmbeddedArguments {
    /// The checkpoint's directory.
    #[arg(long)]
    pub model_path: PathBuf,
    /// TCP port to listen on.
    #[arg(long)]
    pub port: u16,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// What `weight_version` says until the first update.
    #[arg(long, default_value = "default")]
    pub weight_version: String,
    /// Sampling and libtorch.
    #[command(flatten)]
    pub engine: EngineArguments,
}

/// Arguments of the launcher.
#[derive(Debug)]
pub struct LauncherArguments {
    /// The supervisor's socket.
    pub socket: PathBuf,
    /// What the server is started with.
    pub engine: EngineArguments,
    /// Seconds until a server must answer.
    pub ready_timeout: u64,
    /// Where the server is written down.
    pub records: Option<PathBuf>,
}

/// Which of its two faces the program shows.
#[derive(Debug)]
pub enum Face {
    /// The embedded engine.
    Embedded(EmbeddedArguments),
    /// The launcher.
    Launcher(LauncherArguments),
}

impl Arguments {
    /// Settles what is to be done.
    ///
    /// # Errors
    /// When a flag is missing, or the backend is one that this version does not start.
    pub fn face(self) -> Result<Face, clap::Error> {
        if let Some(Server::Embedded(arguments)) = self.server {
            return Ok(Face::Embedded(arguments));
        }
        let missing = |flag: &str| wrong(ErrorKind::MissingRequiredArgument, format!("{flag} is required without a subcommand"));
        let LauncherFlags { socket, backend, engine, ready_timeout, records } = self.launcher;
        let socket = socket.ok_or_else(|| missing("--socket"))?;
        match backend.ok_or_else(|| missing("--backend"))? {
            Backend::Embedded => Ok(Face::Launcher(LauncherArguments { socket, engine, ready_timeout, records })),
            Backend::Sglang => Err(not_yet("sglang")),
            Backend::Vllm => Err(not_yet("vllm")),
        }
    }
}

fn not_yet(backend: &str) -> clap::Error {
    wrong(ErrorKind::InvalidValue, format!("--backend {backend} is not started by this version; use --backend embedded"))
}

fn wrong(kind: ErrorKind, message: String) -> clap::Error {
    Arguments::command().error(kind, message)
}

fn precision(text: &str) -> Result<String, String> {
    text.parse::<Precision>().map(|_| text.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn face(line: &str) -> Result<Face, String> {
        let words = std::iter::once("grail-gen-launcher").chain(line.split(' '));
        Arguments::try_parse_from(words).and_then(Arguments::face).map_err(|error| error.to_string())
    }

    #[test]
    fn both_faces_parse() {
        assert!(matches!(face("embedded --model-path m --port 1 --threads 2"), Ok(Face::Embedded(_))));
        assert!(matches!(face("--socket s --backend embedded --dtype bf16"), Ok(Face::Launcher(_))));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (line, word) in [
            ("--socket s --backend sglang", "sglang is not started"),
            ("--socket s --backend vllm", "vllm is not started"),
            ("--socket s", "--backend is required"),
            ("--backend embedded", "--socket is required"),
            ("--socket s --backend embedded --dtype f8", "f8"),
        ] {
            let error = face(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
