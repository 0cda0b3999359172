//! Publishing checkpoints the way a trainer does, so that a demonstration or a small network can run without one.

use std::path::{Path, PathBuf};

use grail_process::{Meter, Unit};
use safetensors::Dtype;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::cache::METADATA;
use super::code::refuse_code_among;
use super::contents::Contents;
use super::error::local;
use super::keys::{delta_key, full_key, ready_key};
use super::metadata::{Manifest, config_hash, signed_bytes};
use super::objects::Published;
use super::sparse::{SparseFormat, SparseTensor, ValueType, encode};
use super::weights::{TensorPlace, file_sha256_metered, hash_places};
use super::{CheckpointError, Metadata};
use crate::bucket::{Bucket, RetryPolicy};

/// Signs bytes with the trainer's hotkey.
pub type Signer<'a> = dyn Fn(&[u8]) -> [u8; 64] + Sync + 'a;

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
    meter: &Meter,
) -> Result<Metadata, CheckpointError> {
    let owned = (dir.to_owned(), terms.clone(), meter.clone());
    let judged = tokio::task::spawn_blocking(move || judge(&owned.0, &owned.1, &owned.2)).await;
    let metadata = judged.map_err(|error| local(dir)(std::io::Error::other(error)))??;
    let names = metadata.file_manifest.files().map(|(name, _)| name);
    meter.begin("Uploading the checkpoint", Unit::Bytes, bytes_of(dir, names));
    let bucket = &bucket.metered(meter);
    for (name, _) in metadata.file_manifest.files() {
        bucket.put_file(&full_key(terms.window, name), &dir.join(name), &RetryPolicy::default()).await?;
    }
    announce(bucket, Published::Full, terms, &metadata, signer).await?;
    Ok(metadata)
}

/// What a DELTA is a difference against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// Directory of the checkpoint before.
    pub dir: PathBuf,
    /// Its window, before that of the DELTA.
    pub window: u64,
    /// The last FULL; informational.
    pub anchor_window: u64,
}

/// Publishes a model directory as DELTA: the elements that differ, bit for bit, from the checkpoint before. Returns the metadata
/// as published.
///
/// # Errors
/// As [`publish_full`]; [`CheckpointError::Unpublishable`] also when the two do not have the same tensors.
pub async fn publish_delta(
    bucket: &Bucket,
    dir: &Path,
    before: &Predecessor,
    format: SparseFormat,
    terms: &PublishTerms,
    signer: Option<&Signer<'_>>,
    meter: &Meter,
) -> Result<Metadata, CheckpointError> {
    let (owned, before, full_terms, counted) = (dir.to_owned(), before.clone(), terms.clone(), meter.clone());
    let judged = tokio::task::spawn_blocking(move || difference(&owned, &before, format, &full_terms, &counted)).await;
    let (metadata, files) = judged.map_err(|error| local(dir)(std::io::Error::other(error)))??;
    meter.begin("Uploading the difference", Unit::Bytes, files.iter().map(|(_, bytes)| bytes.len() as u64).sum());
    let bucket = &bucket.metered(meter);
    for (name, bytes) in files {
        bucket.put_bytes(&delta_key(terms.window, name), &bytes.into(), &RetryPolicy::default()).await?;
    }
    announce(bucket, Published::Delta, terms, &metadata, signer).await?;
    Ok(metadata)
}

/// Marker, metadata, signature and READY, in this order.
async fn announce(
    bucket: &Bucket,
    published: Published,
    terms: &PublishTerms,
    metadata: &Metadata,
    signer: Option<&Signer<'_>>,
) -> Result<(), CheckpointError> {
    let (window, policy) = (terms.window, RetryPolicy::default());
    let document = metadata.to_json();
    let signature = match signer {
        Some(sign) => Some(hex::encode(sign(&signed_bytes(METADATA, document.as_bytes())?))),
        None => None,
    };
    let marker = if published == Published::Full { "FULL" } else { "DELTA" };
    bucket.put(&published.key(window, marker), "", &policy).await?;
    bucket.put(&published.key(window, METADATA), document, &policy).await?;
    if let Some(signature) = signature {
        bucket.put(&published.key(window, "manifest.sig"), signature, &policy).await?;
    }
    bucket.put(&ready_key(window, terms.ready_window), "", &policy).await?;
    Ok(())
}

type NamedBytes = (&'static str, Vec<u8>);

/// The metadata and the files of a DELTA.
fn difference(
    dir: &Path,
    before: &Predecessor,
    format: SparseFormat,
    terms: &PublishTerms,
    meter: &Meter,
) -> Result<(Metadata, [NamedBytes; 2]), CheckpointError> {
    let unpublishable = |why: String| CheckpointError::Unpublishable { path: dir.to_owned(), why };
    if before.window >= terms.window {
        return Err(unpublishable(format!("window {} is not after its predecessor's, {}", terms.window, before.window)));
    }
    let full = judge(dir, terms, meter)?;
    let tensors = |dir: &Path| Contents::of(dir)?.tensors(dir);
    let (now, then) = (tensors(dir)?, tensors(&before.dir)?);
    meter.begin("Comparing with the checkpoint before", Unit::Bytes, now.values().map(|place| place.length).sum());
    if let Some(name) = now.keys().chain(then.keys()).find(|name| !now.contains_key(*name) || !then.contains_key(*name)) {
        return Err(unpublishable(format!("tensor {name} is not in both checkpoints. Publish it as FULL")));
    }
    let mut changed = Vec::new();
    for (name, place) in &now {
        let tensor = changed_elements(name, place, &then[name])?;
        changed.extend(tensor.map_err(|why| unpublishable(format!("tensor {name} {why}. Publish it as FULL")))?);
        meter.add(place.length);
    }
    let body = zstd::bulk::compress(&encode(&changed, format), 1).map_err(local(dir))?;
    let total: u64 = now.values().map(|place| place.shape.iter().product::<usize>() as u64).sum();
    let nonzero: u64 = changed.iter().map(|tensor| tensor.positions.len() as u64).sum();
    let shapes: serde_json::Map<String, Value> =
        changed.iter().map(|tensor| (tensor.name.clone(), serde_json::json!(tensor.shape))).collect();
    let about = serde_json::json!({
        "format": format.name(),
        "threshold": 0.0,
        "prev_window": before.window,
        "anchor_window": before.anchor_window,
        "shapes": shapes,
        "total_params": total,
        "nonzero_params": nonzero,
        "sparsity_ratio": 1.0 - nonzero as f64 / total.max(1) as f64,
    });
    let files = [("delta_sparse.bin.zst", body), ("delta_metadata.json", format!("{about:#}").into_bytes())];
    let hashed = files.iter().map(|(name, bytes)| ((*name).to_owned(), hex::encode(Sha256::digest(bytes))));
    let metadata = Metadata {
        file_manifest: Manifest::new(hashed.collect()),
        checkpoint_type: Some("DELTA".into()),
        prev_window: Some(before.window),
        anchor_window: Some(before.anchor_window),
        ..full
    };
    Ok((metadata, files))
}

/// The elements of a tensor whose bits differ, if there are any. The network's trainer compares numbers, so that a changed sign
/// of zero is lost there and the hash can never be met.
fn changed_elements(
    name: &str,
    now: &TensorPlace,
    then: &TensorPlace,
) -> Result<Result<Option<SparseTensor>, String>, CheckpointError> {
    let value_type = match now.dtype {
        Dtype::BF16 => ValueType::Bf16,
        Dtype::F16 => ValueType::F16,
        Dtype::F32 => ValueType::F32,
        other => return Ok(Err(format!("is stored as {other:?}, which no difference can carry"))),
    };
    if (now.dtype, &now.shape) != (then.dtype, &then.shape) {
        return Ok(Err("has another shape or type than in the checkpoint before".into()));
    }
    let width = value_type.width();
    if now.length / width as u64 > u64::from(u32::MAX) {
        return Ok(Err("has more elements than a position of four bytes can name".into()));
    }
    let (new, old) = (now.read()?, then.read()?);
    let (mut positions, mut values) = (Vec::new(), Vec::new());
    for (position, (new, old)) in (0..).zip(new.chunks_exact(width).zip(old.chunks_exact(width))) {
        if new != old {
            positions.push(position);
            values.extend_from_slice(new);
        }
    }
    let shape = now.shape.iter().map(|side| *side as u64).collect();
    let tensor = SparseTensor { name: name.to_owned(), shape, value_type, positions, values };
    Ok(Ok((!tensor.positions.is_empty()).then_some(tensor)))
}

/// Everything that can be wrong is found here, before the first byte is sent.
fn judge(dir: &Path, terms: &PublishTerms, meter: &Meter) -> Result<Metadata, CheckpointError> {
    let unpublishable = |why: String| CheckpointError::Unpublishable { path: dir.to_owned(), why };
    if terms.ready_window < terms.window {
        return Err(unpublishable(format!("ready_window {} is before window {}", terms.ready_window, terms.window)));
    }
    let contents = Contents::of(dir)?;
    refuse_code_among(terms.window, dir, &contents.files)?;
    let tensors = contents.tensors(dir)?;
    let tensor_bytes: u64 = tensors.values().map(|place| place.length).sum();
    let bytes = bytes_of(dir, contents.files.iter().map(String::as_str)) + tensor_bytes;
    meter.begin("Hashing the checkpoint", Unit::Bytes, bytes);
    let hashed = contents.files.iter().map(|name| Ok((name.clone(), file_sha256_metered(&dir.join(name), meter)?)));
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
        weights_hash: Some(hash_places(tensors.into_values(), meter)?),
        env_id: Some(terms.env_id.clone()),
        env_params: terms.env_params.clone(),
        generation_params: terms.generation_params.clone(),
        thinking_mode: Some(terms.thinking_mode.clone()),
        reconstructed_from_delta: None,
        original_anchor_window: None,
    };
    metadata.mining_terms()?;
    Ok(metadata)
}

fn bytes_of<'a>(dir: &Path, names: impl Iterator<Item = &'a str>) -> u64 {
    names.filter_map(|name| std::fs::metadata(dir.join(name)).ok()).map(|metadata| metadata.len()).sum()
}

/// What of a complete model directory is not published, by name; folders end in `/`.
///
/// # Errors
/// As [`publish_full`] for a directory that is not complete.
pub fn left_behind(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    Contents::of(dir).map(|contents| contents.left)
}

/// The hash over the tensors of a complete model directory, as it is published. Counts the bytes.
///
/// # Errors
/// As [`publish_full`] before anything is sent.
pub fn published_weights_hash(dir: &Path, meter: &Meter) -> Result<String, CheckpointError> {
    let tensors = Contents::of(dir)?.tensors(dir)?;
    meter.begin("Hashing the checkpoint before", Unit::Bytes, tensors.values().map(|place| place.length).sum());
    hash_places(tensors.into_values(), meter)
}
