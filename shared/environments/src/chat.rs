//! A checkpoint's tokenizer and chat template: from messages to prompt ids and from completion ids to text
//! (grail-environments 4).

mod config;
mod template;

use std::io::Read;
use std::path::{Path, PathBuf};

use tokenizers::{AddedToken, Tokenizer};

use crate::ThinkingMode;
use config::{Config, with_special_tokens_map};
use template::ChatTemplate;

/// Largest tokenizer file that is read, in bytes. Those of large multilingual models have some 30 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Largest configuration or template file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What some editors put before a text.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a checkpoint's tokenizer cannot be used, or a text not be made a prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file that is not there, not readable or too large.
    #[error("The checkpoint's file {path} cannot be read: {source}. Fetch the checkpoint again.")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file with unusable content.
    #[error("The checkpoint's {file} is unusable: {what}. Skip this checkpoint's windows.")]
    Unusable {
        /// The file's name.
        file: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The template refused the messages or went beyond its limits.
    #[error("The checkpoint's chat template cannot render the prompt: {0}. Skip this checkpoint's windows.")]
    Template(String),
    /// The tokenizer failed.
    #[error("The checkpoint's tokenizer cannot {action}: {what}. Skip this checkpoint's windows.")]
    Tokenizer {
        /// `encode` or `decode`.
        action: &'static str,
        /// What it said.
        what: String,
    },
}

/// A checkpoint's tokenizer with its chat template. Immutable; share it behind an `Arc`.
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    eos_token: String,
    eos_token_id: u32,
    cleans_up_spaces: bool,
}

impl std::fmt::Debug for ChatTokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ChatTokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("eos_token", &self.eos_token)
            .field("eos_token_id", &self.eos_token_id)
            .finish_non_exhaustive()
    }
}

impl ChatTokenizer {
    /// Loads `tokenizer.json`, `tokenizer_config.json` and, where it is there, `chat_template.jinja` from a checkpoint's
    /// folder. The template file wins over the `chat_template` key of the configuration.
    ///
    /// # Errors
    /// Missing, unreadable or malformed files; no chat template; no `eos_token` or one outside the vocabulary.
    pub fn open(checkpoint: &Path) -> Result<Self, ChatError> {
        let template_path = checkpoint.join("chat_template.jinja");
        let template = if template_path.is_file() { Some(read(&template_path, MAX_CONFIG_BYTES)?) } else { None };
        if template.is_none() && has_additional_templates(checkpoint) {
            let what = "there are additional_chat_templates, but no chat_template.jinja that would be the default".into();
            return Err(ChatError::Unusable { file: "chat template", what });
        }
        let mut config = read(&checkpoint.join("tokenizer_config.json"), MAX_CONFIG_BYTES)?;
        let map_path = checkpoint.join("special_tokens_map.json");
        if map_path.is_file() {
            config = with_special_tokens_map(&config, &read(&map_path, MAX_CONFIG_BYTES)?)
                .map_err(|what| ChatError::Unusable { file: "special_tokens_map.json or tokenizer_config.json", what })?;
        }
        Self::from_files(&read(&checkpoint.join("tokenizer.json"), MAX_TOKENIZER_BYTES)?, &config, template.as_deref())
    }

    /// As [`Self::open`], from the contents of the files.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_files(tokenizer: &[u8], config: &[u8], template_file: Option<&[u8]>) -> Result<Self, ChatError> {
        let unusable = |file, what| ChatError::Unusable { file, what };
        let config = Config::parse(config).map_err(|what| unusable("tokenizer_config.json", what))?;
        let tokenizer = load_tokenizer(tokenizer, &config).map_err(|what| unusable("tokenizer.json", what))?;
        let template = compile(&config, template_file)?;
        let eos_token = config
            .special_token("eos_token")
            .ok_or_else(|| unusable("tokenizer_config.json", "it has no eos_token".into()))?
            .to_owned();
        let eos_token_id = tokenizer
            .token_to_id(&eos_token)
            .ok_or_else(|| unusable("tokenizer_config.json", format!("its eos_token `{eos_token}` is not in the vocabulary")))?;
        Ok(Self { tokenizer, template, eos_token, eos_token_id, cleans_up_spaces: config.cleans_up_spaces })
    }

    /// The ids of the canonical prompt for a task's user message, under the mode's system prompt.
    ///
    /// # Errors
    /// A template that refuses the messages, and tokenizer failures.
    pub fn prompt_ids(&self, user_message: &str, mode: ThinkingMode) -> Result<Vec<u32>, ChatError> {
        self.prompt_ids_of(&[Message::new("user", user_message)], mode)
    }

    /// The prompt ids of a conversation: rendered, then encoded with the tokenizer's default special tokens.
    ///
    /// # Errors
    /// As [`Self::prompt_ids`].
    pub fn prompt_ids_of(&self, messages: &[Message], mode: ThinkingMode) -> Result<Vec<u32>, ChatError> {
        self.encode(&self.render(messages, mode)?)
    }

    /// The prompt text of a conversation, with the opening of the assistant's turn. The mode's system prompt is put first
    /// unless a system message is there.
    ///
    /// # Errors
    /// A template that refuses the messages or goes beyond its limits.
    pub fn render(&self, messages: &[Message], mode: ThinkingMode) -> Result<String, ChatError> {
        with_system_prompt(&self.template, messages, mode)
    }

    /// The ids of a text. Special tokens in it are recognised, and those that the tokenizer adds by default are added.
    ///
    /// # Errors
    /// Tokenizer failures.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ChatError> {
        let encoded = self.tokenizer.encode_fast(text, true);
        let encoded = encoded.map_err(|error| ChatError::Tokenizer { action: "encode", what: error.to_string() })?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The text of ids, special tokens kept. Ids outside the vocabulary leave no trace.
    ///
    /// # Errors
    /// Tokenizer failures.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ChatError> {
        let text = self.tokenizer.decode(ids, false);
        let text = text.map_err(|error| ChatError::Tokenizer { action: "decode", what: error.to_string() })?;
        Ok(if self.cleans_up_spaces { clean_up_spaces(&text) } else { text })
    }

    /// The token that ends a turn, as text.
    pub fn eos_token(&self) -> &str {
        &self.eos_token
    }

    /// The id of the token that ends a turn.
    pub fn eos_token_id(&self) -> u32 {
        self.eos_token_id
    }

    /// How many tokens the tokenizer knows, added ones included. A model's logits may have more columns.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of a token's text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }
}

/// The prompt text of a conversation, from the contents of `tokenizer_config.json` and, where it is there,
/// `chat_template.jinja`: what [`ChatTokenizer::render`] gives, without a tokenizer.
///
/// # Errors
/// A malformed configuration, no template, and one that cannot be compiled or refuses the messages.
pub fn render(
    config: &[u8],
    template_file: Option<&[u8]>,
    messages: &[Message],
    mode: ThinkingMode,
) -> Result<String, ChatError> {
    let config = Config::parse(config).map_err(|what| ChatError::Unusable { file: "tokenizer_config.json", what })?;
    with_system_prompt(&compile(&config, template_file)?, messages, mode)
}

fn with_system_prompt(template: &ChatTemplate, messages: &[Message], mode: ThinkingMode) -> Result<String, ChatError> {
    let system = Message::new("system", mode.system_prompt());
    let missing = messages.first().is_none_or(|first| first.role != "system");
    let conversation = missing.then_some(&system).into_iter().chain(messages);
    template.render(conversation, mode).map_err(ChatError::Template)
}

/// The template that counts: the file's, else the configuration's.
fn compile(config: &Config, template_file: Option<&[u8]>) -> Result<ChatTemplate, ChatError> {
    let unusable = |file, what| ChatError::Unusable { file, what };
    let source = match template_file {
        Some(bytes) => std::str::from_utf8(bytes).map_err(|error| unusable("chat_template.jinja", error.to_string()))?,
        None => config.chat_template.as_deref().ok_or_else(|| {
            unusable("tokenizer_config.json", "it has no chat_template and no chat_template.jinja stands beside it".into())
        })?,
    };
    ChatTemplate::new(source, &config.special_tokens).map_err(|what| unusable("chat template", what))
}

/// Templates by name beside the checkpoint: with them transformers forgets the configuration's.
fn has_additional_templates(checkpoint: &Path) -> bool {
    let entries = std::fs::read_dir(checkpoint.join("additional_chat_templates")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|extension| extension == "jinja"))
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ChatError> {
    let unreadable = |source| ChatError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(unreadable(std::io::Error::other(format!("it is larger than {limit} bytes"))));
    }
    // Of a template it would be a part: Python reads that file as it is, and makes prompts that begin with it.
    if bytes.starts_with(MARK) && path.extension().is_some_and(|end| end == "json") {
        let what = "it begins with a byte order mark, which the network's loaders refuse; save it as UTF-8 without one";
        return Err(unreadable(std::io::Error::other(what)));
    }
    Ok(bytes)
}

/// The tokenizer as transformers sets it up for a call without options: never truncating or padding, and recognising
/// every special token of the configuration.
fn load_tokenizer(bytes: &[u8], config: &Config) -> Result<Tokenizer, String> {
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    let added = tokenizer.get_added_tokens_decoder();
    let known = |text: &String| added.values().any(|token| token.content == *text);
    // A token that is in the base vocabulary only would be cut into pieces. One that is in neither is left alone: giving
    // it a new id would go beyond the model's embedding.
    let missing: Vec<AddedToken> = config
        .all_special_tokens()
        .filter(|text| !known(text) && tokenizer.token_to_id(text).is_some())
        .map(|text| AddedToken::from(text.clone(), true))
        .collect();
    tokenizer.add_special_tokens(&missing);
    Ok(tokenizer)
}

/// What transformers does after decoding where `clean_up_tokenization_spaces` is set.
fn clean_up_spaces(text: &str) -> String {
    const REPLACEMENTS: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACEMENTS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests;
