//! The checkpoint that would be mined with now: found, believed, how large it is, and whether its template and tokenizer make a
//! prompt. Nothing of its weights is downloaded.

use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use grail_environments::{Environment, ThinkingMode};
use grail_process::Spawner;
use grail_protocol::generation_params::GenerationParams;
use grail_store::bucket::Bucket;
use grail_store::checkpoint::{
    CheckpointError, FetchLimits, PREFIX, delta_key, fetch_metadata, fetch_texts, full_key, ready_before, refuse_code,
};
use grail_subnet::reader::{ReadError, Readers};
use grail_workers::preflight::own_folder;

use super::host::bytes_text;
use super::row::Row;
use super::within;

const WHAT: &str = "checkpoint";
/// Objects of one checkpoint that are asked for their size.
const MOST_OBJECTS: usize = 512;
/// Such questions at once.
const AT_ONCE: usize = 8;
/// Bytes of a checkpoint's files beside its weights.
const TEXT_BYTES: u64 = 1 << 30;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its window.
    pub window: u64,
    /// `FULL`, `DELTA`, or both.
    kinds: String,
    /// Bytes that a host which has the one before must download.
    download: u64,
    /// Bytes of a whole one, where any FULL is in the bucket.
    pub whole: Option<u64>,
    environment: String,
    /// The FULL whose template and tokenizer were tried.
    texts: Option<u64>,
}

#[derive(Debug)]
enum Trouble {
    None,
    Error(CheckpointError),
    Host(String),
    Terms { window: u64, why: String },
}

impl From<CheckpointError> for Trouble {
    fn from(error: CheckpointError) -> Self {
        Self::Error(error)
    }
}

/// Looks for the checkpoint of the window that begins with `window` (`None`: of any) in the trainer's bucket, signed by `trainer`.
pub(super) async fn look(bucket: &Bucket, trainer: String, window: Option<u64>, dataset: Option<&Path>) -> (Row, Option<Found>) {
    match within(find(bucket, trainer, window.unwrap_or(u64::MAX), dataset)).await {
        Ok(Ok(found)) => (good(&found), Some(found)),
        Ok(Err(trouble)) => (bad(&trouble, window), None),
        Err(late) => (Row::failed(WHAT, late, REACH), None),
    }
}

/// What to do where the trainer's bucket is the trouble.
const REACH: &str = "let the storage endpoint's host through; the bucket itself is the trainer's";

async fn find(bucket: &Bucket, trainer: String, window: u64, dataset: Option<&Path>) -> Result<Found, Trouble> {
    let keys = bucket.list(PREFIX).await.map_err(CheckpointError::from)?;
    let checkpoint = ready_before(keys.iter().map(String::as_str), window).ok_or(Trouble::None)?;
    let limits = FetchLimits { trainer: Some(trainer), ..FetchLimits::default() };
    let metadata = fetch_metadata(bucket, checkpoint, &limits).await?;
    let terms = metadata.mining_terms()?;
    let refused = |why: String| Trouble::Terms { window: checkpoint, why };
    let mode = terms.thinking_mode.parse::<ThinkingMode>().map_err(|error| refused(error.to_string()))?;
    GenerationParams::from_json(&terms.generation_params).map_err(|error| refused(error.to_string()))?;
    if let Some(dataset) = dataset {
        Environment::open(&terms.env_id, &terms.env_params, dataset).map_err(|error| refused(error.to_string()))?;
    }
    let below = |prefix: String| keys.iter().filter(move |key| key.starts_with(&prefix)).cloned().collect::<Vec<_>>();
    let (full, delta) = (below(full_key(checkpoint, "")), below(delta_key(checkpoint, "")));
    let kinds = match (full.is_empty(), delta.is_empty()) {
        (false, false) => "FULL and DELTA",
        (true, _) => "DELTA",
        (false, true) => "FULL",
    };
    let download = if delta.is_empty() { size(bucket, &full).await? } else { size(bucket, &delta).await? };
    // A DELTA has the template and the tokenizer of the FULL that its chain begins with.
    let texts = newest_full(&keys, checkpoint);
    if let Some(full) = texts {
        try_texts(bucket, full, &limits, mode).await?;
    }
    let whole = match newest_full(&keys, u64::MAX) {
        Some(window) => Some(size(bucket, &below(full_key(window, ""))).await?),
        None => None,
    };
    Ok(Found { window: checkpoint, kinds: kinds.into(), download, whole, environment: terms.env_id, texts })
}

/// Has a reader load template and tokenizer of a FULL and make a prompt.
async fn try_texts(bucket: &Bucket, window: u64, limits: &FetchLimits, mode: ThinkingMode) -> Result<(), Trouble> {
    let host = |error: &dyn std::fmt::Display| Trouble::Host(error.to_string());
    let folder = own_folder("grail-doctor-").map_err(|error| host(&error))?;
    let texts = folder.path().join("checkpoint");
    std::fs::create_dir(&texts).map_err(|error| host(&error))?;
    let limits = FetchLimits { total_bytes: TEXT_BYTES, ..limits.clone() };
    fetch_texts(bucket, window, &limits, &texts).await?;
    let searched = texts.clone();
    let searched = tokio::task::spawn_blocking(move || refuse_code(window, &searched)).await;
    searched.map_err(|error| host(&error))??;
    let spawner = Spawner::start().map_err(|error| host(&error))?;
    let readers = Readers::new(spawner, folder.path().join("run"));
    let opened = readers.open(&texts, mode, "").await;
    readers.stop().await;
    opened.map(drop).map_err(|error| match error {
        ReadError::Refused(why) => Trouble::Terms { window, why },
        error @ ReadError::Trouble(_) => host(&error),
    })
}

/// The latest checkpoint up to `until` that has a FULL with metadata.
fn newest_full(keys: &[String], until: u64) -> Option<u64> {
    let window =
        |key: &String| key.strip_prefix(PREFIX)?.strip_prefix("checkpoint-")?.strip_suffix("/FULL/metadata.json")?.parse().ok();
    keys.iter().filter_map(window).filter(|window| *window <= until).max()
}

async fn size(bucket: &Bucket, keys: &[String]) -> Result<u64, CheckpointError> {
    let heads = keys.iter().take(MOST_OBJECTS).map(|key| async { Ok(bucket.head(key).await?.map_or(0, |head| head.size)) });
    futures::stream::iter(heads)
        .buffer_unordered(AT_ONCE)
        .try_fold(0_u64, |sum, size| async move { Ok(u64::saturating_add(sum, size)) })
        .await
}

fn good(found: &Found) -> Row {
    let whole = found.whole.map_or_else(|| "no FULL is in the bucket".into(), |whole| format!("whole {}", bytes_text(whole)));
    let texts = match found.texts {
        Some(window) if window == found.window => "its template and tokenizer make a prompt".to_owned(),
        Some(window) => format!("template and tokenizer of FULL {window} make a prompt"),
        None => "without a FULL its template and tokenizer were not tried".to_owned(),
    };
    Row::ok(
        WHAT,
        format!(
            "checkpoint {} ({}) for {}: {} to download, {whole}; signed by the trainer; {texts}",
            found.window,
            found.kinds,
            found.environment,
            bytes_text(found.download)
        ),
    )
}

fn bad(trouble: &Trouble, window: Option<u64>) -> Row {
    match trouble {
        Trouble::None => {
            let when = window.map(|window| format!(" before window {window}")).unwrap_or_default();
            Row::warning(WHAT, format!("no checkpoint was ready{when}"), "windows are skipped until the trainer publishes one")
        }
        Trouble::Error(error @ CheckpointError::Bucket(_)) => Row::failed(WHAT, error.to_string(), REACH),
        Trouble::Host(why) => Row::failed(WHAT, why.clone(), "look at this host's memory, processes and temporary folder"),
        Trouble::Error(error @ CheckpointError::Code { .. }) => {
            Row::failed(WHAT, error.to_string(), "windows are skipped until the trainer publishes one without")
        }
        Trouble::Error(error) => Row::warning(
            WHAT,
            error.to_string(),
            "the trainer has to publish it anew; until then windows are skipped, because validators reject rows of another one",
        ),
        Trouble::Terms { window, why } => Row::failed(
            WHAT,
            format!("checkpoint {window} cannot be mined by this version: {why}"),
            "look for a newer grail-supervisor, and whether environment.dataset is this environment's",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_newest_full_is_by_number_and_complete() {
        let keys = [full_key(30, "metadata.json"), full_key(300, "metadata.json"), full_key(900, "config.json")];
        assert_eq!(newest_full(&keys, u64::MAX), Some(300));
        assert_eq!(newest_full(&keys, 299), Some(30));
        assert_eq!(newest_full(&keys[2..], u64::MAX), None);
    }

    #[test]
    fn what_only_the_trainer_can_mend_is_a_warning() {
        assert_eq!(bad(&Trouble::None, Some(60)).verdict, Verdict::Warning);
        let absent = Trouble::Error(CheckpointError::Absent { window: 30 });
        assert_eq!(bad(&absent, None).verdict, Verdict::Warning);
        let terms = Trouble::Terms { window: 30, why: "x".into() };
        assert_eq!(bad(&terms, None).verdict, Verdict::Failed);
    }
}
