//! How long new weights take on the CPU, warm file, bf16 into bf16:
//! `cargo test --package grail-model --bench reload` (set THREADS to measure with another number than 2).

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark measures time and may panic; the rules are for the product"
)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use grail_model::{Device, LoadOptions, Model, Precision, read_with, startup};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

/// Shape of Qwen2.5-0.5B with a head of its own: 1.26 GB.
const HIDDEN: usize = 896;
const INNER: usize = 4864;
const VOCABULARY: usize = 151_936;
const KEY_VALUE: usize = 128;
const LAYERS: usize = 24;

fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
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

/// A checkpoint of random bf16 numbers of moderate size; returns the bytes of its tensors.
fn write(directory: &Path, seed: u64) -> usize {
    let config = json!({
        "model_type": "qwen2", "hidden_act": "silu", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 4096, "eos_token_id": 2, "tie_word_embeddings": false,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let shapes = shapes();
    let mut state = seed;
    let mut random = |bytes: usize| -> Vec<u8> {
        let word = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Without the highest bit of the exponent nothing is infinite.
            state & 0xbfff_bfff_bfff_bfff
        };
        (0..bytes / 8).map(word).flat_map(u64::to_le_bytes).collect()
    };
    let data: Vec<Vec<u8>> = shapes.iter().map(|(_, shape)| random(shape.iter().product::<usize>() * 2)).collect();
    let views = shapes
        .iter()
        .zip(&data)
        .map(|((name, shape), bytes)| (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors")).unwrap();
    data.iter().map(Vec::len).sum()
}

/// The best of a few runs: others use the machine too.
fn best(runs: usize, mut work: impl FnMut() -> f64) -> f64 {
    (0..runs).map(|_| work()).fold(f64::INFINITY, f64::min)
}

fn seconds<R>(work: impl FnOnce() -> R) -> (f64, R) {
    let started = Instant::now();
    let result = work();
    (started.elapsed().as_secs_f64(), result)
}

/// What the machine gives: the file read by position into memory that was touched before.
fn plain_read(path: &Path, threads: usize, target: &mut [u8]) -> f64 {
    let file = std::fs::File::open(path).unwrap();
    let part = target.len().div_ceil(threads);
    let (elapsed, ()) = seconds(|| {
        std::thread::scope(|scope| {
            for (index, target) in target.chunks_mut(part).enumerate() {
                let file = &file;
                scope.spawn(move || file.read_exact_at(target, (index * part) as u64).unwrap());
            }
        })
    });
    elapsed
}

fn main() {
    let threads = std::env::var("THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    println!("{}", startup(Some(threads)));
    read_with(u16::try_from(threads).ok());
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = write(one.path(), 1);
    write(other.path(), 2);
    let rate = |what: &str, elapsed: f64| println!("{what:<44} {elapsed:7.3} s  {:6.2} GB/s", bytes as f64 / elapsed / 1e9);

    let options = LoadOptions { device: Device::Cpu, precision: Precision::Bf16 };
    let (elapsed, model) = seconds(|| Model::load(one.path(), options).unwrap());
    let mut model = model;
    rate("load, cold memory", elapsed);
    let mut target = vec![1; bytes];
    rate("plain read of the file", best(5, || plain_read(&one.path().join("model.safetensors"), threads, &mut target)));
    drop(target);
    let (mut judged, mut taken, mut turn) = (f64::INFINITY, f64::INFINITY, 0);
    let whole = best(6, || {
        let directory = [other.path(), one.path()][turn % 2];
        turn += 1;
        let (judge, candidate) = seconds(|| model.judge(directory).unwrap());
        let (take, ()) = seconds(|| model.take(candidate).unwrap());
        judged = judged.min(judge);
        taken = taken.min(take);
        judge + take
    });
    rate("reload: judge (read, no NaN)", judged);
    rate("reload: take (copy and hash)", taken);
    rate("reload: whole", whole);
}
