//! The fields a commit must have, read as laxly as the reference reads them (grail-validation 5).

use serde_json::Value;

use crate::constants::{CHALLENGE_K, MAX_NEW_TOKENS_PROTOCOL_CAP};
use crate::python_json::number::{float_text, integer_text};

/// The first field of a commit that breaks the schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}.")]
pub struct SchemaFailure {
    /// Path of the field.
    pub field: String,
    /// What it should be.
    pub rule: &'static str,
}

fn broken<T>(field: impl Into<String>, rule: &'static str) -> Result<T, SchemaFailure> {
    Err(SchemaFailure { field: field.into(), rule })
}

/// Checks a raw commit. Unknown keys are ignored; numeric text, integral floats and booleans are taken as integers, as the
/// reference's parser does, although later checks look at the raw value.
///
/// # Errors
/// [`SchemaFailure`] with the first field that is wrong.
pub fn check_schema(commit: &Value) -> Result<(), SchemaFailure> {
    let tokens = list(commit, "tokens")?;
    if let Some(position) = tokens.iter().position(|token| lax_integer(token).is_none()) {
        return broken(format!("tokens.{position}"), "an integer");
    }
    if tokens.len() < CHALLENGE_K {
        return broken("tokens", "at least 32 items");
    }
    let commitments = list(commit, "commitments")?;
    if let Some(position) = commitments.iter().position(|commitment| !commitment.is_object()) {
        return broken(format!("commitments.{position}"), "an object");
    }
    if commitments.len() != tokens.len() {
        return broken("commitments", "as many items as tokens");
    }
    text(commit, "proof_version", "proof_version")?;
    text(commit, "signature", "signature")?;
    check_model(commit)?;
    check_beacon(commit)?;
    check_rollout(commit, tokens.len())?;
    check_environment(commit)
}

fn check_model(commit: &Value) -> Result<(), SchemaFailure> {
    let model = object(commit, "model")?;
    text(model, "name", "model.name")?;
    integer(model, "layer_index", "model.layer_index").map(drop)
}

fn check_beacon(commit: &Value) -> Result<(), SchemaFailure> {
    let randomness = text(object(commit, "beacon")?, "randomness", "beacon.randomness")?;
    let legal = !randomness.is_empty() && randomness.bytes().all(|byte| byte.is_ascii_hexdigit());
    if legal { Ok(()) } else { broken("beacon.randomness", "hex digits only, without 0x") }
}

fn check_rollout(commit: &Value, tokens: usize) -> Result<(), SchemaFailure> {
    let rollout = object(commit, "rollout")?;
    let prompt = integer(rollout, "prompt_length", "rollout.prompt_length")?;
    if prompt < 0 {
        return broken("rollout.prompt_length", "zero or more");
    }
    let completion = integer(rollout, "completion_length", "rollout.completion_length")?;
    let cap = i64::try_from(MAX_NEW_TOKENS_PROTOCOL_CAP).unwrap_or(i64::MAX);
    if !(1..=cap).contains(&completion) {
        return broken("rollout.completion_length", "1 to 8192");
    }
    if prompt.checked_add(completion).and_then(|sum| usize::try_from(sum).ok()) != Some(tokens) {
        return broken("rollout", "prompt_length and completion_length add up to the number of tokens");
    }
    if !rollout.get("success").is_some_and(is_lax_boolean) {
        return broken("rollout.success", "a boolean");
    }
    for key in ["total_reward", "advantage"] {
        if !rollout.get(key).is_some_and(is_lax_float) {
            return broken(format!("rollout.{key}"), "a number");
        }
    }
    check_logprobs(rollout)
}

fn check_logprobs(rollout: &Value) -> Result<(), SchemaFailure> {
    match rollout.get("token_logprobs") {
        None => Ok(()),
        Some(Value::Array(items)) => match items.iter().position(|item| !is_lax_float(item)) {
            None => Ok(()),
            Some(position) => broken(format!("rollout.token_logprobs.{position}"), "a number"),
        },
        Some(_) => broken("rollout.token_logprobs", "a list of numbers"),
    }
}

/// `env` is optional; if it is there, it has an id and a seed.
fn check_environment(commit: &Value) -> Result<(), SchemaFailure> {
    match commit.get("env") {
        None | Some(Value::Null) => Ok(()),
        Some(environment @ Value::Object(_)) => {
            text(environment, "id", "env.id")?;
            integer(environment, "seed", "env.seed").map(drop)
        }
        Some(_) => broken("env", "an object"),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>, SchemaFailure> {
    value.get(key).and_then(Value::as_array).map_or_else(|| broken(key, "a list"), Ok)
}

fn object<'a>(value: &'a Value, key: &str) -> Result<&'a Value, SchemaFailure> {
    value.get(key).filter(|value| value.is_object()).map_or_else(|| broken(key, "an object"), Ok)
}

fn text<'a>(value: &'a Value, key: &str, field: &str) -> Result<&'a str, SchemaFailure> {
    value.get(key).and_then(Value::as_str).map_or_else(|| broken(field, "text"), Ok)
}

fn integer(value: &Value, key: &str, field: &str) -> Result<i64, SchemaFailure> {
    value.get(key).and_then(lax_integer).map_or_else(|| broken(field, "an integer"), Ok)
}

fn lax_integer(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(flag) => Some(i64::from(*flag)),
        Value::Number(number) => number.as_i64().or_else(|| number.as_u64().map(|_| i64::MAX)).or_else(|| {
            let float = number.as_f64()?;
            (float.fract() == 0.0).then_some(float as i64)
        }),
        Value::String(digits) => {
            let digits = digits.trim();
            // The parser also takes `5.0`, but no other fraction.
            let whole = digits.split_once('.').map_or(Some(digits), |(whole, zeros)| {
                (!zeros.is_empty() && zeros.bytes().all(|byte| byte == b'0')).then_some(whole)
            });
            whole.and_then(integer_text)
        }
        _ => None,
    }
}

fn is_lax_float(value: &Value) -> bool {
    match value {
        Value::Bool(_) | Value::Number(_) => true,
        Value::String(digits) => float_text(digits).is_some(),
        _ => false,
    }
}

fn is_lax_boolean(value: &Value) -> bool {
    const WORDS: [&str; 12] = ["0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"];
    match value {
        Value::Bool(_) => true,
        Value::Number(number) => matches!(number.as_f64(), Some(0.0 | 1.0)),
        Value::String(word) => WORDS.iter().any(|known| word.eq_ignore_ascii_case(known)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn commit() -> Value {
        json!({
            "tokens": (0..40).collect::<Vec<i32>>(),
            "commitments": vec![json!({"sketch": 1}); 40],
            "proof_version": "v5", "model": {"name": "m", "layer_index": -1}, "signature": "ab",
            "beacon": {"randomness": "aB09"},
            "rollout": {"prompt_length": 5, "completion_length": 35, "success": "Yes", "total_reward": "nan", "advantage": 0},
        })
    }

    #[test]
    fn the_first_broken_field_is_named() {
        assert_eq!(check_schema(&commit()), Ok(()));
        let cases = [
            ("/tokens/3", json!("1.5"), "tokens.3"),
            ("/commitments/2", json!(5), "commitments.2"),
            ("/model/layer_index", json!(null), "model.layer_index"),
            ("/beacon/randomness", json!("0xab"), "beacon.randomness"),
            ("/rollout/completion_length", json!(36), "rollout"),
            ("/rollout/success", json!(2), "rollout.success"),
            ("/rollout/advantage", json!("x"), "rollout.advantage"),
        ];
        for (pointer, value, field) in cases {
            let mut changed = commit();
            *changed.pointer_mut(pointer).unwrap() = value;
            assert_eq!(check_schema(&changed).unwrap_err().field, field);
        }
        assert!(check_schema(&json!(null)).is_err());
    }

    #[test]
    fn numbers_are_read_laxly() {
        let integers = [json!(5), json!(5.0), json!("5"), json!(" 5.00 "), json!("+5")];
        assert!(integers.iter().all(|value| lax_integer(value) == Some(5)));
        assert!([json!("5."), json!("5.1"), json!(5.5), json!("")].iter().all(|value| lax_integer(value).is_none()));
    }
}
