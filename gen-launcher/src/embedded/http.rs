//! The routes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use grail_model::generation::{Finished, Request, RequestError};
use grail_process::clock;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::engine_thread::{Command, Handle};
use super::wire::{BadBody, Generate, completion};

/// Largest body: a batch of long prompts.
const MAX_BODY_BYTES: usize = 32 << 20;
/// How long a health probe waits for the engine to come round (SGLang's default).
const HEALTH_LIMIT: Duration = Duration::from_secs(20);
/// How often a flush that may wait looks again.
const FLUSH_LOOK: Duration = Duration::from_millis(50);
/// Longest wait a client may ask a flush for.
const MAX_FLUSH_SECONDS: f64 = 3600.0;
/// Requests in the engine and before it, at most; a client's own limit is far below.
const MAX_IN_FLIGHT: u64 = 8192;

#[derive(Clone)]
struct Server {
    engine: Handle,
    next_id: Arc<AtomicU64>,
    in_flight: Arc<AtomicU64>,
}

/// Listens and serves until the process ends.
///
/// # Errors
/// When the port cannot be bound.
pub async fn serve(address: SocketAddr, engine: Handle) -> anyhow::Result<()> {
    let server = Server { engine, next_id: Arc::default(), in_flight: Arc::default() };
    let routes = Router::new()
        .route("/generate", post(generate))
        .route("/health", get(health))
        .route("/health_generate", get(health))
        .route("/model_info", get(model_info))
        .route("/get_model_info", get(model_info))
        .route("/server_info", get(server_info))
        .route("/get_server_info", get(server_info))
        .route("/v1/models", get(models))
        .route("/metrics", get(metrics))
        .route("/update_weights_from_disk", post(update_weights))
        .route("/flush_cache", post(flush).get(flush))
        .route("/abort_request", post(abort))
        .route("/pause_generation", post(pause))
        .route("/continue_generation", post(resume))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(server);
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    tracing::info!(%address, "The embedded engine is ready.");
    axum::serve(listener, routes).await.context("serving HTTP")
}

fn refused(status: StatusCode, body: Value) -> Response {
    (status, Json(body)).into_response()
}

fn gone() -> Response {
    refused(StatusCode::SERVICE_UNAVAILABLE, json!({"object": "error", "message": "the engine is gone", "code": 503}))
}

/// SGLang's form for a body that is no JSON or of the wrong form.
fn malformed(error: &serde_json::Error) -> Response {
    let message = format!("the body cannot be read: {error}");
    refused(
        StatusCode::BAD_REQUEST,
        json!({"object": "error", "message": message, "type": "BadRequest", "param": null, "code": 400}),
    )
}

/// Counts requests in flight down when the client is answered or gone.
struct Slot(Arc<AtomicU64>, u64);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

async fn generate(State(server): State<Server>, body: Bytes) -> Response {
    let body: Value = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(error) => return malformed(&error),
    };
    let generate = match judge(&server, &body) {
        Ok(generate) => generate,
        Err(bad) => return refused(StatusCode::BAD_REQUEST, bad.body()),
    };
    let batch = generate.batch;
    match complete(&server, generate).await {
        Ok(completions) if batch => Json(Value::Array(completions)).into_response(),
        Ok(mut completions) => Json(completions.pop()).into_response(),
        Err(refusal) => refusal,
    }
}

/// The whole batch is judged before any of it is handed over: one bad member refuses all of it.
fn judge(server: &Server, body: &Value) -> Result<Generate, BadBody> {
    let generate = Generate::read(body)?;
    let config = server.engine.config();
    let check = |request: &Request| request.check(config).map_err(|error| BadBody::Value(error.to_string()));
    generate.requests.iter().try_for_each(|request| check(request).map(drop))?;
    Ok(generate)
}

/// Hands every request over, then waits for all of them, in order.
async fn complete(server: &Server, generate: Generate) -> Result<Vec<Value>, Response> {
    let started = clock::monotonic();
    let count = generate.requests.len() as u64;
    let _slot = Slot(server.in_flight.clone(), count);
    if server.in_flight.fetch_add(count, Ordering::Relaxed) + count > MAX_IN_FLIGHT {
        let body = json!({"object": "error", "message": "The request queue is full.", "code": 503});
        return Err(refused(StatusCode::SERVICE_UNAVAILABLE, body));
    }
    let mut answers = Vec::new();
    for (request, rid) in generate.requests.into_iter().zip(generate.rids) {
        let id = rid.unwrap_or_else(|| format!("{:016x}", server.next_id.fetch_add(1, Ordering::Relaxed)));
        let prompt_tokens = request.prompt.len();
        let answer = hand_over(server, request, id.clone()).ok_or_else(gone)?;
        answers.push((id, prompt_tokens, answer));
    }
    let mut completions = Vec::new();
    for (id, prompt_tokens, answer) in answers {
        let bad = |error: RequestError| refused(StatusCode::BAD_REQUEST, BadBody::Value(error.to_string()).body());
        let finished = answer.await.map_err(|_| gone())?.map_err(bad)?;
        let version = server.engine.facts().weight_version;
        completions.push(completion(&id, prompt_tokens, &finished, &version, started.elapsed().as_secs_f64()));
    }
    Ok(completions)
}

/// The receiver lives in the handler's future: when the client goes, hyper drops the future, and the engine sees it.
fn hand_over(server: &Server, request: Request, rid: String) -> Option<oneshot::Receiver<Result<Finished, RequestError>>> {
    let (reply, answer) = oneshot::channel();
    server.engine.send(Command::Generate { request, rid, reply }).then_some(answer)
}

async fn health(State(server): State<Server>) -> StatusCode {
    let (reply, answer) = oneshot::channel();
    server.engine.send(Command::Ping(reply));
    match tokio::time::timeout(HEALTH_LIMIT, answer).await {
        Ok(Ok(true)) => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn model_info(State(server): State<Server>) -> Json<Value> {
    let facts = server.engine.facts();
    Json(json!({
        "model_path": facts.model_path,
        "tokenizer_path": facts.model_path,
        "is_generation": true,
        "weight_version": facts.weight_version,
        "model_type": server.engine.config().architecture.name(),
    }))
}

async fn server_info(State(server): State<Server>) -> Json<Value> {
    let (facts, gauges, config) = (server.engine.facts(), server.engine.gauges(), server.engine.config());
    Json(json!({
        "status": "ready",
        "backend": "grail embedded engine",
        "version": env!("CARGO_PKG_VERSION"),
        "model_path": facts.model_path,
        "weight_version": facts.weight_version,
        "random_seed": facts.random_seed,
        "context_length": config.max_position_embeddings,
        "max_req_input_len": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "max_running_requests": facts.max_running,
        "internal_states": [{
            "num_running_reqs": gauges.running,
            "num_queue_reqs": gauges.queued,
            "generation_tokens_total": gauges.tokens,
        }],
    }))
}

/// What SGLang tells of its load, under its names. There is no share of a cache: a request's keys and values have memory of their own.
async fn metrics(State(server): State<Server>) -> ([(HeaderName, &'static str); 1], String) {
    let gauges = server.engine.gauges();
    let values = [
        ("num_running_reqs", "gauge", gauges.running as u64),
        ("num_queue_reqs", "gauge", gauges.queued as u64),
        ("generation_tokens_total", "counter", gauges.tokens),
    ];
    let lines = values.map(|(name, kind, value)| format!("# TYPE sglang:{name} {kind}\nsglang:{name} {value}\n"));
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], lines.concat())
}

async fn models(State(server): State<Server>) -> Json<Value> {
    let facts = server.engine.facts();
    let id = facts.model_path.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let length = server.engine.config().max_position_embeddings;
    let model = json!({"id": id, "object": "model", "owned_by": "grail", "root": facts.model_path, "max_model_len": length});
    Json(json!({"object": "list", "data": [model]}))
}

#[derive(Deserialize)]
struct UpdateBody {
    model_path: PathBuf,
    weight_version: Option<String>,
    #[serde(default)]
    abort_all_requests: bool,
}

async fn update_weights(State(server): State<Server>, body: Bytes) -> Response {
    let body: UpdateBody = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(error) => return malformed(&error),
    };
    let UpdateBody { model_path, weight_version, abort_all_requests: abort_all } = body;
    let (reply, answer) = oneshot::channel();
    server.engine.send(Command::Update { model_path, weight_version, abort_all, reply });
    match answer.await {
        Ok(Ok(paused)) => {
            let message = "The weights are updated in place.";
            Json(json!({"success": true, "message": message, "num_paused_requests": paused})).into_response()
        }
        Ok(Err(message)) => {
            refused(StatusCode::BAD_REQUEST, json!({"success": false, "message": message, "num_paused_requests": 0}))
        }
        Err(_) => gone(),
    }
}

/// The number behind `timeout=` in a query, 0 without it.
fn timeout_of(query: Option<&str>) -> f64 {
    let seconds = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("timeout=")));
    let seconds: f64 = seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
    if seconds.is_finite() { seconds.clamp(0.0, MAX_FLUSH_SECONDS) } else { 0.0 }
}

async fn flush(State(server): State<Server>, RawQuery(query): RawQuery) -> Response {
    let limit = timeout_of(query.as_deref());
    let deadline = clock::monotonic() + Duration::from_secs_f64(limit);
    loop {
        let (reply, answer) = oneshot::channel();
        server.engine.send(Command::Flush(reply));
        match answer.await {
            Ok(true) => return "Cache flushed.\n".into_response(),
            Err(_) => return gone(),
            Ok(false) if clock::monotonic() >= deadline => {
                return (StatusCode::BAD_REQUEST, "Cache not flushed: requests are running or waiting.\n").into_response();
            }
            Ok(false) => tokio::time::sleep(FLUSH_LOOK).await,
        }
    }
}

#[derive(Deserialize)]
struct AbortBody {
    rid: Option<String>,
    #[serde(default)]
    abort_all: bool,
}

async fn abort(State(server): State<Server>, body: Bytes) -> Response {
    let body: AbortBody = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(error) => return malformed(&error),
    };
    if body.abort_all {
        server.engine.send(Command::Abort(None));
    } else if let Some(rid) = body.rid {
        server.engine.send(Command::Abort(Some(rid)));
    }
    StatusCode::OK.into_response()
}

#[derive(Deserialize)]
struct PauseBody {
    mode: Option<String>,
}

async fn pause(State(server): State<Server>, body: Bytes) -> Response {
    let body: PauseBody = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(error) => return malformed(&error),
    };
    let retract = match body.mode.as_deref() {
        None | Some("abort") => false,
        Some("retract") => true,
        Some(mode) => {
            let message = format!("mode {mode:?} is not supported by the embedded engine; use abort or retract");
            return refused(StatusCode::BAD_REQUEST, BadBody::Value(message).body());
        }
    };
    let (reply, answer) = oneshot::channel();
    server.engine.send(Command::Pause { retract, reply });
    match answer.await {
        Ok(()) => Json(json!({"status": "ok", "message": "Generation is paused."})).into_response(),
        Err(_) => gone(),
    }
}

async fn resume(State(server): State<Server>, body: Bytes) -> Response {
    if let Err(error) = serde_json::from_slice::<Value>(&body) {
        return malformed(&error);
    }
    server.engine.send(Command::Continue);
    Json(json!({"status": "ok", "message": "Generation goes on."})).into_response()
}
