//! The calls that look at a server and change its weights (generation-servers 1.4 to 1.6 and 2.3).
//!
//! ```text
//!  SGLang, embedded   pause(retract) → abort all → update, new weight_version → /model_info says it → flush → continue
//!  vLLM               pause(abort) → reload_weights → reset_prefix_cache → resume
//! ```
//!
//! The directory was judged before: a damaged one kills SGLang, and leaves vLLM to die of the next request.

use std::path::Path;
use std::time::{Duration, Instant};

use grail_engines::{Engine, warm_up};
use grail_process::clock;
use serde_json::{Value, json};

/// A health probe of SGLang fails after 20 s; a client must wait longer.
const CALL_LIMIT: Duration = Duration::from_secs(25);
/// An update waits for running requests, which may take minutes.
const UPDATE_LIMIT: Duration = Duration::from_secs(600);
/// Time a flush may wait for the server to be idle, in seconds.
const FLUSH_SECONDS: u32 = 60;
/// Time of the first completion.
const WARM_UP_LIMIT: Duration = Duration::from_secs(30);

/// Why an update failed, and what the server is worth now.
#[derive(Debug)]
pub enum UpdateError {
    /// The old weights go on serving, as the server itself confirms.
    Refused(String),
    /// The directory holds another network: a server of its own must serve it. Nothing was changed.
    OtherNetwork,
    /// Nobody knows which weights, or which cache, the server answers with: it must be replaced.
    Unknown(String),
}

/// A server's address, with a client.
#[derive(Debug, Clone)]
pub struct Calls {
    client: reqwest::Client,
    engine: Engine,
    /// `http://127.0.0.1:port`.
    pub url: String,
}

impl Calls {
    /// To the server at `url`.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub fn to(engine: Engine, url: String) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().no_proxy().timeout(CALL_LIMIT).build()?;
        Ok(Self { client, engine, url })
    }

    /// Whether it can produce: SGLang's probe asks its model for a token, vLLM opens its port when everything is loaded.
    pub async fn healthy(&self) -> bool {
        self.client.get(format!("{}/health", self.url)).send().await.is_ok_and(|answer| answer.status().is_success())
    }

    /// Makes vLLM compute something once, as the reference does; a failure is told by the first group as well.
    pub async fn warm(&self) {
        let Ok(models) = self.get("/v1/models").await else { return };
        let (path, body) = warm_up(models["data"][0]["id"].as_str().unwrap_or_default());
        let _ = self.client.post(format!("{}{path}", self.url)).timeout(WARM_UP_LIMIT).json(&body).send().await;
    }

    /// The weight version it answers with, where it keeps one.
    pub async fn weight_version(&self) -> Result<Option<String>, String> {
        if self.engine == Engine::Vllm {
            return Ok(None);
        }
        let info = self.get("/model_info").await?;
        let version = info["weight_version"].as_str().map(str::to_owned);
        version.map(Some).ok_or_else(|| "/model_info tells no weight_version".to_owned())
    }

    /// Longest prompt plus completion.
    pub async fn context_length(&self) -> Result<u32, String> {
        let (path, value) = match self.engine {
            Engine::Sglang => ("/server_info", self.get("/server_info").await?["context_length"].clone()),
            Engine::Vllm => ("/v1/models", self.get("/v1/models").await?["data"][0]["max_model_len"].clone()),
        };
        value.as_u64().and_then(|length| u32::try_from(length).ok()).ok_or_else(|| format!("{path} tells no context length"))
    }

    /// Gives the server other weights and makes sure that it answers with them and with no older cache.
    ///
    /// # Errors
    /// [`UpdateError::Refused`] where the old weights serve on; [`UpdateError::Unknown`] where the server must be replaced.
    pub async fn update(&self, directory: &Path, old: &str, new: &str) -> Result<(), UpdateError> {
        match self.engine {
            Engine::Sglang => self.update_sglang(directory, old, new).await,
            Engine::Vllm => self.update_vllm(directory).await.map_err(UpdateError::Unknown),
        }
    }

    async fn update_sglang(&self, directory: &Path, old: &str, new: &str) -> Result<(), UpdateError> {
        let mut stand_still = StandStill::begin();
        // Whatever runs would be sampled with both weights; nobody wants it any more. A pause that aborts looks once a second
        // whether nothing runs; one that takes requests back answers at once, and what it took back can be aborted then.
        self.done("/pause_generation", Some(json!({"mode": "retract"})), UPDATE_LIMIT).await.map_err(UpdateError::Unknown)?;
        self.done("/abort_request", Some(json!({"abort_all": true})), CALL_LIMIT).await.map_err(UpdateError::Unknown)?;
        stand_still.ended("pause");
        let body = json!({"model_path": directory, "weight_version": new});
        let sent = self.client.post(format!("{}/update_weights_from_disk", self.url)).timeout(UPDATE_LIMIT).json(&body).send();
        // The server's answer alone proves nothing: one that says it failed may have replaced the weights.
        let said = match sent.await {
            Ok(answer) => success_of(answer).await,
            Err(error) => Err(format!("the update call failed: {error}")),
        };
        let live = self.weight_version().await.map_err(UpdateError::Unknown)?.unwrap_or_default();
        stand_still.ended("update");
        let outcome = match said {
            _ if live == new => self.flush().await.map_err(UpdateError::Unknown),
            Err(reason) if live == old => Err(UpdateError::Refused(reason)),
            Err(reason) => Err(UpdateError::Unknown(format!("{reason}; its weight version is now {live:?}"))),
            Ok(()) => Err(UpdateError::Unknown(format!("it reports success, but its weight version is {live:?}"))),
        };
        stand_still.ended("flush");
        self.done("/continue_generation", Some(json!({})), CALL_LIMIT).await.map_err(UpdateError::Unknown)?;
        stand_still.ended("continue");
        stand_still.tell();
        outcome
    }

    /// A reload that fails leaves vLLM with a model that the next request kills, so every failure is one of the server.
    async fn update_vllm(&self, directory: &Path) -> Result<(), String> {
        let mut stand_still = StandStill::begin();
        self.done("/pause?mode=abort", None, UPDATE_LIMIT).await?;
        stand_still.ended("pause");
        let body = json!({"method": "reload_weights", "kwargs": {"weights_path": directory}});
        self.done("/collective_rpc", Some(body), UPDATE_LIMIT).await?;
        stand_still.ended("update");
        self.done("/reset_prefix_cache", None, CALL_LIMIT).await?;
        stand_still.ended("flush");
        self.done("/resume", None, CALL_LIMIT).await?;
        stand_still.ended("continue");
        stand_still.tell();
        Ok(())
    }

    async fn flush(&self) -> Result<(), String> {
        let limit = CALL_LIMIT + Duration::from_secs(u64::from(FLUSH_SECONDS));
        let done = self.done(&format!("/flush_cache?timeout={FLUSH_SECONDS}"), None, limit).await;
        done.map_err(|error| format!("{error}: older keys and values may be in use"))
    }

    /// A POST that must be answered with success.
    async fn done(&self, path: &str, body: Option<Value>, limit: Duration) -> Result<(), String> {
        let call = self.client.post(format!("{}{path}", self.url)).timeout(limit);
        let call = if let Some(body) = &body { call.json(body) } else { call };
        let answer = call.send().await.map_err(|error| format!("{path} failed: {error}"))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let text: String = answer.text().await.unwrap_or_default().chars().take(300).collect();
        Err(format!("{path} answered {status}: {text}"))
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).map_err(|error| format!("{path} failed: {error}"))?;
        answer.json().await.map_err(|error| format!("{path} answered no JSON: {error}"))
    }
}

/// Where the time goes in which a server produces nothing.
struct StandStill {
    since: Instant,
    steps: Vec<String>,
}

impl StandStill {
    fn begin() -> Self {
        Self { since: clock::monotonic(), steps: Vec::new() }
    }

    /// A step is over, and the next one begins.
    fn ended(&mut self, step: &str) {
        self.steps.push(format!("{step} {} ms", self.since.elapsed().as_millis()));
        self.since = clock::monotonic();
    }

    fn tell(&self) {
        tracing::info!(steps = self.steps.join(", "), "The server stood still for an update.");
    }
}

async fn success_of(answer: reqwest::Response) -> Result<(), String> {
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    if status.is_success() && body["success"] == true {
        return Ok(());
    }
    Err(body["message"].as_str().map_or_else(|| format!("the update answered {status}"), str::to_owned))
}
