//! The generation server's client: token ids in, token ids out (generation-servers 1.2, grail-miner 5).
//!
//! Nothing is tokenised again, nothing is clamped. An answer is believed only after its ids, its end and its weight version
//! were looked at.

use std::time::Duration;

use grail_link::message::Revision;
use grail_protocol::generation_params::GenerationParams;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::children::{Serving, Traffic};

/// Longest wait for one completion (grail-miner 5).
const REQUEST_LIMIT: Duration = Duration::from_secs(300);
/// Attempts per completion, with 1 s and 2 s between them.
const ATTEMPTS: u32 = 3;
/// An answer for 8,192 tokens takes well under a megabyte.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

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
        url: String,
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
    http: reqwest::Client,
    in_flight: Semaphore,
    traffic: Traffic,
}

#[derive(Serialize)]
struct Request<'a> {
    input_ids: &'a [u32],
    sampling_params: SamplingParams,
    return_token_ids: bool,
}

#[derive(Serialize)]
struct SamplingParams {
    max_new_tokens: u64,
    temperature: f64,
    top_p: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    repetition_penalty: f64,
}

#[derive(Deserialize)]
struct Answer {
    output_ids: Vec<u32>,
    meta_info: Meta,
}

#[derive(Deserialize)]
struct Meta {
    finish_reason: Option<FinishReason>,
    weight_version: String,
    #[serde(default)]
    weight_versions: Vec<WeightSpan>,
}

#[derive(Deserialize)]
struct FinishReason {
    r#type: String,
    message: Option<String>,
}

#[derive(Deserialize)]
struct WeightSpan {
    version: String,
}

impl Completions {
    /// A client with at most `max_concurrent` requests in flight, each counted in `traffic`.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(max_concurrent: u32, traffic: Traffic) -> Result<Self, reqwest::Error> {
        let http =
            reqwest::Client::builder().connect_timeout(Duration::from_secs(3)).timeout(REQUEST_LIMIT).no_proxy().build()?;
        Ok(Self { http, in_flight: Semaphore::new(max_concurrent as usize), traffic })
    }

    /// The HTTP client, for other questions to the server.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// One completion of `prompt`, sampled with exactly `wanted`. Dropping the future closes the connection, which makes the
    /// server abandon the request.
    ///
    /// # Errors
    /// When every attempt failed, or the weights are others.
    pub async fn complete(
        &self,
        serving: &Serving,
        prompt: &[u32],
        params: &GenerationParams,
        wanted: &Revision,
    ) -> Result<Completion, CompletionError> {
        // The semaphore is never closed.
        let _permit = self.in_flight.acquire().await;
        let mut reason = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_secs(1 << (attempt - 1))).await;
            }
            let in_flight = self.traffic.request(params.max_new_tokens);
            match self.attempt(serving, prompt, params).await {
                Ok(answer) => {
                    in_flight.answered();
                    return judge(answer, wanted);
                }
                Err(error) => reason = error,
            }
        }
        Err(CompletionError::Failed { url: serving.url.clone(), reason })
    }

    async fn attempt(&self, serving: &Serving, prompt: &[u32], params: &GenerationParams) -> Result<Answer, String> {
        let request = Request {
            input_ids: prompt,
            sampling_params: SamplingParams {
                max_new_tokens: params.max_new_tokens,
                temperature: params.temperature,
                top_p: params.top_p,
                top_k: params.top_k,
                repetition_penalty: params.repetition_penalty,
            },
            return_token_ids: true,
        };
        let sent = self.http.post(format!("{}/generate", serving.url)).json(&request).send().await;
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
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| format!("its answer is not a completion: {error}"))?;
        // A 200 may carry an aborted request; its ids are a fragment.
        match &answer.meta_info.finish_reason {
            Some(end) if matches!(end.r#type.as_str(), "stop" | "length") => check_length(answer, params),
            Some(end) => {
                Err(format!("the request ended with {:?}: {}", end.r#type, end.message.as_deref().unwrap_or("no message")))
            }
            None => Err("the answer has no finish_reason".into()),
        }
    }
}

fn check_length(answer: Answer, params: &GenerationParams) -> Result<Answer, String> {
    let length = answer.output_ids.len() as u64;
    if length <= params.max_new_tokens {
        Ok(answer)
    } else {
        Err(format!("it gave {length} tokens where {} were asked for", params.max_new_tokens))
    }
}

fn judge(answer: Answer, wanted: &Revision) -> Result<Completion, CompletionError> {
    let wanted = wanted.to_string();
    let spans = answer.meta_info.weight_versions.iter().map(|span| &span.version);
    match spans.chain([&answer.meta_info.weight_version]).find(|version| **version != wanted) {
        Some(found) => Err(CompletionError::OtherRevision { found: found.clone(), wanted }),
        None => Ok(Completion { ids: answer.output_ids, weight_version: wanted }),
    }
}

/// reqwest's own text names the URL but hides the cause.
fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
