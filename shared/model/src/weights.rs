//! The tensors a model computes with: resident on its device, filled from a checkpoint, refilled in place.

use std::collections::BTreeMap;

use tch::{Device, Kind, TchError, Tensor};
use xxhash_rust::xxh3::Xxh3Default;

use crate::checkpoint::{Checkpoint, WeightsError, hex128};
use crate::config::ModelConfig;

/// The resident tensors by name, with what is needed to say which checkpoint they are.
#[derive(Debug)]
pub(crate) struct Weights {
    tensors: BTreeMap<String, Resident>,
    /// Stored tensors that the model does not use; kept because the weights hash covers them.
    unused: BTreeMap<String, Vec<u8>>,
    /// The files' hash, where the model's type is narrower than the files' and the bytes cannot be had back.
    narrowed: Option<String>,
}

#[derive(Debug)]
struct Resident {
    tensor: Tensor,
    stored: Kind,
}

/// Names and shapes that a configuration asks for.
pub(crate) fn layout(config: &ModelConfig) -> BTreeMap<String, Vec<i64>> {
    let c = config;
    let (query, key_value) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![c.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ]);
    if !c.tie_word_embeddings {
        shapes.insert("lm_head.weight".to_owned(), vec![c.vocab_size, hidden]);
    }
    for layer in 0..c.num_hidden_layers {
        let prefix = format!("model.layers.{layer}");
        let mut linear = |name: &str, rows: i64, columns: i64, bias: bool| {
            shapes.insert(format!("{prefix}.{name}.weight"), vec![rows, columns]);
            if bias {
                shapes.insert(format!("{prefix}.{name}.bias"), vec![rows]);
            }
        };
        linear("self_attn.q_proj", query, hidden, c.attention_bias);
        linear("self_attn.k_proj", key_value, hidden, c.attention_bias);
        linear("self_attn.v_proj", key_value, hidden, c.attention_bias);
        linear("self_attn.o_proj", hidden, query, c.output_bias);
        linear("mlp.gate_proj", inner, hidden, c.mlp_bias);
        linear("mlp.up_proj", inner, hidden, c.mlp_bias);
        linear("mlp.down_proj", hidden, inner, c.mlp_bias);
        let mut norm = |name: &str, width: i64| shapes.insert(format!("{prefix}.{name}.weight"), vec![width]);
        norm("input_layernorm", hidden);
        norm("post_attention_layernorm", hidden);
        if c.architecture.normalises_heads() {
            norm("self_attn.q_norm", c.head_dim);
            norm("self_attn.k_norm", c.head_dim);
        }
    }
    shapes
}

/// Judges a checkpoint against a configuration; after this only the device can make a copy fail.
pub(crate) fn check(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<(), WeightsError> {
    let tied = config.tie_word_embeddings;
    // A tied head repeats the embedding; the rotary buffer of old checkpoints is computed, not read.
    checkpoint.check(&layout(config), |name| (tied && name == "lm_head.weight") || name.ends_with("rotary_emb.inv_freq"))
}

impl Weights {
    /// Allocates tensors of the checkpoint's shapes in `kind` on `device` and fills them. The checkpoint was judged before.
    pub(crate) fn fill(checkpoint: &Checkpoint, config: &ModelConfig, device: Device, kind: Kind) -> Result<Self, TchError> {
        let mut weights = Self { tensors: BTreeMap::new(), unused: BTreeMap::new(), narrowed: None };
        for (name, shape) in layout(config) {
            let tensor = Tensor::f_empty(&shape, (kind, device))?;
            weights.tensors.insert(name, Resident { tensor, stored: kind });
        }
        weights.refill(checkpoint)?;
        Ok(weights)
    }

    /// Copies a judged checkpoint into the resident tensors. After an error they are a mixture.
    pub(crate) fn refill(&mut self, checkpoint: &Checkpoint) -> Result<(), TchError> {
        for (name, resident) in &mut self.tensors {
            checkpoint.with_tensor(name, |stored| resident.tensor.f_copy_(stored))??;
            resident.stored = checkpoint.kind(name).unwrap_or(resident.stored);
        }
        let unused = checkpoint.names().filter(|name| !self.tensors.contains_key(*name));
        self.unused = unused.filter_map(|name| Some((name.to_owned(), checkpoint.bytes(name)?.to_vec()))).collect();
        let lossless = self.tensors.values().all(|resident| holds(resident.tensor.kind(), resident.stored));
        self.narrowed = (!lossless).then(|| checkpoint.weights_hash());
        Ok(())
    }

    /// A handle on a resident tensor that sees later refills.
    pub(crate) fn share(&self, name: &str) -> Result<Tensor, TchError> {
        let found = self.tensors.get(name).map(|resident| resident.tensor.shallow_clone());
        found.ok_or_else(|| TchError::TensorNameNotFound(name.to_owned(), "the resident weights".to_owned()))
    }

    /// The checkpoint hash of what is resident: tensors are cast back to the files' type, which is lossless.
    pub(crate) fn hash(&self) -> Result<String, TchError> {
        if let Some(hash) = &self.narrowed {
            return Ok(hash.clone());
        }
        let mut hasher = Xxh3Default::new();
        let mut names: Vec<&String> = self.tensors.keys().chain(self.unused.keys()).collect();
        names.sort();
        for name in names {
            match (self.tensors.get(name), self.unused.get(name)) {
                (Some(resident), _) => hasher.update(&stored_bytes(resident)?),
                (None, Some(bytes)) => hasher.update(bytes),
                (None, None) => {}
            }
        }
        Ok(hex128(hasher.digest128()))
    }
}

/// Whether every value of `stored` has an exact counterpart in `resident`.
fn holds(resident: Kind, stored: Kind) -> bool {
    resident == stored || resident == Kind::Float
}

fn stored_bytes(resident: &Resident) -> Result<Vec<u8>, TchError> {
    let tensor = resident.tensor.f_to_kind(resident.stored)?.f_to(Device::Cpu)?.f_contiguous()?;
    let elements = tensor.numel();
    let mut bytes = vec![0; elements * resident.stored.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, elements)?;
    Ok(bytes)
}
