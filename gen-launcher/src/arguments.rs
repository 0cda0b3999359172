//! The command line of both faces, and where log lines go.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use grail_engines::Engine;
use grail_model::Precision;
use grail_secrets::Words;

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
    #[command(flatten)]
    installed: InstalledArguments,
    /// Seconds a server may take until it answers.
    #[arg(long, default_value_t = 300.0)]
    ready_timeout: f64,
    /// Folder where the server is written down while it runs, so that a later supervisor finds it.
    #[arg(long, env = "GRAIL_CHILD_RECORDS")]
    records: Option<PathBuf>,
    /// Folder that remembers what the installed server's --help says; without it, it is asked at each start.
    #[arg(long, env = "GRAIL_PROBES")]
    probes: Option<PathBuf>,
}

/// The servers that can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The engine in this program.
    Embedded,
    /// SGLang, of the Python given by `--python`.
    Sglang,
    /// vLLM, of the Python given by `--python`.
    Vllm,
}

/// What the launcher passes to the embedded engine; `dtype` and `max_running_requests` hold for all servers.
#[derive(Debug, Clone, Args)]
pub struct EngineArguments {
    /// What to compute in: auto (bf16; f32 where the embedded engine runs on the CPU), f32, bf16 or f16.
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

/// What the launcher passes to SGLang or vLLM.
#[derive(Debug, Clone, Args)]
pub struct InstalledArguments {
    /// The Python that has the server installed.
    #[arg(long, default_value = "python3")]
    pub python: PathBuf,
    /// The server runs on the CPU.
    #[arg(long)]
    pub cpu: bool,
    /// GPUs of the server.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub tensor_parallel: u32,
    /// Share of GPU memory for weights and cache; without it, the server's own rule.
    #[arg(long)]
    pub memory_share: Option<f64>,
    /// Longest prompt plus completion.
    #[arg(long, default_value_t = 12288)]
    pub context_length: u32,
    /// Start without CUDA graphs.
    #[arg(long)]
    pub disable_cuda_graph: bool,
    /// Folder of the link through which vLLM finds its weights; default beside the checkpoint.
    #[arg(long)]
    pub link_folder: Option<PathBuf>,
    /// Tokenizer, for vLLM.
    #[arg(long)]
    pub tokenizer: Option<String>,
    /// A further word of the server's command line; may be given many times.
    #[arg(long = "extra", allow_hyphen_values = true)]
    pub extra: Vec<String>,
    /// Further words that hold secrets, a line each. A variable only: everybody on the host can read a command line.
    #[arg(long, env = "GRAIL_SERVER_SECRETS", hide = true, value_parser = lines)]
    pub credentials: Option<Words>,
}

impl Backend {
    /// What its server is called in messages and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Sglang => "sglang",
            Self::Vllm => "vllm",
        }
    }

    /// How its server is spoken to; the embedded one speaks as SGLang does.
    pub fn dialect(self) -> Engine {
        if self == Self::Vllm { Engine::Vllm } else { Engine::Sglang }
    }
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
    /// Which server.
    pub backend: Backend,
    /// What the embedded engine is started with.
    pub engine: EngineArguments,
    /// What SGLang or vLLM is started with.
    pub installed: InstalledArguments,
    /// Time until a server must answer.
    pub ready_timeout: Duration,
    /// Where the server is written down.
    pub records: Option<PathBuf>,
    /// Where the installed server's help is remembered.
    pub probes: Option<PathBuf>,
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
    /// When a flag is missing or a value out of range.
    pub fn face(self) -> Result<Face, clap::Error> {
        if let Some(Server::Embedded(arguments)) = self.server {
            return Ok(Face::Embedded(arguments));
        }
        let missing = |flag: &str| wrong(ErrorKind::MissingRequiredArgument, format!("{flag} is required without a subcommand"));
        let LauncherFlags { socket, backend, engine, installed, ready_timeout, records, probes } = self.launcher;
        let socket = socket.ok_or_else(|| missing("--socket"))?;
        let backend = backend.ok_or_else(|| missing("--backend"))?;
        let limit = |what: &str| wrong(ErrorKind::ValueValidation, format!("{what} is out of range"));
        let ready_timeout = Duration::try_from_secs_f64(ready_timeout).map_err(|_| limit("--ready-timeout"))?;
        if !installed.memory_share.is_none_or(|share| share > 0.0 && share <= 1.0) {
            return Err(limit("--memory-share"));
        }
        Ok(Face::Launcher(LauncherArguments { socket, backend, engine, installed, ready_timeout, records, probes }))
    }
}

fn wrong(kind: ErrorKind, message: String) -> clap::Error {
    Arguments::command().error(kind, message)
}

fn lines(text: &str) -> Result<Words, std::convert::Infallible> {
    Ok(Words::new(text.lines()))
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
    tracing_subscriber::fmt()
        .log_internal_errors(false)
        .without_time()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(filter)
        .init();
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
        for backend in ["embedded", "sglang", "vllm"] {
            assert!(matches!(face(&format!("--socket s --backend {backend} --dtype bf16")), Ok(Face::Launcher(_))));
        }
        assert!(matches!(face("--socket s --backend sglang --extra --device --extra cpu"), Ok(Face::Launcher(_))));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (line, word) in [
            ("--socket s --backend vllm --memory-share 1.5", "--memory-share"),
            ("--socket s --backend vllm --ready-timeout inf", "--ready-timeout"),
            ("--socket s --backend tgi", "tgi"),
            ("--socket s", "--backend is required"),
            ("--backend embedded", "--socket is required"),
            ("--socket s --backend embedded --dtype f8", "f8"),
        ] {
            let error = face(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
