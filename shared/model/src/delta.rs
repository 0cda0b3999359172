//! A sparse change of one tensor: new values at listed places, written into what is resident (GRAIL checkpoints 5, 6).

use std::convert::Infallible;

use safetensors::Dtype;
use tch::{Device, Kind, TchError, Tensor};

use crate::finite::first_non_finite;
use crate::native::bytes_mut;
use crate::weight_file::{CHUNK, in_order};

/// Elements that are written at once, which bounds the memory for their positions.
const AT_ONCE: usize = 1 << 20;

/// What one tensor differs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorDelta {
    /// The tensor.
    pub name: String,
    /// The type of the values, which must be the one the tensor is stored in.
    pub kind: Kind,
    /// Row-major flat positions, strictly ascending.
    pub positions: Vec<u32>,
    /// The new values (not differences), little-endian, one for each position.
    pub values: Vec<u8>,
}

/// Why a delta is refused. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// The resident tensors are rounded, so a change of single values cannot lead to the published hash.
    #[error("the model computes in a narrower type than its checkpoint is stored in; load the whole checkpoint instead")]
    Narrowed,
    /// No tensor of the checkpoint has this name.
    #[error("delta of tensor {name}: the resident checkpoint has no such tensor; load the whole checkpoint instead")]
    Unknown {
        /// The tensor.
        name: String,
    },
    /// The values are of another type.
    #[error(
        "delta of tensor {name}: values of type {got:?}, the tensor is stored as {want:?}; load the whole checkpoint instead"
    )]
    Type {
        /// The tensor.
        name: String,
        /// The type of the values.
        got: Kind,
        /// The type of the tensor.
        want: Kind,
    },
    /// Not one value for each position.
    #[error("delta of tensor {name}: {bytes} bytes of values for {positions} positions; fetch the delta again")]
    Count {
        /// The tensor.
        name: String,
        /// Size of the values.
        bytes: usize,
        /// Number of positions.
        positions: usize,
    },
    /// A position that the tensor does not have, or that does not follow the one before it.
    #[error(
        "delta of tensor {name}: entry {entry} is for position {position}, want ascending positions below {elements}; fetch the delta again"
    )]
    Position {
        /// The tensor.
        name: String,
        /// Index of the entry.
        entry: usize,
        /// Its position.
        position: u32,
        /// Elements of the tensor.
        elements: usize,
    },
    /// A value that would make the model compute nonsense.
    #[error("delta of tensor {name}: the value of entry {entry} is NaN or infinite; the delta is damaged or training diverged")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Index of the entry.
        entry: usize,
    },
}

impl TensorDelta {
    /// Judges the entries against a tensor of `elements` elements, stored as `stored` where that is known.
    pub(crate) fn check(&self, stored: Option<Kind>, elements: usize) -> Result<(), DeltaError> {
        let name = || self.name.clone();
        let dtype = match (self.kind, stored) {
            (got, Some(want)) if got != want => return Err(DeltaError::Type { name: name(), got, want }),
            (Kind::BFloat16, _) => Dtype::BF16,
            (Kind::Half, _) => Dtype::F16,
            (Kind::Float, _) => Dtype::F32,
            (got, _) => return Err(DeltaError::Type { name: name(), got, want: Kind::BFloat16 }),
        };
        let (bytes, positions) = (self.values.len(), self.positions.len());
        if positions.checked_mul(self.kind.elt_size_in_bytes()) != Some(bytes) {
            return Err(DeltaError::Count { name: name(), bytes, positions });
        }
        let mut least = 0;
        for (entry, &position) in self.positions.iter().enumerate() {
            if (position as usize) < least || position as usize >= elements {
                return Err(DeltaError::Position { name: name(), entry, position, elements });
            }
            least = position as usize + 1;
        }
        match first_non_finite(&self.values, dtype) {
            None => Ok(()),
            Some(entry) => Err(DeltaError::NotFinite { name: name(), entry }),
        }
    }

    /// Writes judged entries into a tensor, on whatever device and in whatever type it is.
    pub(crate) fn write_to(&self, tensor: &Tensor) -> Result<(), TchError> {
        let mut flat = tensor.f_view(-1)?;
        let width = self.kind.elt_size_in_bytes();
        for (positions, values) in self.positions.chunks(AT_ONCE).zip(self.values.chunks(AT_ONCE * width)) {
            let count = positions.len() as i64;
            let positions = on_device(positions, tensor.device())?;
            let values = Tensor::f_from_data_size(values, &[count], self.kind)?.f_to(tensor.device())?;
            let _ = flat.f_index_copy_(0, &positions, &values.f_to_kind(tensor.kind())?)?;
        }
        Ok(())
    }

    /// The values that are at the positions now, in the type that the tensor is stored in.
    pub(crate) fn values_in(&self, tensor: &Tensor) -> Result<Vec<u8>, TchError> {
        let flat = tensor.f_view(-1)?;
        let mut values = Vec::with_capacity(self.values.len());
        for positions in self.positions.chunks(AT_ONCE) {
            let positions = on_device(positions, tensor.device())?;
            let mut found = flat.f_index_select(0, &positions)?.f_to_kind(self.kind)?.f_to(Device::Cpu)?;
            values.extend_from_slice(bytes_mut(&mut found));
        }
        Ok(values)
    }

    /// Writes the judged entries that fall into `piece`, the tensor's bytes from element `first` on. Returns what was there.
    fn exchange<const WIDTH: usize>(&self, piece: &mut [u8], first: usize) -> Vec<u8> {
        let elements = piece.as_chunks_mut::<WIDTH>().0;
        let begin = self.positions.partition_point(|position| (*position as usize) < first);
        let count = self.positions[begin..].partition_point(|position| (*position as usize) < first + elements.len());
        let mut before = vec![0; count * WIDTH];
        let values = self.values.as_chunks::<WIDTH>().0[begin..].iter().zip(before.as_chunks_mut::<WIDTH>().0);
        for (&position, (value, before)) in self.positions[begin..].iter().zip(values) {
            if let Some(element) = elements.get_mut((position as usize).wrapping_sub(first)) {
                *before = std::mem::replace(element, *value);
            }
        }
        before
    }
}

/// Writes judged changes of one type, one after the other, into the bytes of their tensor, and shows all bytes to `look` in
/// pieces when they are final. Returns what each change found. One pass: where the bytes are many, memory sets the time.
pub(crate) fn exchange_in_place(
    bytes: &mut [u8],
    changes: &[TensorDelta],
    threads: usize,
    look: &mut (dyn FnMut(&[u8]) + Send),
) -> Vec<Vec<u8>> {
    let pieces = bytes.chunks_mut(CHUNK).map(|piece| (piece, Vec::new())).collect();
    let exchange = |index: usize, (piece, before): &mut (&mut [u8], Vec<Vec<u8>>)| {
        fetch(piece);
        let one = |change: &TensorDelta| match change.kind {
            Kind::Float => change.exchange::<4>(piece, index * CHUNK / 4),
            _ => change.exchange::<2>(piece, index * CHUNK / 2),
        };
        *before = changes.iter().map(one).collect();
        Ok::<_, Infallible>(())
    };
    let Ok(pieces) = in_order(threads, pieces, exchange, &mut |(piece, _)| look(piece));
    let mut all: Vec<Vec<u8>> = changes.iter().map(|change| Vec::with_capacity(change.values.len())).collect();
    for (_, before) in pieces {
        all.iter_mut().zip(before).for_each(|(all, before)| all.extend_from_slice(&before));
    }
    all
}

/// Has the processor fetch all of `bytes` into its cache: in one go and in order memory delivers twice as fast as for what is
/// written here and there, and another thread may be looked at meanwhile.
fn fetch(bytes: &[u8]) {
    const LINE: usize = 64;
    std::hint::black_box(bytes.iter().step_by(LINE).fold(0, |seen, byte| seen ^ byte));
}

fn on_device(positions: &[u32], device: Device) -> Result<Tensor, TchError> {
    let positions: Vec<i64> = positions.iter().map(|&position| i64::from(position)).collect();
    Tensor::f_from_slice(&positions)?.f_to(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::model::{ApplyError, LoadOptions, Model, Precision};
    use proptest::prelude::*;

    fn load(directory: &std::path::Path, precision: Precision) -> Model {
        Model::load(directory, LoadOptions { device: Device::Cpu, precision }).unwrap()
    }

    /// A checkpoint with a tensor that the model does not use, as old ones have it.
    fn stored(directory: &std::path::Path, dtype: Dtype) -> fixtures::Stored {
        let mut tensors = fixtures::weights(directory, &fixtures::config(), 11, dtype);
        let width = dtype.bitsize() / 8;
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (dtype, vec![8], vec![0; 8 * width]));
        fixtures::write(&directory.join("model.safetensors"), &tensors);
        tensors
    }

    /// Changes random places of random tensors in `tensors`, and says which.
    fn change(tensors: &mut fixtures::Stored, dtype: Dtype, choices: &[(usize, u32, u16)]) -> Vec<TensorDelta> {
        let (kind, width) = if dtype == Dtype::BF16 { (Kind::BFloat16, 2) } else { (Kind::Float, 4) };
        let names: Vec<String> = tensors.keys().cloned().collect();
        let mut changes = std::collections::BTreeMap::new();
        for (tensor, position, bits) in choices {
            let name = &names[tensor % names.len()];
            let elements = tensors[name].2.len() / width;
            // Any finite value, negative zero and the smallest ones among them.
            let bits = if bits & 0x7f80 == 0x7f80 { bits & 0xff7f } else { *bits };
            let value = if width == 2 { bits.to_le_bytes().to_vec() } else { [[0x11, 0x22], bits.to_le_bytes()].concat() };
            changes.entry(name.clone()).or_insert_with(std::collections::BTreeMap::new).insert(position % elements as u32, value);
        }
        let tensors = changes.into_iter().map(|(name, entries)| {
            let bytes = &mut tensors.get_mut(&name).unwrap().2;
            for (position, value) in &entries {
                let start = *position as usize * width;
                bytes[start..start + width].copy_from_slice(value);
            }
            TensorDelta {
                name,
                kind,
                positions: entries.keys().copied().collect(),
                values: entries.into_values().flatten().collect(),
            }
        });
        tensors.collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn a_delta_leads_to_the_same_bits_as_the_whole_changed_checkpoint(
            choices in prop::collection::vec((any::<usize>(), any::<u32>(), any::<u16>()), 0..200),
            (dtype, precision) in prop::sample::select(vec![
                (Dtype::BF16, Precision::Bf16),
                (Dtype::BF16, Precision::F32),
                (Dtype::F32, Precision::F32),
            ]),
        ) {
            let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let mut model = { stored(first.path(), dtype); load(first.path(), precision) };
            let mut tensors = stored(second.path(), dtype);
            let delta = change(&mut tensors, dtype, &choices);
            fixtures::write(&second.path().join("model.safetensors"), &tensors);
            let whole = load(second.path(), precision);
            let file = fixtures::write_changes(&second.path().join("changes"), &delta);
            model.apply_files(&[file], whole.weights_hash()).unwrap();
            prop_assert_eq!(model.weights_hash(), whole.weights_hash());
            let tokens: &[u32] = &[1, 5, 9, 7];
            let bits = |model: &Model| {
                let hidden = model.hidden(&[tokens]).unwrap().to_kind(Kind::Float);
                Vec::<f32>::try_from(hidden.view(-1)).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            prop_assert_eq!(bits(&model), bits(&whole));
        }
    }

    #[test]
    fn every_kind_of_wrong_delta_is_refused_before_the_first_write() {
        let directory = tempfile::tempdir().unwrap();
        stored(directory.path(), Dtype::BF16);
        let mut model = load(directory.path(), Precision::Bf16);
        let hash = model.weights_hash().to_owned();
        let tensor = |name: &str, positions: &[u32], values: Vec<u8>| TensorDelta {
            name: name.into(),
            kind: Kind::BFloat16,
            positions: positions.to_vec(),
            values,
        };
        let good = tensor("lm_head.weight", &[0, 3], vec![1; 4]);
        let norm = "model.norm.weight";
        let cases = [
            (tensor("model.extra.weight", &[0], vec![1; 2]), "no such tensor"),
            (TensorDelta { kind: Kind::Float, ..tensor(norm, &[0], vec![1; 4]) }, "stored as BFloat16"),
            (TensorDelta { kind: Kind::Half, ..tensor(norm, &[0], vec![1; 2]) }, "stored as BFloat16"),
            (tensor(norm, &[0, 1], vec![1; 6]), "6 bytes of values for 2 positions"),
            (tensor(norm, &[0, 32], vec![1; 4]), "position 32, want ascending positions below 32"),
            (tensor(norm, &[5, 5], vec![1; 4]), "entry 1 is for position 5"),
            (tensor(norm, &[5, 4], vec![1; 4]), "entry 1 is for position 4"),
            (tensor(norm, &[5, u32::MAX], vec![1; 4]), "want ascending"),
            (tensor(norm, &[5, 6], vec![1, 1, 0x80, 0x7f]), "entry 1 is NaN or infinite"),
            (tensor("model.layers.0.self_attn.rotary_emb.inv_freq", &[8], vec![1; 2]), "below 8"),
        ];
        for (bad, word) in cases {
            let file = fixtures::write_changes(&directory.path().join("changes"), &[good.clone(), bad]);
            let error = model.apply_files(&[file], &hash).unwrap_err();
            assert!(matches!(error, ApplyError::Refused(_)) && error.to_string().contains(word), "want {word:?}, got {error}");
        }
        // Read the tensors again, not the hash that is remembered.
        model.apply_files(&[], &hash).unwrap();
        assert_eq!(model.weights_hash(), hash);

        let wide = tempfile::tempdir().unwrap();
        stored(wide.path(), Dtype::F32);
        let error = load(wide.path(), Precision::Bf16).apply_files(&[], &hash).unwrap_err();
        assert!(matches!(error, ApplyError::Refused(DeltaError::Narrowed)), "{error}");
    }
}
