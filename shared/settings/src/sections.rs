//! What is set, section by section. A value that exists is legal by itself.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use grail_chain::patience::Patience;
use grail_engines::Engine;
use grail_secrets::{Address, Secret, Words};

/// The settings of one host. A value that exists is legal by itself; what depends on the host (GPUs, files, ports) is
/// judged by [`grail_workers::plan`] and the preflight.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Lock, sockets, spool, status and local copies.
    pub state: PathBuf,
    /// Which key signs.
    pub wallet: Wallet,
    /// Which chain.
    pub chain: Chain,
    /// How long is waited for nodes of a network, and how often they are asked.
    pub patience: Patience,
    /// Subnet.
    pub netuid: u16,
    /// Relays of drand, asked in order; none = the block hash alone makes the randomness.
    pub beacon: Vec<Address>,
    /// Which bucket.
    pub storage: Storage,
    /// Folder of cached checkpoints.
    pub cache: PathBuf,
    /// Address whose signature a checkpoint must carry, where it is not UID 0's.
    pub trainer: Option<String>,
    /// Tasks.
    pub dataset: Option<PathBuf>,
    /// Generation side.
    pub generation: Generation,
    /// Proof side.
    pub proof: Proof,
    /// Blocks kept free at the end of a window.
    pub safety_blocks: f64,
    /// What decides whether a group may begin.
    pub admission: Admission,
    /// Chance of being in time that a group needs to begin.
    pub confidence: f64,
    /// Seconds of one upload attempt.
    pub upload_timeout: f64,
    /// Bytes of the parts in which a window's file leaves while the window runs; 0 sends it whole at the end.
    pub upload_part_bytes: usize,
    /// Most bytes of one window's spool.
    pub spool_budget: u64,
    /// How proofs are checked before the upload.
    pub gate: Gate,
    /// Seconds of an orderly stop.
    pub shutdown_budget: f64,
    /// Seconds until the service manager kills, where the operator says so.
    pub shutdown_grace: Option<f64>,
    /// `CUDA_VISIBLE_DEVICES`, of `.env` or the environment; `None` where it is not set.
    pub visible_gpus: Option<String>,
    /// `TMPDIR`, of `.env` or the environment; `None` where it is not set.
    pub temporary: Option<PathBuf>,
    /// What `.env` or the environment says of proxies, by variable. Nothing here goes through one.
    pub proxies: BTreeMap<&'static str, Address>,
    /// What is set beside something that makes it change nothing.
    pub remarks: Vec<String>,
    /// Folder of the other programs.
    pub programs: Option<PathBuf>,
}

/// Which key signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wallet {
    /// `<path>/<cold>/hotkeys/<hot>`.
    File(PathBuf),
    /// A development key, local chain only.
    Development(String),
}

/// Which chain.
#[derive(Debug, Clone, PartialEq)]
pub enum Chain {
    /// A block clock inside the supervisor.
    Local {
        /// Unix seconds of block 0.
        genesis: f64,
        /// Seconds of one block.
        block_seconds: f64,
        /// Metagraph and commitments.
        file: PathBuf,
    },
    /// A network behind nodes.
    Network {
        /// `finney` or `test`, or `custom` for an endpoint of the operator's.
        name: String,
        /// Nodes, taken in turn.
        endpoints: Vec<Address>,
        /// Hash of the network's block 0, where the network is a known one.
        genesis: Option<[u8; 32]>,
        /// Nominal seconds of one block.
        block_seconds: f64,
    },
}

/// A pair of S3 credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// Access key id.
    pub access_key_id: Secret,
    /// Secret access key.
    pub secret_access_key: Secret,
}

/// Which bucket.
#[derive(Debug, Clone)]
pub enum Storage {
    /// A folder, served as S3 on loopback by the supervisor itself.
    Local {
        /// The folder; buckets are its sub-folders.
        folder: PathBuf,
        /// Where it listens while mining.
        address: SocketAddr,
    },
    /// R2 or another S3.
    Remote {
        /// Endpoint URL for every account, where it is not each account's own at R2.
        endpoint: Option<String>,
        /// Region.
        region: String,
        /// R2 account id.
        account_id: String,
        /// Bucket.
        bucket: String,
        /// Published on chain.
        read: KeyPair,
        /// Stays here.
        write: KeyPair,
    },
}

/// Generation side.
#[derive(Debug, Clone)]
pub struct Generation {
    /// `embedded`, `sglang` or `vllm`.
    pub backend: String,
    /// First GPU, relative to the visible ones.
    pub gpu: u32,
    /// GPUs from that one on.
    pub tensor_parallel: u32,
    /// Servers, each on as many GPUs.
    pub replicas: u32,
    /// Servers that run elsewhere; where there are any, none is started.
    pub servers: Vec<Address>,
    /// Where those see the folder of cached checkpoints.
    pub servers_cache: Option<PathBuf>,
    /// Longest prompt plus completion.
    pub max_model_length: u32,
    /// Requests in flight.
    pub max_concurrent: u32,
    /// Groups in flight, each counted as sixteen requests.
    pub groups_in_flight: GroupsInFlight,
    /// The Python that has the server installed.
    pub python: PathBuf,
    /// SGLang or vLLM runs on the CPU, and takes no GPU.
    pub cpu: bool,
    /// Share of GPU memory for weights and cache; `None` leaves it to the server.
    pub memory_share: Option<f64>,
    /// Requests that SGLang or vLLM works on at once.
    pub max_running: u32,
    /// Start the server without CUDA graphs.
    pub disable_cuda_graph: bool,
    /// Folder of vLLM's link to its weights.
    pub link_folder: Option<PathBuf>,
    /// Tokenizer, for vLLM.
    pub tokenizer: Option<String>,
    /// Further words of the server's command line.
    pub extra: Words,
    /// Seconds until the server must answer.
    pub server_timeout: f64,
    /// Threads of the embedded engine.
    pub threads: u32,
    /// `auto`, `f32`, `bf16` or `f16`.
    pub dtype: String,
}

impl Generation {
    /// How the server is spoken to; the embedded engine speaks as SGLang does.
    pub fn engine(&self) -> Engine {
        if self.backend == "vllm" { Engine::Vllm } else { Engine::Sglang }
    }

    /// What the launcher is started with, beside its socket.
    pub fn launcher_arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut pair = |flag: &str, value: OsString| words.extend([flag.into(), value]);
        pair("--backend", self.backend.clone().into());
        pair("--threads", self.threads.to_string().into());
        pair("--dtype", self.dtype.clone().into());
        pair("--ready-timeout", self.server_timeout.to_string().into());
        pair("--max-running-requests", self.max_running.to_string().into());
        if self.backend == "embedded" {
            return words;
        }
        pair("--python", self.python.clone().into());
        pair("--tensor-parallel", self.tensor_parallel.to_string().into());
        self.memory_share.iter().for_each(|share| pair("--memory-share", share.to_string().into()));
        pair("--context-length", self.max_model_length.to_string().into());
        self.link_folder.iter().for_each(|folder| pair("--link-folder", folder.into()));
        self.tokenizer.iter().for_each(|tokenizer| pair("--tokenizer", tokenizer.into()));
        let (_, extra) = self.extra.without_credentials();
        extra.reveal().iter().for_each(|word| pair("--extra", word.into()));
        if self.disable_cuda_graph {
            words.push("--disable-cuda-graph".into());
        }
        if self.cpu {
            words.push("--cpu".into());
        }
        words
    }
}

/// Proof side.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The workers' devices.
    pub slots: ProofSlots,
    /// Threads of one worker on the CPU.
    pub threads: u32,
    /// `auto`, `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// How exactly the miner's workers compute.
    pub numerics: WorkerNumerics,
    /// Folder of libtorch for the workers alone.
    pub library_path: Option<PathBuf>,
}

/// The workers' devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProofSlots {
    /// So many workers without a GPU.
    Cpu(u32),
    /// One worker per GPU, relative to the visible ones.
    Gpus(Vec<u32>),
}

/// How proofs are checked before the upload.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// Rollouts of a full window that are proved again.
    pub spot_checks: usize,
    /// What two proofs of one rollout must agree in.
    pub limits: AgreementLimits,
}

/// How workers compose and compute batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProofMode {
    /// As a validator does.
    #[default]
    Exact,
    /// Without padding.
    Packed,
    /// Without padding, and the prompt of a group once.
    PackedShared,
}

impl ProofMode {
    /// All of them as settings and workers name them.
    pub const NAMES: [&str; 3] = ["exact", "packed", "packed-shared"];

    /// The mode of a name; `exact` for any other.
    pub fn named(name: &str) -> Self {
        match name {
            "packed" => Self::Packed,
            "packed-shared" => Self::PackedShared,
            _ => Self::Exact,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// How exactly workers compute; the default is what validators do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkerNumerics {
    /// How batches are composed.
    pub mode: ProofMode,
    /// Level of the precision tuning, 0 to 2.
    pub precision_tuning: u8,
    /// Eager attention at levels 0 and 1 too.
    pub force_eager_attention: bool,
}

/// How many groups may be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupsInFlight {
    /// What the server sustains, found while it works.
    Auto,
    /// So many.
    Fixed(u32),
}

/// Where agreement ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AgreementLimits {
    /// Least share of positions with the same sketch.
    pub identical_share: f64,
    /// Largest 99th percentile of the sketch distances.
    pub distance_p99: u32,
    /// Largest 99th percentile of the log-probabilities' differences, natural log.
    pub logprob_p99: f32,
}

/// What decides whether a group may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Its chance of being durable before the deadline.
    Deadline,
    /// The reference's moving averages and safety blocks alone (grail-miner 4).
    Reference,
}
