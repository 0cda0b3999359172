//! The parts of `tokenizer_config.json` that decide prompts.

use serde_json::{Map, Value};

/// The special tokens that transformers hands to a chat template by name.
const SPECIAL_TOKENS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const ADDITIONAL: &str = "additional_special_tokens";

/// The parsed configuration.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// The template to use if no file stands beside the configuration.
    pub chat_template: Option<String>,
    /// Named special tokens that are set, and the list of additional ones.
    pub special_tokens: SpecialTokens,
    /// `clean_up_tokenization_spaces`; off where it is absent.
    pub cleans_up_spaces: bool,
}

/// Special tokens as chat templates see them.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    /// Name and text.
    pub named: Vec<(&'static str, String)>,
    /// `additional_special_tokens`.
    pub additional: Vec<String>,
}

impl Config {
    /// Parses the file, or says what is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut special_tokens = SpecialTokens::default();
        for name in SPECIAL_TOKENS {
            if let Some(text) = document.get(name).map_or(Ok(None), |value| token(name, value))? {
                special_tokens.named.push((name, text));
            }
        }
        for value in document.get(ADDITIONAL).and_then(Value::as_array).into_iter().flatten() {
            special_tokens.additional.extend(token(ADDITIONAL, value)?);
        }
        Ok(Self {
            chat_template: document.get("chat_template").map_or(Ok(None), chat_template)?,
            special_tokens,
            cleans_up_spaces: document.get("clean_up_tokenization_spaces").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The text of one named special token.
    pub(super) fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.named.iter().find(|(known, _)| *known == name).map(|(_, text)| text.as_str())
    }

    /// The texts of all special tokens.
    pub(super) fn all_special_tokens(&self) -> impl Iterator<Item = &String> {
        self.special_tokens.named.iter().map(|(_, text)| text).chain(&self.special_tokens.additional)
    }
}

/// A token is written as a text or as an object with its `content`; null means that it is not set.
fn token(name: &str, value: &Value) -> Result<Option<String>, String> {
    match value.get("content").unwrap_or(value) {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        _ => Err(format!("its {name} is neither a text nor an object with a `content`")),
    }
}

/// A template is a text, or a list of named ones of which `default` counts.
fn chat_template(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            let text = default.and_then(|entry| entry["template"].as_str());
            text.map(|text| Some(text.to_owned())).ok_or_else(|| "its chat_template list has no `default`".to_owned())
        }
        _ => Err("its chat_template is neither a text nor a list of named templates".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_texts_or_objects() {
        let config = Config::parse(
            br#"{"eos_token": {"content": "</s>", "lstrip": false}, "bos_token": null, "pad_token": "<p>", "unk_token": "",
                "additional_special_tokens": ["<a>", {"content": "<b>"}], "chat_template": [{"name": "tool_use",
                "template": "x"}, {"name": "default", "template": "y"}], "clean_up_tokenization_spaces": true}"#,
        )
        .unwrap();
        assert_eq!(config.special_token("eos_token"), Some("</s>"));
        assert_eq!(config.special_token("bos_token"), None);
        assert_eq!(config.special_token("unk_token"), None);
        assert_eq!(config.all_special_tokens().collect::<Vec<_>>(), ["</s>", "<p>", "<a>", "<b>"]);
        assert_eq!(config.chat_template.as_deref(), Some("y"));
        assert!(config.cleans_up_spaces);
    }

    #[test]
    fn malformed_files_say_what_is_wrong() {
        for (text, why) in [
            ("[]", "map"),
            ("{", "EOF"),
            (r#"{"eos_token": 5}"#, "its eos_token is neither"),
            (r#"{"chat_template": []}"#, "no `default`"),
            (r#"{"chat_template": 1}"#, "its chat_template is neither"),
        ] {
            let error = Config::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
