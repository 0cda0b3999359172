//! Every setting, defined once: its key in the TOML file, the guide's variable, its form, default and meaning.
//! `config explain` and the reference page print this table.

/// What a value must look like before the rules of its own setting apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Text.
    Text,
    /// A file or folder; `~` is expanded, relative paths count from the configuration file.
    Path,
    /// A whole number, not negative.
    Whole,
    /// A whole number, or "auto".
    WholeOrAuto,
    /// A number of any kind.
    Number,
    /// A number of any kind, or "auto".
    NumberOrAuto,
    /// true or false; in a variable 1, true or yes, and 0, false or no.
    Flag,
    /// A list of addresses, or one text with commas between them; users, paths and queries are not shown.
    Addresses,
    /// Words of a command line, separated by blanks; values that are or may be secrets are not shown.
    Words,
    /// A list of whole numbers, or `1,2,3` in a variable.
    WholeList,
    /// Text that never reaches a log, an error or a child.
    Secret,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Dotted key in the TOML file.
    pub key: &'static str,
    /// The guide's variables, first that is set wins.
    pub variables: &'static [&'static str],
    /// Form of the value.
    pub form: Form,
    /// Default as TOML text; empty for "not set".
    pub default: &'static str,
    /// One sentence for the reference.
    pub meaning: &'static str,
}

const fn setting(
    key: &'static str,
    variables: &'static [&'static str],
    form: Form,
    default: &'static str,
    meaning: &'static str,
) -> Setting {
    Setting { key, variables, form, default, meaning }
}

/// All settings, by section.
pub const TABLE: &[Setting] = &[
    setting(
        "state.folder",
        &["GRAIL_STATE_DIR"],
        Form::Path,
        "'state'",
        "Lock, sockets, spool, status and local copies of window files.",
    ),
    setting("wallet.path", &["BT_WALLET_PATH"], Form::Path, "'~/.bittensor/wallets'", "Folder of the bittensor wallets."),
    setting("wallet.cold", &["BT_WALLET_COLD"], Form::Text, "'default'", "Coldkey name."),
    setting("wallet.hot", &["BT_WALLET_HOT"], Form::Text, "'default'", "Hotkey name."),
    setting(
        "wallet.development",
        &[],
        Form::Secret,
        "",
        "A development key such as //Alice instead of a wallet file; local chain only.",
    ),
    setting(
        "chain.network",
        &["BT_NETWORK"],
        Form::Text,
        "'finney'",
        "finney, test, custom (with chain.endpoint), or local (a block clock inside the supervisor, or a node of your own where chain.endpoint is set).",
    ),
    setting(
        "chain.endpoint",
        &["BT_CHAIN_ENDPOINT"],
        Form::Addresses,
        "",
        "WebSocket addresses of nodes instead of the network's own, separated by commas, taken in turn.",
    ),
    setting("chain.netuid", &["NETUID", "BT_NETUID"], Form::Whole, "81", "Subnet."),
    setting(
        "chain.call_timeout_seconds",
        &["BT_CALL_TIMEOUT"],
        Form::Number,
        "15.0",
        "Longest wait for one answer of a node; metadata, which is large, may take four times as long.",
    ),
    setting("chain.call_tries", &["BT_CALL_RETRIES"], Form::Whole, "3", "Tries of one question to a node, the first counted."),
    setting(
        "chain.reconnect_seconds",
        &["BT_CALL_BACKOFF"],
        Form::Number,
        "1.0",
        "Pause before a lost connection is made anew; doubled with each failure, up to 30 s.",
    ),
    setting(
        "chain.connect_timeout_seconds",
        &["BT_INIT_TIMEOUT"],
        Form::Number,
        "30.0",
        "Longest opening of a connection, before the next endpoint is tried.",
    ),
    setting("chain.genesis", &[], Form::Number, "1767225600.0", "Unix seconds of block 0 of the local chain."),
    setting("chain.block_seconds", &[], Form::Number, "12.0", "Nominal seconds of one block."),
    setting(
        "chain.file",
        &[],
        Form::Path,
        "",
        "Metagraph and commitments of the local chain; default chain.json in the state folder.",
    ),
    setting(
        "beacon.drand",
        &[],
        Form::Flag,
        "true",
        "Mix drand's randomness into a window's; without it, or when no relay answers, the block hash alone counts.",
    ),
    setting("beacon.relays", &[], Form::Addresses, "", "Relays of drand, separated by commas; default the three public ones."),
    setting(
        "storage.endpoint",
        &["R2_ENDPOINT_URL"],
        Form::Addresses,
        "",
        "S3 endpoint of every account, where the network is not finney or test: there it is https://<account_id>.r2.cloudflarestorage.com.",
    ),
    setting("storage.region", &["R2_REGION"], Form::Text, "'auto'", "S3 region."),
    setting("storage.account_id", &["R2_ACCOUNT_ID"], Form::Text, "", "R2 account id, 32 characters; goes on chain."),
    setting(
        "storage.bucket",
        &["R2_BUCKET_ID"],
        Form::Text,
        "",
        "Bucket; everybody else assumes that it is named like the account.",
    ),
    setting("storage.read_access_key_id", &["R2_READ_ACCESS_KEY_ID"], Form::Secret, "", "Read key, published on chain."),
    setting(
        "storage.read_secret_access_key",
        &["R2_READ_SECRET_ACCESS_KEY"],
        Form::Secret,
        "",
        "Read secret, published on chain.",
    ),
    setting("storage.write_access_key_id", &["R2_WRITE_ACCESS_KEY_ID"], Form::Secret, "", "Write key; stays here."),
    setting("storage.write_secret_access_key", &["R2_WRITE_SECRET_ACCESS_KEY"], Form::Secret, "", "Write secret; stays here."),
    setting(
        "storage.local_folder",
        &[],
        Form::Path,
        "",
        "Serve this folder as S3 from inside the supervisor, instead of a remote bucket.",
    ),
    setting("storage.local_address", &[], Form::Text, "'127.0.0.1:9199'", "Loopback address of that server while mining."),
    setting("upload.timeout_seconds", &["UPLOAD_TIMEOUT"], Form::Number, "90.0", "Longest single upload attempt."),
    setting(
        "upload.part_kib",
        &[],
        Form::Whole,
        "5120",
        "Parts in which a window's file leaves while the window runs, in KiB; S3 wants at least 5120; 0 sends it whole at the end.",
    ),
    setting(
        "checkpoints.cache",
        &["GRAIL_CACHE_DIR"],
        Form::Path,
        "'~/.cache/grail'",
        "Checkpoints on disk, in its sub-folder checkpoints.",
    ),
    setting(
        "checkpoints.trainer",
        &[],
        Form::Text,
        "",
        "Address whose signature every checkpoint must carry; default the hotkey of UID 0.",
    ),
    setting(
        "environment.dataset",
        &["GRAIL_DATASET"],
        Form::Path,
        "",
        "Tasks: a JSONL or Parquet file, a Hugging Face dataset folder, or a folder with one such folder per environment (gsm8k, math).",
    ),
    setting(
        "generation.backend",
        &["GRAIL_PIPELINE_BACKEND"],
        Form::Text,
        "'sglang'",
        "sglang, vllm, or embedded (libtorch on the CPU).",
    ),
    setting(
        "generation.device",
        &[],
        Form::Text,
        "'cuda'",
        "cuda, or cpu for an SGLang or vLLM that was built for it (tests, very small models); the embedded engine knows by itself.",
    ),
    setting(
        "generation.gpu",
        &["GRAIL_PIPELINE_VLLM_GPU"],
        Form::Whole,
        "0",
        "First generation GPU, counted within CUDA_VISIBLE_DEVICES.",
    ),
    setting(
        "generation.tensor_parallel",
        &["GRAIL_PIPELINE_VLLM_TP"],
        Form::Whole,
        "1",
        "GPUs of one generation server, from generation.gpu on.",
    ),
    setting(
        "generation.replicas",
        &[],
        Form::Whole,
        "1",
        "Generation servers side by side, each on its own generation.tensor_parallel GPUs; a group goes to the least loaded one.",
    ),
    setting(
        "generation.max_model_length",
        &["GRAIL_PIPELINE_MAX_MODEL_LEN"],
        Form::Whole,
        "12288",
        "Longest prompt plus completion, in tokens.",
    ),
    setting(
        "generation.servers",
        &[],
        Form::Addresses,
        "",
        "Addresses of servers that run elsewhere and speak as generation.backend says; they are probed and given weights, and no \
         server is started here.",
    ),
    setting(
        "generation.servers_cache",
        &[],
        Form::Text,
        "",
        "Where those servers see checkpoints.cache; default at the same path.",
    ),
    setting(
        "generation.max_concurrent",
        &["GRAIL_PIPELINE_MAX_CONCURRENT"],
        Form::WholeOrAuto,
        "'auto'",
        "Requests in flight to all servers; auto leaves it to generation.groups_in_flight (the guide's 48 would be three groups).",
    ),
    setting(
        "generation.groups_in_flight",
        &["GRAIL_PIPELINE_GROUPS_PER_BATCH"],
        Form::WholeOrAuto,
        "'auto'",
        "Groups of 16 that the server works on at once; auto finds how many bring most rollouts into a window, up to \
         generation.max_concurrent, and says so.",
    ),
    setting(
        "generation.server_timeout_seconds",
        &["GRAIL_PIPELINE_SERVER_TIMEOUT"],
        Form::NumberOrAuto,
        "'auto'",
        "Longest start-up of one server, from its process to its first answer; auto is 900 on GPUs, where kernels are compiled, \
         and 300 on the CPU.",
    ),
    setting(
        "generation.sglang_python",
        &["GRAIL_SGLANG_PYTHON"],
        Form::Path,
        "'python3'",
        "The Python that has SGLang installed: a path, or a name on the path.",
    ),
    setting(
        "generation.vllm_python",
        &["GRAIL_VLLM_PYTHON"],
        Form::Path,
        "'python3'",
        "The Python that has vLLM installed: a path, or a name on the path.",
    ),
    setting(
        "generation.memory_share",
        &["GRAIL_PIPELINE_GPU_MEM_UTIL"],
        Form::NumberOrAuto,
        "'auto'",
        "Share of GPU memory that the server takes for weights and cache; auto leaves it to the server's own rule (SGLang keeps 10 GiB \
         and more of a large GPU free, vLLM a tenth).",
    ),
    setting(
        "generation.max_running",
        &["GRAIL_PIPELINE_MAX_NUM_SEQS"],
        Form::WholeOrAuto,
        "'auto'",
        "Requests that one server works on at once, more wait in it; auto is 1024, of the embedded engine 48 (the guide's 64 would \
         be four groups).",
    ),
    setting(
        "generation.disable_cuda_graph",
        &["GRAIL_PIPELINE_DISABLE_CUDA_GRAPH"],
        Form::Flag,
        "false",
        "Start SGLang or vLLM without CUDA graphs: slower, less memory.",
    ),
    setting(
        "generation.link_folder",
        &["GRAIL_PIPELINE_SYMLINK_DIR"],
        Form::Path,
        "",
        "Folder of vLLM's link vllm_active to its weights; default beside the checkpoint.",
    ),
    setting(
        "generation.tokenizer",
        &["GRAIL_TRAIN_MODEL_ID"],
        Form::Text,
        "",
        "Tokenizer for vLLM, where the checkpoint's own is not to be used.",
    ),
    setting(
        "generation.extra_arguments",
        &[],
        Form::Words,
        "",
        "Further words for the command line of SGLang or vLLM, separated by blanks.",
    ),
    setting("generation.threads", &[], Form::Whole, "1", "Threads of the embedded engine."),
    setting(
        "generation.dtype",
        &[],
        Form::Text,
        "'auto'",
        "What the server computes in: auto (bf16; embedded on the CPU: f32), f32, bf16 or f16.",
    ),
    setting("proof.device", &[], Form::Text, "'cuda'", "cuda (one worker per GPU) or cpu (slots without a GPU)."),
    setting(
        "proof.gpus",
        &["GRAIL_PIPELINE_PROOF_GPU_IDS"],
        Form::WholeList,
        "[]",
        "Proof GPUs, counted within CUDA_VISIBLE_DEVICES.",
    ),
    setting("proof.gpu", &["GRAIL_PIPELINE_PROOF_GPU"], Form::Whole, "1", "The proof GPU where proof.gpus is empty."),
    setting(
        "proof.library_path",
        &[],
        Form::Path,
        "",
        "Folder of libtorch for the proof workers alone, in front of LD_LIBRARY_PATH; servers do not see it.",
    ),
    setting(
        "proof.subprocess",
        &["GRAIL_PIPELINE_PROOF_SUBPROCESS"],
        Form::Flag,
        "true",
        "Proof workers are processes of their own; anything else is refused.",
    ),
    setting(
        "proof.flash_attention",
        &["GRAIL_PIPELINE_PROOF_FLASH_ATTN"],
        Form::Flag,
        "false",
        "Proofs by the package flash-attn; refused: the proof workers attend by libtorch's own kernels, on CUDA by its flash kernel \
         (docs/gpu-hosts.md, Which attention).",
    ),
    setting("proof.cpu_slots", &[], Form::Whole, "2", "Proof workers where proof.device is cpu."),
    setting("proof.threads", &[], Form::Whole, "1", "Threads of one proof worker on the CPU."),
    setting("proof.dtype", &[], Form::Text, "'auto'", "auto (bf16 on CUDA, f32 on the CPU), f32, bf16 or f16."),
    setting(
        "proof.mode",
        &[],
        Form::Text,
        "'packed-shared'",
        "packed-shared computes no padding and the prompt of a group once, packed each prompt; exact composes batches as \
         validators do, at a fraction of the speed.",
    ),
    setting(
        "proof.precision_tuning",
        &["GRAIL_PRECISION_TUNING"],
        Form::Whole,
        "0",
        "0 is libtorch's defaults, the level validators run; 1 without TF32 and reduced-precision sums, which changes bf16 proofs next to \
         nothing; 2 deterministic with eager attention, farther from validators' kernels. None makes different GPUs agree.",
    ),
    setting(
        "proof.force_eager_attention",
        &["GRAIL_FORCE_EAGER_ATTENTION"],
        Form::Flag,
        "false",
        "Eager attention in the proof model at tuning 0 and 1 too; slower, and no kernel that validators use.",
    ),
    setting(
        "schedule.safety_blocks",
        &["GRAIL_MINER_SAFETY_BLOCKS"],
        Form::Number,
        "3.0",
        "Blocks kept free at the end of a window.",
    ),
    setting(
        "schedule.gate",
        &[],
        Form::Text,
        "'deadline'",
        "deadline begins a group while it is likely enough to be uploaded in time, by what was measured; reference by the \
         reference's moving averages and safety blocks alone.",
    ),
    setting(
        "schedule.confidence",
        &[],
        Form::Number,
        "0.5",
        "Chance of being ready before the safety blocks that a group needs to begin, where schedule.gate is deadline.",
    ),
    setting(
        "spool.budget_mib",
        &[],
        Form::Whole,
        "4096",
        "Most that the spool of one window may take on disk; groups beyond it are kept in memory only.",
    ),
    setting(
        "gate.spot_checks",
        &[],
        Form::Whole,
        "32",
        "Rollouts of a full window that another worker proves again before the upload; 0 for none.",
    ),
    setting(
        "gate.identical_share",
        &[],
        Form::Number,
        "0.9",
        "Least share of positions with the same sketch where two workers prove one rollout.",
    ),
    setting("gate.distance_p99", &[], Form::Whole, "300", "Largest 99th percentile of the distances of their sketches."),
    setting(
        "gate.logprob_p99",
        &[],
        Form::Number,
        "0.1",
        "Largest 99th percentile of the differences of their log-probabilities.",
    ),
    setting(
        "shutdown.budget_seconds",
        &[],
        Form::Number,
        "30.0",
        "Longest orderly stop: upload what is complete, end the children.",
    ),
    setting(
        "shutdown.grace_seconds",
        &[],
        Form::Number,
        "0",
        "What the service manager allows before it kills (systemd TimeoutStopSec, Docker stop_grace_period); 0 for not told.",
    ),
    setting(
        "programs.folder",
        &[],
        Form::Path,
        "",
        "Folder of grail-proof-worker and grail-gen-launcher; default beside this program.",
    ),
];

/// The definition of `key`.
pub fn find(key: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|setting| setting.key == key)
}
