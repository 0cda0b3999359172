//! `delta_sparse.bin.zst`: which elements of which tensors changed, and to what (grail-checkpoints 5).
//!
//! ```text
//!  one zstd frame ─▶ u32 header length │ header, JSON │ positions and values of the first tensor │ of the second │ …
//! ```
//!
//! Stricter than the network's own decoder: unknown types, sizes that are no multiple of their type's, ranges that overlap or
//! leave the body, positions that are negative, repeated, out of order or outside their tensor, and bytes that belong to
//! nothing are refused. As there, `num_nonzero` is not believed, an empty file changes nothing, and bytes after the frame are
//! ignored. A body is read one tensor at a time, so the largest tensor bounds the memory.

mod decode;
mod encode;
mod layout;

#[cfg(test)]
mod tests;

pub use decode::SparseReader;
pub use encode::encode;
pub use layout::TensorLayout;

/// The layouts in use. `delta_metadata.json` names one, and the body must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseFormat {
    /// Flat positions.
    V2,
    /// Rows and columns, four bytes each.
    V3,
    /// Rows and columns, each as wide as the tensor needs.
    V31,
}

impl SparseFormat {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::V2, Self::V3, Self::V31];

    /// The name in `delta_metadata.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V2 => "sparse_codec_v2",
            Self::V3 => "sparse_codec_v3",
            Self::V31 => "sparse_codec_v3.1",
        }
    }

    /// The format of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The number in a body's header.
    pub fn version(self) -> u64 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
            Self::V31 => 31,
        }
    }
}

/// The type of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl ValueType {
    /// The name in a body's header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    /// The type of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Bf16, Self::F16, Self::F32].into_iter().find(|value| value.name() == name)
    }

    /// Bytes of one value.
    pub fn width(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// What changed in one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseTensor {
    /// The tensor.
    pub name: String,
    /// Its shape, at least one side.
    pub shape: Vec<u64>,
    /// Type of the values.
    pub value_type: ValueType,
    /// Row-major flat positions, strictly ascending, below the number of elements.
    pub positions: Vec<u32>,
    /// The new values, little-endian, one for each position.
    pub values: Vec<u8>,
}

/// Why a body is refused.
#[derive(Debug, thiserror::Error)]
pub enum SparseError {
    /// The frame is damaged, cut short, too large, or cannot be read.
    #[error("its zstd frame is unusable: {0}")]
    Frame(String),
    /// The body is of another format than `delta_metadata.json` says.
    #[error("its body is of version {got}, delta_metadata.json says {want}")]
    Version {
        /// Of the body; 0 where it names none.
        got: u64,
        /// Of the format that was announced.
        want: u64,
    },
    /// The header cannot be understood.
    #[error("its header is unusable: {0}")]
    Header(String),
    /// What is said of a tensor cannot be.
    #[error("tensor {name}: {why}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        why: String,
    },
}
