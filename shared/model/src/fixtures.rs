//! Tiny checkpoints with random weights, for the tests of this crate.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use crate::config::ModelConfig;
use crate::weights::layout;

/// A small `qwen2` configuration.
pub(crate) fn config() -> Map<String, Value> {
    let document = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "vocab_size": 96, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128, "eos_token_id": 2, "dtype": "float32",
        "tie_word_embeddings": false, "use_sliding_window": false, "rope_scaling": null,
    });
    document.as_object().unwrap().clone()
}

/// Stored tensors by name: type, shape, bytes.
pub(crate) type Stored = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Writes `config.json` and returns weights that fit it, from a seed.
pub(crate) fn weights(directory: &Path, document: &Map<String, Value>, seed: u64, dtype: Dtype) -> Stored {
    std::fs::write(directory.join("config.json"), Value::Object(document.clone()).to_string()).unwrap();
    let config = ModelConfig::read(directory).unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let shapes = layout(&config).into_iter();
    let tensors = shapes.map(|(name, shape)| {
        let shape: Vec<usize> = shape.iter().map(|&side| side.try_into().unwrap()).collect();
        let values =
            (0..shape.iter().product()).map(|_| random.random_range(-0.6f32..0.6) + f32::from(u8::from(name.contains("norm"))));
        let bytes = values.flat_map(|value| encode(value, dtype)).collect();
        (name, (dtype, shape, bytes))
    });
    tensors.collect()
}

fn encode(value: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// Writes stored tensors as one file.
pub(crate) fn write(path: &Path, tensors: &Stored) {
    let views =
        tensors.iter().map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A whole checkpoint in a fresh folder.
pub(crate) fn checkpoint(seed: u64, dtype: Dtype) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let tensors = weights(directory.path(), &config(), seed, dtype);
    write(&directory.path().join("model.safetensors"), &tensors);
    directory
}
