//! `config.json` and `generation_config.json` of a checkpoint, judged strictly: a field that would change the numbers is
//! honoured or refused by name, so that no model is ever computed half. Absent fields have the defaults of the configuration
//! classes of transformers 4.57.1.

mod document;
mod rotary;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use document::Document;
pub use rotary::{Rotary, RotaryScaling};

/// A configuration file larger than this is not one.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// The families of models this crate computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `qwen2`, Qwen2.5 included: biases on q, k and v always.
    Qwen2,
    /// `qwen3`: RMS norm over each head of q and k before the rotary embedding.
    Qwen3,
    /// `llama`, 3.x included.
    Llama,
}

impl Architecture {
    pub(crate) const ALL: [Self; 3] = [Self::Qwen2, Self::Qwen3, Self::Llama];

    /// The family's `model_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
        }
    }

    /// Whether q and k are normalised head by head.
    pub fn normalises_heads(self) -> bool {
        self == Self::Qwen3
    }
}

/// What the forward pass needs to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Number of token ids; every id must be below (the config's number, not the tokenizer's).
    pub vocab_size: i64,
    /// Width of a hidden state.
    pub hidden_size: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: i64,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: i64,
    /// Width of one head, even; the heads together need not be as wide as a hidden state.
    pub head_dim: i64,
    /// Whether the projections to q, k and v have biases.
    pub attention_bias: bool,
    /// Whether the projection behind the attention has a bias.
    pub output_bias: bool,
    /// Whether the three feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// The rotary embedding.
    pub rotary: Rotary,
    /// For each layer how many tokens back a token sees, itself included; `None` is all of them.
    pub windows: Vec<Option<i64>>,
    /// Whether the output head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Padding id as the reference chooses it: pad, else eos, else 0 (GRAIL protocol 5). Does not change results.
    pub pad_token_id: i64,
    /// Ids that end a completion, from `config.json`.
    pub eos_token_ids: Vec<u32>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}; the checkpoint is incomplete, fetch it again")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is far too large.
    #[error("{path}: {bytes} bytes are too many for a configuration (at most {MAX_CONFIG_BYTES})")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// An editor has put a mark of its byte order before the text. transformers refuses it too.
    #[error("{path}: begins with a byte order mark, which the network's loaders refuse; save it as UTF-8 without one")]
    Mark {
        /// The file.
        path: PathBuf,
    },
    /// The file is no JSON, or a field is missing or of the wrong type.
    #[error("{path}: {source}; the checkpoint's configuration is damaged or of another form")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        source: serde_json::Error,
    },
    /// A field asks for something this build does not compute.
    #[error("{path}: {field} = {value} is not supported: {reason}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value, cut to a readable length.
        value: String,
        /// What is supported.
        reason: &'static str,
    },
}

/// Fields that describe the checkpoint but never change what the forward pass computes.
const HARMLESS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "finetuning_task",
    "id2label",
    "initializer_range",
    "label2id",
    "max_length",
    "min_length",
    "model_name",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// Fields of every family that are read below.
const HONOURED: &[&str] = &[
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
];

/// Fields that only some families have.
fn honoured_by(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::Qwen2 => &["layer_types", "max_window_layers", "sliding_window", "use_sliding_window"],
        Architecture::Qwen3 => &["attention_bias", "layer_types", "max_window_layers", "sliding_window", "use_sliding_window"],
        Architecture::Llama => &["attention_bias", "mlp_bias"],
    }
}

/// One id, a list of them, or null.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(i64),
    Many(Vec<i64>),
}

impl Ids {
    fn valid(&self, vocab_size: i64) -> Vec<u32> {
        let all = match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        };
        all.iter().filter(|&&id| id < vocab_size).filter_map(|&id| u32::try_from(id).ok()).collect()
    }
}

/// What a family's configuration class assumes where a field is absent; what all three assume alike is where it is read.
struct Defaults {
    vocab_size: i64,
    intermediate_size: i64,
    /// `None`: as many as query heads.
    num_key_value_heads: Option<i64>,
    /// `None`: hidden size by query heads.
    head_dim: Option<i64>,
    max_position_embeddings: i64,
    eos_token_id: Option<u32>,
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        let qwen2 = Self {
            vocab_size: 151_936,
            intermediate_size: 22_016,
            num_key_value_heads: Some(32),
            head_dim: None,
            max_position_embeddings: 32_768,
            eos_token_id: None,
        };
        match architecture {
            Architecture::Qwen2 => qwen2,
            Architecture::Qwen3 => Self { head_dim: Some(128), ..qwen2 },
            Architecture::Llama => Self {
                vocab_size: 32_000,
                intermediate_size: 11_008,
                num_key_value_heads: None,
                head_dim: None,
                max_position_embeddings: 2_048,
                eos_token_id: Some(2),
            },
        }
    }
}

impl ModelConfig {
    /// Whether weights of the one are weights of the other: everything equal that the forward pass uses.
    pub fn same_network(&self, other: &Self) -> bool {
        let network = |config: &Self| Self { pad_token_id: 0, eos_token_ids: Vec::new(), ..config.clone() };
        network(self) == network(other)
    }

    /// Reads and judges `config.json` in `directory`.
    ///
    /// # Errors
    /// When the file is missing, damaged, or asks for something this build does not compute (the error names the field).
    pub fn read(directory: &Path) -> Result<Self, ConfigError> {
        let document = Document::read(directory.join("config.json"))?;
        let architecture = architecture(&document)?;
        refuse_unknown(&document, architecture)?;
        refuse_other_activations(&document)?;
        let defaults = Defaults::of(architecture);
        let vocab_size = document.size("vocab_size", defaults.vocab_size, 1 << 22)?;
        let hidden_size = document.size("hidden_size", 4096, 1 << 17)?;
        let heads = document.size("num_attention_heads", 32, 1 << 12)?;
        let layers = usize::try_from(document.size("num_hidden_layers", 32, 1 << 10)?).unwrap_or(0);
        let positions = document.size("max_position_embeddings", defaults.max_position_embeddings, 1 << 24)?;
        let (eos_token_ids, pad_token_id) = special_ids(&document, &defaults, vocab_size)?;
        let qwen2 = architecture == Architecture::Qwen2;
        let attention_bias = !qwen2 && document.flag("attention_bias")?;
        Ok(Self {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: document.size("intermediate_size", defaults.intermediate_size, 1 << 20)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: key_value_heads(&document, &defaults, heads)?,
            head_dim: head_dim(&document, architecture, defaults.head_dim.unwrap_or(hidden_size / heads))?,
            attention_bias: qwen2 || attention_bias,
            output_bias: attention_bias,
            mlp_bias: document.flag("mlp_bias")?,
            rms_norm_eps: document.positive("rms_norm_eps", 1e-6)?,
            rotary: rotary::read(&document)?,
            windows: windows(&document, layers)?,
            tie_word_embeddings: document.flag("tie_word_embeddings")?,
            max_position_embeddings: usize::try_from(positions).unwrap_or(0),
            pad_token_id,
            eos_token_ids,
        })
    }
}

fn architecture(document: &Document) -> Result<Architecture, ConfigError> {
    let kind = document.field("model_type").unwrap_or(&Value::Null);
    let known = Architecture::ALL.into_iter().find(|architecture| kind == architecture.name());
    known.ok_or_else(|| document.refusal("model_type", kind, "this build computes qwen2, qwen3 and llama"))
}

fn refuse_other_activations(document: &Document) -> Result<(), ConfigError> {
    // Two names of one function.
    match document.field("hidden_act").filter(|act| *act != "silu" && *act != "swish") {
        Some(act) => Err(document.refusal("hidden_act", act, "only silu is computed")),
        None => Ok(()),
    }
}

fn key_value_heads(document: &Document, defaults: &Defaults, heads: i64) -> Result<i64, ConfigError> {
    let name = "num_key_value_heads";
    let count = match document.field(name) {
        Some(Value::Null) => heads,
        _ => document.size(name, defaults.num_key_value_heads.unwrap_or(heads), 1 << 12)?,
    };
    let reason = "it must divide num_attention_heads";
    if heads % count == 0 { Ok(count) } else { Err(document.refusal(name, &count.into(), reason)) }
}

fn head_dim(document: &Document, architecture: Architecture, absent: i64) -> Result<i64, ConfigError> {
    let width = match document.field("head_dim") {
        // Only this family's class knows what to do with it.
        Some(Value::Null) if architecture == Architecture::Llama => absent,
        _ => document.size("head_dim", absent, 1 << 12)?,
    };
    let reason = "the rotary embedding needs a positive even width";
    if width > 0 && width % 2 == 0 { Ok(width) } else { Err(document.refusal("head_dim", &width.into(), reason)) }
}

/// The ids that end a completion and the one that pads.
fn special_ids(document: &Document, defaults: &Defaults, vocab_size: i64) -> Result<(Vec<u32>, i64), ConfigError> {
    let eos = match document.field("eos_token_id") {
        None => defaults.eos_token_id.into_iter().collect(),
        Some(Value::Null) => Vec::new(),
        Some(value) => {
            let reason = "an id or a list of ids is expected";
            let ids = Ids::deserialize(value).map_err(|_| document.refusal("eos_token_id", value, reason))?;
            ids.valid(vocab_size)
        }
    };
    let pad = document.set("pad_token_id").and_then(Value::as_i64).filter(|id| (0..vocab_size).contains(id));
    let pad = pad.or(eos.first().map(|&id| i64::from(id))).unwrap_or(0);
    Ok((eos, pad))
}

/// The window of each layer: `layer_types` says which layers slide, and without it those from `max_window_layers` on do.
fn windows(document: &Document, layers: usize) -> Result<Vec<Option<i64>>, ConfigError> {
    let window = match document.field("sliding_window") {
        _ if !document.flag("use_sliding_window")? => None,
        Some(Value::Null) => None,
        _ => Some(document.size("sliding_window", 4096, 1 << 24)?),
    };
    let Some(kinds) = document.set("layer_types") else {
        let Some(window) = window else { return Ok(vec![None; layers]) };
        let first = usize::try_from(document.integer("max_window_layers", 28, 0..=1 << 10)?).unwrap_or(0);
        return Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect());
    };
    let refused = |reason| document.refusal("layer_types", kinds, reason);
    let named =
        kinds.as_array().filter(|named| named.len() == layers).ok_or_else(|| refused("one type per layer is expected"))?;
    let of_layer = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") if window.is_some() => Ok(window),
        Some("sliding_attention") => Err(refused("layers can only slide with use_sliding_window and a sliding_window")),
        _ => Err(refused("only full_attention and sliding_attention layers are computed")),
    };
    named.iter().map(of_layer).collect()
}

/// Ids that end a completion: those of `generation_config.json`, else those of `config.json` (as SGLang does).
///
/// # Errors
/// When `generation_config.json` is there but cannot be read as JSON.
pub fn stop_token_ids(directory: &Path, config: &ModelConfig) -> Result<Vec<u32>, ConfigError> {
    #[derive(Deserialize)]
    struct Generation {
        eos_token_id: Option<Ids>,
    }
    let path = directory.join("generation_config.json");
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(config.eos_token_ids.clone());
        }
        Err(error) => return Err(error),
    };
    let generation: Generation = serde_json::from_slice(&text).map_err(|source| ConfigError::Json { path, source })?;
    let ids = generation.eos_token_id.map(|ids| ids.valid(config.vocab_size)).unwrap_or_default();
    Ok(if ids.is_empty() { config.eos_token_ids.clone() } else { ids })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_path_buf(), source };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_path_buf(), bytes });
    }
    let text = std::fs::read(path).map_err(failed)?;
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(ConfigError::Mark { path: path.to_path_buf() });
    }
    Ok(text)
}

/// A field nobody here knows may change the result; off (`null`, `false`) it cannot.
fn refuse_unknown(document: &Document, architecture: Architecture) -> Result<(), ConfigError> {
    let known = |name| [HONOURED, honoured_by(architecture), HARMLESS].iter().any(|names| names.contains(&name));
    let unknown = document
        .names()
        .find(|(name, value)| !known(*name) && !name.starts_with('_') && !matches!(value, Value::Null | Value::Bool(false)));
    let reason = "this build does not know the field for this model_type, and it may change what the model computes";
    unknown.map_or(Ok(()), |(name, value)| Err(document.refusal(name, value, reason)))
}
