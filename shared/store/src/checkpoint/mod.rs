//! Checkpoints: finding, fetching, checking, keeping and publishing model weights (grail-checkpoints).
//!
//! Stricter than the network's own reader, which accepts them unverified: a FULL without metadata, with an empty manifest, or
//! whose tensors do not hash to `weights_hash`, and a DELTA without `weights_hash`, are refused.
//!
//! ```text
//! discover(T) ─▶ W ─▶ fetch(W): cache hit, verified ───────────────────────────────────────────────▶ CachedCheckpoint
//!                       └ READY? ─▶ metadata, signature ─┬─ FULL ─▶ *.partial ─▶ sha256, weights ──▶ rename
//!                                                        └─ DELTA ─▶ chain ─▶ links ─▶ base ─▶ changes ─▶ whole ─▶ rename
//! ```

mod assemble;
mod cache;
mod chain;
mod changes;
mod code;
mod contents;
mod disk;
mod documents;
mod error;
mod event;
mod fetch;
mod keys;
mod limits;
mod metadata;
mod objects;
mod ownership;
mod publish;
mod rebuild;
mod refused;
pub mod sparse;
mod texts;
mod weights;

#[cfg(test)]
mod tests;

pub use cache::{checkpoint_dir, clean, clean_but_the_last, verify_dir};
pub use code::refuse_code;
pub use documents::fetch_metadata;
pub use error::CheckpointError;
pub use event::{CheckpointChanges, FetchEvent, Observer};
pub use fetch::{CachedCheckpoint, Fetcher};
pub use keys::{PREFIX, delta_key, discover, full_key, parse_ready_key, ready_before, ready_key};
pub use limits::FetchLimits;
pub use metadata::{Manifest, Metadata, MiningTerms, is_signed_by, signed_bytes};
pub use ownership::Hold;
pub use publish::{Predecessor, PublishTerms, Signer, left_behind, publish_delta, publish_full, published_weights_hash};
pub use refused::Refused;
pub use texts::fetch_texts;
pub use weights::{TensorPlace, file_sha256, hash_tensors, tensor_places, weights_hash};
