//! A sparse change of the weights: new values at listed places, written into the resident tensors (GRAIL checkpoints 5, 6).

use tch::{Kind, TchError, Tensor};

use safetensors::Dtype;

use crate::finite::first_non_finite;

/// Elements that are written at once, which bounds the memory for their positions.
const AT_ONCE: usize = 1 << 20;

/// What one checkpoint differs in from the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// The tensors that differ; what is not named stays as it is.
    pub tensors: Vec<TensorDelta>,
}

/// What one tensor differs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDelta {
    /// The tensor.
    pub name: String,
    /// The type of the values, which must be the one the tensor is stored in.
    pub kind: Kind,
    /// Row-major flat positions, strictly ascending.
    pub positions: Vec<u64>,
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
    /// The tensor is named again.
    #[error("delta of tensor {name}: the tensor is named twice; fetch the delta again")]
    Twice {
        /// The tensor.
        name: String,
    },
    /// The values are of another type.
    #[error("delta of tensor {name}: values of type {got:?}, the tensor is stored as {want:?}; load the whole checkpoint instead")]
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
        position: u64,
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
            if position < least || position >= elements as u64 {
                return Err(DeltaError::Position { name: name(), entry, position, elements });
            }
            least = position + 1;
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
            // Judged: every position is below the number of elements, which is an i64 in libtorch.
            let positions: Vec<i64> = positions.iter().map(|&position| position.cast_signed()).collect();
            let positions = Tensor::f_from_slice(&positions)?.f_to(tensor.device())?;
            let values = Tensor::f_from_data_size(values, &[count], self.kind)?.f_to(tensor.device())?;
            let _ = flat.f_index_copy_(0, &positions, &values.f_to_kind(tensor.kind())?)?;
        }
        Ok(())
    }

    /// Writes judged entries into the bytes of a tensor that the model does not use.
    pub(crate) fn write_to_bytes(&self, bytes: &mut [u8]) {
        let width = self.kind.elt_size_in_bytes();
        for (&position, value) in self.positions.iter().zip(self.values.chunks_exact(width)) {
            let start = position as usize * width;
            bytes[start..start + width].copy_from_slice(value);
        }
    }
}
