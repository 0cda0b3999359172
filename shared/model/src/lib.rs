//! Qwen2, Qwen3 and Llama models on libtorch: hidden states, proofs, and batched sampling with a KV cache.
//!
//! ```text
//!  startup ──▶ Model::load(directory) ──▶ prove / examine      the proof worker
//!                     │  reload in place
//!                     └────────────────▶ generation::Engine    the embedded generation engine
//! ```
//!
//! The only crate that links libtorch. Its `unsafe` lives in one module, beside the C++ shim of `native/shim.cpp`.

mod attention;
mod checkpoint;
mod config;
mod copies;
mod delta;
mod delta_file;
mod device_error;
mod finite;
#[cfg(test)]
mod fixtures;
pub mod generation;
mod memory;
mod model;
mod native;
mod network;
mod numerics;
mod prove;
mod rotary;
mod sketch;
mod startup;
mod transfer;
mod weight_file;
mod weights;
mod weights_error;

pub use attention::{AttentionKernel, Heads};
pub use checkpoint::Checkpoint;
pub use config::{Architecture, ConfigError, ModelConfig, Rotary, RotaryScaling, stop_token_ids};
pub use delta::DeltaError;
pub use device_error::fault;
pub use memory::{empty_cache, free_memory, take_peak};
pub use model::{ApplyError, Candidate, LoadError, LoadOptions, Model, Precision, ReloadError, judge};
pub use numerics::{Attention, Numerics, NumericsError, PrecisionTuning, Switches};
pub use prove::{Drift, ExamineTerms, Examined, MemoryPlan, Mode, Proof, ProveError, Prover, Sequence, TokenBudget};
pub use startup::{DeviceWish, NoGpu, Runtime, startup, startup_on};
pub use tch::{Device, Kind, TchError, Tensor};
pub use transfer::CopyError;
pub use weight_file::read_with;
pub use weights_error::WeightsError;
