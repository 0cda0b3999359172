//! Publishing a FULL checkpoint the way a trainer does, so that a demonstration or a small network can run without one.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::cache::METADATA;
use super::error::local;
use super::keys::{full_key, ready_key};
use super::metadata::{Manifest, config_hash, is_plain_name, signed_bytes};
use super::weights::{file_sha256, weights_hash};
use super::{CheckpointError, Metadata, tensor_places};
use crate::bucket::{Bucket, RetryPolicy};

/// Signs bytes with the trainer's hotkey.
pub type Signer<'a> = dyn Fn(&[u8]) -> [u8; 64] + Sync + 'a;

/// Files a model directory must have beside its weights.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Files of a checkpoint that are about it and not part of it.
const NOT_PART: [&str; 5] = ["metadata.json", "manifest.sig", "FULL", "DELTA", "snapshot_metadata.json"];

/// What the files themselves do not say.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishTerms {
    /// Checkpoint window.
    pub window: u64,
    /// Window in which the upload finishes; not before `window`. Miners use the checkpoint from the window after it on.
    pub ready_window: u64,
    /// Enters the binding of every proof.
    pub model_name: String,
    /// Environment to mine in.
    pub env_id: String,
    /// JSON object.
    pub env_params: Value,
    /// JSON object with the five sampling parameters.
    pub generation_params: Value,
    /// `native` or `instructed`.
    pub thinking_mode: String,
    /// Free-form JSON object.
    pub training_config: Value,
    /// Commit of the trainer's code, `unknown` if it has none.
    pub git_commit: String,
    /// Unix seconds.
    pub created_at: f64,
    /// Window of the checkpoint it was trained from.
    pub parent_window: Option<u64>,
}

/// Checks a model directory, uploads it as FULL and writes READY last, so that no reader ever sees half of it. Returns the
/// metadata as published. Without a signer there is no `manifest.sig`.
///
/// # Errors
/// [`CheckpointError::Unpublishable`], [`CheckpointError::Weights`] or [`CheckpointError::Incomplete`] before anything is
/// sent; [`CheckpointError::Bucket`] after.
pub async fn publish_full(
    bucket: &Bucket,
    dir: &Path,
    terms: &PublishTerms,
    signer: Option<&Signer<'_>>,
) -> Result<Metadata, CheckpointError> {
    let owned = (dir.to_owned(), terms.clone());
    let judged = tokio::task::spawn_blocking(move || judge(&owned.0, &owned.1)).await;
    let metadata = judged.map_err(|error| local(dir)(std::io::Error::other(error)))??;
    let document = metadata.to_json();
    let signature = match signer {
        Some(sign) => Some(hex::encode(sign(&signed_bytes(METADATA, document.as_bytes())?))),
        None => None,
    };
    let window = terms.window;
    let policy = RetryPolicy::default();
    for (name, _) in metadata.file_manifest.files() {
        bucket.put_file(&full_key(window, name), &dir.join(name), &policy).await?;
    }
    bucket.put(&full_key(window, "FULL"), "", &policy).await?;
    bucket.put(&full_key(window, METADATA), document, &policy).await?;
    if let Some(signature) = signature {
        bucket.put(&full_key(window, "manifest.sig"), signature, &policy).await?;
    }
    bucket.put(&ready_key(window, terms.ready_window), "", &policy).await?;
    Ok(metadata)
}

/// Everything that can be wrong is found here, before the first byte is sent.
fn judge(dir: &Path, terms: &PublishTerms) -> Result<Metadata, CheckpointError> {
    let unpublishable = |why: String| CheckpointError::Unpublishable { path: dir.to_owned(), why };
    if terms.ready_window < terms.window {
        return Err(unpublishable(format!("ready_window {} is before window {}", terms.ready_window, terms.window)));
    }
    let files = model_files(dir)?;
    let names: Vec<&str> = files.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    if let Some(missing) = REQUIRED.iter().find(|required| !names.contains(*required)) {
        return Err(unpublishable(format!("{missing} is missing. Export the model with its configuration and tokenizer")));
    }
    tensor_places(dir)?;
    let hashed = names.iter().zip(&files).map(|(name, path)| Ok(((*name).to_owned(), file_sha256(path)?)));
    let manifest = Manifest::new(hashed.collect::<Result<_, CheckpointError>>()?);
    let metadata = Metadata {
        window: Some(terms.window),
        file_manifest: manifest,
        config_hash: Some(config_hash(&terms.training_config)),
        training_config: terms.training_config.clone(),
        git_commit: Some(terms.git_commit.clone()),
        created_at: Some(terms.created_at),
        model_name: Some(terms.model_name.clone()),
        parent_window: terms.parent_window,
        checkpoint_type: Some("FULL".into()),
        prev_window: None,
        anchor_window: None,
        weights_hash: Some(weights_hash(dir)?),
        env_id: Some(terms.env_id.clone()),
        env_params: terms.env_params.clone(),
        generation_params: terms.generation_params.clone(),
        thinking_mode: Some(terms.thinking_mode.clone()),
    };
    metadata.mining_terms()?;
    Ok(metadata)
}

/// The plain files of `dir` that belong to the model, sorted by name.
fn model_files(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(local(dir))? {
        let path = entry.map_err(local(dir))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_part = is_plain_name(&name) && !NOT_PART.contains(&name.as_str()) && !name.starts_with("READY");
        if is_part && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
