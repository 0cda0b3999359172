//! The calls that look at a server and change its weights (generation-servers 1.4 to 1.6 and 2.3): one implementation for servers
//! that the launcher started and for those that run elsewhere.
//!
//! ```text
//!  SGLang, embedded   pause(retract) → abort all → update, new weight_version → /model_info says it → flush → continue
//!  vLLM               pause(abort) → reload_weights → reset_prefix_cache → resume
//! ```
//!
//! The directory was judged before: a damaged one kills SGLang, and leaves vLLM to die of the next request. A server about which
//! nobody knows what it answers with stays paused: whoever called replaces it, or goes through the whole sequence again.

use std::path::Path;
use std::time::Duration;

use grail_process::with_causes;
use grail_secrets::Address;
use serde_json::{Value, json};

use crate::{Engine, warm_up};

/// A health probe of SGLang fails after 20 s; a client must wait longer.
const CALL_LIMIT: Duration = Duration::from_secs(25);
/// Loading weights takes minutes where the disk is slow.
const UPDATE_LIMIT: Duration = Duration::from_secs(600);
/// Time a flush may wait for the server to be idle, in seconds.
const FLUSH_SECONDS: u32 = 60;
/// Time of the first completion.
const WARM_UP_LIMIT: Duration = Duration::from_secs(30);
/// Longest answer that is read, in bytes; `/server_info` has hundreds of keys.
const ANSWER_LIMIT: usize = 4 << 20;
/// Longest part of an answer that is repeated in a reason, in characters.
const SHOWN: usize = 300;

/// Why an update failed, and what the server is worth now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// The old weights go on serving, as the server itself confirms.
    #[error("the old weights serve on: {0}")]
    Refused(String),
    /// Nobody knows which weights, or which cache, the server would answer with. It stays paused, if it lives.
    #[error("nobody knows what the server holds: {0}")]
    Unknown(String),
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
enum CallError {
    /// The server said no.
    #[error("{0}")]
    Said(String),
    /// It gave no whole answer: what was asked for may be done all the same, now or later.
    #[error("{0}")]
    Silent(String),
}

/// A server's address, with a client.
#[derive(Debug, Clone)]
pub struct Calls {
    client: reqwest::Client,
    engine: Engine,
    url: Address,
}

impl Calls {
    /// To the server of `engine` at `url` (without a slash at its end). Every call has a limit of its own, whatever the client's.
    pub fn to(client: reqwest::Client, engine: Engine, url: Address) -> Self {
        Self { client, engine, url }
    }

    /// Where the server is.
    pub fn url(&self) -> &Address {
        &self.url
    }

    /// Whether it can produce: SGLang's probe asks its model for a token, vLLM opens its port when everything is loaded. While
    /// SGLang is paused its probe fails, after 20 s.
    ///
    /// # Errors
    /// What it answered instead.
    pub async fn healthy(&self) -> Result<(), String> {
        self.ask("/health").await.map(drop).map_err(|error| error.to_string())
    }

    /// Makes vLLM compute something once, as the reference does; a failure is told by the first group as well.
    pub async fn warm(&self) {
        let Ok(models) = self.ask("/v1/models").await else { return };
        let (path, body) = warm_up(models["data"][0]["id"].as_str().unwrap_or_default());
        let _ = self.order(path, Some(body), WARM_UP_LIMIT).await;
    }

    /// The weight version it answers with; `None` of vLLM, which keeps none. Answered while paused, too.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn weight_version(&self) -> Result<Option<String>, String> {
        if self.engine == Engine::Vllm {
            return Ok(None);
        }
        let info = self.ask("/model_info").await.map_err(|error| error.to_string())?;
        let version = info["weight_version"].as_str().map(str::to_owned);
        version.map(Some).ok_or_else(|| "/model_info tells no weight_version".to_owned())
    }

    /// Longest prompt plus completion, in tokens.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn context_length(&self) -> Result<u32, String> {
        let path = if self.engine == Engine::Sglang { "/server_info" } else { "/v1/models" };
        let told = self.ask(path).await.map_err(|error| error.to_string())?;
        let length = if self.engine == Engine::Sglang { &told["context_length"] } else { &told["data"][0]["max_model_len"] };
        length.as_u64().and_then(|length| u32::try_from(length).ok()).ok_or_else(|| format!("{path} tells no context length"))
    }

    /// Gives the server the weights of `directory`, as it sees it, in place of version `old`, and makes sure that it answers with
    /// them and with no older cache. `ended` is told each step's name as it ends: the server produces nothing meanwhile.
    ///
    /// # Errors
    /// [`UpdateError::Refused`] where the old weights serve on; [`UpdateError::Unknown`] where it must not be believed.
    pub async fn update(
        &self,
        directory: &Path,
        old: &str,
        new: &str,
        ended: impl FnMut(&'static str),
    ) -> Result<(), UpdateError> {
        match self.engine {
            Engine::Sglang => self.update_sglang(directory, old, new, ended).await,
            Engine::Vllm => self.update_vllm(directory, ended).await.map_err(|error| UpdateError::Unknown(error.to_string())),
        }
    }

    async fn update_sglang(
        &self,
        directory: &Path,
        old: &str,
        new: &str,
        mut ended: impl FnMut(&'static str),
    ) -> Result<(), UpdateError> {
        // Whatever runs would be sampled with both weights; nobody wants it any more. A pause that aborts looks once a second
        // whether nothing runs; one that takes requests back answers at once, and what it took back can be aborted then.
        let unknown = |error: CallError| UpdateError::Unknown(error.to_string());
        self.order("/pause_generation", Some(json!({"mode": "retract"})), CALL_LIMIT).await.map_err(unknown)?;
        self.order("/abort_request", Some(json!({"abort_all": true})), CALL_LIMIT).await.map_err(unknown)?;
        ended("pause");
        // The answer alone proves nothing: one that says it failed may have replaced the weights.
        let body = json!({"model_path": directory, "weight_version": new});
        let said = self.order("/update_weights_from_disk", Some(body), UPDATE_LIMIT).await;
        let live = self.weight_version().await.map_err(UpdateError::Unknown)?.unwrap_or_default();
        ended("update");
        let kept = match said {
            _ if live == new => {
                self.flush().await?;
                None
            }
            Err(CallError::Said(reason)) if live == old => Some(reason),
            Err(reason) => return Err(UpdateError::Unknown(format!("{reason}; its weight version is now {live:?}"))),
            Ok(_) => return Err(UpdateError::Unknown(format!("it reports success, but its weight version is {live:?}"))),
        };
        ended("flush");
        self.order("/continue_generation", Some(json!({})), CALL_LIMIT).await.map_err(unknown)?;
        ended("continue");
        kept.map_or(Ok(()), |reason| Err(UpdateError::Refused(reason)))
    }

    /// A reload that fails leaves vLLM with a model that the next request kills, so every failure is one of the server.
    async fn update_vllm(&self, directory: &Path, mut ended: impl FnMut(&'static str)) -> Result<(), CallError> {
        self.order("/pause?mode=abort", None, UPDATE_LIMIT).await?;
        ended("pause");
        let body = json!({"method": "reload_weights", "kwargs": {"weights_path": directory}});
        self.order("/collective_rpc", Some(body), UPDATE_LIMIT).await?;
        ended("update");
        self.order("/reset_prefix_cache", None, CALL_LIMIT).await?;
        ended("flush");
        self.order("/resume", None, CALL_LIMIT).await?;
        ended("continue");
        Ok(())
    }

    async fn flush(&self) -> Result<(), UpdateError> {
        let limit = CALL_LIMIT + Duration::from_secs(u64::from(FLUSH_SECONDS));
        let flushed = self.order(&format!("/flush_cache?timeout={FLUSH_SECONDS}"), None, limit).await;
        flushed.map(drop).map_err(|error| UpdateError::Unknown(format!("{error}: older keys and values may be in use")))
    }

    async fn ask(&self, path: &str) -> Result<Value, CallError> {
        judged(path, self.client.get(format!("{}{path}", self.url.reveal())).timeout(CALL_LIMIT)).await
    }

    async fn order(&self, path: &str, body: Option<Value>, limit: Duration) -> Result<Value, CallError> {
        let call = self.client.post(format!("{}{path}", self.url.reveal())).timeout(limit);
        judged(path, if let Some(body) = &body { call.json(body) } else { call }).await
    }
}

/// Sends a call that must be answered with success: the answer's JSON, null where it is none.
async fn judged(path: &str, call: reqwest::RequestBuilder) -> Result<Value, CallError> {
    let failed = |error: reqwest::Error| CallError::Silent(format!("{path} failed: {}", describe(&error)));
    let mut answer = call.send().await.map_err(failed)?;
    let status = answer.status();
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_LIMIT {
            return Err(CallError::Silent(format!("{path} answered with more than {ANSWER_LIMIT} bytes")));
        }
    }
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() && value["success"] != false {
        return Ok(value);
    }
    let shown: String = match value["message"].as_str() {
        Some(message) => message.chars().take(SHOWN).collect(),
        None => String::from_utf8_lossy(&body).chars().take(SHOWN).collect(),
    };
    Err(CallError::Said(format!("{path} answered {status}: {shown}")))
}

/// An error with its causes: reqwest's own text hides them, and names the URL, of which only what may be shown is kept.
pub fn describe(error: &reqwest::Error) -> String {
    let text = with_causes(error);
    error.url().map_or(text.clone(), |url| text.replace(url.as_str(), &Address::from(url.as_str()).to_string()))
}
