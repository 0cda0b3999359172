//! The embedded engine: SGLang's HTTP contract over libtorch, for machines without a GPU server.
//!
//! ```text
//!  HTTP (tokio) ──commands──▶ engine thread: hold │ submit ─▶ step ─▶ step … ──completions──▶ HTTP
//!                                            └ an update waits for the running requests, new ones wait behind it
//! ```
//!
//! Where it differs from SGLang 0.5.23 it is stricter: an id outside the vocabulary is a 400 (SGLang dies), a checkpoint that
//! is damaged, of another shape or incomplete is a 400 that changes nothing (SGLang dies, or mixes weights), and the prefix
//! cache cannot survive an update. `text` is always empty: there is no tokenizer in the engine, and nothing reads it.

mod engine_thread;
mod http;
mod wire;

use std::net::SocketAddr;

use anyhow::Context;
use grail_model::generation::{Engine, EngineOptions};
use grail_model::{LoadOptions, Model, Numerics, startup, stop_token_ids};

use crate::arguments::EmbeddedArguments;

/// Loads the model and serves until the process is ended.
///
/// # Errors
/// When the checkpoint is refused, the port is taken, or serving fails.
pub fn run(arguments: &EmbeddedArguments) -> anyhow::Result<()> {
    let runtime = startup(arguments.engine.threads);
    Numerics::default().apply()?;
    let options = LoadOptions { device: runtime.device(), precision: arguments.engine.precision() };
    let model = Model::load(&arguments.model_path, options)?;
    tracing::info!(
        "Embedded engine (libtorch on {}) standing in for SGLang: {model}, {} requests at once.",
        runtime.device_name(),
        arguments.engine.max_running_requests,
    );
    let stops = stop_token_ids(&arguments.model_path, model.config())?;
    let seed = arguments.engine.random_seed.unwrap_or_else(random_seed);
    let max_running = arguments.engine.max_running_requests as usize;
    let engine = Engine::new(model, stops, &arguments.weight_version, EngineOptions { max_running, seed })?;
    let facts = engine_thread::Facts {
        model_path: arguments.model_path.clone(),
        weight_version: arguments.weight_version.clone(),
        max_running,
        random_seed: seed,
    };
    let handle = engine_thread::start(engine, facts).context("starting the engine's thread")?;
    let address = SocketAddr::new(arguments.host, arguments.port);
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().context("starting HTTP")?;
    tokio.block_on(http::serve(address, handle))
}

/// The low bits of the clock: only uniqueness between runs is asked for.
fn random_seed() -> u64 {
    grail_process::clock::since_epoch().as_nanos() as u64
}
