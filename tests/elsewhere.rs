//! Servers that run elsewhere and are left in the middle of an update: half-updated, or paused by a run that was killed.
//! The servers are stubs that speak the admin calls as they were measured on the real ones (generation-servers 1.5, 1.6, 2.3).
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests measure time and may panic; the rules are for the product"
)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use grail_engines::Engine;
use grail_fakes::{Reply, serve};
use grail_link::message::{ReloadCommand, Revision};
use grail_process::Spawner;
use grail_protocol::generation_params::GenerationParams;
use grail_supervision::board::{Board, ChildStatus};
use grail_supervision::children::ChildState;
use grail_workers::completions::Completions;
use grail_workers::{ExternalServer, Generator, Serving};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(60);
const NAME: &str = "generation server 0";
/// After so long the health of a paused SGLang fails; 20 s on the real one.
const PAUSED_HEALTH: Duration = Duration::from_secs(6);

/// What a server holds and does.
#[derive(Default)]
struct State {
    paused: bool,
    /// What SGLang says that it holds.
    version: String,
    /// Weights of another checkpoint may be in the cache.
    stale: bool,
    /// vLLM's model was dismantled by a reload that failed.
    broken: bool,
    /// Health says so at once.
    warming_up: bool,
    /// How often which call fails from now on.
    fails: Option<(&'static str, u32)>,
    calls: Vec<String>,
}

#[derive(Clone)]
struct Stub {
    engine: Engine,
    url: String,
    state: Arc<Mutex<State>>,
}

impl Stub {
    async fn start(engine: Engine, state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stub = Self { engine, url, state: Arc::new(Mutex::new(state)) };
        let serving = stub.clone();
        tokio::spawn(serve(listener, move |request| {
            let stub = serving.clone();
            async move {
                let path = request.uri().path_and_query().unwrap().to_string();
                let posted = request.method() == "POST";
                let body = to_bytes(Body::new(request.into_body()), 1 << 20).await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                if path == "/health" { stub.health().await } else { stub.answer(&path, posted, &body) }
            }
        }));
        stub
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn health(&self) -> Reply {
        let (paused, warming_up) = (self.state().paused && self.engine == Engine::Sglang, self.state().warming_up);
        if paused {
            tokio::time::sleep(PAUSED_HEALTH).await;
        }
        let status = if paused || warming_up { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        Reply::text(status, "text/plain", "")
    }

    fn answer(&self, path: &str, posted: bool, body: &Value) -> Reply {
        let mut state = self.state();
        if posted {
            state.calls.push(path.to_owned());
        }
        let good = Reply::json(StatusCode::OK, &json!({"success": true}));
        let failing = match &mut state.fails {
            Some((call, times)) if path.starts_with(*call) && *times > 0 => {
                *times -= 1;
                true
            }
            _ => false,
        };
        match path {
            "/pause_generation" | "/pause?mode=abort" => state.paused = true,
            "/continue_generation" | "/resume" => state.paused = false,
            "/update_weights_from_disk" => {
                state.stale = true;
                body["weight_version"].as_str().unwrap().clone_into(&mut state.version);
            }
            "/collective_rpc" => {
                state.stale = true;
                state.broken = failing;
                assert!(failing || body["kwargs"]["weights_path"].is_string(), "{body}");
            }
            "/flush_cache?timeout=60" | "/reset_prefix_cache" => state.stale = failing,
            "/model_info" => return Reply::json(StatusCode::OK, &json!({"weight_version": state.version})),
            "/server_info" => return Reply::json(StatusCode::OK, &json!({"context_length": 64})),
            "/v1/models" => return Reply::json(StatusCode::OK, &json!({"data": [{"id": "vllm_active", "max_model_len": 64}]})),
            "/v1/completions" => return self.complete(&state),
            _ => {}
        }
        if failing {
            Reply::json(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": {"message": "shape mismatch"}}))
        } else {
            good
        }
    }

    /// Asked in the wrong state it would give tokens of no checkpoint, or die.
    fn complete(&self, state: &State) -> Reply {
        assert!(!state.paused && !state.stale && !state.broken, "asked for a completion in the middle of an update");
        Reply::json(StatusCode::OK, &json!({"choices": [{"token_ids": [5, 6, 2], "finish_reason": "stop"}]}))
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }
}

/// The supervisor's side of one server.
struct Rig {
    stub: Stub,
    generator: Generator,
    board: Board,
}

fn revision(window: u64) -> Revision {
    Revision { window, weights_hash: format!("{window:032x}") }
}

impl Rig {
    async fn start(engine: Engine, state: State) -> Self {
        let stub = Stub::start(engine, state).await;
        let server = ExternalServer {
            name: NAME.into(),
            url: stub.url.clone().into(),
            engine,
            cache: "/cache".into(),
            seen_as: Some("/mnt".into()),
            credentials: Vec::new(),
        };
        let (board, http) = (Board::default(), reqwest::Client::new());
        let generator = Generator::start(Vec::new(), vec![server], &http, &Spawner::start().unwrap(), &board);
        Self { stub, generator, board }
    }

    fn reload(&self, window: u64) {
        let directory = PathBuf::from(format!("/cache/checkpoint-{window}"));
        self.generator.reload(ReloadCommand { revision: revision(window), directory, manifest: Default::default() });
        self.generator.judged(&revision(window));
    }

    async fn serves(&self, window: u64) {
        let found = async {
            loop {
                if self.generator.replicas().serving().iter().any(|serving: &Serving| serving.revision == revision(window)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("not served: {:?}", self.child()));
    }

    async fn left_out(&self, word: &str) {
        let told = |child: &ChildStatus| {
            child.state == ChildState::Absent && child.last_end.as_ref().is_some_and(|reason| reason.contains(word))
        };
        let found = async {
            while !self.child().as_ref().is_some_and(told) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("not left out: {:?}", self.child()));
        assert!(self.generator.replicas().serving().is_empty(), "nobody is sent there");
    }

    fn child(&self) -> Option<ChildStatus> {
        self.board.snapshot().children.get(NAME).cloned()
    }
}

const VLLM: [&str; 4] = ["/pause?mode=abort", "/collective_rpc", "/reset_prefix_cache", "/resume"];
const SGLANG: [&str; 5] =
    ["/pause_generation", "/abort_request", "/update_weights_from_disk", "/flush_cache?timeout=60", "/continue_generation"];

#[tokio::test]
async fn vllm_elsewhere_that_is_half_updated_stays_paused_until_a_reload_goes_through() {
    let rig = Rig::start(Engine::Vllm, State::default()).await;
    rig.reload(30);
    rig.serves(30).await;
    assert_eq!(rig.stub.calls(), VLLM);

    rig.stub.state().fails = Some(("/collective_rpc", 1));
    rig.reload(60);
    rig.left_out("/collective_rpc answered 500").await;
    assert_eq!(rig.stub.calls(), VLLM[..2], "its next generation would kill it");
    rig.serves(60).await;
    assert_eq!(rig.stub.calls(), VLLM);

    let client = Completions::new(Engine::Vllm, 4).unwrap();
    let params = GenerationParams { max_new_tokens: 8, temperature: 0.7, top_p: 0.9, top_k: None, repetition_penalty: 1.0 };
    let completion = client.complete(&rig.generator.replicas().home(), &[1, 2], &params, &revision(60)).await.unwrap();
    assert_eq!(completion.ids, [5, 6, 2]);
}

#[tokio::test]
async fn sglang_elsewhere_with_new_weights_over_an_old_cache_is_not_taken_for_updated() {
    let rig = Rig::start(Engine::Sglang, State { version: "default".into(), ..State::default() }).await;
    rig.stub.state().fails = Some(("/flush_cache", 1));
    rig.reload(30);
    rig.left_out("older keys and values").await;
    assert_eq!(rig.stub.calls(), SGLANG[..4], "it stays paused");
    assert_eq!(rig.stub.state().version, revision(30).to_string(), "and says that it holds what is wanted");
    rig.serves(30).await;
    assert_eq!(rig.stub.calls(), SGLANG);
    assert!(!rig.stub.state().stale && !rig.stub.state().paused);
}

#[tokio::test]
async fn sglang_elsewhere_that_a_killed_run_left_paused_is_brought_through_the_update() {
    let paused = State { version: revision(30).to_string(), paused: true, stale: true, ..State::default() };
    let rig = Rig::start(Engine::Sglang, paused).await;
    rig.reload(30);
    rig.serves(30).await;
    assert_eq!(rig.stub.calls(), SGLANG);
}

#[tokio::test]
async fn sglang_elsewhere_that_still_warms_up_is_left_alone() {
    let rig = Rig::start(Engine::Sglang, State { version: "default".into(), warming_up: true, ..State::default() }).await;
    rig.reload(30);
    rig.left_out("/health answered 503").await;
    // Over the next probe, too.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.stub.calls(), Vec::<String>::new());
    rig.stub.state().warming_up = false;
    rig.serves(30).await;
    assert_eq!(rig.stub.calls(), SGLANG);
}

#[tokio::test]
async fn a_server_elsewhere_is_given_nothing_before_a_proof_worker_has_judged_it() {
    let rig = Rig::start(Engine::Sglang, State { version: "default".into(), ..State::default() }).await;
    rig.reload(30);
    rig.serves(30).await;
    assert_eq!(rig.stub.calls(), SGLANG);
    let directory = PathBuf::from("/cache/checkpoint-60");
    rig.generator.reload(ReloadCommand { revision: revision(60), directory, manifest: Default::default() });
    // Over the next probe.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.stub.calls(), Vec::<String>::new());
    assert!(rig.generator.replicas().serving().is_empty(), "nor asked for anything with the old weights");
    rig.generator.judged(&revision(60));
    rig.serves(60).await;
    assert_eq!(rig.stub.calls(), SGLANG);
}
