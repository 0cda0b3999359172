//! Why weights are refused.

use std::path::PathBuf;

use safetensors::Dtype;

/// Why the weights of a checkpoint are refused. Every case is found before a tensor is touched.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Neither `model.safetensors` nor an index is there.
    #[error("{directory}: holds neither model.safetensors nor model.safetensors.index.json; the checkpoint is incomplete")]
    NoWeights {
        /// The checkpoint's directory.
        directory: PathBuf,
    },
    /// A file cannot be opened or read.
    #[error("{path}: cannot be read: {source}; the checkpoint is incomplete, fetch it again")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file has another size or date than when it was opened.
    #[error("{path}: was written to after it was opened; a checkpoint's files must not change, fetch it again")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file is no safetensors file, is cut short, or its header lies.
    #[error("{path}: not a valid safetensors file: {source}; fetch the checkpoint again")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// The index is damaged or disagrees with its files.
    #[error("{path}: {reason}; fetch the checkpoint again")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that the configuration asks for is nowhere.
    #[error("{directory}: tensor {name} is missing (want shape {want:?}); the checkpoint does not fit its config.json")]
    Missing {
        /// The checkpoint's directory.
        directory: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape by the configuration.
        want: Vec<i64>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{path}: tensor {name} has shape {got:?}, want {want:?}; the checkpoint does not fit its config.json")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape in the file.
        got: Vec<i64>,
        /// Its shape by the configuration.
        want: Vec<i64>,
    },
    /// A tensor that no part of the model uses.
    #[error("{path}: tensor {name} is unexpected; the checkpoint does not fit its config.json")]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is stored in a type that is no weight type.
    #[error("{path}: tensor {name} is stored as {got}, want BF16, F16 or F32")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type in the file.
        got: Dtype,
    },
    /// A weight is NaN or infinite; servers would answer nonsense with it and call it success.
    #[error("{path}: tensor {name} holds NaN or infinity at element {element}; the checkpoint is damaged or training diverged")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Row-major index of the first such element.
        element: usize,
    },
}
