//! Qwen2, Qwen3 and Llama models on libtorch: hidden states, proofs, and batched sampling with a KV cache.
//!
//! ```text
//!  startup ──▶ Model::load(directory) ──▶ prove / examine      the proof worker
//!                     │  reload in place
//!                     └────────────────▶ generation::Engine    the embedded generation engine
//! ```
//!
//! The only crate that links libtorch. Its `unsafe` lives in one module.

mod checkpoint;
mod config;
#[cfg(test)]
mod fixtures;
pub mod generation;
mod model;
mod native;
mod network;
mod prove;
mod rotary;
mod sketch;
mod startup;
mod weights;

pub use checkpoint::{Checkpoint, WeightsError};
pub use config::{Architecture, ConfigError, ModelConfig, Rotary, RotaryScaling, stop_token_ids};
pub use model::{LoadError, LoadOptions, Model, Precision, ReloadError};
pub use prove::{Drift, ExamineTerms, Examined, MemoryPlan, Mode, Proof, ProveError, Prover, Sequence, TokenBudget};
pub use startup::{Runtime, startup};
pub use tch::{Device, Kind, TchError, Tensor};
