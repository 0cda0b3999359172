//! `config.json` and `generation_config.json` of a checkpoint, judged strictly: a field that would change the numbers is
//! honoured or refused by name, so that no model is ever computed half.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

/// A configuration file larger than this is not one.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// The families of models this crate computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `qwen2`: biases on q, k and v, no norm on q and k, rotary embedding over the whole head.
    Qwen2,
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
    /// Width of one head.
    pub head_dim: i64,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
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
    "max_window_layers",
    "min_length",
    "model_name",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "sliding_window",
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

/// Fields that are read below, in `Fields` or in `refuse_unsupported`.
const HONOURED: &[&str] = &[
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
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
    "use_sliding_window",
    "vocab_size",
];

#[derive(Deserialize)]
struct Fields {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    #[serde(default = "rms_norm_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "max_position_embeddings")]
    max_position_embeddings: i64,
    pad_token_id: Option<i64>,
    eos_token_id: Option<Ids>,
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

/// The default of the reference's Qwen2 configuration class.
fn rms_norm_eps() -> f64 {
    1e-6
}

/// The default of the reference's Qwen2 configuration class.
fn max_position_embeddings() -> i64 {
    32_768
}

/// The default of the reference's Qwen2 configuration class.
const ROPE_THETA: f64 = 10_000.0;

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
        let path = directory.join("config.json");
        let text = read_bounded(&path)?;
        let document: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|source| ConfigError::Json { path: path.clone(), source })?;
        refuse_unsupported(&path, &document)?;
        let fields: Fields = serde_json::from_value(Value::Object(document.clone()))
            .map_err(|source| ConfigError::Json { path: path.clone(), source })?;
        Self::build(&path, &document, &fields)
    }

    fn build(path: &Path, document: &Map<String, Value>, fields: &Fields) -> Result<Self, ConfigError> {
        let bounded = |field: &str, value: i64, most: i64| {
            let reason = "a positive number of a model's usual size is expected";
            if (1..=most).contains(&value) { Ok(value) } else { Err(unsupported(path, field, &value.into(), reason)) }
        };
        let vocab_size = bounded("vocab_size", fields.vocab_size, 1 << 22)?;
        let hidden_size = bounded("hidden_size", fields.hidden_size, 1 << 17)?;
        let heads = bounded("num_attention_heads", fields.num_attention_heads, 1 << 12)?;
        let key_value_heads = bounded("num_key_value_heads", fields.num_key_value_heads.unwrap_or(heads), heads)?;
        let head_dim = bounded("head_dim", fields.head_dim.unwrap_or(hidden_size / heads), 1 << 12)?;
        if heads % key_value_heads != 0 {
            let reason = "it must divide num_attention_heads";
            return Err(unsupported(path, "num_key_value_heads", &key_value_heads.into(), reason));
        }
        if head_dim % 2 != 0 {
            return Err(unsupported(path, "head_dim", &head_dim.into(), "the rotary embedding needs an even width"));
        }
        let layers = bounded("num_hidden_layers", fields.num_hidden_layers, 1 << 10)?;
        let positions = bounded("max_position_embeddings", fields.max_position_embeddings, 1 << 24)?;
        let eos = fields.eos_token_id.as_ref().map(|ids| ids.valid(vocab_size)).unwrap_or_default();
        let pad = fields.pad_token_id.filter(|id| (0..vocab_size).contains(id)).or(eos.first().map(|&id| i64::from(id)));
        Ok(Self {
            architecture: Architecture::Qwen2,
            vocab_size,
            hidden_size,
            intermediate_size: bounded("intermediate_size", fields.intermediate_size, 1 << 20)?,
            num_hidden_layers: usize::try_from(layers).unwrap_or(0),
            num_attention_heads: heads,
            num_key_value_heads: key_value_heads,
            head_dim,
            rms_norm_eps: positive(path, "rms_norm_eps", fields.rms_norm_eps)?,
            rope_theta: positive(path, "rope_theta", rope_theta(document, fields))?,
            tie_word_embeddings: fields.tie_word_embeddings,
            max_position_embeddings: usize::try_from(positions).unwrap_or(0),
            pad_token_id: pad.unwrap_or(0),
            eos_token_ids: eos,
        })
    }
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
    std::fs::read(path).map_err(failed)
}

fn rope_theta(document: &Map<String, Value>, fields: &Fields) -> f64 {
    let newer = document.get("rope_parameters").and_then(|parameters| parameters.get("rope_theta")).and_then(Value::as_f64);
    newer.or(fields.rope_theta).unwrap_or(ROPE_THETA)
}

fn positive(path: &Path, field: &str, value: f64) -> Result<f64, ConfigError> {
    let legal = value.is_finite() && value > 0.0;
    if legal { Ok(value) } else { Err(unsupported(path, field, &value.into(), "a positive finite number is expected")) }
}

fn refuse_unsupported(path: &Path, document: &Map<String, Value>) -> Result<(), ConfigError> {
    let get = |field: &str| document.get(field).filter(|value| !value.is_null());
    let refuse = |field: &str, value: &Value, reason| Err(unsupported(path, field, value, reason));
    match get("model_type") {
        Some(kind) if kind == "qwen2" => {}
        Some(kind) => return refuse("model_type", kind, "this build computes qwen2"),
        None => return refuse("model_type", &Value::Null, "this build computes qwen2 and needs it named"),
    }
    if let Some(act) = get("hidden_act").filter(|act| *act != "silu") {
        return refuse("hidden_act", act, "only silu is computed");
    }
    if let Some(slides) = get("use_sliding_window").filter(|slides| *slides != &Value::Bool(false)) {
        return refuse("use_sliding_window", slides, "only full attention is computed");
    }
    for field in ["rope_scaling", "rope_parameters"] {
        if let Some(rope) = get(field).filter(|rope| !is_plain_rope(rope)) {
            return refuse(field, rope, "only the unscaled rotary embedding is computed");
        }
    }
    let full = |kinds: &Value| kinds.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "full_attention"));
    if let Some(kinds) = get("layer_types").filter(|kinds| !full(kinds)) {
        return refuse("layer_types", kinds, "only full_attention layers are computed");
    }
    refuse_unknown(path, document)
}

/// `{"rope_type": "default"}`, with nothing beside it but the base.
fn is_plain_rope(rope: &Value) -> bool {
    rope.as_object().is_some_and(|rope| {
        rope.iter().all(|(key, value)| match key.as_str() {
            "rope_type" | "type" => value == "default",
            "rope_theta" => value.is_number(),
            _ => false,
        })
    })
}

/// A field nobody here knows may change the result; off (`null`, `false`) it cannot.
fn refuse_unknown(path: &Path, document: &Map<String, Value>) -> Result<(), ConfigError> {
    let unknown = document.iter().find(|(field, value)| {
        let known = HONOURED.contains(&field.as_str()) || HARMLESS.contains(&field.as_str());
        !known && !field.starts_with('_') && !matches!(value, Value::Null | Value::Bool(false))
    });
    let reason = "this build does not know the field, and it may change what the model computes";
    unknown.map_or(Ok(()), |(field, value)| Err(unsupported(path, field, value, reason)))
}

fn unsupported(path: &Path, field: &str, value: &Value, reason: &'static str) -> ConfigError {
    let value: String = value.to_string().chars().take(120).collect();
    ConfigError::Unsupported { path: path.to_path_buf(), field: field.to_owned(), value, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(change: impl FnOnce(&mut Map<String, Value>)) -> Result<ModelConfig, ConfigError> {
        let mut document = crate::fixtures::config();
        change(&mut document);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), Value::Object(document).to_string()).unwrap();
        ModelConfig::read(directory.path())
    }

    #[test]
    fn reads_what_the_reference_writes() {
        let config = read(|_| {}).unwrap();
        assert_eq!((config.vocab_size, config.head_dim, config.pad_token_id), (96, 8, 2));
        assert_eq!(config.eos_token_ids, [2]);
    }

    #[test]
    fn refuses_by_name_what_would_change_the_result() {
        let cases = [
            ("model_type", json!("llama")),
            ("hidden_act", json!("gelu")),
            ("use_sliding_window", json!(true)),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
            ("quantization_config", json!({"bits": 4})),
            ("attention_bias", json!(true)),
            ("partial_rotary_factor", json!(0.5)),
            ("num_key_value_heads", json!(3)),
            ("rms_norm_eps", json!(0.0)),
            ("vocab_size", json!(0)),
        ];
        for (field, value) in cases {
            let error = read(|document| drop(document.insert(field.into(), value.clone()))).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn honours_the_newer_spelling_of_the_rotary_base_and_ignores_what_is_off() {
        let config = read(|document| {
            document.insert("rope_parameters".into(), json!({"rope_type": "default", "rope_theta": 5e5}));
            document.insert("use_mrope".into(), json!(false));
            document.insert("eos_token_id".into(), json!([7, 2]));
        });
        let config = config.unwrap();
        assert_eq!((config.rope_theta, config.eos_token_ids, config.pad_token_id), (5e5, vec![7, 2], 7));
    }
}
