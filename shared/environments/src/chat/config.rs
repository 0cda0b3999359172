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
    pub named: Vec<(String, String)>,
    /// `additional_special_tokens`.
    pub additional: Vec<String>,
}

impl Config {
    /// Parses the file, or says what is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut special_tokens = SpecialTokens::default();
        let class = document.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        for name in SPECIAL_TOKENS {
            let text = match document.get(name) {
                Some(value) => token(name, value)?,
                None => default_token(class, name).map(str::to_owned),
            };
            special_tokens.named.extend(text.map(|text| (name.to_owned(), text)));
        }
        special_tokens.named.extend(extra_tokens(&document)?);
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
        self.special_tokens.named.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }

    /// The texts of all special tokens.
    pub(super) fn all_special_tokens(&self) -> impl Iterator<Item = &String> {
        self.special_tokens.named.iter().map(|(_, text)| text).chain(&self.special_tokens.additional)
    }
}

/// What transformers' class of tokenizers takes where the configuration does not name a token.
fn default_token(class: &str, name: &str) -> Option<&'static str> {
    match (class.trim_end_matches("Fast"), name) {
        ("Qwen2Tokenizer", "unk_token" | "eos_token" | "pad_token") => Some("<|endoftext|>"),
        ("LlamaTokenizer", "unk_token") => Some("<unk>"),
        ("LlamaTokenizer", "bos_token") => Some("<s>"),
        ("LlamaTokenizer", "eos_token") => Some("</s>"),
        _ => None,
    }
}

/// Tokens that only this model has, with names of their own.
fn extra_tokens(document: &Map<String, Value>) -> Result<Vec<(String, String)>, String> {
    const EXTRA: &str = "extra_special_tokens";
    let mut tokens = Vec::new();
    match document.get(EXTRA) {
        None | Some(Value::Null) => {}
        Some(Value::Object(extra)) => {
            for (name, value) in extra {
                tokens.extend(token(EXTRA, value)?.map(|text| (name.clone(), text)));
            }
        }
        Some(_) => return Err(format!("its {EXTRA} is no object")),
    }
    Ok(tokens)
}

/// `tokenizer_config.json` with what an older checkpoint says in `special_tokens_map.json`: transformers reads that file
/// only where the configuration has no `added_tokens_decoder`, and believes it then.
pub(super) fn with_special_tokens_map(config: &[u8], map: &[u8]) -> Result<Vec<u8>, String> {
    let said = |error: serde_json::Error| error.to_string();
    let mut document: Map<String, Value> = serde_json::from_slice(config).map_err(said)?;
    if document.contains_key("added_tokens_decoder") {
        return Ok(config.to_vec());
    }
    let map: Map<String, Value> = serde_json::from_slice(map).map_err(said)?;
    for (name, value) in map {
        match (document.get_mut(&name), value) {
            (Some(Value::Array(known)), Value::Array(more)) if name == ADDITIONAL => {
                let more: Vec<Value> = more.into_iter().filter(|token| !known.contains(token)).collect();
                known.extend(more);
            }
            (_, value) => {
                document.insert(name, value);
            }
        }
    }
    serde_json::to_vec(&document).map_err(said)
}

/// A token is written as a text or as an object with its `content`; null means that it is not set.
fn token(name: &str, value: &Value) -> Result<Option<String>, String> {
    match value.get("content").unwrap_or(value) {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        _ => Err(format!("its {name} is neither a text nor an object with a `content`")),
    }
}

/// A template is a text, or several by name, of which `default` counts; of two with that name, the last.
fn chat_template(value: &Value) -> Result<Option<String>, String> {
    let text = |template: &Value| match template {
        Value::String(text) => Ok(Some(text.clone())),
        _ => Err("its default chat_template is no text".to_owned()),
    };
    let no_default = || "its chat_template has no `default`".to_owned();
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Object(named) => text(named.get("default").ok_or_else(no_default)?),
        Value::Array(named) => {
            if named.iter().any(|entry| !entry["name"].is_string() || entry.get("template").is_none()) {
                return Err("an entry of its chat_template has no name or no template".to_owned());
            }
            text(&named.iter().rfind(|entry| entry["name"] == "default").ok_or_else(no_default)?["template"])
        }
        _ => Err("its chat_template is neither a text nor several by name".to_owned()),
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
