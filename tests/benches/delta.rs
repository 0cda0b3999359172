//! A checkpoint of 500 MB of which one element in a hundred changed: from the trainer's bucket into resident weights and onto the
//! disk, beside the network's way in Python. `scripts/measure_delta.py` runs it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark measures time and may panic; the rules are for the product"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use grail_model::{Device, LoadOptions, Model, Precision, startup};
use grail_process::Meter;
use grail_store::bucket::{Bucket, BucketSettings, Secret, TransferLimits};
use grail_store::checkpoint::sparse::SparseFormat;
use grail_store::checkpoint::{
    FetchEvent, FetchLimits, Fetcher, Predecessor, PublishTerms, checkpoint_dir, delta_key, publish_delta, publish_full,
};
use grail_store::local_server::LocalBucketServer;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const HIDDEN: usize = 896;
const INNER: usize = 4864;
const VOCABULARY: usize = 40_000;
const KEY_VALUE: usize = 128;
const LAYERS: usize = 12;
/// One element in so many changes.
const STEP: u64 = 100;

fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let parts = [
            ("input_layernorm.weight", vec![HIDDEN]),
            ("post_attention_layernorm.weight", vec![HIDDEN]),
            ("self_attn.q_proj.weight", vec![HIDDEN, HIDDEN]),
            ("self_attn.q_proj.bias", vec![HIDDEN]),
            ("self_attn.k_proj.weight", vec![KEY_VALUE, HIDDEN]),
            ("self_attn.k_proj.bias", vec![KEY_VALUE]),
            ("self_attn.v_proj.weight", vec![KEY_VALUE, HIDDEN]),
            ("self_attn.v_proj.bias", vec![KEY_VALUE]),
            ("self_attn.o_proj.weight", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj.weight", vec![INNER, HIDDEN]),
            ("mlp.up_proj.weight", vec![INNER, HIDDEN]),
            ("mlp.down_proj.weight", vec![HIDDEN, INNER]),
        ];
        shapes.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}"), shape)));
    }
    shapes
}

/// Random bf16 numbers; with `changed`, one in a hundred of them is another. Returns the bytes of the tensors.
fn write(directory: &Path, changed: bool) -> usize {
    let config = json!({
        "model_type": "qwen2", "hidden_act": "silu", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 4096, "eos_token_id": 2, "tie_word_embeddings": false,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    std::fs::write(directory.join("tokenizer.json"), "{}").unwrap();
    std::fs::write(directory.join("tokenizer_config.json"), r#"{"chat_template": "x"}"#).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut element = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Without the highest bit of the exponent nothing is infinite.
        let value = (state as u16) & 0xbfff;
        if changed && (state >> 32).is_multiple_of(STEP) { value ^ 1 } else { value }
    };
    let shapes = shapes();
    let data: Vec<Vec<u8>> =
        shapes.iter().map(|(_, shape)| (0..shape.iter().product()).flat_map(|_| element().to_le_bytes()).collect()).collect();
    let views = shapes
        .iter()
        .zip(&data)
        .map(|((name, shape), bytes)| (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors")).unwrap();
    data.iter().map(Vec::len).sum()
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

/// A field of this process's status in MB.
fn status(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
}

/// Bytes that this process asked files for, in MB.
fn read_so_far() -> f64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    text.lines().next().unwrap().split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e6
}

type Figures<const COUNT: usize> = [(&'static str, f64); COUNT];

/// The worker's part of a roll and the supervisor's.
#[derive(Clone, Copy, PartialEq)]
enum Parts {
    /// One after the other, as in Python: what each takes alone.
    InTurns,
    /// At the same time, as on a host.
    Beside,
}

/// One roll from checkpoint 0, which is resident and cached, to checkpoint 30. Seconds to download, and from then on to: changes
/// on the disk, weights resident and confirmed, directory complete (without the worker's part, where parts take turns). And peak
/// memory and bytes read, MB.
async fn roll(bucket: &Bucket, cache: &Path, model: Model, parts: Parts) -> (Model, Figures<4>, Figures<2>) {
    let limits = FetchLimits::default();
    // Resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (memory, read) = (status("VmRSS"), read_so_far());
    let started = Instant::now();
    // The body has arrived; what comes before is the network's and the bucket's time.
    let arrived = Mutex::new(started);
    let resident = Mutex::new(Some(model));
    let worker = Mutex::new(None);
    let observer = |event| {
        if let FetchEvent::Received { .. } = event {
            *arrived.lock().unwrap() = Instant::now();
        }
        if let FetchEvent::Changes(changes) = event {
            let began = *arrived.lock().unwrap();
            let told = began.elapsed().as_secs_f64();
            let mut model = resident.lock().unwrap().take().unwrap();
            let apply = move || {
                model.apply_files(&changes.files, &changes.weights_hash).unwrap();
                (told, began.elapsed().as_secs_f64(), model)
            };
            let thread = std::thread::spawn(apply);
            if parts == Parts::InTurns {
                while !thread.is_finished() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            *worker.lock().unwrap() = Some(thread);
        }
    };
    Fetcher { bucket, cache_root: cache, limits: &limits, observer: &observer }.fetch(30).await.unwrap();
    let arrived = arrived.into_inner().unwrap();
    let whole = arrived.elapsed().as_secs_f64();
    let (told, held, model) = worker.into_inner().unwrap().unwrap().join().unwrap();
    let directory = if parts == Parts::InTurns { whole - (held - told) } else { whole };
    let downloaded = (arrived - started).as_secs_f64();
    let seconds = [("downloaded", downloaded), ("decoded", told), ("resident", held), ("directory", directory)];
    let costs = [("peak", status("VmHWM") - memory), ("read", read_so_far() - read)];
    (model, seconds, costs)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let python = std::env::var("MEASURE_PYTHON").expect("run scripts/measure_delta.py");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/measure_delta.py");
    let rounds: usize = std::env::var("MEASURE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    startup(Some(2));
    let (one, other, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = write(one.path(), false);
    write(other.path(), true);
    let address = "127.0.0.1:0".parse().unwrap();
    let buckets = host.path().join("buckets");
    let server = LocalBucketServer::start(&buckets, address, "key", "secret", &["trainer"]).await.unwrap();
    let bucket = Bucket::new(&BucketSettings {
        endpoint: server.endpoint(),
        region: "auto".into(),
        bucket: "trainer".into(),
        access_key_id: "key".into(),
        secret_access_key: Secret::new("secret"),
        limits: TransferLimits::default(),
    })
    .unwrap();
    publish_full(&bucket, one.path(), &terms(0), None, &Meter::default()).await.unwrap();
    let before = Predecessor { dir: one.path().into(), window: 0, anchor_window: 0 };
    let published =
        publish_delta(&bucket, other.path(), &before, SparseFormat::V31, &terms(30), None, &Meter::default()).await.unwrap();
    let want = published.weights_hash.unwrap();
    let cache = host.path().join("cache");
    let limits = FetchLimits::default();
    let base = Fetcher { bucket: &bucket, cache_root: &cache, limits: &limits, observer: &|_| () }.fetch(0).await.unwrap().dir;
    let delta = buckets.join("trainer").join(delta_key(30, "delta_sparse.bin.zst"));
    let size = std::fs::metadata(&delta).unwrap().len();
    println!("{:.0} MB of bf16, one element in {STEP} changed, {:.1} MB of delta, v3.1", bytes as f64 / 1e6, size as f64 / 1e6);
    let mut model = Model::load(&base, LoadOptions { device: Device::Cpu, precision: Precision::Bf16 }).unwrap();
    let (mut ours, mut theirs): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut round = serde_json::Map::new();
        for (parts, prefix) in [(Parts::Beside, "beside "), (Parts::InTurns, "")] {
            let (held, seconds, costs) = roll(&bucket, &cache, model, parts).await;
            assert_eq!(held.weights_hash(), want);
            round.extend(seconds.map(|(name, figure)| (format!("{prefix}{name}"), json!(figure))));
            // Of the first, which does all at once.
            for (name, figure) in costs {
                round.entry(name).or_insert(json!(figure));
            }
            model = held;
            model.reload(&base).unwrap();
            for made in [checkpoint_dir(&cache, 30), cache.join("delta-30")] {
                std::fs::remove_dir_all(made).unwrap();
            }
        }
        ours.push(round.into());
        let mut consumer = Command::new(&python);
        consumer.arg(&script).arg("--consume").args([base.as_os_str(), delta.as_os_str()]).arg(&want);
        let output = consumer.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        theirs.push(serde_json::from_slice(&output.stdout).unwrap());
    }
    println!("{}", json!({"ours": ours, "theirs": theirs}));
}
