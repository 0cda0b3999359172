//! What is asked of the engine, and what it answers.

use std::sync::Arc;

use crate::config::ModelConfig;

/// New tokens where a request does not say (the default of SGLang 0.5.23), cut to what the context leaves.
const DEFAULT_MAX_NEW_TOKENS: usize = 128;

/// How to choose tokens. The names and meanings are those of SGLang's sampling parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Most tokens to produce; `None` is 128 or what the context leaves. Zero is legal and produces nothing.
    pub max_new_tokens: Option<usize>,
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Keeps the most likely tokens up to this share of probability, at least one; in (0, 1].
    pub top_p: f64,
    /// Keeps this many of the most likely tokens; `None` keeps all.
    pub top_k: Option<usize>,
    /// Divides positive and multiplies negative logits of tokens that prompt or output hold; in (0, 2], 1 is none.
    pub repetition_penalty: f64,
    /// Ids that end the completion beside the model's own; an id that ends it is part of the output.
    pub stop_token_ids: Vec<u32>,
    /// Goes on after the model's end-of-sequence ids (not after `stop_token_ids`).
    pub ignore_eos: bool,
    /// Makes the request's random numbers its own: equal seeds draw equal numbers.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_new_tokens: None,
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            repetition_penalty: 1.0,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            seed: None,
        }
    }
}

/// One prompt to complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The prompt's ids, at least one.
    pub prompt: Vec<u32>,
    /// How to choose tokens.
    pub sampling: Sampling,
}

/// Names a request in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

/// Why a completion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id came; it is the last of the output.
    Stop {
        /// The id.
        matched: u32,
    },
    /// As many tokens as were asked for.
    Length,
    /// Ended from outside, or because the model computed NaN.
    Abort {
        /// Why.
        message: String,
    },
}

/// Which weights sampled which tokens of an output: `start..end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionSpan {
    /// The weight version.
    pub version: Arc<str>,
    /// First token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
}

/// A completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Which request.
    pub ticket: Ticket,
    /// The completion's ids, with the stop id if one ended it.
    pub output: Vec<u32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Which weights sampled it, in order, without gaps.
    pub versions: Vec<VersionSpan>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// There is nothing to complete.
    #[error("input_ids is empty; at least one id is needed")]
    EmptyPrompt,
    /// An id that the model does not have.
    #[error("input_ids[{position}] = {token} is outside the vocabulary of {vocab_size}")]
    Token {
        /// Position in the prompt.
        position: usize,
        /// The id.
        token: u32,
        /// The model's number of ids.
        vocab_size: i64,
    },
    /// Prompt and completion do not fit the context.
    #[error("{prompt} prompt tokens and max_new_tokens = {max_new} exceed the context of {context} tokens")]
    TooLong {
        /// Prompt tokens.
        prompt: usize,
        /// New tokens asked for.
        max_new: usize,
        /// The model's context.
        context: usize,
    },
    /// A value that means nothing.
    #[error("{field} = {value} is out of range: {want}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What is wanted.
        want: &'static str,
    },
}

impl Request {
    /// Judges the request against a model and settles the number of new tokens.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, config: &ModelConfig) -> Result<usize, RequestError> {
        self.sampling.check()?;
        if self.prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        let vocab_size = config.vocab_size;
        let stray = self.prompt.iter().enumerate().find(|&(_, &token)| i64::from(token) >= vocab_size);
        if let Some((position, &token)) = stray {
            return Err(RequestError::Token { position, token, vocab_size });
        }
        let (prompt, context) = (self.prompt.len(), config.max_position_embeddings);
        let left = context.saturating_sub(prompt);
        let max_new = self.sampling.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS.min(left));
        if prompt > context || max_new > left {
            return Err(RequestError::TooLong { prompt, max_new, context });
        }
        Ok(max_new)
    }
}

impl Sampling {
    fn check(&self) -> Result<(), RequestError> {
        let within = |field, value: f64, legal: bool, want| {
            if legal && value.is_finite() { Ok(()) } else { Err(RequestError::OutOfRange { field, value, want }) }
        };
        within("temperature", self.temperature, self.temperature >= 0.0, "0 or more")?;
        within("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0, at most 1")?;
        let penalty = self.repetition_penalty;
        within("repetition_penalty", penalty, penalty > 0.0 && penalty <= 2.0, "more than 0, at most 2")?;
        within("top_k", self.top_k.map_or(1.0, |k| k as f64), self.top_k != Some(0), "-1 (all) or at least 1")
    }
}
