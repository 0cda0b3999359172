//! `metadata.json` (grail-checkpoints 2).

use grail_protocol::keys::{KeyScheme, verify};
use grail_protocol::python_json::{CANONICAL, SPACED_SORTED, text, to_string};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::CheckpointError;
use super::code::refuse_names;

/// The five sampling parameters that mining needs.
const GENERATION_KEYS: [&str; 5] = ["max_tokens", "temperature", "top_p", "top_k", "repetition_penalty"];
const THINKING_MODES: [&str; 2] = ["native", "instructed"];
/// Files of a manifest at most; a sharded model has a few dozen.
const MAX_FILES: usize = 4096;

/// The document, in the network's key order. Everything is optional on reading, because foreign publishers leave things
/// out; what an operation needs it checks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Window in which the snapshot was trained.
    pub window: Option<u64>,
    /// File name to SHA-256 (64 lower-case hex digits).
    pub file_manifest: Manifest,
    /// Free-form.
    pub training_config: Value,
    /// Commit of the trainer's code.
    pub git_commit: Option<String>,
    /// Unix seconds.
    pub created_at: Option<f64>,
    /// Enters the binding of every proof; not a Hugging Face id.
    pub model_name: Option<String>,
    /// Not read by consumers.
    pub parent_window: Option<u64>,
    /// `FULL` or `DELTA`.
    pub checkpoint_type: Option<String>,
    /// Of a DELTA: the checkpoint it is a difference against.
    pub prev_window: Option<u64>,
    /// Of a DELTA: informational.
    pub anchor_window: Option<u64>,
    /// xxh3-128 of the tensors, 32 hex digits; `None` means "do not check".
    pub weights_hash: Option<String>,
    /// Environment to mine in.
    pub env_id: Option<String>,
    /// Its parameters.
    pub env_params: Value,
    /// Sampling parameters.
    pub generation_params: Value,
    /// `native` or `instructed`.
    pub thinking_mode: Option<String>,
    /// SHA-256 of `training_config`; never checked.
    pub config_hash: Option<String>,
    /// In the cache: the checkpoint was rebuilt from its base and what changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconstructed_from_delta: Option<bool>,
    /// In the cache, of a rebuilt checkpoint: the DELTA's `anchor_window`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_anchor_window: Option<u64>,
}

/// File names with their hashes, in the document's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Option<Map<String, Value>>", into = "Map<String, Value>")]
pub struct Manifest(Vec<(String, String)>);

impl Manifest {
    /// A manifest of `(name, sha256)`.
    pub fn new(files: Vec<(String, String)>) -> Self {
        Self(files)
    }

    /// Whether it lists nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `(name, sha256)` of every file to fetch. Entries named like the metadata's own files are stale leftovers of a retried
    /// upload and are passed over (grail-checkpoints 2).
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = |name: &str| matches!(name, "metadata.json" | "manifest.sig" | "FULL" | "DELTA");
        self.0.iter().map(|(name, hash)| (name.as_str(), hash.as_str())).filter(move |(name, _)| !own(name))
    }
}

impl TryFrom<Option<Map<String, Value>>> for Manifest {
    type Error = String;

    fn try_from(map: Option<Map<String, Value>>) -> Result<Self, String> {
        let map = map.unwrap_or_default();
        if map.len() > MAX_FILES {
            return Err(format!("file_manifest lists {} files, more than {MAX_FILES}", map.len()));
        }
        let entry = |(name, hash): (String, Value)| match hash {
            _ if !is_plain_name(&name) => Err(format!("file_manifest lists {name:?}, which is no plain file name")),
            Value::String(hash) if is_sha256(&hash) => Ok((name, hash.to_ascii_lowercase())),
            other => Err(format!("file_manifest gives {name} the hash {other}, which is no sha256")),
        };
        map.into_iter().map(entry).collect::<Result<_, _>>().map(Self)
    }
}

impl From<Manifest> for Map<String, Value> {
    fn from(manifest: Manifest) -> Self {
        manifest.0.into_iter().map(|(name, hash)| (name, Value::String(hash))).collect()
    }
}

/// A name that stays inside its directory on every system: no separator, no parent, not hidden, not absolute.
pub(super) fn is_plain_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.bytes().all(allowed)
}

fn is_sha256(hash: &str) -> bool {
    hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a miner needs to know of a checkpoint beside its weights. Ranges of values are the sampler's business.
#[derive(Clone, Debug, PartialEq)]
pub struct MiningTerms {
    /// Environment, e.g. `gsm8k`; not empty.
    pub env_id: String,
    /// JSON object, possibly empty.
    pub env_params: Value,
    /// JSON object with at least max_tokens, temperature, top_p, top_k and repetition_penalty.
    pub generation_params: Value,
    /// `native` or `instructed`.
    pub thinking_mode: String,
}

impl Metadata {
    /// Parses a document.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`] naming `place` when it is no JSON object of these types, or a manifest entry is no
    /// plain file name with a hash.
    pub fn parse(place: &str, bytes: &[u8]) -> Result<Self, CheckpointError> {
        serde_json::from_slice(bytes)
            .map_err(|error| CheckpointError::Metadata { place: place.to_owned(), why: error.to_string() })
    }

    /// The document as the network lays it out: UTF-8, two spaces, keys in order.
    pub fn to_json(&self) -> String {
        // A struct of strings, numbers and JSON values always serialises.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// What mining needs, complete.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`] listing everything that is missing (grail-checkpoints 2).
    pub fn mining_terms(&self) -> Result<MiningTerms, CheckpointError> {
        let mut missing = Vec::new();
        let env_id = self.env_id.clone().unwrap_or_default();
        if env_id.is_empty() {
            missing.push("env_id".to_owned());
        }
        let thinking_mode = self.thinking_mode.clone().unwrap_or_default();
        if !THINKING_MODES.contains(&thinking_mode.as_str()) {
            missing.push("thinking_mode (native or instructed)".to_owned());
        }
        let lacks = |key: &&&str| self.generation_params.get(**key).is_none_or(Value::is_null);
        missing.extend(GENERATION_KEYS.iter().filter(lacks).map(|key| format!("generation_params.{key}")));
        if !missing.is_empty() {
            return Err(CheckpointError::Incomplete { window: self.window.unwrap_or_default(), missing });
        }
        let env_params = if self.env_params.is_object() { self.env_params.clone() } else { Value::Object(Map::new()) };
        Ok(MiningTerms { env_id, env_params, generation_params: self.generation_params.clone(), thinking_mode })
    }

    /// Refuses a document from which a FULL, or else a DELTA, could not be verified.
    pub(super) fn check(&self, window: u64, full: bool) -> Result<(), CheckpointError> {
        let unverifiable = |why: &str| Err(CheckpointError::Unverifiable { window, why: why.to_owned() });
        if self.window.is_some_and(|said| said != window) {
            return unverifiable("its metadata speaks of another window");
        }
        let kind = if full { "FULL" } else { "DELTA" };
        if self.checkpoint_type.as_deref().is_some_and(|said| said != kind) {
            return unverifiable(&format!("the metadata in its {kind} directory says that it is no {kind}"));
        }
        if self.file_manifest.files().next().is_none() {
            return unverifiable("its manifest is empty");
        }
        refuse_names(window, self.file_manifest.files().map(|(name, _)| name))
    }

    /// The published weights hash; an empty one is what some publishers write for "none".
    pub fn hash(&self) -> Option<&str> {
        self.weights_hash.as_deref().filter(|hash| !hash.is_empty())
    }

    /// The same checkpoint with the environment and the sampling of `other`.
    pub(super) fn with_terms_of(self, other: &Self) -> Self {
        Self {
            env_id: other.env_id.clone(),
            env_params: other.env_params.clone(),
            generation_params: other.generation_params.clone(),
            thinking_mode: other.thinking_mode.clone(),
            ..self
        }
    }
}

/// The bytes that `manifest.sig` signs: the document with sorted keys, no spaces, ASCII only. Made from the text, not from
/// [`Metadata`], so that fields unknown here stay signed.
///
/// # Errors
/// [`CheckpointError::Metadata`] when `document` is no JSON.
pub fn signed_bytes(place: &str, document: &[u8]) -> Result<Vec<u8>, CheckpointError> {
    let wrong = |why: String| CheckpointError::Metadata { place: place.to_owned(), why };
    let document = std::str::from_utf8(document).map_err(|error| wrong(error.to_string()))?;
    text::rewrite(document, CANONICAL).map(String::into_bytes).map_err(|error| wrong(error.to_string()))
}

/// Whether `signature` (the content of `manifest.sig`, 128 hex digits) is `trainer`'s over `document`.
pub fn is_signed_by(trainer: &str, document: &[u8], signature: &[u8]) -> bool {
    let Ok(signature) = std::str::from_utf8(signature) else { return false };
    signed_bytes("metadata.json", document).is_ok_and(|bytes| verify(KeyScheme::Sr25519, trainer, &bytes, signature.trim()))
}

/// `config_hash`: SHA-256 of the training configuration as sorted JSON.
pub(super) fn config_hash(training_config: &Value) -> String {
    hex::encode(Sha256::digest(to_string(training_config, SPACED_SORTED)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn complete() -> Value {
        json!({
            "window": 60, "file_manifest": {"config.json": "0".repeat(64)}, "env_id": "gsm8k", "thinking_mode": "native",
            "generation_params": {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0},
            "an_unknown_field": [1]
        })
    }

    fn parsed(value: &Value) -> Result<Metadata, CheckpointError> {
        Metadata::parse("test", value.to_string().as_bytes())
    }

    #[test]
    fn complete_terms_are_found_and_missing_ones_are_all_named() {
        assert_eq!(parsed(&complete()).unwrap().mining_terms().unwrap().env_id, "gsm8k");
        let mut lacking = complete();
        lacking["env_id"] = json!("");
        lacking["thinking_mode"] = json!("fast");
        lacking["generation_params"]["top_k"] = Value::Null;
        let error = parsed(&lacking).unwrap().mining_terms().unwrap_err().to_string();
        for name in ["env_id", "thinking_mode", "generation_params.top_k"] {
            assert!(error.contains(name), "{error}");
        }
        assert!(parsed(&json!({})).unwrap().mining_terms().is_err());
        assert!(parsed(&json!({"file_manifest": null})).unwrap().check(60, true).is_err());
    }

    #[test]
    fn manifest_names_cannot_leave_their_directory() {
        for name in ["../x", "/etc/passwd", "a/b", "..", "", ".hidden", "a\\b", "a\u{0}b", "é"] {
            let mut hostile = complete();
            hostile["file_manifest"] = json!({name: "0".repeat(64)});
            assert!(parsed(&hostile).is_err(), "{name:?}");
        }
        let mut short = complete();
        short["file_manifest"] = json!({"config.json": "00"});
        assert!(parsed(&short).is_err());
    }

    #[test]
    fn stale_entries_of_the_metadata_itself_are_passed_over() {
        let manifest = Manifest::new(vec![("metadata.json".into(), "0".repeat(64)), ("config.json".into(), "1".repeat(64))]);
        assert_eq!(manifest.files().map(|(name, _)| name).collect::<Vec<_>>(), ["config.json"]);
    }
}
