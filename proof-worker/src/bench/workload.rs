//! What every contestant is given: a model, and groups of completions of one prompt each.

use std::path::{Path, PathBuf};

use anyhow::Context;
use grail_link::message::{ExamineTerms, ProofSequence};
use grail_model::{Device, Kind, Model, ModelConfig, Tensor};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

/// The shape of a random qwen2 model.
#[derive(Debug, Clone, clap::Args)]
pub struct Shape {
    /// Width of a hidden state.
    #[arg(long, default_value_t = 896)]
    pub hidden: i64,
    /// Layers.
    #[arg(long, default_value_t = 6)]
    pub layers: usize,
    /// Width of the feed-forward layer.
    #[arg(long, default_value_t = 4864)]
    pub intermediate: i64,
    /// Query heads.
    #[arg(long, default_value_t = 14)]
    pub heads: i64,
    /// Key and value heads.
    #[arg(long, default_value_t = 2)]
    pub kv_heads: i64,
    /// Token ids.
    #[arg(long, default_value_t = 65_536)]
    pub vocabulary: i64,
}

/// The rollouts of a job.
#[derive(Debug, Clone, clap::Args)]
pub struct GroupShape {
    /// Groups of one prompt each.
    #[arg(long, default_value_t = 1)]
    pub groups: usize,
    /// Completions of a group.
    #[arg(long, default_value_t = 16)]
    pub completions: usize,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 120)]
    pub prompt: usize,
    /// Median of the completions' lengths, which are log-normal.
    #[arg(long, default_value_t = 200.0)]
    pub median: f64,
    /// Their sigma.
    #[arg(long, default_value_t = 0.6)]
    pub sigma: f64,
    /// Longest completion.
    #[arg(long, default_value_t = 640)]
    pub longest: usize,
    /// Of tokens and lengths.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// Shortest completion that validators accept.
const SHORTEST: f64 = 32.0;

/// A model's directory and a job for it.
pub struct Workload {
    /// `config.json`, read.
    pub config: ModelConfig,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Weights that every token is multiplied with once, head excluded.
    pub layer_weights: u64,
    /// The rollouts.
    pub sequences: Vec<ProofSequence>,
    /// Tokens of a prompt.
    pub prompt: usize,
}

impl Workload {
    /// A job for the model in `directory`.
    pub fn new(directory: &Path, group: &GroupShape) -> anyhow::Result<Self> {
        let config = ModelConfig::read(directory)?;
        let checkpoint = grail_model::Checkpoint::open(directory)?;
        let (mut weight_bytes, mut layer_weights) = (0, 0);
        for (name, shape) in Model::layout(&config) {
            let elements: u64 = shape.iter().filter_map(|&side| u64::try_from(side).ok()).product();
            weight_bytes += elements * checkpoint.kind(&name).map_or(2, Kind::elt_size_in_bytes) as u64;
            layer_weights += if name.contains(".layers.") { elements } else { 0 };
        }
        let sequences = sequences(&config, group);
        Ok(Self { config, weight_bytes, layer_weights, sequences, prompt: group.prompt })
    }

    /// Tokens of all rollouts, prompts included.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens.len()).sum()
    }

    /// Tokens of all completions.
    pub fn completion_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens.len() - sequence.prompt_length as usize).sum()
    }

    /// Floating-point operations without which no proof can be had: every token through the layers, every completion token
    /// through the head. Attention is left out, so a rate from this is a lower bound.
    pub fn operations(&self) -> f64 {
        let head = (self.config.hidden_size * self.config.vocab_size) as f64;
        2.0 * (self.layer_weights as f64 * self.tokens() as f64 + head * self.completion_tokens() as f64)
    }

    /// A policy like the trainer's.
    pub fn terms(&self) -> ExamineTerms {
        ExamineTerms { temperature: 0.7, repetition_penalty: 1.0, eos_token_id: 2 }
    }
}

fn sequences(config: &ModelConfig, group: &GroupShape) -> Vec<ProofSequence> {
    let mut random = StdRng::seed_from_u64(group.seed);
    let vocab = u32::try_from(config.vocab_size).unwrap_or(u32::MAX);
    let coefficients = std::array::from_fn(|_| random.random_range(-127i8..=127));
    let mut sequences = Vec::new();
    for _ in 0..group.groups {
        let prompt: Vec<u32> = (0..group.prompt).map(|_| random.random_range(0..vocab)).collect();
        for _ in 0..group.completions {
            // Box and Muller's normal deviate.
            let (one, other): (f64, f64) = (random.random_range(f64::EPSILON..1.0), random.random());
            let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos();
            let length = (group.median * (group.sigma * normal).exp()).clamp(SHORTEST, group.longest as f64) as usize;
            let tokens = prompt.iter().copied().chain((0..length).map(|_| random.random_range(0..vocab))).collect();
            sequences.push(ProofSequence { tokens, prompt_length: group.prompt as u32, coefficients });
        }
    }
    sequences
}

/// Writes a random bf16 model, with weights as transformers initialises them.
pub fn random_checkpoint(shape: &Shape, directory: &Path, seed: i64) -> anyhow::Result<PathBuf> {
    let named = random_weights(shape, directory, seed, Device::Cpu)?;
    write_weights(&named, directory)?;
    Ok(directory.to_path_buf())
}

/// Writes the weights of [`random_weights`] beside their configuration.
pub fn write_weights(named: &[(String, Tensor)], directory: &Path) -> anyhow::Result<()> {
    Tensor::write_safetensors(named, directory.join("model.safetensors")).context("writing the random model")
}

/// Writes the configuration of a random bf16 model, and gives its weights, which `device` makes and the host has.
pub fn random_weights(shape: &Shape, directory: &Path, seed: i64, device: Device) -> anyhow::Result<Vec<(String, Tensor)>> {
    std::fs::create_dir_all(directory)?;
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "max_position_embeddings": 32_768, "eos_token_id": 2, "torch_dtype": "bfloat16",
        "tie_word_embeddings": false, "use_sliding_window": false,
    });
    std::fs::write(directory.join("config.json"), config.to_string())?;
    let config = ModelConfig::read(directory)?;
    tch::manual_seed(seed);
    let named = Model::layout(&config).into_iter().map(|(name, shape)| {
        let options = (Kind::BFloat16, device);
        let tensor = match name.as_str() {
            norm if norm.contains("norm") => Tensor::f_ones(shape, options)?,
            bias if bias.ends_with("bias") => Tensor::f_zeros(shape, options)?,
            _ => Tensor::f_empty(shape, options)?.f_normal_(0.0, 0.02)?,
        };
        Ok((name, tensor.f_to(Device::Cpu)?))
    });
    named.collect()
}
