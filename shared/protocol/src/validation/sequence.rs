//! Tokens and prompt of a raw commit (grail-validation 4.6, checks 2 and 3).

use serde_json::Value;

/// Context length that is assumed where the model's configuration names none.
pub const DEFAULT_MAX_CONTEXT: u64 = 16_384;

const CONTEXT_KEYS: [&str; 6] =
    ["max_position_embeddings", "max_seq_len", "n_positions", "seq_length", "max_sequence_length", "model_max_length"];

/// Why a sequence is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceFailure {
    /// No list, or an empty one.
    #[error("tokens is not a list of at least one id.")]
    Empty,
    /// An entry that is no id of the model.
    #[error("Token {position} is {found}, not an integer from 0 to {vocabulary} (exclusive).")]
    Token {
        /// Index in the list.
        position: usize,
        /// The JSON found.
        found: String,
        /// Size of the vocabulary.
        vocabulary: u64,
    },
    /// Longer than the model's context.
    #[error("The sequence has {length} tokens, more than the model's context of {limit}.")]
    TooLong {
        /// Number of tokens.
        length: usize,
        /// Context of the model.
        limit: u64,
    },
    /// A length that is not an integer.
    #[error("rollout.prompt_length or rollout.completion_length is not an integer.")]
    Lengths,
    /// Prompt and completion do not make up the tokens.
    #[error("prompt_length {prompt} and completion_length {completion} do not add up to {tokens} tokens.")]
    Sum {
        /// Claimed prompt length.
        prompt: usize,
        /// Claimed completion length.
        completion: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// The prompt has another length than the canonical one.
    #[error("The prompt has {claimed} tokens, but the canonical one has {canonical}.")]
    PromptLength {
        /// Claimed prompt length.
        claimed: usize,
        /// Canonical prompt length.
        canonical: usize,
    },
    /// A token of the prompt is another one.
    #[error("Prompt token {position} is {found}, but the canonical prompt has {canonical}.")]
    PromptToken {
        /// Position of the first difference.
        position: usize,
        /// Token of the row.
        found: i64,
        /// Canonical token.
        canonical: i64,
    },
}

/// The context length of a model's configuration (first key that holds a positive integer), 16,384 if there is none.
#[must_use]
pub fn max_context(config: &Value) -> u64 {
    CONTEXT_KEYS.iter().find_map(|key| config[*key].as_u64().filter(|length| *length > 0)).unwrap_or(DEFAULT_MAX_CONTEXT)
}

/// The tokens of a raw commit: integers in `[0, vocabulary)`, at most `limit` of them. Numeric text and booleans, which the
/// schema lets pass, are refused here.
///
/// # Errors
/// [`SequenceFailure`] with the first fault.
pub fn check_tokens(commit: &Value, vocabulary: u64, limit: u64) -> Result<Vec<i64>, SequenceFailure> {
    let list = commit["tokens"].as_array().filter(|list| !list.is_empty()).ok_or(SequenceFailure::Empty)?;
    let mut tokens = Vec::with_capacity(list.len());
    for (position, value) in list.iter().enumerate() {
        let token = value.as_i64().filter(|token| u64::try_from(*token).is_ok_and(|token| token < vocabulary));
        let found = || value.to_string().chars().take(40).collect();
        tokens.push(token.ok_or_else(|| SequenceFailure::Token { position, found: found(), vocabulary })?);
    }
    if tokens.len() as u64 > limit {
        return Err(SequenceFailure::TooLong { length: tokens.len(), limit });
    }
    Ok(tokens)
}

/// `rollout.prompt_length` and `rollout.completion_length` as integers.
///
/// # Errors
/// [`SequenceFailure::Lengths`] if one is anything else.
pub fn lengths(commit: &Value) -> Result<(usize, usize), SequenceFailure> {
    let length = |key: &str| commit["rollout"][key].as_u64().and_then(|length| usize::try_from(length).ok());
    length("prompt_length").zip(length("completion_length")).ok_or(SequenceFailure::Lengths)
}

/// Compares a sequence's prompt with the canonical one, token by token.
///
/// # Errors
/// [`SequenceFailure`] with the first difference.
pub fn check_prompt(tokens: &[i64], prompt: usize, completion: usize, canonical: &[i64]) -> Result<(), SequenceFailure> {
    if prompt != canonical.len() {
        return Err(SequenceFailure::PromptLength { claimed: prompt, canonical: canonical.len() });
    }
    if prompt.checked_add(completion) != Some(tokens.len()) {
        return Err(SequenceFailure::Sum { prompt, completion, tokens: tokens.len() });
    }
    match tokens.iter().zip(canonical).position(|(token, canonical)| token != canonical) {
        None => Ok(()),
        Some(position) => Err(SequenceFailure::PromptToken { position, found: tokens[position], canonical: canonical[position] }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_true_integers_are_tokens() {
        for wrong in [json!(["1"]), json!([true]), json!([1.0]), json!([-1]), json!([10]), json!([]), json!(null)] {
            assert!(check_tokens(&json!({"tokens": wrong}), 10, 5).is_err(), "{wrong}");
        }
        assert_eq!(check_tokens(&json!({"tokens": [0, 9]}), 10, 2), Ok(vec![0, 9]));
        assert!(check_tokens(&json!({"tokens": [0, 9, 1]}), 10, 2).is_err());
    }

    #[test]
    fn the_context_has_many_names() {
        assert_eq!(max_context(&json!({"n_positions": 5})), 5);
        assert_eq!(max_context(&json!({"max_position_embeddings": null})), 16_384);
    }

    #[test]
    fn a_prompt_must_be_the_canonical_one() {
        assert_eq!(check_prompt(&[1, 2, 3], 2, 1, &[1, 2]), Ok(()));
        assert!(check_prompt(&[1, 2, 3], 2, 1, &[1, 4]).is_err());
        assert!(check_prompt(&[1, 2, 3], 2, 2, &[1, 2]).is_err());
        assert!(check_prompt(&[1, 2, 3], usize::MAX, 1, &[1, 2]).is_err());
    }
}
