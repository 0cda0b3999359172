//! Tiny checkpoints with random weights, for the tests of this crate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use tch::Kind;

use crate::config::{Architecture, ModelConfig};
use crate::delta::TensorDelta;
use crate::weights::layout;

/// A small `qwen2` configuration.
pub(crate) fn config() -> Map<String, Value> {
    family(Architecture::Qwen2)
}

/// A small configuration of a family, with what only this family has turned on.
pub(crate) fn family(architecture: Architecture) -> Map<String, Value> {
    let mut document = json!({
        "model_type": architecture.name(), "hidden_act": "silu", "vocab_size": 96, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128, "eos_token_id": 2, "dtype": "float32",
        "tie_word_embeddings": false, "rope_scaling": null,
    });
    let own = match architecture {
        Architecture::Qwen2 => json!({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": false}),
        Architecture::Qwen3 => json!({
            "architectures": ["Qwen3ForCausalLM"], "head_dim": 12, "attention_bias": true, "use_sliding_window": true,
            "sliding_window": 5, "max_window_layers": 1,
        }),
        Architecture::Llama => json!({
            "architectures": ["LlamaForCausalLM"], "head_dim": 6, "attention_bias": true, "mlp_bias": true,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        }),
    };
    let fields = document.as_object_mut().unwrap();
    fields.extend(own.as_object().unwrap().clone());
    fields.clone()
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
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// Writes stored tensors as one file.
pub(crate) fn write(path: &Path, tensors: &Stored) {
    let views =
        tensors.iter().map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Writes a file of changes.
pub(crate) fn write_changes(path: &Path, changes: &[TensorDelta]) -> PathBuf {
    let tensors = changes.iter().flat_map(|change| {
        let dtype = match change.kind {
            Kind::BFloat16 => Dtype::BF16,
            Kind::Half => Dtype::F16,
            _ => Dtype::F32,
        };
        let positions: Vec<u8> = change.positions.iter().flat_map(|position| position.to_le_bytes()).collect();
        let entries = change.values.len() * 8 / dtype.bitsize();
        [
            (format!("{}.positions", change.name), (Dtype::U32, vec![change.positions.len()], positions)),
            (format!("{}.values", change.name), (dtype, vec![entries], change.values.clone())),
        ]
    });
    write(path, &tensors.collect());
    path.to_path_buf()
}

/// A whole `qwen2` checkpoint in a fresh folder.
pub(crate) fn checkpoint(seed: u64, dtype: Dtype) -> tempfile::TempDir {
    checkpoint_of(&config(), seed, dtype)
}

/// A whole checkpoint of this configuration in a fresh folder.
pub(crate) fn checkpoint_of(document: &Map<String, Value>, seed: u64, dtype: Dtype) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let tensors = weights(directory.path(), document, seed, dtype);
    write(&directory.path().join("model.safetensors"), &tensors);
    directory
}
