//! The generation server's client: token ids in, token ids out (generation-servers 1.2, grail-miner 5).
//!
//! Nothing is tokenised again, nothing is clamped. An answer is believed only after its ids, its end and its weight version
//! were looked at.

use std::time::Duration;

use grail_engines::{Engine, Reply, describe, keyed};
use grail_link::message::Revision;
use grail_protocol::generation_params::GenerationParams;
use grail_secrets::{Address, Secret};
use reqwest::header::CONTENT_TYPE;
use tokio::sync::Semaphore;

use crate::{AssignedServer, Serving};

/// Longest wait for one completion (grail-miner 5).
const REQUEST_LIMIT: Duration = Duration::from_secs(300);
/// Attempts per completion, with 1 s and 2 s between them.
const ATTEMPTS: u32 = 3;
/// An answer for 8,192 tokens takes well under a megabyte.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// Whether a prompt of so many tokens, with all that is asked for, stays within `longest` tokens. One that does not is skipped,
/// and nothing is clamped: the protocol fixes the length that is asked for.
pub fn fits(prompt: usize, asked: u64, longest: u64) -> bool {
    (prompt as u64).saturating_add(asked) <= longest
}

/// One completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The ids, the end-of-sequence id included where the server stopped at one.
    pub ids: Vec<u32>,
    /// `weight_version` of the server: the revision it sampled with.
    pub weight_version: String,
}

/// Why there is no completion.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CompletionError {
    /// The server did not answer, or not with a completion.
    #[error("the generation server at {url} gave no completion in {ATTEMPTS} attempts: {reason}")]
    Failed {
        /// The server.
        url: Address,
        /// The last attempt's failure.
        reason: String,
    },
    /// The weights changed while the completion was made.
    #[error("the completion was sampled with weights {found}, the window is mined with {wanted}")]
    OtherRevision {
        /// What the server said.
        found: String,
        /// What the window needs.
        wanted: String,
    },
}

/// Client with a bound on requests in flight.
#[derive(Debug)]
pub struct Completions {
    engine: Engine,
    http: reqwest::Client,
    in_flight: Semaphore,
}

impl Completions {
    /// A client of `engine` with at most `max_concurrent` requests in flight.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(engine: Engine, max_concurrent: u32) -> Result<Self, reqwest::Error> {
        Self::keyed(engine, max_concurrent, &[])
    }

    /// The same, for a server that was started with `credentials`.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn keyed(engine: Engine, max_concurrent: u32, credentials: &[(String, Secret)]) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(3)).timeout(REQUEST_LIMIT).no_proxy();
        let http = keyed(client, credentials)?;
        Ok(Self { engine, http, in_flight: Semaphore::new(max_concurrent as usize) })
    }

    /// The HTTP client, for other questions to the server.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// One completion of `prompt`, sampled with exactly `wanted`. Every attempt asks the server that is the group's `home` then: one
    /// that dies costs an attempt, and the wait for its successor costs none. Dropping the future closes the connection, which makes the server
    /// abandon the request.
    ///
    /// # Errors
    /// When every attempt failed, or the weights are others.
    pub async fn complete(
        &self,
        home: &AssignedServer,
        prompt: &[u32],
        params: &GenerationParams,
        wanted: &Revision,
    ) -> Result<Completion, CompletionError> {
        // The semaphore is never closed.
        let _permit = self.in_flight.acquire().await;
        let completion = self.attempts(home, prompt, params, wanted).await;
        home.ended();
        completion
    }

    async fn attempts(
        &self,
        home: &AssignedServer,
        prompt: &[u32],
        params: &GenerationParams,
        wanted: &Revision,
    ) -> Result<Completion, CompletionError> {
        let (mut url, mut reason) = (Address::default(), "the launcher has ended for good".to_owned());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_secs(1 << (attempt - 1))).await;
            }
            let Some((serving, traffic)) = home.server(wanted).await else { break };
            let in_flight = traffic.request(params.max_new_tokens);
            match self.attempt(&serving, prompt, params).await {
                Ok(answer) => {
                    in_flight.answered();
                    return judge(answer, wanted);
                }
                Err(error) => {
                    home.leave(&serving.url, wanted);
                    (url, reason) = (serving.url, error);
                }
            }
        }
        Err(CompletionError::Failed { url, reason })
    }

    async fn attempt(&self, serving: &Serving, prompt: &[u32], params: &GenerationParams) -> Result<Reply, String> {
        let body = self.engine.request(prompt, params);
        let request = self.http.post(format!("{}{}", serving.url.reveal(), self.engine.path()));
        let sent = request.header(CONTENT_TYPE, "application/json").body(body).send().await;
        let mut response = sent.map_err(|error| describe(&error))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| describe(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_LIMIT {
                return Err(format!("its answer is longer than {ANSWER_LIMIT} bytes"));
            }
        }
        if !status.is_success() {
            let text: String = String::from_utf8_lossy(&body).chars().take(300).collect();
            return Err(format!("status {status}: {text}"));
        }
        self.engine.reply(&body, params.max_new_tokens).map_err(|error| error.to_string())
    }
}

/// A reply is believed where every weight version that the server names is the wanted one. Where it names none (vLLM), the
/// launcher's word stands: it aborts what runs before it changes weights, and an aborted request is no completion.
fn judge(reply: Reply, wanted: &Revision) -> Result<Completion, CompletionError> {
    let wanted = wanted.to_string();
    match reply.weight_versions.into_iter().find(|version| *version != wanted) {
        Some(found) => Err(CompletionError::OtherRevision { found, wanted }),
        None => Ok(Completion { ids: reply.ids, weight_version: wanted }),
    }
}
