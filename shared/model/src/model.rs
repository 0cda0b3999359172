//! A model that is resident on a device: load, reload in place, and say which checkpoint it holds.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, TchError, Tensor};

use crate::attention::{AttentionKernel, Heads};
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, ModelConfig};
use crate::copies::upload;
use crate::delta::DeltaError;
use crate::native;
use crate::network::Network;
use crate::numerics::Attention;
use crate::transfer::CopyError;
use crate::weights::{self, Weights};
use crate::weights_error::WeightsError;

mod apply_files;

/// The type a model computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// bf16 on CUDA, f32 on the CPU: the reference's rule (GRAIL protocol 5).
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// bfloat16, the production type.
    Bf16,
    /// Half precision.
    F16,
}

impl Precision {
    /// As it is written on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// `f32`, `bf16` or `f16`: what a model is computed in on this device.
    pub fn name_on(self, device: Device) -> &'static str {
        match self.on(device) {
            Kind::Float => "f32",
            Kind::Half => "f16",
            _ => "bf16",
        }
    }

    /// The kind of tensors it means on this device.
    pub fn on(self, device: Device) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
            Self::Auto if device.is_cuda() => Kind::BFloat16,
            Self::Auto => Kind::Float,
        }
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" => Ok(Self::F16),
            other => Err(format!("{other:?} is no precision: use auto, f32, bf16 or f16")),
        }
    }
}

/// Where and how a model is to live.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// The device, usually [`crate::Runtime::device`].
    pub device: Device,
    /// The type to compute in.
    pub precision: Precision,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The configuration is missing or asks for something unsupported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights are missing, damaged or do not fit the configuration.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// libtorch failed over weights that were judged before: the device's memory does not suffice, or the device is sick.
    #[error("{directory}: libtorch failed while the weights were loaded, which is no fault of the checkpoint: {source}")]
    Torch {
        /// The checkpoint's directory.
        directory: PathBuf,
        /// What libtorch said.
        source: TchError,
    },
}

/// Why a reload failed, and what the model is worth now.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Nothing was copied; the old weights go on serving.
    #[error("the checkpoint is refused: {0}")]
    Refused(LoadError),
    /// The new checkpoint is of a model of another make. Nothing was copied; the old weights go on serving.
    #[error("{directory}: config.json describes another model than the one that is loaded; a new process can load it")]
    OtherModel {
        /// The new checkpoint's directory.
        directory: PathBuf,
    },
    /// The copy broke off: the resident weights are a mixture and must not be used.
    #[error("{directory}: the copy broke off in the middle, the resident weights are unfit for use: {source}; restart")]
    Unfit {
        /// The new checkpoint's directory.
        directory: PathBuf,
        /// What happened.
        source: CopyError,
    },
}

/// Why a delta was not applied, and what the model is worth now.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Nothing was written; the old weights go on serving.
    #[error("the delta is refused: {0}")]
    Refused(#[from] DeltaError),
    /// What came of it was not what was announced. The old weights were put back and go on serving.
    #[error("the changes lead to weights {got}, {want} was announced; what was there before is put back")]
    OtherHash {
        /// XXH3-128 of what they lead to.
        got: String,
        /// What was announced.
        want: String,
    },
    /// A file of changes cannot be used. Nothing was written; the old weights go on serving.
    #[error("the changes are refused: {0}")]
    File(WeightsError),
    /// Writing broke off: the resident weights are a mixture and must not be used.
    #[error("the delta was written in part, the resident weights are unfit for use: {0}; restart")]
    Unfit(CopyError),
}

/// A checkpoint that was judged to fit a model: what is left to do is the copy.
#[derive(Debug)]
pub struct Candidate {
    directory: PathBuf,
    config: ModelConfig,
    checkpoint: Checkpoint,
}

/// A model on a device.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    weights: Weights,
    pub(crate) network: Network,
}

impl Model {
    /// Loads the checkpoint in `directory`: everything is judged before memory is taken.
    ///
    /// # Errors
    /// When the configuration or the weights are refused, or the device has no room.
    pub fn load(directory: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        let _guard = tch::no_grad_guard();
        let (config, checkpoint) = judge(directory)?;
        let failed = |source| LoadError::Torch { directory: directory.to_path_buf(), source };
        let kind = options.precision.on(options.device);
        let weights = Weights::fill(&checkpoint, &config, options.device, kind).map_err(|error| match error {
            CopyError::File(error) => LoadError::Weights(error),
            CopyError::Torch(source) => failed(source),
        })?;
        let network = Network::share(&weights, &config).map_err(failed)?;
        drop(checkpoint);
        native::return_freed_memory();
        Ok(Self { config, weights, network })
    }

    /// The same model with another attention in [`Model::hidden`]; a loaded one has [`Attention::Sdpa`].
    pub fn with_attention(mut self, attention: Attention) -> Self {
        self.network.attention = attention;
        self
    }

    /// The same model with [`Attention::Sdpa`] attending row by row (as one on CUDA does from the start) or under a mask over the
    /// padded batch (as transformers' SDPA does, and one on the CPU from the start) in [`Model::hidden`].
    pub fn attending_by_rows(mut self, by_rows: bool) -> Self {
        self.network.by_rows = by_rows;
        self
    }

    /// What a sequence of this model is attended by.
    ///
    /// # Errors
    /// As [`AttentionKernel::chosen`].
    pub fn attention_kernel(&self) -> Result<AttentionKernel, TchError> {
        AttentionKernel::chosen(self.network.attention, self.device(), self.network.kind(), Heads::of(&self.config))
    }

    /// Replaces the weights in place by those of another checkpoint of the same model: [`Model::judge`], then [`Model::take`].
    ///
    /// # Errors
    /// [`ReloadError::Refused`] and [`ReloadError::OtherModel`] leave the old weights serving; after
    /// [`ReloadError::Unfit`] the model must be dropped.
    pub fn reload(&mut self, directory: &Path) -> Result<(), ReloadError> {
        let candidate = self.judge(directory)?;
        self.take(candidate)
    }

    /// Judges a checkpoint against this model: headers, names, shapes, types and every value, before a byte is copied.
    ///
    /// # Errors
    /// [`ReloadError::Refused`] and [`ReloadError::OtherModel`].
    pub fn judge(&self, directory: &Path) -> Result<Candidate, ReloadError> {
        let (config, checkpoint) = judge(directory).map_err(ReloadError::Refused)?;
        let directory = directory.to_path_buf();
        if !config.same_network(&self.config) {
            return Err(ReloadError::OtherModel { directory });
        }
        Ok(Candidate { directory, config, checkpoint })
    }

    /// Copies a judged checkpoint into the resident tensors. Its files are read by position, so one that was cut short since
    /// is an error and no SIGBUS.
    ///
    /// # Errors
    /// [`ReloadError::Refused`] when a file was written to since it was judged; [`ReloadError::Unfit`] when that happens
    /// during the copy, a file cannot be read, or libtorch fails.
    pub fn take(&mut self, candidate: Candidate) -> Result<(), ReloadError> {
        let _guard = tch::no_grad_guard();
        let Candidate { directory, config, checkpoint } = candidate;
        checkpoint.unchanged().map_err(|error| ReloadError::Refused(error.into()))?;
        self.weights.refill(&checkpoint).map_err(|source| ReloadError::Unfit { directory, source })?;
        self.config = config;
        Ok(())
    }

    /// Names and shapes of the tensors that a configuration asks for.
    pub fn layout(config: &ModelConfig) -> BTreeMap<String, Vec<i64>> {
        weights::layout(config)
    }

    /// The configuration of the checkpoint that is loaded.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device the model lives on.
    pub fn device(&self) -> Device {
        self.network.device()
    }

    /// XXH3-128 (hex) over the raw bytes of the resident tensors in ascending order of name, in the files' type, read back
    /// from the device after the last load, reload or delta: equal to the checkpoint's `weights_hash` iff what is resident is
    /// what was published (GRAIL checkpoints 6). Where the model's type is narrower than the files' the bytes cannot be had
    /// back, and the hash is that of the files' bytes as they were copied.
    pub fn weights_hash(&self) -> &str {
        self.weights.hash()
    }

    /// Final-norm hidden states of a batch of sequences, right-padded to the longest: `[B, longest, hidden]` in the model's
    /// type, padding rows included (GRAIL protocol 5).
    ///
    /// # Errors
    /// When libtorch fails, for example for want of memory. The ids must have been checked against the vocabulary.
    pub fn hidden(&self, batch: &[&[u32]]) -> Result<Tensor, TchError> {
        let _guard = tch::no_grad_guard();
        let lengths: Vec<i64> = batch.iter().map(|tokens| tokens.len() as i64).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let [ids, there] = upload([&pad(batch, longest, self.config.pad_token_id), &lengths], self.device())?;
        let ids = ids.f_view((batch.len() as i64, longest))?;
        if self.network.by_rows && self.network.attention == Attention::Sdpa {
            return self.network.hidden_by_rows(&ids, &lengths);
        }
        let padded = lengths.iter().any(|length| *length != longest);
        let columns = padded.then(|| Tensor::f_arange(longest, (Kind::Int64, self.device()))?.f_unsqueeze(0)).transpose()?;
        let real = columns.map(|columns| columns.f_lt_tensor(&there.f_unsqueeze(1)?)).transpose()?;
        self.network.hidden(&ids, real.as_ref())
    }

    /// Logits `[.., vocabulary]` of hidden states `[.., hidden]`, in the model's type.
    ///
    /// # Errors
    /// When libtorch fails, for example for want of memory.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let _guard = tch::no_grad_guard();
        self.network.logits(hidden)
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.config;
        write!(f, "{:?}, {} layers of {}, vocabulary {}, ", c.architecture, c.num_hidden_layers, c.hidden_size, c.vocab_size)?;
        write!(f, "{:?} on {:?}", self.network.kind(), self.device())
    }
}

/// Reads a checkpoint's configuration and judges every header, name, shape, type and value against it; nothing is loaded.
///
/// # Errors
/// The first thing that does not fit, with file, tensor, want and got.
pub fn judge(directory: &Path) -> Result<(ModelConfig, Checkpoint), LoadError> {
    let config = ModelConfig::read(directory)?;
    let checkpoint = Checkpoint::open(directory)?;
    weights::check(&checkpoint, &config)?;
    Ok((config, checkpoint))
}

/// Token ids of a batch, each row filled up to `longest`.
fn pad(batch: &[&[u32]], longest: i64, pad_token_id: i64) -> Vec<i64> {
    let longest = usize::try_from(longest).unwrap_or(0);
    let rows = batch.iter().flat_map(|tokens| {
        let padding = std::iter::repeat_n(pad_token_id, longest - tokens.len());
        tokens.iter().map(|&token| i64::from(token)).chain(padding)
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Architecture;
    use crate::fixtures::{self, checkpoint_of};
    use safetensors::Dtype;
    use serde_json::json;

    const CPU: LoadOptions = LoadOptions { device: Device::Cpu, precision: Precision::Auto };

    fn load_changed(change: impl FnOnce(&mut fixtures::Stored)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let mut tensors = fixtures::weights(directory.path(), &fixtures::config(), 1, Dtype::F32);
        change(&mut tensors);
        fixtures::write(&directory.path().join("model.safetensors"), &tensors);
        Model::load(directory.path(), CPU).unwrap_err().to_string()
    }

    #[test]
    fn refuses_a_missing_tensor() {
        let error = load_changed(|tensors| drop(tensors.remove("model.layers.1.mlp.up_proj.weight")));
        assert!(error.contains("model.layers.1.mlp.up_proj.weight is missing"), "{error}");
    }

    #[test]
    fn refuses_a_wrong_shape_with_want_and_got() {
        let error = load_changed(|tensors| {
            let stored = tensors.get_mut("model.norm.weight").unwrap();
            stored.1 = vec![2, 16];
        });
        assert!(error.contains("shape [2, 16], want [32]") && error.contains("model.safetensors"), "{error}");
    }

    #[test]
    fn refuses_nan_infinity_and_strangers() {
        for value in [f32::NAN, f32::NEG_INFINITY] {
            let error = load_changed(|tensors| {
                tensors.get_mut("model.norm.weight").unwrap().2[8..12].copy_from_slice(&value.to_le_bytes());
            });
            assert!(error.contains("element 2"), "{error}");
        }
        let error = load_changed(|tensors| {
            tensors.insert("model.layers.2.mlp.up_proj.weight".into(), (Dtype::F32, vec![1], vec![0; 4]));
        });
        assert!(error.contains("unexpected"), "{error}");
        let error = load_changed(|tensors| {
            tensors.insert("model.norm.weight".into(), (Dtype::I32, vec![32], vec![0; 128]));
        });
        assert!(error.contains("stored as I32"), "{error}");
    }

    #[test]
    fn refuses_a_truncated_file() {
        let directory = fixtures::checkpoint(1, Dtype::F32);
        let path = directory.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let error = Model::load(directory.path(), CPU).unwrap_err().to_string();
        assert!(error.contains("not a valid safetensors file"), "{error}");
    }

    #[test]
    fn shards_give_the_same_model_and_a_lying_index_is_refused() {
        let whole = fixtures::checkpoint(5, Dtype::BF16);
        let sharded = tempfile::tempdir().unwrap();
        let mut first = fixtures::weights(sharded.path(), &fixtures::config(), 5, Dtype::BF16);
        let second = first.split_off("model.layers.1.input_layernorm.weight");
        fixtures::write(&sharded.path().join("a.safetensors"), &first);
        fixtures::write(&sharded.path().join("b.safetensors"), &second);
        let names = |tensors: &fixtures::Stored, file: &str| {
            tensors.keys().map(|name| (name.clone(), json!(file))).collect::<serde_json::Map<_, _>>()
        };
        let mut map = names(&first, "a.safetensors");
        map.extend(names(&second, "b.safetensors"));
        let index = sharded.path().join("model.safetensors.index.json");
        std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
        let hash = |directory: &Path| Model::load(directory, CPU).unwrap().weights_hash().to_owned();
        assert_eq!(hash(sharded.path()), hash(whole.path()));

        map.insert("model.norm.weight".into(), json!("a.safetensors"));
        std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
        let error = Model::load(sharded.path(), CPU).unwrap_err().to_string();
        assert!(error.contains("model.norm.weight is not in a.safetensors"), "{error}");

        map.insert("model.norm.weight".into(), json!("../b.safetensors"));
        std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
        let error = Model::load(sharded.path(), CPU).unwrap_err().to_string();
        assert!(error.contains("not a plain file name"), "{error}");
    }

    #[test]
    fn reload_replaces_in_place_and_a_refused_one_changes_nothing() {
        let (first, second) = (fixtures::checkpoint(1, Dtype::F32), fixtures::checkpoint(2, Dtype::F32));
        let tokens: &[u32] = &[1, 5, 9, 7];
        let mut model = Model::load(first.path(), CPU).unwrap();
        let before = model.hidden(&[tokens]).unwrap();
        let hash = model.weights_hash().to_owned();

        let damaged = tempfile::tempdir().unwrap();
        let mut tensors = fixtures::weights(damaged.path(), &fixtures::config(), 3, Dtype::F32);
        tensors.remove("model.norm.weight");
        fixtures::write(&damaged.path().join("model.safetensors"), &tensors);
        assert!(matches!(model.reload(damaged.path()), Err(ReloadError::Refused(_))));
        assert_eq!(model.hidden(&[tokens]).unwrap(), before);
        assert_eq!(model.weights_hash(), hash);

        model.reload(second.path()).unwrap();
        let fresh = Model::load(second.path(), CPU).unwrap();
        assert_eq!(model.hidden(&[tokens]).unwrap(), fresh.hidden(&[tokens]).unwrap());
        assert_ne!(model.hidden(&[tokens]).unwrap(), before);
        assert_eq!(model.weights_hash(), Checkpoint::open(second.path()).unwrap().weights_hash().unwrap());
    }

    #[test]
    fn a_file_that_changes_after_it_was_judged_is_refused_and_one_that_vanishes_is_read_on() {
        let first = fixtures::checkpoint(1, Dtype::BF16);
        let mut model = Model::load(first.path(), LoadOptions { device: Device::Cpu, precision: Precision::Bf16 }).unwrap();
        let hash = model.weights_hash().to_owned();
        let second = fixtures::checkpoint(2, Dtype::BF16);
        let path = second.path().join("model.safetensors");

        let candidate = model.judge(second.path()).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
        let error = model.take(candidate).unwrap_err();
        assert!(matches!(error, ReloadError::Refused(_)) && error.to_string().contains("written to after"), "{error}");
        model.apply_files(&[], &hash).unwrap();
        assert_eq!(model.weights_hash(), hash);

        let third = fixtures::checkpoint(3, Dtype::BF16);
        let want = Checkpoint::open(third.path()).unwrap().weights_hash().unwrap();
        let candidate = model.judge(third.path()).unwrap();
        drop(third);
        model.take(candidate).unwrap();
        assert_eq!(model.weights_hash(), want);
    }

    #[test]
    fn eager_attention_is_as_near_to_the_truth_as_sdpa_with_and_without_padding() {
        let directory = fixtures::checkpoint(8, Dtype::BF16);
        let load = |precision, attention| {
            let options = LoadOptions { device: Device::Cpu, precision };
            Model::load(directory.path(), options).unwrap().with_attention(attention)
        };
        let truth = load(Precision::F32, Attention::Sdpa);
        let exact = load(Precision::F32, Attention::Eager);
        let narrow = [Precision::Bf16, Precision::F16].map(|kind| (load(kind, Attention::Sdpa), load(kind, Attention::Eager)));
        let (long, short): (Vec<u32>, Vec<u32>) = ((0..60).map(|id| id * 7 % 96).collect(), (0..23).collect());
        for batch in [vec![&long[..], &long[..]], vec![&long[..], &short[..]], vec![&short[..1]]] {
            for (row, tokens) in (0..).zip(&batch) {
                let states = |model: &Model| {
                    let hidden = model.hidden(&batch).unwrap();
                    hidden.select(0, row).narrow(0, 0, tokens.len() as i64).to_kind(Kind::Double)
                };
                let want = states(&truth);
                let distance = |model: &Model| ((states(model) - &want).norm() / want.norm()).double_value(&[]);
                assert!(distance(&exact) < 1e-6, "{}", distance(&exact));
                for (sdpa, eager) in &narrow {
                    let (fused, plain) = (distance(sdpa), distance(eager));
                    assert!(plain < 1.5 * fused && plain < 0.05, "eager is {plain} from the truth, sdpa {fused}");
                }
            }
        }
    }

    #[test]
    fn every_family_reloads_in_place_and_refuses_a_missing_part_of_its_own() {
        let parts = [
            (Architecture::Qwen2, "self_attn.v_proj.bias"),
            (Architecture::Qwen3, "self_attn.k_norm.weight"),
            (Architecture::Llama, "mlp.down_proj.bias"),
        ];
        for (architecture, part) in parts {
            let document = fixtures::family(architecture);
            let (first, second) = (checkpoint_of(&document, 1, Dtype::F32), checkpoint_of(&document, 2, Dtype::F32));
            let tokens: &[u32] = &[1, 5, 9, 7, 60, 8, 8, 95];
            let mut model = Model::load(first.path(), CPU).unwrap();
            let before = model.hidden(&[tokens]).unwrap();

            let damaged = tempfile::tempdir().unwrap();
            let mut tensors = fixtures::weights(damaged.path(), &document, 3, Dtype::F32);
            tensors.remove(&format!("model.layers.1.{part}"));
            fixtures::write(&damaged.path().join("model.safetensors"), &tensors);
            let error = model.reload(damaged.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(model.hidden(&[tokens]).unwrap(), before);

            model.reload(second.path()).unwrap();
            let fresh = Model::load(second.path(), CPU).unwrap();
            assert_eq!(model.hidden(&[tokens]).unwrap(), fresh.hidden(&[tokens]).unwrap());
            assert_ne!(model.hidden(&[tokens]).unwrap(), before);
            assert_eq!(model.weights_hash(), Checkpoint::open(second.path()).unwrap().weights_hash().unwrap());
        }
    }

    #[test]
    fn what_no_weight_shows_still_makes_another_model() {
        let cases = [
            (Architecture::Qwen2, "rope_theta", json!(1e6)),
            (Architecture::Qwen3, "sliding_window", json!(6)),
            (Architecture::Llama, "rope_scaling", json!({"rope_type": "linear", "factor": 8.0})),
        ];
        for (architecture, field, value) in cases {
            let mut document = fixtures::family(architecture);
            let first = checkpoint_of(&document, 1, Dtype::F32);
            let mut model = Model::load(first.path(), CPU).unwrap();
            document.insert(field.into(), value);
            let second = checkpoint_of(&document, 1, Dtype::F32);
            assert!(matches!(model.reload(second.path()), Err(ReloadError::OtherModel { .. })), "{field}");
            let tokens: &[u32] = &[1, 5, 9, 7, 60, 8, 8, 95];
            let other = Model::load(second.path(), CPU).unwrap();
            assert_ne!(model.hidden(&[tokens]).unwrap(), other.hidden(&[tokens]).unwrap(), "{field}");
        }
    }

    #[test]
    fn the_hash_is_in_the_type_of_the_files() {
        for (dtype, precision) in [
            (Dtype::BF16, Precision::F32),
            (Dtype::BF16, Precision::Bf16),
            (Dtype::F32, Precision::F32),
            (Dtype::F32, Precision::Bf16),
            (Dtype::F16, Precision::F32),
            (Dtype::F16, Precision::F16),
            (Dtype::BF16, Precision::F16),
        ] {
            let directory = fixtures::checkpoint(4, dtype);
            let model = Model::load(directory.path(), LoadOptions { device: Device::Cpu, precision }).unwrap();
            let want = Checkpoint::open(directory.path()).unwrap().weights_hash().unwrap();
            assert_eq!(model.weights_hash(), want, "{dtype:?} as {precision:?}");
        }
    }
}
