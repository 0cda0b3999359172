//! Checkpoints: finding, fetching, checking, keeping and publishing model weights (grail-checkpoints).
//!
//! FULL checkpoints only. A window that was published as DELTA only is refused by name ([`CheckpointError::Unsupported`]).
//! Stricter than the network's own reader, which accepts them unverified: a FULL without metadata, with an empty manifest,
//! or whose tensors do not hash to `weights_hash` is refused.
//!
//! ```text
//! discover(T) ─▶ W ─▶ fetch_full(W): cache hit, verified ──────────────────────────────▶ CachedCheckpoint
//!                       └ READY? ─▶ metadata ─▶ signature ─▶ *.partial ─▶ sha256, weights ─▶ rename
//! ```

mod cache;
mod error;
mod fetch;
mod keys;
mod metadata;
mod publish;
pub mod sparse;
mod weights;

#[cfg(test)]
mod tests;

pub use cache::{checkpoint_dir, clean, verify_dir};
pub use error::CheckpointError;
pub use fetch::{CachedCheckpoint, FetchLimits, fetch_full, fetch_metadata};
pub use keys::{PREFIX, delta_key, discover, full_key, latest_ready, parse_ready_key, ready_key};
pub use metadata::{Manifest, Metadata, MiningTerms, is_signed_by, signed_bytes};
pub use publish::{PublishTerms, Signer, publish_full};
pub use weights::{TensorPlace, file_sha256, hash_tensors, tensor_places, weights_hash};
