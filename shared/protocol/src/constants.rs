//! Protocol truth that no setting changes (grail-protocol 1, grail-validation 1).

/// Blocks of one window.
pub const WINDOW_LENGTH: u64 = 30;
/// Nominal seconds of one block of the network's chain.
pub const BLOCK_TIME_SECONDS: f64 = 12.0;
/// Rollouts of one problem; a group of any other size rejects the file.
pub const ROLLOUTS_PER_PROBLEM: usize = 16;
/// Opened positions of one rollout, and the shortest completion that can be proved.
pub const CHALLENGE_K: usize = 32;
/// The layer a proof speaks of: the last hidden state after the final norm.
pub const LAYER_INDEX: i32 = -1;
/// Proof version that is written.
pub const PROOF_VERSION: &str = "v5";
/// Proof versions that are accepted.
pub const ACCEPTED_PROOF_VERSIONS: [&str; 2] = ["v4", "v5"];
/// Completion cap, whatever the checkpoint's metadata asks for.
pub const MAX_NEW_TOKENS_PROTOCOL_CAP: u64 = 8192;
/// Modulus of a sketch, 2^31 - 1.
pub const PRIME_Q: u32 = 2_147_483_647;
/// Activations that enter one sketch.
pub const PROOF_TOPK: usize = 16;
/// Sequences of one forward sub-batch, for miner and validator alike.
pub const PROOF_BATCH_SIZE: usize = 16;
/// UID of the trainer, who publishes the checkpoints.
pub const TRAINER_UID: u16 = 0;
/// Smallest window file a validator looks at, in bytes.
pub const MIN_FILE_BYTES: u64 = 200;
/// Largest window file a validator looks at, in bytes.
pub const MAX_FILE_BYTES: u64 = 350 * 1024 * 1024;
/// Seconds by which an upload must precede the first block after the window.
pub const DEADLINE_SLACK_SECONDS: f64 = 4.0;
/// Unique rollouts of one window that are paid.
pub const UNIQUE_ROLLOUTS_CAP: u64 = 5000;
