//! Why a checkpoint cannot be had, published or trusted.

use std::path::PathBuf;

use crate::bucket::BucketError;

/// A checkpoint operation's failure. The cache then has no new checkpoint; where another attempt may succeed, what was downloaded
/// stays as a `*.partial` directory.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// No READY marker yet.
    #[error("checkpoint {window} is not ready: it has no READY-* marker. Wait for its trainer to finish the upload")]
    NotReady {
        /// Checkpoint window.
        window: u64,
    },
    /// Nothing under the window.
    #[error(
        "checkpoint {window} does not exist: neither FULL nor DELTA metadata is in the bucket. Check the bucket and the window"
    )]
    Absent {
        /// Checkpoint window.
        window: u64,
    },
    /// A chain of differences that leads nowhere, or a link of it that cannot be decoded.
    #[error(
        "checkpoint {window} cannot be rebuilt: its link {link} {why}. Wait for the next FULL checkpoint, or for its trainer to publish {link} again"
    )]
    BrokenLink {
        /// Checkpoint window.
        window: u64,
        /// Window of the link.
        link: u64,
        /// What is wrong with it.
        why: String,
    },
    /// What makes it verifiable is missing or contradicts itself; other readers may accept it.
    #[error("checkpoint {window} cannot be verified: {why}. It is refused; ask its trainer to publish it again")]
    Unverifiable {
        /// Checkpoint window.
        window: u64,
        /// What is missing.
        why: String,
    },
    /// It brings program code, which whatever loads it would run.
    #[error(
        "checkpoint {window} is refused: its file {name} {why}. No family that is mined needs any; tell its trainer, and run none of it"
    )]
    Code {
        /// Checkpoint window.
        window: u64,
        /// The file.
        name: String,
        /// What it is.
        why: String,
    },
    /// A file of the manifest is not in the bucket.
    #[error("checkpoint {window} lacks the file {name} that its manifest lists. It may still be uploading: try again later")]
    MissingFile {
        /// Checkpoint window.
        window: u64,
        /// Name in the manifest.
        name: String,
    },
    /// The bytes are not the manifest's.
    #[error(
        "checkpoint {window}: {name} has sha256 {got}, its manifest says {want}. It was damaged or replaced: try again later"
    )]
    WrongHash {
        /// Checkpoint window.
        window: u64,
        /// Name in the manifest.
        name: String,
        /// Hash of the bytes.
        got: String,
        /// Hash in the manifest.
        want: String,
    },
    /// Two downloads of a file gave different bytes: this host's way to the bucket is at fault, not what lies there.
    #[error(
        "checkpoint {window}: two downloads of {name} gave different bytes (sha256 {before} and {got}), none the manifest's {want}. \
         It is fetched again; if this stays, look at what lies between this host and the bucket, and at its memory"
    )]
    Unsteady {
        /// Checkpoint window.
        window: u64,
        /// Name in the manifest.
        name: String,
        /// Hash of the bytes of the first download.
        before: String,
        /// Hash of the bytes of the second.
        got: String,
        /// Hash in the manifest.
        want: String,
    },
    /// What lies on the disk is not what was received, or written.
    #[error(
        "checkpoint {window}: {name} has sha256 {got} on the disk, {want} was written there. It is made again; if this stays, see who \
         else writes into the cache, and look at the disk and at this host's memory"
    )]
    Altered {
        /// Checkpoint window.
        window: u64,
        /// The file.
        name: String,
        /// Hash of the bytes on the disk.
        got: String,
        /// Hash of the bytes that were written.
        want: String,
    },
    /// The tensors are not the metadata's.
    #[error("checkpoint {window}: its tensors hash to {got}, its metadata says {want}. Wait for the next FULL checkpoint")]
    WrongWeights {
        /// Checkpoint window.
        window: u64,
        /// xxh3-128 of the tensors.
        got: String,
        /// `weights_hash` of the metadata.
        want: String,
    },
    /// The disk has not enough room.
    #[error("{path}: {needed} bytes are needed, {free} are free. Make room, or set another cache folder (GRAIL_CACHE_DIR)")]
    NoRoom {
        /// Where the room is needed.
        path: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The manifest is not signed by the trainer.
    #[error("checkpoint {window}: manifest.sig is not a signature of {trainer} over metadata.json. Check the trainer's address")]
    WrongSignature {
        /// Checkpoint window.
        window: u64,
        /// SS58 address that should have signed.
        trainer: String,
    },
    /// More bytes than this machine is set to accept.
    #[error("checkpoint {window} has {size} bytes, more than the {limit} allowed. Raise the limit if that is expected")]
    TooLarge {
        /// Checkpoint window.
        window: u64,
        /// Bytes announced by the bucket.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Metadata that is no JSON object of the expected kind.
    #[error("{place}: {why}. Ask the trainer to publish the checkpoint again")]
    Metadata {
        /// Key or file.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// Terms that mining needs are missing: the window is skipped, defaults are never guessed.
    #[error("checkpoint {window} cannot be mined: its metadata lacks {}. Skip the window; its trainer has to publish them", .missing.join(", "))]
    Incomplete {
        /// Checkpoint window.
        window: u64,
        /// Names of what is missing or illegal.
        missing: Vec<String>,
    },
    /// A weight file that cannot be read as safetensors.
    #[error("{path} is no valid safetensors file: {why}. Export the model again")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A directory that cannot be published.
    #[error("{path} cannot be published: {why}")]
    Unpublishable {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The local disk failed.
    #[error("{path}: {source}. Check the path, its permissions and the free space")]
    Local {
        /// File or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl CheckpointError {
    /// Whether what was downloaded so far is worth keeping for the next attempt.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Bucket(_) | Self::Local { .. } | Self::NoRoom { .. } | Self::Unsteady { .. } | Self::Altered { .. })
    }
}

/// Names the path in an error of the local disk.
pub(super) fn local(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.into();
    move |source| CheckpointError::Local { path, source }
}
