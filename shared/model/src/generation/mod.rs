//! Batched sampling with a KV cache: requests join and leave between steps (continuous batching).
//!
//! ```text
//!  submit ──▶ queue ──prefill (once per distinct prompt)──▶ row of the batch ──step, step, …──▶ Finished
//!               ▲                                             │
//!               └────────────────── retract ◀─────────────────┘   keeps its tokens, prefills again later
//! ```
//!
//! One step is one forward pass of one token for every row, one sampling pass, and one transfer of the chosen ids.

mod cache;
mod engine;
mod request;
mod sampler;
#[cfg(test)]
mod tests;

pub use engine::{Engine, EngineError, EngineOptions};
pub use request::{FinishReason, Finished, Request, RequestError, Sampling, Ticket, VersionSpan};
