//! `publish-checkpoint`: the trainer's part, for the local chain: a model directory becomes a FULL checkpoint, or a DELTA
//! against the one before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_process::{Meter, clock};
use grail_protocol::generation_params::GenerationParams;
use grail_protocol::window::window_start;
use grail_settings::{Chain, Settings};
use grail_store::bucket::Bucket;
use grail_store::checkpoint::sparse::SparseFormat;
use grail_store::checkpoint::{
    CheckpointError, FetchLimits, PREFIX, Predecessor, PublishTerms, fetch_metadata, left_behind, parse_ready_key, publish_delta,
    publish_full, published_weights_hash, ready_key,
};
use grail_subnet::buckets::Buckets;
use grail_subnet::configured::{local_trainer, open_chain};
use grail_subnet::wallet;
use grail_supervision::exit::Failure;
use serde_json::json;

/// Names of files left behind that are told; a training run may leave hundreds.
const MOST_LEFT: usize = 12;

/// Arguments of `publish-checkpoint`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Directory with config.json, tokenizer.json, chat template and safetensors weights.
    directory: PathBuf,
    /// Checkpoint window, a multiple of 30; default: the present window. Miners use it from the next window on.
    #[arg(long)]
    window: Option<u64>,
    /// Publish as DELTA: only what differs from this directory, which must be the checkpoint that was published last.
    #[arg(long, value_name = "DIR")]
    delta_from: Option<PathBuf>,
    /// Environment that the checkpoint prescribes.
    #[arg(long, default_value = "gsm8k")]
    env: String,
    /// Split of its dataset.
    #[arg(long, default_value = "train")]
    split: String,
    /// `instructed` or `native`.
    #[arg(long, default_value = "instructed")]
    thinking_mode: String,
    /// Longest completion.
    #[arg(long, default_value_t = 2048)]
    max_tokens: u64,
    /// Sampling temperature.
    #[arg(long, default_value_t = 0.7)]
    temperature: f64,
    /// Nucleus sampling.
    #[arg(long, default_value_t = 0.9)]
    top_p: f64,
    /// Candidates per token; 0 for all.
    #[arg(long, default_value_t = 50)]
    top_k: u64,
    /// Repetition penalty.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// `model_name` of the metadata.
    #[arg(long, default_value = "async_trainer_snapshot")]
    model_name: String,
}

/// Publishes one checkpoint, and says what was published and what was not.
///
/// # Errors
/// When the directory is no checkpoint, the terms cannot be mined with, or the bucket refuses.
pub async fn publish(settings: &Settings, arguments: &Arguments, meter: &Meter) -> Result<String, Failure> {
    if !matches!(settings.chain, Chain::Local { .. }) {
        return Err(Failure::Data("publish-checkpoint is for the local chain: on the network the trainer publishes".into()));
    }
    let left = left_behind(&arguments.directory).map_err(|error| Failure::Data(error.to_string()))?;
    let hotkey = wallet::load(&settings.wallet)?;
    let buckets = Buckets::open(&settings.storage, Duration::from_secs_f64(settings.upload_timeout), false).await?;
    let chain = open_chain(settings, Some(&hotkey), &buckets)?;
    let present = window_start(chain.head().await?);
    let window = arguments.window.unwrap_or(present);
    let terms = terms(arguments, window, present.max(window))?;
    let bucket = buckets.local_trainer_to_write()?;
    let ready = ready_key(window, terms.ready_window);
    let taken = bucket.head(&ready).await.map_err(|error| Failure::Unavailable(error.to_string()))?;
    if taken.is_some() {
        return Err(Failure::Data(format!(
            "checkpoint {window} is published already; wait for the next window or name another with --window"
        )));
    }
    let trainer = local_trainer()?;
    let sign = |message: &[u8]| trainer.sign(message);
    let unpublished = |error: &dyn std::fmt::Display| {
        Failure::Data(format!("the checkpoint {:?} is not published: {error}", arguments.directory))
    };
    let published = match &arguments.delta_from {
        None => publish_full(&bucket, &arguments.directory, &terms, Some(&sign), meter).await,
        Some(before) => {
            let before = predecessor(&bucket, before, window, meter).await.map_err(|why| unpublished(&why))?;
            publish_delta(&bucket, &arguments.directory, &before, SparseFormat::V31, &terms, Some(&sign), meter).await
        }
    };
    let metadata = published.map_err(|error| unpublished(&error))?;
    let left = left_text(&left);
    Ok(format!(
        "{left}Checkpoint {window} is published (weights {}), ready in window {}: miners use it from window {} on.\n",
        metadata.weights_hash.as_deref().unwrap_or("without hash"),
        terms.ready_window,
        terms.ready_window + grail_protocol::constants::WINDOW_LENGTH
    ))
}

/// What was not published, in one line.
fn left_text(left: &[String]) -> String {
    let more = left.len().saturating_sub(MOST_LEFT);
    let names = left[..left.len() - more].join(", ");
    match (left.len(), more) {
        (0, _) => String::new(),
        (_, 0) => format!("Left behind, because it is no part of a checkpoint: {names}.\n"),
        (_, more) => format!("Left behind, because it is no part of a checkpoint: {names} and {more} more.\n"),
    }
}

/// The checkpoint that was published last before `window`, whose weights must be those of `dir`.
async fn predecessor(bucket: &Bucket, dir: &Path, window: u64, meter: &Meter) -> Result<Predecessor, String> {
    let text = |error: CheckpointError| error.to_string();
    let keys = bucket.list(PREFIX).await.map_err(|error| error.to_string())?;
    let published = keys.iter().filter_map(|key| parse_ready_key(key)).map(|(published, _)| published);
    let before = published.filter(|published| *published < window).max();
    let before = before.ok_or("nothing was published before it; publish a whole checkpoint first, without --delta-from")?;
    let metadata = fetch_metadata(bucket, before, &FetchLimits::default()).await.map_err(text)?;
    let (owned, meter) = (dir.to_owned(), meter.clone());
    let hashed =
        tokio::task::spawn_blocking(move || published_weights_hash(&owned, &meter)).await.map_err(|error| error.to_string())?;
    let hash = hashed.map_err(text)?;
    if metadata.weights_hash.as_deref() != Some(hash.as_str()) {
        let want = metadata.weights_hash.unwrap_or_default();
        return Err(format!(
            "{dir:?} has weights {hash}, checkpoint {before} has {want}; name the directory that was published last"
        ));
    }
    Ok(Predecessor { dir: dir.to_owned(), window: before, anchor_window: metadata.anchor_window.unwrap_or(before) })
}

fn terms(arguments: &Arguments, window: u64, ready_window: u64) -> Result<PublishTerms, Failure> {
    if window != window_start(window) {
        return Err(Failure::Data(format!("--window {window} is no multiple of 30, so no window begins there")));
    }
    let generation_params = json!({
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "repetition_penalty": arguments.repetition_penalty,
    });
    GenerationParams::from_json(&generation_params).map_err(|error| Failure::Data(error.to_string()))?;
    Ok(PublishTerms {
        window,
        ready_window,
        model_name: arguments.model_name.clone(),
        env_id: arguments.env.clone(),
        env_params: json!({ "split": arguments.split }),
        generation_params,
        thinking_mode: arguments.thinking_mode.clone(),
        training_config: json!({}),
        git_commit: "unknown".into(),
        created_at: clock::unix_seconds(),
        parent_window: None,
    })
}
