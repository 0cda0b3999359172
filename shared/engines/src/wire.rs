//! What a server is sent and what it answers: token ids in, token ids out (generation-servers 1.2 and 2.2, grail-miner 5).

use grail_protocol::generation_params::GenerationParams;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Engine, VLLM_NAME};

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// At a stop id, which is the last of the ids.
    Stop,
    /// It is as long as was asked for.
    Length,
}

/// A completion as a server gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its ids, a stop id included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub end: End,
    /// Weight versions that the server says it was sampled with; vLLM says nothing.
    pub weight_versions: Vec<String>,
}

/// Why an answer is no completion.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// It is not of the form of a completion.
    #[error("its answer is not a completion: {0}")]
    Form(String),
    /// The request was aborted; its ids are a fragment.
    #[error("the request ended with {kind:?}: {message}")]
    Ended {
        /// The server's word for it.
        kind: String,
        /// The server's message.
        message: String,
    },
    /// It is longer than was asked for.
    #[error("it gave {length} tokens where {asked} were asked for")]
    TooLong {
        /// Tokens given.
        length: usize,
        /// Tokens asked for.
        asked: u64,
    },
}

#[derive(Serialize)]
struct SglangRequest<'a> {
    input_ids: &'a [u32],
    sampling_params: SglangSampling,
    return_token_ids: bool,
}

#[derive(Serialize)]
struct SglangSampling {
    max_new_tokens: u64,
    temperature: f64,
    top_p: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    repetition_penalty: f64,
}

#[derive(Serialize)]
struct VllmRequest<'a> {
    model: &'a str,
    prompt: &'a [u32],
    max_tokens: u64,
    n: u32,
    temperature: f64,
    top_p: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    repetition_penalty: f64,
    return_token_ids: bool,
    skip_special_tokens: bool,
    spaces_between_special_tokens: bool,
    include_stop_str_in_output: bool,
}

#[derive(Deserialize)]
struct SglangAnswer {
    output_ids: Vec<u32>,
    meta_info: SglangMeta,
}

#[derive(Deserialize)]
struct SglangMeta {
    finish_reason: Option<SglangEnd>,
    weight_version: String,
    #[serde(default)]
    weight_versions: Vec<SglangSpan>,
}

#[derive(Deserialize)]
struct SglangEnd {
    r#type: String,
    message: Option<String>,
}

#[derive(Deserialize)]
struct SglangSpan {
    version: String,
}

#[derive(Deserialize)]
struct VllmAnswer {
    choices: Vec<VllmChoice>,
}

#[derive(Deserialize)]
struct VllmChoice {
    token_ids: Vec<u32>,
    finish_reason: Option<String>,
}

impl Engine {
    /// Where completions are asked for.
    pub fn path(self) -> &'static str {
        match self {
            Self::Sglang => "/generate",
            Self::Vllm => "/v1/completions",
        }
    }

    /// The body of a request for one completion of `prompt`.
    pub fn request(self, prompt: &[u32], params: &GenerationParams) -> Vec<u8> {
        let GenerationParams { max_new_tokens, temperature, top_p, top_k, repetition_penalty } = *params;
        let written = match self {
            Self::Sglang => {
                let sampling_params = SglangSampling { max_new_tokens, temperature, top_p, top_k, repetition_penalty };
                serde_json::to_vec(&SglangRequest { input_ids: prompt, sampling_params, return_token_ids: true })
            }
            Self::Vllm => serde_json::to_vec(&VllmRequest {
                model: VLLM_NAME,
                prompt,
                max_tokens: max_new_tokens,
                n: 1,
                temperature,
                top_p,
                top_k,
                repetition_penalty,
                return_token_ids: true,
                skip_special_tokens: false,
                spaces_between_special_tokens: false,
                include_stop_str_in_output: true,
            }),
        };
        // Numbers and lists of numbers cannot fail to be written.
        written.unwrap_or_default()
    }

    /// Reads the answer to a request that asked for at most `asked` tokens. A 200 may carry an aborted request or an error.
    ///
    /// # Errors
    /// When it is no whole completion.
    pub fn reply(self, body: &[u8], asked: u64) -> Result<Reply, ReplyError> {
        let form = |error: serde_json::Error| match server_error(body) {
            Some(message) => ReplyError::Ended { kind: "error".into(), message },
            None => ReplyError::Form(error.to_string()),
        };
        let (ids, kind, message, weight_versions) = match self {
            Self::Sglang => {
                let SglangAnswer { output_ids, meta_info } = serde_json::from_slice(body).map_err(form)?;
                let SglangMeta { finish_reason, weight_version, weight_versions } = meta_info;
                let spans = weight_versions.into_iter().map(|span| span.version);
                let (kind, message) = finish_reason.map_or((None, None), |end| (Some(end.r#type), end.message));
                (output_ids, kind, message, spans.chain([weight_version]).collect())
            }
            Self::Vllm => {
                let answer: VllmAnswer = serde_json::from_slice(body).map_err(form)?;
                let choice = answer.choices.into_iter().next();
                let choice = choice.ok_or_else(|| ReplyError::Form("it holds no choice".into()))?;
                (choice.token_ids, choice.finish_reason, None, Vec::new())
            }
        };
        let end = match kind.as_deref() {
            Some("stop") => End::Stop,
            Some("length") => End::Length,
            None => return Err(ReplyError::Form("it has no finish_reason".into())),
            Some(kind) => {
                let message = message.unwrap_or_else(|| "no message".into());
                return Err(ReplyError::Ended { kind: kind.to_owned(), message });
            }
        };
        if ids.len() as u64 > asked {
            return Err(ReplyError::TooLong { length: ids.len(), asked });
        }
        Ok(Reply { ids, end, weight_versions })
    }
}

/// The message of an error that came in place of a completion, in any of the servers' forms.
fn server_error(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let message = match &value["error"] {
        Value::String(message) => message.clone(),
        Value::Object(error) => error.get("message")?.as_str()?.to_owned(),
        _ if value["object"] == "error" => value["message"].as_str()?.to_owned(),
        _ => return None,
    };
    Some(message.chars().take(300).collect())
}

/// One token of text, which makes a server that has only loaded its weights compile what it needs (the reference's warm-up).
pub fn warm_up(model: &str) -> (&'static str, Value) {
    ("/v1/completions", json!({"model": model, "prompt": "Test", "max_tokens": 1}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_and_errors_inside_a_200_are_no_completions() {
        let aborted =
            r#"{"output_ids":[5],"meta_info":{"finish_reason":{"type":"abort","message":"queue full"},"weight_version":"a"}}"#;
        let error = Engine::Sglang.reply(aborted.as_bytes(), 9).unwrap_err();
        assert_eq!(error, ReplyError::Ended { kind: "abort".into(), message: "queue full".into() });
        for body in
            [r#"{"error":{"message":"too long"}}"#, r#"{"error":"too long"}"#, r#"{"object":"error","message":"too long"}"#]
        {
            for engine in [Engine::Sglang, Engine::Vllm] {
                assert!(engine.reply(body.as_bytes(), 9).unwrap_err().to_string().contains("too long"));
            }
        }
        let vllm = r#"{"choices":[{"token_ids":[5],"finish_reason":"abort"}]}"#;
        assert!(matches!(Engine::Vllm.reply(vllm.as_bytes(), 9), Err(ReplyError::Ended { .. })));
        let long = r#"{"choices":[{"token_ids":[5,6],"finish_reason":"length"}]}"#;
        assert_eq!(Engine::Vllm.reply(long.as_bytes(), 1), Err(ReplyError::TooLong { length: 2, asked: 1 }));
        assert!(Engine::Vllm.reply(br#"{"choices":[]}"#, 1).is_err());
    }

    #[test]
    fn every_weight_version_is_reported() {
        let body = r#"{"output_ids":[5,2],"meta_info":{"finish_reason":{"type":"stop","matched":2},"weight_version":"b",
            "weight_versions":[{"version":"a","start":0,"end":1},{"version":"b","start":1,"end":2}]}}"#;
        let reply = Engine::Sglang.reply(body.as_bytes(), 9).unwrap();
        assert_eq!((reply.end, reply.weight_versions), (End::Stop, vec!["a".into(), "b".into(), "b".into()]));
    }
}
