//! A model of a few kilobytes, and sequences for it: what a proof worker is tried with where no checkpoint is at hand. The worker
//! takes it as any other.

use std::io;
use std::path::Path;

use grail_link::message::{FromWorker, ProofJob, ProofSequence, ReloadCommand, Revision};
use serde_json::{Value, json};

const VOCABULARY: usize = 64;
const HIDDEN: usize = 64;
const LAYERS: usize = 2;
/// Two sequences of unequal length with one prompt: padding, masks and shared prompts are all used.
const LENGTHS: [u32; 2] = [48, 21];
const PROMPT: u32 = 9;

/// Writes the model into a folder.
pub(super) fn write(folder: &Path) -> io::Result<()> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": null,
        "max_position_embeddings": 128, "eos_token_id": 2, "tie_word_embeddings": true, "attention_bias": false,
        "mlp_bias": false, "torch_dtype": "bfloat16",
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    std::fs::write(folder.join("model.safetensors"), weights())
}

/// Names and shapes of the tensors.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let square = vec![HIDDEN, HIDDEN];
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let parts = [
            ("input_layernorm", vec![HIDDEN]),
            ("mlp.down_proj", square.clone()),
            ("mlp.gate_proj", square.clone()),
            ("mlp.up_proj", square.clone()),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.o_proj", square.clone()),
            ("self_attn.q_proj", square.clone()),
            ("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]),
        ];
        all.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    all.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    all
}

/// A safetensors file in bf16: norms near one, the rest within a quarter of zero.
fn weights() -> Vec<u8> {
    let (mut header, mut data, mut state) = (serde_json::Map::new(), Vec::new(), 1u64);
    for (name, shape) in tensors() {
        let (begin, centre) = (data.len(), f32::from(u8::from(name.contains("norm"))));
        for _ in 0..shape.iter().product() {
            // The constants of Knuth's MMIX; 24 of the high bits.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = centre + ((state >> 40) as f32 / 16_777_216.0 - 0.5) / 2.0;
            data.extend_from_slice(&value.to_bits().to_le_bytes()[2..]);
        }
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().wrapping_neg() % 8));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

fn revision() -> Revision {
    Revision { window: 0, weights_hash: "0".repeat(32) }
}

/// The command that loads it.
pub(super) fn load(folder: &Path) -> ReloadCommand {
    ReloadCommand { revision: revision(), directory: folder.to_owned(), manifest: Default::default() }
}

/// What is to be proved.
pub(super) fn job() -> ProofJob {
    let token = |at: u32, length: u32| if at < PROMPT { at + 3 } else { (at * 7 + length) % VOCABULARY as u32 };
    let sequence = |length: u32| ProofSequence {
        tokens: (0..length).map(|at| token(at, length)).collect(),
        prompt_length: PROMPT,
        coefficients: std::array::from_fn(|index| (index as i32 * 15 - 113) as i8),
    };
    ProofJob { id: 1, revision: revision(), sequences: LENGTHS.map(sequence).to_vec(), examine: None }
}

/// Whether an answer is what was asked for; `Ok(true)` for the last one.
pub(super) fn judge(answer: &FromWorker, proved: &mut u32) -> Result<bool, String> {
    match answer {
        FromWorker::Sequence(proof) => {
            let length = LENGTHS.get(proof.index as usize).copied().unwrap_or_default();
            let finite = proof.logprobs.iter().all(|logprob| logprob.is_finite());
            if (proof.sketches.len(), proof.logprobs.len()) != (length as usize, (length - PROMPT.min(length)) as usize)
                || !finite
            {
                return Err("its proof of a small sequence is none: lengths differ, or numbers are not finite".into());
            }
            *proved += 1;
            Ok(false)
        }
        FromWorker::JobDone { .. } if *proved as usize == LENGTHS.len() => Ok(true),
        FromWorker::JobRefused { reason, .. } => Err(format!("it cannot prove a small sequence: {reason}")),
        _ => Err("it answers a small sequence with something else".into()),
    }
}
