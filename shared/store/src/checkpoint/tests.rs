//! Publishing and fetching over the local server.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use grail_process::Meter;
use grail_protocol::keys::Hotkey;
use serde_json::{Value, json};

use super::*;
use crate::bucket::tests::Fixture;
use crate::bucket::{Bucket, RetryPolicy};

fn safetensors(name: &str, bytes: &[u8]) -> Vec<u8> {
    let header = json!({name: {"dtype": "U8", "shape": [bytes.len()], "data_offsets": [0, bytes.len()]}}).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), bytes].concat()
}

fn model_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"chat_template": "x"}"#).unwrap();
    let index = json!({"weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}});
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    // Names in an order other than the files', so that the hash must sort across shards.
    std::fs::write(dir.path().join("model-00001-of-00002.safetensors"), safetensors("b", b"second")).unwrap();
    std::fs::write(dir.path().join("model-00002-of-00002.safetensors"), safetensors("a", b"first")).unwrap();
    std::fs::write(dir.path().join("snapshot_metadata.json"), "ignored").unwrap();
    dir
}

fn terms(window: u64) -> PublishTerms {
    PublishTerms {
        window,
        ready_window: window,
        model_name: "async_trainer_snapshot".into(),
        env_id: "gsm8k".into(),
        env_params: json!({"split": "train"}),
        generation_params: json!({
            "max_tokens": 128, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.0
        }),
        thinking_mode: "instructed".into(),
        training_config: json!({"lr": 1e-6, "note": "é"}),
        git_commit: "unknown".into(),
        created_at: 1_760_000_000.25,
        parent_window: None,
    }
}

async fn fetch_with(
    bucket: &Bucket,
    window: u64,
    cache_root: &Path,
    limits: &FetchLimits,
) -> Result<CachedCheckpoint, CheckpointError> {
    Fetcher { bucket, cache_root, limits, observer: &|_| () }.fetch(window).await
}

async fn published(bucket: &Bucket, window: u64) -> (Metadata, String) {
    let alice = Hotkey::from_uri("//Alice").unwrap();
    let sign = |bytes: &[u8]| alice.sign(bytes);
    let metadata = publish_full(bucket, model_dir().path(), &terms(window), Some(&sign), &Meter::default()).await.unwrap();
    (metadata, alice.address().to_owned())
}

async fn replace_metadata(bucket: &Bucket, window: u64, change: impl FnOnce(&mut Value)) {
    let key = full_key(window, "metadata.json");
    let mut document: Value = serde_json::from_slice(&bucket.get(&key, 1 << 20).await.unwrap()).unwrap();
    change(&mut document);
    bucket.put(&key, document.to_string(), &RetryPolicy::default()).await.unwrap();
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_published_is_discovered_fetched_and_kept() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let (metadata, trainer) = published(&bucket, 60).await;
    assert_eq!(metadata.weights_hash.as_deref(), Some(hash_tensors([("a", &b"first"[..]), ("b", b"second")]).as_str()));
    assert_eq!(discover(&bucket, 60).await.unwrap(), None);
    assert_eq!(discover(&bucket, 90).await.unwrap(), Some(60));

    let cache = tempfile::tempdir().unwrap();
    let limits = FetchLimits { trainer: Some(trainer), ..FetchLimits::default() };
    let fetched = fetch_with(&bucket, 60, cache.path(), &limits).await.unwrap();
    assert_eq!(fetched.metadata, metadata);
    assert_eq!(entries(&fetched.dir).len(), 7, "{:?}", entries(&fetched.dir));
    assert_eq!(entries(cache.path()), ["checkpoint-60"]);

    // The cache is used without the bucket, and mended when it was damaged.
    bucket.delete(&ready_key(60, 60)).await.unwrap();
    assert_eq!(fetch_with(&bucket, 60, cache.path(), &limits).await.unwrap(), fetched);
    std::fs::write(fetched.dir.join("config.json"), "damaged").unwrap();
    let not_ready = fetch_with(&bucket, 60, cache.path(), &limits).await;
    assert!(matches!(not_ready, Err(CheckpointError::NotReady { window: 60 })));
    bucket.put(&ready_key(60, 90), "", &RetryPolicy::default()).await.unwrap();
    assert_eq!(fetch_with(&bucket, 60, cache.path(), &limits).await.unwrap(), fetched);
}

#[tokio::test]
async fn whatever_cannot_be_trusted_is_refused_and_leaves_nothing() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let cache = tempfile::tempdir().unwrap();
    for window in [30, 60, 90, 120, 150, 180] {
        published(&bucket, window).await;
    }
    let limits = FetchLimits::default();
    let fetch = async |window| fetch_with(&bucket, window, cache.path(), &limits).await.unwrap_err();

    replace_metadata(&bucket, 30, |document| document["weights_hash"] = json!("0".repeat(32))).await;
    assert!(matches!(fetch(30).await, CheckpointError::WrongWeights { .. }));
    replace_metadata(&bucket, 60, |document| document["file_manifest"] = json!({})).await;
    assert!(matches!(fetch(60).await, CheckpointError::Unverifiable { .. }));
    bucket.put(&full_key(90, "config.json"), "other", &RetryPolicy::default()).await.unwrap();
    assert!(matches!(fetch(90).await, CheckpointError::WrongHash { .. }));
    bucket.delete(&full_key(120, "config.json")).await.unwrap();
    assert!(matches!(fetch(120).await, CheckpointError::MissingFile { .. }));
    replace_metadata(&bucket, 150, |document| document["file_manifest"]["../../escape"] = json!("0".repeat(64))).await;
    assert!(matches!(fetch(150).await, CheckpointError::Metadata { .. }));
    bucket.delete(&full_key(180, "metadata.json")).await.unwrap();
    assert!(matches!(fetch(180).await, CheckpointError::Unverifiable { .. }));
    bucket.put(&delta_key(210, "metadata.json"), "{}", &RetryPolicy::default()).await.unwrap();
    bucket.put(&ready_key(210, 210), "", &RetryPolicy::default()).await.unwrap();
    assert!(matches!(fetch(210).await, CheckpointError::Unverifiable { .. }), "its manifest is empty");
    assert!(matches!(fetch(240).await, CheckpointError::NotReady { .. }));
    assert!(entries(cache.path()).is_empty(), "{:?}", entries(cache.path()));
}

/// Fetches, and says how many files' bytes were asked for.
async fn fetch_counted(
    bucket: &Bucket,
    window: u64,
    cache_root: &Path,
    limits: &FetchLimits,
) -> (Result<CachedCheckpoint, CheckpointError>, usize) {
    let files = AtomicUsize::new(0);
    let observer = |event| {
        if let FetchEvent::Download { files: wanted, .. } = event {
            files.fetch_add(wanted, Ordering::Relaxed);
        }
    };
    let fetched = Fetcher { bucket, cache_root, limits, observer: &observer }.fetch(window).await;
    (fetched, files.into_inner())
}

#[tokio::test]
async fn what_was_found_damaged_is_not_downloaded_again_until_it_is_published_again() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let cache = tempfile::tempdir().unwrap();
    let limits = FetchLimits::default();
    let fetch = async |window| fetch_counted(&bucket, window, cache.path(), &limits).await;
    let (metadata, _) = published(&bucket, 30).await;
    bucket.put(&full_key(30, "config.json"), "other", &RetryPolicy::default()).await.unwrap();
    assert!(matches!(fetch(30).await, (Err(CheckpointError::WrongHash { .. }), 1..)));
    assert!(matches!(fetch(30).await, (Err(CheckpointError::WrongHash { .. }), 0)));
    let config = std::fs::read(model_dir().path().join("config.json")).unwrap();
    bucket.put(&full_key(30, "config.json"), config, &RetryPolicy::default()).await.unwrap();
    assert_eq!(fetch(30).await.0.unwrap().metadata, metadata);

    // Weights are hashed here: this host has to find the same twice before it blames the trainer for good.
    let (metadata, _) = published(&bucket, 60).await;
    replace_metadata(&bucket, 60, |document| document["weights_hash"] = json!("0".repeat(32))).await;
    for _ in 0..2 {
        assert!(matches!(fetch(60).await, (Err(CheckpointError::WrongWeights { .. }), 1..)));
    }
    assert!(matches!(fetch(60).await, (Err(CheckpointError::WrongWeights { .. }), 0)));
    replace_metadata(&bucket, 60, |document| document["weights_hash"] = json!(metadata.weights_hash)).await;
    assert_eq!(fetch(60).await.0.unwrap().metadata.weights_hash, metadata.weights_hash);
}

/// Of two that want the same, one downloads it, and the other one uses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_fetch_into_one_cache_download_it_once() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let hashes = publish_chain(&bucket, 2).await;
    let (cache, limits) = (tempfile::tempdir().unwrap(), FetchLimits::default());
    let fetch = || fetch_counted(&bucket, 60, cache.path(), &limits);
    let ((first, files), (second, more)) = tokio::join!(fetch(), fetch());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!((&first, weights_hash(&first.dir).unwrap()), (&second, hashes[2].clone()));
    let (alone, alone_files) = fetch_counted(&bucket, 60, tempfile::tempdir().unwrap().path(), &limits).await;
    alone.unwrap();
    assert_eq!(files + more, alone_files);
    // What one of them uses, nobody removes.
    drop(first);
    clean(cache.path(), &[]).unwrap();
    assert!(verify_dir(&second.dir).unwrap().is_some());
    let dir = second.dir.clone();
    drop(second);
    clean(cache.path(), &[]).unwrap();
    assert!(!dir.exists());
}

/// The holder of the lock is stopped, or hangs: whoever comes next has a checkpoint all the same.
#[tokio::test]
async fn one_that_does_not_get_on_is_not_waited_for() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let (metadata, _) = published(&bucket, 30).await;
    let cache = tempfile::tempdir().unwrap();
    let held = cache.path().join("checkpoint-30.partial");
    std::fs::create_dir(&held).unwrap();
    let holder = std::fs::File::open(&held).unwrap();
    holder.try_lock().unwrap();
    let limits = FetchLimits { patience: std::time::Duration::from_millis(300), ..FetchLimits::default() };
    assert_eq!(fetch_with(&bucket, 30, cache.path(), &limits).await.unwrap().metadata, metadata);
    assert_eq!(entries(cache.path()), ["checkpoint-30", "checkpoint-30.partial"]);
    drop(holder);
    clean(cache.path(), &[30]).unwrap();
    assert_eq!(entries(cache.path()), ["checkpoint-30"]);
}

/// What is verified is what lies on the disk, not what was received: somebody may write there as well.
#[tokio::test]
async fn what_another_writer_adds_is_found_before_anything_has_the_name_of_a_checkpoint() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let (metadata, _) = published(&bucket, 30).await;
    let (cache, limits) = (tempfile::tempdir().unwrap(), FetchLimits::default());
    let observer = |event| {
        let FetchEvent::Received { .. } = event else { return };
        for file in std::fs::read_dir(cache.path().join("checkpoint-30.partial")).unwrap().flatten() {
            let mut file = std::fs::File::options().append(true).open(file.path()).unwrap();
            std::io::Write::write_all(&mut file, b"of another writer").unwrap();
        }
    };
    let fetcher = Fetcher { bucket: &bucket, cache_root: cache.path(), limits: &limits, observer: &observer };
    let error = fetcher.fetch(30).await.unwrap_err();
    assert!(matches!(error, CheckpointError::Altered { .. }), "{error}");
    assert_eq!(entries(cache.path()), ["checkpoint-30.partial"]);
    // Nobody is to blame for what is published.
    assert_eq!(fetch_with(&bucket, 30, cache.path(), &limits).await.unwrap().metadata, metadata);
}

/// A trainer that hashes the live state of a model with tied embeddings counts its head twice (grail-checkpoints 4).
#[tokio::test]
async fn a_tied_full_is_taken_under_the_hash_of_its_files_and_of_the_live_state_and_no_other() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let cache = tempfile::tempdir().unwrap();
    let limits = FetchLimits::default();
    let (embedding, norm) = (&b"embedding"[..], &b"norm"[..]);
    let of_files = hash_tensors([("model.embed_tokens.weight", embedding), ("model.norm.weight", norm)]);
    let of_state =
        hash_tensors([("lm_head.weight", embedding), ("model.embed_tokens.weight", embedding), ("model.norm.weight", norm)]);
    for (window, tied, hash) in [(30, true, &of_state), (60, true, &of_files), (90, false, &of_state), (120, false, &of_files)] {
        let model = model_dir();
        std::fs::write(model.path().join("config.json"), json!({"tie_word_embeddings": tied}).to_string()).unwrap();
        let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        std::fs::write(model.path().join(first), safetensors("model.norm.weight", norm)).unwrap();
        std::fs::write(model.path().join(second), safetensors("model.embed_tokens.weight", embedding)).unwrap();
        let index = json!({"weight_map": {"model.norm.weight": first, "model.embed_tokens.weight": second}});
        std::fs::write(model.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        publish_full(&bucket, model.path(), &terms(window), None, &Meter::default()).await.unwrap();
        replace_metadata(&bucket, window, |document| document["weights_hash"] = json!(hash)).await;
        let fetched = fetch_with(&bucket, window, cache.path(), &limits).await;
        if !tied && *hash == of_state {
            assert!(matches!(fetched, Err(CheckpointError::WrongWeights { .. })), "{fetched:?}");
            continue;
        }
        // What loads the files compares with what is in them, after a restart too.
        assert_eq!(fetched.unwrap().metadata.weights_hash.as_ref(), Some(&of_files));
        let again = fetch_with(&bucket, window, cache.path(), &limits).await.unwrap();
        assert_eq!(again.metadata.weights_hash.as_ref(), Some(&of_files));
    }
}

/// While something of a chain is missing, further looks ask and download nothing; with it, all is had.
#[tokio::test]
async fn a_chain_that_lacks_a_file_costs_no_bytes_until_it_is_there() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let hashes = publish_chain(&bucket, 3).await;
    for missing in [delta_key(60, "delta_sparse.bin.zst"), full_key(0, "model.safetensors"), ready_key(0, 0)] {
        let cache = tempfile::tempdir().unwrap();
        let limits = FetchLimits::default();
        let bytes = bucket.get(&missing, 1 << 20).await.unwrap();
        bucket.delete(&missing).await.unwrap();
        for _ in 0..2 {
            let (fetched, files) = fetch_counted(&bucket, 90, cache.path(), &limits).await;
            let lacking = matches!(fetched, Err(CheckpointError::MissingFile { .. } | CheckpointError::NotReady { window: 0 }));
            assert!(lacking && files == 0, "{missing}: {files} files, {fetched:?}");
        }
        bucket.put(&missing, bytes, &RetryPolicy::default()).await.unwrap();
        let fetched = fetch_counted(&bucket, 90, cache.path(), &limits).await.0.unwrap();
        assert_eq!(weights_hash(&fetched.dir).unwrap(), hashes[3]);
    }
    // A damaged link is refused before the others are asked for again.
    let (cache, limits) = (tempfile::tempdir().unwrap(), FetchLimits::default());
    bucket.put(&delta_key(60, "delta_sparse.bin.zst"), "other", &RetryPolicy::default()).await.unwrap();
    assert!(matches!(fetch_counted(&bucket, 90, cache.path(), &limits).await, (Err(CheckpointError::WrongHash { .. }), 1..)));
    assert!(matches!(fetch_counted(&bucket, 90, cache.path(), &limits).await, (Err(CheckpointError::WrongHash { .. }), 0)));
}

/// Its files are the manifest's: downloading them again would bring the same.
#[tokio::test]
async fn weights_that_are_no_safetensors_and_gzip_that_cannot_be_unpacked_are_refused_for_good() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let (cache, limits) = (tempfile::tempdir().unwrap(), FetchLimits::default());
    published(&bucket, 30).await;
    let (key, policy) = (full_key(30, "model-00002-of-00002.safetensors"), RetryPolicy::default());
    bucket.put(&key, "no weights", &policy).await.unwrap();
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(b"no weights"));
    replace_metadata(&bucket, 30, |document| document["file_manifest"]["model-00002-of-00002.safetensors"] = json!(digest)).await;
    assert!(matches!(fetch_counted(&bucket, 30, cache.path(), &limits).await, (Err(CheckpointError::Unverifiable { .. }), 1..)));
    assert!(matches!(fetch_counted(&bucket, 30, cache.path(), &limits).await, (Err(CheckpointError::Unverifiable { .. }), 0)));

    published(&bucket, 60).await;
    bucket.delete(&full_key(60, "config.json")).await.unwrap();
    bucket.put(&full_key(60, "config.json.gz"), "no gzip", &policy).await.unwrap();
    assert!(matches!(fetch_counted(&bucket, 60, cache.path(), &limits).await, (Err(CheckpointError::WrongHash { .. }), 1..)));
    assert!(matches!(fetch_counted(&bucket, 60, cache.path(), &limits).await, (Err(CheckpointError::WrongHash { .. }), 0)));
    assert!(entries(cache.path()).is_empty(), "{:?}", entries(cache.path()));
}

#[tokio::test]
async fn a_restart_knows_what_was_found_damaged_in_this_bucket_and_no_other() {
    let fixture = Fixture::start().await;
    let (bucket, other) = (fixture.bucket("writer"), Fixture::start().await);
    let cache = tempfile::tempdir().unwrap();
    let file = cache.path().join("refused.json");
    // Each fetch as by a process of its own.
    let fetch = async |bucket: &Bucket, window| {
        let limits = FetchLimits { refused: Refused::kept_in(&file, bucket), ..FetchLimits::default() };
        fetch_counted(bucket, window, cache.path(), &limits).await
    };
    published(&bucket, 30).await;
    bucket.put(&full_key(30, "config.json"), "other", &RetryPolicy::default()).await.unwrap();
    assert!(matches!(fetch(&bucket, 30).await, (Err(CheckpointError::WrongHash { .. }), 1..)));
    assert!(matches!(fetch(&bucket, 30).await, (Err(CheckpointError::WrongHash { .. }), 0)));

    published(&bucket, 60).await;
    replace_metadata(&bucket, 60, |document| document["weights_hash"] = json!("0".repeat(32))).await;
    for _ in 0..2 {
        assert!(matches!(fetch(&bucket, 60).await, (Err(CheckpointError::WrongWeights { .. }), 1..)), "a second look is due");
    }
    assert!(matches!(fetch(&bucket, 60).await, (Err(CheckpointError::WrongWeights { .. }), 0)));

    let other = other.bucket("writer");
    let (metadata, _) = published(&other, 30).await;
    assert_eq!(fetch(&other, 30).await.0.unwrap().metadata, metadata);
    std::fs::write(&file, "{").unwrap();
    assert!(matches!(fetch(&bucket, 60).await, (Err(CheckpointError::WrongWeights { .. }), 1..)), "a damaged file is none");
}

#[tokio::test]
async fn limits_and_signatures_are_kept() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let cache = tempfile::tempdir().unwrap();
    let (_, trainer) = published(&bucket, 30).await;
    let small = FetchLimits { total_bytes: 100, ..FetchLimits::default() };
    let error = fetch_with(&bucket, 30, cache.path(), &small).await.unwrap_err();
    assert!(matches!(error, CheckpointError::TooLarge { .. }), "{error}");
    let bob = Hotkey::from_uri("//Bob").unwrap();
    for trainer in [bob.address(), &trainer] {
        replace_metadata(&bucket, 30, |document| document["git_commit"] = json!("changed after signing")).await;
        let limits = FetchLimits { trainer: Some(trainer.to_owned()), ..FetchLimits::default() };
        let error = fetch_with(&bucket, 30, cache.path(), &limits).await.unwrap_err();
        assert!(matches!(error, CheckpointError::WrongSignature { .. }), "{error}");
    }
}

#[tokio::test]
async fn incomplete_directories_and_terms_are_not_published() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let dir = model_dir();
    let refused =
        async |terms: &PublishTerms| publish_full(&bucket, dir.path(), terms, None, &Meter::default()).await.unwrap_err();
    let early = PublishTerms { ready_window: 0, ..terms(30) };
    assert!(matches!(refused(&early).await, CheckpointError::Unpublishable { .. }));
    let vague = PublishTerms { thinking_mode: String::new(), ..terms(30) };
    assert!(matches!(refused(&vague).await, CheckpointError::Incomplete { .. }));
    std::fs::write(dir.path().join("model-00002-of-00002.safetensors"), "broken").unwrap();
    assert!(matches!(refused(&terms(30)).await, CheckpointError::Weights { .. }));
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(refused(&terms(30)).await.to_string().contains("tokenizer.json"));
    assert!(bucket.list("").await.unwrap().is_empty(), "nothing was sent");
}

/// A model of two bf16 tensors whose elements are drawn from `seed`; of the second, only every `step`-th depends on it.
fn weights(seed: u64, step: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"chat_template": "x"}"#).unwrap();
    let element = |at: u64| ((at * 31 + if at.is_multiple_of(step) { seed } else { 0 }) as u16 & 0x7fff).to_le_bytes();
    let bytes: Vec<u8> = (0..30_000).flat_map(element).collect();
    let header = json!({
        "a": {"dtype": "BF16", "shape": [300], "data_offsets": [0, 600]},
        "b": {"dtype": "BF16", "shape": [99, 300], "data_offsets": [600, 60_000]},
    })
    .to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes].concat();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    dir
}

async fn publish_chain(bucket: &Bucket, links: u64) -> Vec<String> {
    let models: Vec<_> = (0..=links).map(|seed| weights(seed, 50)).collect();
    let full = publish_full(bucket, models[0].path(), &terms(0), None, &Meter::default()).await.unwrap();
    let mut hashes = vec![full.weights_hash.unwrap()];
    for (link, pair) in (1..).zip(models.windows(2)) {
        let before = Predecessor { dir: pair[0].path().to_owned(), window: (link - 1) * 30, anchor_window: 0 };
        let published =
            publish_delta(bucket, pair[1].path(), &before, sparse::SparseFormat::V31, &terms(link * 30), None, &Meter::default())
                .await
                .unwrap();
        hashes.push(published.weights_hash.unwrap());
    }
    hashes
}

#[tokio::test]
async fn a_chain_is_rebuilt_cold_and_warm_and_the_changes_are_told_before_the_directory_is_there() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let hashes = publish_chain(&bucket, 3).await;
    for warm in [false, true] {
        let cache = tempfile::tempdir().unwrap();
        let limits = FetchLimits::default();
        if warm {
            fetch_with(&bucket, 60, cache.path(), &limits).await.unwrap();
        }
        let told = std::sync::Mutex::new(Vec::new());
        let observer = |event| {
            if let FetchEvent::Changes(changes) = event {
                assert!(!checkpoint_dir(cache.path(), 90).exists());
                assert!(changes.files.iter().all(|file| file.exists()));
                told.lock().unwrap().push(changes);
            }
        };
        let fetcher = Fetcher { bucket: &bucket, cache_root: cache.path(), limits: &limits, observer: &observer };
        let fetched = fetcher.fetch(90).await.unwrap();
        assert_eq!(weights_hash(&fetched.dir).unwrap(), hashes[3]);
        assert_eq!(fetched.metadata.mining_terms().unwrap().env_id, "gsm8k");
        let told = told.into_inner().unwrap();
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].base_window, told[0].files.len()), if warm { (60, 1) } else { (0, 3) });
        clean(cache.path(), &[90]).unwrap();
        assert_eq!(entries(cache.path()), ["checkpoint-90", "delta-90"]);
    }
}

#[tokio::test]
async fn a_damaged_base_is_replaced_and_not_taken_for_a_damaged_delta() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let hashes = publish_chain(&bucket, 1).await;
    let cache = tempfile::tempdir().unwrap();
    let limits = FetchLimits::default();
    let base = fetch_with(&bucket, 0, cache.path(), &limits).await.unwrap().dir.join("model.safetensors");
    let mut bytes = std::fs::read(&base).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&base, bytes).unwrap();
    let fetched = fetch_with(&bucket, 30, cache.path(), &limits).await.unwrap();
    assert_eq!(weights_hash(&fetched.dir).unwrap(), hashes[1]);
    assert!(verify_dir(&checkpoint_dir(cache.path(), 0)).unwrap().is_some());
}

#[tokio::test]
async fn of_two_kinds_the_one_that_can_be_used_is_used_with_the_terms_of_the_delta() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    publish_chain(&bucket, 1).await;
    let other = PublishTerms { env_id: "math".into(), ..terms(30) };
    let full = publish_full(&bucket, weights(1, 50).path(), &other, None, &Meter::default()).await.unwrap();
    let limits = FetchLimits::default();
    for damage in [None, Some(full_key(30, "model.safetensors")), Some(delta_key(30, "delta_sparse.bin.zst"))] {
        let cache = tempfile::tempdir().unwrap();
        let saved = match &damage {
            Some(key) => Some(bucket.get(key, 1 << 20).await.unwrap()),
            None => None,
        };
        if let Some(key) = &damage {
            bucket.delete(key).await.unwrap();
        }
        let fetched = fetch_with(&bucket, 30, cache.path(), &limits).await.unwrap();
        assert_eq!(Some(weights_hash(&fetched.dir).unwrap()), full.weights_hash);
        assert_eq!(fetched.metadata.env_id.as_deref(), Some("gsm8k"), "{damage:?}");
        assert_eq!(
            fetch_with(&bucket, 30, cache.path(), &limits).await.unwrap().metadata,
            fetched.metadata,
            "from the cache too"
        );
        if let (Some(key), Some(bytes)) = (&damage, saved) {
            bucket.put(key, bytes, &RetryPolicy::default()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn chains_that_go_forward_or_never_end_are_refused() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    publish_chain(&bucket, 2).await;
    let cache = tempfile::tempdir().unwrap();
    let limits = FetchLimits::default();
    let change = async |window: u64, prev: u64| {
        let key = delta_key(window, "metadata.json");
        let mut document: Value = serde_json::from_slice(&bucket.get(&key, 1 << 20).await.unwrap()).unwrap();
        document["prev_window"] = json!(prev);
        bucket.put(&key, document.to_string(), &RetryPolicy::default()).await.unwrap();
    };
    change(30, 60).await;
    for window in [30, 60] {
        let error = fetch_with(&bucket, window, cache.path(), &limits).await.unwrap_err();
        assert!(matches!(error, CheckpointError::Unverifiable { .. }) && error.to_string().contains("not before"), "{error}");
    }
    let link = bucket.get(&delta_key(30, "metadata.json"), 1 << 20).await.unwrap();
    for window in (90..90 + 70 * 30).step_by(30) {
        let mut document: Value = serde_json::from_slice(&link).unwrap();
        (document["prev_window"], document["window"]) = (json!(window - 30), json!(window));
        bucket.put(&delta_key(window, "metadata.json"), document.to_string(), &RetryPolicy::default()).await.unwrap();
    }
    bucket.put(&ready_key(2160, 2160), "", &RetryPolicy::default()).await.unwrap();
    let error = fetch_with(&bucket, 2160, cache.path(), &limits).await.unwrap_err();
    assert!(error.to_string().contains("more than 64 links"), "{error}");
    assert!(entries(cache.path()).is_empty());
}
