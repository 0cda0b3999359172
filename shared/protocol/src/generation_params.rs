//! The sampling values that a checkpoint's metadata prescribes (grail-miner 5, grail-environments 9).

use serde_json::Value;

use crate::constants::MAX_NEW_TOKENS_PROTOCOL_CAP;
use crate::python_json::number;

/// Largest `top_k` that is accepted.
pub const MAX_TOP_K: i64 = 1000;

const KEYS: [&str; 5] = ["max_tokens", "temperature", "top_p", "top_k", "repetition_penalty"];

/// How completions are sampled, as the trainer publishes it.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationParams {
    /// Longest completion, `min(max_tokens, 8192)`, at least 1.
    pub max_new_tokens: u64,
    /// 0.01 to 2.
    pub temperature: f64,
    /// 0 to 1.
    pub top_p: f64,
    /// 1 to 1000; `None` (written 0) means that the server is sent none.
    pub top_k: Option<u32>,
    /// 1 to 2.
    pub repetition_penalty: f64,
}

/// A sampling value that no window may be mined with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerationParamsError {
    /// The whole thing is not a JSON object.
    #[error("generation_params of the checkpoint is {found}, not an object; skip the window until the trainer mends it.")]
    NotAnObject {
        /// The JSON that was found, cut to a readable length.
        found: String,
    },
    /// One of the five keys is absent.
    #[error("generation_params.{key} of the checkpoint is missing; skip the window until the trainer publishes it.")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value that does not read as a number.
    #[error("generation_params.{key} of the checkpoint is {found}, not {expected}; skip the window.")]
    NotANumber {
        /// The key.
        key: &'static str,
        /// The JSON that was found, cut to a readable length.
        found: String,
        /// `an integer` or `a number`.
        expected: &'static str,
    },
    /// A number outside the protocol's range.
    #[error("generation_params.{key} of the checkpoint is {found}, outside {range}; skip the window.")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The JSON that was found, cut to a readable length.
        found: String,
        /// The range, as `[low, high]`.
        range: &'static str,
    },
}

impl GenerationParams {
    /// Reads the five values as the reference does: numeric strings are read, floats are cut to integers where integers
    /// are due.
    ///
    /// # Errors
    /// [`GenerationParamsError`] names the first key that is missing, no number or out of range; the window is skipped then.
    pub fn from_json(params: &Value) -> Result<Self, GenerationParamsError> {
        let object = params.as_object().ok_or_else(|| GenerationParamsError::NotAnObject { found: brief(params) })?;
        let value = |key| object.get(key).ok_or(GenerationParamsError::Missing { key });
        let max_tokens = integer("max_tokens", value("max_tokens")?, 1, i64::MAX, "[1, …]")?;
        let temperature = float("temperature", value("temperature")?, 0.01, 2.0, "[0.01, 2]")?;
        let top_p = float("top_p", value("top_p")?, 0.0, 1.0, "[0, 1]")?;
        let top_k = integer("top_k", value("top_k")?, 0, MAX_TOP_K, "[0, 1000]")?;
        let repetition_penalty = float("repetition_penalty", value("repetition_penalty")?, 1.0, 2.0, "[1, 2]")?;
        Ok(Self {
            max_new_tokens: max_tokens.unsigned_abs().min(MAX_NEW_TOKENS_PROTOCOL_CAP),
            temperature,
            top_p,
            top_k: u32::try_from(top_k).ok().filter(|top_k| *top_k > 0),
            repetition_penalty,
        })
    }
}

/// What a checkpoint's metadata lacks before a window can be mined or judged with it, in the reference's words: `env_id`,
/// `thinking_mode`, `generation_params.<key>` (grail-environments 1).
#[must_use]
pub fn missing_metadata(env_id: Option<&str>, thinking_mode: Option<&str>, params: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    if env_id.is_none_or(str::is_empty) {
        missing.push("env_id".to_owned());
    }
    match thinking_mode {
        Some("instructed" | "native") => {}
        None | Some("") => missing.push("thinking_mode".to_owned()),
        Some(other) => missing.push(format!("thinking_mode (invalid value '{other}')")),
    }
    let absent = KEYS.into_iter().filter(|key| params.get(key).is_none());
    missing.extend(absent.map(|key| format!("generation_params.{key}")));
    missing
}

fn integer(key: &'static str, value: &Value, low: i64, high: i64, range: &'static str) -> Result<i64, GenerationParamsError> {
    let Some(number) = number::python_int(value) else {
        return Err(GenerationParamsError::NotANumber { key, found: brief(value), expected: "an integer" });
    };
    let accepted = (low..=high).contains(&number);
    if accepted { Ok(number) } else { Err(GenerationParamsError::OutOfRange { key, found: brief(value), range }) }
}

fn float(key: &'static str, value: &Value, low: f64, high: f64, range: &'static str) -> Result<f64, GenerationParamsError> {
    let Some(number) = number::python_float(value) else {
        return Err(GenerationParamsError::NotANumber { key, found: brief(value), expected: "a number" });
    };
    let accepted = (low..=high).contains(&number);
    if accepted { Ok(number) } else { Err(GenerationParamsError::OutOfRange { key, found: brief(value), range }) }
}

fn brief(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_strings_and_cuts_floats() {
        let params = json!({"max_tokens": "9000", "temperature": " 0.7 ", "top_p": 1, "top_k": 7.9, "repetition_penalty": true});
        let read = GenerationParams::from_json(&params).unwrap();
        assert_eq!((read.max_new_tokens, read.top_k, read.repetition_penalty), (8192, Some(7), 1.0));
    }

    #[test]
    fn names_the_key_that_is_wrong() {
        let mut params = json!({"max_tokens": 64, "temperature": "nan", "top_p": 1, "top_k": 0, "repetition_penalty": 1.0});
        let text = GenerationParams::from_json(&params).unwrap_err().to_string();
        assert!(text.contains("generation_params.temperature"), "{text}");
        params["temperature"] = json!(1.0);
        assert_eq!(GenerationParams::from_json(&params).unwrap().top_k, None);
        params["top_k"] = json!("7.0");
        assert!(GenerationParams::from_json(&params).is_err());
        assert!(GenerationParams::from_json(&json!([])).is_err());
    }
}
