//! A process that fetches a checkpoint is killed at one change of the disk after the other; whatever it leaves, nothing that
//! looks like a checkpoint is anything but a whole one, and the next fetch succeeds. And two processes fetch into one cache, each the
//! first of its pid namespace, as two containers do.

// The lints spare test functions only, not what they share.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use grail_process::Meter;
use grail_store::bucket::{Bucket, BucketSettings, Secret, TransferLimits};
use grail_store::checkpoint::sparse::SparseFormat;
use grail_store::checkpoint::{
    CachedCheckpoint, FetchEvent, FetchLimits, Fetcher, Predecessor, PublishTerms, checkpoint_dir, clean, publish_delta,
    publish_full, verify_dir, weights_hash,
};
use grail_store::local_server::LocalBucketServer;
use serde_json::json;

const TARGET: u64 = 60;

fn bucket(endpoint: &str) -> Bucket {
    let settings = BucketSettings {
        endpoint: endpoint.into(),
        region: "auto".into(),
        bucket: "trainer".into(),
        access_key_id: "key".into(),
        secret_access_key: Secret::new("secret"),
        limits: TransferLimits::default(),
    };
    Bucket::new(&settings).unwrap()
}

async fn fetch(bucket: &Bucket, cache_root: &Path) -> CachedCheckpoint {
    let limits = FetchLimits::default();
    // A process of its own tells by a file that it waits for another one.
    let observer = |event| {
        if let (FetchEvent::Waits { .. }, Ok(file)) = (event, std::env::var("WAITS")) {
            std::fs::write(file, "").unwrap();
        }
    };
    Fetcher { bucket, cache_root, limits: &limits, observer: &observer }.fetch(TARGET).await.unwrap()
}

fn model(seed: u8) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..40_000_u32).map(|at| if at % 100 == 0 { seed } else { at as u8 & 0x3f }).collect();
    let header = json!({"w": {"dtype": "BF16", "shape": [200, 100], "data_offsets": [0, 40_000]}}).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::write(dir.path().join(name), "{}").unwrap();
    }
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"chat_template": "x"}"#).unwrap();
    dir
}

fn terms(window: u64) -> PublishTerms {
    PublishTerms {
        window,
        ready_window: window,
        model_name: "m".into(),
        env_id: "gsm8k".into(),
        env_params: json!({}),
        generation_params: json!({"max_tokens": 1, "temperature": 1, "top_p": 1, "top_k": 0, "repetition_penalty": 1}),
        thinking_mode: "native".into(),
        training_config: json!({}),
        git_commit: "unknown".into(),
        created_at: 0.0,
        parent_window: None,
    }
}

/// A FULL and two DELTAs behind it; returns the last one's weights hash.
async fn publish(bucket: &Bucket) -> String {
    let models: Vec<_> = (1..4).map(model).collect();
    publish_full(bucket, models[0].path(), &terms(0), None, &Meter::default()).await.unwrap();
    let mut hash = None;
    for (window, pair) in [30, TARGET].into_iter().zip(models.windows(2)) {
        let before = Predecessor { dir: pair[0].path().into(), window: window - 30, anchor_window: 0 };
        let published =
            publish_delta(bucket, pair[1].path(), &before, SparseFormat::V31, &terms(window), None, &Meter::default())
                .await
                .unwrap();
        hash = published.weights_hash;
    }
    hash.unwrap()
}

fn library(folder: &Path) -> PathBuf {
    let library = folder.join("killer.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/killed_fetch/preload.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(built.unwrap().success());
    library
}

fn run_child(library: &Path, endpoint: &str, cache: &Path, kill_at: u32) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.stdout(Stdio::null()).stderr(Stdio::null());
    child.env("LD_PRELOAD", library).env("ENDPOINT", endpoint).env("KILL_BELOW", cache).env("KILL_AT", kill_at.to_string());
    child.status().unwrap()
}

/// A cache with a damaged checkpoint under the target's name.
fn damaged_cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    let dir = checkpoint_dir(cache.path(), TARGET);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("metadata.json"), json!({"file_manifest": {"config.json": "0".repeat(64)}}).to_string()).unwrap();
    cache
}

/// What has a checkpoint's name is whole; the damaged one that lay there before may still be there.
fn assert_whole(cache: &Path, kill_at: u32) {
    for window in [0, 30, TARGET] {
        let dir = checkpoint_dir(cache, window);
        let damaged = window == TARGET && !dir.join("model.safetensors").exists();
        if dir.exists() && !damaged {
            assert!(verify_dir(&dir).unwrap().is_some(), "checkpoint {window} after a kill at change {kill_at}");
        }
    }
}

/// This program is both sides: with the variables of [`run_child`] it is the process that is killed.
fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match (std::env::var("ENDPOINT"), std::env::var("KILL_BELOW")) {
        (Ok(endpoint), Ok(cache)) => drop(runtime.block_on(fetch(&bucket(&endpoint), Path::new(&cache)))),
        _ => {
            runtime.block_on(a_fetch_that_is_killed_anywhere_leaves_what_the_next_one_goes_on_with());
            runtime.block_on(two_writers(Locks::Work));
            runtime.block_on(two_writers(Locks::Refused));
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Locks {
    Work,
    Refused,
}

/// Starts a process that fetches, as the first of a pid namespace of its own where the kernel allows that.
fn start_child(library: &Path, endpoint: &str, cache: &Path, more: &[(&str, &Path)]) -> Child {
    let namespace = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
    let allowed = Command::new("unshare").args(namespace).arg("true").status().is_ok_and(|status| status.success());
    let mut child = if allowed {
        let mut child = Command::new("unshare");
        child.args(namespace).arg("env").arg(format!("LD_PRELOAD={}", library.display())).arg(std::env::current_exe().unwrap());
        child
    } else {
        let told = b"SKIPPED one pid for two: this kernel gives no pid namespaces here, the two processes have different pids.\n";
        std::io::Write::write_all(&mut std::io::stderr(), told).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.env("LD_PRELOAD", library);
        child
    };
    child.env("ENDPOINT", endpoint).env("KILL_BELOW", cache).envs(more.iter().copied());
    child.spawn().unwrap()
}

fn ended(child: &mut Child, who: &str) {
    let end = Instant::now() + Duration::from_secs(120);
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{who}: {status:?}");
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    panic!("{who} did not end within two minutes");
}

fn appears(file: &Path, what: &str) {
    let end = Instant::now() + Duration::from_secs(120);
    while !file.exists() {
        assert!(Instant::now() < end, "{what}: not within two minutes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first process is held at one change of the disk after the other, in the middle of writing among them. The second one waits
/// for it and uses what it made; where locks do not work, it makes its own, and both get to a whole checkpoint.
async fn two_writers(locks: Locks) {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path());
    let address = "127.0.0.1:0".parse().unwrap();
    let server = LocalBucketServer::start(&folder.path().join("buckets"), address, "key", "secret", &["trainer"]).await.unwrap();
    let hash = publish(&bucket(&server.endpoint())).await;
    // A link being written, the base, the whole one.
    for hold_at in ["4", "12", "24"] {
        let (cache, endpoint, library) = (tempfile::tempdir().unwrap(), server.endpoint(), library.clone());
        let (held, waits) = (folder.path().join(format!("held-{hold_at}")), folder.path().join(format!("waits-{hold_at}")));
        let place = cache.path().to_owned();
        let play = move || {
            std::fs::write(&held, "").unwrap();
            let refused = [("NO_LOCKS", Path::new("1"))];
            let refused = if locks == Locks::Refused { &refused[..] } else { &[] };
            let first_one = [&[("KILL_AT", Path::new(hold_at)), ("HOLD", held.as_path())], refused].concat();
            let mut first = start_child(&library, &endpoint, &place, &first_one);
            appears(&held.with_file_name(format!("held-{hold_at}.here")), "the first process at its change of the disk");
            let second_one = [&[("KILL_AT", Path::new("0")), ("WAITS", waits.as_path())], refused].concat();
            let mut second = start_child(&library, &endpoint, &place, &second_one);
            match locks {
                Locks::Work => appears(&waits, "the second process waits"),
                Locks::Refused => ended(&mut second, "the second process, in a folder of its own"),
            }
            std::fs::remove_file(&held).unwrap();
            ended(&mut first, "the first process");
            ended(&mut second, "the second process");
        };
        tokio::task::spawn_blocking(play).await.unwrap();
        assert_whole(cache.path(), 0);
        assert_eq!(weights_hash(&checkpoint_dir(cache.path(), TARGET)).unwrap(), hash, "held at change {hold_at}");
        clean(cache.path(), &[TARGET]).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["checkpoint-60", "delta-60"], "held at change {hold_at}");
    }
    match locks {
        Locks::Work => println!("Two processes shared a cache: the second one waited, and used what the first one made."),
        Locks::Refused => println!("Two processes shared a cache without locks: each made its own."),
    }
}

async fn a_fetch_that_is_killed_anywhere_leaves_what_the_next_one_goes_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path());
    let address = "127.0.0.1:0".parse().unwrap();
    let server = LocalBucketServer::start(&folder.path().join("buckets"), address, "key", "secret", &["trainer"]).await.unwrap();
    let bucket = bucket(&server.endpoint());
    let hash = publish(&bucket).await;
    let mut kills = 0;
    // A cache lives through two kills before it is finished here, so that what a kill leaves is met by a kill too.
    let mut cache = damaged_cache();
    for kill_at in 1.. {
        let (library, endpoint, place) = (library.clone(), server.endpoint(), cache.path().to_owned());
        let status = tokio::task::spawn_blocking(move || run_child(&library, &endpoint, &place, kill_at)).await.unwrap();
        assert_whole(cache.path(), kill_at);
        if status.success() {
            assert!(kill_at > 20, "a fetch changes the disk more often");
            break;
        }
        assert_eq!(status.signal(), Some(9), "{status:?}");
        kills += 1;
        if kills % 2 == 0 {
            let fetched = fetch(&bucket, cache.path()).await;
            assert_eq!(weights_hash(&fetched.dir).unwrap(), hash, "after a kill at change {kill_at}");
            clean(cache.path(), &[TARGET]).unwrap();
            let mut left: Vec<_> = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            left.sort();
            assert_eq!(left, ["checkpoint-60", "delta-60"], "after a kill at change {kill_at}");
            cache = damaged_cache();
        }
    }
    println!("A fetch was killed at each of {kills} changes of the disk; the next one went on each time.");
}
