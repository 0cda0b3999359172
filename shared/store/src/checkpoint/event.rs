//! What a fetch tells while it goes on.

use std::path::PathBuf;

/// A step of a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchEvent {
    /// What is about to be downloaded for `window`; files that an earlier attempt has left count as well.
    Download {
        /// Checkpoint whose objects they are: the one asked for, its base, or a link.
        window: u64,
        /// Number of files.
        files: usize,
        /// Bytes of all of them.
        bytes: u64,
    },
    /// Another process makes the checkpoint in the same cache. It is waited for, and what it makes is used.
    Waits {
        /// Checkpoint.
        window: u64,
    },
    /// Bytes that arrived, in pieces of some MiB, and those of an earlier attempt.
    Received {
        /// Checkpoint whose objects they are.
        window: u64,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// A link of the chain is decoded.
    Decoded {
        /// The link.
        window: u64,
        /// Changed elements.
        entries: u64,
    },
    /// What changed is on the disk. Whoever holds the base can go on from it to the new weights, and has to compare their hash:
    /// the whole is rebuilt and verified only now.
    Changes(CheckpointChanges),
    /// The published FULL or DELTA cannot be used, the other one is tried.
    OtherKind {
        /// Checkpoint.
        window: u64,
        /// Why the first cannot be used.
        why: String,
    },
}

/// The way from one checkpoint to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointChanges {
    /// Checkpoint that they lead to.
    pub window: u64,
    /// Its published weights hash, lower-case hex.
    pub weights_hash: String,
    /// Checkpoint that they start from.
    pub base_window: u64,
    /// Files to apply in this order. For a changed tensor `T` each has `T.positions` (u32, ascending, flat, row-major) and
    /// `T.values` (the new values in the tensor's type).
    pub files: Vec<PathBuf>,
}

/// Where events go.
pub type Observer<'a> = dyn Fn(FetchEvent) + Send + Sync + 'a;
