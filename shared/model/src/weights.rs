//! The tensors a model computes with: resident on its device, filled from a checkpoint, refilled in place.

use std::collections::BTreeMap;

use tch::{Device, Kind, TchError, Tensor};
use twox_hash::xxhash3_128::Hasher as Xxh3;

use crate::checkpoint::{Checkpoint, hex128};
use crate::config::ModelConfig;
use crate::delta::{DeltaError, TensorDelta, exchange_in_place};
use crate::delta_file::DeltaFile;
use crate::native::{bytes_mut, is_plain};
use crate::transfer::{self, CopyError, Staging};
use crate::weight_file::threads;
use crate::weights_error::WeightsError;

/// The resident tensors by name, with what is needed to say which checkpoint they are.
#[derive(Debug)]
pub(crate) struct Weights {
    tensors: BTreeMap<String, Resident>,
    /// Stored tensors that the model does not use; kept because the weights hash covers them.
    unused: BTreeMap<String, Vec<u8>>,
    /// Whether the model's type is narrower than the files', so that their bytes cannot be had back.
    narrowed: bool,
    /// XXH3-128 of what is resident, in the files' types.
    hash: String,
}

/// What a change replaced.
pub(crate) struct Found {
    /// Index of the file of the change.
    file: usize,
    /// The tensor.
    name: String,
    /// The values that were at the positions of the change, little-endian.
    values: Vec<u8>,
}

#[derive(Debug)]
struct Resident {
    tensor: Tensor,
    stored: Kind,
}

impl Resident {
    /// Whether the resident bytes are the file's, in host memory.
    fn is_as_stored(&self) -> bool {
        is_plain(&self.tensor) && self.tensor.kind() == self.stored
    }
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
    pub(crate) fn fill(checkpoint: &Checkpoint, config: &ModelConfig, device: Device, kind: Kind) -> Result<Self, CopyError> {
        let mut weights =
            Self { tensors: BTreeMap::new(), unused: BTreeMap::new(), narrowed: false, hash: hex128(Xxh3::new().finish_128()) };
        for (name, shape) in layout(config) {
            let tensor = Tensor::f_zeros(&shape, (kind, device))?;
            weights.tensors.insert(name, Resident { tensor, stored: kind });
        }
        weights.refill(checkpoint)?;
        Ok(weights)
    }

    /// Copies a judged checkpoint into the resident tensors. After an error they are a mixture.
    pub(crate) fn refill(&mut self, checkpoint: &Checkpoint) -> Result<(), CopyError> {
        let unused = checkpoint.names().filter(|name| !self.tensors.contains_key(*name));
        self.unused = unused.map(|name| (name.to_owned(), vec![0; checkpoint.size(name)])).collect();
        for (name, resident) in &mut self.tensors {
            resident.stored = checkpoint.kind(name).unwrap_or(resident.stored);
        }
        self.narrowed = !self.tensors.values().all(|resident| holds(resident.tensor.kind(), resident.stored));
        self.hash = if self.tensors.values().all(Resident::is_as_stored) {
            self.refill_in_place(checkpoint)?
        } else {
            self.refill_staged(checkpoint)?
        };
        Ok(checkpoint.unchanged()?)
    }

    /// The files' bytes are the resident bytes: they are read to where they stay, and hashed there.
    fn refill_in_place(&mut self, checkpoint: &Checkpoint) -> Result<String, CopyError> {
        let resident = self.tensors.iter_mut().map(|(name, resident)| (name, bytes_mut(&mut resident.tensor)));
        let unused = self.unused.iter_mut().map(|(name, bytes)| (name, bytes.as_mut_slice()));
        let mut places: Vec<(&String, &mut [u8])> = resident.chain(unused).collect();
        places.sort_by_key(|(name, _)| *name);
        Ok(transfer::read_and_hash(checkpoint, places, threads())?)
    }

    /// The resident tensors are on another device or of another type than the files.
    fn refill_staged(&mut self, checkpoint: &Checkpoint) -> Result<String, CopyError> {
        let mut staging = Staging::new(self.device());
        let mut of_files = Xxh3::new();
        for name in checkpoint.names() {
            match (self.tensors.get_mut(name), self.unused.get_mut(name)) {
                (Some(resident), _) => {
                    staging.fill(checkpoint, name, &resident.tensor, resident.stored, &mut |bytes| {
                        if self.narrowed {
                            of_files.write(bytes);
                        }
                    })?;
                }
                (None, Some(bytes)) => {
                    checkpoint.read(name, 0, bytes, threads())?;
                    of_files.write(bytes);
                }
                (None, None) => {}
            }
        }
        staging.settle()?;
        // What a narrower type has lost cannot be had back; then the hash is that of the bytes as they passed.
        if self.narrowed { Ok(hex128(of_files.finish_128())) } else { self.read_back(&mut staging) }
    }

    /// The checkpoint hash of the resident tensors, which are cast back to the files' types: lossless unless `narrowed`.
    fn read_back(&mut self, staging: &mut Staging) -> Result<String, CopyError> {
        let mut hasher = Xxh3::new();
        let look = &mut |bytes: &[u8]| hasher.write(bytes);
        for name in self.names() {
            match (self.tensors.get(&name), self.unused.get(&name)) {
                (Some(resident), _) => staging.show(&resident.tensor, resident.stored, look)?,
                (None, Some(bytes)) => {
                    staging.show_rest(look)?;
                    look(bytes);
                }
                (None, None) => {}
            }
        }
        staging.show_rest(look)?;
        Ok(hex128(hasher.finish_128()))
    }

    /// Refuses every change where single values cannot be had as they are stored.
    pub(crate) fn takes_changes(&self) -> Result<(), DeltaError> {
        if self.narrowed { Err(DeltaError::Narrowed) } else { Ok(()) }
    }

    /// Judges the changes of one tensor.
    pub(crate) fn check_change(&self, change: &TensorDelta) -> Result<(), DeltaError> {
        match (self.tensors.get(&change.name), self.unused.get(&change.name)) {
            (Some(resident), _) => change.check(Some(resident.stored), resident.tensor.numel()),
            (None, Some(bytes)) => change.check(None, bytes.len() / change.kind.elt_size_in_bytes()),
            (None, None) => Err(DeltaError::Unknown { name: change.name.clone() }),
        }
    }

    /// Writes judged files of changes, one after the other, and hashes everything that is resident then: one tensor after the
    /// other in the order of the hash. Returns what each change found, in the order of writing. After an error the tensors
    /// are a mixture.
    pub(crate) fn exchange(&mut self, files: &[DeltaFile]) -> Result<Vec<Found>, CopyError> {
        let mut staging = Staging::new(self.device());
        let mut hasher = Xxh3::new();
        let mut found = Vec::new();
        for name in self.names() {
            let changes = (0..).zip(files).filter_map(|(file, delta)| Some((file, delta.changes(&name).transpose()?)));
            let (numbers, changes): (Vec<usize>, Vec<TensorDelta>) =
                changes.map(|(file, change)| Ok((file, change?))).collect::<Result<_, WeightsError>>()?;
            let old = self.exchange_tensor(&name, &changes, &mut staging, &mut |bytes| hasher.write(bytes))?;
            found.extend(numbers.into_iter().zip(old).map(|(file, values)| Found { file, name: name.clone(), values }));
        }
        staging.show_rest(&mut |bytes| hasher.write(bytes))?;
        self.hash = hex128(hasher.finish_128());
        Ok(found)
    }

    fn exchange_tensor(
        &mut self,
        name: &str,
        changes: &[TensorDelta],
        staging: &mut Staging,
        look: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<Vec<Vec<u8>>, CopyError> {
        match (self.tensors.get_mut(name), self.unused.get_mut(name)) {
            (Some(resident), _) if resident.is_as_stored() => {
                staging.show_rest(look)?;
                Ok(exchange_in_place(bytes_mut(&mut resident.tensor), changes, threads(), look))
            }
            (Some(resident), _) => {
                let exchange = |change: &TensorDelta| {
                    let old = change.values_in(&resident.tensor)?;
                    change.write_to(&resident.tensor).map(|()| old)
                };
                let old = changes.iter().map(exchange).collect::<Result<_, _>>()?;
                staging.show(&resident.tensor, resident.stored, look)?;
                Ok(old)
            }
            (None, Some(bytes)) => {
                staging.show_rest(look)?;
                Ok(exchange_in_place(bytes, changes, threads(), look))
            }
            (None, None) => Ok(Vec::new()),
        }
    }

    /// Takes an [`Weights::exchange`] of these files back.
    pub(crate) fn put_back(&mut self, files: &[DeltaFile], found: Vec<Found>) -> Result<(), CopyError> {
        for Found { file, name, values } in found.into_iter().rev() {
            let Some(change) = files[file].changes(&name)? else { continue };
            let change = TensorDelta { values, ..change };
            match (self.tensors.get_mut(&name), self.unused.get_mut(&name)) {
                (Some(resident), _) if resident.is_as_stored() => put(bytes_mut(&mut resident.tensor), change),
                (Some(resident), _) => change.write_to(&resident.tensor)?,
                (None, Some(bytes)) => put(bytes, change),
                (None, None) => {}
            }
        }
        // Read anew, not remembered: what serves on is what is resident.
        self.hash = self.read_back(&mut Staging::new(self.device()))?;
        Ok(())
    }

    /// All tensors in the order of the hash.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors.keys().chain(self.unused.keys()).cloned().collect();
        names.sort();
        names
    }

    fn device(&self) -> Device {
        self.tensors.values().next().map_or(Device::Cpu, |resident| resident.tensor.device())
    }

    /// A handle on a resident tensor that sees later refills.
    pub(crate) fn share(&self, name: &str) -> Result<Tensor, TchError> {
        let found = self.tensors.get(name).map(|resident| resident.tensor.shallow_clone());
        found.ok_or_else(|| TchError::TensorNameNotFound(name.to_owned(), "the resident weights".to_owned()))
    }

    /// The checkpoint hash of what is resident, as it was read back after the last write.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }
}

fn put(bytes: &mut [u8], change: TensorDelta) {
    exchange_in_place(bytes, &[change], 1, &mut |_| ());
}

/// Whether every value of `stored` has an exact counterpart in `resident`.
fn holds(resident: Kind, stored: Kind) -> bool {
    resident == stored || resident == Kind::Float
}
